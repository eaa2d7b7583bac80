//! Delivery inside the process: batches go straight to the sink of the incarnation they are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use roost_ports::delivery::{
    Delivery, DeliveryBatch, DeliveryError, DeliveryFuture, DeliverySink, OUTSTANDING_BYTES_MAX,
};
use roost_protocol::Incarnation;
use roost_protocol::records::Endpoint;

/// Delivery to the sinks of this process: its gateway and its api, each under its own incarnation.
///
/// A sink is asked for its incarnation at every batch, because a gateway begins a new one when it loses its lease.
#[derive(Default)]
pub struct LocalDelivery {
    sinks: RwLock<Vec<Attached>>,
}

#[derive(Clone)]
struct Attached {
    sink: Arc<dyn DeliverySink>,
    outstanding_bytes: Arc<AtomicUsize>,
}

impl LocalDelivery {
    /// Delivery to nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers to this sink from now on.
    pub fn attach(&self, sink: Arc<dyn DeliverySink>) {
        self.sinks.write().push(Attached { sink, outstanding_bytes: Arc::new(AtomicUsize::new(0)) });
    }

    /// Delivers to that sink no more: it is `Gone` from now on. What it has taken goes on.
    pub fn detach(&self, incarnation: Incarnation) {
        self.sinks.write().retain(|attached| attached.sink.incarnation() != incarnation);
    }
}

impl Delivery for LocalDelivery {
    fn send(&self, to: &Endpoint, batch: DeliveryBatch) -> DeliveryFuture {
        let sinks = self.sinks.read();
        let attached = sinks.iter().find(|attached| attached.sink.incarnation() == to.incarnation).cloned();
        drop(sinks);
        let Some(attached) = attached else { return refused(DeliveryError::Gone) };
        let Some(share) = Share::take(attached.outstanding_bytes, batch.bytes()) else {
            return refused(DeliveryError::Busy);
        };
        // Here and not in the future: the call decides the order.
        let delivered = attached.sink.deliver(batch);
        Box::pin(async move {
            let _share = share;
            delivered.await
        })
    }
}

fn refused(error: DeliveryError) -> DeliveryFuture {
    Box::pin(std::future::ready(Err(error)))
}

/// A batch's share of what may be outstanding, given back when its future ends.
struct Share {
    outstanding_bytes: Arc<AtomicUsize>,
    bytes: usize,
}

impl Share {
    fn take(outstanding_bytes: Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let fits = |outstanding: usize| outstanding.checked_add(bytes).filter(|sum| *sum <= OUTSTANDING_BYTES_MAX);
        outstanding_bytes.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self { outstanding_bytes, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.outstanding_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    struct Renewed(AtomicU64);

    impl DeliverySink for Renewed {
        fn incarnation(&self) -> Incarnation {
            Incarnation(self.0.load(Ordering::Relaxed))
        }

        fn deliver(&self, _: DeliveryBatch) -> DeliveryFuture {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    #[tokio::test]
    async fn a_sink_that_begins_a_new_incarnation_is_found_under_it() {
        let (delivery, sink) = (LocalDelivery::new(), Arc::new(Renewed(AtomicU64::new(1))));
        delivery.attach(sink.clone());
        let to = |incarnation| Endpoint { address: String::new(), incarnation: Incarnation(incarnation) };
        assert_eq!(delivery.send(&to(1), DeliveryBatch::default()).await, Ok(()));
        sink.0.store(2, Ordering::Relaxed);
        assert_eq!(delivery.send(&to(1), DeliveryBatch::default()).await, Err(DeliveryError::Gone));
        assert_eq!(delivery.send(&to(2), DeliveryBatch::default()).await, Ok(()));
    }
}
