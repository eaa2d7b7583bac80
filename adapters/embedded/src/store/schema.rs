//! The tables, and the checks that they are this build's.

use roost_ports::store::{Migration, StoreError};
use roost_protocol::Epoch;
use rusqlite::{Connection, OptionalExtension as _, params};

/// Raised with every change of the tables, together with a step in [`migrate`].
const VERSION: i64 = 2;

/// Whose progress row holds the number of the last change.
const NO_LOG: &str = "";

/// Makes the tables and the log's progress rows where they are not there yet.
pub(super) fn migrate(connection: &Connection, migration: &Migration) -> rusqlite::Result<Result<(), StoreError>> {
    let is_new = !connection.table_exists(None, "store")?;
    if is_new {
        connection.execute_batch(include_str!("schema.sql"))?;
        let sql = "INSERT INTO store (only, version, epoch) VALUES (1, ?1, ?2)";
        connection.execute(sql, params![VERSION, Epoch::new().as_bytes()])?;
        insert_progress(connection, NO_LOG, 0)?;
    } else if let Err(error) = check_version(connection)? {
        return Ok(Err(error));
    }
    let wanted = migration.partitions;
    match partitions(connection, &migration.log_id)? {
        Some(held) if held == wanted => Ok(Ok(())),
        Some(held) => Ok(Err(StoreError::Refused(format!("the log has {held} partitions here, not {wanted}")))),
        None => add_log(connection, migration).map(Ok),
    }
}

fn add_log(connection: &Connection, migration: &Migration) -> rusqlite::Result<()> {
    let Migration { log_id, partitions } = migration;
    connection.execute("INSERT INTO logs (log_id, partitions) VALUES (?1, ?2)", params![log_id, partitions])?;
    (0..*partitions).try_for_each(|partition| insert_progress(connection, log_id, partition))
}

fn insert_progress(connection: &Connection, log_id: &str, partition: u32) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO partition_offset (log_id, partition, next_offset, published_offset, owner_epoch)
         VALUES (?1, ?2, 0, 0, 0)",
    )?;
    insert.execute(params![log_id, partition]).map(drop)
}

/// The number of a transaction that changes a conversation or a membership.
pub(super) fn next_change(connection: &Connection) -> rusqlite::Result<u64> {
    let mut update = connection.prepare_cached(
        "UPDATE partition_offset SET next_offset = next_offset + 1 WHERE log_id = ?1 AND partition = 0
         RETURNING next_offset",
    )?;
    update.query_row([NO_LOG], |row| row.get(0))
}

/// The last such number.
pub(super) fn last_change(connection: &Connection) -> rusqlite::Result<u64> {
    let mut select =
        connection.prepare_cached("SELECT next_offset FROM partition_offset WHERE log_id = ?1 AND partition = 0")?;
    select.query_row([NO_LOG], |row| row.get(0))
}

/// Whether the tables are this build's and the settings of the writer durable.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<Result<(), StoreError>> {
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    // 1 is NORMAL: the order of log and file is kept; what makes a commit durable is the writer's own sync.
    if mode != "wal" || synchronous < 1 {
        let text = format!("not durable: journal_mode {mode}, synchronous {synchronous}");
        return Ok(Err(StoreError::Refused(text)));
    }
    check_version(connection)
}

fn check_version(connection: &Connection) -> rusqlite::Result<Result<(), StoreError>> {
    let version: i64 = connection.query_row("SELECT version FROM store", [], |row| row.get(0))?;
    Ok(match version == VERSION {
        true => Ok(()),
        false => Err(StoreError::Refused(format!("its tables have version {version}, this build's have {VERSION}"))),
    })
}

/// Identity of the history.
pub(super) fn epoch(connection: &Connection) -> rusqlite::Result<Epoch> {
    let mut select = connection.prepare_cached("SELECT epoch FROM store")?;
    select.query_row([], |row| row.get(0).map(Epoch::from_bytes))
}

/// How many partitions a log has, if it is known.
pub(super) fn partitions(connection: &Connection, log_id: &str) -> rusqlite::Result<Option<u32>> {
    let mut select = connection.prepare_cached("SELECT partitions FROM logs WHERE log_id = ?1")?;
    select.query_row([log_id], |row| row.get(0)).optional()
}
