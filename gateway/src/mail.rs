//! The letters that a shard gets.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use roost_ports::delivery::Verdict;
use roost_ports::registry::SessionEntry;
use roost_protocol::frames::{Form, Message};
use roost_protocol::{Incarnation, SessionId, UserId};
use roost_session::machine::{Identity, Refusal, Settled, encode_message};
use tokio::sync::oneshot;

use crate::admission::Arrival;
use crate::ingress::Failed;
use crate::slab::Key;

/// A letter to a shard.
pub(crate) enum Mail {
    /// A connection that the accepting shard gives away.
    Connection(Arrival),
    /// Something to deliver.
    Delivery(Delivery),
    /// A token was verified.
    Authenticated { key: Key, result: Result<Identity, Refusal> },
    /// Sessions were registered, or cannot wait for it any longer.
    Registered(Vec<SessionId>),
    /// A sync or history was answered.
    Answer { key: Key, frame: Bytes, settled: Vec<Settled> },
    /// The log did not take these.
    AppendFailed(Vec<Failed>),
    /// Unsolicited heads for one session.
    Heads { session: SessionId, frame: Bytes },
    /// List live sessions, from this slot on.
    List { from_slot: u32, count: usize, reply: oneshot::Sender<Listed> },
    /// The gateway has another incarnation: close what belonged to the old one.
    NewLife(Incarnation),
    /// The Store has another history.
    Reload,
    /// Send everyone away within so many milliseconds; `late`: of which most have passed.
    Drain { grace_ms: u64, late: bool },
    /// Another process has the listener now.
    StopAccepting,
    /// Drop everything and end.
    Stop,
}

/// Live sessions of a shard.
pub(crate) struct Listed {
    pub(crate) sessions: Vec<(SessionEntry, Form)>,
    /// Where to go on; absent at the end.
    pub(crate) next_slot: Option<u32>,
}

/// A shard's part of a batch.
pub(crate) struct Delivery {
    pub(crate) items: Vec<Item>,
    /// What was reserved in the mailbox.
    pub(crate) bytes: usize,
    /// Acknowledges the batch when the last shard lets go of it.
    pub(crate) done: Arc<Done>,
}

/// Resolves a batch's future when dropped.
pub(crate) struct Done(pub(crate) Option<oneshot::Sender<()>>);

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            // Nobody may be waiting any more.
            let _ = done.send(());
        }
    }
}

/// One thing to deliver.
#[derive(Clone)]
pub(crate) enum Item {
    Verdict(Verdict),
    Message { to: Recipients, message: Arc<Encoded> },
    Heads { to: Recipients, frames: [Bytes; 2] },
}

/// For whom, in all shards: each takes its own.
#[derive(Clone)]
pub(crate) enum Recipients {
    Sessions(Arc<[SessionId]>),
    Users(Arc<[UserId]>),
}

/// A message with its frames: made once per form in use, by the first shard that has a session of that form.
pub(crate) struct Encoded {
    pub(crate) message: Message,
    frames: [OnceLock<Bytes>; 2],
}

/// From so many recipients on, a shard counts by itself who holds a frame.
const MANY: usize = 16;

/// A message's frames as one shard hands them out.
///
/// A frame of many recipients gets a counter of the shard's own: with one for all, the shards would spend their time
/// taking its cache line from each other, several times for each recipient.
pub(crate) struct Frames<'m> {
    message: &'m Encoded,
    many: bool,
    own: [Option<Bytes>; 2],
}

impl Frames<'_> {
    pub(crate) fn of(&mut self, form: Form) -> Bytes {
        let shared = self.message.frame(form);
        if !self.many {
            return shared.clone();
        }
        self.own[form as usize].get_or_insert_with(|| Bytes::from_owner(shared.clone())).clone()
    }
}

impl Recipients {
    /// How many of them there are in all shards.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Sessions(sessions) => sessions.len(),
            Self::Users(users) => users.len(),
        }
    }
}

impl Encoded {
    pub(crate) fn new(message: Message) -> Self {
        Self { message, frames: [const { OnceLock::new() }; 2] }
    }

    pub(crate) fn frames_for(&self, recipients: usize) -> Frames<'_> {
        Frames { message: self, many: recipients >= MANY, own: [None, None] }
    }

    fn frame(&self, form: Form) -> &Bytes {
        self.frames[form as usize].get_or_init(|| encode_message(&self.message, form))
    }
}
