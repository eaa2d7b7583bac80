//! Delivery inside the process passes the suite.

use std::sync::Arc;

use async_trait::async_trait;
use roost_embedded::delivery::LocalDelivery;
use roost_ports::conformance::delivery::DeliveryHarness;
use roost_ports::{Delivery, DeliverySink};
use roost_protocol::records::Endpoint;

#[derive(Default)]
struct Harness(Arc<LocalDelivery>);

#[async_trait]
impl DeliveryHarness for Harness {
    fn delivery(&self) -> Arc<dyn Delivery> {
        Arc::clone(&self.0) as Arc<dyn Delivery>
    }

    async fn attach(&self, sink: Arc<dyn DeliverySink>) -> Endpoint {
        let endpoint = Endpoint { address: String::new(), incarnation: sink.incarnation() };
        self.0.attach(sink);
        endpoint
    }

    async fn detach(&self, endpoint: &Endpoint) {
        self.0.detach(endpoint.incarnation);
    }
}

async fn harness() -> Option<Harness> {
    Some(Harness::default())
}

roost_ports::conformance_tests!(delivery, harness);
