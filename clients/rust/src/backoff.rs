//! When to connect again: jittered, exponential, never before the server allows it, and only where it makes sense.

use std::time::{Duration, Instant};

use roost_protocol::codes::ReconnectPolicy;

/// The first cap of the random wait, and the largest.
#[derive(Clone, Copy, Debug)]
pub struct BackoffConfig {
    /// The first wait is a random time between 0 and this.
    pub first: Duration,
    /// The cap doubles up to this.
    pub most: Duration,
    /// A connection that lasted so long starts the caps anew.
    pub stable_after: Duration,
    /// So many re-authentications in a row without a session in between, and the client stops.
    pub reauthentications_max: u32,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            most: Duration::from_secs(30),
            stable_after: Duration::from_secs(60),
            reauthentications_max: 5,
        }
    }
}

/// What to do after a connection or an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Connect at this time.
    Connect {
        /// Not before.
        at: Instant,
        /// Get a new access token first.
        reauthenticate: bool,
    },
    /// Do not connect by yourself any more.
    Stop,
}

/// The waits between connections.
#[derive(Debug)]
pub struct Backoff {
    config: BackoffConfig,
    attempts: u32,
    reauthentications: u32,
    connected_at: Option<Instant>,
    not_before: Option<Instant>,
}

impl Backoff {
    /// The first attempt needs no wait.
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, attempts: 0, reauthentications: 0, connected_at: None, not_before: None }
    }

    /// `connected` came.
    pub fn on_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        self.reauthentications = 0;
        self.not_before = None;
    }

    /// The server asked not to be connected to before this (`goaway`, `retry_after_ms`, `Retry-After`).
    pub fn not_before(&mut self, at: Instant) {
        self.not_before = Some(self.not_before.map_or(at, |before| before.max(at)));
    }

    /// The connection or the attempt is over. `random` is between 0 and 1.
    pub fn on_ended(&mut self, policy: ReconnectPolicy, now: Instant, random: f64) -> Next {
        if let Some(connected_at) = self.connected_at.take()
            && now.saturating_duration_since(connected_at) >= self.config.stable_after
        {
            self.attempts = 0;
        }
        let reauthenticate = match policy {
            ReconnectPolicy::Resume => false,
            ReconnectPolicy::Reauthenticate => {
                self.reauthentications += 1;
                if self.reauthentications > self.config.reauthentications_max {
                    return Next::Stop;
                }
                true
            }
            ReconnectPolicy::Never => return Next::Stop,
        };
        let cap = self.config.first.saturating_mul(1 << self.attempts.min(16)).min(self.config.most);
        self.attempts = self.attempts.saturating_add(1);
        let wait = now + cap.mul_f64(random.clamp(0.0, 1.0));
        let at = self.not_before.take().map_or(wait, |floor| floor.max(wait));
        Next::Connect { at, reauthenticate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(next: Next, now: Instant) -> u128 {
        match next {
            Next::Connect { at, .. } => (at - now).as_millis(),
            Next::Stop => panic!("it must connect again"),
        }
    }

    #[test]
    fn the_cap_doubles_up_to_its_most_and_the_wait_is_random_below_it() {
        let (mut backoff, now) = (Backoff::new(BackoffConfig::default()), Instant::now());
        let waits: Vec<_> = (0..9).map(|_| wait(backoff.on_ended(ReconnectPolicy::Resume, now, 1.0), now)).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, now, 0.0), now), 0);
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, now, 0.5), now), 15_000);
    }

    #[test]
    fn only_a_connection_that_lasted_starts_anew() {
        let (mut backoff, now) = (Backoff::new(BackoffConfig::default()), Instant::now());
        backoff.on_ended(ReconnectPolicy::Resume, now, 1.0);
        backoff.on_connected(now);
        let soon = now + Duration::from_secs(59);
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, soon, 1.0), soon), 1000);
        backoff.on_connected(soon);
        let late = soon + Duration::from_secs(60);
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, late, 1.0), late), 500);
    }

    #[test]
    fn never_before_the_server_allows_it() {
        let (mut backoff, now) = (Backoff::new(BackoffConfig::default()), Instant::now());
        backoff.not_before(now + Duration::from_secs(7));
        backoff.not_before(now + Duration::from_secs(3));
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, now, 0.1), now), 7000);
        assert_eq!(wait(backoff.on_ended(ReconnectPolicy::Resume, now, 1.0), now), 1000, "once");
    }

    #[test]
    fn the_policy_decides() {
        let (mut backoff, now) = (Backoff::new(BackoffConfig::default()), Instant::now());
        assert_eq!(backoff.on_ended(ReconnectPolicy::Never, now, 0.0), Next::Stop);
        for _ in 0..5 {
            let next = backoff.on_ended(ReconnectPolicy::Reauthenticate, now, 0.0);
            assert_eq!(next, Next::Connect { at: now, reauthenticate: true });
        }
        assert_eq!(backoff.on_ended(ReconnectPolicy::Reauthenticate, now, 0.0), Next::Stop);
        backoff.on_connected(now);
        assert_ne!(backoff.on_ended(ReconnectPolicy::Reauthenticate, now, 0.0), Next::Stop);
    }
}
