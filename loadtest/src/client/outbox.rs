//! Messages of one session that have no verdict yet: sent in order, repeated in order, dropped only when answered.

use std::collections::VecDeque;

use roost_protocol::ClientMsgId;
use roost_protocol::limits::SENDS_IN_FLIGHT_MAX;

use crate::clock::Nanos;

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The same for every attempt.
    pub client_msg_id: ClientMsgId,
    /// The plan's number of its conversation.
    pub conversation: u32,
    /// When it was due.
    pub due: Nanos,
}

/// The messages of a session, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// So many of them, from the front, are written on this connection.
    written: usize,
    /// The server asked to wait.
    held: bool,
}

impl Outbox {
    /// One more.
    pub fn push(&mut self, outgoing: Outgoing) {
        self.waiting.push_back(outgoing);
    }

    /// The next one to be written now.
    pub fn next(&mut self) -> Option<Outgoing> {
        if self.held || self.written >= SENDS_IN_FLIGHT_MAX {
            return None;
        }
        let next = self.waiting.get(self.written).copied()?;
        self.written += 1;
        Some(next)
    }

    /// A verdict has come, or the message itself.
    pub fn done(&mut self, client_msg_id: ClientMsgId) -> Option<Outgoing> {
        let at = self.waiting.iter().position(|one| one.client_msg_id == client_msg_id)?;
        self.written -= usize::from(at < self.written);
        self.waiting.remove(at)
    }

    /// The server asked to wait; false where it had asked already.
    pub fn hold(&mut self) -> bool {
        !std::mem::replace(&mut self.held, true)
    }

    /// Everything is to be written again from the first one: a wait is over, or the connection is a new one.
    pub fn again(&mut self) {
        self.held = false;
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(due: Nanos) -> Outgoing {
        Outgoing { client_msg_id: ClientMsgId::new(), conversation: 0, due }
    }

    #[test]
    fn messages_go_out_in_order_and_again_from_the_first_unanswered() {
        let mut outbox = Outbox::default();
        let three = [1, 2, 3].map(outgoing);
        three.into_iter().for_each(|one| outbox.push(one));
        assert_eq!([outbox.next(), outbox.next()], [Some(three[0]), Some(three[1])]);
        assert_eq!(outbox.done(three[0].client_msg_id), Some(three[0]));
        assert!(outbox.hold() && !outbox.hold());
        assert_eq!(outbox.next(), None);
        outbox.again();
        assert_eq!([outbox.next(), outbox.next(), outbox.next()], [Some(three[1]), Some(three[2]), None]);
        assert_eq!(outbox.done(three[0].client_msg_id), None);
        assert_eq!(outbox.waiting.len(), 2);
    }

    #[test]
    fn no_more_are_in_flight_than_the_protocol_allows() {
        let mut outbox = Outbox::default();
        (0..300).for_each(|due| outbox.push(outgoing(due)));
        let written: Vec<_> = std::iter::from_fn(|| outbox.next()).collect();
        assert_eq!(written.len(), SENDS_IN_FLIGHT_MAX);
        outbox.done(written[5].client_msg_id);
        assert!(outbox.next().is_some() && outbox.next().is_none());
    }
}
