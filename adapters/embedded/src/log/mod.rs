//! The Log on SQLite: one writer thread, one fsync for everything queued, consumers served from memory.
//!
//! Appends of all topics wait in one bounded queue; the writer takes everything there is into one transaction, and
//! acknowledges after its commit. While it commits, the next batch gathers: the batch is as large as the disk is slow.
//! Group positions and deletions ride along in those transactions, or follow a second later when nothing else comes.
//! Fresh records stay in a bounded tail in memory, so that consumers read the file only when they are behind.

mod checkpoint;
mod chunk;
mod consumer;
mod database;
mod groups;
mod maintenance;
mod partition;
mod queue;
mod reader;
mod writer;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use roost_ports::log::{
    AppendError, AppendFuture, Bounds, Consumer, Log, LogError, LogRecord, NewRecord, Position, Topic,
};
use roost_protocol::limits::RECORD_BYTES_MAX;
use tokio::sync::oneshot;

use checkpoint::Checkpointer;
use consumer::SqliteConsumer;
use groups::Groups;
use partition::Partition;
use queue::{Append, Queue};
use reader::{Read, Reader};
use writer::Writer;

/// How a log is made and how much it holds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the log in the Store's progress rows; fixed when the file is made.
    pub log_id: String,
    /// Partitions of every topic; fixed when the file is made.
    pub partitions: u32,
    /// Records in the queue before appends are refused as full.
    pub queue_records_max: usize,
    /// Bytes in the queue before appends are refused as full.
    pub queue_bytes_max: usize,
    /// Bytes of the newest records that stay in memory for consumers.
    pub tail_bytes_max: usize,
    /// Records that stay in the file before the position that all groups have committed: a claim reads the one before
    /// the Store's next position.
    pub keep_behind: u64,
    /// Records that stay in each partition of a topic that no group reads.
    pub keep_unread: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_id: "embedded".into(),
            partitions: 48,
            queue_records_max: 65_536,
            queue_bytes_max: 64 * 1024 * 1024,
            tail_bytes_max: 8 * 1024 * 1024,
            keep_behind: 256,
            keep_unread: 10_000,
        }
    }
}

/// The fewest records that stay before the committed position, whatever the options say.
const KEEP_BEHIND_MIN: u64 = 16;

/// The most partitions that fit in a record's key.
const PARTITIONS_MAX: u32 = 1 << chunk::PARTITION_BITS;

/// What the log, its threads and its consumers share.
struct Shared {
    log_id: String,
    partition_count: u32,
    keep_behind: u64,
    keep_unread: u64,
    tail_bytes_max: usize,
    /// All partitions of all topics, by [`Shared::slot`].
    partitions: Vec<Partition>,
    queue: Queue,
    groups: Groups,
    reader: Reader,
    closed: AtomicBool,
}

impl Shared {
    fn slot(&self, topic: Topic, partition: u32) -> usize {
        assert!(partition < self.partition_count, "partition {partition} of {}", self.partition_count);
        chunk::topic_number(topic) as usize * self.partition_count as usize + partition as usize
    }

    fn slot_place(&self, slot: usize) -> (Topic, u32) {
        let count = self.partition_count as usize;
        (Topic::ALL[slot / count], (slot % count) as u32)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A durable log in one file.
pub struct SqliteLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    checkpointer: Option<Checkpointer>,
    /// Held until everything else of this log is gone.
    _lock: File,
}

impl SqliteLog {
    /// Opens the log of this file, or makes it. `Refused` where the file is another's, in use, or was made with another
    /// log id or partition count.
    pub fn open(path: &Path, options: Options) -> Result<Arc<Self>, LogError> {
        assert!((1..PARTITIONS_MAX).contains(&options.partitions), "{} partitions", options.partitions);
        let lock = take_lock(path)?;
        let connection = database::open_writer(path)?;
        database::prepare(&connection, &options.log_id, options.partitions)?;
        let mut partitions = Vec::new();
        for topic in Topic::ALL {
            for partition in 0..options.partitions {
                let held = database::held(&connection, topic, partition).map_err(database::unavailable)?;
                partitions.push(Partition::new(held.begin, held.end));
            }
        }
        let offsets = database::group_offsets(&connection).map_err(database::unavailable)?;
        let shared = Arc::new(Shared {
            partition_count: options.partitions,
            keep_behind: options.keep_behind.max(KEEP_BEHIND_MIN),
            keep_unread: options.keep_unread.max(KEEP_BEHIND_MIN),
            tail_bytes_max: options.tail_bytes_max,
            partitions,
            queue: Queue::new(options.queue_records_max, options.queue_bytes_max),
            groups: Groups::new(options.partitions, offsets),
            reader: Reader::open(path)?,
            log_id: options.log_id,
            closed: AtomicBool::new(false),
        });
        let checkpointer = Checkpointer::start(path)?;
        let wal = crate::wal::open(&connection).map_err(|error| LogError::Unavailable(error.to_string()))?;
        let writer = Writer::start(connection, wal, Arc::clone(&shared), checkpointer.handle())?;
        Ok(Arc::new(Self { shared, writer: Some(writer), checkpointer: Some(checkpointer), _lock: lock }))
    }

