//! A member of a group: serves what it owns from memory, and from the file where it is behind.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::log::{Assignment, Consumer, ConsumerEvent, LogError, LogRecord, Position, StartAt, Topic};

use super::Shared;
use super::groups::Membership;
use super::reader::{Read, read};

/// At most so many records in one event …
const RECORDS_MAX: usize = 1_024;
/// … and about so many bytes.
const BYTES_MAX: usize = 1024 * 1024;

/// The member.
pub struct SqliteConsumer {
    shared: Arc<Shared>,
    topic: Topic,
    membership: Membership,
    /// What the reader has been told that it owns, by partition.
    owned: Vec<Option<Assignment>>,
    /// Where each started partition goes on.
    cursors: Vec<Option<u64>>,
    version_seen: u64,
    /// Changes of ownership that the reader has not been told yet.
    changes: VecDeque<ConsumerEvent>,
    /// The partition whose turn it is, so that a busy one does not starve the others.
    turn: usize,
}

/// What there is to do for the partition whose turn it is.
enum Turn {
    Event(ConsumerEvent),
    /// Read the file from here on.
    Behind(usize, u64),
    Nothing,
}

impl SqliteConsumer {
    /// Joins a group.
    pub fn join(shared: Arc<Shared>, topic: Topic, group: &str) -> Self {
        let count = shared.partition_count as usize;
        let membership = shared.groups.join(topic, group);
        Self {
            shared,
            topic,
            membership,
            owned: vec![None; count],
            cursors: vec![None; count],
            version_seen: 0,
            changes: VecDeque::new(),
            turn: 0,
        }
    }

    /// Takes over a changed target, and notes what to tell the reader about it.
    fn follow(&mut self) {
        let (version, target) = self.membership.mailbox.target();
        self.version_seen = version;
        let mut revoked = Vec::new();
        let mut assigned: Vec<(Assignment, u32)> = Vec::new();
        for (partition, (old, new)) in self.owned.iter().zip(&target).enumerate() {
            if old == new {
                continue;
            }
            self.cursors[partition] = None;
            revoked.extend(old.map(|_| partition as u32));
            assigned.extend(new.map(|number| (number, partition as u32)));
        }
        self.owned = target;
        if !revoked.is_empty() {
            self.changes.push_back(ConsumerEvent::Revoked(revoked));
        }
        assigned.sort_unstable();
        for same in assigned.chunk_by(|one, other| one.0 == other.0) {
            let partitions = same.iter().map(|(_, partition)| *partition).collect();
            self.changes.push_back(ConsumerEvent::Assigned(partitions, same[0].0));
        }
    }

    /// The next started partition that has something.
    fn turn(&mut self) -> Turn {
        let count = self.cursors.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(cursor) = self.cursors[index] else { continue };
            let slot = self.shared.slot(self.topic, index as u32);
            let partition = &self.shared.partitions[slot];
            let (begin, end) = (partition.begin(), partition.end());
            if cursor == end {
                continue;
            }
            self.turn = (index + 1) % count;
            if cursor < begin || cursor > end {
                return Turn::Event(self.out_of_range(index));
            }
            return match partition.fetch(cursor, RECORDS_MAX, BYTES_MAX) {
                Some(records) => Turn::Event(self.records(index, records)),
                None => Turn::Behind(index, cursor),
            };
        }
        Turn::Nothing
    }

    fn records(&mut self, index: usize, records: Vec<LogRecord>) -> ConsumerEvent {
        let last = records.last().expect("before the end there is a record");
        self.cursors[index] = Some(last.next.0);
        ConsumerEvent::Records { partition: index as u32, assignment: self.assignment(index), records }
    }

    fn out_of_range(&mut self, index: usize) -> ConsumerEvent {
        self.cursors[index] = None;
        let bounds = self.shared.partitions[self.shared.slot(self.topic, index as u32)].bounds();
        ConsumerEvent::OutOfRange { partition: index as u32, assignment: self.assignment(index), bounds }
    }

    fn assignment(&self, index: usize) -> Assignment {
        self.owned[index].expect("a started partition is owned")
    }

    fn owns(&self, partition: u32, assignment: Assignment) -> bool {
        self.owned.get(partition as usize) == Some(&Some(assignment))
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    // Cancel-safe: nothing of `self` changes between an await and the return that belongs to it.
    async fn next(&mut self) -> Result<ConsumerEvent, LogError> {
        loop {
            if self.shared.is_closed() {
                return Err(LogError::Unavailable("the log is closed".into()));
            }
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            if self.membership.mailbox.version() != self.version_seen {
                self.follow();
                continue;
            }
            match self.turn() {
                Turn::Event(event) => return Ok(event),
                Turn::Behind(index, cursor) => {
                    let slot = self.shared.slot(self.topic, index as u32);
                    match read(&self.shared, slot, cursor, RECORDS_MAX, BYTES_MAX).await? {
                        Read::Records(records) => return Ok(self.records(index, records)),
                        Read::Begins(begin) => {
                            self.shared.partitions[slot].set_begin(begin);
                            return Ok(self.out_of_range(index));
                        }
                    }
                }
                Turn::Nothing => self.membership.mailbox.notify.notified().await,
            }
        }
    }

    fn start(&mut self, partition: u32, assignment: Assignment, at: StartAt) -> Result<(), LogError> {
        if self.owns(partition, assignment) {
            let held = &self.shared.partitions[self.shared.slot(self.topic, partition)];
            let cursor = match at {
                StartAt::Position(position) => {
                    self.membership.group.rewind(partition, position.0);
                    position.0
                }
                StartAt::Committed => self.membership.group.committed(partition).unwrap_or_else(|| held.begin()),
            };
            self.cursors[partition as usize] = Some(cursor);
        }
        Ok(())
    }

    fn stop(&mut self, partition: u32) {
        self.cursors[partition as usize] = None;
    }

    fn commit(&mut self, partition: u32, assignment: Assignment, next: Position) {
        if self.owns(partition, assignment)
            && self.membership.group.commit(self.membership.id, partition, assignment, next.0)
        {
            self.shared.queue.note_lazy_work();
        }
    }

    async fn close(self: Box<Self>) {
        // Dropping leaves the group.
    }
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        self.shared.groups.leave(&self.membership);
    }
}
