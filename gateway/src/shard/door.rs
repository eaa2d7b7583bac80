//! The second door: whose handshake it is, and whether it may become a session.

use roost_session::framing::handshake::{HttpError, Request};
use roost_session::framing::peer::Neighbour;

use super::Shard;
use super::entry::Peer;
use crate::admission::{Entrance, Reason};
use crate::driver::Driver;
use crate::shared::Shared;
use crate::slab::Key;

/// Judges the handshake of one connection.
pub(super) struct Door<'s> {
    shared: &'s Shared,
    now_ms: u64,
    peer: Option<&'s mut Peer>,
    neighbour: &'s mut Option<Neighbour>,
}

impl<'s> Door<'s> {
    pub(super) fn of(
        shared: &'s Shared,
        now_ms: u64,
        opening: &'s mut Option<Box<Peer>>,
        neighbour: &'s mut Option<Neighbour>,
    ) -> Self {
        Self { shared, now_ms, peer: opening.as_deref_mut(), neighbour }
    }

    /// What it is refused with.
    pub(super) fn refusal(&mut self, head: &Request) -> Option<HttpError> {
        let admission = &self.shared.admission;
        let reason = if admission.admits() { self.judge(head)? } else { Reason::Draining };
        self.shared.metrics.count_refusal(reason);
        Some(admission.refusal(reason))
    }

    fn judge(&mut self, head: &Request) -> Option<Reason> {
        let peer = self.peer.as_deref_mut()?;
        let (connected, proxies) = (peer.address.ip(), &self.shared.config.proxies);
        if peer.refused.is_some() || self.neighbour.is_some() || !proxies.trusts(connected) {
            return peer.refused;
        }
        let lines: Vec<&[u8]> = head.header_lines("x-forwarded-for").collect();
        let client = proxies.client_behind(connected, lines.into_iter());
        // A proxy that does not say for whom it speaks speaks for many.
        if proxies.trusts(client) {
            return None;
        }
        let (entrance, neighbour) = self.shared.admission.enter(client, self.now_ms);
        *self.neighbour = neighbour;
        peer.refused = match entrance {
            Entrance::Open => None,
            Entrance::Refused(reason) => Some(reason),
            // The proxy's connection is not for us to drop.
            Entrance::Dropped => Some(Reason::AddressRate),
        };
        if peer.refused.is_some() {
            self.shared.admission.refuses();
        }
        peer.refused
    }
}

impl<D: Driver> Shard<D> {
    /// An address that has too many connections has them whatever is spoken on them. A full gateway still answers those
    /// who ask how it is.
    pub(super) fn refuse_http(&mut self, key: Key) -> bool {
        let opening = self.sessions.get(key).and_then(|entry| entry.opening.as_ref());
        let Some(reason) = opening.and_then(|peer| peer.refused).filter(|reason| *reason != Reason::Full) else {
            return false;
        };
        self.shared.metrics.count_refusal(reason);
        let error = self.shared.admission.refusal(reason);
        let response = bytes::Bytes::from(error.response());
        self.with_session(key, |session, context| session.answer_http(response, error.status, context));
        true
    }
}
