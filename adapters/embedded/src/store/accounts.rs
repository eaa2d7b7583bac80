//! Accounts, devices, refresh tokens, signing keys, and the list of gateways.

use roost_ports::store::stored::fold_name;
use roost_ports::store::{Account, NewRefreshToken, Rotation, SigningKey, StoreError};
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, TimeMs, UserId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// A gateway that has not been heard of for so long is forgotten at another's next word.
const GATEWAY_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// What a write answers: an error has changed nothing.
type Answer<T> = rusqlite::Result<Result<T, StoreError>>;

pub(super) fn create_account(connection: &Connection, account: &Account) -> Answer<()> {
    let id = account.user_id.as_bytes();
    let folded = fold_name(&account.name);
    // Looked up rather than left to the constraint, whose error would cost the other jobs of the transaction. There
    // is one writer: nobody comes in between.
    let mut taken = connection.prepare_cached("SELECT 1 FROM accounts WHERE user_id = ?1 OR name_folded = ?2")?;
    if taken.exists(params![id, folded])? {
        return Ok(Err(StoreError::AlreadyExists));
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO accounts (user_id, name, name_folded, password_hash, created) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    insert.execute(params![id, account.name, folded, account.password_hash, account.created]).map(|_| Ok(()))
}

pub(super) fn by_name(connection: &Connection, name: &str) -> rusqlite::Result<Option<Account>> {
    let mut select = connection
        .prepare_cached("SELECT user_id, name, password_hash, created FROM accounts WHERE name_folded = ?1")?;
    select.query_row([fold_name(name)], account).optional()
}

pub(super) fn by_id(connection: &Connection, user: UserId) -> rusqlite::Result<Option<Account>> {
    let mut select =
        connection.prepare_cached("SELECT user_id, name, password_hash, created FROM accounts WHERE user_id = ?1")?;
    select.query_row([user.as_bytes()], account).optional()
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        user_id: UserId::from_bytes(row.get(0)?),
        name: row.get(1)?,
        password_hash: row.get(2)?,
        created: row.get(3)?,
    })
}

pub(super) fn create_device(
    connection: &Connection,
    user: UserId,
    device: DeviceId,
    label: &str,
    token: &NewRefreshToken,
    now: TimeMs,
) -> Answer<()> {
    if by_id(connection, user)?.is_none() {
        return Ok(Err(StoreError::NotFound));
    }
    if connection.prepare_cached("SELECT 1 FROM devices WHERE device_id = ?1")?.exists([device.as_bytes()])? {
        return Ok(Err(StoreError::AlreadyExists));
    }
    let mut insert = connection
        .prepare_cached("INSERT INTO devices (device_id, user_id, label, created) VALUES (?1, ?2, ?3, ?4)")?;
    insert.execute(params![device.as_bytes(), user.as_bytes(), label, now])?;
    insert_token(connection, device.as_bytes(), token).map(Ok)
}

pub(super) fn rotate(
    connection: &Connection,
    old_hash: &[u8; 32],
    new: &NewRefreshToken,
    now: TimeMs,
) -> Answer<Rotation> {
    let mut select = connection.prepare_cached(
        "SELECT d.user_id, t.device_id, t.expires, t.used
         FROM refresh_tokens t JOIN devices d ON d.device_id = t.device_id
         WHERE t.hash = ?1",
    )?;
    type Token = ([u8; 16], [u8; 16], u64, bool);
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let token: Option<Token> = select.query_row([old_hash], read).optional()?;
    let (user, device) = match token {
        Some((user, device, expires, false)) if now < expires => (user, device),
        Some((_, device, expires, true)) if now < expires => {
            revoke(connection, &device)?;
            return Ok(Ok(Rotation::Reused));
        }
        _ => return Ok(Ok(Rotation::Refused)),
    };
    connection.prepare_cached("UPDATE refresh_tokens SET used = 1 WHERE hash = ?1")?.execute([old_hash])?;
    // What has ended is refused, there or not.
    let mut delete = connection.prepare_cached("DELETE FROM refresh_tokens WHERE device_id = ?1 AND expires <= ?2")?;
    delete.execute(params![device, now])?;
    insert_token(connection, &device, new)?;
    Ok(Ok(Rotation::Rotated { user: UserId::from_bytes(user), device: DeviceId::from_bytes(device) }))
}

