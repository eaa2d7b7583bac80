//! What waits for the brokers, in order, and what goes to whom next: without I/O and without a clock.
//!
//! A partition has at most one batch on its way, and a broker one request. So the order of calls is the order in the
//! log, a batch whose outcome is not known goes again under the same numbers (the broker knows it by them), and a batch
//! that was refused leaves no hole behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_ports::log::{AppendError, Position};

use super::wire::{Metadata, Produced, ProducerId};

/// Below the brokers' own limit for a batch (`message.max.bytes`), which is 1 MiB unless it was changed.
const BATCH_BYTES_MAX: usize = 900_000;
/// A batch holds at least one record, and those are smaller.
const _: () = assert!(roost_protocol::limits::RECORD_BYTES_MAX + 128 < BATCH_BYTES_MAX);
const BATCH_RECORDS_MAX: usize = 10_000;
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a record takes beside its payload, at most.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// A topic that the brokers do not know may only not be known yet.
const TOPIC_KNOWN_WITHIN: Duration = Duration::from_secs(30);
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Kafka's error codes that are told apart.
mod code {
    pub(super) const NONE: i16 = 0;
    pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(super) const MESSAGE_TOO_LARGE: i16 = 10;
    pub(super) const RECORD_LIST_TOO_LARGE: i16 = 18;
    pub(super) const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
    pub(super) const CLUSTER_AUTHORIZATION_FAILED: i16 = 31;
    pub(super) const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    pub(super) const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;
    pub(super) const INVALID_PRODUCER_EPOCH: i16 = 47;
    pub(super) const UNKNOWN_PRODUCER_ID: i16 = 59;
    pub(super) const INVALID_RECORD: i16 = 87;
    pub(super) const PRODUCER_FENCED: i16 = 90;
}

/// What an append became.
pub(super) type Answer = Result<Position, AppendError>;

/// A record in line, and whoever wants to know what becomes of it.
pub(super) struct Waiting<T> {
    pub(super) payload: Bytes,
    pub(super) ticket: T,
}

/// A batch on its way: taken from the line, and given back with its outcome.
pub(super) struct Shipment<T> {
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    pub(super) base_sequence: i32,
    pub(super) records: Vec<Waiting<T>>,
    life: u64,
}

/// Tickets with their answers, to be told outside of any lock.
pub(super) type Answers<T> = Vec<(T, Answer)>;

/// Everything that waits.
pub(super) struct Line<T> {
    topics: Vec<Topic<T>>,
    /// Which partitions may have something for this broker.
    by_leader: BTreeMap<i32, BTreeSet<(usize, u32)>>,
    addresses: BTreeMap<i32, String>,
    producer: Option<ProducerId>,
    /// Raised with every new producer: what an older one brings back says nothing about numbers.
    life: u64,
    wants_metadata: bool,
}

struct Topic<T> {
    name: Arc<str>,
    /// What comes for it need not go at once.
    patient: bool,
    partitions: BTreeMap<u32, Partition<T>>,
    /// As it was told last, those included that nothing was appended to yet.
    leaders: BTreeMap<u32, i32>,
    absent_since: Option<Instant>,
}

struct Partition<T> {
    leader: Option<i32>,
    queue: VecDeque<Waiting<T>>,
    /// Numbered and sent once: goes again as it is.
    pending: Option<(i32, Vec<Waiting<T>>)>,
    on_its_way: bool,
    next_sequence: i32,
    /// In one batch: halved where the broker found one too large.
    records_max: usize,
    failures: u32,
    again_at: Option<Instant>,
}

impl<T> Default for Partition<T> {
    fn default() -> Self {
        Self {
            leader: None,
            queue: VecDeque::new(),
            pending: None,
            on_its_way: false,
            next_sequence: 0,
            records_max: BATCH_RECORDS_MAX,
            failures: 0,
            again_at: None,
        }
    }
}

