//! The thread that writes: what has arrived by the time it looks shares one transaction, and so one fsync.

use std::path::Path;
use std::thread::JoinHandle;

use roost_ports::store::{ApplyError, StoreError};
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::Checkpointer;
use super::connection::{self, store_error};

/// Jobs that wait for the writer; beyond, callers wait for room.
const QUEUE_MAX: usize = 256;
/// Jobs that share a transaction: bounded, so that the first of them does not wait for ever.
const GROUP_MAX: usize = 64;

/// Why a job is not known to be committed.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Nothing of it is.
    NotCommitted(rusqlite::Error),
    /// COMMIT failed on the way to the disk.
    Uncertain(rusqlite::Error),
    /// The writer has ended, or the job panicked; nothing of it is committed unless the answer alone was lost.
    Stopped,
}

impl WriteError {
    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            WriteError::NotCommitted(error) | WriteError::Uncertain(error) => store_error(error),
            WriteError::Stopped => StoreError::Unavailable("the writer has stopped".to_owned()),
        }
    }

    pub(super) fn into_apply_error(self) -> ApplyError {
        match self {
            WriteError::NotCommitted(error) => apply_error(&error),
            WriteError::Uncertain(error) => ApplyError::Uncertain(error.to_string()),
            WriteError::Stopped => ApplyError::Uncertain("the writer has stopped".to_owned()),
        }
    }
}

/// What an error before COMMIT means for a batch.
fn apply_error(error: &rusqlite::Error) -> ApplyError {
    let text = error.to_string();
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::ConstraintViolation => match failure.extended_code {
                ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_ROWID => {
                    ApplyError::Conflict(text)
                }
                _ => ApplyError::Data(text),
            },
            ErrorCode::TooBig | ErrorCode::TypeMismatch => ApplyError::Data(text),
            _ => ApplyError::Unavailable(text),
        },
        rusqlite::Error::ToSqlConversionFailure(_) => ApplyError::Data(text),
        _ => ApplyError::Unavailable(text),
    }
}

/// A handle to the thread; dropping it lets the thread finish what is in line, and waits for it.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Opens the file and starts the thread.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = connection::open_writer(path)?;
        let checkpointer = Checkpointer::start(path, &connection)?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let write = move || write(&connection, queue, &checkpointer);
        let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(write);
        let thread = thread.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs the work in a transaction and returns once it is durable. It runs again, from the state before, where
    /// another job of the same transaction fails.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        self.run_then(work, || {}).await
    }

    /// The same, with something to do right after the commit, before anybody hears of it.
    pub(super) async fn run_then<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        committed: fn(),
    ) -> Result<T, WriteError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Work { work, value: None, committed, reply: Some(reply) });
        let jobs = self.jobs.as_ref().expect("the sender is there until the drop");
        jobs.send(job).await.map_err(|_| WriteError::Stopped)?;
        answer.await.map_err(|_| WriteError::Stopped)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

trait Job: Send {
    /// Does the work; may be called again after a rollback.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Answers.
    fn finish(&mut self, committed: Result<(), WriteError>);
}

struct Work<F, T> {
    work: F,
    value: Option<T>,
    committed: fn(),
    reply: Option<oneshot::Sender<Result<T, WriteError>>>,
}

impl<F, T> Job for Work<F, T>
where
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.value = Some((self.work)(connection)?);
        Ok(())
    }

    fn finish(&mut self, committed: Result<(), WriteError>) {
        let result = committed.map(|()| {
            (self.committed)();
            self.value.take().expect("a committed job has run")
        });
        if let Some(reply) = self.reply.take() {
            // Nobody waits any more: what is committed stays so.
            let _ = reply.send(result);
        }
    }
}

fn write(connection: &Connection, mut queue: mpsc::Receiver<Box<dyn Job>>, checkpointer: &Checkpointer) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        commit_together(connection, &mut group);
        group.clear();
        checkpointer.after_commit(connection);
    }
}

/// One transaction for all; where one job fails, nothing of it stays and each has a transaction of its own. So no job
/// needs a savepoint, whose copies of pages would cost every batch something for a case that hardly occurs.
fn commit_together(connection: &Connection, group: &mut [Box<dyn Job>]) {
    match transaction(connection, group) {
        Ok(()) => group.iter_mut().for_each(|job| job.finish(Ok(()))),
        Err(error) if group.len() == 1 => group[0].finish(Err(error)),
        // The same error for all: there is one commit.
        Err(WriteError::Uncertain(error)) => {
            let text = error.to_string();
            let failure = ffi::Error::new(ffi::SQLITE_IOERR);
            for job in group {
                job.finish(Err(WriteError::Uncertain(rusqlite::Error::SqliteFailure(failure, Some(text.clone())))));
            }
        }
        Err(_) => {
            for job in group {
                let alone = std::slice::from_mut(job);
                let result = transaction(connection, alone);
                job.finish(result);
            }
        }
    }
}

fn transaction(connection: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), WriteError> {
    let execute = |sql| connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
    execute("BEGIN IMMEDIATE").map_err(WriteError::NotCommitted)?;
    let ran = jobs.iter_mut().try_for_each(|job| run(&mut **job, connection));
    let result = match ran {
        Ok(()) => execute("COMMIT").map(drop).map_err(commit_error),
        Err(error) => Err(error),
    };
    if result.is_err() && !connection.is_autocommit() {
        // Where even that fails, the next BEGIN says so.
        if let Err(error) = execute("ROLLBACK") {
            tracing::error!(%error, "a transaction of the store could not be rolled back");
        }
    }
    result
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
