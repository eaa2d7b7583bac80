//! The driver's completions, and whether connections are accepted.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use roost_protocol::SessionId;
use roost_session::machine::Session;

use super::door::Door;
use super::entry::Entry;
use super::{ACCEPT_FAILED_MS, ACCEPT_WARN_MS, Accepting, Hearer, Shard, context};
use crate::admission::{Arrival, Pause, Place};
use crate::config::HandedOver;
use crate::driver::{Completion, Driver, Stream, Submission};
use crate::mail::Mail;
use crate::proxied;
use crate::slab::Key;

/// What is left to do once the driver's buffer is free again.
enum Then {
    Nothing,
    Accepted(TcpStream, SocketAddr),
    AcceptFailed(std::io::Error),
    Ended(Key),
    Sent(Key, std::io::Result<usize>),
    Closed(Key),
    Released(Key, Stream),
}

impl<D: Driver> Shard<D> {
    pub(super) fn take_completions(&mut self) {
        while let Some(then) = self.take_completion() {
            match then {
                Then::Nothing => {}
                Then::Accepted(stream, peer) => self.accepted(stream, peer),
                Then::AcceptFailed(error) => self.accept_failed(&error),
                Then::Ended(key) => {
                    self.with_session(key, |session, _| session.lost());
                }
                Then::Sent(key, Ok(bytes)) => {
                    self.with_session(key, |session, _| session.transmitted(bytes));
                }
                Then::Sent(key, Err(_)) => {
                    self.with_session(key, |session, _| session.lost());
                }
                Then::Closed(key) => self.forget(key),
                Then::Released(key, stream) => self.released(key, stream),
            }
        }
    }

    /// Received bytes are given to their session at once, for they lie in the driver's one buffer.
    fn take_completion(&mut self) -> Option<Then> {
        let (incarnation, index) = (self.incarnation, self.index as u8);
        Some(match self.driver.next()? {
            Completion::Received { key, bytes } => {
                // Field by field, since the bytes borrow the driver.
                let session_id = SessionId::new(incarnation, index, key.slot, key.generation);
                let context = context(&self.shared, self.now, self.pressure);
                if let Some(entry) = self.sessions.get_mut(key).filter(|entry| !entry.leaving) {
                    let door = Door::of(&self.shared, self.now.steady_ms, &mut entry.opening, &mut entry.neighbour);
                    let (ingress, wants) = (&mut self.ingress, &mut self.wants);
                    let hearer = Hearer { key, session_id, now_ms: self.now.wall_ms, ingress, wants, door };
                    hearer.hear(&mut entry.session, |session, tell| session.receive(bytes, &context, tell));
                    if !entry.touched {
                        entry.touched = true;
                        self.touched.push(key);
                    }
                }
                Then::Nothing
            }
            Completion::Accepted { stream, peer } => Then::Accepted(stream, peer),
            Completion::AcceptFailed(error) => Then::AcceptFailed(error),
            Completion::Ended { key } => Then::Ended(key),
            Completion::Sent { key, result } => Then::Sent(key, result),
            Completion::Closed { key } => Then::Closed(key),
            Completion::Released { key, stream } => Then::Released(key, stream),
        })
    }

