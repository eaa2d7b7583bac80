//! The polling thread of a group member: it owns the librdkafka consumer and is the only one that talks to it.
//!
//! Partitions given by the group are not fetched until they are started with an explicit offset, and are assigned then,
//! so that no seek is ever needed. While the reader does not keep up the partitions are paused and polling goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::bindings::rd_kafka_resp_err_t as Response;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use roost_ports::log::{Assignment, ConsumerEvent, LogError, LogRecord, Position, StartAt};
use tokio::sync::mpsc;

use crate::KafkaConfig;
use crate::reader::{bounds, offset_of, record};
use crate::topics::unavailable;

const POLL: Duration = Duration::from_millis(20);
/// Records taken in one go before they are handed on.
const RECORDS_PER_ROUND: usize = 2_000;
/// The shortest time between two rounds that bring records. What a worker does for a round (a transaction, a look-up, a
/// delivery) costs about the same for one record as for ten; what comes after a longer silence is handed on at once.
const ROUND: Duration = Duration::from_millis(2);
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// A partition that could not be started is tried again after this.
const START_AGAIN: Duration = Duration::from_millis(500);

pub(crate) enum Command {
    Start { partition: u32, assignment: Assignment, at: StartAt, start: Start },
    Stop { partition: u32 },
    Close,
}

/// One start of a partition; later ones are higher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Start(pub(crate) u64);

/// An event, with the start of its partition that brought it.
pub(crate) struct Tagged {
    pub(crate) event: ConsumerEvent,
    pub(crate) start: Start,
}

/// What is to be committed, by partition.
pub(crate) type Commits = BTreeMap<u32, (Assignment, Position)>;

type Events = mpsc::Sender<Result<Tagged, LogError>>;

pub(crate) fn spawn(
    config: &KafkaConfig,
    topic: String,
    group: &str,
    commands: std_mpsc::Receiver<Command>,
    commits: Arc<Mutex<Commits>>,
    events: Events,
) -> Result<JoinHandle<()>, LogError> {
    let client: BaseConsumer<Group> =
        config.consumer(group).create_with_context(Group::default()).map_err(unavailable)?;
    client.subscribe(&[&topic]).map_err(unavailable)?;
    let member = Member {
        client,
        topic,
        commits,
        events,
        waiting: VecDeque::new(),
        assignment: Assignment(0),
        owned: BTreeMap::new(),
        paused: false,
        round_at: Instant::now(),
    };
    std::thread::Builder::new()
        .name(format!("kafka-{group}"))
        .spawn(move || member.run(&commands))
        .map_err(|error| LogError::Unavailable(error.to_string()))
}

/// What the group has said since the thread last looked.
enum Rebalance {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
}

#[derive(Default)]
struct Group {
    rebalances: Mutex<VecDeque<Rebalance>>,
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka consumer");
    }
}

impl ConsumerContext for Group {
    /// Answers the group without starting to fetch: an empty incremental assignment accepts the partitions, each of
    /// which is added with its offset once it is started.
    fn rebalance(&self, client: &BaseConsumer<Self>, error: Response, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        let answered = match error {
            Response::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.rebalances.lock().push_back(Rebalance::Assigned(partitions));
                client.incremental_assign(&TopicPartitionList::new())
            }
            _ => {
                let fetched = fetched_of(client, list);
                self.rebalances.lock().push_back(Rebalance::Revoked(partitions));
                client.incremental_unassign(&fetched)
            }
        };
        if let Err(error) = answered {
            tracing::error!(%error, "answering a rebalance");
        }
    }
}

/// Those of the list that are really being fetched.
fn fetched_of<C: ConsumerContext>(client: &BaseConsumer<C>, list: &TopicPartitionList) -> TopicPartitionList {
    let mut both = TopicPartitionList::new();
    let Ok(fetched) = client.assignment() else { return both };
    for element in list.elements() {
        if fetched.find_partition(element.topic(), element.partition()).is_some() {
            both.add_partition(element.topic(), element.partition());
        }
    }
    both
}

/// A partition that the group has given to this member.
struct Owned {
    assignment: Assignment,
    start: Start,
    /// The offset that must come next; absent while it is not started.
    expected: Option<i64>,
    /// The brokers did not answer: it is started again then, there.
    again: Option<(Instant, StartAt)>,
}

struct Member {
    client: BaseConsumer<Group>,
    topic: String,
    commits: Arc<Mutex<Commits>>,
    events: Events,
    /// Events that the reader has not had room for.
    waiting: VecDeque<Result<Tagged, LogError>>,
    assignment: Assignment,
    owned: BTreeMap<i32, Owned>,
    paused: bool,
    /// Records are taken again from then on.
    round_at: Instant,
}

