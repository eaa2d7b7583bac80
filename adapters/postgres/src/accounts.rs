//! Accounts, devices, refresh tokens, signing keys and the list of gateways.

use roost_ports::store::{Account, NewRefreshToken, Rotation, SigningKey, StoreError, stored};
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, TimeMs, UserId};
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::error::store_error;
use crate::pool::{Pool, in_time};
use crate::rows::{get, number, octets, signed, user_id};

/// Names our advisory locks: this one makes two processes that rotate the signing key take turns.
const SIGNING_KEY_LOCK: i64 = 0x726f_6f73_7400_0002;

pub(crate) async fn create_account(pool: &Pool, account: &Account) -> Result<(), StoreError> {
    let query =
        sqlx::query("INSERT INTO users (user_id, name, name_key, password_hash, created) VALUES ($1, $2, $3, $4, $5)");
    pool.execute(
        query
            .bind(account.user_id.uuid())
            .bind(&account.name)
            .bind(stored::fold_name(&account.name))
            .bind(&account.password_hash)
            .bind(signed(account.created)),
    )
    .await
    .map(|_| ())
}

pub(crate) async fn account_by_name(pool: &Pool, name: &str) -> Result<Account, StoreError> {
    // Text in the database holds no NUL, so nobody has such a name.
    if name.contains('\0') {
        return Err(StoreError::NotFound);
    }
    one_account(pool.rows(sqlx::query("SELECT * FROM users WHERE name_key = $1").bind(stored::fold_name(name))).await?)
}

pub(crate) async fn account(pool: &Pool, user: UserId) -> Result<Account, StoreError> {
    one_account(pool.rows(sqlx::query("SELECT * FROM users WHERE user_id = $1").bind(user.uuid())).await?)
}

fn one_account(rows: Vec<PgRow>) -> Result<Account, StoreError> {
    let row = rows.first().ok_or(StoreError::NotFound)?;
    Ok(Account {
        user_id: user_id(row, "user_id")?,
        name: get(row, "name")?,
        password_hash: get(row, "password_hash")?,
        created: number(row, "created")?,
    })
}

pub(crate) async fn create_device(
    pool: &Pool,
    user: UserId,
    device: DeviceId,
    label: &str,
    token: &NewRefreshToken,
    now: TimeMs,
) -> Result<(), StoreError> {
    // One statement, so one transaction. The references are checked at its end, when both rows are there.
    let query = sqlx::query(
        "WITH device AS (
             INSERT INTO devices (device_id, user_id, label, created) VALUES ($1, $2, $3, $4) RETURNING device_id
         )
         INSERT INTO refresh_tokens (hash, device_id, expires) SELECT $5, device_id, $6 FROM device",
    );
    pool.execute(
        query
            .bind(device.uuid())
            .bind(user.uuid())
            // Text in the database holds no NUL; a label is only for people.
            .bind(label.replace('\0', "\u{fffd}"))
            .bind(signed(now))
            .bind(&token.hash[..])
            .bind(signed(token.expires)),
    )
    .await
    .map(|_| ())
}

pub(crate) async fn rotate_refresh_token(
    pool: &Pool,
    old_hash: &[u8; 32],
    new: &NewRefreshToken,
    now: TimeMs,
) -> Result<Rotation, StoreError> {
    let mut lease = pool.lease().await?;
    let rotation = in_time(rotate(lease.connection(), old_hash, new, now)).await.map_err(store_error)?;
    lease.give_back();
    Ok(rotation)
}

/// Without COMMIT the session is closed, and the transaction with it.
async fn rotate(
    connection: &mut PgConnection,
    old_hash: &[u8; 32],
    new: &NewRefreshToken,
    now: TimeMs,
) -> Result<Rotation, sqlx::Error> {
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    // Whoever waits here for the row finds it used.
    let row: Option<(bool, i64, Uuid, Uuid, bool)> = sqlx::query_as(
        "SELECT t.used, t.expires, d.device_id, d.user_id, d.revoked
         FROM refresh_tokens t JOIN devices d USING (device_id) WHERE t.hash = $1 FOR UPDATE",
    )
    .bind(&old_hash[..])
    .fetch_optional(&mut *connection)
    .await?;
    let rotation = match row {
        None | Some((_, _, _, _, true)) => Rotation::Refused,
        Some((true, _, device, _, _)) => {
            sqlx::query("UPDATE devices SET revoked = true WHERE device_id = $1")
                .bind(device)
                .execute(&mut *connection)
                .await?;
            Rotation::Reused
        }
        Some((false, expires, _, _, _)) if expires <= signed(now) => Rotation::Refused,
        Some((false, _, device, user, false)) => {
            exchange(connection, device, old_hash, new, now).await?;
            Rotation::Rotated { user: UserId::from_uuid(user), device: DeviceId::from_uuid(device) }
        }
    };
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    Ok(rotation)
}

