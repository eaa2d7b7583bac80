//! Server frames in the binary form: written by hand in one pass, read by prost.

use bytes::Bytes;
use prost::Message as _;

use super::generated as pb;
use super::protobuf::{self, Fields, Malformed, Sink};
use super::protobuf::{put_bytes, put_bytes_always, put_message, put_varint, put_varint_always};
use crate::ErrorCode;
use crate::frames::{
    Connected, ConversationKind, Event, Head, Heads, Message, Page, ServerBody, ServerFrame, ServerLimits,
};
use crate::ids::{ClientMsgId, ConversationId, DeviceId, Epoch, SessionId, UserId};

/// The field of `ServerFrame` that holds a message.
const MESSAGE: u32 = 6;

pub(super) fn encode_into(frame: &ServerFrame, out: &mut Vec<u8>) {
    frame.write(out);
}

pub(super) fn encode_message_into(message: &Message, out: &mut Vec<u8>) {
    put_message(out, MESSAGE, message);
}

pub(super) fn message_frame_len(message: &Message) -> usize {
    struct Frame<'a>(&'a Message);
    impl Fields for Frame<'_> {
        fn write(&self, out: &mut impl Sink) {
            put_message(out, MESSAGE, self.0);
        }
    }
    protobuf::length_of(&Frame(message))
}

impl Fields for ServerFrame {
    fn write(&self, out: &mut impl Sink) {
        if let Some(id) = self.id {
            put_varint_always(out, 1, u64::from(id));
        }
        match &self.body {
            ServerBody::Connected(connected) => put_message(out, 2, connected),
            ServerBody::Message(message) => put_message(out, MESSAGE, message),
            ServerBody::Heads(heads) => put_message(out, 7, heads),
            ServerBody::Page(page) => put_message(out, 8, page),
            small => put_message(out, small.number(), small),
        }
    }
}

impl ServerBody {
    fn number(&self) -> u32 {
        match self {
            ServerBody::Connected(_) => 2,
            ServerBody::Sent { .. } => 3,
            ServerBody::Rejected { .. } => 4,
            ServerBody::Retry { .. } => 5,
            ServerBody::Message(_) => MESSAGE,
            ServerBody::Heads(_) => 7,
            ServerBody::Page(_) => 8,
            ServerBody::Error { .. } => 9,
            ServerBody::Reload { .. } => 10,
            ServerBody::Goaway { .. } => 11,
            ServerBody::Ping => 12,
            ServerBody::Pong => 13,
        }
    }
}

impl Fields for ServerBody {
    fn write(&self, out: &mut impl Sink) {
        match self {
            ServerBody::Connected(connected) => connected.write(out),
            ServerBody::Message(message) => message.write(out),
            ServerBody::Heads(heads) => heads.write(out),
            ServerBody::Page(page) => page.write(out),
            ServerBody::Sent { client_msg_id, conversation_id, seq, time } => {
                put_bytes(out, 1, client_msg_id.as_bytes());
                put_bytes(out, 2, conversation_id.as_bytes());
                put_varint(out, 3, *seq);
                put_varint(out, 4, *time);
            }
            ServerBody::Rejected { client_msg_id, code, message } => {
                put_bytes(out, 1, client_msg_id.as_bytes());
                put_bytes(out, 2, code.as_str().as_bytes());
                put_bytes(out, 3, message.as_bytes());
            }
            ServerBody::Retry { client_msg_id, retry_after_ms, code } => {
                put_bytes(out, 1, client_msg_id.as_bytes());
                put_varint(out, 2, *retry_after_ms);
                put_bytes(out, 3, code.as_str().as_bytes());
            }
            ServerBody::Error { code, message, retry_after_ms, fatal } => {
                put_bytes(out, 1, code.as_str().as_bytes());
                put_bytes(out, 2, message.as_bytes());
                if let Some(retry_after_ms) = retry_after_ms {
                    put_varint_always(out, 3, *retry_after_ms);
                }
                put_varint(out, 4, u64::from(*fatal));
            }
            ServerBody::Reload { reason } => put_bytes(out, 1, reason.as_bytes()),
            ServerBody::Goaway { reconnect_in_ms, reason } => {
                put_varint(out, 1, *reconnect_in_ms);
                put_bytes(out, 2, reason.as_bytes());
            }
            ServerBody::Ping | ServerBody::Pong => {}
        }
    }
}

impl Fields for Connected {
    fn write(&self, out: &mut impl Sink) {
        put_bytes(out, 1, &self.session_id.to_bytes());
        put_bytes(out, 2, self.user_id.as_bytes());
        put_bytes(out, 3, self.device_id.as_bytes());
        put_varint(out, 4, self.server_time);
        put_varint(out, 5, self.ping_ms);
        put_message(out, 6, &self.limits);
        put_varint(out, 7, self.expires_at);
        put_bytes(out, 8, self.epoch.as_bytes());
    }
}

