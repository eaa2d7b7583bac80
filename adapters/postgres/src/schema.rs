//! Migrations, and what makes a server fit to be the Store.

use roost_ports::store::{Migration, StoreError};
use roost_protocol::Epoch;
use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;

use crate::config::PostgresConfig;
use crate::error::store_error;
use crate::pool::Pool;
use crate::rows::get;

static MIGRATOR: Migrator = sqlx::migrate!();

/// The oldest server with everything we use, as `server_version_num` says it.
const SERVER_VERSION_MIN: i32 = 150_000;

/// Names our advisory locks: this one keeps two migrations apart.
const MIGRATION_LOCK: i64 = 0x726f_6f73_7400_0001;

/// Settings without which a commit may be lost or a page torn.
const DURABLE: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Makes or upgrades the schema, the epoch, and the log's progress rows at 0.
pub(crate) async fn migrate(config: &PostgresConfig, migration: &Migration) -> Result<(), StoreError> {
    if migration.partitions == 0 {
        return Err(StoreError::Refused("a log has at least one partition".into()));
    }
    let mut connection = PgConnection::connect_with(&config.patient()).await.map_err(store_error)?;
    // Takes an advisory lock of its own, so that two programs may start at once.
    MIGRATOR.run_direct(None, &mut connection, false).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error) => store_error(error),
        error => StoreError::Refused(format!("migration: {error}")),
    })?;
    let mut transaction = connection.begin().await.map_err(store_error)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(store_error)?;
    sqlx::query("INSERT INTO meta (epoch) SELECT $1 WHERE NOT EXISTS (SELECT FROM meta)")
        .bind(Epoch::new().uuid())
        .execute(&mut *transaction)
        .await
        .map_err(store_error)?;
    let held = count_partitions(&mut transaction, &migration.log_id).await?;
    if held == 0 {
        sqlx::query(
            "INSERT INTO partition_offset (log_id, partition, next_offset, published_offset, owner_epoch)
             SELECT $1, partition, 0, 0, 0 FROM generate_series(0, $2 - 1) partition",
        )
        .bind(&migration.log_id)
        .bind(i32::try_from(migration.partitions).map_err(|_| StoreError::Refused("too many partitions".into()))?)
        .execute(&mut *transaction)
        .await
        .map_err(store_error)?;
    } else if held != i64::from(migration.partitions) {
        return Err(StoreError::Refused(format!(
            "the log {:?} has {held} partitions in the store, not {}: the count cannot change, since it says which \
             partition a conversation is in",
            migration.log_id, migration.partitions
        )));
    }
    transaction.commit().await.map_err(store_error)?;
    connection.close().await.map_err(store_error)
}

async fn count_partitions(connection: &mut PgConnection, log_id: &str) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT count(*) FROM partition_offset WHERE log_id = $1")
        .bind(log_id)
        .fetch_one(connection)
        .await
        .map_err(store_error)
}

/// Refuses a server that is too old or whose commits are not durable.
pub(crate) async fn check_server(pool: &Pool) -> Result<(), StoreError> {
    let rows = pool
        .rows(
            sqlx::query(
                "SELECT name, setting, current_setting('server_version_num')::integer AS version FROM pg_settings
             WHERE name = ANY($1)",
            )
            .bind(&DURABLE[..]),
        )
        .await?;
    for row in rows {
        let (name, setting): (String, String) = (get(&row, "name")?, get(&row, "setting")?);
        let version: i32 = get(&row, "version")?;
        if version < SERVER_VERSION_MIN {
            return Err(StoreError::Refused(format!(
                "PostgreSQL {} is too old: use version {} or later",
                version / 10_000,
                SERVER_VERSION_MIN / 10_000
            )));
        }
        if setting == "off" {
            return Err(StoreError::Refused(format!(
                "PostgreSQL runs with {name} = off, so that acknowledged messages could be lost: set {name} = on in \
                 postgresql.conf (or for this role or database, where it is set there) and reload the server"
            )));
        }
    }
    Ok(())
}

/// Refuses a schema that is not exactly this build's.
pub(crate) async fn check_schema(pool: &Pool) -> Result<(), StoreError> {
    let rows =
        pool.rows(sqlx::query("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")).await?;
    let mut applied = Vec::with_capacity(rows.len());
    for row in &rows {
        if !get::<bool>(row, "success")? {
            return Err(StoreError::Refused("a migration has failed half-way: a person has to look".into()));
        }
        applied.push((get::<i64>(row, "version")?, get::<Vec<u8>>(row, "checksum")?));
    }
    let ours = MIGRATOR.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect::<Vec<_>>();
    if applied == ours {
        return Ok(());
    }
    let words = if applied.len() < ours.len() { "older: run the migration" } else { "not this build's" };
    Err(StoreError::Refused(format!("the schema is {words}")))
}
