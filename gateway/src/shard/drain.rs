//! The drain: sessions are sent away in waves, and whoever is left at 80 % of the grace period is closed.

use roost_protocol::CloseCode;

use super::Shard;
use crate::driver::Driver;
use crate::slab::Key;

/// A step is taken this often.
pub(super) const STEP_MS: u64 = 20;

pub(super) struct Drain {
    began_ms: u64,
    grace_ms: u64,
    /// Slots below this one have been told to go away.
    told: u32,
    /// Slots below this one have been closed, but for those that wait for a verdict.
    closed: u32,
    /// Told, and waiting for verdicts.
    waiting: Vec<Key>,
    watchdog_done: bool,
}

impl Drain {
    pub(super) fn new(began_ms: u64, grace_ms: u64) -> Self {
        Self { began_ms, grace_ms, told: 0, closed: 0, waiting: Vec::new(), watchdog_done: false }
    }

    /// The waves take the first half of the grace period; a session is closed a tenth of it after it was told, if it
    /// has not gone by itself.
    fn reach(&self, now_ms: u64, delay_ms: u64, slots: u32) -> u32 {
        let elapsed_ms = now_ms.saturating_sub(self.began_ms).saturating_sub(delay_ms);
        let waves_ms = (self.grace_ms / 2).max(1);
        (u64::from(slots) * elapsed_ms / waves_ms).min(u64::from(slots)) as u32
    }
}

impl<D: Driver> Shard<D> {
    /// Stands on the shard's own clock and nothing else, so that a step of the gateway's drain that hangs elsewhere
    /// costs nobody their farewell.
    pub(super) fn step_drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        let (now_ms, slots) = (self.now.steady_ms, self.sessions.slots());
        let late = now_ms >= drain.began_ms + drain.grace_ms * 8 / 10;
        let told = if late { slots } else { drain.reach(now_ms, 0, slots) };
        for slot in drain.told..told {
            self.tell_to_go(slot, drain.grace_ms);
        }
        drain.told = drain.told.max(told);
        let closed = if late { slots } else { drain.reach(now_ms, drain.grace_ms / 10, slots) };
        for slot in drain.closed..closed {
            if let Some(key) = self.sessions.key_at(slot) {
                drain.waiting.push(key);
            }
        }
        drain.closed = drain.closed.max(closed);
        drain.waiting.retain(|&key| self.is_waiting(key, late));
        if late && !drain.watchdog_done {
            drain.watchdog_done = true;
            // Those that came into slots which had been passed.
            self.for_all(|session, context| session.close(CloseCode::Drained, context));
        }
        self.drain = Some(drain);
    }

    /// Spreads the clients' return over time, by their slots: neighbours connected together.
    fn tell_to_go(&mut self, slot: u32, grace_ms: u64) {
        let spread_ms = (grace_ms / 3).clamp(1, 10_000);
        let reconnect_in_ms = (u64::from(slot.wrapping_mul(0x9e37_79b9)) * spread_ms) >> 32;
        if let Some(key) = self.sessions.key_at(slot) {
            self.with_session(key, |session, context| session.goaway(reconnect_in_ms, "drained", context));
        }
    }

    fn is_waiting(&mut self, key: Key, late: bool) -> bool {
        let Some(entry) = self.sessions.get(key) else { return false };
        let waits = !late && entry.session.is_live() && entry.session.sends_in_flight() > 0;
        if !waits && !entry.leaving {
            self.with_session(key, |session, context| session.close(CloseCode::Drained, context));
        }
        waits
    }
}
