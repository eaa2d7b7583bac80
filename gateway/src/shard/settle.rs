//! The end of a round: what sessions asked for is begun, and every session that was touched is polled.

use bytes::Bytes;
use roost_ports::registry::SessionEntry;
use roost_protocol::CloseCode;
use roost_session::machine::Purpose;
use tokio::sync::mpsc::error::TrySendError;

use super::{Shard, Want, context};
use crate::driver::{Driver, Frames, SEND_BYTES_MAX, SEND_FRAMES_MAX, Submission};
use crate::membership::Change;
use crate::requests::{self, Asker};
use crate::slab::Key;

const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 44\r\n\r\nThis server speaks WebSocket at /v1/connect.\n";
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Length: 0\r\n\r\n";

impl<D: Driver> Shard<D> {
    pub(super) fn serve_wants(&mut self) {
        for (key, want) in std::mem::take(&mut self.wants) {
            match want {
                Want::Authenticate(token, purpose) => self.authenticate(key, token, purpose),
                Want::Register => self.register(key),
                Want::Http(request) => self.hand_over(key, request.received),
            }
        }
    }

    fn authenticate(&mut self, key: Key, token: String, purpose: Purpose) {
        if self.suspended && purpose == Purpose::Connect {
            self.with_session(key, |session, context| session.close(CloseCode::LeaseLost, context));
            return;
        }
        requests::authenticate(&self.shared, self.index, key, token);
    }

    /// From here on the session is found by its user, and by the Registry soon: a message that is committed before
    /// `connected` is found by the client's sync.
    fn register(&mut self, key: Key) {
        if self.suspended || !self.shared.admission.admits() {
            let code = if self.suspended { CloseCode::LeaseLost } else { CloseCode::Drained };
            self.with_session(key, |session, context| session.close(code, context));
            return;
        }
        let session_id = self.session_id(key);
        let Some(entry) = self.sessions.get_mut(key) else { return };
        let (user_id, device_id) = entry.session.identity();
        if !self.shared.admission.user_enters(user_id) {
            self.shared.metrics.refused_user_sessions.add(1);
            self.with_session(key, |session, context| session.too_many_sessions(context));
            return;
        }
        entry.registered = true;
        let form = entry.session.form();
        self.users.add(user_id, key, &mut self.sessions);
        self.changes.push(Change::Register(SessionEntry { user_id, device_id, session_id }, form));
    }

    fn hand_over(&mut self, key: Key, head: Bytes) {
        if self.refuse_http(key) {
            return;
        }
        let refusal = match &self.shared.ports.http {
            None => Some((NOT_FOUND, 404)),
            Some(http) if http.capacity() == 0 => Some((BUSY, 503)),
            Some(_) => None,
        };
        if let Some((response, status)) = refusal {
            self.with_session(key, |session, context| {
                session.answer_http(Bytes::from_static(response), status, context);
            });
            return;
        }
        if let Some(entry) = self.sessions.get_mut(key).filter(|entry| !entry.leaving) {
            entry.leaving = true;
            if let Some(peer) = &mut entry.opening {
                peer.head = head;
            }
            self.driver.submit(Submission::Release { key });
        }
    }

    pub(super) fn settle_touched(&mut self) {
        // Settling touches nobody, so the list can be walked and kept for its room.
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            self.settle(key);
        }
        self.touched = touched;
        self.shared.queue_bytes[self.index].tell(self.queue_bytes);
    }

    /// The polls, in the session's own order.
    fn settle(&mut self, key: Key) {
        // Borrowed: its count would go to and fro between the shards.
        let shared = &self.shared;
        let Some(entry) = self.sessions.get_mut(key) else { return };
        entry.touched = false;
        if entry.leaving {
            return;
        }
        let session = &mut entry.session;
        let context = context(shared, self.now, self.pressure);
        while let Some(request) = session.poll_request(&shared.settings) {
            let (user, form) = (session.identity().0, session.form());
            requests::answer(shared, Asker { shard: self.index, key, user, form }, request);
        }
        shared.metrics.retries.add(u64::from(session.take_retries()));
        shared.metrics.rate_limited.add(u64::from(session.take_limited()));
        if session.queued_bytes() > 0 {
            let mut frames = Frames::new();
            let offset = session.lend(SEND_FRAMES_MAX, SEND_BYTES_MAX, &context, |frame| frames.push(frame));
            if !frames.is_empty() {
                self.driver.submit(Submission::Send { key, frames, offset });
            }
        }
        self.awaits_sent |= session.awaits_transmitted(&context);
        let queued = session.queued_bytes() as u32;
        self.queue_bytes = self.queue_bytes - u64::from(entry.counted_bytes) + u64::from(queued);
        entry.counted_bytes = queued;
        if session.wants_shutdown() {
            self.driver.submit(Submission::ShutdownWrite { key });
        }
        if session.is_finished() {
            shared.metrics.count_ending(session.ending());
            let ending = session.ending();
            tracing::debug!(
                shard = self.index,
                slot = key.slot,
                generation = key.generation,
                ?ending,
                "a connection ends"
            );
            entry.leaving = true;
            self.driver.submit(Submission::Close { key });
            return self.leave(key);
        }
        if let Some(deadline_ms) = session.deadline(&shared.settings) {
            self.wheel.arm(key.slot, deadline_ms);
        }
        let receives = u32::try_from(session.read_budget()).unwrap_or(u32::MAX);
        if receives != entry.receives {
            entry.receives = receives;
            self.driver.submit(Submission::Receive { key, bytes_max: receives as usize });
        }
    }

    pub(super) fn wake_due(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.now.steady_ms, &mut due);
        for slot in due.drain(..) {
            if let Some(key) = self.sessions.key_at(slot) {
                self.with_session(key, |session, context| session.handle_timeout(context));
            }
        }
        self.due = due;
    }

    /// The session no longer counts: nothing finds it any more.
    pub(super) fn leave(&mut self, key: Key) {
        let session_id = self.session_id(key);
        let Some(entry) = self.sessions.get_mut(key) else { return };
        if std::mem::take(&mut entry.counted_live) {
            self.shared.admission.no_longer_live();
        }
        if std::mem::take(&mut entry.registered) {
            let (user_id, device_id) = entry.session.identity();
            self.users.remove(user_id, key, &mut self.sessions);
            self.shared.admission.user_leaves(user_id);
            self.changes.push(Change::Unregister(SessionEntry { user_id, device_id, session_id }));
        }
    }

    /// Where the membership is behind, the changes wait here: there are at most as many as sessions came and went.
    pub(super) fn tell_membership(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        match self.shared.membership.try_send(std::mem::take(&mut self.changes)) {
            Ok(()) => {}
            Err(TrySendError::Full(changes) | TrySendError::Closed(changes)) => self.changes = changes,
        }
    }

    pub(super) fn became_live(&mut self, key: Key) {
        let Some(entry) = self.sessions.get_mut(key) else { return };
        if entry.session.is_live() && std::mem::take(&mut entry.counted_opening) {
            entry.counted_live = true;
            entry.opening = None;
            self.shared.admission.no_longer_opening(entry.neighbour);
            self.shared.admission.became_live();
            self.shared.metrics.sessions_begun.add(1);
        }
    }
}
