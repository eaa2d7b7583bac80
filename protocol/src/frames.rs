//! The frames between client and server, as domain types. The binary form (protobuf) and the JSON form are in `wire`.
//!
//! A client frame borrows from the receive buffer, so that a body is copied once: into the log record.

use std::borrow::Cow;

use bytes::Bytes;

use crate::ids::{ClientMsgId, ConversationId, DeviceId, Epoch, SessionId, UserId};
use crate::{ErrorCode, Seq, TimeMs};

/// How frames are written on a connection, chosen by the WebSocket subprotocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// `roost.v1`: protobuf in binary messages.
    Binary,
    /// `roost.v1.json`: JSON in text messages.
    Json,
}

impl Form {
    /// Both forms.
    pub const ALL: [Form; 2] = [Form::Binary, Form::Json];

    /// The WebSocket subprotocol that names this form.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Form::Binary => "roost.v1",
            Form::Json => "roost.v1.json",
        }
    }
}

/// A frame from a client. `id` comes back with the direct answer.
#[derive(Clone, PartialEq, Debug)]
pub struct ClientFrame<'a> {
    /// The client's number for this request.
    pub id: Option<u32>,
    /// What it asks.
    pub body: ClientBody<'a>,
}

/// What a client frame asks.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientBody<'a> {
    /// The first frame: who this is. Without a token the `Authorization` header of the handshake serves.
    Connect {
        /// The access token.
        token: Option<Cow<'a, str>>,
        /// If given, it must be the token's device.
        device_id: Option<DeviceId>,
        /// The client's name and version, for logs.
        client: Cow<'a, str>,
    },
    /// A message.
    Send(Send<'a>),
    /// Ask for the heads of the conversations changed since the cursor; without one, of all.
    Sync {
        /// The `next` of an earlier answer.
        since: Option<Cow<'a, str>>,
    },
    /// Ask for a page of a conversation.
    History {
        /// Whose page.
        conversation_id: ConversationId,
        /// Which side of which seq.
        range: HistoryRange,
        /// At most so many messages; absent or too many means the limit.
        limit: Option<u32>,
    },
    /// A new access token of the same device, before the old one ends.
    Refresh {
        /// The access token.
        token: Cow<'a, str>,
    },
    /// Asks for `pong`.
    Ping,
    /// Answers `ping`.
    Pong,
}

/// A message to be numbered. May be retried for ever under the same `client_msg_id`.
#[derive(Clone, PartialEq, Debug)]
pub struct Send<'a> {
    /// The client's name for this message.
    pub client_msg_id: ClientMsgId,
    /// Where it goes.
    pub conversation_id: ConversationId,
    /// What the body is, a MIME type.
    pub content_type: Cow<'a, str>,
    /// Opaque to the server.
    pub body: Cow<'a, [u8]>,
}

/// Which messages of a conversation a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HistoryRange {
    /// The oldest messages with a seq above this one.
    After(Seq),
    /// The newest messages with a seq below this one.
    Before(Seq),
}

/// A frame from the server.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerFrame {
    /// The `id` of the request that this answers.
    pub id: Option<u32>,
    /// What it says.
    pub body: ServerBody,
}

/// What a server frame says.
#[derive(Clone, PartialEq, Debug)]
pub enum ServerBody {
    /// The session is registered: live messages come from now on. The client syncs after it.
    Connected(Connected),
    /// The message is committed at `seq`.
    Sent {
        /// The send's id.
        client_msg_id: ClientMsgId,
        /// Its conversation.
        conversation_id: ConversationId,
        /// Its number.
        seq: Seq,
        /// The server's time for it.
        time: TimeMs,
    },
    /// Definitely not stored, and no later attempt with this id will be.
    Rejected {
        /// The send's id.
        client_msg_id: ClientMsgId,
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        message: String,
    },
    /// Not known to be stored: send it again under the same id.
    Retry {
        /// The send's id.
        client_msg_id: ClientMsgId,
        /// Wait at least this long.
        retry_after_ms: u64,
        /// Why.
        code: ErrorCode,
    },
    /// A numbered message.
    Message(Message),
    /// The newest seqs: an answer to `sync` (with `next`), or unsolicited (without).
    Heads(Heads),
    /// An answer to `history`.
    Page(Page),
    /// A request failed, or (fatal) the connection ends.
    Error {
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        message: String,
        /// Wait at least this long before trying again; absent where a retry cannot help.
        retry_after_ms: Option<u64>,
        /// The connection is closed after this.
        fatal: bool,
    },
    /// What the client holds cannot be continued: start from an empty sync.
    Reload {
        /// Why, in words.
        reason: String,
    },
    /// Reconnect after so long; the server closes soon.
    Goaway {
        /// Wait this long.
        reconnect_in_ms: u64,
        /// Why, in words.
        reason: String,
    },
    /// Asks for `pong`.
    Ping,
    /// Answers `ping`.
    Pong,
}

