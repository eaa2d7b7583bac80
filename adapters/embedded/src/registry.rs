//! The Registry in memory: leases by the steady clock, sessions in one ordered map, rates by GCRA.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_ports::Clock;
use roost_ports::registry::{
    GatewayEntry, Located, Rate, RateDecision, Registry, RegistryError, RegistryIncarnation, Renewal, SessionEntry,
};
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, SessionId, UserId};

/// The rates' table is cleaned of what has refilled once it is this large, and then at each doubling.
const RATES_CLEANED_AT: usize = 4_096;

/// The Registry of one process.
pub struct MemoryRegistry {
    clock: Arc<dyn Clock>,
    life: RegistryIncarnation,
    sessions: Mutex<Sessions>,
    rates: Mutex<Rates>,
}

#[derive(Default)]
struct Sessions {
    gateways: HashMap<Incarnation, Lease>,
    /// Ordered by user, so that one user's sessions stand together; about 60 bytes a session.
    entries: BTreeMap<(UserId, SessionId), DeviceId>,
}

struct Lease {
    endpoint: Endpoint,
    until_ms: u64,
    writes: u64,
    complete: bool,
}

struct Rates {
    /// When each key's allowance is whole again: the theoretical arrival time of GCRA.
    full_at_ms: HashMap<Box<str>, u64>,
    cleaned_at: usize,
}

impl MemoryRegistry {
    /// An empty Registry that tells the time by this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            life: RegistryIncarnation(Incarnation::new().0),
            sessions: Mutex::new(Sessions::default()),
            rates: Mutex::new(Rates { full_at_ms: HashMap::new(), cleaned_at: RATES_CLEANED_AT }),
        }
    }

    /// Does something under a live lease, and counts it where it is a write.
    fn write(&self, gateway: Incarnation, change: impl FnOnce(&mut Sessions)) -> Result<u64, RegistryError> {
        let now_ms = self.clock.steady_ms();
        let mut sessions = self.sessions.lock();
        sessions.end_leases(now_ms);
        if !sessions.gateways.contains_key(&gateway) {
            return Err(RegistryError::LeaseLost);
        }
        change(&mut sessions);
        let lease = sessions.gateways.get_mut(&gateway).ok_or(RegistryError::LeaseLost)?;
        lease.writes += 1;
        Ok(lease.writes)
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn acquire(&self, gateway: &Endpoint, ttl_ms: u64) -> Result<Renewal, RegistryError> {
        let now_ms = self.clock.steady_ms();
        let mut sessions = self.sessions.lock();
        sessions.end_leases(now_ms);
        Ok(sessions.extend_or_begin(gateway, now_ms + ttl_ms, self.life))
    }

    async fn renew(
        &self,
        gateway: &Endpoint,
        known: RegistryIncarnation,
        ttl_ms: u64,
    ) -> Result<Renewal, RegistryError> {
        let now_ms = self.clock.steady_ms();
        let mut sessions = self.sessions.lock();
        sessions.end_leases(now_ms);
        if known == self.life && !sessions.gateways.contains_key(&gateway.incarnation) {
            return Err(RegistryError::LeaseLost);
        }
        Ok(sessions.extend_or_begin(gateway, now_ms + ttl_ms, self.life))
    }

    async fn complete(&self, gateway: Incarnation, registry: RegistryIncarnation) -> Result<(), RegistryError> {
        let now_ms = self.clock.steady_ms();
        let mut sessions = self.sessions.lock();
        sessions.end_leases(now_ms);
        let lease = sessions.gateways.get_mut(&gateway).ok_or(RegistryError::LeaseLost)?;
        lease.complete |= registry == self.life;
        Ok(())
    }

    async fn release(&self, gateway: Incarnation) -> Result<(), RegistryError> {
        let mut sessions = self.sessions.lock();
        if sessions.gateways.remove(&gateway).is_some() {
            sessions.entries.retain(|(_, session), _| session.incarnation() != gateway);
        }
        Ok(())
    }

    async fn register(&self, gateway: Incarnation, entries: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.write(gateway, |sessions| {
            for entry in entries {
                assert_eq!(entry.session_id.incarnation(), gateway, "a gateway registers its own sessions only");
                sessions.entries.insert((entry.user_id, entry.session_id), entry.device_id);
            }
        })
    }

    async fn unregister(&self, gateway: Incarnation, entries: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.write(gateway, |sessions| {
            for entry in entries {
                let key = (entry.user_id, entry.session_id);
                if sessions.entries.get(&key) == Some(&entry.device_id) {
                    sessions.entries.remove(&key);
                }
            }
        })
    }

    async fn locate(&self, users: &[UserId]) -> Result<Located, RegistryError> {
        let now_ms = self.clock.steady_ms();
        let mut sessions = self.sessions.lock();
        sessions.end_leases(now_ms);
        let mut located = Located::default();
        for user_id in users {
            located.sessions.extend(sessions.entries.range(of_user(*user_id)).map(
                |((user_id, session_id), device_id)| SessionEntry {
                    user_id: *user_id,
                    device_id: *device_id,
                    session_id: *session_id,
                },
            ));
        }
        let gateways = sessions.gateways.values();
        located.gateways =
            gateways.map(|lease| GatewayEntry { endpoint: lease.endpoint.clone(), complete: lease.complete }).collect();
        Ok(located)
    }

    async fn allow(&self, key: &str, rate: Rate) -> Result<RateDecision, RegistryError> {
        Ok(self.rates.lock().allow(key, rate, self.clock.steady_ms()))
    }

    async fn check(&self) -> Result<(), RegistryError> {
        Ok(())
    }
}

