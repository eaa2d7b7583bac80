//! The Log: durable, partitioned, ordered, read by consumer groups.

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

/// The topics. Every one has the same number of partitions, and a conversation has the same partition in each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    /// What asks for a number; read by the persist workers.
    Ingress,
    /// What has been committed; read by the fan-out workers.
    Deliver,
    /// Notices of what could not be applied; the payload itself stays in the Store's row.
    DeadLetter,
}

impl Topic {
    /// All topics.
    pub const ALL: [Topic; 3] = [Topic::Ingress, Topic::Deliver, Topic::DeadLetter];

    /// The name without the installation's prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Topic::Ingress => "ingress",
            Topic::Deliver => "deliver",
            Topic::DeadLetter => "dead-letter",
        }
    }
}

/// A place in a partition: opaque, ordered, never negative. `Position(0)` is before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

/// A record to append. The producer sets the partition; the log never chooses.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Where it goes.
    pub partition: u32,
    /// Its bytes.
    pub payload: Bytes,
}

/// A record as it stands in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it stands.
    pub position: Position,
    /// The place after it: where reading goes on once it is dealt with.
    pub next: Position,
    /// Its bytes.
    pub payload: Bytes,
}

/// What a partition holds right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The position of the first record still held (or of the next one, where none is).
    pub begin: Position,
    /// The position that the next appended record will have, or a place before it and after the last record.
    pub end: Position,
}

/// Why an append failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// A bounded queue is full: not appended, and it never will be. Try again later.
    #[error("the log's queue is full")]
    Full,
    /// The record is too large for the log: not appended. Trying again cannot help.
    #[error("the record is too large for the log")]
    TooLarge,
    /// The log did not acknowledge: the record may or may not be there, now or later.
    #[error("the log did not acknowledge: {0}")]
    Unknown(String),
}

/// Why a log could not be read or joined.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Try again with back-off.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log is not what it should be (a topic is missing, another partition count): a person has to act.
    #[error("the log is refused: {0}")]
    Refused(String),
}

/// Which assignment of a partition a record was fetched under. A partition that comes to this consumer again comes under
/// a higher number; one that it keeps through a rebalance keeps its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Assignment(pub u64);

/// Where a consumer starts to read a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// At exactly this position; `OutOfRange` is reported where the log does not hold it.
    Position(Position),
    /// At what the group has committed last, or at the beginning.
    Committed,
}

/// What a consumer sees next.
#[derive(Clone, Debug)]
pub enum ConsumerEvent {
    /// These partitions are this consumer's from now on. Nothing of them arrives before [`Consumer::start`].
    Assigned(Vec<u32>, Assignment),
    /// These partitions are no longer this consumer's. Another member may have them already.
    Revoked(Vec<u32>),
    /// Records of one partition, in order, without holes, from where the partition was started. Records of an older
    /// assignment than the newest one seen of their partition are to be discarded by the reader.
    Records {
        /// Their partition.
        partition: u32,
        /// The assignment that they were fetched under.
        assignment: Assignment,
        /// At least one.
        records: Vec<LogRecord>,
    },
    /// The position asked for is not in the log. Nothing more arrives for this partition until it is started again;
    /// the log never resets by itself.
    OutOfRange {
        /// The partition.
        partition: u32,
        /// The assignment.
        assignment: Assignment,
        /// What the log holds.
        bounds: Bounds,
    },
}

/// Resolves to one result per record, in the order given. It needs no runtime: it may be polled on any thread.
pub type AppendFuture = BoxFuture<'static, Vec<Result<Position, AppendError>>>;

/// A durable, partitioned log.
///
/// * **Durable**: an append that resolves to `Ok` survives the loss of power of one machine (embedded: an fsync has
///   returned; Kafka: all in-sync replicas have it). If this broke, an accepted message could vanish unseen.
/// * **Ordered**: the *call* of [`Log::append`] puts the records in line; records of one partition stand in the log in
///   the order of the calls, whichever future is polled first, retries inside the log included. If this broke, a
///   sender's pipelined sends would be numbered out of order.
/// * **No reset**: reading never jumps by itself, neither back nor forward.
/// * **Redelivery** is possible after every rebalance: readers must not care.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Names this log in the Store's progress rows.
    fn log_id(&self) -> &str;

    /// How many partitions every topic has.
    fn partitions(&self) -> u32;

    /// Puts the records in line and resolves once all are durable or failed. Dropping the future does not take them
    /// back. Bounded: a full queue answers [`AppendError::Full`] at once. A record of more than
    /// [`RECORD_BYTES_MAX`](roost_protocol::limits::RECORD_BYTES_MAX) bytes is refused as [`AppendError::TooLarge`];
    /// the others of its call are not touched by that.
    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture;

    /// What a partition holds.
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError>;

    /// The last record whose `next` is exactly `at`, or the last one before `at`; none where the log begins at or
    /// after `at`.
    async fn read_before(&self, topic: Topic, partition: u32, at: Position) -> Result<Option<LogRecord>, LogError>;

    /// Joins a consumer group. Members share the partitions; one partition has at most one owner among the members
    /// that the group still accepts, but a frozen or cut-off member may believe that it still is one.
    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, LogError>;

    /// Whether the log answers and is what it should be; for readiness and `roost doctor`.
    async fn check(&self) -> Result<(), LogError>;
}

/// A member of a consumer group.
#[async_trait]
pub trait Consumer: Send {
    /// The next event. Cancel-safe: a dropped future loses nothing. Must be called steadily, or the group gives the
    /// partitions to another member; an outage of something else is no reason to stop calling it.
    async fn next(&mut self) -> Result<ConsumerEvent, LogError>;

    /// Starts (or restarts) the delivery of an assigned partition. Ignored for an assignment that is over.
    fn start(&mut self, partition: u32, assignment: Assignment, at: StartAt) -> Result<(), LogError>;

    /// Stops the delivery of a partition without leaving it (its records are refused), until it is started again.
    fn stop(&mut self, partition: u32);

    /// Notes that everything before `next` is dealt with: the group's position, used by [`StartAt::Committed`] and for
    /// lag displays, and what lets the embedded log delete. Never forces a write; may be lost. Never the truth about
    /// the persist worker's progress: that is the Store's row.
    fn commit(&mut self, partition: u32, assignment: Assignment, next: Position);

    /// Leaves the group, so that others take over at once.
    async fn close(self: Box<Self>);
}
