//! The Store port over PostgreSQL: which pool serves which call.

use async_trait::async_trait;
use roost_ports::delivery::VerdictOutcome;
use roost_ports::log::Position;
use roost_ports::store::{
    Account, Applied, ApplyBatch, ApplyError, Claim, ConversationList, Incoming, MembersPage, Migration,
    NewRefreshToken, Replayed, Rotation, SigningKey, Store, StoreError,
};
use roost_protocol::frames::{Heads, HistoryRange, Page};
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, TimeMs, UserId};

use crate::config::PostgresConfig;
use crate::pool::Pool;
use crate::{accounts, apply, progress, reading, schema};

/// The Store over PostgreSQL.
///
/// Two pools of sessions: one for the numbering transaction and everything about progress, one for the rest, so that
/// no crowd of readers can keep messages from being numbered. Sessions are opened when they are needed.
pub struct PostgresStore {
    config: PostgresConfig,
    numbering: Pool,
    reads: Pool,
}

impl PostgresStore {
    /// Connects with the usual number of sessions; see [`PostgresConfig::parse`] for the form of the address.
    ///
    /// Asks the server once, so that a wrong address, a server that is away (`Unavailable`: try again) and one whose
    /// commits are not durable (`Refused`) are known at the start. The schema need not be there yet: see
    /// [`Store::migrate`] and [`Store::check`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(PostgresConfig::parse(url)?).await
    }

    /// Connects as configured.
    pub async fn connect_with(config: PostgresConfig) -> Result<Self, StoreError> {
        let numbering = Pool::new(config.options.clone(), config.apply_sessions_max);
        let reads = Pool::new(config.options.clone(), config.read_sessions_max);
        schema::check_server(&reads).await?;
        Ok(Self { config, numbering, reads })
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self, migration: &Migration) -> Result<(), StoreError> {
        schema::migrate(&self.config, migration).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        schema::check_server(&self.reads).await?;
        schema::check_schema(&self.reads).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        reading::epoch(&self.reads).await
    }

    async fn partitions(&self, log_id: &str) -> Result<u32, StoreError> {
        progress::partitions(&self.reads, log_id).await
    }

    async fn claim(&self, log_id: &str, partition: u32) -> Result<Claim, StoreError> {
        progress::claim(&self.numbering, log_id, partition).await
    }

    async fn apply(&self, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
        apply::apply(&self.numbering, batch).await
    }

    async fn replay(&self, log_id: &str, partition: u32, records: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        progress::replay(&self.numbering, log_id, partition, records).await
    }

    async fn set_published(
        &self,
        log_id: &str,
        partition: u32,
        epoch: u64,
        published: Position,
    ) -> Result<(), StoreError> {
        progress::set_published(&self.numbering, log_id, partition, epoch, published).await
    }

    async fn outcome(
        &self,
        conversation: ConversationId,
        sender: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        reading::outcome(&self.reads, conversation, sender, client_msg_id).await
    }

    async fn history(
        &self,
        user: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        reading::history(&self.reads, user, conversation, range, limit).await
    }

    async fn heads(&self, user: UserId, since: Option<&str>, limit: u32) -> Result<Heads, StoreError> {
        reading::heads(&self.reads, user, since, limit).await
    }

    async fn conversations(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: u32,
    ) -> Result<ConversationList, StoreError> {
        reading::conversations(&self.reads, user, after, limit).await
    }

    async fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<MembersPage, StoreError> {
        reading::members(&self.reads, conversation, after, limit).await
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        accounts::create_account(&self.reads, account).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Account, StoreError> {
        accounts::account_by_name(&self.reads, name).await
    }

    async fn account(&self, user: UserId) -> Result<Account, StoreError> {
        accounts::account(&self.reads, user).await
    }

    async fn create_device(
        &self,
        user: UserId,
        device: DeviceId,
        label: &str,
        token: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<(), StoreError> {
        accounts::create_device(&self.reads, user, device, label, token, now).await
    }

    async fn rotate_refresh_token(
        &self,
        old_hash: &[u8; 32],
        new: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<Rotation, StoreError> {
        accounts::rotate_refresh_token(&self.reads, old_hash, new, now).await
    }

    async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), StoreError> {
        accounts::revoke_device(&self.reads, user, device).await
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        accounts::signing_keys(&self.reads).await
    }

    async fn add_signing_key(&self, key: &SigningKey, unless_since: TimeMs, now: TimeMs) -> Result<(), StoreError> {
        accounts::add_signing_key(&self.reads, key, unless_since, now).await
    }

    async fn put_gateway(&self, gateway: &Endpoint, until: TimeMs) -> Result<(), StoreError> {
        accounts::put_gateway(&self.reads, gateway, until).await
    }

    async fn remove_gateway(&self, gateway: &Endpoint) -> Result<(), StoreError> {
        accounts::remove_gateway(&self.reads, gateway).await
    }

    async fn gateways(&self, now: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        accounts::gateways(&self.reads, now).await
    }
}