impl Fields for ServerLimits {
    fn write(&self, out: &mut impl Sink) {
        put_varint(out, 1, self.body_bytes_max);
        put_varint(out, 2, self.frame_bytes_max);
        put_varint(out, 3, u64::from(self.sends_in_flight_max));
        put_varint(out, 4, u64::from(self.page_messages_max));
    }
}

impl Fields for Message {
    fn write(&self, out: &mut impl Sink) {
        put_bytes(out, 1, self.conversation_id.as_bytes());
        put_varint(out, 2, self.seq);
        put_bytes(out, 3, self.sender_id.as_bytes());
        put_bytes(out, 4, self.device_id.as_bytes());
        put_bytes(out, 5, self.client_msg_id.as_bytes());
        put_varint(out, 6, self.time);
        put_bytes(out, 7, self.content_type.as_bytes());
        put_bytes(out, 8, &self.body);
        if let Some(event) = &self.event {
            put_message(out, 9, event);
        }
    }
}

impl Fields for Event {
    fn write(&self, out: &mut impl Sink) {
        struct Inner<'a>(&'a Event);
        impl Fields for Inner<'_> {
            fn write(&self, out: &mut impl Sink) {
                let Event::Created { kind, title, member_count } = self.0;
                put_varint(out, 1, kind_number(*kind));
                if let Some(title) = title {
                    put_bytes_always(out, 2, title.as_bytes());
                }
                put_varint(out, 3, u64::from(*member_count));
            }
        }
        match self {
            Event::Created { .. } => put_message(out, 1, &Inner(self)),
        }
    }
}

impl Fields for Heads {
    fn write(&self, out: &mut impl Sink) {
        for head in &self.conversations {
            put_message(out, 1, head);
        }
        if let Some(next) = &self.next {
            put_bytes_always(out, 2, next.as_bytes());
        }
        put_varint(out, 3, u64::from(self.more));
        if let Some(epoch) = &self.epoch {
            put_bytes_always(out, 4, epoch.as_bytes());
        }
    }
}

impl Fields for Head {
    fn write(&self, out: &mut impl Sink) {
        put_bytes(out, 1, self.conversation_id.as_bytes());
        let optional = [(2, self.first_seq), (3, Some(self.last_seq)), (4, self.read_seq), (5, self.delivered_seq)];
        for (number, seq) in optional {
            match seq {
                Some(0) if number == 3 => {}
                Some(seq) => put_varint_always(out, number, seq),
                None => {}
            }
        }
    }
}

impl Fields for Page {
    fn write(&self, out: &mut impl Sink) {
        put_bytes(out, 1, self.conversation_id.as_bytes());
        put_varint(out, 2, self.from);
        put_varint(out, 3, self.to);
        for message in &self.messages {
            put_message(out, 4, message);
        }
        put_varint(out, 5, u64::from(self.more));
        put_bytes(out, 6, self.epoch.as_bytes());
    }
}

/// A conversation's kind as the schema numbers it.
pub(super) fn kind_number(kind: ConversationKind) -> u64 {
    match kind {
        ConversationKind::Direct => pb::ConversationKind::Direct as u64,
        ConversationKind::Group => pb::ConversationKind::Group as u64,
    }
}

/// The kind with this number in the schema.
pub(super) fn kind_of_number(number: i32) -> Option<ConversationKind> {
    match pb::ConversationKind::try_from(number) {
        Ok(pb::ConversationKind::Direct) => Some(ConversationKind::Direct),
        Ok(pb::ConversationKind::Group) => Some(ConversationKind::Group),
        _ => None,
    }
}

const NOT_AN_ID: Malformed = "an id is not 16 bytes";

pub(super) fn decode(payload: Bytes) -> Result<Option<ServerFrame>, Malformed> {
    let frame = pb::ServerFrame::decode(payload).map_err(|_| "the frame does not decode")?;
    let Some(body) = frame.body else { return Ok(None) };
    Ok(Some(ServerFrame { id: frame.id, body: body_of(body)? }))
}

