//! Server frames in the JSON form: written field by field into the caller's buffer, read by serde.

use bytes::Bytes;
use serde::Deserialize;

use super::json::{self, Object};
use super::protobuf::Malformed;
use super::server_binary::code_of;
use crate::frames::{
    Connected, ConversationKind, Event, Head, Heads, Message, Page, ServerBody, ServerFrame, ServerLimits,
};
use crate::ids::{ClientMsgId, ConversationId, DeviceId, Epoch, SessionId, UserId};
use crate::{Seq, TimeMs};

pub(super) fn encode_into(frame: &ServerFrame, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    object.field("type", frame.body.type_name());
    object.optional("id", frame.id);
    match &frame.body {
        ServerBody::Connected(connected) => write_connected(&mut object, connected),
        ServerBody::Sent { client_msg_id, conversation_id, seq, time } => {
            object.id("client_msg_id", client_msg_id.as_bytes());
            object.id("conversation_id", conversation_id.as_bytes());
            object.field("seq", seq);
            object.field("time", time);
        }
        ServerBody::Rejected { client_msg_id, code, message } => {
            object.id("client_msg_id", client_msg_id.as_bytes());
            object.field("code", code.as_str());
            object.field("message", message);
        }
        ServerBody::Retry { client_msg_id, retry_after_ms, code } => {
            object.id("client_msg_id", client_msg_id.as_bytes());
            object.field("retry_after_ms", retry_after_ms);
            object.field("code", code.as_str());
        }
        ServerBody::Message(message) => write_message(&mut object, message),
        ServerBody::Heads(heads) => write_heads(&mut object, heads),
        ServerBody::Page(page) => write_page(&mut object, page),
        ServerBody::Error { code, message, retry_after_ms, fatal } => {
            object.field("code", code.as_str());
            object.field("message", message);
            object.optional("retry_after_ms", retry_after_ms.as_ref());
            object.field("fatal", fatal);
        }
        ServerBody::Reload { reason } => object.field("reason", reason),
        ServerBody::Goaway { reconnect_in_ms, reason } => {
            object.field("reconnect_in_ms", reconnect_in_ms);
            object.field("reason", reason);
        }
        ServerBody::Ping | ServerBody::Pong => {}
    }
    object.end();
}

pub(super) fn encode_message_into(message: &Message, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    object.field("type", "message");
    write_message(&mut object, message);
    object.end();
}

pub(super) fn write_page_object(page: &Page, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    write_page(&mut object, page);
    object.end();
}

impl ServerBody {
    /// The frame's name: its `type` in JSON.
    pub const fn type_name(&self) -> &'static str {
        match self {
            ServerBody::Connected(_) => "connected",
            ServerBody::Sent { .. } => "sent",
            ServerBody::Rejected { .. } => "rejected",
            ServerBody::Retry { .. } => "retry",
            ServerBody::Message(_) => "message",
            ServerBody::Heads(_) => "heads",
            ServerBody::Page(_) => "page",
            ServerBody::Error { .. } => "error",
            ServerBody::Reload { .. } => "reload",
            ServerBody::Goaway { .. } => "goaway",
            ServerBody::Ping => "ping",
            ServerBody::Pong => "pong",
        }
    }
}

fn write_connected(object: &mut Object<'_>, connected: &Connected) {
    object.id("session_id", &connected.session_id.to_bytes());
    object.id("user_id", connected.user_id.as_bytes());
    object.id("device_id", connected.device_id.as_bytes());
    object.field("server_time", connected.server_time);
    object.field("ping_ms", connected.ping_ms);
    object.field("limits", connected.limits);
    object.field("expires_at", connected.expires_at);
    object.id("epoch", connected.epoch.as_bytes());
}