/// The answer to `connect`.
#[derive(Clone, PartialEq, Debug)]
pub struct Connected {
    /// This session.
    pub session_id: SessionId,
    /// The token's user.
    pub user_id: UserId,
    /// The token's device.
    pub device_id: DeviceId,
    /// The server's clock.
    pub server_time: TimeMs,
    /// The server pings after so much idleness.
    pub ping_ms: u64,
    /// What this server accepts.
    pub limits: ServerLimits,
    /// When the token ends; send `refresh` before.
    pub expires_at: TimeMs,
    /// The Store's epoch.
    pub epoch: Epoch,
}

/// The limits that a client needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct ServerLimits {
    /// Largest body of a message.
    pub body_bytes_max: u64,
    /// Largest frame.
    pub frame_bytes_max: u64,
    /// Sends without a verdict at one time.
    pub sends_in_flight_max: u32,
    /// Most messages in a page.
    pub page_messages_max: u32,
}

impl ServerLimits {
    /// This build's limits.
    pub const OURS: ServerLimits = ServerLimits {
        body_bytes_max: crate::limits::BODY_BYTES_MAX as u64,
        frame_bytes_max: crate::limits::CLIENT_FRAME_BYTES_MAX as u64,
        sends_in_flight_max: crate::limits::SENDS_IN_FLIGHT_MAX as u32,
        page_messages_max: crate::limits::PAGE_MESSAGES_MAX,
    };
}

/// A numbered message as every session of every member sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Its number in the conversation.
    pub seq: Seq,
    /// Who sent it.
    pub sender_id: UserId,
    /// From which device.
    pub device_id: DeviceId,
    /// The sender's name for it.
    pub client_msg_id: ClientMsgId,
    /// The server's time for it.
    pub time: TimeMs,
    /// What the body is.
    pub content_type: String,
    /// Opaque to the server.
    pub body: Bytes,
    /// Set where this number belongs to a change of the conversation itself.
    pub event: Option<Event>,
}

/// A change of a conversation that takes a seq of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The conversation was made; always seq 1.
    Created {
        /// Direct or group.
        kind: ConversationKind,
        /// Its title, for groups that have one.
        title: Option<String>,
        /// How many members it has.
        member_count: u32,
    },
}

/// Direct (one per pair of users) or group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConversationKind {
    /// Two users; the id is derived from them.
    Direct,
    /// 2 to 10,000 users.
    Group,
}

impl ConversationKind {
    /// The kind in JSON and in the Store.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConversationKind::Direct => "direct",
            ConversationKind::Group => "group",
        }
    }

    /// The kind of a text.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "direct" => Some(ConversationKind::Direct),
            "group" => Some(ConversationKind::Group),
            _ => None,
        }
    }
}

/// Heads of conversations.
#[derive(Clone, PartialEq, Debug)]
pub struct Heads {
    /// One per conversation.
    pub conversations: Vec<Head>,
    /// The cursor for the next sync; absent where the heads are unsolicited.
    pub next: Option<String>,
    /// More heads follow `next` right now.
    pub more: bool,
    /// The Store's epoch; absent where the heads are unsolicited.
    pub epoch: Option<Epoch>,
}

/// Where one conversation stands for one user. The fields but last_seq are absent where the heads are unsolicited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What is before it is not for this user.
    pub first_seq: Option<Seq>,
    /// The newest message for this user.
    pub last_seq: Seq,
    /// Read up to here on some device.
    pub read_seq: Option<Seq>,
    /// Delivered up to here on some device.
    pub delivered_seq: Option<Seq>,
}

/// A page of history. It settles the range `from..=to`: what is absent in it is not for this user, and no gap.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// First seq settled; `from > to` settles nothing.
    pub from: Seq,
    /// Last seq settled.
    pub to: Seq,
    /// In rising order of seq, whichever way was asked.
    pub messages: Vec<Message>,
    /// There is more beyond this page in the direction asked.
    pub more: bool,
    /// The Store's epoch.
    pub epoch: Epoch,
}

/// Why a frame does not decode. Carries what could be read, so that the answer finds its request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// The request's id, where it could be read.
    pub id: Option<u32>,
    /// The send's id, where it could be read: then the answer is `rejected`.
    pub client_msg_id: Option<ClientMsgId>,
    /// `malformed`, or `invalid_field` with the field named in the message.
    pub code: ErrorCode,
    /// What is wrong, in words, without any of the client's bytes.
    pub message: String,
}
