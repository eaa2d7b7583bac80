//! The threads that write: what has arrived by the time one looks shares one transaction, and so one sync. While one waits
//! for the disk the other writes the next transaction. Whoever may block can do the same on its own thread.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use roost_ports::store::{ApplyError, StoreError};
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::Checkpointer;
use super::connection::{self, store_error};

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
}

impl WriteError {
    /// The same error for another job of the transaction.
    fn again(&self) -> Self {
        let again = |error: &rusqlite::Error| {
            let code = error.sqlite_error().copied().unwrap_or(ffi::Error::new(ffi::SQLITE_ERROR));
            rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
        };
        match self {
            WriteError::NotCommitted(error) => WriteError::NotCommitted(again(error)),
            WriteError::Uncertain(error) => WriteError::Uncertain(again(error)),
            WriteError::Stopped => WriteError::Stopped,
        }
    }

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

/// A handle to the threads; dropping it lets them finish what is in line, and waits for them.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    threads: Vec<JoinHandle<()>>,
    /// Jobs that are to be done on the thread of the first that comes to it.
    here: Mutex<Vec<Box<dyn Job>>>,
    desk: Arc<Desk>,
}

/// Where transactions are written and made durable, by whoever comes to it.
struct Desk {
    pen: Mutex<Pen>,
    /// Transactions so far.
    written: AtomicU64,
    disk: Mutex<Disk>,
}

/// What a transaction is written with; one at a time.
struct Pen {
    connection: Connection,
    checkpointer: Checkpointer,
}

/// What a transaction is made durable with; one at a time, and others may be written meanwhile.
struct Disk {
    wal: File,
    /// Transactions that are durable.
    synced: u64,
    /// A sync has failed: nobody knows what is on the disk, and a later one that succeeds would say nothing about it.
    broken: bool,
}

impl Desk {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = connection::open_writer(path)?;
        let checkpointer = Checkpointer::start(path, &connection)?;
        let wal = crate::wal::open(path).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        let pen = Mutex::new(Pen { connection, checkpointer });
        let disk = Mutex::new(Disk { wal, synced: 0, broken: false });
        Ok(Self { pen, written: AtomicU64::new(0), disk })
    }

    /// One transaction for the jobs, and their answers once it is durable.
    fn commit(&self, group: &mut [Box<dyn Job>]) {
        let number = {
            let pen = self.pen.lock();
            commit_together(&pen.connection, group);
            pen.checkpointer.after_commit(&pen.connection);
            // With the pen in hand, so that the numbers are in the order of the log.
            self.written.fetch_add(1, Ordering::Release) + 1
        };
        let durable = self.sync(number);
        group.iter_mut().for_each(|job| job.answer(durable));
    }

    /// Waits until a transaction is durable; `false`: that will never be known.
    fn sync(&self, number: u64) -> bool {
        let mut disk = self.disk.lock();
        if disk.synced >= number || disk.broken {
            return disk.synced >= number;
        }
        // What was written while we waited for our turn comes to the disk too.
        let written = self.written.load(Ordering::Acquire);
        match disk.wal.sync_data() {
            Ok(()) => disk.synced = written,
            Err(error) => {
                disk.broken = true;
                tracing::error!(%error, "the store's write-ahead log could not be synced: nothing more is stored until a restart");
            }
        }
        !disk.broken
    }
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
        let job = Box::new(Work { work, value: None, result: Err(WriteError::Stopped), committed, reply: Some(reply) });
        let jobs = self.jobs.as_ref().expect("the sender is there until the drop");
        jobs.send(job).await.map_err(|_| WriteError::Stopped)?;
        answer.await.map_err(|_| WriteError::Stopped)?
    }

    /// The same on the caller's own thread, which stands still for a transaction; together with those that come this way
    /// in the same turn of its runtime, and after everything else that is ready in it.
    pub(super) async fn run_here_then<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        committed: fn(),
    ) -> Result<T, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.here.lock().push(Box::new(Work {
            work,
            value: None,
            result: Err(WriteError::Stopped),
            committed,
            reply: Some(reply),
        }));
        tokio::task::yield_now().await;
        // None where another has taken them all.
        let mut group = std::mem::take(&mut *self.here.lock());
        if !group.is_empty() {
            self.desk.commit(&mut group);
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

trait Job: Send {
    /// Does the work; may be called again after a rollback.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Takes down what its transaction came to.
    fn committed(&mut self, result: Result<(), WriteError>);
    /// Answers. What is committed and not known to be durable is uncertain.
    fn answer(&mut self, durable: bool);
}

struct Work<F, T> {
    work: F,
    value: Option<T>,
    result: Result<(), WriteError>,
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

    fn committed(&mut self, result: Result<(), WriteError>) {
        self.result = result;
    }

    fn answer(&mut self, durable: bool) {
        let result = match std::mem::replace(&mut self.result, Err(WriteError::Stopped)) {
            Ok(()) if durable => {
                (self.committed)();
                Ok(self.value.take().expect("a committed job has run"))
            }
            Ok(()) => Err(WriteError::Stopped),
            Err(error) => Err(error),
        };
        if let Some(reply) = self.reply.take() {
            // Nobody waits any more: what is committed stays so.
            let _ = reply.send(result);
        }
    }
}

fn write(desk: &Desk, queue: &Mutex<mpsc::Receiver<Box<dyn Job>>>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        let taken = queue.lock().blocking_recv_many(&mut group, GROUP_MAX);
        if taken == 0 {
            return;
        }
        desk.commit(&mut group);
        group.clear();
    }
}

/// One transaction for all; where one job fails, nothing of it stays and each has a transaction of its own. So no job
/// needs a savepoint, whose copies of pages would cost every batch something for a case that hardly occurs.
fn commit_together(connection: &Connection, group: &mut [Box<dyn Job>]) {
    match transaction(connection, group) {
        Ok(()) => group.iter_mut().for_each(|job| job.committed(Ok(()))),
        Err(Failure::Transaction(error)) => group.iter_mut().for_each(|job| job.committed(Err(error.again()))),
        Err(Failure::Job(error)) if group.len() == 1 => group[0].committed(Err(error)),
        Err(Failure::Job(_)) => group.chunks_mut(1).for_each(|alone| commit_together(connection, alone)),
    }
}

/// Whose failure it is.
enum Failure {
    /// One job's: the others may do better without it.
    Job(WriteError),
    /// That of BEGIN or COMMIT: everybody's.
    Transaction(WriteError),
}

fn transaction(connection: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), Failure> {
    let execute = |sql| connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
    execute("BEGIN IMMEDIATE").map_err(|error| Failure::Transaction(WriteError::NotCommitted(error)))?;
    let ran = jobs.iter_mut().try_for_each(|job| run(&mut **job, connection)).map_err(Failure::Job);
    let result =
        ran.and_then(|()| execute("COMMIT").map(drop).map_err(|error| Failure::Transaction(commit_error(error))));
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

#[cfg(test)]
mod tests {
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
        let null = File::open("/dev/null").expect("it is there");
        let wal = std::mem::replace(&mut writer.desk.disk.lock().wal, null);
        let error = writer.run(insert(1)).await.expect_err("it is not on the disk");
        assert!(matches!(error.into_apply_error(), ApplyError::Uncertain(_)));
        writer.desk.disk.lock().wal = wal;
        writer.run(insert(2)).await.expect_err("nobody knows what lies below it");
        writer.run_here_then(insert(3), || {}).await.expect_err("nor here");
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
