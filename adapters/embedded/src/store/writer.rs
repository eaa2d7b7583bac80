//! The threads that write: what has arrived by the time one looks shares one transaction, and so one sync. While one
//! waits for the disk the other writes the next transaction. Whoever may block can do the same on its own thread.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use roost_ports::store::{ApplyError, StoreError};
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{mpsc, oneshot};

use super::connection::store_error;
use super::desk::{Desk, Job};

/// Jobs that wait for the writer; beyond, callers wait for room.
const QUEUE_MAX: usize = 256;
/// Jobs that share a transaction: bounded, so that the first of them does not wait for ever.
const GROUP_MAX: usize = 64;
/// One writes, one waits for the disk.
const THREADS: usize = 2;

/// Why a job is not known to be committed.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Nothing of it is.
    NotCommitted(rusqlite::Error),
    /// COMMIT failed on the way to the disk.
    Uncertain(rusqlite::Error),
    /// The writer has ended, or the job panicked; nothing of it is committed unless the answer alone was lost.
    Stopped,
    /// A sync has failed. It may be committed, and may be lost again with the machine's power.
    Broken,
}

const BROKEN: &str = "the disk does not keep what the store writes: see the log, and restart once it does";

impl WriteError {
    /// The same error for another job of the transaction.
    pub(super) fn again(&self) -> Self {
        let again = |error: &rusqlite::Error| {
            let code = error.sqlite_error().copied().unwrap_or(ffi::Error::new(ffi::SQLITE_ERROR));
            rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
        };
        match self {
            WriteError::NotCommitted(error) => WriteError::NotCommitted(again(error)),
            WriteError::Uncertain(error) => WriteError::Uncertain(again(error)),
            WriteError::Stopped => WriteError::Stopped,
            WriteError::Broken => WriteError::Broken,
        }
    }

    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            WriteError::NotCommitted(error) | WriteError::Uncertain(error) => store_error(error),
            WriteError::Stopped => StoreError::Unavailable("the writer has stopped".to_owned()),
            WriteError::Broken => StoreError::Unavailable(BROKEN.to_owned()),
        }
    }

    pub(super) fn into_apply_error(self) -> ApplyError {
        match self {
            WriteError::NotCommitted(error) => apply_error(&error),
            WriteError::Uncertain(error) => ApplyError::Uncertain(error.to_string()),
            WriteError::Stopped => ApplyError::Uncertain("the writer has stopped".to_owned()),
            WriteError::Broken => ApplyError::Uncertain(BROKEN.to_owned()),
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

/// A handle to the threads; dropping it lets them finish what is in line, and waits for them.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    threads: Vec<JoinHandle<()>>,
    /// Jobs that are to be done on the thread of the first that comes to it.
    here: Mutex<Vec<Box<dyn Job>>>,
    desk: Arc<Desk>,
}

impl Writer {
    /// Opens the file and starts the threads.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let desk = Arc::new(Desk::open(path)?);
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::with_capacity(THREADS);
        for number in 0..THREADS {
            let (desk, queue) = (Arc::clone(&desk), Arc::clone(&queue));
            let thread = std::thread::Builder::new().name(format!("store-writer-{number}"));
            let thread = thread.spawn(move || write(&desk, &queue));
            threads.push(thread.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?);
        }
        Ok(Self { jobs: Some(jobs), threads, here: Mutex::default(), desk })
    }

    /// Where it writes.
    pub(super) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Runs the work in a transaction and returns once it is durable. It runs again, from the state before, where
    /// another job of the same transaction fails.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        self.run_then(work, || {}).await
    }

    /// The same, with something to do once it is durable, before anybody hears of it.
    pub(super) async fn run_then<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: fn(),
    ) -> Result<T, WriteError> {
        let (job, answer) = Task::new(work, then);
        let jobs = self.jobs.as_ref().expect("the sender is there until the drop");
        jobs.send(job).await.map_err(|_| WriteError::Stopped)?;
        answer.await.map_err(|_| WriteError::Stopped)?
    }

    /// The same on the caller's own thread, which stands still for a transaction; together with those that come this way
    /// in the same turn of its runtime, and after everything else that is ready in it.
    pub(super) async fn run_here_then<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: fn(),
    ) -> Result<T, WriteError> {
        let (job, answer) = Task::new(work, then);
        self.here.lock().push(job);
        tokio::task::yield_now().await;
        // None where another has taken them all.
        let mut group = std::mem::take(&mut *self.here.lock());
        if !group.is_empty() {
            self.desk.commit(self.desk.pen(), &mut group);
        }
        answer.await.map_err(|_| WriteError::Stopped)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the store's writer panicked");
            }
        }
    }
}

