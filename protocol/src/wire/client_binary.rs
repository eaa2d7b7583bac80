//! Client frames in the binary form, read by hand so that they borrow from the receive buffer.

use std::borrow::Cow;

use super::client::Problem;
use super::protobuf::{self, Fields, Malformed, Reader, Sink};
use super::protobuf::{put_bytes, put_bytes_always, put_message, put_varint_always};
use crate::frames::{ClientBody, ClientFrame, DecodeError, HistoryRange, Send};
use crate::ids::{ClientMsgId, ConversationId, DeviceId};

/// What a body without a content type is.
pub(super) const CONTENT_TYPE_DEFAULT: &str = "application/octet-stream";

pub(super) fn decode(payload: &[u8]) -> Result<ClientFrame<'_>, DecodeError> {
    let mut raw = RawClient::default();
    let parsed = raw.parse(payload).map_err(Problem::malformed);
    // What was read before the damage still tells whom to answer.
    let (id, client_msg_id) = (raw.id, raw.client_msg_id());
    parsed
        .and_then(|()| raw.body.ok_or(Problem::malformed("the frame has no body that this server knows")))
        .and_then(RawBody::into_domain)
        .map(|body| ClientFrame { id, body })
        .map_err(|problem| problem.of(id, client_msg_id))
}

pub(super) fn encode(frame: &ClientFrame<'_>) -> Vec<u8> {
    protobuf::encode(frame)
}

/// A client frame as protobuf sees it: fields of any content, absent ones at their default.
#[derive(Default, PartialEq, Debug)]
pub(super) struct RawClient<'a> {
    pub(super) id: Option<u32>,
    pub(super) body: Option<RawBody<'a>>,
}

