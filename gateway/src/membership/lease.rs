//! The lease: acquired, renewed, and when it is lost, a new life in which nothing of the old one is served.

use std::sync::Arc;

use roost_ports::registry::{RegistryError, Renewal};
use roost_protocol::Incarnation;

use super::Membership;
use super::sweep::Sweep;
use crate::mail::Mail;

impl Membership {
    /// Renews the lease, or acquires it where that has not worked yet.
    pub(super) async fn keep_lease(&mut self) {
        let shared = Arc::clone(&self.shared);
        let started_ms = shared.ports.clock.steady_ms();
        if shared.lease.has_passed(started_ms) {
            shared.lease.note_lapse();
            return;
        }
        let ttl_ms = shared.config.lease_ttl_ms;
        let endpoint = shared.endpoint();
        let result = match self.registry {
            Some(known) => self.within_limit(shared.ports.registry.renew(&endpoint, known, ttl_ms)).await,
            None => self.within_limit(shared.ports.registry.acquire(&endpoint, ttl_ms)).await,
        };
        match result {
            Ok(renewal) => {
                self.note_renewal(renewal);
                // From before the call: the Registry may have counted from then.
                shared.lease.extend(started_ms + ttl_ms);
            }
            Err(RegistryError::LeaseLost) => {
                tracing::error!("the registry does not know the lease");
                shared.lease.note_lapse();
            }
            // The Registry cannot take the lease away while nobody can ask it; the fan-out asks the gateways that stand
            // in the Store. What must not pass unseen is our own standing still, and we have just moved.
            Err(RegistryError::Unavailable(problem)) => {
                self.note_away(&problem);
                shared.lease.extend(started_ms + ttl_ms);
            }
        }
    }

    fn note_renewal(&mut self, renewal: Renewal) {
        if self.away && self.registry.is_some() {
            tracing::info!("the registry is back");
        }
        self.away = false;
        let another = self.registry.is_some_and(|known| known != renewal.registry);
        if another || (self.registry.is_some() && renewal.writes < self.writes) {
            self.register_all_again(renewal.writes, another);
        }
        self.registry = Some(renewal.registry);
        self.writes = renewal.writes;
    }

    pub(super) fn register_all_again(&mut self, counted: u64, another: bool) {
        let expected = self.writes;
        tracing::warn!(counted, expected, another, "the registry has lost writes: everything is registered again");
        self.shared.metrics.reregistrations.add(1);
        self.sweep = Some(Sweep::new());
        self.complete = false;
    }

    /// Begins a new life. The shards close every session of the old one before they serve anything else.
    pub(super) async fn lose_lease(&mut self, reason: &str) {
        let shared = Arc::clone(&self.shared);
        let old = shared.endpoint();
        let new = Incarnation::new();
        tracing::error!(old = %old.incarnation, new = %new, reason, "the lease is lost: every session is closed");
        shared.metrics.leases_lost.add(1);
        shared.lease.begin_life(new, shared.ports.clock.steady_ms() + shared.config.lease_ttl_ms);
        shared.tell_all_shards(|| Mail::NewLife(new));
        (self.complete, self.away, self.renews_now) = (false, true, false);
        (self.registry, self.writes, self.sweep) = (None, 0, None);
        self.late.clear();
        self.removals.clear();
        let store = Arc::clone(&shared.ports.store);
        shared.runtime.spawn(async move {
            if let Err(error) = store.remove_gateway(&old).await {
                tracing::warn!(%error, "the old life stays noted until its time has passed");
            }
        });
        self.keep_lease().await;
    }
}
