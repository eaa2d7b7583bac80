//! Values between Rust and SQL: u64 as bigint, ids as uuid, digests as bytea, and a message from its row.

use roost_ports::delivery::VerdictOutcome;
use roost_ports::store::numbering::Known;
use roost_ports::store::{StoreError, stored};
use roost_protocol::digest::Digest16;
use roost_protocol::frames::Message;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row, Type};
use uuid::Uuid;

use crate::error::store_error;

/// A number as SQL holds it. What is beyond stands for the largest: only a gateway's wrong clock, a hostile client or a
/// cursor of nobody's could hold such a thing.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column's value, of a type that SQL has.
pub(crate) fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, name: &str) -> Result<T, StoreError> {
    row.try_get(name).map_err(store_error)
}

/// A column's number.
pub(crate) fn number(row: &PgRow, name: &str) -> Result<u64, StoreError> {
    u64::try_from(get::<i64>(row, name)?).map_err(|_| unreadable(name))
}

/// A column's number, where there is one.
pub(crate) fn number_or_none(row: &PgRow, name: &str) -> Result<Option<u64>, StoreError> {
    get::<Option<i64>>(row, name)?.map(|value| u64::try_from(value).map_err(|_| unreadable(name))).transpose()
}

/// A column's bytes, as many as there must be.
pub(crate) fn octets<const N: usize>(row: &PgRow, name: &str) -> Result<[u8; N], StoreError> {
    // Not by reference: an answer of the simple protocol holds them as text.
    get::<Vec<u8>>(row, name)?.try_into().map_err(|_| unreadable(name))
}

/// A column's digest, where there is one.
pub(crate) fn digest_or_none(row: &PgRow, name: &str) -> Result<Option<Digest16>, StoreError> {
    get::<Option<Vec<u8>>>(row, name)?.map(|digest| digest.try_into().map_err(|_| unreadable(name))).transpose()
}

pub(crate) fn conversation_id(row: &PgRow) -> Result<ConversationId, StoreError> {
    get::<Uuid>(row, "conversation_id").map(ConversationId::from_uuid)
}

pub(crate) fn user_id(row: &PgRow, name: &str) -> Result<UserId, StoreError> {
    get::<Uuid>(row, name).map(UserId::from_uuid)
}

/// A message from all columns of its row.
pub(crate) fn message(row: &PgRow) -> Result<Message, StoreError> {
    let event = get::<Option<&str>>(row, "event")?
        .map(|text| stored::event_from_text(text).ok_or_else(|| unreadable("event")))
        .transpose()?;
    Ok(Message {
        conversation_id: conversation_id(row)?,
        seq: number(row, "seq")?,
        sender_id: user_id(row, "sender_id")?,
        device_id: DeviceId::from_uuid(get(row, "device_id")?),
        client_msg_id: ClientMsgId::from_uuid(get(row, "client_msg_id")?),
        time: number(row, "time")?,
        content_type: get(row, "content_type")?,
        body: bytes::Bytes::copy_from_slice(get(row, "body")?),
        event,
    })
}

/// What an identity became, from a row with the columns of its message (`seq`, `time`, `digest`) and of its rejection
/// (`rejected_digest`, `code`, `words`); none where it is new.
pub(crate) fn known(row: &PgRow) -> Result<Option<Known>, StoreError> {
    if let Some(seq) = number_or_none(row, "seq")? {
        let digest = octets(row, "digest")?;
        return Ok(Some(Known { digest, verdict: VerdictOutcome::Committed { seq, time: number(row, "time")? } }));
    }
    match digest_or_none(row, "rejected_digest")? {
        Some(digest) => {
            let verdict = stored::rejection(get(row, "code")?, get(row, "words")?);
            Ok(Some(Known { digest, verdict }))
        }
        None => Ok(None),
    }
}

pub(crate) fn unreadable(column: &str) -> StoreError {
    StoreError::Refused(format!("column {column} of a row does not read as this build wrote it"))
}
