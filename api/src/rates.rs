//! Rate limits: shared through the Registry, and by this process alone where the Registry is away.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use roost_ports::registry::{Rate, RateDecision};
use roost_ports::store::stored::fold_name;
use roost_ports::{Clock, Registry};
use roost_protocol::UserId;
use sha2::{Digest as _, Sha256};

use crate::problem::Problem;

/// How long the Registry may take before this process decides alone.
const REGISTRY_MS_MAX: u64 = 300;
/// Keys that are remembered at one time.
const KEYS_MAX: usize = 65_536;
/// Old keys are looked for at most this often.
const PURGE_MS_MIN: u64 = 1_000;

/// Decides who may do something now.
pub(crate) struct Limiter {
    registry: Arc<dyn Registry>,
    clock: Arc<dyn Clock>,
    fallback: Local<String>,
    users: Local<UserId>,
}

impl Limiter {
    pub(crate) fn new(registry: Arc<dyn Registry>, clock: Arc<dyn Clock>) -> Self {
        Self { registry, clock, fallback: Local::default(), users: Local::default() }
    }

    /// One use from an address, counted over all processes.
    pub(crate) async fn address(&self, what: &str, peer: IpAddr, rate: Rate) -> Result<(), Problem> {
        self.shared(format!("{what}:addr:{}", network_of(peer)), rate).await
    }

    /// One use of a name, counted over all processes. Its hash is the key: names stay out of the Registry.
    pub(crate) async fn name(&self, what: &str, name: &str, rate: Rate) -> Result<(), Problem> {
        let digest = Sha256::digest(fold_name(name).as_bytes());
        self.shared(format!("{what}:name:{}", URL_SAFE_NO_PAD.encode(&digest[..16])), rate).await
    }

    /// One request of a user, counted in this process.
    pub(crate) fn user(&self, user: UserId, rate: Rate) -> Result<(), Problem> {
        answer(self.users.allow(user, rate, self.clock.steady_ms()))
    }

    /// With the Registry away every process limits alone: the total may be as many times the limit as there are
    /// processes, but nobody is locked out and nobody is unlimited.
    async fn shared(&self, key: String, rate: Rate) -> Result<(), Problem> {
        let asked = tokio::time::timeout(Duration::from_millis(REGISTRY_MS_MAX), self.registry.allow(&key, rate)).await;
        let decision = match asked {
            Ok(Ok(decision)) => decision,
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("roost_api_rate_limit_fallbacks_total").increment(1);
                self.fallback.allow(key, rate, self.clock.steady_ms())
            }
        };
        answer(decision)
    }
}

fn answer(decision: RateDecision) -> Result<(), Problem> {
    match decision {
        RateDecision::Allowed => Ok(()),
        RateDecision::Limited { retry_after_ms } => Err(Problem::rate_limited(retry_after_ms)),
    }
}

/// Who has one IPv6 address has 2^64 of them: they count as one.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

/// GCRA in memory: per key the time at which its bucket is full again.
struct Local<K> {
    state: Mutex<LocalState<K>>,
}

struct LocalState<K> {
    full_at: HashMap<K, u64>,
    purged_at: u64,
}

impl<K> Default for Local<K> {
    fn default() -> Self {
        Self { state: Mutex::new(LocalState { full_at: HashMap::new(), purged_at: 0 }) }
    }
}

impl<K: Eq + Hash> Local<K> {
    fn allow(&self, key: K, rate: Rate, now_ms: u64) -> RateDecision {
        let state = &mut *self.state.lock();
        if state.full_at.len() >= KEYS_MAX && !state.full_at.contains_key(&key) {
            if now_ms >= state.purged_at + PURGE_MS_MIN {
                state.purged_at = now_ms;
                state.full_at.retain(|_, full_at| *full_at > now_ms);
            }
            // Still full: newcomers are not locked out by others' floods.
            if state.full_at.len() >= KEYS_MAX {
                return RateDecision::Allowed;
            }
        }
        let full_at = state.full_at.entry(key).or_insert(now_ms);
        let next = (*full_at).max(now_ms) + rate.interval_ms;
        let tolerance = rate.interval_ms * u64::from(rate.burst.max(1));
        if next > now_ms + tolerance {
            return RateDecision::Limited { retry_after_ms: next - now_ms - tolerance };
        }
        *full_at = next;
        RateDecision::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, interval_ms: 100 };

    #[test]
    fn a_burst_then_one_per_interval() {
        let local = Local::default();
        for _ in 0..3 {
            assert_eq!(local.allow("k", RATE, 1_000), RateDecision::Allowed);
        }
        assert_eq!(local.allow("k", RATE, 1_000), RateDecision::Limited { retry_after_ms: 100 });
        assert_eq!(local.allow("other", RATE, 1_000), RateDecision::Allowed);
        assert_eq!(local.allow("k", RATE, 1_100), RateDecision::Allowed);
        assert!(matches!(local.allow("k", RATE, 1_100), RateDecision::Limited { .. }));
    }

    #[test]
    fn the_memory_is_bounded() {
        let local = Local::default();
        for key in 0..2 * KEYS_MAX {
            local.allow(key, RATE, 1_000);
        }
        assert_eq!(local.state.lock().full_at.len(), KEYS_MAX);
        local.allow(usize::MAX, RATE, 10_000);
        assert_eq!(local.state.lock().full_at.len(), 1);
    }

    #[test]
    fn neighbours_in_an_ipv6_network_are_one() {
        let network = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
