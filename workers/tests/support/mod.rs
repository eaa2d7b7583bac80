//! A log, a registry and a delivery in memory: small enough to be obviously right, for driving the workers in real time.

#![allow(dead_code, reason = "each test binary uses its own share of it")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use roost_ports::delivery::{DeliveryBatch, DeliveryError, DeliveryFuture, DeliveryItem};
use roost_ports::log::*;
use roost_ports::registry::*;
use roost_ports::{Consumer, Delivery, Log, Registry};
use roost_protocol::records::Endpoint;
use roost_protocol::{Incarnation, UserId};
use tokio::sync::Notify;

pub const PARTITIONS: u32 = 4;

/// A log in memory. The members of a group share the partitions by their number; a change is told to all of them.
pub struct MemoryLog {
    state: Mutex<LogState>,
    changed: Notify,
}

#[derive(Default)]
struct LogState {
    topics: HashMap<(Topic, u32), Vec<Bytes>>,
    begins: HashMap<(Topic, u32), u64>,
    committed: HashMap<(String, u32), u64>,
    members: HashMap<String, Vec<u64>>,
    assignment: u64,
    next_member: u64,
    /// So many of the next appends to `deliver` fail.
    failing_appends: usize,
}

impl MemoryLog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(LogState::default()), changed: Notify::new() })
    }

    pub fn records(&self, topic: Topic, partition: u32) -> Vec<Bytes> {
        self.state.lock().topics.get(&(topic, partition)).cloned().unwrap_or_default()
    }

    pub fn committed(&self, group: &str, partition: u32) -> Option<u64> {
        self.state.lock().committed.get(&(group.to_owned(), partition)).copied()
    }

    pub fn fail_appends(&self, count: usize) {
        self.state.lock().failing_appends = count;
    }

    /// Retention removes what stands before this.
    pub fn truncate(&self, topic: Topic, partition: u32, begin: u64) {
        self.state.lock().begins.insert((topic, partition), begin);
    }
}

struct MemoryConsumer {
    log: Arc<MemoryLog>,
    topic: Topic,
    group: String,
    member: u64,
    seen_assignment: u64,
    owned: HashMap<u32, Option<u64>>,
    events: VecDeque<ConsumerEvent>,
}

/// The port's shape wants `&self`; the consumer needs the log's `Arc`.
pub struct SharedLog(pub Arc<MemoryLog>);

#[async_trait]
impl Log for SharedLog {
    fn log_id(&self) -> &str {
        "memory"
    }

    fn partitions(&self) -> u32 {
        PARTITIONS
    }

    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        let mut state = self.0.state.lock();
        let fails = topic == Topic::Deliver && state.failing_appends > 0;
        if fails {
            state.failing_appends -= 1;
        }
        let results: Vec<_> = records
            .into_iter()
            .map(|record| {
                if fails {
                    return Err(AppendError::Unknown("told to".into()));
                }
                let log = state.topics.entry((topic, record.partition)).or_default();
                log.push(record.payload);
                Ok(Position(log.len() as u64 - 1))
            })
            .collect();
        drop(state);
        self.0.changed.notify_waiters();
        async move {
            tokio::task::yield_now().await;
            results
        }
        .boxed()
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let state = self.0.state.lock();
        let end = state.topics.get(&(topic, partition)).map_or(0, Vec::len) as u64;
        let begin = state.begins.get(&(topic, partition)).copied().unwrap_or(0);
        Ok(Bounds { begin: Position(begin), end: Position(end) })
    }

    async fn read_before(&self, topic: Topic, partition: u32, at: Position) -> Result<Option<LogRecord>, LogError> {
        let state = self.0.state.lock();
        let begin = state.begins.get(&(topic, partition)).copied().unwrap_or(0);
        let Some(position) = at.0.checked_sub(1).filter(|&position| position >= begin) else { return Ok(None) };
        let payload = state.topics.get(&(topic, partition)).and_then(|log| log.get(position as usize)).cloned();
        Ok(payload.map(|payload| LogRecord { position: Position(position), next: at, payload }))
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, LogError> {
        let mut state = self.0.state.lock();
        state.next_member += 1;
        let member = state.next_member;
        state.assignment += 1;
        state.members.entry(group.to_owned()).or_default().push(member);
        drop(state);
        self.0.changed.notify_waiters();
        Ok(Box::new(MemoryConsumer {
            log: Arc::clone(&self.0),
            topic,
            group: group.to_owned(),
            member,
            seen_assignment: 0,
            owned: HashMap::new(),
            events: VecDeque::new(),
        }))
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }
}