impl<T> Partition<T> {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pending.is_none()
    }

    fn try_later(&mut self, now: Instant) {
        let wait = AGAIN_AFTER.0 * (1 << self.failures.min(10));
        self.failures += 1;
        self.again_at = Some(now + wait.min(AGAIN_AFTER.1));
    }

    fn fail_all(&mut self, error: &AppendError, answers: &mut Answers<T>) {
        let pending = self.pending.take().map(|(_, records)| records).unwrap_or_default();
        let records = pending.into_iter().chain(self.queue.drain(..));
        answers.extend(records.map(|record| (record.ticket, Err(error.clone()))));
    }

    /// What was numbered and sent is sent again before anything else.
    fn take(&mut self, room: usize) -> (i32, Vec<Waiting<T>>) {
        if let Some(pending) = self.pending.take() {
            return pending;
        }
        let (mut bytes, mut count) = (0, 0);
        for record in self.queue.iter().take(self.records_max) {
            bytes += record.payload.len() + RECORD_OVERHEAD_BYTES;
            if count > 0 && bytes > room.min(BATCH_BYTES_MAX) {
                break;
            }
            count += 1;
        }
        let base_sequence = self.next_sequence;
        self.next_sequence = after(base_sequence, count);
        (base_sequence, self.queue.drain(..count).collect())
    }
}

/// Sequence numbers begin again at 0 after the largest.
fn after(sequence: i32, count: usize) -> i32 {
    let sum = i64::from(sequence) + count as i64;
    i32::try_from(sum & i64::from(i32::MAX)).expect("masked")
}

impl<T> Line<T> {
    pub(super) fn new() -> Self {
        Self {
            topics: Vec::new(),
            by_leader: BTreeMap::new(),
            addresses: BTreeMap::new(),
            producer: None,
            life: 0,
            wants_metadata: false,
        }
    }

    /// Puts a record in line. The broker that gets it, where it is known.
    pub(super) fn push(&mut self, topic: &str, patient: bool, partition: u32, record: Waiting<T>) -> Option<i32> {
        let index = self.topics.iter().position(|known| &*known.name == topic).unwrap_or_else(|| {
            self.topics.push(Topic {
                name: topic.into(),
                patient,
                partitions: BTreeMap::new(),
                leaders: BTreeMap::new(),
                absent_since: None,
            });
            self.topics.len() - 1
        });
        let topic = &mut self.topics[index];
        let leader = topic.leaders.get(&partition).copied();
        let found = topic.partitions.entry(partition).or_insert_with(|| Partition { leader, ..Partition::default() });
        found.queue.push_back(record);
        match found.leader {
            Some(leader) => {
                self.by_leader.entry(leader).or_default().insert((index, partition));
            }
            None => self.wants_metadata = true,
        }
        found.leader.filter(|_| self.producer.is_some())
    }

    /// What goes to this broker now, marked as on its way: nothing while there is no producer's id.
    pub(super) fn take(&mut self, broker: i32, now: Instant) -> Vec<Shipment<T>> {
        let mut shipments = Vec::new();
        if self.producer.is_none() {
            return shipments;
        }
        let Some(ready) = self.by_leader.get_mut(&broker) else { return shipments };
        let mut room = REQUEST_BYTES_MAX;
        for &(index, number) in ready.iter() {
            let topic = &mut self.topics[index];
            let Some(partition) = topic.partitions.get_mut(&number) else { continue };
            let rests = partition.on_its_way || partition.again_at.is_some_and(|at| at > now);
            if rests || partition.is_empty() || room < BATCH_BYTES_MAX {
                continue;
            }
            let (base_sequence, records) = partition.take(room);
            (partition.on_its_way, partition.again_at) = (true, None);
            room -= records.iter().map(|record| record.payload.len() + RECORD_OVERHEAD_BYTES).sum::<usize>().min(room);
            let (topic, life) = (topic.name.clone(), self.life);
            shipments.push(Shipment { topic, partition: number, base_sequence, records, life });
        }
        ready.retain(|&(index, number)| self.topics[index].partitions.get(&number).is_some_and(|p| !p.is_empty()));
        shipments
    }

    /// Whether something goes to this broker now, or when something may. What is patient may go from then on.
    pub(super) fn due(&self, broker: i32, patience_ends: Option<Instant>) -> Option<Option<Instant>> {
        self.producer?;
        let partitions = self.by_leader.get(&broker)?.iter().filter_map(|&(index, number)| {
            let topic = &self.topics[index];
            Some((topic.partitions.get(&number)?, if topic.patient { patience_ends } else { None }))
        });
        let waiting = partitions.filter(|(partition, _)| !partition.on_its_way && !partition.is_empty());
        // None comes before any time: what waits for none is due at once.
        waiting.map(|(partition, patience_ends)| partition.again_at.max(patience_ends)).min()
    }