impl Member {
    fn run(mut self, commands: &std_mpsc::Receiver<Command>) {
        loop {
            loop {
                match commands.try_recv() {
                    Ok(Command::Close) | Err(std_mpsc::TryRecvError::Disconnected) => return self.leave(),
                    Ok(command) => self.obey(command),
                    Err(std_mpsc::TryRecvError::Empty) => break,
                }
            }
            self.start_again();
            self.commit();
            self.poll();
            self.hand_on();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { partition, assignment, at, start } => self.start(partition, assignment, at, start),
            Command::Stop { partition } => {
                let partition = number(partition);
                if let Some(owned) = self.owned.get_mut(&partition) {
                    (owned.expected, owned.again) = (None, None);
                    self.stop_fetching(partition);
                }
            }
            Command::Close => unreachable!("run handles it"),
        }
    }

    fn commit(&mut self) {
        let commits = std::mem::take(&mut *self.commits.lock());
        for (partition, (assignment, next)) in commits {
            let partition = number(partition);
            if self.owned.get(&partition).is_none_or(|owned| owned.assignment != assignment) {
                continue;
            }
            let mut offsets = TopicPartitionList::new();
            let added = offsets.add_partition_offset(&self.topic, partition, Offset::Offset(offset_of(next)));
            // A hint only: the truth is elsewhere, and a partition that is not fetched cannot store one.
            if let Err(error) = added.and_then(|()| self.client.store_offsets(&offsets)) {
                tracing::debug!(%error, partition, "noting the group's position");
            }
        }
    }

    fn start(&mut self, partition: u32, assignment: Assignment, at: StartAt, start: Start) {
        let number = number(partition);
        match self.owned.get_mut(&number) {
            Some(owned) if owned.assignment == assignment => owned.start = start,
            _ => return,
        }
        self.start_at(number, at);
    }

    /// One partition in each round, so that brokers which do not answer do not keep us from polling.
    fn start_again(&mut self) {
        let now = Instant::now();
        let due = |owned: &Owned| owned.again.filter(|(when, _)| *when <= now);
        let first = self.owned.iter().find_map(|(&partition, owned)| Some((partition, due(owned)?.1)));
        if let Some((partition, at)) = first {
            self.start_at(partition, at);
        }
    }

    /// The reader is not told: to it the partition is started, and only silent for a while.
    fn start_later(&mut self, partition: i32, at: StartAt, error: &dyn std::fmt::Display) {
        tracing::warn!(%error, partition, topic = self.topic, "a partition is started again soon");
        if let Some(owned) = self.owned.get_mut(&partition) {
            (owned.expected, owned.again) = (None, Some((Instant::now() + START_AGAIN, at)));
        }
    }

    fn start_at(&mut self, number: i32, at: StartAt) {
        self.stop_fetching(number);
        let Some(owned) = self.owned.get_mut(&number) else { return };
        (owned.expected, owned.again) = (None, None);
        let start = owned.start;
        match self.start_offset(number, at) {
            Ok(Ok(offset)) => {
                let mut list = TopicPartitionList::new();
                let assigned = list
                    .add_partition_offset(&self.topic, number, Offset::Offset(offset))
                    .and_then(|()| self.client.incremental_assign(&list));
                match assigned {
                    Ok(()) => {
                        self.paused = false;
                        self.owned.get_mut(&number).expect("just looked up").expected = Some(offset);
                    }
                    Err(error) => self.start_later(number, at, &error),
                }
            }
            Ok(Err(event)) => self.waiting.push_back(Ok(Tagged { event, start })),
            Err(error) => self.start_later(number, at, &error),
        }
    }

    /// The offset to start at, or the event that says why there is none.
    fn start_offset(&self, partition: i32, at: StartAt) -> Result<Result<i64, ConsumerEvent>, LogError> {
        let bounds = bounds(&self.client, &self.topic, partition)?;
        let position = match at {
            StartAt::Position(position) => position,
            StartAt::Committed => match self.committed(partition)? {
                Some(position) => position,
                None => return Ok(Ok(offset_of(bounds.begin))),
            },
        };
        if position < bounds.begin || position > bounds.end {
            return Ok(Err(self.out_of_range(partition, bounds)));
        }
        Ok(Ok(offset_of(position)))
    }