impl MemoryConsumer {
    fn poll(&mut self) -> Option<ConsumerEvent> {
        let log = Arc::clone(&self.log);
        let state = log.state.lock();
        if self.seen_assignment != state.assignment {
            self.seen_assignment = state.assignment;
            let members = state.members.get(&self.group).cloned().unwrap_or_default();
            let mine =
                |partition: &u32| !members.is_empty() && members[*partition as usize % members.len()] == self.member;
            let lost: Vec<u32> = self.owned.keys().copied().filter(|partition| !mine(partition)).collect();
            let won: Vec<u32> =
                (0..PARTITIONS).filter(mine).filter(|partition| !self.owned.contains_key(partition)).collect();
            self.owned.retain(|partition, _| !lost.contains(partition));
            self.owned.extend(won.iter().map(|&partition| (partition, None)));
            if !lost.is_empty() {
                self.events.push_back(ConsumerEvent::Revoked(lost));
            }
            if !won.is_empty() {
                self.events.push_back(ConsumerEvent::Assigned(won, Assignment(self.seen_assignment)));
            }
        }
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let assignment = Assignment(self.seen_assignment);
        for (&partition, at) in &mut self.owned {
            let Some(from) = *at else { continue };
            let records = state.topics.get(&(self.topic, partition)).map_or(&[][..], Vec::as_slice);
            let begin = state.begins.get(&(self.topic, partition)).copied().unwrap_or(0);
            if from < begin || from > records.len() as u64 {
                *at = None;
                let bounds = Bounds { begin: Position(begin), end: Position(records.len() as u64) };
                return Some(ConsumerEvent::OutOfRange { partition, assignment, bounds });
            }
            let fetched: Vec<LogRecord> = (from..)
                .zip(&records[from as usize..])
                .take(16)
                .map(|(position, payload)| LogRecord {
                    position: Position(position),
                    next: Position(position + 1),
                    payload: payload.clone(),
                })
                .collect();
            if let Some(last) = fetched.last() {
                *at = Some(last.next.0);
                return Some(ConsumerEvent::Records { partition, assignment, records: fetched });
            }
        }
        None
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<ConsumerEvent, LogError> {
        loop {
            let log = Arc::clone(&self.log);
            let changed = log.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(event) = self.poll() {
                return Ok(event);
            }
            changed.await;
        }
    }

    fn start(&mut self, partition: u32, _: Assignment, at: StartAt) -> Result<(), LogError> {
        let committed = || self.log.state.lock().committed.get(&(self.group.clone(), partition)).copied();
        let at = match at {
            StartAt::Position(at) => at.0,
            StartAt::Committed => committed().unwrap_or(0),
        };
        if let Some(reading) = self.owned.get_mut(&partition) {
            *reading = Some(at);
        }
        Ok(())
    }

    fn stop(&mut self, partition: u32) {
        if let Some(reading) = self.owned.get_mut(&partition) {
            *reading = None;
        }
    }

    fn commit(&mut self, partition: u32, _: Assignment, next: Position) {
        self.log.state.lock().committed.insert((self.group.clone(), partition), next.0);
    }

    async fn close(self: Box<Self>) {
        let mut state = self.log.state.lock();
        state.assignment += 1;
        if let Some(members) = state.members.get_mut(&self.group) {
            members.retain(|member| *member != self.member);
        }
        drop(state);
        self.log.changed.notify_waiters();
    }
}

/// A registry whose answers a test sets.
#[derive(Default)]
pub struct MemoryRegistry {
    pub located: Mutex<Located>,
    pub away: Mutex<bool>,
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn acquire(&self, _: &Endpoint, _: u64) -> Result<Renewal, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn renew(&self, _: &Endpoint, _: RegistryIncarnation, _: u64) -> Result<Renewal, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn complete(&self, _: Incarnation, _: RegistryIncarnation) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn release(&self, _: Incarnation) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn register(&self, _: Incarnation, _: &[SessionEntry]) -> Result<u64, RegistryError> {
        Ok(0)
    }

    async fn unregister(&self, _: Incarnation, _: &[SessionEntry]) -> Result<u64, RegistryError> {
        Ok(0)
    }

    async fn locate(&self, users: &[UserId]) -> Result<Located, RegistryError> {
        if *self.away.lock() {
            return Err(RegistryError::Unavailable("told to".into()));
        }
        let mut located = self.located.lock().clone();
        located.sessions.retain(|session| users.contains(&session.user_id));
        Ok(located)
    }

    async fn allow(&self, _: &str, _: Rate) -> Result<RateDecision, RegistryError> {
        Ok(RateDecision::Allowed)
    }

    async fn check(&self) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// Keeps everything that was sent, and answers as it is told.
#[derive(Default)]
pub struct RecordingDelivery {
    pub sent: Mutex<Vec<(Endpoint, DeliveryItem)>>,
    pub answers: Mutex<HashMap<Incarnation, DeliveryError>>,
}

impl RecordingDelivery {
    pub fn items(&self) -> Vec<(Endpoint, DeliveryItem)> {
        self.sent.lock().clone()
    }
}

impl Delivery for RecordingDelivery {
    fn send(&self, to: &Endpoint, batch: DeliveryBatch) -> DeliveryFuture {
        let answer = self.answers.lock().get(&to.incarnation).cloned();
        if answer.is_none() {
            self.sent.lock().extend(batch.items.into_iter().map(|item| (to.clone(), item)));
        }
        async move { answer.map_or(Ok(()), Err) }.boxed()
    }
}

/// Waits until it holds, or fails.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
