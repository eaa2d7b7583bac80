//! Client frames in the JSON form: an object whose `type` names the frame, with its fields at the same level.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Problem;
use super::client_binary::CONTENT_TYPE_DEFAULT;
use super::json::{self, Object};
use crate::frames::{ClientBody, ClientFrame, DecodeError, HistoryRange, Send};
use crate::limits;

/// What a `text` without a content type is.
const TEXT_CONTENT_TYPE_DEFAULT: &str = "text/plain";

pub(super) fn decode(payload: &[u8]) -> Result<ClientFrame<'_>, DecodeError> {
    let raw = parse(payload).map_err(|problem| problem.of(None, None))?;
    // These two are read first, whatever is wrong with the others: they tell whom to answer.
    let id = raw.id.map(|id| number(id, "id")).transpose();
    let client_msg_id = raw.client_msg_id.and_then(|id| self::id(id, "client_msg_id").ok());
    let known_id = id.as_ref().ok().copied().flatten().and_then(|id| u32::try_from(id).ok());
    let body = id
        .and_then(|id| match id {
            Some(id) if u32::try_from(id).is_err() => Err(Problem::field("id: at most 2^32 - 1")),
            _ => raw.body(),
        })
        .map_err(|problem| problem.of(known_id, client_msg_id))?;
    Ok(ClientFrame { id: known_id, body })
}

/// Every field that any client frame has, not yet looked into: so that a wrong one does not hide the others, and
/// one that belongs to another frame is ignored like any unknown field. `null` means absent.
#[derive(Deserialize)]
struct RawClient<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    device_id: Option<&'a RawValue>,
    #[serde(borrow)]
    client: Option<&'a RawValue>,
    #[serde(borrow)]
    client_msg_id: Option<&'a RawValue>,
    #[serde(borrow)]
    conversation_id: Option<&'a RawValue>,
    #[serde(borrow)]
    content_type: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    body_base64: Option<&'a RawValue>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
}

fn parse(payload: &[u8]) -> Result<RawClient<'_>, Problem> {
    let text = std::str::from_utf8(payload).map_err(|_| Problem::malformed("the frame is not UTF-8"))?;
    if !json::depth_is_at_most(text, limits::JSON_DEPTH_MAX) {
        return Err(Problem::malformed("the frame nests too deep"));
    }
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Problem::malformed("the frame is not a JSON object"));
    }
    // The parser's own words may quote the client's bytes: only their kind goes on.
    serde_json::from_str(text).map_err(|error| {
        Problem::malformed(match error.classify() {
            serde_json::error::Category::Data => "a field stands in the frame twice",
            _ => "the frame is not JSON",
        })
    })
}