pub(super) fn revoke_device(connection: &Connection, user: UserId, device: DeviceId) -> Answer<()> {
    let mut select = connection.prepare_cached("SELECT 1 FROM devices WHERE device_id = ?1 AND user_id = ?2")?;
    if !select.exists([device.as_bytes(), user.as_bytes()])? {
        return Ok(Err(StoreError::NotFound));
    }
    revoke(connection, device.as_bytes()).map(Ok)
}

fn revoke(connection: &Connection, device: &[u8; 16]) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE devices SET revoked = 1 WHERE device_id = ?1")?.execute([device])?;
    connection.prepare_cached("DELETE FROM refresh_tokens WHERE device_id = ?1")?.execute([device])?;
    Ok(())
}

fn insert_token(connection: &Connection, device: &[u8; 16], token: &NewRefreshToken) -> rusqlite::Result<()> {
    let mut insert =
        connection.prepare_cached("INSERT INTO refresh_tokens (hash, device_id, expires) VALUES (?1, ?2, ?3)")?;
    insert.execute(params![token.hash, device, token.expires])?;
    Ok(())
}

pub(super) fn signing_keys(connection: &Connection) -> rusqlite::Result<Vec<SigningKey>> {
    let mut select = connection.prepare_cached(
        "SELECT kid, secret, public, created, verify_until FROM signing_keys ORDER BY created DESC, kid DESC",
    )?;
    let keys = select.query_map([], |row| {
        Ok(SigningKey {
            kid: row.get(0)?,
            secret: row.get(1)?,
            public: row.get(2)?,
            created: row.get(3)?,
            verify_until: row.get(4)?,
        })
    })?;
    keys.collect()
}

pub(super) fn add_signing_key(
    connection: &Connection,
    key: &SigningKey,
    unless_since: TimeMs,
    now: TimeMs,
) -> Answer<()> {
    connection.prepare_cached("DELETE FROM signing_keys WHERE verify_until < ?1")?.execute([now])?;
    if connection.prepare_cached("SELECT 1 FROM signing_keys WHERE created >= ?1")?.exists([unless_since])? {
        return Ok(Ok(()));
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO signing_keys (kid, secret, public, created, verify_until) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    insert.execute(params![key.kid, key.secret, key.public, key.created, key.verify_until]).map(|_| Ok(()))
}

pub(super) fn put_gateway(connection: &Connection, gateway: &Endpoint, until: TimeMs) -> Answer<()> {
    let mut forget = connection.prepare_cached("DELETE FROM gateways WHERE until < ?1")?;
    forget.execute([until.saturating_sub(GATEWAY_KEPT_MS)])?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO gateways (address, incarnation, until) VALUES (?1, ?2, ?3)
         ON CONFLICT (address, incarnation) DO UPDATE SET until = excluded.until",
    )?;
    insert.execute(params![gateway.address, gateway.incarnation.0, until]).map(|_| Ok(()))
}

pub(super) fn remove_gateway(connection: &Connection, gateway: &Endpoint) -> Answer<()> {
    let mut delete = connection.prepare_cached("DELETE FROM gateways WHERE address = ?1 AND incarnation = ?2")?;
    delete.execute(params![gateway.address, gateway.incarnation.0]).map(|_| Ok(()))
}

pub(super) fn gateways(connection: &Connection, now: TimeMs) -> rusqlite::Result<Vec<Endpoint>> {
    let mut select = connection.prepare_cached("SELECT address, incarnation FROM gateways WHERE until > ?1")?;
    let gateways =
        select.query_map([now], |row| Ok(Endpoint { address: row.get(0)?, incarnation: Incarnation(row.get(1)?) }))?;
    gateways.collect()
}
