//! A Delivery that fails.

use std::sync::Arc;

use roost_protocol::records::Endpoint;

use super::{FaultPlace, Faults, INJECTED};
use crate::delivery::{Delivery, DeliveryBatch, DeliveryError, DeliveryFuture};

/// Batches are refused as busy, lost, or delivered without being acknowledged. It never acknowledges what it lost.
pub struct FailingDelivery {
    inner: Arc<dyn Delivery>,
    faults: Faults,
}

impl FailingDelivery {
    /// Wraps a delivery.
    pub fn new(inner: Arc<dyn Delivery>, faults: Faults) -> Arc<Self> {
        Arc::new(Self { inner, faults })
    }
}

impl Delivery for FailingDelivery {
    fn send(&self, to: &Endpoint, batch: DeliveryBatch) -> DeliveryFuture {
        let unavailable = || DeliveryError::Unavailable(INJECTED.into());
        match self.faults.roll() {
            None => self.inner.send(to, batch),
            Some(FaultPlace::Before) => {
                let error = if self.faults.coin() { DeliveryError::Busy } else { unavailable() };
                Box::pin(async move { Err(error) })
            }
            Some(FaultPlace::After) => {
                let sent = self.inner.send(to, batch);
                Box::pin(async move { sent.await.and_then(|()| Err(unavailable())) })
            }
        }
    }
}