impl<'a> RawClient<'a> {
    fn body(&self) -> Result<ClientBody<'a>, Problem> {
        let kind = self.kind.ok_or(Problem::malformed("the frame has no type"))?;
        let kind = text(kind, "type").map_err(|_| Problem::malformed("type: a text"))?;
        Ok(match kind.as_ref() {
            "connect" => ClientBody::Connect {
                token: self.token.map(|token| text(token, "token")).transpose()?,
                device_id: self.device_id.map(|device| id(device, "device_id")).transpose()?,
                client: self.client.map(|client| text(client, "client")).transpose()?.unwrap_or_default(),
            },
            "send" => ClientBody::Send(self.send()?),
            "sync" => ClientBody::Sync { since: self.since.map(|since| text(since, "since")).transpose()? },
            "history" => ClientBody::History {
                conversation_id: id(required(self.conversation_id, "conversation_id")?, "conversation_id")?,
                range: self.range()?,
                limit: match self.limit {
                    // Any number that is too large means the limit, like one just over it.
                    Some(limit) => Some(u32::try_from(number(limit, "limit")?).unwrap_or(u32::MAX)),
                    None => None,
                },
            },
            "refresh" => ClientBody::Refresh { token: text(required(self.token, "token")?, "token")? },
            "ping" => ClientBody::Ping,
            "pong" => ClientBody::Pong,
            _ => return Err(Problem::malformed("the type of the frame is not one that this server knows")),
        })
    }

    fn send(&self) -> Result<Send<'a>, Problem> {
        let client_msg_id = id(required(self.client_msg_id, "client_msg_id")?, "client_msg_id")?;
        let conversation_id = id(required(self.conversation_id, "conversation_id")?, "conversation_id")?;
        let (body, default) = match (self.text, self.body_base64) {
            (Some(body), None) => (bytes(text(body, "text")?), TEXT_CONTENT_TYPE_DEFAULT),
            (None, Some(body)) => {
                let decoded = json::from_base64(&text(body, "body_base64")?)
                    .ok_or(Problem::field("body_base64: standard base64 with padding"))?;
                (Cow::Owned(decoded), CONTENT_TYPE_DEFAULT)
            }
            _ => return Err(Problem::field("text, body_base64: exactly one of them")),
        };
        let content_type = match self.content_type {
            Some(content_type) => text(content_type, "content_type")?,
            None => Cow::Borrowed(default),
        };
        Ok(Send { client_msg_id, conversation_id, content_type, body })
    }

    fn range(&self) -> Result<HistoryRange, Problem> {
        match (self.after, self.before) {
            (Some(after), None) => Ok(HistoryRange::After(number(after, "after")?)),
            (None, Some(before)) => Ok(HistoryRange::Before(number(before, "before")?)),
            _ => Err(Problem::field("after, before: exactly one of them")),
        }
    }
}

fn required<'a>(value: Option<&'a RawValue>, name: &'static str) -> Result<&'a RawValue, Problem> {
    value.ok_or_else(|| Problem::field(format!("{name}: missing")))
}

fn text<'a>(value: &'a RawValue, name: &'static str) -> Result<Cow<'a, str>, Problem> {
    let written = value.get();
    if let Some(inner) = written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(written).map(Cow::Owned).map_err(|_| Problem::field(format!("{name}: a text")))
}

fn number(value: &RawValue, name: &'static str) -> Result<u64, Problem> {
    serde_json::from_str(value.get()).map_err(|_| Problem::field(format!("{name}: a whole number of at least 0")))
}

fn id<I: std::str::FromStr>(value: &RawValue, name: &'static str) -> Result<I, Problem> {
    text(value, name)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::field(format!("{name}: a UUID in its hyphenated form")))
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

pub(super) fn encode(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let mut object = Object::begin(&mut out);
    object.field("type", frame.body.type_name());
    object.optional("id", frame.id);
    match &frame.body {
        ClientBody::Connect { token, device_id, client } => {
            object.optional("token", token.as_deref());
            object.optional("device_id", device_id.as_ref());
            object.field("client", client);
        }
        ClientBody::Send(send) => {
            object.id("client_msg_id", send.client_msg_id.as_bytes());
            object.id("conversation_id", send.conversation_id.as_bytes());
            object.field("content_type", &send.content_type);
            object.body(&send.content_type, &send.body);
        }
        ClientBody::Sync { since } => object.optional("since", since.as_deref()),
        ClientBody::History { conversation_id, range, limit } => {
            object.id("conversation_id", conversation_id.as_bytes());
            match range {
                HistoryRange::After(seq) => object.field("after", seq),
                HistoryRange::Before(seq) => object.field("before", seq),
            }
            object.optional("limit", limit.as_ref());
        }
        ClientBody::Refresh { token } => object.field("token", token),
        ClientBody::Ping | ClientBody::Pong => {}
    }
    object.end();
    out
}

impl ClientBody<'_> {
    /// The frame's name: its `type` in JSON.
    pub const fn type_name(&self) -> &'static str {
        match self {
            ClientBody::Connect { .. } => "connect",
            ClientBody::Send(_) => "send",
            ClientBody::Sync { .. } => "sync",
            ClientBody::History { .. } => "history",
            ClientBody::Refresh { .. } => "refresh",
            ClientBody::Ping => "ping",
            ClientBody::Pong => "pong",
        }
    }
}
