//! A sink that records what it gets and answers what the case says.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_protocol::Incarnation;
use tokio::sync::watch;

use crate::delivery::{DeliveryBatch, DeliveryError, DeliveryFuture, DeliverySink};

/// A sink of the suite.
pub struct TestSink {
    incarnation: Incarnation,
    batches: Mutex<Vec<DeliveryBatch>>,
    count: watch::Sender<usize>,
    open: watch::Sender<bool>,
    refusal: Mutex<Option<DeliveryError>>,
}

impl TestSink {
    /// One that acknowledges at once.
    pub fn open() -> Arc<Self> {
        Self::new(true)
    }

    /// One that acknowledges nothing before [`TestSink::release`].
    pub fn held() -> Arc<Self> {
        Self::new(false)
    }

    fn new(open: bool) -> Arc<Self> {
        Arc::new(Self {
            incarnation: Incarnation::new(),
            batches: Mutex::new(Vec::new()),
            count: watch::Sender::new(0),
            open: watch::Sender::new(open),
            refusal: Mutex::new(None),
        })
    }

    /// Acknowledges everything from now on.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    /// Answers with this from now on.
    pub fn refuse(&self, error: Option<DeliveryError>) {
        *self.refusal.lock() = error;
    }

    /// What has arrived, in order.
    pub fn batches(&self) -> Vec<DeliveryBatch> {
        self.batches.lock().clone()
    }

    /// How many batches have arrived.
    pub fn count(&self) -> usize {
        self.batches.lock().len()
    }

    /// Waits until so many batches have arrived.
    pub async fn arrived(&self, count: usize) {
        let mut receiver = self.count.subscribe();
        let arrival = receiver.wait_for(|arrived| *arrived >= count);
        match tokio::time::timeout(super::LIVENESS_LIMIT, arrival).await {
            Ok(found) => drop(found.expect("the sink lives")),
            Err(_) => panic!("{count} batches did not arrive within {:?}", super::LIVENESS_LIMIT),
        }
    }
}

#[async_trait]
impl DeliverySink for TestSink {
    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture {
        {
            let mut batches = self.batches.lock();
            batches.push(batch);
            self.count.send_replace(batches.len());
        }
        let refusal = self.refusal.lock().clone();
        let mut open = self.open.subscribe();
        Box::pin(async move {
            open.wait_for(|open| *open).await.map_err(|_| DeliveryError::Gone)?;
            refusal.map_or(Ok(()), Err)
        })
    }
}