fn body_of(body: pb::server_frame::Body) -> Result<ServerBody, Malformed> {
    use pb::server_frame::Body;
    Ok(match body {
        Body::Connected(connected) => ServerBody::Connected(connected_of(connected)?),
        Body::Sent(sent) => ServerBody::Sent {
            client_msg_id: send_id(&sent.client_msg_id)?,
            conversation_id: ConversationId::from_slice(&sent.conversation_id).map_err(|_| NOT_AN_ID)?,
            seq: sent.seq,
            time: sent.time,
        },
        Body::Rejected(rejected) => ServerBody::Rejected {
            client_msg_id: send_id(&rejected.client_msg_id)?,
            code: code_of(&rejected.code),
            message: rejected.message,
        },
        Body::Retry(retry) => ServerBody::Retry {
            client_msg_id: send_id(&retry.client_msg_id)?,
            retry_after_ms: retry.retry_after_ms,
            code: code_of(&retry.code),
        },
        Body::Message(message) => ServerBody::Message(message_of(message)?),
        Body::Heads(heads) => ServerBody::Heads(heads_of(heads)?),
        Body::Page(page) => ServerBody::Page(page_of(page)?),
        Body::Error(error) => ServerBody::Error {
            code: code_of(&error.code),
            message: error.message,
            retry_after_ms: error.retry_after_ms,
            fatal: error.fatal,
        },
        Body::Reload(reload) => ServerBody::Reload { reason: reload.reason },
        Body::Goaway(goaway) => ServerBody::Goaway { reconnect_in_ms: goaway.reconnect_in_ms, reason: goaway.reason },
        Body::Ping(_) => ServerBody::Ping,
        Body::Pong(_) => ServerBody::Pong,
    })
}

/// The code of a text; one of a later version is at least known to be an error.
pub(super) fn code_of(text: &str) -> ErrorCode {
    ErrorCode::parse(text).unwrap_or(ErrorCode::Internal)
}

fn send_id(bytes: &[u8]) -> Result<ClientMsgId, Malformed> {
    ClientMsgId::from_slice(bytes).map_err(|_| NOT_AN_ID)
}

fn connected_of(connected: pb::Connected) -> Result<Connected, Malformed> {
    let limits = connected.limits.unwrap_or_default();
    Ok(Connected {
        session_id: SessionId::from_slice(&connected.session_id).map_err(|_| NOT_AN_ID)?,
        user_id: UserId::from_slice(&connected.user_id).map_err(|_| NOT_AN_ID)?,
        device_id: DeviceId::from_slice(&connected.device_id).map_err(|_| NOT_AN_ID)?,
        server_time: connected.server_time,
        ping_ms: connected.ping_ms,
        limits: ServerLimits {
            body_bytes_max: limits.body_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            sends_in_flight_max: limits.sends_in_flight_max,
            page_messages_max: limits.page_messages_max,
        },
        expires_at: connected.expires_at,
        epoch: Epoch::from_slice(&connected.epoch).map_err(|_| NOT_AN_ID)?,
    })
}

/// The domain's message of prost's; the body stays a slice of the payload.
pub(super) fn message_of(message: pb::Message) -> Result<Message, Malformed> {
    Ok(Message {
        conversation_id: ConversationId::from_slice(&message.conversation_id).map_err(|_| NOT_AN_ID)?,
        seq: message.seq,
        sender_id: UserId::from_slice(&message.sender_id).map_err(|_| NOT_AN_ID)?,
        device_id: DeviceId::from_slice(&message.device_id).map_err(|_| NOT_AN_ID)?,
        client_msg_id: send_id(&message.client_msg_id)?,
        time: message.time,
        content_type: message.content_type,
        body: message.body,
        event: message.event.and_then(event_of),
    })
}

/// An event of a later version is none: its message is shown as nothing, its seq counts.
fn event_of(event: pb::Event) -> Option<Event> {
    match event.event? {
        pb::event::Event::Created(created) => Some(Event::Created {
            kind: kind_of_number(created.kind)?,
            title: created.title,
            member_count: created.member_count,
        }),
    }
}

fn heads_of(heads: pb::Heads) -> Result<Heads, Malformed> {
    let head_of = |head: pb::Head| {
        Ok(Head {
            conversation_id: ConversationId::from_slice(&head.conversation_id).map_err(|_| NOT_AN_ID)?,
            first_seq: head.first_seq,
            last_seq: head.last_seq,
            read_seq: head.read_seq,
            delivered_seq: head.delivered_seq,
        })
    };
    Ok(Heads {
        conversations: heads.conversations.into_iter().map(head_of).collect::<Result<_, Malformed>>()?,
        next: heads.next,
        more: heads.more,
        epoch: heads.epoch.map(|epoch| Epoch::from_slice(&epoch).map_err(|_| NOT_AN_ID)).transpose()?,
    })
}

fn page_of(page: pb::Page) -> Result<Page, Malformed> {
    Ok(Page {
        conversation_id: ConversationId::from_slice(&page.conversation_id).map_err(|_| NOT_AN_ID)?,
        from: page.from,
        to: page.to,
        messages: page.messages.into_iter().map(message_of).collect::<Result<_, Malformed>>()?,
        more: page.more,
        epoch: Epoch::from_slice(&page.epoch).map_err(|_| NOT_AN_ID)?,
    })
}