#[derive(PartialEq, Debug)]
pub(super) enum RawBody<'a> {
    Connect { token: Option<&'a str>, device_id: Option<&'a [u8]>, client: &'a str },
    Send { client_msg_id: &'a [u8], conversation_id: &'a [u8], content_type: &'a str, body: &'a [u8] },
    Sync { since: Option<&'a str> },
    History { conversation_id: &'a [u8], range: Option<HistoryRange>, limit: Option<u32> },
    Refresh { token: &'a str },
    Ping,
    Pong,
}

impl<'a> RawClient<'a> {
    /// Reads all fields as protobuf wants it: of a field that comes twice the last one holds, a message that comes
    /// twice is merged, unknown fields are skipped. On an error what was read so far stays.
    pub(super) fn parse(&mut self, payload: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Reader::new(payload);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => self.id = Some(value.varint32()?),
                2..=8 => {
                    let mut inner = value.message()?;
                    let body = match self.body.take() {
                        Some(same) if same.number() == number => same,
                        _ => RawBody::empty(number),
                    };
                    self.body.insert(body).merge(&mut inner)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn client_msg_id(&self) -> Option<ClientMsgId> {
        match &self.body {
            Some(RawBody::Send { client_msg_id, .. }) => ClientMsgId::from_slice(client_msg_id).ok(),
            _ => None,
        }
    }
}

impl<'a> RawBody<'a> {
    fn number(&self) -> u32 {
        match self {
            RawBody::Connect { .. } => 2,
            RawBody::Send { .. } => 3,
            RawBody::Sync { .. } => 4,
            RawBody::History { .. } => 5,
            RawBody::Refresh { .. } => 6,
            RawBody::Ping => 7,
            RawBody::Pong => 8,
        }
    }

    fn empty(number: u32) -> Self {
        match number {
            2 => RawBody::Connect { token: None, device_id: None, client: "" },
            3 => RawBody::Send { client_msg_id: &[], conversation_id: &[], content_type: "", body: &[] },
            4 => RawBody::Sync { since: None },
            5 => RawBody::History { conversation_id: &[], range: None, limit: None },
            6 => RawBody::Refresh { token: "" },
            7 => RawBody::Ping,
            8 => RawBody::Pong,
            _ => unreachable!("only the numbers above are asked for"),
        }
    }

    fn merge(&mut self, fields: &mut Reader<'a>) -> Result<(), Malformed> {
        while let Some((number, value)) = fields.next()? {
            match (&mut *self, number) {
                (RawBody::Connect { token, .. }, 1) => *token = Some(value.text()?),
                (RawBody::Connect { device_id, .. }, 2) => *device_id = Some(value.bytes()?),
                (RawBody::Connect { client, .. }, 3) => *client = value.text()?,
                (RawBody::Send { client_msg_id, .. }, 1) => *client_msg_id = value.bytes()?,
                (RawBody::Send { conversation_id, .. }, 2) => *conversation_id = value.bytes()?,
                (RawBody::Send { content_type, .. }, 3) => *content_type = value.text()?,
                (RawBody::Send { body, .. }, 4) => *body = value.bytes()?,
                (RawBody::Sync { since }, 1) => *since = Some(value.text()?),
                (RawBody::History { conversation_id, .. }, 1) => *conversation_id = value.bytes()?,
                (RawBody::History { range, .. }, 2) => *range = Some(HistoryRange::After(value.varint()?)),
                (RawBody::History { range, .. }, 3) => *range = Some(HistoryRange::Before(value.varint()?)),
                (RawBody::History { limit, .. }, 4) => *limit = Some(value.varint32()?),
                (RawBody::Refresh { token }, 1) => *token = value.text()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn into_domain(self) -> Result<ClientBody<'a>, Problem> {
        Ok(match self {
            RawBody::Connect { token, device_id, client } => ClientBody::Connect {
                token: token.map(Cow::Borrowed),
                device_id: match device_id {
                    Some(bytes) => Some(DeviceId::from_slice(bytes).map_err(|_| not_an_id("device_id"))?),
                    None => None,
                },
                client: Cow::Borrowed(client),
            },
            RawBody::Send { client_msg_id, conversation_id, content_type, body } => ClientBody::Send(Send {
                client_msg_id: ClientMsgId::from_slice(client_msg_id).map_err(|_| not_an_id("client_msg_id"))?,
                conversation_id: conversation(conversation_id)?,
                content_type: Cow::Borrowed(if content_type.is_empty() { CONTENT_TYPE_DEFAULT } else { content_type }),
                body: Cow::Borrowed(body),
            }),
            RawBody::Sync { since } => ClientBody::Sync { since: since.map(Cow::Borrowed) },
            RawBody::History { conversation_id, range, limit } => ClientBody::History {
                conversation_id: conversation(conversation_id)?,
                range: range.ok_or(Problem::field("after, before: exactly one of them"))?,
                limit,
            },
            RawBody::Refresh { token } => ClientBody::Refresh { token: Cow::Borrowed(token) },
            RawBody::Ping => ClientBody::Ping,
            RawBody::Pong => ClientBody::Pong,
        })
    }
}

fn conversation(bytes: &[u8]) -> Result<ConversationId, Problem> {
    ConversationId::from_slice(bytes).map_err(|_| not_an_id("conversation_id"))
}

fn not_an_id(name: &'static str) -> Problem {
    Problem::field(format!("{name}: an id is 16 bytes"))
}

impl Fields for ClientFrame<'_> {
    fn write(&self, out: &mut impl Sink) {
        if let Some(id) = self.id {
            put_varint_always(out, 1, u64::from(id));
        }
        let number = match &self.body {
            ClientBody::Connect { .. } => 2,
            ClientBody::Send(_) => 3,
            ClientBody::Sync { .. } => 4,
            ClientBody::History { .. } => 5,
            ClientBody::Refresh { .. } => 6,
            ClientBody::Ping => 7,
            ClientBody::Pong => 8,
        };
        put_message(out, number, &self.body);
    }
}

impl Fields for ClientBody<'_> {
    fn write(&self, out: &mut impl Sink) {
        match self {
            ClientBody::Connect { token, device_id, client } => {
                if let Some(token) = token {
                    put_bytes_always(out, 1, token.as_bytes());
                }
                if let Some(device_id) = device_id {
                    put_bytes_always(out, 2, device_id.as_bytes());
                }
                put_bytes(out, 3, client.as_bytes());
            }
            ClientBody::Send(send) => {
                put_bytes(out, 1, send.client_msg_id.as_bytes());
                put_bytes(out, 2, send.conversation_id.as_bytes());
                put_bytes(out, 3, send.content_type.as_bytes());
                put_bytes(out, 4, &send.body);
            }
            ClientBody::Sync { since } => {
                if let Some(since) = since {
                    put_bytes_always(out, 1, since.as_bytes());
                }
            }
            ClientBody::History { conversation_id, range, limit } => {
                put_bytes(out, 1, conversation_id.as_bytes());
                match range {
                    HistoryRange::After(seq) => put_varint_always(out, 2, *seq),
                    HistoryRange::Before(seq) => put_varint_always(out, 3, *seq),
                }
                if let Some(limit) = limit {
                    put_varint_always(out, 4, u64::from(*limit));
                }
            }
            ClientBody::Refresh { token } => put_bytes(out, 1, token.as_bytes()),
            ClientBody::Ping | ClientBody::Pong => {}
        }
    }
}