fn write_message(object: &mut Object<'_>, message: &Message) {
    object.id("conversation_id", message.conversation_id.as_bytes());
    object.field("seq", message.seq);
    object.id("sender_id", message.sender_id.as_bytes());
    object.id("device_id", message.device_id.as_bytes());
    object.id("client_msg_id", message.client_msg_id.as_bytes());
    object.field("time", message.time);
    object.field("content_type", &message.content_type);
    object.body(&message.content_type, &message.body);
    if let Some(Event::Created { kind, title, member_count }) = &message.event {
        let mut event = Object::begin(object.key("event"));
        event.field("kind", "created");
        event.field("conversation_kind", kind.as_str());
        event.optional("title", title.as_ref());
        event.field("member_count", member_count);
        event.end();
    }
}

fn write_heads(object: &mut Object<'_>, heads: &Heads) {
    write_list(object.key("conversations"), &heads.conversations, |object, head| {
        object.id("conversation_id", head.conversation_id.as_bytes());
        object.optional("first_seq", head.first_seq);
        object.field("last_seq", head.last_seq);
        object.optional("read_seq", head.read_seq);
        object.optional("delivered_seq", head.delivered_seq);
    });
    object.optional("next", heads.next.as_ref());
    object.field("more", heads.more);
    if let Some(epoch) = &heads.epoch {
        object.id("epoch", epoch.as_bytes());
    }
}

fn write_page(object: &mut Object<'_>, page: &Page) {
    object.id("conversation_id", page.conversation_id.as_bytes());
    object.field("from", page.from);
    object.field("to", page.to);
    write_list(object.key("messages"), &page.messages, write_message);
    object.field("more", page.more);
    object.id("epoch", page.epoch.as_bytes());
}

fn write_list<T>(out: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Object<'_>, &T)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let mut object = Object::begin(out);
        write(&mut object, item);
        object.end();
    }
    out.push(b']');
}

pub(super) fn decode(payload: &[u8]) -> Result<Option<ServerFrame>, Malformed> {
    let envelope: Envelope = read(payload)?;
    let body = match envelope.kind.as_str() {
        "connected" => ServerBody::Connected(read::<ConnectedJson>(payload)?.into_domain()),
        "sent" => {
            let SentJson { client_msg_id, conversation_id, seq, time } = read(payload)?;
            ServerBody::Sent { client_msg_id, conversation_id, seq, time }
        }
        "rejected" => {
            let RejectedJson { client_msg_id, code, message } = read(payload)?;
            ServerBody::Rejected { client_msg_id, code: code_of(&code), message }
        }
        "retry" => {
            let RetryJson { client_msg_id, retry_after_ms, code } = read(payload)?;
            ServerBody::Retry { client_msg_id, retry_after_ms, code: code_of(&code) }
        }
        "message" => ServerBody::Message(read::<MessageJson>(payload)?.into_domain()?),
        "heads" => ServerBody::Heads(read::<HeadsJson>(payload)?.into_domain()),
        "page" => ServerBody::Page(read_page(payload)?),
        "error" => {
            let ErrorJson { code, message, retry_after_ms, fatal } = read(payload)?;
            ServerBody::Error { code: code_of(&code), message, retry_after_ms, fatal }
        }
        "reload" => ServerBody::Reload { reason: read::<ReloadJson>(payload)?.reason },
        "goaway" => {
            let GoawayJson { reconnect_in_ms, reason } = read(payload)?;
            ServerBody::Goaway { reconnect_in_ms, reason }
        }
        "ping" => ServerBody::Ping,
        "pong" => ServerBody::Pong,
        _ => return Ok(None),
    };
    Ok(Some(ServerFrame { id: envelope.id, body }))
}

pub(super) fn read_page(text: &[u8]) -> Result<Page, Malformed> {
    let page: PageJson = read(text)?;
    Ok(Page {
        conversation_id: page.conversation_id,
        from: page.from,
        to: page.to,
        messages: page.messages.into_iter().map(MessageJson::into_domain).collect::<Result<_, Malformed>>()?,
        more: page.more,
        epoch: page.epoch,
    })
}

fn read<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(payload).map_err(|_| "the frame does not decode")
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    id: Option<u32>,
}

