//! Delivery: batches from workers to one life of a gateway or api process.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, ErrorCode, Seq, SessionId, TimeMs, UserId};

/// Whom an item is for, at the endpoint it is sent to.
#[derive(Clone, Debug, PartialEq)]
pub enum Audience {
    /// These sessions; those that are gone count as served.
    Sessions(Arc<[SessionId]>),
    /// Every session that the gateway holds of these users: for when the Registry cannot say.
    Users(Arc<[UserId]>),
    /// Every session of the gateway that holds any of the conversation's members: reserved for conversations that are
    /// expanded at the gateway.
    Everyone,
}

/// The persist worker's word on a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The session at a gateway; absent for an api.
    pub session: Option<SessionId>,
    /// The endpoint's own number for the request, from the record's origin.
    pub request: u64,
    /// The client's name for it.
    pub client_msg_id: ClientMsgId,
    /// The conversation that numbered it.
    pub conversation_id: ConversationId,
    /// What became of it.
    pub outcome: VerdictOutcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerdictOutcome {
    /// Committed at this number.
    Committed {
        /// Its number.
        seq: Seq,
        /// Its time.
        time: TimeMs,
    },
    /// Definitely not stored, now or later.
    Rejected {
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        message: String,
    },
}

/// One thing to deliver.
#[derive(Clone, Debug, PartialEq)]
pub enum DeliveryItem {
    /// For the origin of a request.
    Verdict(Verdict),
    /// A committed message: an encoded `DeliverRecord`, encoded to frames once at the gateway.
    Message {
        /// For whom.
        audience: Audience,
        /// The record's bytes.
        record: Bytes,
    },
    /// The newest seq of a conversation, unsolicited.
    Heads {
        /// For whom.
        audience: Audience,
        /// Its conversation.
        conversation_id: ConversationId,
        /// Its newest seq.
        last_seq: Seq,
    },
    /// Every session of the gateway is to sync, through the resume bucket: the log was out of range.
    SyncAll,
}

/// Items for one endpoint, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeliveryBatch {
    /// The items.
    pub items: Vec<DeliveryItem>,
}

impl DeliveryItem {
    /// What the item counts against [`OUTSTANDING_BYTES_MAX`]: about its size, whatever form it travels in.
    pub fn bytes(&self) -> usize {
        match self {
            DeliveryItem::Verdict(Verdict { outcome: VerdictOutcome::Rejected { message, .. }, .. }) => {
                ITEM_BYTES + message.len()
            }
            DeliveryItem::Verdict(_) | DeliveryItem::SyncAll => ITEM_BYTES,
            DeliveryItem::Message { audience, record } => ITEM_BYTES + audience.bytes() + record.len(),
            DeliveryItem::Heads { audience, .. } => ITEM_BYTES + audience.bytes(),
        }
    }
}

impl Audience {
    fn bytes(&self) -> usize {
        match self {
            Audience::Sessions(sessions) => sessions.len() * size_of::<SessionId>(),
            Audience::Users(users) => users.len() * size_of::<UserId>(),
            Audience::Everyone => 0,
        }
    }
}

impl DeliveryBatch {
    /// What the batch counts against [`OUTSTANDING_BYTES_MAX`].
    pub fn bytes(&self) -> usize {
        self.items.iter().map(DeliveryItem::bytes).sum()
    }
}

/// The most bytes outstanding to one endpoint, as [`DeliveryBatch::bytes`] counts them; beyond, `Busy`. A batch larger
/// than this never fits: the sender splits.
pub const OUTSTANDING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What an item counts besides its record and its audience.
const ITEM_BYTES: usize = 128;

/// Why a batch was not delivered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeliveryError {
    /// That life of the endpoint is over: its sessions are closed. Do not try again.
    #[error("the endpoint has another incarnation")]
    Gone,
    /// The endpoint's bounded buffer is full; try again soon, with less.
    #[error("the endpoint is busy")]
    Busy,
    /// No answer: the batch may or may not have arrived. Try again while the endpoint's lease lives.
    #[error("the endpoint does not answer: {0}")]
    Unavailable(String),
}

/// Resolves once the whole batch is in the session queues (or its sessions are closed).
pub type DeliveryFuture = BoxFuture<'static, Result<(), DeliveryError>>;

/// Sends batches to endpoints.
///
/// * **Order**: batches to one endpoint arrive in the order of the *calls*.
/// * **Acknowledged**: `Ok` means that every item is in the queues of the sessions it is for, or that those sessions
///   are closed. Not earlier: the settling of fan-out stands on it.
/// * **One life**: a batch for another incarnation is refused with `Gone` and touches nobody.
/// * **Bounded**: never more than [`OUTSTANDING_BYTES_MAX`] outstanding per endpoint; beyond, `Busy`.
/// * May lose payloads at any moment (and then says `Unavailable`); never acknowledges what it lost.
pub trait Delivery: Send + Sync + 'static {
    /// Puts the batch in line and resolves with what became of it. Dropping the future does not take it back.
    fn send(&self, to: &Endpoint, batch: DeliveryBatch) -> DeliveryFuture;
}

/// The receiving end, implemented by gateway and api: what Delivery's adapters call.
#[async_trait]
pub trait DeliverySink: Send + Sync + 'static {
    /// Which life this is; a batch for another one never reaches `deliver`.
    fn incarnation(&self) -> roost_protocol::Incarnation;

    /// Takes the batch in the order of the calls; resolves as [`Delivery::send`] does.
    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture;
}