async fn exchange(
    connection: &mut PgConnection,
    device: Uuid,
    old_hash: &[u8; 32],
    new: &NewRefreshToken,
    now: TimeMs,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE refresh_tokens SET used = true WHERE hash = $1")
        .bind(&old_hash[..])
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO refresh_tokens (hash, device_id, expires) VALUES ($1, $2, $3)")
        .bind(&new.hash[..])
        .bind(device)
        .bind(signed(new.expires))
        .execute(&mut *connection)
        .await?;
    // Used ones are kept only while they could be used again.
    sqlx::query("DELETE FROM refresh_tokens WHERE device_id = $1 AND expires <= $2")
        .bind(device)
        .bind(signed(now))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

pub(crate) async fn revoke_device(pool: &Pool, user: UserId, device: DeviceId) -> Result<(), StoreError> {
    let query = sqlx::query("UPDATE devices SET revoked = true WHERE device_id = $1 AND user_id = $2");
    match pool.execute(query.bind(device.uuid()).bind(user.uuid())).await? {
        0 => Err(StoreError::NotFound),
        _ => Ok(()),
    }
}

pub(crate) async fn signing_keys(pool: &Pool) -> Result<Vec<SigningKey>, StoreError> {
    let rows = pool.rows(sqlx::query("SELECT * FROM signing_keys ORDER BY created DESC, kid DESC")).await?;
    rows.iter()
        .map(|row| {
            Ok(SigningKey {
                kid: get(row, "kid")?,
                secret: octets(row, "secret")?,
                public: octets(row, "public")?,
                created: number(row, "created")?,
                verify_until: number(row, "verify_until")?,
            })
        })
        .collect()
}

pub(crate) async fn add_signing_key(
    pool: &Pool,
    key: &SigningKey,
    unless_since: TimeMs,
    now: TimeMs,
) -> Result<(), StoreError> {
    let mut lease = pool.lease().await?;
    in_time(add_key(lease.connection(), key, unless_since, now)).await.map_err(store_error)?;
    lease.give_back();
    Ok(())
}

async fn add_key(
    connection: &mut PgConnection,
    key: &SigningKey,
    unless_since: TimeMs,
    now: TimeMs,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(SIGNING_KEY_LOCK).execute(&mut *connection).await?;
    sqlx::query("DELETE FROM signing_keys WHERE verify_until < $1").bind(signed(now)).execute(&mut *connection).await?;
    sqlx::query(
        "INSERT INTO signing_keys (kid, secret, public, created, verify_until) SELECT $1, $2, $3, $4, $5
         WHERE NOT EXISTS (SELECT FROM signing_keys WHERE created >= $6)",
    )
    .bind(&key.kid)
    .bind(&key.secret[..])
    .bind(&key.public[..])
    .bind(signed(key.created))
    .bind(signed(key.verify_until))
    .bind(signed(unless_since))
    .execute(&mut *connection)
    .await?;
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    Ok(())
}

pub(crate) async fn put_gateway(pool: &Pool, gateway: &Endpoint, until: TimeMs) -> Result<(), StoreError> {
    // Whoever died without a word is forgotten a day later.
    let query = sqlx::query(
        "WITH gone AS (DELETE FROM gateways WHERE until < $3 - 86400000)
         INSERT INTO gateways (address, incarnation, until) VALUES ($1, $2, $3)
         ON CONFLICT (address, incarnation) DO UPDATE SET until = excluded.until",
    );
    pool.execute(query.bind(&gateway.address).bind(signed(gateway.incarnation.0)).bind(signed(until))).await.map(|_| ())
}

pub(crate) async fn remove_gateway(pool: &Pool, gateway: &Endpoint) -> Result<(), StoreError> {
    let query = sqlx::query("DELETE FROM gateways WHERE address = $1 AND incarnation = $2");
    pool.execute(query.bind(&gateway.address).bind(signed(gateway.incarnation.0))).await.map(|_| ())
}

pub(crate) async fn gateways(pool: &Pool, now: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
    let query = sqlx::query("SELECT address, incarnation FROM gateways WHERE until > $1 ORDER BY address, incarnation");
    let rows = pool.rows(query.bind(signed(now))).await?;
    rows.iter()
        .map(|row| {
            Ok(Endpoint { address: get(row, "address")?, incarnation: Incarnation(number(row, "incarnation")?) })
        })
        .collect()
}
