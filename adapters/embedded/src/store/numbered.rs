//! Rows of messages and rejections: how they are keyed, found, written and read.

use roost_ports::delivery::VerdictOutcome;
use roost_ports::store::numbering::{Identity, Known, NewMessage, NewRejection};
use roost_ports::store::stored;
use roost_protocol::digest::Digest16;
use roost_protocol::frames::Message;
use roost_protocol::records::DeliverRecord;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Seq, UserId};
use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};

/// The number by which rows of other tables name a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConversationNumber(pub(super) i64);

/// Bits of a message's id that hold its seq; those above hold the conversation's number.
const SEQ_BITS: u32 = 32;

impl ConversationNumber {
    /// The id of a message.
    pub(super) fn message_id(self, seq: Seq) -> i64 {
        assert!(seq < 1 << SEQ_BITS && self.0 < 1 << (63 - SEQ_BITS), "a message's id has room for its number");
        (self.0 << SEQ_BITS) | seq as i64
    }
}

/// The columns that [`deliver_record`] reads.
macro_rules! message_columns {
    () => {
        "id & 0xffffffff, sender_id, device_id, client_msg_id, time, members_version, event, content_type, body"
    };
}
pub(super) use message_columns;

/// The row of a conversation's newest message, joined as `newest` by the expression of its number.
macro_rules! join_newest {
    ($number:literal) => {
        concat!(
            "CROSS JOIN messages newest ON newest.id = (SELECT MAX(id) FROM messages WHERE id BETWEEN ",
            $number,
            " << 32 AND (",
            $number,
            " << 32) + 0xffffffff) "
        )
    };
}
pub(super) use join_newest;

/// The seq of the joined row.
macro_rules! newest_seq {
    () => {
        "(newest.id & 0xffffffff)"
    };
}
pub(super) use newest_seq;

/// A message of this conversation from its row.
pub(super) fn deliver_record(conversation_id: ConversationId, row: &Row<'_>) -> rusqlite::Result<DeliverRecord> {
    let event = match row.get_ref(6)?.as_str_or_null()? {
        None => None,
        Some(text) => Some(stored::event_from_text(text).ok_or_else(|| {
            rusqlite::Error::FromSqlConversionFailure(6, Type::Text, "an event that this build does not know".into())
        })?),
    };
    Ok(DeliverRecord {
        members_version: row.get(5)?,
        message: Message {
            conversation_id,
            seq: row.get(0)?,
            sender_id: UserId::from_bytes(row.get(1)?),
            device_id: DeviceId::from_bytes(row.get(2)?),
            client_msg_id: ClientMsgId::from_bytes(row.get(3)?),
            time: row.get(4)?,
            content_type: row.get(7)?,
            body: bytes::Bytes::copy_from_slice(row.get_ref(8)?.as_blob()?),
            event,
        },
    })
}

/// The number of a conversation, if it exists.
pub(super) fn number_of(
    connection: &Connection,
    conversation: ConversationId,
) -> rusqlite::Result<Option<ConversationNumber>> {
    let mut select = connection.prepare_cached("SELECT number FROM conversations WHERE conversation_id = ?1")?;
    select.query_row([conversation.as_bytes()], |row| row.get(0).map(ConversationNumber)).optional()
}

/// Looks identities up.
pub(super) struct Lookup<'c> {
    messages: CachedStatement<'c>,
    rejections: CachedStatement<'c>,
}

impl<'c> Lookup<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            messages: connection.prepare_cached(
                "SELECT id & 0xffffffff, time, digest FROM messages
                 WHERE client_msg_id = ?1 AND sender_id = ?2 AND id >> 32 = ?3",
            )?,
            rejections: connection.prepare_cached(
                "SELECT code, message, digest FROM rejections
                 WHERE client_msg_id = ?1 AND sender_id = ?2 AND conversation_id = ?3",
            )?,
        })
    }

    /// What became of an identity; `number` is its conversation's, if that exists.
    pub(super) fn find(
        &mut self,
        identity: &Identity,
        number: Option<ConversationNumber>,
    ) -> rusqlite::Result<Option<Known>> {
        let (id, sender) = (identity.client_msg_id.as_bytes(), identity.sender_id.as_bytes());
        if let Some(number) = number {
            let known = self.messages.query_row(params![id, sender, number.0], |row| {
                let verdict = VerdictOutcome::Committed { seq: row.get(0)?, time: row.get(1)? };
                Ok(Known { digest: row.get(2)?, verdict })
            });
            if let Some(known) = known.optional()? {
                return Ok(Some(known));
            }
        }
        let known = self.rejections.query_row(params![id, sender, identity.conversation_id.as_bytes()], |row| {
            let verdict = stored::rejection(row.get_ref(0)?.as_str()?, row.get(1)?);
            Ok(Known { digest: row.get(2)?, verdict })
        });
        known.optional()
    }
}

/// Writes messages.
pub(super) struct InsertMessage<'c>(CachedStatement<'c>);

impl<'c> InsertMessage<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let insert = connection.prepare_cached(
            "INSERT INTO messages
             (id, sender_id, device_id, client_msg_id, time, members_version, digest, event, content_type, body,
              changed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        Ok(Self(insert))
    }

    pub(super) fn insert(
        &mut self,
        number: ConversationNumber,
        row: &NewMessage<'_>,
        changed: u64,
    ) -> rusqlite::Result<()> {
        let event = row.event.as_ref().map(stored::event_to_text);
        self.0.execute(params![
            number.message_id(row.seq),
            row.identity.sender_id.as_bytes(),
            row.device_id.as_bytes(),
            row.identity.client_msg_id.as_bytes(),
            row.time,
            row.members_version,
            row.digest,
            event,
            row.content_type,
            row.body,
            changed,
        ])?;
        Ok(())
    }
}

/// Writes a rejection.
pub(super) fn insert_rejection(connection: &Connection, row: &NewRejection) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO rejections (client_msg_id, sender_id, conversation_id, digest, time, code, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let Identity { conversation_id, sender_id, client_msg_id } = &row.identity;
    insert.execute(params![
        client_msg_id.as_bytes(),
        sender_id.as_bytes(),
        conversation_id.as_bytes(),
        row.digest,
        row.time,
        row.code.as_str(),
        row.message,
    ])?;
    Ok(())
}

/// A message with the digest of its content as first sent.
pub(super) fn message_by_identity(
    connection: &Connection,
    identity: &Identity,
    number: ConversationNumber,
) -> rusqlite::Result<Option<(DeliverRecord, Digest16)>> {
    let mut select = connection.prepare_cached(concat!(
        "SELECT ",
        message_columns!(),
        ", digest FROM messages WHERE client_msg_id = ?1 AND sender_id = ?2 AND id >> 32 = ?3",
    ))?;
    let key = params![identity.client_msg_id.as_bytes(), identity.sender_id.as_bytes(), number.0];
    let found = select.query_row(key, |row| Ok((deliver_record(identity.conversation_id, row)?, row.get(9)?)));
    found.optional()
}
