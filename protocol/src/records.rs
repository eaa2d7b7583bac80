//! Log records: what stands in the topics `ingress` and `deliver`, with their origin and format version.

use std::borrow::Cow;

use bytes::Bytes;

use crate::frames::{ConversationKind, Message};
use crate::ids::{ClientMsgId, ConversationId, DeviceId, Incarnation, SessionId, UserId};
use crate::{Seq, TimeMs};

/// The format of records that this build writes and the highest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// Something that asks for a number, on its way to the persist worker.
#[derive(Clone, PartialEq, Debug)]
pub struct IngressRecord<'a> {
    /// Who asks. The server's value: never taken from a client's frame.
    pub actor: UserId,
    /// From which device.
    pub device: DeviceId,
    /// The actor's name for it: (conversation, actor, client_msg_id) is applied once.
    pub client_msg_id: ClientMsgId,
    /// When the gateway or api got it.
    pub time: TimeMs,
    /// Where the verdict goes; absent where nobody waits.
    pub origin: Option<Origin>,
    /// Applied only if the conversation's last seq is this one.
    pub if_last_seq: Option<Seq>,
    /// What is asked.
    pub action: Action<'a>,
}

impl IngressRecord<'_> {
    /// The conversation that numbers it.
    pub fn conversation_id(&self) -> ConversationId {
        match &self.action {
            Action::Send { conversation_id, .. } | Action::Create { conversation_id, .. } => *conversation_id,
        }
    }
}

/// What an ingress record asks.
#[derive(Clone, PartialEq, Debug)]
pub enum Action<'a> {
    /// Number a message.
    Send {
        /// Where it goes.
        conversation_id: ConversationId,
        /// What the body is.
        content_type: Cow<'a, str>,
        /// Opaque to the server.
        body: Cow<'a, [u8]>,
    },
    /// Make a conversation with its members; seq 1 is its `created` event.
    Create {
        /// The new conversation.
        conversation_id: ConversationId,
        /// Direct or group.
        kind: ConversationKind,
        /// For groups that have one.
        title: Option<Cow<'a, str>>,
        /// All members, the actor included, sorted, each once.
        members: Vec<UserId>,
    },
}

/// A process that gets verdicts: a gateway or an api.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// Where its Delivery listens; empty for the process itself in the embedded composition.
    pub address: String,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

/// Where a verdict goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The process that took the request.
    pub endpoint: Endpoint,
    /// The session at a gateway; absent for an api.
    pub session: Option<SessionId>,
    /// The process's own number for the request.
    pub request: u64,
}

/// A committed message on its way to the fan-out worker.
#[derive(Clone, PartialEq, Debug)]
pub struct DeliverRecord {
    /// The seq of the last membership event at or below the message: names the member list it goes to.
    pub members_version: Seq,
    /// The message.
    pub message: Message,
}

/// Why a record does not decode.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Not one of ours, or damaged: poison.
    #[error("not a record: {0}")]
    Poison(&'static str),
    /// Written by a newer build: not poison, the partition is given up until this build is replaced.
    #[error("record format {0} is newer than this build reads")]
    Newer(u32),
}

/// A record as encoded for the log.
pub type Encoded = Bytes;