impl Sessions {
    /// Leases that are over leave nothing behind. Looked at by every call: there are few gateways, and the clock of
    /// nobody else decides.
    fn end_leases(&mut self, now_ms: u64) {
        if self.gateways.values().all(|lease| now_ms < lease.until_ms) {
            return;
        }
        self.gateways.retain(|_, lease| now_ms < lease.until_ms);
        let gateways = &self.gateways;
        self.entries.retain(|(_, session), _| gateways.contains_key(&session.incarnation()));
    }

    fn extend_or_begin(&mut self, gateway: &Endpoint, until_ms: u64, registry: RegistryIncarnation) -> Renewal {
        let begin = || Lease { endpoint: gateway.clone(), until_ms, writes: 0, complete: false };
        let lease = self.gateways.entry(gateway.incarnation).or_insert_with(begin);
        lease.until_ms = until_ms;
        Renewal { writes: lease.writes, registry }
    }
}

impl Rates {
    fn allow(&mut self, key: &str, rate: Rate, now_ms: u64) -> RateDecision {
        let tolerance_ms = u64::from(rate.burst.saturating_sub(1)) * rate.interval_ms;
        let full_at_ms = self.full_at_ms.get(key).copied().unwrap_or(0).max(now_ms);
        let ahead_ms = full_at_ms - now_ms;
        if ahead_ms > tolerance_ms || rate.burst == 0 {
            return RateDecision::Limited { retry_after_ms: ahead_ms.saturating_sub(tolerance_ms).max(1) };
        }
        let full_at_ms = full_at_ms + rate.interval_ms;
        match self.full_at_ms.get_mut(key) {
            Some(known) => *known = full_at_ms,
            None => {
                self.clean(now_ms);
                self.full_at_ms.insert(key.into(), full_at_ms);
            }
        }
        RateDecision::Allowed
    }

    /// A key whose allowance is whole again is as good as unknown.
    fn clean(&mut self, now_ms: u64) {
        if self.full_at_ms.len() >= self.cleaned_at {
            self.full_at_ms.retain(|_, full_at_ms| now_ms < *full_at_ms);
            self.cleaned_at = (self.full_at_ms.len() * 2).max(RATES_CLEANED_AT);
            self.full_at_ms.shrink_to(self.cleaned_at);
        }
    }
}

/// A user's part of the map.
fn of_user(user_id: UserId) -> RangeInclusive<(UserId, SessionId)> {
    let first = SessionId::new(Incarnation(0), 0, 0, 0);
    let last = SessionId::new(Incarnation(u64::MAX), u8::MAX, u32::MAX, SessionId::GENERATION_MAX);
    (user_id, first)..=(user_id, last)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn now_ms(&self) -> u64 {
            0
        }

        fn steady_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_lease_ends_to_the_millisecond() {
        let clock = Arc::new(ManualClock::default());
        let registry = MemoryRegistry::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let gateway = Endpoint { address: String::new(), incarnation: Incarnation::new() };
        let life = registry.acquire(&gateway, 100).await.expect("a lease").registry;
        clock.0.store(99, Ordering::Relaxed);
        registry.renew(&gateway, life, 100).await.expect("just in time");
        clock.0.store(199, Ordering::Relaxed);
        assert_eq!(registry.locate(&[]).await.expect("answers").gateways, []);
        assert_eq!(registry.renew(&gateway, life, 100).await, Err(RegistryError::LeaseLost));
    }

    #[test]
    fn a_rate_is_exact_to_the_millisecond_and_forgets_what_has_refilled() {
        let mut rates = Rates { full_at_ms: HashMap::new(), cleaned_at: RATES_CLEANED_AT };
        let rate = Rate { burst: 3, interval_ms: 10 };
        let limited = |retry_after_ms| RateDecision::Limited { retry_after_ms };
        for now_ms in [1000, 1000, 1004] {
            assert_eq!(rates.allow("k", rate, now_ms), RateDecision::Allowed);
        }
        assert_eq!(rates.allow("k", rate, 1004), limited(6));
        assert_eq!(rates.allow("k", rate, 1009), limited(1));
        assert_eq!(rates.allow("k", rate, 1010), RateDecision::Allowed);
        assert_eq!(rates.allow("k", rate, 1010), limited(10));
        assert_eq!(rates.allow("k", Rate { burst: 0, interval_ms: 10 }, 5000), limited(1));
        for number in 0..3 * RATES_CLEANED_AT {
            rates.allow(&number.to_string(), rate, 2000 + number as u64);
        }
        assert!(rates.full_at_ms.len() <= RATES_CLEANED_AT, "{}", rates.full_at_ms.len());
    }
}
