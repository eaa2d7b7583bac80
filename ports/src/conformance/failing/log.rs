//! A Log that fails.

use std::sync::Arc;

use async_trait::async_trait;

use super::{FaultPlace, Faults, INJECTED};
use crate::log::{
    AppendError, AppendFuture, Assignment, Bounds, Consumer, ConsumerEvent, Log, LogError, LogRecord, NewRecord,
    Position, StartAt, Topic,
};

/// Appends are refused as full, lost without a word, or done without being acknowledged; reading fails for now. What
/// it does acknowledge is as good as the log below.
pub struct FailingLog {
    inner: Arc<dyn Log>,
    faults: Faults,
}

impl FailingLog {
    /// Wraps a log.
    pub fn new(inner: Arc<dyn Log>, faults: Faults) -> Arc<Self> {
        Arc::new(Self { inner, faults })
    }

    fn pass(&self) -> Result<(), LogError> {
        self.faults.roll().map_or(Ok(()), |_| Err(LogError::Unavailable(INJECTED.into())))
    }
}

#[async_trait]
impl Log for FailingLog {
    fn log_id(&self) -> &str {
        self.inner.log_id()
    }

    fn partitions(&self) -> u32 {
        self.inner.partitions()
    }

    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        let count = records.len();
        match self.faults.roll() {
            None => self.inner.append(topic, records),
            Some(FaultPlace::Before) => {
                let error = if self.faults.coin() { AppendError::Full } else { AppendError::Unknown(INJECTED.into()) };
                Box::pin(async move { vec![Err(error); count] })
            }
            Some(FaultPlace::After) => {
                let done = self.inner.append(topic, records);
                Box::pin(async move {
                    let results = done.await.into_iter();
                    results.map(|result| result.and(Err(AppendError::Unknown(INJECTED.into())))).collect()
                })
            }
        }
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.pass()?;
        self.inner.bounds(topic, partition).await
    }

    async fn read_before(&self, topic: Topic, partition: u32, at: Position) -> Result<Option<LogRecord>, LogError> {
        self.pass()?;
        self.inner.read_before(topic, partition, at).await
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, LogError> {
        self.pass()?;
        let inner = self.inner.consume(topic, group).await?;
        Ok(Box::new(FailingConsumer { inner, faults: self.faults.clone() }))
    }

    async fn check(&self) -> Result<(), LogError> {
        self.pass()?;
        self.inner.check().await
    }
}

struct FailingConsumer {
    inner: Box<dyn Consumer>,
    faults: Faults,
}

#[async_trait]
impl Consumer for FailingConsumer {
    async fn next(&mut self) -> Result<ConsumerEvent, LogError> {
        // Before the event is taken, so that none is lost.
        match self.faults.roll() {
            Some(_) => Err(LogError::Unavailable(INJECTED.into())),
            None => self.inner.next().await,
        }
    }

    fn start(&mut self, partition: u32, assignment: Assignment, at: StartAt) -> Result<(), LogError> {
        match self.faults.roll() {
            Some(FaultPlace::Before) => Err(LogError::Unavailable(INJECTED.into())),
            Some(FaultPlace::After) => {
                self.inner.start(partition, assignment, at)?;
                Err(LogError::Unavailable(INJECTED.into()))
            }
            None => self.inner.start(partition, assignment, at),
        }
    }

    fn stop(&mut self, partition: u32) {
        self.inner.stop(partition);
    }

    fn commit(&mut self, partition: u32, assignment: Assignment, next: Position) {
        // A commit may be lost: that is its contract.
        if self.faults.roll().is_none() {
            self.inner.commit(partition, assignment, next);
        }
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}
