//! The drain: sessions are sent away in waves, and whoever is left at 80 % of the grace period is closed.

use roost_protocol::CloseCode;

use super::{Accepting, Shard};
use crate::driver::{Driver, Submission};
use crate::slab::Key;

/// A step is taken this often.
pub(super) const STEP_MS: u64 = 20;

pub(super) struct Drain {
    began_ms: u64,
    grace_ms: u64,
    /// From here on nobody is waited for.
    late_ms: u64,
    /// Slots below this one have been told to go away.
    told: u32,
    /// Slots below this one have been closed, but for those that wait for a verdict.
    closed: u32,
    /// Told, and waiting for verdicts.
    waiting: Vec<Key>,
    watchdog_done: bool,
}

impl Drain {
    fn new(began_ms: u64, grace_ms: u64, late: bool) -> Self {
        let late_ms = if late { began_ms } else { began_ms + grace_ms * 8 / 10 };
        Self { began_ms, grace_ms, late_ms, told: 0, closed: 0, waiting: Vec::new(), watchdog_done: false }
    }

    /// The waves take the first two fifths of the grace period.
    fn reach(&self, now_ms: u64, delay_ms: u64, slots: u32) -> u32 {
        let elapsed_ms = now_ms.saturating_sub(self.began_ms).saturating_sub(delay_ms);
        let waves_ms = (self.grace_ms * 2 / 5).max(1);
        (u64::from(slots) * elapsed_ms / waves_ms).min(u64::from(slots)) as u32
    }
}

/// A session that has been told may stay so long: a little longer than any is asked to stay, so that who goes when told
/// connects elsewhere without a pause, and only who does not is closed.
fn stay_ms(grace_ms: u64) -> u64 {
    grace_ms / 4
}

impl<D: Driver> Shard<D> {
    /// A drain that is under way keeps its times.
    pub(super) fn begin_drain(&mut self, grace_ms: u64, late: bool) {
        self.drain.get_or_insert_with(|| Drain::new(self.now.steady_ms, grace_ms, late));
    }

    /// For good. Connections that were accepted become sessions all the same.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = Accepting::Never;
        self.driver.submit(Submission::Accept(false));
    }

    /// Stands on the shard's own clock and nothing else, so that a step of the gateway's drain that hangs elsewhere
    /// costs nobody their farewell.
    pub(super) fn step_drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        let (now_ms, slots) = (self.now.steady_ms, self.sessions.slots());
        let late = now_ms >= drain.late_ms;
        let told = if late { slots } else { drain.reach(now_ms, 0, slots) };
        for slot in drain.told..told {
            self.tell_to_go(slot, drain.grace_ms);
        }
        drain.told = drain.told.max(told);
        let closed = if late { slots } else { drain.reach(now_ms, stay_ms(drain.grace_ms), slots) };
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
        let spread_ms = (grace_ms / 5).clamp(1, 10_000);
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