/// Work of one caller.
struct Task<F, T> {
    work: F,
    value: Option<T>,
    result: Result<(), WriteError>,
    then: fn(),
    reply: Option<oneshot::Sender<Result<T, WriteError>>>,
}

impl<F, T> Task<F, T>
where
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn new(work: F, then: fn()) -> (Box<Self>, oneshot::Receiver<Result<T, WriteError>>) {
        let (reply, answer) = oneshot::channel();
        let task = Self { work, value: None, result: Err(WriteError::Stopped), then, reply: Some(reply) };
        (Box::new(task), answer)
    }
}

impl<F, T> Job for Task<F, T>
where
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.value = Some((self.work)(connection)?);
        Ok(())
    }

    fn note(&mut self, result: Result<(), WriteError>) {
        self.result = result;
    }

    fn answer(&mut self, durable: bool) {
        let result = std::mem::replace(&mut self.result, Err(WriteError::Stopped));
        let result = result.and(if durable { Ok(()) } else { Err(WriteError::Broken) }).map(|()| {
            (self.then)();
            self.value.take().expect("a committed job has run")
        });
        if let Some(reply) = self.reply.take() {
            // Nobody waits any more: what is committed stays so.
            let _ = reply.send(result);
        }
    }
}

fn write(desk: &Desk, queue: &Mutex<mpsc::Receiver<Box<dyn Job>>>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        let mut line = queue.lock();
        if line.blocking_recv_many(&mut group, GROUP_MAX) == 0 {
            return;
        }
        // Before the other thread is let to the line, so that groups keep its order; what arrives meanwhile comes along.
        let pen = desk.pen();
        while group.len() < GROUP_MAX
            && let Ok(job) = line.try_recv()
        {
            group.push(job);
        }
        drop(line);
        desk.commit(pen, &mut group);
        group.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::Readers;
    use super::*;

    fn writer() -> (tempfile::TempDir, Writer) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let writer = Writer::open(&folder.path().join("store.db")).expect("a writer");
        (folder, writer)
    }

    async fn values(writer: &Writer) -> Vec<i64> {
        let select = |connection: &Connection| {
            let mut select = connection.prepare("SELECT value FROM numbers ORDER BY value")?;
            select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()
        };
        writer.run(select).await.expect("the table is there")
    }

    fn insert(value: i64) -> impl FnMut(&Connection) -> rusqlite::Result<usize> + Send + 'static {
        move |connection| connection.execute("INSERT INTO numbers VALUES (?1)", [value])
    }

    async fn with_table() -> (tempfile::TempDir, Writer) {
        let (folder, writer) = writer();
        let create = |connection: &Connection| connection.execute("CREATE TABLE numbers (value INTEGER UNIQUE)", []);
        writer.run(create).await.expect("a table");
        (folder, writer)
    }

    /// Keeps the writer busy until all the others stand in line, so that they share a transaction.
    async fn together<T: Send + 'static>(writer: &Writer, jobs: Vec<impl Future<Output = T>>) -> Vec<T> {
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let mut wait = Some(wait);
        let busy = writer.run(move |_| {
            if let Some(wait) = wait.take() {
                let _ = wait.recv();
            }
            Ok(())
        });
        let queued = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(go);
        };
        let (busy, done, ()) = tokio::join!(busy, futures::future::join_all(jobs), queued);
        busy.expect("it only waits");
        done
    }

    #[tokio::test]
    async fn a_job_that_fails_does_not_fail_its_neighbours() {
        let (_folder, writer) = with_table().await;
        let jobs = [1, 2, 2, 3].map(|value| writer.run(insert(value))).into_iter().collect();
        let results = together(&writer, jobs).await;
        let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, false, true, false], "{results:?}");
        let Err(error) = results.into_iter().nth(2).expect("four") else { unreachable!("seen above") };
        assert!(matches!(error.into_apply_error(), ApplyError::Conflict(_)));
        assert_eq!(values(&writer).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_job_that_panics_does_not_take_the_writer_with_it() {
        let (_folder, writer) = with_table().await;
        let panicking = |connection: &Connection| {
            connection.execute("INSERT INTO numbers VALUES (9)", [])?;
            assert!(connection.is_autocommit(), "injected");
            Ok(1)
        };
        assert!(matches!(writer.run(panicking).await, Err(WriteError::Stopped)));
        writer.run(insert(1)).await.expect("the writer goes on");
        assert_eq!(values(&writer).await, [1], "nothing of the panicked job stays");
    }

    #[tokio::test]
    async fn what_is_written_on_one_thread_in_one_turn_shares_a_transaction() {
        let (_folder, writer) = with_table().await;
        let here = |value| {
            let insert = move |connection: &Connection| {
                connection.execute("INSERT INTO numbers VALUES (?1)", [value])?;
                connection.query_row("SELECT COUNT(*) FROM numbers", [], |row| row.get::<_, i64>(0))
            };
            writer.run_here_then(insert, || {})
        };
        let (one, two, again) = tokio::join!(here(1), here(2), here(2));
        assert_eq!((one.expect("written"), two.expect("written")), (1, 2));
        assert!(matches!(again.expect_err("it is there").into_apply_error(), ApplyError::Conflict(_)));
        assert_eq!(values(&writer).await, [1, 2]);
    }

    #[tokio::test]
    async fn a_job_that_is_given_up_on_the_way_does_not_lose_the_others() {
        let (_folder, writer) = with_table().await;
        let mut given_up = Box::pin(writer.run_here_then(insert(1), || {}));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        writer.run_here_then(insert(2), || {}).await.expect("written");
        assert_eq!(values(&writer).await, [1, 2], "a job in line is done, as on the thread");
    }

    #[tokio::test]
    async fn a_full_disk_is_an_outage_and_passes() {
        let (_folder, writer) = with_table().await;
        let limit = |pages: &'static str| {
            writer.run(move |connection: &Connection| connection.pragma_update(None, "max_page_count", pages))
        };
        limit("1").await.expect("a limit");
        let grow = || {
            writer.run(|connection: &Connection| connection.execute("CREATE TABLE more AS SELECT zeroblob(100000)", []))
        };
        let error = grow().await.expect_err("there is no room");
        assert!(matches!(error.into_apply_error(), ApplyError::Unavailable(_)));
        writer.run(insert(1)).await.expect("what fits is written");
        limit("1000000").await.expect("a limit");
        grow().await.expect("there is room again");
        assert_eq!(values(&writer).await, [1]);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn after_a_sync_has_failed_nothing_is_called_durable() {
        let (_folder, writer) = with_table().await;
        // What cannot be synced, whatever is written.
        let null = std::fs::File::open("/dev/null").expect("it is there");
        let wal = std::mem::replace(&mut *writer.desk.disk(), null);
        let error = writer.run(insert(1)).await.expect_err("it is not on the disk");
        assert!(matches!(error, WriteError::Broken), "{error:?}");
        *writer.desk.disk() = wal;
        let error = writer.run(insert(2)).await.expect_err("nobody knows what lies below it");
        assert!(matches!(error.into_apply_error(), ApplyError::Uncertain(_)));
        writer.run_here_then(insert(3), || {}).await.expect_err("nor here");
        assert!(!writer.desk.settle(), "what is read now may be gone tomorrow");
    }

    #[tokio::test]
    async fn what_is_read_is_durable() {
        let (folder, writer) = with_table().await;
        let readers = Readers::new(&folder.path().join("store.db"), writer.desk());
        let disk = writer.desk.disk();
        let writing = writer.run(insert(1));
        let count = |connection: &Connection| {
            connection.query_row("SELECT COUNT(*) FROM numbers", [], |row| row.get::<_, i64>(0))
        };
        let outside = Connection::open(folder.path().join("store.db")).expect("it is there");
        let reading = async {
            // By then it is committed, and the disk is waited for.
            while count(&outside).expect("the table is there") != 1 {
                tokio::task::yield_now().await;
            }
            let mut read = Box::pin(readers.run(count));
            let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut read).await;
            assert!(early.is_err(), "it was read before it was durable");
            drop(disk);
            assert_eq!(read.await.expect("it is durable"), 1);
        };
        let (written, ()) = tokio::join!(writing, reading);
        written.expect("it is durable");
    }

    #[tokio::test]
    async fn the_write_ahead_log_is_begun_anew_while_commits_go_on() {
        let (folder, writer) = with_table().await;
        writer
            .run(|connection: &Connection| connection.execute("CREATE TABLE blobs (value BLOB)", []))
            .await
            .expect("a table");
        let mut written = 0;
        while written < 240 << 20 {
            let big = |connection: &Connection| connection.execute("INSERT INTO blobs VALUES (zeroblob(4000000))", []);
            writer.run(big).await.expect("room");
            // The same room again: the file stays small.
            writer.run(|connection: &Connection| connection.execute("DELETE FROM blobs", [])).await.expect("room");
            written += 4_000_000;
        }
        let log = std::fs::metadata(folder.path().join("store.db-wal")).expect("the log is there").len();
        assert!(log < 160 << 20, "{log} bytes");
    }
}
