//! What goes into the numbering transaction and what comes out of it.

use roost_protocol::digest::Digest16;
use roost_protocol::records::{DeliverRecord, IngressRecord};

use crate::delivery::VerdictOutcome;
use crate::log::Position;

/// A partition's progress, freshly claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The owner's number: raised by every claim.
    pub epoch: u64,
    /// Every record before this is applied.
    pub next: Position,
    /// Every record before this is applied and its consequences are in `deliver`.
    pub published: Position,
    /// The digest of the record before `next`; absent while none was applied.
    pub last_digest: Option<Digest16>,
}

/// A record read from `ingress`.
#[derive(Clone, PartialEq, Debug)]
pub struct Incoming {
    /// Where it stands.
    pub position: Position,
    /// The place after it.
    pub next: Position,
    /// The digest of its bytes.
    pub digest: Digest16,
    /// What it says, or why it is poison; then the payload is kept in the dead-letter row.
    pub content: Result<IngressRecord<'static>, Poison>,
}

/// A record that cannot be applied, and never will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Poison {
    /// Why, in words, without any of its content.
    pub reason: String,
    /// Its bytes.
    pub payload: bytes::Bytes,
}

/// What has arrived on the partitions of one lane.
#[derive(Clone, PartialEq, Debug)]
pub struct ApplyBatch {
    /// Which log.
    pub log_id: String,
    /// At most one per partition.
    pub parts: Vec<PartBatch>,
}

impl ApplyBatch {
    /// Asserts what every caller owes: partitions once each, and records that stand in order from where the part begins.
    /// A batch that breaks it is our own mistake, and applying it would skip records for ever.
    pub fn assert_well_formed(&self) {
        let mut partitions: Vec<u32> = self.parts.iter().map(|part| part.partition).collect();
        partitions.sort_unstable();
        assert!(partitions.windows(2).all(|pair| pair[0] < pair[1]), "a partition stands in a batch once");
        for part in &self.parts {
            assert!(!part.records.is_empty(), "a part has at least one record");
            let mut at = part.from;
            for record in &part.records {
                assert!(record.position >= at && record.next > record.position, "records stand in log order");
                at = record.next;
            }
        }
    }
}

/// The records of one partition in a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct PartBatch {
    /// The partition.
    pub partition: u32,
    /// The claim under which they are applied.
    pub epoch: u64,
    /// The next position that the Store must hold now.
    pub from: Position,
    /// What is published by now.
    pub published: Position,
    /// In log order, the first one at or after `from`, at least one.
    pub records: Vec<Incoming>,
}

/// What became of a batch, in the order of its parts.
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    /// One per part.
    pub parts: Vec<PartOutcome>,
}

/// What became of a part.
#[derive(Clone, PartialEq, Debug)]
pub enum PartOutcome {
    /// Committed; one outcome per record.
    Applied(Vec<Outcome>),
    /// Another owner or another position: nothing of it was applied. Claim again if the group still agrees.
    NotOurs,
}

/// What became of a record.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It took a number now: the record goes to `deliver`.
    Numbered(Box<DeliverRecord>),
    /// It was known: the first verdict again. Nothing goes to `deliver`.
    Duplicate(VerdictOutcome),
    /// It was refused, and a row says so.
    Rejected(VerdictOutcome),
    /// It is poison, and a row says so.
    DeadLetter {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The verdict for the record's origin; none for poison.
    pub fn verdict(&self) -> Option<VerdictOutcome> {
        match self {
            Outcome::Numbered(record) => {
                Some(VerdictOutcome::Committed { seq: record.message.seq, time: record.message.time })
            }
            Outcome::Duplicate(verdict) | Outcome::Rejected(verdict) => Some(verdict.clone()),
            Outcome::DeadLetter { .. } => None,
        }
    }
}

/// What a record below the next position became, as the Store holds it now.
#[derive(Clone, PartialEq, Debug)]
pub enum Replayed {
    /// It has a number: publish it again.
    Numbered(Box<DeliverRecord>),
    /// It was refused (or was a retry with another body).
    Rejected(VerdictOutcome),
    /// It is in the dead letters.
    DeadLetter {
        /// Why.
        reason: String,
    },
    /// No row: the Store and the log do not belong together. Give the partition up and alarm.
    Missing,
}

/// Why a batch was not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing was committed; the Store is away, busy, out of space, or a deadlock or time-out ended the transaction.
    /// Retry for ever with back-off.
    #[error("the store did not apply the batch: {0}")]
    Unavailable(String),
    /// An error at or after COMMIT: it may be committed or not. Claim again.
    #[error("the outcome of the commit is not known: {0}")]
    Uncertain(String),
    /// Nothing was committed: some record's data is refused by the database. Bisect; a single record that fails alone
    /// while another transaction succeeds is poison.
    #[error("the store refused the data of a record: {0}")]
    Data(String),
    /// Nothing was committed: a row that must be new exists. Alarm, and claim again.
    #[error("a row that must be new exists: {0}")]
    Conflict(String),
}
