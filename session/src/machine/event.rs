//! What the session tells and is told.

use roost_protocol::frames::{HistoryRange, Send};
use roost_protocol::{ClientMsgId, CloseCode, ConversationId, DeviceId, Seq, TimeMs, UserId};

use crate::framing::handshake::{HttpError, PlainHttp, Request as Head};

/// Something that the session asks the gateway for, while bytes of its peer are read.
#[derive(Debug)]
pub enum Event<'a> {
    /// Not a session: hand the connection over, or refuse it with `answer_http`.
    Http(Box<PlainHttp>),
    /// The handshake is in order. Whoever does not want this session puts a refusal in place of `None` before returning.
    Upgrade {
        /// The HTTP head, for the forwarding headers of configured proxies.
        head: &'a Head,
        /// The answer; nothing means that the session begins.
        refusal: &'a mut Option<HttpError>,
    },
    /// Verify the token and call `authenticated`. Nothing more is read meanwhile, unless it is a refresh.
    Authenticate {
        /// The token. Must not be logged.
        token: &'a str,
        /// What it is for.
        purpose: Purpose,
    },
    /// Register the session, then call `registered`.
    Register,
    /// Put the send into the log, then call `settled`, `rejected` or `send_failed`.
    Send {
        /// The session's number for it.
        request: u32,
        /// The message; its body still lies in the receive buffer.
        send: &'a Send<'a>,
    },
}

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To begin.
    Connect,
    /// To go on.
    Refresh,
}

/// Who a valid token says the client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The user.
    pub user_id: UserId,
    /// The device.
    pub device_id: DeviceId,
    /// When the token ends.
    pub expires_at: TimeMs,
}

/// Why a token was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is not valid.
    Unauthenticated,
    /// The account may not connect.
    Forbidden,
    /// It could not be checked now.
    Unavailable,
}

/// A request that is answered from the Store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The client's number for it, for the answer to carry.
    pub id: Option<u32>,
    /// What is asked.
    pub kind: RequestKind,
}

/// What a request asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// Heads since a cursor.
    Sync {
        /// The cursor.
        since: Option<Box<str>>,
    },
    /// A page.
    History {
        /// Of this conversation.
        conversation_id: ConversationId,
        /// On this side of that seq.
        range: HistoryRange,
        /// At most so many, if the client says so.
        limit: Option<u32>,
    },
}

/// A message of the session's own user that is known to be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The sender's name for it.
    pub client_msg_id: ClientMsgId,
    /// Its number.
    pub seq: Seq,
    /// Its time.
    pub time: TimeMs,
    /// What it says, by [`content_of`](super::content_of); absent where only the verdict is known. A send in flight
    /// under the same id that says something else waits for its own verdict.
    pub content: Option<u64>,
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// We closed with this code.
    Ours(CloseCode),
    /// The peer closed, with this code if it gave one.
    Peers(Option<u16>),
    /// Its handshake was refused with this status, or it was plain HTTP.
    Http(u16),
    /// The connection broke.
    Lost,
}
