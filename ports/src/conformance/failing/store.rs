//! A Store that fails.

use std::sync::Arc;

use async_trait::async_trait;
use roost_protocol::frames::{Heads, HistoryRange, Page};
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, TimeMs, UserId};

use super::{FaultPlace, Faults, INJECTED};
use crate::delivery::VerdictOutcome;
use crate::log::Position;
use crate::store::{
    Account, Applied, ApplyBatch, ApplyError, Claim, ConversationList, Incoming, MembersPage, Migration,
    NewRefreshToken, Replayed, Rotation, SigningKey, Store, StoreError,
};

/// Calls fail before they reach the Store or after it has done them; `apply` may also lose the word on its commit, done
/// or not. What it does acknowledge is as good as the Store below.
pub struct FailingStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl FailingStore {
    /// Wraps a Store.
    pub fn new(inner: Arc<dyn Store>, faults: Faults) -> Arc<Self> {
        Arc::new(Self { inner, faults })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let unavailable = || Err(StoreError::Unavailable(INJECTED.to_owned()));
        match self.faults.roll() {
            None => call.await,
            Some(FaultPlace::Before) => unavailable(),
            Some(FaultPlace::After) => call.await.and_then(|_| unavailable()),
        }
    }
}

#[async_trait]
impl Store for FailingStore {
    async fn migrate(&self, migration: &Migration) -> Result<(), StoreError> {
        self.call(self.inner.migrate(migration)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.call(self.inner.check()).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.call(self.inner.epoch()).await
    }

    async fn partitions(&self, log_id: &str) -> Result<u32, StoreError> {
        self.call(self.inner.partitions(log_id)).await
    }

    async fn claim(&self, log_id: &str, partition: u32) -> Result<Claim, StoreError> {
        self.call(self.inner.claim(log_id, partition)).await
    }

    async fn apply(&self, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
        let uncertain = || Err(ApplyError::Uncertain(INJECTED.to_owned()));
        match self.faults.roll() {
            None => self.inner.apply(batch).await,
            Some(FaultPlace::Before) if self.faults.coin() => Err(ApplyError::Unavailable(INJECTED.to_owned())),
            Some(FaultPlace::Before) => uncertain(),
            Some(FaultPlace::After) => self.inner.apply(batch).await.and_then(|_| uncertain()),
        }
    }

    async fn replay(&self, log_id: &str, partition: u32, records: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        self.call(self.inner.replay(log_id, partition, records)).await
    }

    async fn set_published(
        &self,
        log_id: &str,
        partition: u32,
        epoch: u64,
        published: Position,
    ) -> Result<(), StoreError> {
        self.call(self.inner.set_published(log_id, partition, epoch, published)).await
    }

    async fn outcome(
        &self,
        conversation: ConversationId,
        sender: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        self.call(self.inner.outcome(conversation, sender, client_msg_id)).await
    }

    async fn history(
        &self,
        user: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        self.call(self.inner.history(user, conversation, range, limit)).await
    }

    async fn heads(&self, user: UserId, since: Option<&str>, limit: u32) -> Result<Heads, StoreError> {
        self.call(self.inner.heads(user, since, limit)).await
    }

    async fn conversations(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: u32,
    ) -> Result<ConversationList, StoreError> {
        self.call(self.inner.conversations(user, after, limit)).await
    }

    async fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<MembersPage, StoreError> {
        self.call(self.inner.members(conversation, after, limit)).await
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        self.call(self.inner.create_account(account)).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Account, StoreError> {
        self.call(self.inner.account_by_name(name)).await
    }

    async fn account(&self, user: UserId) -> Result<Account, StoreError> {
        self.call(self.inner.account(user)).await
    }

    async fn create_device(
        &self,
        user: UserId,
        device: DeviceId,
        label: &str,
        token: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<(), StoreError> {
        self.call(self.inner.create_device(user, device, label, token, now)).await
    }

    async fn rotate_refresh_token(
        &self,
        old_hash: &[u8; 32],
        new: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<Rotation, StoreError> {
        self.call(self.inner.rotate_refresh_token(old_hash, new, now)).await
    }

    async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), StoreError> {
        self.call(self.inner.revoke_device(user, device)).await
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.call(self.inner.signing_keys()).await
    }

    async fn add_signing_key(&self, key: &SigningKey, unless_since: TimeMs, now: TimeMs) -> Result<(), StoreError> {
        self.call(self.inner.add_signing_key(key, unless_since, now)).await
    }

    async fn put_gateway(&self, gateway: &Endpoint, until: TimeMs) -> Result<(), StoreError> {
        self.call(self.inner.put_gateway(gateway, until)).await
    }

    async fn remove_gateway(&self, gateway: &Endpoint) -> Result<(), StoreError> {
        self.call(self.inner.remove_gateway(gateway)).await
    }

    async fn gateways(&self, now: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        self.call(self.inner.gateways(now)).await
    }
}
