//! The persist worker: gives every record of `ingress` its number, its verdict and its place in `deliver`.
//!
//! | file | decides |
//! |---|---|
//! | [`machine`] | what begins when; without I/O |
//! | [`progress`] | what is applied, published, acknowledged in one partition |
//! | [`batching`] | what goes into a transaction |
//! | [`bisect`] | which record is poison |
//! | [`notices`] | who is told what |
//! | [`driver`] | nothing: it performs |

pub mod batching;
pub mod bisect;
pub mod driver;
pub mod fail_points;
pub mod machine;
pub mod notices;
pub mod progress;

use std::sync::Arc;

use roost_ports::{Delivery, Log, Store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::evidence::PersistEvidence;

/// The limits and times of a persist worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The consumer group.
    pub group: String,
    /// Transactions that run beside one another; partition mod lanes is a partition's lane.
    pub lanes: usize,
    /// Records in one transaction.
    pub batch_records_max: usize,
    /// Bytes of records in one transaction.
    pub batch_bytes_max: usize,
    /// Records of one partition between the consumer and the transactions.
    pub buffer_records_max: usize,
    /// The same in bytes.
    pub buffer_bytes_max: usize,
    /// Transactions of a lane that are committed and not wholly published.
    pub transactions_unpublished_max: usize,
    /// Records of a lane that are committed and not wholly published.
    pub records_unpublished_max: usize,
    /// The published position is written by itself after this much idleness.
    pub note_after_ms: u64,
    /// A stopping worker finishes what runs within this time.
    pub stop_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            group: "persist".into(),
            lanes: 2,
            batch_records_max: 2_500,
            batch_bytes_max: 4 * 1024 * 1024,
            buffer_records_max: 5_000,
            buffer_bytes_max: 2 * 1024 * 1024,
            transactions_unpublished_max: 2,
            records_unpublished_max: 10_000,
            note_after_ms: 1_000,
            stop_ms_max: 5_000,
        }
    }
}

/// What a persist worker needs from the world.
#[derive(Clone)]
pub struct Ports {
    /// Where records come from and go to.
    pub log: Arc<dyn Log>,
    /// Where they are applied.
    pub store: Arc<dyn Store>,
    /// How verdicts travel.
    pub delivery: Arc<dyn Delivery>,
}

/// The persist worker.
pub struct Worker;

impl Worker {
    /// Starts a worker on the current tokio runtime. It waits for the log and the Store as long as it takes.
    pub fn start(config: Config, ports: Ports) -> Handle {
        let evidence = Arc::new(PersistEvidence::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(driver::run(config, ports, Arc::clone(&evidence), stopped));
        Handle { evidence, stop, task }
    }
}

/// A running persist worker. Dropping it stops the worker too, without waiting.
pub struct Handle {
    evidence: Arc<PersistEvidence>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Handle {
    /// What the worker has met so far.
    pub fn evidence(&self) -> &Arc<PersistEvidence> {
        &self.evidence
    }

    /// Whether the worker has ended by itself, which it never should.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Begins nothing new, finishes what runs, and leaves the group so that others take over at once.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the persist worker did not end well");
        }
    }
}
