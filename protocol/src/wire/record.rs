//! Log records: written in one allocation of their exact size, read by borrowing from what was fetched.

use std::borrow::Cow;

use bytes::Bytes;
use prost::Message as _;

use super::generated as pb;
use super::protobuf::{self, Fields, Malformed, Reader, Sink};
use super::protobuf::{put_bytes, put_bytes_always, put_fixed32, put_message, put_varint, put_varint_always};
use super::server_binary::{kind_number, kind_of_number, message_of};
use crate::frames::ConversationKind;
use crate::ids::{ClientMsgId, ConversationId, DeviceId, Incarnation, SessionId, UserId};
use crate::limits;
use crate::records::{Action, DeliverRecord, Endpoint, IngressRecord, Origin, RECORD_VERSION, RecordError};

/// What a record's first field holds above its version: "Ros". Without it one stray byte would look like a newer
/// version, and a partition would be given up for it.
const FORMAT: u32 = 0x526f_7300;

impl IngressRecord<'_> {
    /// The record as it stands in the log: one allocation, one copy of the body.
    pub fn encode(&self) -> Bytes {
        let encoded = protobuf::encode(self);
        debug_assert!(encoded.len() <= limits::RECORD_BYTES_MAX, "what goes in was checked against the limits");
        Bytes::from(encoded)
    }

    /// Reads a record; content type, title and body are borrowed.
    pub fn decode(bytes: &[u8]) -> Result<IngressRecord<'_>, RecordError> {
        check_format(bytes)?;
        RawIngress::parse(bytes).and_then(RawIngress::into_domain).map_err(RecordError::Poison)
    }

    /// The same record without borrowing from what was fetched.
    pub fn into_owned(self) -> IngressRecord<'static> {
        let action = match self.action {
            Action::Send { conversation_id, content_type, body } => Action::Send {
                conversation_id,
                content_type: Cow::Owned(content_type.into_owned()),
                body: Cow::Owned(body.into_owned()),
            },
            Action::Create { conversation_id, kind, title, members } => Action::Create {
                conversation_id,
                kind,
                title: title.map(|title| Cow::Owned(title.into_owned())),
                members,
            },
        };
        IngressRecord {
            actor: self.actor,
            device: self.device,
            client_msg_id: self.client_msg_id,
            time: self.time,
            origin: self.origin,
            if_last_seq: self.if_last_seq,
            action,
        }
    }
}

impl DeliverRecord {
    /// The record as it stands in the log: one allocation, one copy of the body.
    pub fn encode(&self) -> Bytes {
        Bytes::from(protobuf::encode(self))
    }

    /// Reads a record; the body is a slice of what was fetched.
    pub fn decode(bytes: Bytes) -> Result<DeliverRecord, RecordError> {
        check_format(&bytes)?;
        let record = pb::DeliverRecord::decode(bytes).map_err(|_| RecordError::Poison("it does not decode"))?;
        let message = record.message.ok_or(RecordError::Poison("it has no message"))?;
        Ok(DeliverRecord {
            members_version: record.members_version,
            message: message_of(message).map_err(RecordError::Poison)?,
        })
    }
}

fn check_format(bytes: &[u8]) -> Result<(), RecordError> {
    let first = Reader::new(bytes).next().map_err(RecordError::Poison)?;
    match first {
        Some((1, value)) => {
            let format = value.fixed32().map_err(RecordError::Poison)?;
            match (format & !0xff, format & 0xff) {
                (FORMAT, version) if version > RECORD_VERSION => Err(RecordError::Newer(version)),
                (FORMAT, version) if version >= 1 => Ok(()),
                _ => Err(RecordError::Poison("it is not in a format of ours")),
            }
        }
        _ => Err(RecordError::Poison("it does not begin with its format")),
    }
}