    /// The broker has answered for these.
    pub(super) fn answered(&mut self, shipments: Vec<Shipment<T>>, produced: &[Produced], now: Instant) -> Answers<T> {
        let mut answers = Vec::new();
        for shipment in shipments {
            let own = |one: &&Produced| {
                one.partition == i32::try_from(shipment.partition).unwrap_or(-1) && *one.topic == *shipment.topic
            };
            match produced.iter().find(own) {
                Some(one) => self.settle(shipment, one.error, one.base_offset, now, &mut answers),
                None => self.come_back(shipment, now, &mut answers),
            }
        }
        answers
    }

    fn settle(&mut self, shipment: Shipment<T>, error: i16, offset: i64, now: Instant, answers: &mut Answers<T>) {
        match error {
            code::NONE | code::DUPLICATE_SEQUENCE_NUMBER => {
                // A duplicate's offset may not be told.
                let position = |index: usize| Position(u64::try_from(offset).map_or(0, |first| first + index as u64));
                self.arrive(&shipment);
                let records = shipment.records.into_iter().enumerate();
                answers.extend(records.map(|(index, record)| (record.ticket, Ok(position(index)))));
            }
            code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE if shipment.records.len() > 1 => {
                self.come_back_in_halves(shipment, now, answers);
            }
            code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE => {
                self.refused(shipment, &AppendError::TooLarge, answers);
            }
            code::TOPIC_AUTHORIZATION_FAILED | code::CLUSTER_AUTHORIZATION_FAILED | code::INVALID_RECORD => {
                self.refused(shipment, &AppendError::Unknown(format!("the broker refuses it: code {error}")), answers);
            }
            code::OUT_OF_ORDER_SEQUENCE_NUMBER
            | code::UNKNOWN_PRODUCER_ID
            | code::INVALID_PRODUCER_EPOCH
            | code::PRODUCER_FENCED => {
                let current = shipment.life == self.life;
                let unknown = AppendError::Unknown(format!("the kafka producer is replaced: code {error}"));
                self.refused(shipment, &unknown, answers);
                if current {
                    tracing::error!(error, "the kafka producer met a fatal error and is replaced");
                    self.begin_anew(&unknown, answers);
                }
            }
            _ => {
                tracing::debug!(error, topic = &*shipment.topic, shipment.partition, "not appended yet");
                if error == code::UNKNOWN_TOPIC_OR_PARTITION
                    && let Some(topic) = self.topics.iter_mut().find(|topic| topic.name == shipment.topic)
                {
                    topic.absent_since.get_or_insert(now);
                }
                self.come_back(shipment, now, answers);
            }
        }
    }

    fn arrive(&mut self, shipment: &Shipment<T>) -> Option<&mut Partition<T>> {
        let topic = self.topics.iter_mut().find(|topic| topic.name == shipment.topic)?;
        let partition = topic.partitions.get_mut(&shipment.partition)?;
        (partition.on_its_way, partition.failures) = (false, 0);
        Some(partition)
    }

    /// Definitely not appended: its numbers are free for the next one.
    fn refused(&mut self, shipment: Shipment<T>, error: &AppendError, answers: &mut Answers<T>) {
        let (life, base_sequence) = (self.life, shipment.base_sequence);
        if let Some(partition) = self.arrive(&shipment)
            && shipment.life == life
        {
            partition.next_sequence = base_sequence;
        }
        answers.extend(shipment.records.into_iter().map(|record| (record.ticket, Err(error.clone()))));
    }

    /// A producer that numbers from 0 again. What an older one had in line is reported as unknown; whoever appended it
    /// decides.
    fn begin_anew(&mut self, unknown: &AppendError, answers: &mut Answers<T>) {
        self.life += 1;
        self.producer = None;
        for partition in self.topics.iter_mut().flat_map(|topic| topic.partitions.values_mut()) {
            partition.fail_all(unknown, answers);
            partition.next_sequence = 0;
        }
    }

    /// The broker did not answer for these: they go again, to whoever leads their partitions then.
    pub(super) fn lost(&mut self, shipments: Vec<Shipment<T>>, now: Instant) -> Answers<T> {
        let mut answers = Vec::new();
        for shipment in shipments {
            self.come_back(shipment, now, &mut answers);
        }
        answers
    }

