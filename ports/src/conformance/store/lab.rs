//! A workbench for the Store's cases: a log of its own, users, and lanes that apply records as a worker does.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use roost_protocol::digest;
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, ErrorCode, Seq, UserId};
use uuid::Uuid;

use crate::delivery::VerdictOutcome;
use crate::log::Position;
use crate::store::apply::{ApplyBatch, ApplyError, Claim, Incoming, Outcome, PartBatch, PartOutcome, Poison};
use crate::store::{Account, Migration, Store};

/// How many partitions the logs of the cases have.
pub const PARTITIONS: u32 = 4;

/// A Store with a log of this case's own.
pub struct Lab {
    /// The Store.
    pub store: Arc<dyn Store>,
    /// The log.
    pub log_id: String,
}

impl Lab {
    /// Migrates the Store for a fresh log.
    pub async fn new(store: Arc<dyn Store>) -> Self {
        let log_id = format!("suite-{}", Uuid::now_v7().simple());
        let lab = Self { store, log_id };
        lab.store.migrate(&lab.migration()).await.expect("the store can be migrated");
        lab
    }

    /// What it was migrated for.
    pub fn migration(&self) -> Migration {
        Migration { log_id: self.log_id.clone(), partitions: PARTITIONS }
    }

    /// A new user, with an account.
    pub async fn user(&self) -> UserId {
        let user_id = UserId::new();
        self.store.create_account(&account(user_id, &fresh_name())).await.expect("a new account");
        user_id
    }

    /// Some new users, sorted.
    pub async fn users(&self, count: usize) -> Vec<UserId> {
        let making = futures::stream::iter((0..count).map(|_| self.user()));
        let mut users: Vec<UserId> = making.buffer_unordered(256).collect().await;
        users.sort_unstable();
        users
    }

    /// Claims a partition.
    pub async fn claim(&self, partition: u32) -> Claim {
        self.store.claim(&self.log_id, partition).await.expect("the partition can be claimed")
    }

    /// Claims a partition, to apply records to it.
    pub async fn lane(&self, partition: u32) -> Lane {
        let claim = self.claim(partition).await;
        Lane { store: self.store.clone(), log_id: self.log_id.clone(), partition, claim }
    }

    /// A group of these users, made on this lane by the first of them.
    pub async fn group(&self, lane: &mut Lane, users: &[UserId]) -> ConversationId {
        let conversation = ConversationId::new();
        let outcome = lane.apply_one(create(users[0], conversation, users)).await;
        assert_eq!(seq_of(&outcome), Some(1), "{outcome:?}");
        conversation
    }
}

/// One partition, owned as a worker owns it.
pub struct Lane {
    store: Arc<dyn Store>,
    log_id: String,
    /// Which.
    pub partition: u32,
    /// As claimed; `next` and `last_digest` follow what is applied.
    pub claim: Claim,
}

impl Lane {
    /// Records as they would stand next in the log. Positions leave gaps: they are opaque.
    pub fn incoming(&self, records: Vec<IngressRecord<'static>>) -> Vec<Incoming> {
        let mut at = self.claim.next;
        let place = |record: IngressRecord<'static>| {
            let incoming = Incoming {
                position: Position(at.0 + 1),
                next: Position(at.0 + 3),
                digest: digest::of_record(&record.encode()),
                content: Ok(record),
            };
            at = incoming.next;
            incoming
        };
        records.into_iter().map(place).collect()
    }

    /// A part of these records under the present claim.
    pub fn part(&self, records: Vec<IngressRecord<'static>>) -> PartBatch {
        self.part_of(self.incoming(records))
    }

    /// A part of records that have their places.
    pub fn part_of(&self, records: Vec<Incoming>) -> PartBatch {
        let Claim { epoch, next: from, published, .. } = self.claim;
        PartBatch { partition: self.partition, epoch, from, published, records }
    }

    /// Applies a part that must be ours, and moves on.
    pub async fn apply_part(&mut self, part: PartBatch) -> Vec<Outcome> {
        let last = part.records.last().expect("a part has records").clone();
        let outcomes = match apply(&self.store, &self.log_id, vec![part]).await.remove(0) {
            PartOutcome::Applied(outcomes) => outcomes,
            PartOutcome::NotOurs => panic!("partition {} is ours", self.partition),
        };
        self.claim.next = last.next;
        self.claim.last_digest = Some(last.digest);
        outcomes
    }

    /// Applies records in one batch.
    pub async fn apply(&mut self, records: Vec<IngressRecord<'static>>) -> Vec<Outcome> {
        let part = self.part(records);
        let count = part.records.len();
        let outcomes = self.apply_part(part).await;
        assert_eq!(outcomes.len(), count, "one outcome per record");
        outcomes
    }

    /// Applies one record alone.
    pub async fn apply_one(&mut self, record: IngressRecord<'static>) -> Outcome {
        self.apply(vec![record]).await.remove(0)
    }
}