    fn committed(&self, partition: i32) -> Result<Option<Position>, LogError> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let committed = self.client.committed_offsets(list, Duration::from_secs(5)).map_err(unavailable)?;
        Ok(match committed.find_partition(&self.topic, partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => u64::try_from(offset).ok().map(Position),
            _ => None,
        })
    }

    fn out_of_range(&self, partition: i32, bounds: roost_ports::log::Bounds) -> ConsumerEvent {
        let assignment = self.owned.get(&partition).map_or(self.assignment, |owned| owned.assignment);
        ConsumerEvent::OutOfRange { partition: partition.unsigned_abs(), assignment, bounds }
    }

    fn stop_fetching(&self, partition: i32) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let fetched = fetched_of(&self.client, &list);
        if fetched.count() > 0
            && let Err(error) = self.client.incremental_unassign(&fetched)
        {
            tracing::warn!(%error, partition, "stopping a partition");
        }
    }

    /// Takes what has arrived: waits for the first record only.
    fn poll(&mut self) {
        let mut records: BTreeMap<i32, Vec<LogRecord>> = BTreeMap::new();
        let mut errors = Vec::new();
        let mut wait = POLL;
        std::thread::sleep(self.round_at.saturating_duration_since(Instant::now()));
        for _ in 0..RECORDS_PER_ROUND {
            match self.client.poll(wait) {
                Some(Ok(message)) => records.entry(message.partition()).or_default().push(record(&message)),
                Some(Err(error)) => errors.push(error),
                None => break,
            }
            wait = Duration::ZERO;
            // A rebalance ends the round, so that records and assignments keep their order.
            if !self.client.context().rebalances.lock().is_empty() {
                break;
            }
        }
        if !records.is_empty() {
            self.round_at = Instant::now() + ROUND;
        }
        self.take_records(records);
        self.take_rebalances();
        for error in errors {
            self.take_error(&error);
        }
    }

    fn take_records(&mut self, records: BTreeMap<i32, Vec<LogRecord>>) {
        for (partition, records) in records {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            let Some(expected) = owned.expected else { continue };
            // What was under way before a restart is not what was asked for.
            let fresh: Vec<LogRecord> =
                records.into_iter().skip_while(|record| offset_of(record.position) < expected).collect();
            let Some(last) = fresh.last() else { continue };
            let dense = fresh.iter().zip(expected..).all(|(record, offset)| offset_of(record.position) == offset);
            if dense {
                owned.expected = Some(offset_of(last.next));
                let (partition, assignment) = (partition.unsigned_abs(), owned.assignment);
                let event = ConsumerEvent::Records { partition, assignment, records: fresh };
                self.waiting.push_back(Ok(Tagged { event, start: owned.start }));
            } else {
                self.report_out_of_range(partition);
            }
        }
    }

    fn take_rebalances(&mut self) {
        let rebalances: Vec<Rebalance> = self.client.context().rebalances.lock().drain(..).collect();
        for rebalance in rebalances {
            match rebalance {
                Rebalance::Assigned(partitions) => {
                    self.assignment = Assignment(self.assignment.0 + 1);
                    let assignment = self.assignment;
                    for &partition in &partitions {
                        self.owned.insert(
                            partition,
                            Owned { assignment, start: Start::default(), expected: None, again: None },
                        );
                    }
                    let partitions = partitions.iter().map(|partition| partition.unsigned_abs()).collect();
                    self.tell(ConsumerEvent::Assigned(partitions, assignment));
                }
                Rebalance::Revoked(partitions) => {
                    for partition in &partitions {
                        self.owned.remove(partition);
                    }
                    let partitions = partitions.iter().map(|partition| partition.unsigned_abs()).collect();
                    self.tell(ConsumerEvent::Revoked(partitions));
                }
            }
        }
    }

    fn take_error(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            // librdkafka stops fetching that partition and does not say which one it is: each is started again where it
            // stands, which finds those whose next offset the log does not hold.
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let started = self.owned.iter().filter_map(|(&partition, owned)| Some((partition, owned.expected?)));
                for (partition, expected) in started.collect::<Vec<_>>() {
                    self.start_at(partition, StartAt::Position(Position(expected.unsigned_abs())));
                }
            }
            _ => tracing::warn!(%error, topic = self.topic, "kafka consumer"),
        }
    }

    fn report_out_of_range(&mut self, partition: i32) {
        self.stop_fetching(partition);
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let (start, expected) = (owned.start, owned.expected.take().unwrap_or_default());
        match bounds(&self.client, &self.topic, partition) {
            Ok(bounds) => {
                let event = self.out_of_range(partition, bounds);
                self.waiting.push_back(Ok(Tagged { event, start }));
            }
            Err(error) => {
                self.start_later(partition, StartAt::Position(Position(expected.unsigned_abs())), &error);
            }
        }
    }

    fn tell(&mut self, event: ConsumerEvent) {
        self.waiting.push_back(Ok(Tagged { event, start: Start::default() }));
    }

    /// Gives the reader what it has room for; pauses the partitions while it has none.
    fn hand_on(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return self.waiting.clear(),
            }
        }
        let behind = !self.waiting.is_empty();
        if behind != self.paused {
            let Ok(fetched) = self.client.assignment() else { return };
            let done = if behind { self.client.pause(&fetched) } else { self.client.resume(&fetched) };
            match done {
                Ok(()) => self.paused = behind,
                Err(error) => tracing::warn!(%error, "pausing or resuming"),
            }
        }
    }

    /// Unsubscribes first: dropping a subscribed consumer in the middle of a rebalance has hung before.
    fn leave(mut self) {
        self.commit();
        if let Err(error) = self.client.commit_consumer_state(rdkafka::consumer::CommitMode::Async) {
            tracing::debug!(%error, "committing before leaving");
        }
        self.client.unsubscribe();
        let deadline = Instant::now() + LEAVE_WITHIN;
        while Instant::now() < deadline {
            let _ = self.client.poll(POLL);
            let revoked = self.client.context().rebalances.lock().iter().any(|r| matches!(r, Rebalance::Revoked(_)));
            if revoked || self.owned.is_empty() {
                break;
            }
        }
    }
}

fn number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}