impl Fields for IngressRecord<'_> {
    fn write(&self, out: &mut impl Sink) {
        put_fixed32(out, 1, FORMAT | RECORD_VERSION);
        put_bytes(out, 2, self.actor.as_bytes());
        put_bytes(out, 3, self.device.as_bytes());
        put_bytes(out, 4, self.client_msg_id.as_bytes());
        put_varint(out, 5, self.time);
        if let Some(origin) = &self.origin {
            put_message(out, 6, origin);
        }
        if let Some(seq) = self.if_last_seq {
            put_varint_always(out, 7, seq);
        }
        match &self.action {
            Action::Send { .. } => put_message(out, 8, &self.action),
            Action::Create { .. } => put_message(out, 9, &self.action),
        }
    }
}

impl Fields for Origin {
    fn write(&self, out: &mut impl Sink) {
        put_bytes(out, 1, self.endpoint.address.as_bytes());
        put_varint(out, 2, self.endpoint.incarnation.0);
        if let Some(session) = self.session {
            put_bytes_always(out, 3, &session.to_bytes());
        }
        put_varint(out, 4, self.request);
    }
}

impl Fields for Action<'_> {
    fn write(&self, out: &mut impl Sink) {
        match self {
            Action::Send { conversation_id, content_type, body } => {
                put_bytes(out, 1, conversation_id.as_bytes());
                put_bytes(out, 2, content_type.as_bytes());
                put_bytes(out, 3, body);
            }
            Action::Create { conversation_id, kind, title, members } => {
                put_bytes(out, 1, conversation_id.as_bytes());
                put_varint(out, 2, kind_number(*kind));
                if let Some(title) = title {
                    put_bytes_always(out, 3, title.as_bytes());
                }
                for member in members {
                    put_bytes_always(out, 4, member.as_bytes());
                }
            }
        }
    }
}

impl Fields for DeliverRecord {
    fn write(&self, out: &mut impl Sink) {
        put_fixed32(out, 1, FORMAT | RECORD_VERSION);
        put_varint(out, 2, self.members_version);
        put_message(out, 3, &self.message);
    }
}

/// An ingress record as protobuf sees it: fields of any content, absent ones at their default.
#[derive(Default, PartialEq, Debug)]
pub(super) struct RawIngress<'a> {
    pub(super) actor: &'a [u8],
    pub(super) device: &'a [u8],
    pub(super) client_msg_id: &'a [u8],
    pub(super) time: u64,
    pub(super) origin: Option<RawOrigin<'a>>,
    pub(super) if_last_seq: Option<u64>,
    pub(super) action: Option<RawAction<'a>>,
}

#[derive(Default, PartialEq, Debug)]
pub(super) struct RawOrigin<'a> {
    pub(super) address: &'a str,
    pub(super) incarnation: u64,
    pub(super) session: Option<&'a [u8]>,
    pub(super) request: u64,
}

#[derive(PartialEq, Debug)]
pub(super) enum RawAction<'a> {
    Send { conversation_id: &'a [u8], content_type: &'a str, body: &'a [u8] },
    Create { conversation_id: &'a [u8], kind: i32, title: Option<&'a str>, members: Vec<&'a [u8]> },
}

impl<'a> RawIngress<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut raw = Self::default();
        let mut fields = Reader::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => drop(value.fixed32()?),
                2 => raw.actor = value.bytes()?,
                3 => raw.device = value.bytes()?,
                4 => raw.client_msg_id = value.bytes()?,
                5 => raw.time = value.varint()?,
                6 => raw.origin.get_or_insert_default().merge(value.message()?)?,
                7 => raw.if_last_seq = Some(value.varint()?),
                8 => {
                    let send = match raw.action.take() {
                        Some(send @ RawAction::Send { .. }) => send,
                        _ => RawAction::Send { conversation_id: &[], content_type: "", body: &[] },
                    };
                    raw.action.insert(send).merge(value.message()?)?;
                }
                9 => {
                    let create = match raw.action.take() {
                        Some(create @ RawAction::Create { .. }) => create,
                        _ => RawAction::Create { conversation_id: &[], kind: 0, title: None, members: Vec::new() },
                    };
                    raw.action.insert(create).merge(value.message()?)?;
                }
                _ => {}
            }
        }
        Ok(raw)
    }

    fn into_domain(self) -> Result<IngressRecord<'a>, Malformed> {
        Ok(IngressRecord {
            actor: UserId::from_slice(self.actor).map_err(|_| "the actor is not an id")?,
            device: DeviceId::from_slice(self.device).map_err(|_| "the device is not an id")?,
            client_msg_id: ClientMsgId::from_slice(self.client_msg_id).map_err(|_| "client_msg_id is not an id")?,
            time: self.time,
            origin: self.origin.map(RawOrigin::into_domain).transpose()?,
            if_last_seq: self.if_last_seq,
            action: self.action.ok_or("it asks nothing that is known")?.into_domain()?,
        })
    }
}