#[derive(Deserialize)]
struct ConnectedJson {
    session_id: SessionId,
    user_id: UserId,
    device_id: DeviceId,
    server_time: TimeMs,
    ping_ms: u64,
    limits: ServerLimits,
    expires_at: TimeMs,
    epoch: Epoch,
}

impl ConnectedJson {
    fn into_domain(self) -> Connected {
        let Self { session_id, user_id, device_id, server_time, ping_ms, limits, expires_at, epoch } = self;
        Connected { session_id, user_id, device_id, server_time, ping_ms, limits, expires_at, epoch }
    }
}

#[derive(Deserialize)]
struct SentJson {
    client_msg_id: ClientMsgId,
    conversation_id: ConversationId,
    seq: Seq,
    time: TimeMs,
}

#[derive(Deserialize)]
struct RejectedJson {
    client_msg_id: ClientMsgId,
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct RetryJson {
    client_msg_id: ClientMsgId,
    retry_after_ms: u64,
    code: String,
}

#[derive(Deserialize)]
struct ErrorJson {
    code: String,
    #[serde(default)]
    message: String,
    retry_after_ms: Option<u64>,
    #[serde(default)]
    fatal: bool,
}

#[derive(Deserialize)]
struct ReloadJson {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct GoawayJson {
    reconnect_in_ms: u64,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct HeadsJson {
    conversations: Vec<HeadJson>,
    next: Option<String>,
    #[serde(default)]
    more: bool,
    epoch: Option<Epoch>,
}

#[derive(Deserialize)]
struct HeadJson {
    conversation_id: ConversationId,
    first_seq: Option<Seq>,
    last_seq: Seq,
    read_seq: Option<Seq>,
    delivered_seq: Option<Seq>,
}

impl HeadsJson {
    fn into_domain(self) -> Heads {
        let head_of = |head: HeadJson| {
            let HeadJson { conversation_id, first_seq, last_seq, read_seq, delivered_seq } = head;
            Head { conversation_id, first_seq, last_seq, read_seq, delivered_seq }
        };
        Heads {
            conversations: self.conversations.into_iter().map(head_of).collect(),
            next: self.next,
            more: self.more,
            epoch: self.epoch,
        }
    }
}

#[derive(Deserialize)]
struct PageJson {
    conversation_id: ConversationId,
    from: Seq,
    to: Seq,
    messages: Vec<MessageJson>,
    more: bool,
    epoch: Epoch,
}

#[derive(Deserialize)]
struct MessageJson {
    conversation_id: ConversationId,
    seq: Seq,
    sender_id: UserId,
    device_id: DeviceId,
    client_msg_id: ClientMsgId,
    time: TimeMs,
    content_type: String,
    text: Option<String>,
    body_base64: Option<String>,
    event: Option<EventJson>,
}

#[derive(Deserialize)]
struct EventJson {
    kind: String,
    conversation_kind: Option<String>,
    title: Option<String>,
    member_count: Option<u32>,
}

impl MessageJson {
    fn into_domain(self) -> Result<Message, Malformed> {
        let body = match (self.text, self.body_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(encoded)) => json::from_base64(&encoded).ok_or("a body is not base64")?,
            _ => return Err("a message has text or body_base64"),
        };
        Ok(Message {
            conversation_id: self.conversation_id,
            seq: self.seq,
            sender_id: self.sender_id,
            device_id: self.device_id,
            client_msg_id: self.client_msg_id,
            time: self.time,
            content_type: self.content_type,
            body: Bytes::from(body),
            event: self.event.and_then(EventJson::into_domain),
        })
    }
}

impl EventJson {
    /// An event of a later version is none: its message is shown as nothing, its seq counts.
    fn into_domain(self) -> Option<Event> {
        match self.kind.as_str() {
            "created" => Some(Event::Created {
                kind: ConversationKind::parse(&self.conversation_kind?)?,
                title: self.title,
                member_count: self.member_count?,
            }),
            _ => None,
        }
    }
}