    fn come_back(&mut self, shipment: Shipment<T>, now: Instant, answers: &mut Answers<T>) {
        self.wants_metadata = true;
        let life = self.life;
        let Some(index) = self.topics.iter().position(|topic| topic.name == shipment.topic) else { return };
        let Some(partition) = self.topics[index].partitions.get_mut(&shipment.partition) else { return };
        partition.on_its_way = false;
        if shipment.life != life {
            let unknown = AppendError::Unknown("the kafka producer was replaced meanwhile".into());
            answers.extend(shipment.records.into_iter().map(|record| (record.ticket, Err(unknown.clone()))));
            return;
        }
        partition.pending = Some((shipment.base_sequence, shipment.records));
        partition.try_later(now);
        if let Some(leader) = partition.leader {
            self.by_leader.entry(leader).or_default().insert((index, shipment.partition));
        }
    }

    /// Together they are too large for the broker; none of them is appended.
    fn come_back_in_halves(&mut self, shipment: Shipment<T>, now: Instant, answers: &mut Answers<T>) {
        let (topic, number) = (shipment.topic.clone(), shipment.partition);
        self.come_back(shipment, now, answers);
        let found = self.topics.iter_mut().find(|found| found.name == topic);
        let Some(partition) = found.and_then(|topic| topic.partitions.get_mut(&number)) else { return };
        if let Some((base_sequence, records)) = partition.pending.take() {
            partition.records_max = records.len() / 2;
            partition.next_sequence = base_sequence;
            records.into_iter().rev().for_each(|record| partition.queue.push_front(record));
        }
    }

    /// Whether leaders are to be asked for, and whether a producer's id.
    pub(super) fn wants(&self) -> (bool, bool) {
        let idle = self.topics.iter().flat_map(|topic| topic.partitions.values()).all(Partition::is_empty);
        (self.wants_metadata, self.producer.is_none() && !idle)
    }

    /// The topics that metadata is wanted for.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }

    pub(super) fn producer(&self) -> Option<ProducerId> {
        self.producer
    }

    pub(super) fn set_producer(&mut self, producer: ProducerId) {
        self.producer = Some(producer);
    }

    /// Where a broker is, as it was told last.
    pub(super) fn address(&self, broker: i32) -> Option<String> {
        self.addresses.get(&broker).cloned()
    }

    pub(super) fn brokers(&self) -> impl Iterator<Item = (i32, &str)> {
        self.addresses.iter().map(|(&id, address)| (id, address.as_str()))
    }

    /// Takes what a broker knows of the cluster.
    pub(super) fn learn(&mut self, metadata: &Metadata, now: Instant) -> Answers<T> {
        let mut answers = Vec::new();
        self.wants_metadata = false;
        self.addresses = metadata.brokers.iter().cloned().collect();
        for told in &metadata.topics {
            let Some(topic) = self.topics.iter_mut().find(|topic| *topic.name == *told.name) else { continue };
            match told.error {
                code::NONE => topic.absent_since = None,
                code::UNKNOWN_TOPIC_OR_PARTITION => {
                    topic.absent_since.get_or_insert(now);
                }
                _ => {}
            }
            let absent = topic.absent_since.is_some_and(|since| now - since > TOPIC_KNOWN_WITHIN);
            let partitions = told.leaders.iter().map(|&(partition, leader)| (partition.unsigned_abs(), leader));
            let leaders: BTreeMap<u32, i32> = partitions.collect();
            let alive = leaders.iter().filter(|(_, leader)| self.addresses.contains_key(leader));
            topic.leaders = alive.map(|(&partition, &leader)| (partition, leader)).collect();
            for (number, partition) in &mut topic.partitions {
                partition.leader = topic.leaders.get(number).copied();
                let nowhere = told.error == code::NONE && !leaders.contains_key(number);
                if (absent || nowhere) && !partition.on_its_way {
                    let unknown = AppendError::Unknown(format!("there is no partition {number} of {}", told.name));
                    partition.fail_all(&unknown, &mut answers);
                }
                self.wants_metadata |= partition.leader.is_none() && !partition.is_empty();
            }
        }
        // A topic that came in line after the question was asked.
        let told = |topic: &Topic<T>| metadata.topics.iter().any(|told| *told.name == *topic.name);
        self.wants_metadata |= !self.topics.iter().all(told);
        self.sort_by_leader();
        answers
    }

