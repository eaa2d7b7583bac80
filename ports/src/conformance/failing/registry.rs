//! A Registry that fails.

use std::sync::Arc;

use async_trait::async_trait;
use roost_protocol::records::Endpoint;
use roost_protocol::{Incarnation, UserId};

use super::{FaultPlace, Faults, INJECTED};
use crate::registry::{
    Located, Rate, RateDecision, Registry, RegistryError, RegistryIncarnation, Renewal, SessionEntry,
};

/// Calls fail as `Unavailable`, half of them after they have had their effect.
pub struct FailingRegistry {
    inner: Arc<dyn Registry>,
    faults: Faults,
}

impl FailingRegistry {
    /// Wraps a registry.
    pub fn new(inner: Arc<dyn Registry>, faults: Faults) -> Arc<Self> {
        Arc::new(Self { inner, faults })
    }

    async fn pass<T>(&self, call: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let unavailable = || RegistryError::Unavailable(INJECTED.into());
        match self.faults.roll() {
            None => call.await,
            Some(FaultPlace::Before) => Err(unavailable()),
            Some(FaultPlace::After) => call.await.and_then(|_| Err(unavailable())),
        }
    }
}

#[async_trait]
impl Registry for FailingRegistry {
    async fn acquire(&self, gateway: &Endpoint, ttl_ms: u64) -> Result<Renewal, RegistryError> {
        self.pass(self.inner.acquire(gateway, ttl_ms)).await
    }

    async fn renew(
        &self,
        gateway: &Endpoint,
        known: RegistryIncarnation,
        ttl_ms: u64,
    ) -> Result<Renewal, RegistryError> {
        self.pass(self.inner.renew(gateway, known, ttl_ms)).await
    }

    async fn complete(&self, gateway: Incarnation, registry: RegistryIncarnation) -> Result<(), RegistryError> {
        self.pass(self.inner.complete(gateway, registry)).await
    }

    async fn release(&self, gateway: Incarnation) -> Result<(), RegistryError> {
        self.pass(self.inner.release(gateway)).await
    }

    async fn register(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.pass(self.inner.register(gateway, sessions)).await
    }

    async fn unregister(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.pass(self.inner.unregister(gateway, sessions)).await
    }

    async fn locate(&self, users: &[UserId]) -> Result<Located, RegistryError> {
        self.pass(self.inner.locate(users)).await
    }

    async fn allow(&self, key: &str, rate: Rate) -> Result<RateDecision, RegistryError> {
        self.pass(self.inner.allow(key, rate)).await
    }

    async fn check(&self) -> Result<(), RegistryError> {
        self.pass(self.inner.check()).await
    }
}
