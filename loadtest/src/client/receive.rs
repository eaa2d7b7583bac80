//! What a session does with a frame, and what it writes.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use roost_protocol::Form;
use roost_protocol::frames::{ClientBody, ClientFrame, HistoryRange, Message, Page, Send as SendFrame, ServerBody};
use roost_protocol::{ClientMsgId, ConversationId};

use super::framing::Opcode;
use super::open::{self, Refused};
use super::outbox::Outgoing;
use super::pacer::Due;
use super::shard::{Ending, Link, Shard};
use super::track::News;
use crate::clock::{Nanos, now};

/// A body begins with the moment it was due and the run's mark.
const BODY_HEAD: usize = 12;

impl Shard {
    /// Takes one frame.
    pub(super) fn receive(self: &Rc<Self>, index: u32, link: &Rc<Link>, bytes: &[u8]) -> Result<(), Refused> {
        let Some(body) = open::decode(bytes)? else { return Ok(()) };
        match body {
            ServerBody::Ping => {
                self.figures.borrow_mut().server_pings += 1;
                write(link, ClientBody::Pong);
            }
            ServerBody::Pong => self.pong(index),
            ServerBody::Message(message) => {
                self.message(index, &message, true);
                self.repair(index, link);
            }
            ServerBody::Sent { client_msg_id, seq, .. } => self.sent(index, client_msg_id, Some(seq)),
            ServerBody::Rejected { client_msg_id, .. } => {
                self.figures.borrow_mut().rejected += 1;
                self.sent(index, client_msg_id, None);
            }
            ServerBody::Retry { retry_after_ms, .. } => self.retry(index, retry_after_ms),
            ServerBody::Heads(heads) => {
                let asked_for = heads.epoch.is_some();
                self.with_tracks(index, |track| {
                    let head = heads.conversations.iter().find(|head| head.conversation_id == track.conversation);
                    if let Some(head) = head {
                        track.head(head.last_seq, asked_for);
                    }
                });
                match heads.next.filter(|_| heads.more) {
                    Some(next) => self.sync(link, Some(next)),
                    None if asked_for => self.synced(index),
                    None => {}
                }
                self.repair(index, link);
            }
            ServerBody::Page(page) => {
                self.page(index, &page);
                self.repair(index, link);
            }
            ServerBody::Error { retry_after_ms, .. } => self.request_failed(index, link, retry_after_ms),
            ServerBody::Goaway { reconnect_in_ms, .. } => self.goaway(index, link, reconnect_in_ms),
            ServerBody::Connected(_) | ServerBody::Reload { .. } => {}
        }
        Ok(())
    }

    /// Does what is due.
    pub(super) fn due(self: &Rc<Self>, due: Due) {
        let mut figures = self.figures.borrow_mut();
        figures.due += 1;
        drop(figures);
        self.progress.borrow_mut().sent += 1;
        let mut session = self.sessions[due.session as usize].borrow_mut();
        let link = session.link.clone();
        let Some(talk) = &mut session.talk else { return };
        match due.conversation {
            Some(conversation) => {
                let client_msg_id = ClientMsgId::new();
                talk.outbox.push(Outgoing { client_msg_id, conversation, due: due.due });
                drop(session);
                self.waits(1);
                self.transmit(due.session);
            }
            None => {
                if let Some(link) = link {
                    talk.pings.push_back(due.due);
                    write(&link, ClientBody::Ping);
                }
            }
        }
    }

    /// Writes what may be written of a session's outbox.
    pub(super) fn transmit(&self, index: u32) {
        let mut session = self.sessions[index as usize].borrow_mut();
        let Some(link) = session.link.clone() else { return };
        let Some(talk) = &mut session.talk else { return };
        while let Some(next) = talk.outbox.next() {
            let track = talk.tracks.iter().find(|track| track.number == next.conversation);
            let conversation = track.expect("a session writes to its own conversations").conversation;
            write(&link, self.send_frame(conversation, &next));
        }
    }

    /// Asks for heads.
    pub(super) fn sync(&self, link: &Rc<Link>, since: Option<String>) {
        write(link, ClientBody::Sync { since: since.map(Cow::Owned) });
    }

