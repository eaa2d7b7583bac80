//! What the application is told, and what it can look at from outside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use roost_protocol::codes::ReconnectPolicy;
use roost_protocol::frames::{ClientFrame, Message, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, ErrorCode, Seq, SessionId, TimeMs, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::outbox::Entry;

/// What became of a send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is committed.
    Sent {
        /// Its number in the conversation.
        seq: Seq,
        /// The server's time for it.
        time: TimeMs,
    },
    /// It is definitely not stored, and never will be under its id.
    Rejected {
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        message: String,
    },
}

/// What the application is told.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A session is there.
    Connected {
        /// The session.
        session_id: SessionId,
        /// Whose it is.
        user_id: UserId,
        /// Of which device.
        device_id: DeviceId,
    },
    /// All heads have come; what they know of is fetched and shown from now on.
    Synced,
    /// A message, in its place: per conversation seq rises by one, or over what is not for this user.
    Message(Message),
    /// The verdict on a send that nobody waits for (of a restored state, or the handle was dropped).
    Verdict {
        /// The send.
        client_msg_id: ClientMsgId,
        /// Its conversation.
        conversation_id: ConversationId,
        /// What became of it.
        outcome: Outcome,
    },
    /// The session, or an attempt to get one, is over.
    Disconnected {
        /// The close code, if there was one.
        code: Option<u16>,
        /// Why, in words.
        reason: String,
        /// The next attempt comes after this; never, if absent.
        reconnect_in: Option<Duration>,
    },
    /// The server's history is another one: forget all messages, they come anew.
    Reloaded {
        /// Why, in words.
        reason: String,
    },
    /// There are new tokens to be stored: `Client::tokens`.
    TokensChanged,
    /// The client has stopped by itself; a person has to act.
    Stopped {
        /// Why, in words.
        reason: String,
    },
}

/// A look at every frame, for tests and tools. Called on the client's task: be quick.
pub trait Observer: Send + Sync + 'static {
    /// Something happened at this (monotonic) time.
    fn observe(&self, at: Instant, what: Observed<'_>);
}

/// What an [`Observer`] sees.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Observed<'a> {
    /// A WebSocket is open; `connect` follows.
    Opened,
    /// A frame goes out. It may still be lost.
    Out(&'a ClientFrame<'a>),
    /// A frame came in.
    In(&'a ServerFrame),
    /// The WebSocket is gone.
    Closed {
        /// The close code, if there was one.
        code: Option<u16>,
        /// What the client does about it.
        policy: ReconnectPolicy,
    },
}

/// All that a client needs to go on after its process ended: what the application has taken out of the events, what
/// has no verdict yet. Store it as you like (it is serde's).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SavedState {
    /// The server's history that this belongs to.
    pub epoch: Option<Epoch>,
    /// The sync cursor that stands for `conversations`.
    pub cursor: Option<String>,
    /// Each conversation's place.
    pub conversations: Vec<SavedConversation>,
    /// Sends without a verdict, in order within each conversation.
    pub outbox: Vec<SavedSend>,
}

/// One conversation's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedConversation {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The application has seen everything up to here.
    pub shown: Seq,
    /// The highest seq heard of.
    pub target: Seq,
}

/// A send without a verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedSend {
    /// Its name, the same for every attempt.
    pub client_msg_id: ClientMsgId,
    /// Where it goes.
    pub conversation_id: ConversationId,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

impl From<&Entry> for SavedSend {
    fn from(entry: &Entry) -> Self {
        let Entry { client_msg_id, conversation_id, content_type, body } = entry.clone();
        Self { client_msg_id, conversation_id, content_type, body }
    }
}

impl From<SavedSend> for Entry {
    fn from(send: SavedSend) -> Self {
        let SavedSend { client_msg_id, conversation_id, content_type, body } = send;
        Self { client_msg_id, conversation_id, content_type, body }
    }
}

/// What the application has taken out of the events: a saved state goes no further than this.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How often it was told to start anew.
    pub(crate) reloads: u64,
    pub(crate) shown: HashMap<ConversationId, Seq>,
}

/// The events of a client, in order. While nobody takes them out, messages wait on the server. Dropped, the client goes
/// on and discards them.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: mpsc::Receiver<Event>,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Events {
    /// The next event; `None` once the client has stopped and all is taken.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await?;
        self.note(&event);
        Some(event)
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        self.note(&event);
        Some(event)
    }

    fn note(&self, event: &Event) {
        match event {
            Event::Message(message) => {
                self.seen.lock().shown.insert(message.conversation_id, message.seq);
            }
            Event::Reloaded { .. } => {
                let mut seen = self.seen.lock();
                seen.shown.clear();
                seen.reloads += 1;
            }
            _ => {}
        }
    }
}

impl futures::Stream for Events {
    type Item = Event;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        let this = self.get_mut();
        let polled = this.receiver.poll_recv(context);
        if let std::task::Poll::Ready(Some(event)) = &polled {
            this.note(event);
        }
        polled
    }
}
