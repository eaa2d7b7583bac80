//! The Store on SQLite: one transaction at a time, for what has arrived together, and readers beside it.

mod accounts;
mod apply;
mod checkpoint;
mod connection;
mod cursor;
mod desk;
mod numbered;
mod reading;
mod replay;
mod schema;
mod writer;

use std::path::Path;

use async_trait::async_trait;
use roost_ports::delivery::VerdictOutcome;
use roost_ports::log::Position;
use roost_ports::store::numbering::Identity;
use roost_ports::store::{
    Account, Applied, ApplyBatch, ApplyError, Claim, ConversationList, Incoming, MembersPage, Migration,
    NewRefreshToken, Replayed, Rotation, SigningKey, Store, StoreError,
};
use roost_protocol::frames::{Heads, HistoryRange, Page};
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, TimeMs, UserId};
use rusqlite::Connection;

use connection::Readers;
use writer::Writer;

/// A Store in one file, with its write-ahead log beside it.
///
/// Every transaction is durable when its call returns, and so is what is read. Several processes may open one file, but
/// it is made for one. Calls are made within a tokio runtime; dropping it waits for what is being written.
pub struct SqliteStore {
    // Dropped in this order: the writer closes last, as the connection that knows what is in the write-ahead log.
    readers: Readers,
    writer: Writer,
    applies: Applies,
}

/// Which thread runs the transaction of [`Store::apply`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applies {
    /// The writer's, whoever calls.
    OnTheWriter,
    /// For a small batch the caller's, which stands still for it: for a caller on a thread of its own, which then is not
    /// woken for the outcome, nor the writer for the work. A large one leaves the caller free to prepare the next.
    OnTheCaller,
}

/// A batch of so many records goes to the writer, whatever [`Applies`] says.
const RECORDS_FOR_THE_WRITER: usize = 64;

impl SqliteStore {
    /// Opens the file, and makes it if it is not there; its folder must be. [`Store::migrate`] makes the tables.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Applies::OnTheWriter)
    }

    /// The same, and says which thread applies.
    pub fn open_with(path: &Path, applies: Applies) -> Result<Self, StoreError> {
        let writer = Writer::open(path).map_err(connection::store_error)?;
        Ok(Self { readers: Readers::new(path, writer.desk()), writer, applies })
    }

    /// Reads one state of the Store.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.run(work).await
    }

    /// Writes, or answers why not; an answer that is an error has changed nothing.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.run(work).await.map_err(writer::WriteError::into_store_error)?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self, migration: &Migration) -> Result<(), StoreError> {
        let migration = migration.clone();
        self.write(move |connection| schema::migrate(connection, &migration)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        // On the writer: that it answers is part of the question.
        self.write(schema::check).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.read(schema::epoch).await
    }

    async fn partitions(&self, log_id: &str) -> Result<u32, StoreError> {
        let log_id = log_id.to_owned();
        self.read(move |connection| schema::partitions(connection, &log_id)).await?.ok_or(StoreError::NotFound)
    }

    async fn claim(&self, log_id: &str, partition: u32) -> Result<Claim, StoreError> {
        let log_id = log_id.to_owned();
        self.write(move |connection| apply::claim(connection, &log_id, partition)).await
    }

    async fn apply(&self, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
        batch.assert_well_formed();
        let batch = batch.clone();
        let records: usize = batch.parts.iter().map(|part| part.records.len()).sum();
        let here = self.applies == Applies::OnTheCaller && records < RECORDS_FOR_THE_WRITER;
        let work = move |connection: &Connection| apply::apply(connection, &batch);
        let applied = match here {
            true => self.writer.run_here_then(work, apply::committed).await,
            false => self.writer.run_then(work, apply::committed).await,
        };
        applied.map_err(writer::WriteError::into_apply_error)
    }

    async fn replay(&self, log_id: &str, partition: u32, records: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        let (log_id, records) = (log_id.to_owned(), records.to_vec());
        self.read(move |connection| replay::replay(connection, &log_id, partition, &records)).await
    }

    async fn set_published(
        &self,
        log_id: &str,
        partition: u32,
        epoch: u64,
        published: Position,
    ) -> Result<(), StoreError> {
        let log_id = log_id.to_owned();
        self.write(move |connection| apply::set_published(connection, &log_id, partition, epoch, published)).await
    }

    async fn outcome(
        &self,
        conversation_id: ConversationId,
        sender_id: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        let identity = Identity { conversation_id, sender_id, client_msg_id };
        self.read(move |connection| replay::outcome(connection, &identity)).await
    }

    async fn history(
        &self,
        user: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let page = self.read(move |connection| reading::history(connection, user, conversation, range, limit));
        page.await?.ok_or(StoreError::NotFound)
    }

    async fn heads(&self, user: UserId, since: Option<&str>, limit: u32) -> Result<Heads, StoreError> {
        let since = since.map(str::to_owned);
        self.read(move |connection| reading::heads(connection, user, since.as_deref(), limit)).await?
    }

    async fn conversations(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: u32,
    ) -> Result<ConversationList, StoreError> {
        self.read(move |connection| reading::conversations(connection, user, after, limit)).await
    }

    async fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<MembersPage, StoreError> {
        let page = self.read(move |connection| reading::members(connection, conversation, after, limit));
        page.await?.ok_or(StoreError::NotFound)
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        let account = account.clone();
        self.write(move |connection| accounts::create_account(connection, &account)).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Account, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| accounts::by_name(connection, &name)).await?.ok_or(StoreError::NotFound)
    }

    async fn account(&self, user: UserId) -> Result<Account, StoreError> {
        self.read(move |connection| accounts::by_id(connection, user)).await?.ok_or(StoreError::NotFound)
    }

    async fn create_device(
        &self,
        user: UserId,
        device: DeviceId,
        label: &str,
        token: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<(), StoreError> {
        let (label, token) = (label.to_owned(), token.clone());
        self.write(move |connection| accounts::create_device(connection, user, device, &label, &token, now)).await
    }

    async fn rotate_refresh_token(
        &self,
        old_hash: &[u8; 32],
        new: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<Rotation, StoreError> {
        let (old_hash, new) = (*old_hash, new.clone());
        self.write(move |connection| accounts::rotate(connection, &old_hash, &new, now)).await
    }

    async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), StoreError> {
        self.write(move |connection| accounts::revoke_device(connection, user, device)).await
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.read(accounts::signing_keys).await
    }

    async fn add_signing_key(&self, key: &SigningKey, unless_since: TimeMs, now: TimeMs) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |connection| accounts::add_signing_key(connection, &key, unless_since, now)).await
    }

    async fn put_gateway(&self, gateway: &Endpoint, until: TimeMs) -> Result<(), StoreError> {
        let gateway = gateway.clone();
        self.write(move |connection| accounts::put_gateway(connection, &gateway, until)).await
    }

    async fn remove_gateway(&self, gateway: &Endpoint) -> Result<(), StoreError> {
        let gateway = gateway.clone();
        self.write(move |connection| accounts::remove_gateway(connection, &gateway)).await
    }

    async fn gateways(&self, now: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        self.read(move |connection| accounts::gateways(connection, now)).await
    }
}
