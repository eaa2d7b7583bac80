//! What every Log does, whatever it stands on.

mod consume;
mod groups;
mod keep;
mod reader;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::log::{AppendError, Log, NewRecord, Position, Topic};

pub use consume::*;
pub use groups::*;
pub use keep::*;
pub use reader::Reader;

/// How many partitions the harness's logs have.
pub const PARTITIONS: u32 = 4;

/// Nothing that has to happen may take longer: not a figure, only the difference between slow and never.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(240);

/// How long the suite watches that something does not happen. A right log passes however busy the machine is.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// What an adapter's tests give to the suite.
#[async_trait]
pub trait LogHarness: Send + Sync {
    /// A fresh, empty log of [`PARTITIONS`] partitions that shares nothing with other cases (a new folder, or a fresh
    /// prefix of topics).
    async fn make(&self) -> Arc<dyn Log>;

    /// Gives up this log, as a process that ends in order does, and opens what it left behind. All consumers are gone
    /// by then.
    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log>;

    /// Removes records before `before`, at least one of them, as retention does; none at or after it. `false` where
    /// the adapter's tests cannot: the cases that need it are skipped.
    async fn trim(&self, log: &Arc<dyn Log>, topic: Topic, partition: u32, before: Position) -> bool;
}

/// A group's name that no other case uses.
pub fn fresh_group() -> String {
    format!("suite-{}", Uuid::now_v7().simple())
}

/// One record.
pub fn record(partition: u32, text: &str) -> NewRecord {
    NewRecord { partition, payload: Bytes::copy_from_slice(text.as_bytes()) }
}

/// Appends texts in one call and returns their positions.
pub async fn append(log: &Arc<dyn Log>, topic: Topic, partition: u32, texts: &[String]) -> Vec<Position> {
    // A log that cannot take it right now (a topic whose leader is being chosen) may say so; what it acknowledged must
    // stand, so only a call that failed as a whole before anything was in line is repeated.
    let deadline = tokio::time::Instant::now() + LIVENESS_LIMIT;
    loop {
        let records = texts.iter().map(|text| record(partition, text)).collect();
        let results = within("an append", log.append(topic, records)).await;
        if results.iter().all(|result| *result == Err(AppendError::Full)) && !results.is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "the log stays full");
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        return results.into_iter().map(|result| result.expect("the append is acknowledged")).collect();
    }
}

/// `prefix-0`, `prefix-1` …
pub fn texts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIVENESS_LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {LIVENESS_LIMIT:?}"),
    }
}
