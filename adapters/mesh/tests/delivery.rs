//! The behaviour suite of Delivery, on the mesh over loopback.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_mesh::{MeshConfig, MeshDelivery, MeshServer};
use roost_ports::conformance::delivery::DeliveryHarness;
use roost_ports::{Delivery, DeliverySink};
use roost_protocol::records::Endpoint;
use support::{endpoint, secret, serve};

struct Loopback {
    config: MeshConfig,
    delivery: Arc<MeshDelivery>,
    servers: Mutex<HashMap<Endpoint, MeshServer>>,
}

#[async_trait]
impl DeliveryHarness for Loopback {
    fn delivery(&self) -> Arc<dyn Delivery> {
        self.delivery.clone()
    }

    async fn attach(&self, sink: Arc<dyn DeliverySink>) -> Endpoint {
        let incarnation = sink.incarnation();
        let server = serve(sink, &self.config).await;
        let endpoint = endpoint(&server, incarnation);
        self.servers.lock().insert(endpoint.clone(), server);
        endpoint
    }

    async fn detach(&self, endpoint: &Endpoint) {
        let server = self.servers.lock().remove(endpoint).expect("attached");
        server.stop().await;
    }
}

async fn over_loopback() -> Option<Loopback> {
    let config = MeshConfig { shared_secret: Some(secret('s')), ..MeshConfig::default() };
    let delivery = Arc::new(MeshDelivery::new(config.clone()));
    Some(Loopback { config, delivery, servers: Mutex::default() })
}

roost_ports::conformance_tests!(delivery, over_loopback);

/// The same suite where sender and sink are one process.
mod in_process {
    use super::*;

    struct InProcess(Arc<MeshDelivery>);

    #[async_trait]
    impl DeliveryHarness for InProcess {
        fn delivery(&self) -> Arc<dyn Delivery> {
            self.0.clone()
        }

        async fn attach(&self, sink: Arc<dyn DeliverySink>) -> Endpoint {
            self.0.attach_local(sink.clone());
            Endpoint { address: String::new(), incarnation: sink.incarnation() }
        }

        async fn detach(&self, endpoint: &Endpoint) {
            self.0.detach_local(endpoint.incarnation);
        }
    }

    async fn in_process() -> Option<InProcess> {
        Some(InProcess(Arc::new(MeshDelivery::new(MeshConfig::default()))))
    }

    roost_ports::conformance_tests!(delivery, in_process);
}
