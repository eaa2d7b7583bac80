//! What every Registry does, whatever it stands on.

mod leases;
mod rates;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, SessionId, UserId};
use uuid::Uuid;

use crate::registry::{GatewayEntry, Located, Registry, RegistryError, RegistryIncarnation, Renewal, SessionEntry};

pub use leases::*;
pub use rates::*;
pub use sessions::*;

/// Nothing that has to happen may take longer: not a figure, only the difference between slow and never.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(240);

/// A lease that does not end within a case, however busy the machine is.
pub(crate) const LONG_MS: u64 = 600_000;

/// What an adapter's tests give to the suite. Cases use fresh ids, so one Registry may serve many at once.
#[async_trait]
pub trait RegistryHarness: Send + Sync {
    /// A Registry; may be shared with other cases.
    async fn make(&self) -> Arc<dyn Registry>;
}

/// A gateway of the suite, with a lease of its own.
pub(crate) struct Gateway {
    pub endpoint: Endpoint,
    pub incarnation: Incarnation,
    /// The Registry's life as it last heard it.
    pub known: RegistryIncarnation,
    slots: u32,
}

impl Gateway {
    /// One without a lease.
    pub fn new() -> Self {
        let incarnation = Incarnation::new();
        let address = format!("gateway-{}:7000", Uuid::now_v7().simple());
        Self { endpoint: Endpoint { address, incarnation }, incarnation, known: RegistryIncarnation(0), slots: 0 }
    }

    /// One with a lease that outlives the case.
    pub async fn live(registry: &Arc<dyn Registry>) -> Self {
        let mut gateway = Self::new();
        gateway.acquire(registry).await;
        gateway
    }

    /// Begins its lease, one that outlives the case.
    pub async fn acquire(&mut self, registry: &Arc<dyn Registry>) {
        let renewal = registry.acquire(&self.endpoint, LONG_MS).await.expect("a lease");
        assert_eq!(renewal.writes, 0, "a new lease has counted nothing");
        self.known = renewal.registry;
    }

    /// Extends its lease, knowing the Registry's present life.
    pub async fn renew(&self, registry: &Arc<dyn Registry>) -> Result<Renewal, RegistryError> {
        registry.renew(&self.endpoint, self.known, LONG_MS).await
    }

    /// A new session of a user on it.
    pub fn session(&mut self, user_id: UserId) -> SessionEntry {
        self.slots += 1;
        let session_id = SessionId::new(self.incarnation, 1, self.slots, 1);
        SessionEntry { user_id, device_id: DeviceId::new(), session_id }
    }
}

/// The sessions of the users, sorted for comparing.
pub(crate) async fn sessions_of(registry: &Arc<dyn Registry>, users: &[UserId]) -> Vec<SessionEntry> {
    sorted(registry.locate(users).await.expect("the registry answers"))
}

pub(crate) fn sorted(located: Located) -> Vec<SessionEntry> {
    let mut sessions = located.sessions;
    sessions.sort_by_key(|entry| (entry.user_id, entry.session_id));
    sessions
}

/// The entry of a gateway, if it is known as live.
pub(crate) async fn entry_of(registry: &Arc<dyn Registry>, gateway: &Gateway) -> Option<GatewayEntry> {
    let located = registry.locate(&[]).await.expect("the registry answers");
    let mut entries = located.gateways.into_iter().filter(|entry| entry.endpoint == gateway.endpoint);
    let entry = entries.next();
    assert!(entries.next().is_none(), "a gateway is listed twice");
    entry
}

/// Tries until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + LIVENESS_LIMIT;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come within {LIVENESS_LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
