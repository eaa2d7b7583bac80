//! The fan-out worker's hands: performs what the machine asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use roost_ports::log::Topic;
use roost_ports::{Delivery, follow};
use tokio::sync::{Notify, oneshot};

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
    let driver = Driver { lookup, delivery: ports.delivery, flights: Arc::default() };
    consume::run(machine, driver, membership, stop).await;
}

struct Driver {
    lookup: Arc<Lookup>,
    delivery: Arc<dyn Delivery>,
    flights: Arc<Flights>,
}

/// Batches whose outcomes come back by themselves: nearly all arrive, and then there is nothing to hurry for.
#[derive(Default)]
struct Flights {
    /// Those that the machine has not been told of, on their way or landed.
    untold: AtomicUsize,
    landed: Mutex<Vec<Done>>,
    hurry: Notify,
}

/// So many batches that the machine has not been told of may keep it from sending the next one.
const UNTOLD_HURRY: usize = 3;

impl Flights {
    fn land(&self, done: Done) {
        let failed = matches!(done, Done::Sent { result: Err(_), .. });
        self.landed.lock().push(done);
        if failed || self.untold.load(Ordering::Relaxed) >= UNTOLD_HURRY {
            self.hurry.notify_one();
        }
    }
}

impl Perform<Machine> for Driver {
    fn perform(&self, effect: Effect) -> Option<BoxFuture<'static, Done>> {
        match effect {
            Effect::Lookup { number, queries, at_ms } => {
                let lookup = Arc::clone(&self.lookup);
                Some(async move { Done::Found { number, answers: lookup.find(queries, at_ms).await } }.boxed())
            }
            Effect::Send { number, endpoint, batch } => {
                let sent = self.delivery.send(&endpoint, batch);
                let (gateway, flights) = (endpoint.incarnation, Arc::clone(&self.flights));
                flights.untold.fetch_add(1, Ordering::Relaxed);
                follow(async move { flights.land(Done::Sent { number, gateway, result: sent.await }) });
                None
            }
            Effect::Alarm { partition, text } => {
                tracing::error!(partition, text, "fan-out: a person has to look");
                None
            }
        }
    }

    fn take_landed(&self) -> Vec<Done> {
        let landed = std::mem::take(&mut *self.flights.landed.lock());
        self.flights.untold.fetch_sub(landed.len(), Ordering::Relaxed);
        landed
    }

    fn awaits_landing(&self) -> bool {
        self.flights.untold.load(Ordering::Relaxed) > 0
    }

    fn landed_badly(&self) -> impl Future<Output = ()> + Send {
        self.flights.hurry.notified()
    }
}