    /// One shard accepts for all, so that accepting has one place to stop; the others get theirs in turn.
    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr) {
        self.shared.metrics.accepted.add(1);
        let shared = Arc::clone(&self.shared);
        // What was accepted before the driver heard of the pause may find no room.
        if let Some(shard) = shared.admission.shard_with_room(self.next_shard) {
            self.next_shard = (shard + 1) % shared.mailboxes.len();
            shared.admission.opened(shard, self.now.steady_ms);
            if shared.config.proxy_protocol && shared.config.proxies.trusts(peer.ip()) {
                proxied::introduce(&shared, shard, stream, peer);
            } else if let Some(arrival) = Arrival::judge(&shared, shard, stream, peer, self.now.steady_ms) {
                self.give(shard, arrival);
            }
        } else {
            shared.metrics.dropped.add(1);
        }
        match shared.admission.may_accept(self.now.steady_ms) {
            Ok(()) => {}
            Err(Pause::Pace { wait_ms }) => self.pace_accepting(wait_ms),
            Err(Pause::Full { wait_ms }) => self.pause_accepting(wait_ms, "as many connections as are allowed"),
        }
    }

    fn give(&mut self, shard: usize, arrival: Arrival) {
        if shard == self.index {
            self.adopt(arrival);
        } else {
            self.shared.mailboxes[shard].put(Mail::Connection(arrival));
        }
    }

    pub(super) fn adopt(&mut self, arrival: Arrival) {
        let Arrival { stream, peer, neighbour, refused } = arrival;
        let session = Session::new(&self.shared.settings, self.now);
        let bytes_max = session.read_budget();
        let key = self.sessions.insert(Entry::new(session, peer, neighbour, refused));
        self.driver.submit(Submission::Adopt { key, stream, bytes_max });
        if let Some(entry) = self.sessions.get_mut(key) {
            entry.receives = u32::try_from(bytes_max).unwrap_or(u32::MAX);
            entry.touched = true;
            self.touched.push(key);
        }
    }

    fn accept_failed(&mut self, error: &std::io::Error) {
        let problem = error.to_string();
        self.pause_accepting(ACCEPT_FAILED_MS, &problem);
    }

    fn pause_accepting(&mut self, pause_ms: u64, problem: &str) {
        if self.accepting == Accepting::Yes {
            self.shared.metrics.accept_pauses.add(1);
            if self.now.steady_ms >= self.accept_warns_ms {
                self.accept_warns_ms = self.now.steady_ms + ACCEPT_WARN_MS;
                let connections = self.shared.admission.connections();
                tracing::warn!(problem, connections, "accepting is paused; those who are connected stay");
            }
        }
        self.driver.submit(Submission::Accept(false));
        self.accepting = Accepting::PausedUntil(self.now.steady_ms + pause_ms);
    }

    /// Until there are tokens again the connections wait in the kernel: that is no trouble, only a busy time.
    fn pace_accepting(&mut self, pause_ms: u64) {
        if self.accepting == Accepting::Yes {
            self.shared.metrics.accept_paces.add(1);
            self.driver.submit(Submission::Accept(false));
            self.accepting = Accepting::PausedUntil(self.now.steady_ms + pause_ms);
        }
    }

    pub(super) fn decide_accepting(&mut self) {
        let Accepting::PausedUntil(at_ms) = self.accepting else { return };
        if self.now.steady_ms < at_ms {
            return;
        }
        match self.shared.admission.may_accept(self.now.steady_ms) {
            Ok(()) => {
                self.accepting = Accepting::Yes;
                self.driver.submit(Submission::Accept(true));
            }
            Err(Pause::Pace { wait_ms } | Pause::Full { wait_ms }) => {
                self.accepting = Accepting::PausedUntil(self.now.steady_ms + wait_ms);
            }
        }
    }

    /// The driver has said its last word.
    pub(super) fn forget(&mut self, key: Key) {
        self.leave(key);
        self.wheel.disarm(key.slot);
        if let Some(entry) = self.sessions.remove(key) {
            self.queue_bytes -= u64::from(entry.counted_bytes);
            self.shared.queue_bytes[self.index].tell(self.queue_bytes);
            let admission = &self.shared.admission;
            if entry.counted_opening {
                admission.no_longer_opening(entry.neighbour);
            }
            if entry.opening.is_some_and(|peer| peer.refused.is_some()) {
                admission.has_refused();
            }
            if let Some(neighbour) = entry.neighbour {
                admission.left(neighbour, self.now.steady_ms);
            }
            admission.closed(self.index);
        }
    }

    fn released(&mut self, key: Key, stream: Stream) {
        let Some(entry) = self.sessions.get_mut(key) else { return };
        let peer = entry.opening.take();
        if peer.as_ref().is_some_and(|peer| peer.refused.is_some()) {
            self.shared.admission.has_refused();
        }
        if std::mem::take(&mut entry.counted_opening) {
            self.shared.admission.no_longer_opening(entry.neighbour);
        }
        // It goes on counting for its address, whoever serves it.
        let place = Place::new(&self.shared, entry.neighbour.take());
        self.forget(key);
        let (Some(peer), Some(http)) = (peer, &self.shared.ports.http) else { return };
        let handed_over = HandedOver { stream, peer: peer.address, head: peer.head, place };
        match http.try_send(handed_over) {
            Ok(()) => self.shared.metrics.handed_over.add(1),
            // Room was seen a moment ago; the connection is closed, and the client comes again.
            Err(_) => tracing::warn!("the HTTP server has no room for a connection"),
        }
    }
}
