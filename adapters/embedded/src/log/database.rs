//! The file: its settings, its schema, and what it holds.

use std::path::Path;

use roost_ports::log::{LogError, Topic};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::chunk;

/// The format of the file. Another one is refused.
const FORMAT: u32 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS chunk (id INTEGER PRIMARY KEY, records INTEGER NOT NULL, payload BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS group_offset (
        consumer_group TEXT NOT NULL, topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, topic, partition)
    ) WITHOUT ROWID;
";

/// What the file holds of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The first position.
    pub begin: u64,
    /// The position after the last. It never falls: the last row of a partition is never removed.
    pub end: u64,
}

/// A group's committed position.
pub struct GroupOffset {
    /// Its name.
    pub group: String,
    /// Of which topic.
    pub topic: Topic,
    /// Of which partition.
    pub partition: u32,
    /// Everything before is dealt with.
    pub next: u64,
}

/// Any failure of SQLite that may pass.
pub fn unavailable(error: rusqlite::Error) -> LogError {
    LogError::Unavailable(error.to_string())
}

/// The connection that writes. The file is made if it is not there.
pub fn open_writer(path: &Path) -> Result<Connection, LogError> {
    let connection = Connection::open(path)
        .map_err(|error| LogError::Unavailable(format!("{} cannot be opened: {error}", path.display())))?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(|error| refused_or_unavailable(path, error))?;
    if mode != "wal" {
        return Err(LogError::Refused(format!("{} has no write-ahead log but {mode}", path.display())));
    }
    // NORMAL: the writer syncs the write-ahead log by itself (see [`crate::wal`]), once for several commits where it may.
    configure(&connection, "NORMAL", 2048)?;
    Ok(connection)
}

/// A connection that reads, or checkpoints.
pub fn open_other(path: &Path) -> Result<Connection, LogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(unavailable)?;
    configure(&connection, "FULL", 256)?;
    Ok(connection)
}

fn configure(connection: &Connection, synchronous: &str, cache_kib: i64) -> Result<(), LogError> {
    let set = || {
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        // Checkpoints are the checkpointer's: a commit must not wait for one.
        connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
        connection.query_row("PRAGMA journal_size_limit = 67108864", [], |_| Ok(()))?;
        connection.busy_timeout(std::time::Duration::from_secs(5))
    };
    set().map_err(unavailable)
}

/// Makes the schema, and refuses a file that was made for something else.
pub fn prepare(connection: &Connection, log_id: &str, partitions: u32) -> Result<(), LogError> {
    let path = connection.path().unwrap_or_default().to_owned();
    let refused = |error| refused_or_unavailable(Path::new(&path), error);
    connection.execute_batch("BEGIN IMMEDIATE").map_err(refused)?;
    connection.execute_batch(SCHEMA).map_err(refused)?;
    let wanted =
        [("format", FORMAT.to_string()), ("log_id", log_id.to_owned()), ("partitions", partitions.to_string())];
    for (name, value) in wanted {
        let found: Option<String> = connection
            .query_row("SELECT value FROM setting WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(unavailable)?;
        match found {
            Some(found) if found == value => {}
            Some(found) => {
                return Err(LogError::Refused(format!("{path} was made with {name} {found}, not {value}")));
            }
            None => {
                let insert = "INSERT INTO setting (name, value) VALUES (?1, ?2)";
                connection.execute(insert, params![name, value]).map_err(unavailable)?;
            }
        }
    }
    connection.execute_batch("COMMIT").map_err(unavailable)
}

/// What the file holds of a partition.
pub fn held(connection: &Connection, topic: Topic, partition: u32) -> rusqlite::Result<Held> {
    let range = params![chunk::key(topic, partition, 0), chunk::last_key(topic, partition)];
    let mut first = connection.prepare_cached("SELECT MIN(id) FROM chunk WHERE id BETWEEN ?1 AND ?2")?;
    let Some(first) = first.query_row(range, |row| row.get::<_, Option<i64>>(0))? else {
        return Ok(Held { begin: 0, end: 0 });
    };
    let mut last = connection
        .prepare_cached("SELECT id, records FROM chunk WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")?;
    let end = last.query_row(range, |row| Ok(chunk::position(row.get(0)?) + row.get::<_, u32>(1)? as u64))?;
    Ok(Held { begin: chunk::position(first), end })
}

/// All committed positions.
pub fn group_offsets(connection: &Connection) -> rusqlite::Result<Vec<GroupOffset>> {
    let mut select = connection.prepare("SELECT consumer_group, topic, partition, next FROM group_offset")?;
    let rows = select.query_map([], |row| {
        let topic = Topic::ALL.into_iter().find(|topic| Ok(chunk::topic_number(*topic)) == row.get(1));
        Ok(topic.map(|topic| (row.get(0), topic, row.get(2), row.get::<_, i64>(3))))
    })?;
    let mut offsets = Vec::new();
    for row in rows {
        if let Some((group, topic, partition, next)) = row? {
            offsets.push(GroupOffset { group: group?, topic, partition: partition?, next: next?.max(0) as u64 });
        }
    }
    Ok(offsets)
}

fn refused_or_unavailable(path: &Path, error: rusqlite::Error) -> LogError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            LogError::Refused(format!("{} is not a log: {error}", path.display()))
        }
        _ => unavailable(error),
    }
}