    fn sort_by_leader(&mut self) {
        self.by_leader.clear();
        for (index, topic) in self.topics.iter().enumerate() {
            for (&number, partition) in topic.partitions.iter().filter(|(_, partition)| !partition.is_empty()) {
                if let Some(leader) = partition.leader {
                    self.by_leader.entry(leader).or_default().insert((index, number));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::TopicMetadata;
    use super::*;

    const PRODUCER: ProducerId = ProducerId { id: 1, epoch: 0 };

    /// A line whose topic `t` has partitions led by these brokers, and a producer.
    fn line(leaders: &[i32]) -> (Line<u64>, Instant) {
        let (mut line, now) = (Line::new(), Instant::now());
        push(&mut line, 0, 1_000);
        assert_eq!(line.wants(), (true, true));
        line.learn(&metadata(0, leaders), now);
        assert!(line.take(1, now).is_empty(), "nothing without a producer's id");
        line.set_producer(PRODUCER);
        assert_eq!(line.wants(), (false, false));
        let shipments = line.take(leaders[0], now);
        line.answered(shipments, &[produced(0, code::NONE, 0)], now);
        (line, now)
    }

    fn metadata(error: i16, leaders: &[i32]) -> Metadata {
        let leaders = leaders.iter().enumerate().map(|(partition, &leader)| (partition as i32, leader)).collect();
        let topic = TopicMetadata { name: "t".into(), error, leaders };
        Metadata { brokers: vec![(1, "one:1".into()), (2, "two:1".into())], topics: vec![topic] }
    }

    fn push(line: &mut Line<u64>, partition: u32, ticket: u64) -> Option<i32> {
        line.push("t", true, partition, Waiting { payload: Bytes::from_static(b"payload"), ticket })
    }

    fn push_all(line: &mut Line<u64>, records: &[(u32, u64)]) {
        for &(partition, ticket) in records {
            push(line, partition, ticket);
        }
    }

    fn produced(partition: i32, error: i16, base_offset: i64) -> Produced {
        Produced { topic: "t".into(), partition, error, base_offset }
    }

    fn seen(shipments: &[Shipment<u64>]) -> Vec<(u32, i32, Vec<u64>)> {
        let tickets = |shipment: &Shipment<u64>| shipment.records.iter().map(|record| record.ticket).collect();
        shipments.iter().map(|one| (one.partition, one.base_sequence, tickets(one))).collect()
    }

    #[test]
    fn a_request_has_what_has_come_for_all_partitions_of_a_broker() {
        let (mut line, now) = line(&[1, 2, 1]);
        assert_eq!(
            [0, 1, 2, 0].map(|partition| push(&mut line, partition, u64::from(partition))),
            [1, 2, 1, 1].map(Some)
        );
        let shipments = line.take(1, now);
        assert_eq!(seen(&shipments), [(0, 1, vec![0, 0]), (2, 0, vec![2])]);
        push(&mut line, 0, 9);
        assert!(line.take(1, now).is_empty() && line.due(1, None).is_none(), "one batch of a partition at a time");
        let answers = line.answered(shipments, &[produced(0, code::NONE, 40), produced(2, code::NONE, 7)], now);
        let expected = [(0, Ok(Position(40))), (0, Ok(Position(41))), (2, Ok(Position(7)))];
        assert_eq!(answers, expected);
        assert_eq!(line.due(1, None), Some(None));
        assert_eq!(seen(&line.take(1, now)), [(0, 3, vec![9])]);
        assert_eq!(seen(&line.take(2, now)), [(1, 0, vec![1])]);
    }

    #[test]
    fn what_was_lost_goes_again_as_it_was_before_anything_else_and_to_the_new_leader() {
        let (mut line, now) = line(&[1]);
        push(&mut line, 0, 1);
        let shipments = line.take(1, now);
        push(&mut line, 0, 2);
        assert!(line.lost(shipments, now).is_empty(), "nobody is told anything");
        assert_eq!(line.wants(), (true, false));
        assert!(line.take(1, now).is_empty(), "not at once");
        line.learn(&metadata(0, &[2]), now);
        let later = line.due(2, None).expect("something").expect("a time");
        assert!(line.due(1, None).is_none() && later > now);
        let shipments = line.take(2, later);
        assert_eq!(seen(&shipments), [(0, 1, vec![1])], "the same numbers, and nothing added");
        let answers = line.answered(shipments, &[produced(0, code::DUPLICATE_SEQUENCE_NUMBER, -1)], later);
        assert_eq!(answers, [(1, Ok(Position(0)))], "it had arrived the first time");
        assert_eq!(seen(&line.take(2, later)), [(0, 2, vec![2])]);
    }

    #[test]
    fn what_is_refused_leaves_no_hole_in_the_numbers() {
        let (mut line, now) = line(&[1]);
        push(&mut line, 0, 1);
        let shipments = line.take(1, now);
        push(&mut line, 0, 2);
        let answers = line.answered(shipments, &[produced(0, code::MESSAGE_TOO_LARGE, -1)], now);
        assert_eq!(answers, [(1, Err(AppendError::TooLarge))]);
        assert_eq!(seen(&line.take(1, now)), [(0, 1, vec![2])]);
    }

    #[test]
    fn records_that_are_too_large_together_go_in_halves() {
        let (mut line, now) = line(&[1]);
        push_all(&mut line, &[(0, 1), (0, 2), (0, 3), (0, 4)]);
        let shipments = line.take(1, now);
        assert!(line.answered(shipments, &[produced(0, code::RECORD_LIST_TOO_LARGE, -1)], now).is_empty());
        let later = now + AGAIN_AFTER.1;
        let shipments = line.take(1, later);
        assert_eq!(seen(&shipments), [(0, 1, vec![1, 2])]);
        line.answered(shipments, &[produced(0, code::NONE, 0)], later);
        assert_eq!(seen(&line.take(1, later)), [(0, 3, vec![3, 4])]);
    }

    #[test]
    fn a_fatal_error_makes_everything_in_line_unknown_and_numbers_begin_again() {
        let (mut line, now) = line(&[1, 2]);
        push_all(&mut line, &[(0, 1), (1, 2)]);
        let (to_one, to_two) = (line.take(1, now), line.take(2, now));
        push_all(&mut line, &[(0, 3), (1, 4)]);
        let answers = line.answered(to_one, &[produced(0, code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)], now);
        let told: Vec<u64> = answers.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(told, [1, 3, 4]);
        assert!(answers.iter().all(|(_, answer)| matches!(answer, Err(AppendError::Unknown(_)))));
        push_all(&mut line, &[(0, 5), (1, 6)]);
        assert_eq!(line.wants(), (false, true));
        line.set_producer(ProducerId { id: 2, epoch: 0 });
        assert_eq!(seen(&line.take(1, now)), [(0, 0, vec![5])]);
        assert!(line.take(2, now).is_empty(), "an older batch is still on its way there");
        let answers = line.lost(to_two, now);
        assert!(matches!(answers[..], [(2, Err(AppendError::Unknown(_)))]), "it does not go again: {answers:?}");
        assert_eq!(seen(&line.take(2, now)), [(1, 0, vec![6])]);
    }

    #[test]
    fn a_partition_that_does_not_exist_is_told_at_once_and_a_topic_only_after_a_while() {
        let (mut line, now) = line(&[1]);
        assert_eq!(push(&mut line, 5, 1), None);
        let answers = line.learn(&metadata(0, &[1]), now);
        assert!(matches!(answers[..], [(1, Err(AppendError::Unknown(_)))]), "{answers:?}");
        push(&mut line, 0, 2);
        assert!(line.learn(&metadata(code::UNKNOWN_TOPIC_OR_PARTITION, &[]), now).is_empty());
        assert_eq!(line.wants(), (true, false), "asked for again");
        let later = now + TOPIC_KNOWN_WITHIN + Duration::from_millis(1);
        let answers = line.learn(&metadata(code::UNKNOWN_TOPIC_OR_PARTITION, &[]), later);
        assert!(matches!(answers[..], [(2, Err(AppendError::Unknown(_)))]), "{answers:?}");
    }

    #[test]
    fn a_patient_topic_goes_with_one_that_is_not() {
        let (mut line, now) = line(&[1]);
        let patience_ends = Some(now + Duration::from_millis(1));
        push(&mut line, 0, 1);
        assert_eq!(line.due(1, patience_ends), Some(patience_ends));
        line.push("u", false, 0, Waiting { payload: Bytes::new(), ticket: 2 });
        let topics =
            ["t", "u"].map(|name| TopicMetadata { name: name.into(), error: code::NONE, leaders: vec![(0, 1)] });
        line.learn(&Metadata { brokers: vec![(1, "one:1".into())], topics: topics.into() }, now);
        assert_eq!(line.due(1, patience_ends), Some(None));
        assert_eq!(line.take(1, now).len(), 2);
    }

    #[test]
    fn numbers_begin_again_after_the_largest() {
        assert_eq!([after(5, 3), after(i32::MAX, 1), after(i32::MAX - 1, 4)], [8, 0, 2]);
    }
}
