//! Reading the file, for consumers that are behind the tail in memory.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use roost_ports::log::{LogError, LogRecord};
use rusqlite::{Connection, params};

use super::partition::log_record;
use super::{Shared, chunk, database};

/// The connection that reads.
pub struct Reader {
    connection: Mutex<Option<Connection>>,
}

/// What the file says about a position.
pub enum Read {
    /// The records from there on, at least one.
    Records(Vec<LogRecord>),
    /// It is not there: the partition begins here.
    Begins(u64),
}

impl Reader {
    /// Opens the file, which is there by now.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self { connection: Mutex::new(Some(database::open_other(path)?)) })
    }

    /// Waits for a read that is under way, and reads no more.
    pub fn close(&self) {
        drop(self.connection.lock().take());
    }
}

/// Reads from a position on, off the async threads. Only committed records before the partition's end are asked for.
pub async fn read(
    shared: &Arc<Shared>,
    slot: usize,
    position: u64,
    records_max: usize,
    bytes_max: usize,
) -> Result<Read, LogError> {
    let shared = Arc::clone(shared);
    let read = move || {
        let connection = shared.reader.connection.lock();
        let connection = connection.as_ref().ok_or_else(|| LogError::Unavailable("the log is closed".into()))?;
        read_chunks(connection, &shared, slot, position, records_max, bytes_max)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(error) => Err(LogError::Unavailable(format!("reading the log: {error}"))),
    }
}

fn read_chunks(
    connection: &Connection,
    shared: &Shared,
    slot: usize,
    position: u64,
    records_max: usize,
    bytes_max: usize,
) -> Result<Read, LogError> {
    let (topic, partition) = shared.slot_place(slot);
    // The file may be ahead: what is committed but not made known yet is not there for consumers.
    let end = shared.partitions[slot].end();
    let (first_key, last_key) = (chunk::key(topic, partition, 0), chunk::last_key(topic, partition));
    let select = "SELECT id, records, payload FROM chunk WHERE id BETWEEN
        (SELECT MAX(id) FROM chunk WHERE id BETWEEN ?1 AND ?2) AND ?3 ORDER BY id";
    let mut select = connection.prepare_cached(select).map_err(database::unavailable)?;
    let range = params![first_key, chunk::key(topic, partition, position), last_key];
    let mut rows = select.query(range).map_err(database::unavailable)?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(database::unavailable)? {
        let row: rusqlite::Result<(i64, usize, Vec<u8>)> = (|| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))();
        let (id, count, payload) = row.map_err(database::unavailable)?;
        let payloads = chunk::split(Bytes::from(payload), count)
            .ok_or_else(|| LogError::Refused(format!("row {id} of the log is damaged")))?;
        for (index, payload) in payloads.into_iter().enumerate() {
            let at = chunk::position(id) + index as u64;
            if at < position {
                continue;
            }
            if at >= end && !records.is_empty() {
                return Ok(Read::Records(records));
            }
            bytes += payload.len();
            if records.len() == records_max || (bytes > bytes_max && !records.is_empty()) {
                return Ok(Read::Records(records));
            }
            records.push(log_record(at, payload));
        }
    }
    drop(rows);
    if records.is_empty() {
        let held = database::held(connection, topic, partition).map_err(database::unavailable)?;
        return Ok(Read::Begins(held.begin));
    }
    Ok(Read::Records(records))
}
