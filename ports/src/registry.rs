//! The Registry: which session of which user lives on which gateway. Nothing durable lives here.

use async_trait::async_trait;
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, SessionId, UserId};

/// A registered session. Its gateway is the one whose incarnation the session id holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionEntry {
    /// Whose.
    pub user_id: UserId,
    /// On which device.
    pub device_id: DeviceId,
    /// Which session.
    pub session_id: SessionId,
}

/// A life of the Registry itself: another one (or none) after it lost what it held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegistryIncarnation(pub u64);

/// A gateway as the Registry knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayEntry {
    /// Where it is and which life.
    pub endpoint: Endpoint,
    /// It has said that everything it holds is registered under the Registry's present incarnation. Until then
    /// "nobody" means "ask that gateway too".
    pub complete: bool,
}

/// The answer to [`Registry::locate`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Located {
    /// The live sessions of the users asked for, on gateways with a live lease only.
    pub sessions: Vec<SessionEntry>,
    /// All gateways with a live lease.
    pub gateways: Vec<GatewayEntry>,
}

/// The answer to a renewal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewal {
    /// How many writes of this gateway the Registry has counted. Lower than the gateway's own count: writes were lost,
    /// register everything again.
    pub writes: u64,
    /// The Registry's life. Another one than before: register everything again, then say `complete`.
    pub registry: RegistryIncarnation,
}

/// A rate in the GCRA form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// This many at once.
    pub burst: u32,
    /// Then one per so many milliseconds.
    pub interval_ms: u64,
}

/// The answer of a rate limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateDecision {
    /// Go on.
    Allowed,
    /// Not now; this long to wait.
    Limited {
        /// Milliseconds.
        retry_after_ms: u64,
    },
}

/// Why the Registry failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer in time: use the fallback (ask all live gateways).
    #[error("the registry does not answer: {0}")]
    Unavailable(String),
    /// The lease is over or another's: the gateway closes its sessions with the resume code before anything else.
    #[error("the lease is lost")]
    LeaseLost,
}

/// Where sessions are.
///
/// * A session is registered before its client hears `connected`.
/// * A gateway's entries count only while its lease lives: after its end nothing names the gateway (I16).
/// * Stale entries lose: `unregister` removes an entry only if it is exactly the one given (compare and delete), so a
///   late delete never removes a newer registration.
/// * Every call of `register` and `unregister` raises the gateway's counter by one in the same atomic step.
/// * Every call for a lease that is over, but `acquire` and `release`, fails with `LeaseLost`.
/// * A renewal extends only an existing lease of the same incarnation; it makes one only where the Registry itself has
///   begun a new life and so has forgotten all of them. (Whether its own lease has passed meanwhile, a gateway knows by
///   its own steady clock.)
/// * After a new life the list of gateways is complete only once all have renewed: readers also ask the Store's list.
/// * Every call answers within a second, or fails with `Unavailable`.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Begins the lease of a new incarnation of a gateway. The counter starts at 0. Asking again is no error, as
    /// long as nothing was written (the first answer was lost).
    async fn acquire(&self, gateway: &Endpoint, ttl_ms: u64) -> Result<Renewal, RegistryError>;

    /// Extends the lease. `known` is the Registry's life as this gateway last heard it: where the Registry has had
    /// another life since (it came back empty), it knows no leases at all, and the gateway's begins anew with a counter
    /// of 0 and not complete; the gateway sees the new life in the answer and registers everything again. In the same
    /// life a lease that is not there is [`RegistryError::LeaseLost`].
    async fn renew(
        &self,
        gateway: &Endpoint,
        known: RegistryIncarnation,
        ttl_ms: u64,
    ) -> Result<Renewal, RegistryError>;

    /// Says that everything the gateway holds is registered under this life of the Registry. `Ok` without effect where
    /// the Registry lives another life by now: the next renewal tells.
    async fn complete(&self, gateway: Incarnation, registry: RegistryIncarnation) -> Result<(), RegistryError>;

    /// Ends the lease at once and drops the gateway's entries. Ending one that is over is no error.
    async fn release(&self, gateway: Incarnation) -> Result<(), RegistryError>;

    /// Registers sessions of one gateway. Registering one again is no error. Returns the gateway's counter.
    async fn register(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError>;

    /// Removes exactly these entries. Returns the gateway's counter.
    async fn unregister(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError>;

    /// The live sessions of these users, and all live gateways.
    async fn locate(&self, users: &[UserId]) -> Result<Located, RegistryError>;

    /// A shared rate limit: one use of `key` now.
    async fn allow(&self, key: &str, rate: Rate) -> Result<RateDecision, RegistryError>;

    /// Whether it answers; for readiness and `roost doctor`.
    async fn check(&self) -> Result<(), RegistryError>;
}
