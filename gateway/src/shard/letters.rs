//! The shard's mail: deliveries, answers, and what concerns the gateway as a whole.

use roost_ports::delivery::{Verdict, VerdictOutcome};
use roost_ports::registry::SessionEntry;
use roost_protocol::SessionId;
use roost_session::machine::{Loss, Settled, content_of};

use super::{Shard, Tally};
use crate::driver::Driver;
use crate::ingress::Failed;
use crate::mail::{Delivery, Encoded, Frames, Item, Listed, Mail, Recipients};
use crate::slab::Key;

/// Slots looked at for one listing at most, so that an empty stretch of the slab costs no long pause.
const LIST_SLOTS: u32 = 16_384;

impl<D: Driver> Shard<D> {
    pub(super) fn take_mail(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.shared.mailboxes[self.index].take(&mut letters);
        for letter in letters.drain(..) {
            self.open(letter);
        }
        self.letters = letters;
    }

    fn open(&mut self, letter: Mail) {
        match letter {
            Mail::Connection(arrival) => self.adopt(arrival),
            Mail::Delivery(delivery) => self.deliver(delivery),
            Mail::Authenticated { key, result } => {
                self.with_events(key, |session, context, tell| session.authenticated(result, context, tell));
            }
            Mail::Registered(sessions) => sessions.into_iter().for_each(|session| self.registered(session)),
            Mail::Answer { key, frame, settled } => {
                let told = self.with_session(key, |session, context| {
                    let told = settled.iter().filter(|settled| session.settled(settled, context)).count();
                    session.answer(frame, context);
                    told
                });
                self.shared.metrics.settled.add(told.unwrap_or(0) as u64);
            }
            Mail::AppendFailed(failed) => self.sends_failed(failed),
            Mail::Heads { session, frame } => {
                if let Some(key) = self.key_of(session) {
                    self.shared.metrics.heads_unsolicited.add(1);
                    self.with_session(key, |session, context| session.deliver(frame, Loss::Never, context));
                }
            }
            Mail::List { from_slot, count, reply } => {
                // Whoever asked may have given up.
                let _ = reply.send(self.list(from_slot, count));
            }
            Mail::NewLife(incarnation) => self.begin_life(incarnation),
            Mail::Reload => self.for_all(|session, context| session.reload("the store has another history", context)),
            Mail::Drain { grace_ms, late } => self.begin_drain(grace_ms, late),
            Mail::StopAccepting => self.stop_accepting(),
            Mail::Stop => self.stopping = true,
        }
    }

    pub(super) fn sends_failed(&mut self, failed: Vec<Failed>) {
        for (key, request, code) in failed {
            self.with_session(key, |session, context| session.send_failed(request, code, context));
        }
    }

    fn registered(&mut self, session: SessionId) {
        let Some(key) = self.key_of(session) else { return };
        if self.suspended {
            return;
        }
        let epoch = *self.shared.epoch.read();
        self.with_events(key, |machine, context, tell| machine.registered(session, epoch, context, tell));
        self.became_live(key);
    }

    /// Puts every item into the queues it is for. The batch is acknowledged when it is let go of, at the end: then
    /// each of its sessions has it, or is closed, or was not live and syncs.
    fn deliver(&mut self, delivery: Delivery) {
        for item in &delivery.items {
            match item {
                Item::Verdict(verdict) => self.verdict(verdict),
                Item::Message { to, message } => {
                    let mut frames = message.frames_for(to.len());
                    self.for_recipients(to, |shard, key| shard.message(key, message, &mut frames));
                }
                Item::Heads { to, frames } => self.for_recipients(to, |shard, key| {
                    shard.tally.heads += 1;
                    shard.with_session(key, |session, context| {
                        session.deliver(frames[session.form() as usize].clone(), Loss::Never, context);
                    });
                }),
            }
        }
        self.give_tally();
        self.shared.mailboxes[self.index].release(delivery.bytes);
        drop(delivery.done);
    }

    fn give_tally(&mut self) {
        let Tally { delivered, settled, suppressed, heads } = std::mem::take(&mut self.tally);
        let metrics = &self.shared.metrics;
        metrics.delivered.add(delivered);
        metrics.settled.add(settled);
        metrics.suppressed.add(suppressed);
        metrics.heads_unsolicited.add(heads);
    }

    fn message(&mut self, key: Key, message: &Encoded, frames: &mut Frames<'_>) {
        let told = self.with_session(key, |session, context| {
            let told = session.identity().0 == message.message.sender_id && {
                let of = &message.message;
                let settled = Settled {
                    conversation_id: of.conversation_id,
                    client_msg_id: of.client_msg_id,
                    seq: of.seq,
                    time: of.time,
                    content: Some(content_of(&of.content_type, &of.body)),
                };
                session.settled(&settled, context)
            };
            if session.is_live() {
                session.deliver(frames.of(session.form()), Loss::Never, context);
            }
            told
        });
        match told {
            Some(told) => {
                self.tally.delivered += 1;
                self.tally.settled += u64::from(told);
            }
            None => self.tally.suppressed += 1,
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let key = verdict.session.and_then(|session| self.key_of(session));
        let told = key.and_then(|key| {
            self.with_session(key, |session, context| match &verdict.outcome {
                VerdictOutcome::Committed { seq, time } => {
                    let settled = Settled {
                        conversation_id: verdict.conversation_id,
                        client_msg_id: verdict.client_msg_id,
                        seq: *seq,
                        time: *time,
                        content: None,
                    };
                    session.settled(&settled, context)
                }
                VerdictOutcome::Rejected { code, message } => {
                    session.rejected(verdict.conversation_id, verdict.client_msg_id, *code, message, context)
                }
            })
        });
        match told {
            Some(true) => self.tally.settled += 1,
            _ => self.tally.suppressed += 1,
        }
    }

    fn for_recipients(&mut self, to: &Recipients, mut call: impl FnMut(&mut Self, Key)) {
        match to {
            Recipients::Sessions(sessions) => {
                let index = self.index;
                for &session in sessions.iter().filter(|session| usize::from(session.shard()) == index) {
                    match self.key_of(session) {
                        Some(key) => call(self, key),
                        None => self.tally.suppressed += 1,
                    }
                }
            }
            Recipients::Users(users) => {
                let mut found = std::mem::take(&mut self.found);
                for &user in users.iter() {
                    self.users.of(user, &self.sessions, &mut found);
                    for key in found.drain(..) {
                        call(self, key);
                    }
                }
                self.found = found;
            }
        }
    }

    pub(super) fn for_all(
        &mut self,
        call: impl Fn(&mut roost_session::machine::Session, &roost_session::machine::Context<'_>),
    ) {
        for slot in 0..self.sessions.slots() {
            if let Some(key) = self.sessions.key_at(slot) {
                self.with_session(key, &call);
            }
        }
    }

    fn list(&self, from_slot: u32, count: usize) -> Listed {
        let mut sessions = Vec::new();
        let last = self.sessions.slots().min(from_slot.saturating_add(LIST_SLOTS));
        let mut slot = from_slot;
        while slot < last && sessions.len() < count {
            if let Some(key) = self.sessions.key_at(slot)
                && let Some(entry) = self.sessions.get(key)
                && entry.registered
                && entry.session.is_live()
            {
                let (user_id, device_id) = entry.session.identity();
                let session_id = self.session_id(key);
                sessions.push((SessionEntry { user_id, device_id, session_id }, entry.session.form()));
            }
            slot += 1;
        }
        Listed { sessions, next_slot: (slot < self.sessions.slots()).then_some(slot) }
    }
}
