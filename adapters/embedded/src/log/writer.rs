//! The writer's thread: everything queued in one transaction, acknowledged after its commit.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_ports::log::{AppendError, LogError, Position, Topic};
use roost_protocol::limits::RECORD_BYTES_MAX;
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::checkpoint::CheckpointHandle;
use super::maintenance::{self, Round};
use super::partition::record_bytes;
use super::queue::{Append, Work};
use super::{Shared, chunk, database};

/// Room for building rows that is kept from one transaction to the next.
const SCRATCH_BYTES_KEPT: usize = 512 * 1024;
/// About the pages that a transaction writes besides the records themselves, per partition touched.
const PAGES_PER_SLOT: usize = 2;
/// A transaction that is not synced for itself is synced with the next one, or after this time.
const SYNC_AFTER: Duration = Duration::from_millis(5);
/// The eviction order is cleaned once it is this long.
const ORDER_LONG: usize = 4_096;

type Results = Vec<Result<Position, AppendError>>;
type Waiting = (oneshot::Sender<Results>, Results);

/// The state of the writer's thread.
pub struct Writer {
    connection: Connection,
    wal: File,
    shared: Arc<Shared>,
    checkpoint: CheckpointHandle,
    /// Committed but not synced: readers may have these records, their appenders hear nothing before the sync.
    unsynced: Vec<Waiting>,
    sync_at: Option<Instant>,
    /// The next position of each slot.
    next: Vec<u64>,
    /// The records of the transaction, by slot.
    batch: Vec<Vec<Bytes>>,
    /// The slots that have some.
    touched: Vec<usize>,
    scratch: Vec<u8>,
    tail: TailBudget,
    /// Where the next round of deletions begins.
    turn: usize,
    /// A transaction has failed, and what the file holds has to be read again.
    uncertain: bool,
    /// A sync has failed: nothing more is made known.
    broken: bool,
}

/// Which records leave the memory first.
struct TailBudget {
    order: VecDeque<(usize, u64)>,
    bytes: usize,
}

/// Tells the queue when the thread ends, by a panic too: nobody waits for ever.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.queue.end();
    }
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the log could not be synced: {0}")]
    Sync(std::io::Error),
    #[cfg(feature = "failpoints")]
    #[error("a fail point")]
    Injected,
}

/// What a fail point does here: `return` fails the transaction, `return(crash)` ends the process as a real crash does.
#[cfg(feature = "failpoints")]
fn injected<T>(how: Option<String>) -> Result<T, WriteError> {
    if how.as_deref() == Some("crash") {
        std::process::abort();
    }
    Err(WriteError::Injected)
}

impl Writer {
    /// Starts the thread.
    pub fn start(
        connection: Connection,
        wal: File,
        shared: Arc<Shared>,
        checkpoint: CheckpointHandle,
    ) -> Result<JoinHandle<()>, LogError> {
        let slots = shared.partitions.len();
        let mut writer = Self {
            next: shared.partitions.iter().map(super::Partition::end).collect(),
            batch: vec![Vec::new(); slots],
            touched: Vec::new(),
            scratch: Vec::new(),
            tail: TailBudget { order: VecDeque::new(), bytes: 0 },
            turn: 0,
            uncertain: false,
            broken: false,
            unsynced: Vec::new(),
            sync_at: None,
            connection,
            wal,
            shared,
            checkpoint,
        };
        let run = move || {
            let _end = EndGuard(Arc::clone(&writer.shared));
            while writer.step() {}
        };
        std::thread::Builder::new()
            .name("log-writer".into())
            .stack_size(512 * 1024)
            .spawn(run)
            .map_err(|error| LogError::Unavailable(format!("no thread for the log: {error}")))
    }