    fn send_frame(&self, conversation_id: ConversationId, outgoing: &Outgoing) -> ClientBody<'static> {
        let mut body = vec![b'x'; self.task.body_bytes.max(BODY_HEAD)];
        body[..8].copy_from_slice(&outgoing.due.to_be_bytes());
        body[8..BODY_HEAD].copy_from_slice(&self.task.run.to_be_bytes());
        ClientBody::Send(SendFrame {
            client_msg_id: outgoing.client_msg_id,
            conversation_id,
            content_type: Cow::Borrowed("application/octet-stream"),
            body: Cow::Owned(body),
        })
    }

    /// When a message of this run was due; none for another's, and for events.
    fn due_of(&self, message: &Message) -> Option<Nanos> {
        let head: &[u8; BODY_HEAD] = message.body.first_chunk()?;
        let ours = message.event.is_none() && head[8..] == self.task.run.to_be_bytes();
        ours.then(|| u64::from_be_bytes(head[..8].try_into().expect("8 bytes")))
    }

    fn message(self: &Rc<Self>, index: u32, message: &Message, live: bool) {
        let mut news = News::Old;
        self.with_tracks(index, |track| {
            if track.conversation == message.conversation_id {
                news = track.message(message.seq);
            }
        });
        let own = message.sender_id == self.task.plan.user(self.user(index));
        if own {
            self.sent(index, message.client_msg_id, Some(message.seq));
        }
        match news {
            News::Duplicate if live => self.figures.borrow_mut().duplicates += 1,
            News::Duplicate | News::Old => {}
            News::New => {
                if let Some(due) = self.due_of(message) {
                    self.arrived(index, due, live, own);
                }
            }
        }
    }

    /// A message of this run is here for the first time.
    fn arrived(&self, index: u32, due: Nanos, live: bool, own: bool) {
        let now = now();
        let took = now.saturating_sub(due);
        self.progress.borrow_mut().delivered += 1;
        self.second(now, |second| second.delivered += 1);
        if own || !self.measured(due) {
            return;
        }
        let troubled = self.troubled(index);
        let mut figures = self.figures.borrow_mut();
        if !live {
            figures.repaired.record(took);
        } else if troubled {
            figures.received_in_trouble.record(took);
        } else {
            figures.received.record(took);
            self.lately.borrow_mut().record(took);
        }
        drop(figures);
        if !troubled {
            self.second(due, |second| second.latency.get_or_insert_default().record(took));
        }
    }

    /// A send has its verdict, or its message came back.
    fn sent(&self, index: u32, client_msg_id: ClientMsgId, seq: Option<u64>) {
        let mut session = self.sessions[index as usize].borrow_mut();
        let Some(outgoing) = session.talk.as_mut().and_then(|talk| talk.outbox.done(client_msg_id)) else { return };
        drop(session);
        self.waiting.set(self.waiting.get() - 1);
        if let Some(seq) = seq {
            let now = now();
            self.written.borrow_mut().push((outgoing.conversation, seq));
            self.progress.borrow_mut().acknowledged += 1;
            let mut figures = self.figures.borrow_mut();
            figures.acknowledged += 1;
            if self.measured(outgoing.due) && !self.troubled(index) {
                figures.sent.record(now.saturating_sub(outgoing.due));
            }
            drop(figures);
            self.second(now, |second| second.acknowledged += 1);
        }
        self.transmit(index);
    }

    /// Waits as asked, then writes again from the first send without a verdict.
    fn retry(self: &Rc<Self>, index: u32, after_ms: u64) {
        self.figures.borrow_mut().retries += 1;
        let mut session = self.sessions[index as usize].borrow_mut();
        let Some(talk) = &mut session.talk else { return };
        if !talk.outbox.hold() {
            return;
        }
        drop(session);
        let shard = Rc::clone(self);
        tokio_uring::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            if let Some(talk) = &mut shard.sessions[index as usize].borrow_mut().talk {
                talk.outbox.again();
            }
            shard.transmit(index);
        });
    }

    fn pong(&self, index: u32) {
        let due = self.sessions[index as usize].borrow_mut().talk.as_mut().and_then(|talk| talk.pings.pop_front());
        let Some(due) = due else { return };
        let took = now().saturating_sub(due);
        let mut figures = self.figures.borrow_mut();
        figures.pongs += 1;
        if self.measured(due) {
            figures.pong.record(took);
            self.lately.borrow_mut().record(took);
        }
        drop(figures);
        self.progress.borrow_mut().delivered += 1;
        if self.measured(due) {
            self.second(due, |second| second.latency.get_or_insert_default().record(took));
        }
        self.second(now(), |second| second.delivered += 1);
    }

    fn page(self: &Rc<Self>, index: u32, page: &Page) {
        for message in &page.messages {
            self.message(index, message, false);
        }
        self.with_tracks(index, |track| {
            if track.conversation == page.conversation_id {
                track.page(page.from, page.to);
            }
        });
    }

    /// Asks for what is missing.
    fn repair(&self, index: u32, link: &Rc<Link>) {
        self.with_tracks(index, |track| {
            if let Some(after) = track.wants() {
                track.asking = true;
                let (conversation_id, range) = (track.conversation, HistoryRange::After(after));
                write(link, ClientBody::History { conversation_id, range, limit: None });
            }
        });
    }

    /// A sync or a history was refused for now: the session asks again after the wait.
    fn request_failed(self: &Rc<Self>, index: u32, link: &Rc<Link>, after_ms: Option<u64>) {
        let Some(after_ms) = after_ms else { return };
        let (shard, link) = (Rc::clone(self), Rc::clone(link));
        tokio_uring::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            if !shard.sessions[index as usize].borrow().synced {
                shard.sync(&link, None);
            }
            shard.with_tracks(index, |track| track.asking = false);
            shard.repair(index, &link);
        });
    }

    /// Reconnects after the time given, unless the server closes first.
    fn goaway(self: &Rc<Self>, index: u32, link: &Rc<Link>, after_ms: u64) {
        self.sessions[index as usize].borrow_mut().backoff.asked_to_wait(after_ms);
        let (shard, link) = (Rc::clone(self), Rc::downgrade(link));
        tokio_uring::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let Some(link) = link.upgrade() else { return };
            shard.end(index, &link, Ending::Goaway);
        });
    }

    fn synced(&self, index: u32) {
        if !std::mem::replace(&mut self.sessions[index as usize].borrow_mut().synced, true) {
            self.synced.set(self.synced.get() + 1);
        }
    }

    fn with_tracks(&self, index: u32, work: impl FnMut(&mut super::track::Track)) {
        if let Some(talk) = &mut self.sessions[index as usize].borrow_mut().talk {
            talk.tracks.iter_mut().for_each(work);
        }
    }
}

fn write(link: &Rc<Link>, body: ClientBody<'_>) {
    link.write(Opcode::Binary, &ClientFrame { id: None, body }.encode(Form::Binary));
}
