//! Connections to the file: their settings, the pool of those that read, and what SQLite's errors mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_ports::store::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::Semaphore;

use super::desk::Desk;
use super::writer::WriteError;

/// Readers at one time. Each is a thread of the blocking pool while it reads.
const READERS_MAX: usize = 4;
/// Pages kept by the writer, and by each reader, in KiB: the file system keeps the rest.
const WRITER_CACHE_KIB: u32 = 8 * 1024;
const READER_CACHE_KIB: u32 = 1024;
/// Another process that holds the file is waited for this long.
const BUSY_MS_MAX: u64 = 2_000;
/// Prepared statements kept by each connection: more than this crate has.
const STATEMENTS_MAX: usize = 80;

/// Opens the connection that writes.
pub(super) fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // The write-ahead log is synced by the desk, with its connection free for the next transaction.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "cache_size", -i64::from(WRITER_CACHE_KIB))?;
    connection.pragma_update(None, "temp_store", "memory")?;
    // Checkpoints have a thread of their own.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // The first look at the tables makes the write-ahead log's file.
    connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Opens a connection for checkpoints: it writes to the file, never to the write-ahead log.
pub(super) fn open_checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -i64::from(READER_CACHE_KIB))?;
    Ok(connection)
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_millis(BUSY_MS_MAX))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Connections that read, opened when they are needed and kept.
pub(super) struct Readers(Arc<Pool>);

struct Pool {
    path: PathBuf,
    desk: Arc<Desk>,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: &Path, desk: &Arc<Desk>) -> Self {
        let (path, desk) = (path.to_owned(), Arc::clone(desk));
        Self(Arc::new(Pool { path, desk, permits: Semaphore::new(READERS_MAX), idle: Mutex::new(Vec::new()) }))
    }

    /// Runs the work in one read transaction: all its statements see one state. That may be of a moment ago; it is
    /// durable once this returns.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let pool = self.0.clone();
        let reading = async move {
            let _permit = pool.permits.acquire().await.expect("the semaphore is never closed");
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || pool.read_settled(work)).await
        };
        // A panic in the work is a mistake of ours; the caller gets an error, and its connection is not used again.
        reading.await.map_err(|error| StoreError::Unavailable(error.to_string()))?
    }
}

impl Pool {
    fn read_settled<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let value = self.read(work).map_err(store_error)?;
        self.desk.settle().then_some(value).ok_or_else(|| WriteError::Broken.into_store_error())
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.idle.lock().pop();
        let connection = idle.map_or_else(|| open_reader(&self.path), Ok)?;
        let transaction = connection.unchecked_transaction()?;
        let result = work(&connection);
        transaction.finish()?;
        self.idle.lock().push(connection);
        result
    }
}

/// What an error means for the caller of an ordinary call.
pub(super) fn store_error(error: rusqlite::Error) -> StoreError {
    let person = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => matches!(
            failure.code,
            // Unknown is what SQLite says for a table that is not there: it was not migrated.
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown | ErrorCode::ReadOnly
        ),
        // A row that does not hold what we write.
        _ => true,
    };
    match person {
        true => StoreError::Refused(error.to_string()),
        false => StoreError::Unavailable(error.to_string()),
    }
}
