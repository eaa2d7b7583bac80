//! A reader for the cases: follows assignments as a worker does, and collects what arrives.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{QUIET, within};
use crate::log::{Assignment, Bounds, Consumer, ConsumerEvent, Log, LogRecord, Position, StartAt, Topic};

/// A member of a group with what it owns and has read.
pub struct Reader {
    /// The member itself.
    pub consumer: Box<dyn Consumer>,
    /// What it owns, under which assignment.
    pub owned: BTreeMap<u32, Assignment>,
    /// What has arrived, by partition, in the order of arrival since the partition was started.
    pub records: BTreeMap<u32, Vec<LogRecord>>,
    /// The last `OutOfRange` of each partition.
    pub out_of_range: BTreeMap<u32, Bounds>,
    /// Where a newly assigned partition is started at once; `None` leaves that to the case.
    pub start_at: Option<StartAt>,
    started: BTreeMap<u32, Assignment>,
}

impl Reader {
    /// Joins a group.
    pub async fn join(log: &Arc<dyn Log>, topic: Topic, group: &str, start_at: Option<StartAt>) -> Self {
        let consumer = within("joining", log.consume(topic, group)).await.expect("the group accepts a member");
        Self {
            consumer,
            owned: BTreeMap::new(),
            records: BTreeMap::new(),
            out_of_range: BTreeMap::new(),
            start_at,
            started: BTreeMap::new(),
        }
    }

    /// Starts a partition that it owns; what was read of it before is forgotten.
    pub fn start(&mut self, partition: u32, at: StartAt) {
        let assignment = self.owned[&partition];
        self.records.remove(&partition);
        self.out_of_range.remove(&partition);
        self.started.insert(partition, assignment);
        self.consumer.start(partition, assignment, at).expect("an assigned partition starts");
    }

    /// Stops a partition that it owns.
    pub fn stop(&mut self, partition: u32) {
        self.started.remove(&partition);
        self.consumer.stop(partition);
    }

    /// Takes one event in. Cancel-safe, as `next` is.
    pub async fn step(&mut self) {
        let event = match self.consumer.next().await {
            Ok(event) => event,
            Err(error) => {
                // Passing trouble is allowed; a log that stays away fails the case by its limit.
                tracing::debug!(%error, "the consumer failed for now");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                return;
            }
        };
        self.take(event);
    }

    fn take(&mut self, event: ConsumerEvent) {
        match event {
            ConsumerEvent::Assigned(partitions, assignment) => {
                for partition in partitions {
                    if let Some(before) = self.owned.insert(partition, assignment) {
                        assert!(before < assignment, "partition {partition} came again under {assignment:?}");
                    }
                    self.started.remove(&partition);
                    if let Some(at) = self.start_at {
                        self.start(partition, at);
                    }
                }
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.owned.remove(&partition);
                    self.started.remove(&partition);
                }
            }
            ConsumerEvent::Records { partition, assignment, records } => {
                assert!(!records.is_empty(), "an event without records");
                let newest = self.owned.get(&partition).copied();
                if newest != Some(assignment) {
                    assert!(newest.is_none_or(|newest| newest > assignment), "records of an unknown assignment");
                    return;
                }
                assert_eq!(self.started.get(&partition), Some(&assignment), "records without a start");
                let so_far = self.records.entry(partition).or_default();
                for record in records {
                    assert!(record.position < record.next, "{record:?}");
                    if let Some(last) = so_far.last() {
                        assert!(last.next <= record.position, "after {last:?} came {record:?}");
                    }
                    so_far.push(record);
                }
            }
            ConsumerEvent::OutOfRange { partition, assignment, bounds } => {
                if self.owned.get(&partition) == Some(&assignment) {
                    assert!(self.started.contains_key(&partition), "out of range without a start");
                    self.out_of_range.insert(partition, bounds);
                }
            }
        }
    }

    /// Takes events in until the condition holds.
    pub async fn until(&mut self, what: &str, mut condition: impl FnMut(&Reader) -> bool) {
        within(what, async {
            while !condition(self) {
                self.step().await;
            }
        })
        .await;
    }

    /// Takes events in for a short while, to see that something does not happen.
    pub async fn watch(&mut self) {
        let _ = tokio::time::timeout(QUIET, async {
            loop {
                self.step().await;
            }
        })
        .await;
    }

    /// Takes events in until all partitions of the log are this member's.
    pub async fn until_owns_all(&mut self, partitions: u32) {
        self.until("the assignment of all partitions", |reader| reader.owned.len() == partitions as usize).await;
    }

    /// The texts read of a partition.
    pub fn texts(&self, partition: u32) -> Vec<String> {
        let records = self.records.get(&partition).map(Vec::as_slice).unwrap_or_default();
        records.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()).collect()
    }

    /// The positions read of a partition.
    pub fn positions(&self, partition: u32) -> Vec<Position> {
        self.records.get(&partition).into_iter().flatten().map(|record| record.position).collect()
    }

    /// Takes events in until so many records of a partition are read.
    pub async fn until_read(&mut self, partition: u32, count: usize) {
        self.until(&format!("{count} records of partition {partition}"), |reader| {
            reader.records.get(&partition).map_or(0, Vec::len) >= count
        })
        .await;
    }

    /// Leaves the group.
    pub async fn close(self) {
        within("closing", self.consumer.close()).await;
    }
}

/// Reads a whole partition from the beginning, `count` records at the least, in a group of its own.
pub async fn read_all(log: &Arc<dyn Log>, topic: Topic, partition: u32, count: usize) -> Vec<String> {
    let mut reader = Reader::join(log, topic, &super::fresh_group(), Some(StartAt::Committed)).await;
    reader.until_read(partition, count).await;
    let texts = reader.texts(partition);
    reader.close().await;
    texts
}
