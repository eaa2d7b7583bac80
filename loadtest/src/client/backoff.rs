//! How long a client waits before it connects again, as docs/protocol.md has it.

use crate::clock::{Nanos, SECOND, now};

const FIRST_MS: u64 = 500;
const MOST_MS: u64 = 30_000;
/// A connection that has lasted so long starts the waiting from the beginning.
const LASTED: Nanos = 60 * SECOND;
/// Clients without manners still need a moment to open a socket.
const RUDE_MS: u64 = 10;

/// One session's waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    attempts: u8,
    /// Not before this moment, whatever the dice say.
    not_before: Nanos,
    connected: Nanos,
}

impl Backoff {
    /// The session is connected.
    pub fn connected(&mut self) {
        self.connected = now();
    }

    /// The server asked to wait so long.
    pub fn asked_to_wait(&mut self, ms: u64) {
        self.not_before = self.not_before.max(now().saturating_add(ms.saturating_mul(1_000_000)));
    }

    /// When the next attempt may begin.
    pub fn next(&mut self, polite: bool) -> Nanos {
        let now = now();
        if !polite {
            return now + RUDE_MS * 1_000_000;
        }
        if self.connected > 0 && now.saturating_sub(self.connected) >= LASTED {
            self.attempts = 0;
        }
        self.connected = 0;
        let cap = (FIRST_MS << self.attempts.min(6)).min(MOST_MS);
        self.attempts = self.attempts.saturating_add(1);
        let wait = rand::random_range(0..=cap) * 1_000_000;
        (now + wait).max(std::mem::take(&mut self.not_before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_doubles_and_what_was_asked_for_is_kept() {
        let mut backoff = Backoff::default();
        for attempt in 0..20_u32 {
            let begun = now();
            let cap = (FIRST_MS << attempt.min(6)).min(MOST_MS) * 1_000_000;
            let next = backoff.next(true);
            assert!(next >= begun && next <= now() + cap, "attempt {attempt}");
        }
        backoff.asked_to_wait(90_000);
        let begun = now();
        assert!(backoff.next(true) >= begun + 89 * SECOND);
        assert!(backoff.next(false) < now() + SECOND);
    }
}