/// Applies parts; an outage or a deadlock that the Store names is retried, as a worker does.
pub async fn apply(store: &Arc<dyn Store>, log_id: &str, parts: Vec<PartBatch>) -> Vec<PartOutcome> {
    let batch = ApplyBatch { log_id: log_id.to_owned(), parts };
    loop {
        match store.apply(&batch).await {
            Ok(applied) => {
                assert_eq!(applied.parts.len(), batch.parts.len(), "one outcome per part");
                return applied.parts;
            }
            Err(ApplyError::Unavailable(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Err(error) => panic!("the batch can be applied: {error}"),
        }
    }
}

/// A user name that no other case uses.
pub fn fresh_name() -> String {
    format!("User-{}", Uuid::now_v7().simple())
}

/// An account.
pub fn account(user_id: UserId, name: &str) -> Account {
    Account { user_id, name: name.to_owned(), password_hash: "$argon2id$stub".to_owned(), created: 1_000 }
}

/// A record of this user under a new client_msg_id.
pub fn record(actor: UserId, action: Action<'static>) -> IngressRecord<'static> {
    IngressRecord {
        actor,
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1_700_000_000_123,
        origin: None,
        if_last_seq: None,
        action,
    }
}

/// A message.
pub fn send(actor: UserId, conversation_id: ConversationId, body: &str) -> IngressRecord<'static> {
    let body = Cow::Owned(body.as_bytes().to_vec());
    record(actor, Action::Send { conversation_id, content_type: "text/plain".into(), body })
}

/// The same request with another body.
pub fn with_body(mut record: IngressRecord<'static>, body: &str) -> IngressRecord<'static> {
    if let Action::Send { body: old, .. } = &mut record.action {
        *old = Cow::Owned(body.as_bytes().to_vec());
    }
    record
}

/// A group without a title.
pub fn create(actor: UserId, conversation_id: ConversationId, members: &[UserId]) -> IngressRecord<'static> {
    create_as(actor, conversation_id, ConversationKind::Group, None, members)
}

/// A conversation.
pub fn create_as(
    actor: UserId,
    conversation_id: ConversationId,
    kind: ConversationKind,
    title: Option<&str>,
    members: &[UserId],
) -> IngressRecord<'static> {
    let mut members = members.to_vec();
    members.sort_unstable();
    let title = title.map(|title| Cow::Owned(title.to_owned()));
    record(actor, Action::Create { conversation_id, kind, title, members })
}

/// Why a record does not decode.
pub fn poison(reason: &str) -> Poison {
    Poison { reason: reason.to_owned(), payload: Bytes::from_static(b"\x00\xffnot a record") }
}

/// The number that a record has.
pub fn seq_of(outcome: &Outcome) -> Option<Seq> {
    match outcome.verdict()? {
        VerdictOutcome::Committed { seq, .. } => Some(seq),
        VerdictOutcome::Rejected { .. } => None,
    }
}

/// Why a record was refused.
pub fn code_of(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome.verdict()? {
        VerdictOutcome::Committed { .. } => None,
        VerdictOutcome::Rejected { code, .. } => Some(code),
    }
}
