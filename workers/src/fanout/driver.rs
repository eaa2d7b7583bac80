//! The fan-out worker's hands: performs what the machine asks.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{self, BoxFuture};
use roost_ports::Delivery;
use roost_ports::log::Topic;
use tokio::sync::oneshot;

use super::lookup::Lookup;
use super::machine::{Done, Effect, Machine};
use super::{Config, Ports};
use crate::consume::{self, Membership, Perform};
use crate::evidence::FanoutEvidence;

/// Runs a worker until it is stopped.
pub(super) async fn run(config: Config, ports: Ports, evidence: Arc<FanoutEvidence>, stop: oneshot::Receiver<()>) {
    let membership = Membership {
        log: ports.log,
        topic: Topic::Deliver,
        group: config.group.clone(),
        stop_ms_max: config.stop_ms_max,
    };
    let lookup = Arc::new(Lookup::new(ports.store, ports.registry, ports.clock));
    let machine = Machine::new(config, evidence);
    consume::run(machine, Driver { lookup, delivery: ports.delivery }, membership, stop).await;
}

struct Driver {
    lookup: Arc<Lookup>,
    delivery: Arc<dyn Delivery>,
}

impl Perform<Machine> for Driver {
    fn perform(&self, effect: Effect) -> BoxFuture<'static, Option<Done>> {
        match effect {
            Effect::Lookup { number, queries, at_ms } => {
                let lookup = Arc::clone(&self.lookup);
                async move { Some(Done::Found { number, answers: lookup.find(queries, at_ms).await }) }.boxed()
            }
            Effect::Send { number, endpoint, batch } => {
                let sent = self.delivery.send(&endpoint, batch);
                let gateway = endpoint.incarnation;
                async move { Some(Done::Sent { number, gateway, result: sent.await }) }.boxed()
            }
            Effect::Alarm { partition, text } => {
                tracing::error!(partition, text, "fan-out: a person has to look");
                future::ready(None).boxed()
            }
        }
    }
}
