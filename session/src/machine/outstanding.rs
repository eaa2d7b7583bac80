//! Sends, requests and refreshes without an answer, and the conversations whose order waits for a retry.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use roost_protocol::frames::Send;
use roost_protocol::{ClientMsgId, ConversationId};

use super::{Request, Settings};
use crate::rate::Bucket;

#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// In the order of the sends; all have the same time to live, so the first one's deadline is the earliest.
    sends: VecDeque<InFlight>,
    /// At most one per conversation.
    blocked: Vec<Blocked>,
    requests: VecDeque<Request>,
    /// A request has been started and not answered.
    answering: bool,
    /// A refresh whose token is being verified, with its frame's id.
    pub(super) refresh: Option<Option<u32>>,
}

/// A send whose verdict is outstanding.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: u32,
    /// The frame's id, for the answer to carry.
    pub(super) id: Option<u32>,
    pub(super) client_msg_id: ClientMsgId,
    pub(super) conversation_id: ConversationId,
    content: u64,
    deadline_ms: u64,
}

/// A send that was answered `retry`: the later ones of its conversation wait until it comes again, or is known to be
/// committed.
#[derive(Debug)]
struct Blocked {
    conversation_id: ConversationId,
    client_msg_id: ClientMsgId,
    request: u32,
}

/// What becomes of a send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Into the log with it.
    Log,
    /// The same send is in flight: one verdict answers both.
    Duplicate,
    /// The same id is in flight with another content.
    Mismatch,
    /// An earlier send of the conversation is to come first.
    Order,
    /// Too many in flight.
    Busy,
    /// Too many a second.
    TooFast {
        /// Until the next one may come.
        wait_ms: u64,
    },
}

impl Outstanding {
    pub(super) fn is_idle(&self) -> bool {
        self.sends.is_empty()
            && self.blocked.is_empty()
            && self.requests.is_empty()
            && !self.answering
            && self.refresh.is_none()
    }

    pub(super) fn sends_in_flight(&self) -> usize {
        self.sends.len()
    }

    pub(super) fn earliest_deadline(&self) -> Option<u64> {
        self.sends.front().map(|send| send.deadline_ms)
    }

    /// Decides about a send that would be number `request`.
    pub(super) fn admit(
        &mut self,
        send: &Send<'_>,
        id: Option<u32>,
        request: u32,
        now_ms: u64,
        settings: &Settings,
        bucket: &mut Bucket,
    ) -> Admission {
        let (conversation_id, client_msg_id) = (send.conversation_id, send.client_msg_id);
        let content = content_of(&send.content_type, &send.body);
        if let Some(known) = self.find(conversation_id, client_msg_id) {
            if known.content != content {
                return Admission::Mismatch;
            }
            // The newest frame's id: its sender no longer waits for the older one's.
            known.id = id;
            return Admission::Duplicate;
        }
        if let Some(at) = self.blocked.iter().position(|blocked| blocked.conversation_id == conversation_id) {
            if self.blocked[at].client_msg_id != client_msg_id {
                return Admission::Order;
            }
            self.blocked.swap_remove(at);
        }
        if self.sends.len() >= settings.sends_in_flight_max || self.blocked.len() >= settings.sends_in_flight_max {
            self.block(conversation_id, client_msg_id, request, settings);
            return Admission::Busy;
        }
        if let Err(wait_ms) = bucket.take(settings.sends, now_ms) {
            self.block(conversation_id, client_msg_id, request, settings);
            return Admission::TooFast { wait_ms };
        }
        let deadline_ms = now_ms + settings.timings.send_deadline_ms;
        self.sends.push_back(InFlight { request, id, client_msg_id, conversation_id, content, deadline_ms });
        Admission::Log
    }

    /// Takes the send with this number out of flight.
    pub(super) fn take(&mut self, request: u32) -> Option<InFlight> {
        let at = self.sends.iter().position(|send| send.request == request)?;
        self.sends.remove(at)
    }

    /// Takes the first send out of flight whose time has passed.
    pub(super) fn take_overdue(&mut self, now_ms: u64) -> Option<InFlight> {
        self.sends.pop_front_if(|send| send.deadline_ms <= now_ms)
    }

    /// What became of this id is known: nobody waits for it any more, unless in flight is another content than the one
    /// that is known. Says whether somebody did wait, with the frame's id.
    pub(super) fn resolve(
        &mut self,
        conversation: ConversationId,
        client_msg_id: ClientMsgId,
        content: Option<u64>,
    ) -> Option<Option<u32>> {
        let blocked = self
            .blocked
            .iter()
            .position(|blocked| blocked.conversation_id == conversation && blocked.client_msg_id == client_msg_id);
        if let Some(at) = blocked {
            self.blocked.swap_remove(at);
        }
        let in_flight = self
            .sends
            .iter()
            .position(|send| send.conversation_id == conversation && send.client_msg_id == client_msg_id)
            .filter(|&at| content.is_none_or(|content| content == self.sends[at].content))
            .and_then(|at| self.sends.remove(at));
        in_flight.map(|send| send.id).or(blocked.map(|_| None))
    }

    /// The send was answered `retry`: it comes first when the conversation goes on. Of several the earliest counts.
    pub(super) fn block(
        &mut self,
        conversation_id: ConversationId,
        client_msg_id: ClientMsgId,
        request: u32,
        settings: &Settings,
    ) {
        let room = self.blocked.len() < 2 * settings.sends_in_flight_max;
        let known = self.blocked.iter_mut().find(|blocked| blocked.conversation_id == conversation_id);
        match known {
            // Numbers wrap, so they are compared by their distance.
            Some(known) if (request.wrapping_sub(known.request) as i32) < 0 => {
                (known.client_msg_id, known.request) = (client_msg_id, request);
            }
            Some(_) => {}
            // Beyond this no new conversation is let in (`admit`), so that it has no order to lose.
            None if room => {
                self.blocked.push(Blocked { conversation_id, client_msg_id, request });
            }
            None => {}
        }
    }

    /// A rejected id comes never again: it must not hold the others up.
    pub(super) fn unblock(&mut self, client_msg_id: ClientMsgId) {
        self.blocked.retain(|blocked| blocked.client_msg_id != client_msg_id);
    }

    /// False if there are too many.
    pub(super) fn queue_request(&mut self, request: Request, settings: &Settings) -> bool {
        let room = self.requests.len() + usize::from(self.answering) < settings.requests_in_flight_max;
        if room {
            self.requests.push_back(request);
        }
        room
    }

    pub(super) fn start_request(&mut self) -> Option<Request> {
        if self.answering {
            return None;
        }
        let request = self.requests.pop_front();
        self.answering = request.is_some();
        request
    }

    pub(super) fn end_request(&mut self) {
        self.answering = false;
    }

    fn find(&mut self, conversation: ConversationId, client_msg_id: ClientMsgId) -> Option<&mut InFlight> {
        self.sends.iter_mut().find(|send| send.client_msg_id == client_msg_id && send.conversation_id == conversation)
    }
}

/// Tells a repeated send from another one under the same id. Not a digest: the Store has the last word.
pub fn content_of(content_type: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content_type.hash(&mut hasher);
    body.hash(&mut hasher);
    hasher.finish()
}