impl<'a> RawOrigin<'a> {
    fn merge(&mut self, mut fields: Reader<'a>) -> Result<(), Malformed> {
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => self.address = value.text()?,
                2 => self.incarnation = value.varint()?,
                3 => self.session = Some(value.bytes()?),
                4 => self.request = value.varint()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn into_domain(self) -> Result<Origin, Malformed> {
        let session = self.session.map(SessionId::from_slice).transpose();
        Ok(Origin {
            endpoint: Endpoint { address: self.address.to_owned(), incarnation: Incarnation(self.incarnation) },
            session: session.map_err(|_| "the session is not an id")?,
            request: self.request,
        })
    }
}

impl<'a> RawAction<'a> {
    fn merge(&mut self, mut fields: Reader<'a>) -> Result<(), Malformed> {
        while let Some((number, value)) = fields.next()? {
            match (&mut *self, number) {
                (RawAction::Send { conversation_id, .. } | RawAction::Create { conversation_id, .. }, 1) => {
                    *conversation_id = value.bytes()?;
                }
                (RawAction::Send { content_type, .. }, 2) => *content_type = value.text()?,
                (RawAction::Send { body, .. }, 3) => *body = value.bytes()?,
                (RawAction::Create { kind, .. }, 2) => *kind = value.varint()? as i32,
                (RawAction::Create { title, .. }, 3) => *title = Some(value.text()?),
                (RawAction::Create { members, .. }, 4) => {
                    if members.len() == limits::MEMBERS_MAX {
                        return Err("it has too many members");
                    }
                    members.push(value.bytes()?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn into_domain(self) -> Result<Action<'a>, Malformed> {
        match self {
            RawAction::Send { conversation_id, content_type, body } => Ok(Action::Send {
                conversation_id: conversation(conversation_id)?,
                content_type: Cow::Borrowed(content_type),
                body: Cow::Borrowed(body),
            }),
            RawAction::Create { conversation_id, kind, title, members } => {
                let members: Vec<UserId> = members
                    .into_iter()
                    .map(|member| UserId::from_slice(member).map_err(|_| "a member is not an id"))
                    .collect::<Result<_, Malformed>>()?;
                let kind = kind_of_number(kind).ok_or("the kind of conversation is not known")?;
                check_members(kind, &members)?;
                Ok(Action::Create {
                    conversation_id: conversation(conversation_id)?,
                    kind,
                    title: title.map(Cow::Borrowed),
                    members,
                })
            }
        }
    }
}

fn conversation(bytes: &[u8]) -> Result<ConversationId, Malformed> {
    ConversationId::from_slice(bytes).map_err(|_| "the conversation is not an id")
}

fn check_members(kind: ConversationKind, members: &[UserId]) -> Result<(), Malformed> {
    if !members.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err("the members are not sorted, or one stands there twice");
    }
    match kind {
        // A conversation with oneself has one member.
        ConversationKind::Direct if !(1..=2).contains(&members.len()) => Err("a direct conversation has two members"),
        ConversationKind::Group if members.is_empty() => Err("a group has members"),
        _ => Ok(()),
    }
}
