//! Where transactions are written, one at a time, and made durable. While one is waited for, the next may be written.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, ErrorCode};

use super::checkpoint::Checkpointer;
use super::connection;
use super::writer::WriteError;

/// Something to be done in a transaction, and whoever waits for it.
pub(super) trait Job: Send {
    /// Does the work; may be called again after a rollback.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Takes down what its transaction came to.
    fn note(&mut self, result: Result<(), WriteError>);
    /// Answers. What is committed and not known to be durable is uncertain.
    fn answer(&mut self, durable: bool);
}

/// See the module.
pub(super) struct Desk {
    pen: Mutex<Pen>,
    wal: Mutex<File>,
    /// Commits that have begun: readers may see them.
    begun: AtomicU64,
    /// Those of them that have ended, one way or the other.
    ended: AtomicU64,
    /// Those of them that are on the disk.
    synced: AtomicU64,
    /// A sync has failed: nobody knows what is on the disk, and a later one that succeeds would say nothing about it.
    broken: AtomicBool,
}

/// What a transaction is written with.
pub(super) struct Pen {
    connection: Connection,
    checkpointer: Checkpointer,
}

impl Desk {
    /// Opens the file.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = connection::open_writer(path)?;
        let checkpointer = Checkpointer::start(path, &connection)?;
        let file = |error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
        let wal = crate::wal::open(&connection).map_err(file)?;
        // What an earlier process has committed and not synced is seen by readers from here on.
        wal.sync_data().map_err(file)?;
        Ok(Self {
            pen: Mutex::new(Pen { connection, checkpointer }),
            wal: Mutex::new(wal),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// Waits until nobody else writes.
    pub(super) fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock()
    }

    /// One transaction for the jobs, and their answers once it is durable.
    pub(super) fn commit(&self, pen: MutexGuard<'_, Pen>, group: &mut [Box<dyn Job>]) {
        if self.is_broken() {
            group.iter_mut().for_each(|job| job.note(Err(WriteError::Broken)));
        } else {
            self.commit_together(&pen.connection, group);
            pen.checkpointer.after_commit(&pen.connection);
        }
        let commits = self.ended.load(Ordering::Acquire);
        drop(pen);
        let durable = self.sync(commits);
        group.iter_mut().for_each(|job| job.answer(durable));
    }

    /// For a reader, with what it has read: waits until all of that is durable. `false`: that will never be known.
    pub(super) fn settle(&self) -> bool {
        let seen = self.begun.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) >= seen {
            return true;
        }
        if self.ended.load(Ordering::Acquire) < seen {
            // One is between the log and its end.
            drop(self.pen());
        }
        self.sync(seen)
    }

    /// Waits until so many commits are durable; `false`: that will never be known.
    fn sync(&self, commits: u64) -> bool {
        let wal = self.wal.lock();
        if self.synced.load(Ordering::Acquire) >= commits {
            return true;
        }
        if self.is_broken() {
            return false;
        }
        // What has been written while others were at the disk comes along.
        let ended = self.ended.load(Ordering::Acquire);
        if let Err(error) = wal.sync_data() {
            self.broken.store(true, Ordering::Release);
            tracing::error!(%error, "the store's write-ahead log could not be synced: nothing is stored until a restart");
            return false;
        }
        self.synced.store(ended, Ordering::Release);
        true
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// One transaction for all; where one job fails, nothing of it stays and each has a transaction of its own. So no job
    /// needs a savepoint, whose copies of pages would cost every batch something for a case that hardly occurs.
    fn commit_together(&self, connection: &Connection, group: &mut [Box<dyn Job>]) {
        match self.transaction(connection, group) {
            Ok(()) => group.iter_mut().for_each(|job| job.note(Ok(()))),
            Err(Failure::Transaction(error)) => group.iter_mut().for_each(|job| job.note(Err(error.again()))),
            Err(Failure::Job(error)) if group.len() == 1 => group[0].note(Err(error)),
            Err(Failure::Job(_)) => group.chunks_mut(1).for_each(|alone| self.commit_together(connection, alone)),
        }
    }

    fn transaction(&self, connection: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), Failure> {
        let execute = |sql| connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        execute("BEGIN IMMEDIATE").map_err(|error| Failure::Transaction(WriteError::NotCommitted(error)))?;
        let ran = jobs.iter_mut().try_for_each(|job| run(&mut **job, connection)).map_err(Failure::Job);
        let result = ran.and_then(|()| {
            self.begun.fetch_add(1, Ordering::AcqRel);
            let committed = execute("COMMIT");
            self.ended.fetch_add(1, Ordering::AcqRel);
            committed.map(drop).map_err(|error| Failure::Transaction(commit_error(error)))
        });
        if result.is_err() && !connection.is_autocommit() {
            // Where even that fails, the next BEGIN says so.
            if let Err(error) = execute("ROLLBACK") {
                tracing::error!(%error, "a transaction of the store could not be rolled back");
            }
        }
        result
    }
}

/// Whose failure it is.
enum Failure {
    /// One job's: the others may do better without it.
    Job(WriteError),
    /// That of BEGIN or COMMIT: everybody's.
    Transaction(WriteError),
}

/// A job that panics must not take the writer, and so everybody's Store, with it.
fn run(job: &mut dyn Job, connection: &Connection) -> Result<(), WriteError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.run(connection))) {
        Ok(result) => result.map_err(WriteError::NotCommitted),
        Err(_) => Err(WriteError::Stopped),
    }
}

fn commit_error(error: rusqlite::Error) -> WriteError {
    match error.sqlite_error_code() {
        // SQLite gave up before the commit's last page was in the write-ahead log.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull) => WriteError::NotCommitted(error),
        _ => WriteError::Uncertain(error),
    }
}

#[cfg(test)]
impl Desk {
    /// Whoever has this has the disk: nothing becomes durable.
    pub(super) fn disk(&self) -> MutexGuard<'_, File> {
        self.wal.lock()
    }
}