    /// Writes group positions and removes what all groups have committed, now instead of lazily.
    pub async fn sweep(&self) {
        let (done, swept) = oneshot::channel();
        self.shared.queue.request_sweep(done);
        // The writer's end drops the request: nothing is left to sweep then.
        let _ = swept.await;
    }

    async fn read_record(&self, slot: usize, position: u64) -> Result<Option<LogRecord>, LogError> {
        if let Some(mut records) = self.shared.partitions[slot].fetch(position, 1, usize::MAX) {
            return Ok(records.pop());
        }
        match reader::read(&self.shared, slot, position, 1, usize::MAX).await? {
            Read::Records(mut records) => Ok(Some(records.swap_remove(0))),
            // Removed in between: the log begins later now.
            Read::Begins(_) => Ok(None),
        }
    }
}

#[async_trait]
impl Log for SqliteLog {
    fn log_id(&self) -> &str {
        &self.shared.log_id
    }

    fn partitions(&self) -> u32 {
        self.shared.partition_count
    }

    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        let count = records.len();
        if count == 0 {
            return Box::pin(std::future::ready(Vec::new()));
        }
        for record in &records {
            let _in_range = self.shared.slot(topic, record.partition);
        }
        if records.iter().all(|record| record.payload.len() > RECORD_BYTES_MAX) {
            return Box::pin(std::future::ready(vec![Err(AppendError::TooLarge); count]));
        }
        let (done, results) = oneshot::channel();
        match self.shared.queue.push(Append { topic, records, done }) {
            Err(error) => Box::pin(std::future::ready(vec![Err(error); count])),
            Ok(()) => Box::pin(async move {
                let lost = || vec![Err(AppendError::Unknown("the log's writer has ended".into())); count];
                results.await.unwrap_or_else(|_| lost())
            }),
        }
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        Ok(self.shared.partitions[self.shared.slot(topic, partition)].bounds())
    }

    async fn read_before(&self, topic: Topic, partition: u32, at: Position) -> Result<Option<LogRecord>, LogError> {
        let slot = self.shared.slot(topic, partition);
        let bounds = self.shared.partitions[slot].bounds();
        let at = at.min(bounds.end);
        if at <= bounds.begin {
            return Ok(None);
        }
        self.read_record(slot, at.0 - 1).await
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(SqliteConsumer::join(Arc::clone(&self.shared), topic, group)))
    }

    async fn check(&self) -> Result<(), LogError> {
        if self.shared.queue.is_open() {
            Ok(())
        } else {
            Err(LogError::Unavailable("the log's writer has ended".into()))
        }
    }
}

impl Drop for SqliteLog {
    fn drop(&mut self) {
        // The writer drains the queue first: what was appended in order is durable at the end.
        self.shared.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer had panicked");
        }
        self.shared.closed.store(true, Ordering::Release);
        self.shared.groups.wake_all();
        self.shared.reader.close();
        // The last connection to close folds the write-ahead log into the file.
        drop(self.checkpointer.take());
    }
}

fn take_lock(path: &Path) -> Result<File, LogError> {
    let lock_path = path.with_added_extension("lock");
    let lock = File::create(&lock_path)
        .map_err(|error| LogError::Unavailable(format!("{} cannot be made: {error}", lock_path.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(LogError::Refused(format!("{} is in use by a process", path.display()))),
        Err(TryLockError::Error(error)) => Err(LogError::Unavailable(format!("locking {}: {error}", path.display()))),
    }
}
