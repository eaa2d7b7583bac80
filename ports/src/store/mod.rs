//! The Store: messages and their numbers, accounts, devices, conversations, members.

pub mod accounts;
pub mod apply;
pub mod conversations;
pub mod numbering;
pub mod stored;

use async_trait::async_trait;
use roost_protocol::frames::{Heads, HistoryRange, Page};
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, TimeMs, UserId};

pub use accounts::{Account, NewRefreshToken, Rotation, SigningKey};
pub use apply::{Applied, ApplyBatch, ApplyError, Claim, Incoming, Outcome, PartBatch, PartOutcome, Replayed};
pub use conversations::{ConversationEntry, ConversationList, Member, MembersPage};

/// Why a call of the Store failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// Try again with back-off; nothing was changed, or what was changed is idempotent.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// There is no such thing, or it is not this user's to see.
    #[error("not found")]
    NotFound,
    /// The name or id is taken.
    #[error("already exists")]
    AlreadyExists,
    /// The cursor is not one of ours.
    #[error("invalid cursor")]
    InvalidCursor,
    /// The Store is not what it should be (schema, settings, partition count): a person has to act.
    #[error("the store is refused: {0}")]
    Refused(String),
}

/// What a new or changed Store is set up for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Migration {
    /// The log whose progress rows are made, all at 0.
    pub log_id: String,
    /// How many partitions it has. A changed count is refused.
    pub partitions: u32,
}

/// Messages with their numbers, and everything else that must not be lost.
///
/// The numbering contract is on [`Store::claim`], [`Store::apply`] and [`Store::replay`]; everything else is ordinary.
/// Everything durable that Roost acknowledges is durable because a call here returned.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes or upgrades the schema, and the progress rows of a log at position 0. Safe to run again.
    async fn migrate(&self, migration: &Migration) -> Result<(), StoreError>;

    /// Whether the Store answers, its schema is this build's and its settings are durable (no `fsync` or
    /// `synchronous_commit` off); for readiness and `roost doctor`.
    async fn check(&self) -> Result<(), StoreError>;

    /// Identity of the history; a new one where a person has repaired it so that clients cannot go on.
    async fn epoch(&self) -> Result<Epoch, StoreError>;

    /// How many partitions the log must have.
    async fn partitions(&self, log_id: &str) -> Result<u32, StoreError>;

    // The numbering transaction.

    /// Takes a partition over: raises its owner_epoch, so that whoever held it before can commit nothing more, and
    /// returns its progress. `Refused` for a partition that was never migrated.
    async fn claim(&self, log_id: &str, partition: u32) -> Result<Claim, StoreError>;

    /// Applies a batch over several partitions in ONE transaction, in this order:
    ///
    /// 1. Lock the progress rows in order of the partition. Parts whose next position or owner_epoch are not the
    ///    batch's are dropped ([`PartOutcome::NotOurs`]); the rest goes on. Their next position, last digest and
    ///    published position are updated.
    /// 2. Lock the conversations in order of their ids. In a *later* statement look up every (conversation, sender,
    ///    client_msg_id): known ones keep their first verdict. Dedupe comes before membership.
    /// 3. [`numbering::decide`] gives seqs in log order, or rejections; all rows are plain inserts: a conflict aborts
    ///    with [`ApplyError::Conflict`].
    /// 4. Commit. `Ok` is returned only after the commit is durable.
    ///
    /// What must not happen: a number given twice or skipped; a record of a fenced owner applied; a record applied
    /// without leaving a row (message, rejection, dead letter).
    async fn apply(&self, batch: &ApplyBatch) -> Result<Applied, ApplyError>;

    /// Looks up what records below the next position became, without applying anything: the rows as they are now.
    /// A record without its row is [`Replayed::Missing`]: the partition must be given up with an alarm.
    async fn replay(&self, log_id: &str, partition: u32, records: &[Incoming]) -> Result<Vec<Replayed>, StoreError>;

    /// Notes what has been published from a partition while nothing new is applied. A no-op for another owner.
    async fn set_published(
        &self,
        log_id: &str,
        partition: u32,
        epoch: u64,
        published: crate::log::Position,
    ) -> Result<(), StoreError>;

    /// What became of a request, for whoever did not get its verdict.
    async fn outcome(
        &self,
        conversation: ConversationId,
        sender: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<crate::delivery::VerdictOutcome>, StoreError>;

    // What users see.

    /// A page of a conversation, cut to what is this user's; `NotFound` for a conversation that is not theirs.
    async fn history(
        &self,
        user: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError>;

    /// The heads of this user's conversations that changed at or after the cursor, oldest change first. What was
    /// committed by a transaction that was still running when an earlier answer was made is in a later one: the cursor
    /// never jumps over it.
    async fn heads(&self, user: UserId, since: Option<&str>, limit: u32) -> Result<Heads, StoreError>;

    /// This user's conversations in order of id, from after `after`.
    async fn conversations(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: u32,
    ) -> Result<ConversationList, StoreError>;

    /// The members as of the conversation's newest membership event, in order of user id, from after `after`.
    async fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<MembersPage, StoreError>;

    // Accounts.

    /// Makes an account; `AlreadyExists` where the name (compared without case) is taken.
    async fn create_account(&self, account: &Account) -> Result<(), StoreError>;

    /// The account of a name, compared without case.
    async fn account_by_name(&self, name: &str) -> Result<Account, StoreError>;

    /// The account of an id.
    async fn account(&self, user: UserId) -> Result<Account, StoreError>;

    /// Makes a device with its first refresh token.
    async fn create_device(
        &self,
        user: UserId,
        device: DeviceId,
        label: &str,
        token: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<(), StoreError>;

    /// Exchanges a refresh token, given by its hash, for a new one of the same device, atomically. A token used twice
    /// revokes its whole family: all tokens of its device. One that has ended is refused, used or not.
    async fn rotate_refresh_token(
        &self,
        old_hash: &[u8; 32],
        new: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<Rotation, StoreError>;

    /// Ends a device: its refresh tokens are revoked.
    async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), StoreError>;

    /// The signing keys, newest first.
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError>;

    /// Adds a signing key, unless one made at or after `unless_since` exists already (two api processes rotate at
    /// once); and removes those whose `verify_until` has passed.
    async fn add_signing_key(&self, key: &SigningKey, unless_since: TimeMs, now: TimeMs) -> Result<(), StoreError>;

    // Gateways, for when the Registry is away.

    /// Notes a live gateway until the time given.
    async fn put_gateway(&self, gateway: &Endpoint, until: TimeMs) -> Result<(), StoreError>;

    /// Forgets a gateway.
    async fn remove_gateway(&self, gateway: &Endpoint) -> Result<(), StoreError>;

    /// Gateways noted beyond `now`.
    async fn gateways(&self, now: TimeMs) -> Result<Vec<Endpoint>, StoreError>;
}