    /// Waits for work and does it; `false` after the last, and where nothing more can be made durable.
    fn step(&mut self) -> bool {
        let Work { appends, records, bytes, maintain, sweeps, last } = self.shared.queue.take(self.sync_at);
        if !appends.is_empty() || maintain {
            // What fan-out reads is in the Store already. Whoever appended it waits a little longer for the sync.
            let sync = last || appends.iter().any(|append| append.topic != Topic::Deliver);
            let outcome = self.recover().and_then(|()| self.transaction(&appends, maintain, last, sync));
            // First room, then answers: whoever has its answer may append again at once.
            self.shared.queue.done(records, bytes);
            self.settle(appends, outcome);
        }
        if self.sync_at.is_some_and(|at| last || at <= Instant::now())
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "the log ends");
        }
        if !sweeps.is_empty() {
            self.sweep();
            for done in sweeps {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
        if self.broken {
            return false;
        }
        self.checkpoint.finish(&self.connection);
        !last
    }

    /// Everything committed is durable after this, and whoever waits for that is told. Where it fails nobody knows what
    /// is on the disk, and a later sync that succeeds would say nothing about what this one lost: the log ends.
    fn sync(&mut self) -> Result<(), WriteError> {
        self.sync_at = None;
        let synced = self.wal.sync_data().map_err(WriteError::Sync);
        self.broken |= synced.is_err();
        for (done, results) in self.unsynced.drain(..) {
            let unknown = |_| Err(AppendError::Unknown("the log could not be synced".into()));
            let results = if synced.is_ok() { results } else { results.into_iter().map(unknown).collect() };
            // Whoever waited may have gone.
            let _ = done.send(results);
        }
        synced
    }

    /// Everything in one transaction. The results are true only once this has returned, and durable if it was to be
    /// synced.
    fn transaction(
        &mut self,
        appends: &[Append],
        maintain: bool,
        everything: bool,
        sync: bool,
    ) -> Result<(Vec<Results>, Round), WriteError> {
        let begun = Instant::now();
        let results = self.gather(appends);
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut pages = 0;
        for index in 0..self.touched.len() {
            pages += self.insert(self.touched[index])?;
        }
        let mut round = Round::default();
        if maintain {
            round = self.maintain(everything)?;
            pages += PAGES_PER_SLOT * (round.begins.len() + 1);
        }
        fail::fail_point!("log-before-commit", injected);
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        fail::fail_point!("log-after-commit", injected);
        if sync {
            self.sync()?;
        } else if !appends.is_empty() {
            self.sync_at.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
        }
        metrics::histogram!("roost_log_commit_seconds").record(begun.elapsed().as_secs_f64());
        self.checkpoint.wrote(pages);
        Ok((results, round))
    }

    /// Puts the records in line by slot, and gives them their positions.
    fn gather(&mut self, appends: &[Append]) -> Vec<Results> {
        let mut all = Vec::with_capacity(appends.len());
        for append in appends {
            let mut results = Vec::with_capacity(append.records.len());
            for record in &append.records {
                if record.payload.len() > RECORD_BYTES_MAX {
                    results.push(Err(AppendError::TooLarge));
                    continue;
                }
                let slot = self.shared.slot(append.topic, record.partition);
                let batch = &mut self.batch[slot];
                if batch.is_empty() {
                    self.touched.push(slot);
                }
                results.push(Ok(Position(self.next[slot] + batch.len() as u64)));
                batch.push(record.payload.clone());
            }
            all.push(results);
        }
        all
    }

    /// Inserts a slot's records; returns about how many pages that takes.
    fn insert(&mut self, slot: usize) -> Result<usize, WriteError> {
        let (topic, partition) = self.shared.slot_place(slot);
        let mut insert =
            self.connection.prepare_cached("INSERT INTO chunk (id, records, payload) VALUES (?1, ?2, ?3)")?;
        let mut pages = PAGES_PER_SLOT;
        let mut payloads = self.batch[slot].iter().peekable();
        let mut position = self.next[slot];
        while payloads.peek().is_some() {
            self.scratch.clear();
            let mut count = 0u64;
            let fits = |next: &Bytes, count: u64, bytes: usize| {
                count == 0 || (count < chunk::CHUNK_RECORDS_MAX && bytes + next.len() <= chunk::CHUNK_BYTES_MAX)
            };
            while let Some(payload) = payloads.next_if(|next| fits(next, count, self.scratch.len())) {
                chunk::put(&mut self.scratch, payload);
                count += 1;
            }
            insert.execute(params![chunk::key(topic, partition, position), count as i64, &self.scratch[..]])?;
            position += count;
            pages += self.scratch.len() / 4096;
        }
        self.scratch.shrink_to(SCRATCH_BYTES_KEPT);
        Ok(pages)
    }

    fn maintain(&mut self, everything: bool) -> Result<Round, WriteError> {
        maintenance::write_offsets(&self.connection, &self.shared.groups)?;
        let consumed = maintenance::consumed(&self.shared);
        for (partition, consumed) in self.shared.partitions.iter().zip(&consumed) {
            self.tail.bytes -= partition.forget_before(*consumed);
        }
        self.tail.clean(&self.shared);
        Ok(maintenance::delete(&self.connection, &self.shared, &consumed, &mut self.turn, everything)?)
    }

    /// After the commit, or the failure: memory follows the file, consumers are woken, waiters are told.
    fn settle(&mut self, appends: Vec<Append>, outcome: Result<(Vec<Results>, Round), WriteError>) {
        match outcome {
            Ok((results, round)) => {
                for (slot, begin) in &round.begins {
                    self.shared.partitions[*slot].set_begin(*begin);
                }
                if round.more {
                    self.shared.queue.note_lazy_work();
                }
                self.publish();
                let answers = appends.into_iter().map(|append| append.done).zip(results);
                if self.sync_at.is_some() {
                    return self.unsynced.extend(answers);
                }
                for (done, results) in answers {
                    // Whoever waited may have gone.
                    let _ = done.send(results);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the log could not commit");
                metrics::counter!("roost_log_commit_failures_total").increment(1);
                for slot in self.touched.drain(..) {
                    self.batch[slot].clear();
                }
                self.uncertain = true;
                // At once: records that did get into the file must not wait for the next append. After a failed sync
                // nobody may have them.
                if !self.broken
                    && let Err(error) = self.recover()
                {
                    tracing::error!(%error, "the log cannot be read");
                }
                for append in appends {
                    let unknown = AppendError::Unknown(error.to_string());
                    let told = |size: usize| match size > RECORD_BYTES_MAX {
                        true => Err(AppendError::TooLarge),
                        false => Err(unknown.clone()),
                    };
                    let results = append.records.iter().map(|record| told(record.payload.len())).collect();
                    let _ = append.done.send(results);
                }
            }
        }
    }

    fn publish(&mut self) {
        let mut topics = [false; Topic::ALL.len()];
        let mut count = 0;
        for slot in self.touched.drain(..) {
            let batch = &mut self.batch[slot];
            count += batch.len() as u64;
            self.next[slot] += batch.len() as u64;
            self.tail.order.push_back((slot, self.next[slot]));
            self.tail.bytes += batch.iter().map(record_bytes).sum::<usize>();
            let partition = &self.shared.partitions[slot];
            partition.publish(batch);
            batch.shrink_to(64);
            topics[slot / self.shared.partition_count as usize] = true;
            if partition.end() - partition.begin() > self.shared.keep_unread + 1_024 {
                // Where nobody reads, nobody commits either.
                self.shared.queue.note_lazy_work();
            }
        }
        metrics::counter!("roost_log_records_total").increment(count);
        for (topic, touched) in Topic::ALL.into_iter().zip(topics) {
            if touched {
                self.shared.groups.wake(topic);
            }
        }
        self.tail.evict(&self.shared);
    }

    /// Reads what the file holds after a failure; until that has worked, nothing is appended.
    fn recover(&mut self) -> Result<(), WriteError> {
        if !self.uncertain {
            return Ok(());
        }
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        // What did get into the file is made known now.
        self.sync()?;
        for slot in 0..self.next.len() {
            let (topic, partition) = self.shared.slot_place(slot);
            let held = database::held(&self.connection, topic, partition)?;
            self.next[slot] = held.end;
            self.tail.bytes -= self.shared.partitions[slot].reset(held.begin, held.end);
        }
        self.uncertain = false;
        Topic::ALL.into_iter().for_each(|topic| self.shared.groups.wake(topic));
        Ok(())
    }

    /// All lazy work, as often as it takes.
    fn sweep(&mut self) {
        loop {
            let outcome = self.recover().and_then(|()| self.transaction(&[], true, true, true));
            let more = outcome.as_ref().is_ok_and(|(_, round)| round.more);
            self.settle(Vec::new(), outcome);
            if !more {
                return;
            }
        }
    }
}

impl TailBudget {
    fn evict(&mut self, shared: &Shared) {
        while self.bytes > shared.tail_bytes_max
            && let Some((slot, end)) = self.order.pop_front()
        {
            self.bytes -= shared.partitions[slot].forget_before(end);
        }
    }

    /// Forgets entries whose records have left by being consumed.
    fn clean(&mut self, shared: &Shared) {
        if self.order.len() > ORDER_LONG {
            self.order.retain(|(slot, end)| shared.partitions[*slot].tail_first() < *end);
            self.order.shrink_to(ORDER_LONG);
        }
    }
}
