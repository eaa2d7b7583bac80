//! What the persist machine begins next: claims, replays, batches for the lanes, publishing and notes.

use std::collections::BTreeSet;
use std::sync::Arc;

use roost_ports::log::{NewRecord, Position};
use roost_ports::store::apply::Poison;
use roost_ports::store::{ApplyBatch, PartBatch};

use super::{Busy, CallPart, Effect, Machine, Partition, Phase, STORE_RETRY_MS};
use crate::consume::{Step, backoff_ms};
use crate::persist::batching::{self, Newer, Room};
use crate::persist::bisect::Trial;

/// One transaction at a time over some of the partitions.
#[derive(Default)]
pub(super) struct Lane {
    flight: Option<Flight>,
    failures: u32,
    retry_at: Option<u64>,
    turn: usize,
    suspects_turn: bool,
}

/// A transaction on its way.
pub(super) struct Flight {
    pub(super) transaction: u64,
    pub(super) batch: Arc<ApplyBatch>,
    /// (partition, generation) of each part.
    pub(super) parts: Vec<(u32, u64)>,
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        self.flight.is_none()
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.retry_at
    }

    pub(super) fn land(&mut self, transaction: u64) -> Option<Flight> {
        self.flight.take_if(|flight| flight.transaction == transaction)
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    /// The Store is away: the same records again after a while, and no limit to how often.
    pub(super) fn rest(&mut self, now_ms: u64) {
        self.failures += 1;
        self.retry_at = Some(now_ms + backoff_ms(self.failures, STORE_RETRY_MS.0, STORE_RETRY_MS.1));
    }

    fn is_ready(&self, now_ms: u64) -> bool {
        self.flight.is_none() && self.retry_at.is_none_or(|at| now_ms >= at)
    }
}

impl Machine {
    /// Begins whatever can begin now.
    pub(super) fn advance(&mut self, now_ms: u64) {
        let partitions: Vec<u32> = self.active.iter().copied().collect();
        for &partition in &partitions {
            self.advance_partition(partition, now_ms);
        }
        self.publish(now_ms);
        if !self.stopping {
            for lane in 0..self.lanes.len() {
                if self.lanes[lane].is_ready(now_ms) {
                    self.begin_transaction(lane, now_ms);
                }
            }
        }
        for &partition in &partitions {
            self.note(partition, now_ms);
        }
    }

    fn lane_of(&self, partition: u32) -> usize {
        partition as usize % self.lanes.len()
    }

    fn advance_partition(&mut self, partition: u32, now_ms: u64) {
        let stopping = self.stopping;
        let generation = self.counter + 1;
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        match &found.phase {
            Phase::Waiting(at) if *at <= now_ms && !stopping => {
                found.reset(generation, Phase::Claiming);
                self.counter = generation;
                self.work(Effect::Claim { partition, generation });
            }
            Phase::Running(_) => {
                if let Some(command) = found.intake.regulate(partition) {
                    self.steps.push_back(Step::Consumer(command));
                }
                if !stopping {
                    self.begin_replay(partition);
                }
            }
            _ => {}
        }
    }

    /// Looks up the records below the next position: they are applied already, and published again.
    fn begin_replay(&mut self, partition: u32) {
        let partition_count = self.partition_count;
        let mut room = Room { records: self.config.batch_records_max, bytes: self.config.batch_bytes_max };
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let Phase::Running(progress) = &found.phase else { return };
        let next = progress.next();
        let below = found.intake.front().is_some_and(|record| record.position < next);
        if !below
            || found.busy != Busy::Idle
            || progress.replays_unpublished() >= self.config.transactions_unpublished_max
        {
            return;
        }
        let records = found.intake.records().take_while(|record| record.position < next);
        match batching::fill(records, partition, partition_count, &mut room, true) {
            Ok(records) => {
                found.busy = Busy::Replaying;
                let generation = found.generation;
                self.work(Effect::Replay { partition, generation, records });
            }
            Err(Newer(version)) => self.refuse_newer(partition, version),
        }
    }

    fn refuse_newer(&mut self, partition: u32, version: u32) {
        self.refuse(partition, format!("a record of format {version} is newer than this build reads"));
    }

    /// One transaction over what has arrived on the lane's partitions; or one over a suspected partition alone. The
    /// two kinds take turns.
    fn begin_transaction(&mut self, lane: usize, now_ms: u64) {
        let Some(mut room) = self.room(lane) else { return };
        let turn = self.lanes[lane].turn;
        let own: Vec<u32> = self.active.iter().copied().filter(|&one| self.lane_of(one) == lane).collect();
        let first = own.partition_point(|&one| (one as usize) < turn % self.partition_count as usize);
        let order = batching::rotated(own, first);
        let parts = if self.lanes[lane].suspects_turn {
            self.suspected_part(&order, now_ms, &mut room).or_else(|| self.healthy_parts(&order, &mut room))
        } else {
            self.healthy_parts(&order, &mut room).or_else(|| self.suspected_part(&order, now_ms, &mut room))
        };
        let Some(parts) = parts else { return };
        let transaction = self.number();
        let mut owners = Vec::with_capacity(parts.len());
        for part in &parts {
            if let Some(found) = self.partitions.get_mut(&part.partition) {
                found.busy = Busy::Applying;
                owners.push((part.partition, found.generation));
            }
        }
        let batch = Arc::new(ApplyBatch { log_id: self.log_id.clone(), parts });
        let state = &mut self.lanes[lane];
        state.turn = turn.wrapping_add(1);
        state.suspects_turn = !state.suspects_turn;
        state.retry_at = None;
        state.flight = Some(Flight { transaction, batch: Arc::clone(&batch), parts: owners });
        self.work(Effect::Apply { lane, transaction, batch });
    }

    /// What a new transaction of this lane may hold; none while too much is unpublished.
    fn room(&self, lane: usize) -> Option<Room> {
        let mut transactions = BTreeSet::new();
        let mut records = 0;
        // What is not wholly published never rests.
        for &partition in self.active.iter().filter(|&&partition| self.lane_of(partition) == lane) {
            if let Some(Phase::Running(progress)) = self.partitions.get(&partition).map(|found| &found.phase) {
                transactions.extend(progress.transactions_unpublished());
                records += progress.records_unpublished();
            }
        }
        let left = self.config.records_unpublished_max.saturating_sub(records);
        let free = transactions.len() < self.config.transactions_unpublished_max && left > 0;
        free.then(|| Room { records: self.config.batch_records_max.min(left), bytes: self.config.batch_bytes_max })
    }

    fn healthy_parts(&mut self, order: &[u32], room: &mut Room) -> Option<Vec<PartBatch>> {
        let mut parts = Vec::new();
        for &partition in order {
            let Some(found) = self.partitions.get(&partition) else { continue };
            if found.suspicion.is_some() {
                continue;
            }
            parts.extend(self.part(partition, usize::MAX, room, parts.is_empty()));
        }
        (!parts.is_empty()).then_some(parts)
    }

    fn suspected_part(&mut self, order: &[u32], now_ms: u64, room: &mut Room) -> Option<Vec<PartBatch>> {
        for &partition in order {
            let Some(suspicion) = self.partitions.get(&partition).and_then(|found| found.suspicion.as_ref()) else {
                continue;
            };
            let trial = suspicion.trial(now_ms);
            let part = match trial {
                Trial::Wait(_) => None,
                Trial::Try(count) => self.part(partition, count, room, true),
                Trial::DeadLetter => self.part(partition, 1, room, true).map(|part| self.condemned(part)),
            };
            if let Some(part) = part {
                return Some(vec![part]);
            }
        }
        None
    }

    /// The part with its only record as a dead letter.
    fn condemned(&self, mut part: PartBatch) -> PartBatch {
        let front = self.partitions.get(&part.partition).and_then(|found| found.intake.front());
        if let (Some(record), Some(incoming)) = (front, part.records.first_mut()) {
            // The Store's own words may hold content: they stay in the log of this process.
            let reason = "the store refuses its data".to_owned();
            incoming.content = Err(Poison { reason, payload: record.payload.clone() });
        }
        part
    }

    /// Up to `count` of a partition's first records, where it is ready for a transaction.
    fn part(&mut self, partition: u32, count: usize, room: &mut Room, first: bool) -> Option<PartBatch> {
        let partition_count = self.partition_count;
        let found = self.partitions.get(&partition)?;
        let (epoch, from, published) = found.ready()?;
        let records = found.intake.records().take(count);
        match batching::fill(records, partition, partition_count, room, first) {
            Ok(records) if records.is_empty() => None,
            Ok(records) => Some(PartBatch { partition, epoch, from, published, records }),
            Err(Newer(version)) => {
                self.refuse_newer(partition, version);
                None
            }
        }
    }

    /// Appends what the transactions have queued, all partitions in one call.
    fn publish(&mut self, now_ms: u64) {
        let mut parts = Vec::new();
        let mut records = Vec::new();
        for &partition in &self.active {
            let Some(found) = self.partitions.get_mut(&partition) else { continue };
            let generation = found.generation;
            let Phase::Running(progress) = &mut found.phase else { continue };
            for shipment in progress.ship(now_ms) {
                let count = shipment.publications.len();
                let (transaction, attempt) = (shipment.transaction, shipment.attempt);
                parts.push(CallPart { partition, generation, transaction, attempt, count });
                let publications = shipment.publications.into_iter();
                records.extend(
                    publications
                        .map(|publication| (publication.topic, NewRecord { partition, payload: publication.payload })),
                );
            }
        }
        if !parts.is_empty() {
            let call = self.number();
            self.calls.insert(call, parts);
            self.work(Effect::Publish { call, records });
        }
    }

    /// Writes the published position by itself where no transaction will: after a while of idleness, when stopping, or
    /// as the witness that a suspected partition needs.
    fn note(&mut self, partition: u32, now_ms: u64) {
        let note_after_ms = self.config.note_after_ms;
        let stopping = self.stopping;
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let Phase::Running(progress) = &found.phase else { return };
        if found.noting || found.busy == Busy::Applying {
            return;
        }
        let wants_witness = found.suspicion.as_ref().is_some_and(|suspicion| suspicion.wants_witness());
        let news = progress.published() > progress.stored();
        let due = match found.note_at {
            _ if !news => {
                found.note_at = None;
                false
            }
            Some(at) => now_ms >= at,
            None => {
                found.note_at = Some(now_ms + note_after_ms);
                false
            }
        };
        if (news && (due || stopping)) || (wants_witness && found.note_at.is_none_or(|at| now_ms >= at)) {
            let (generation, epoch, published) = (found.generation, progress.epoch(), progress.published());
            found.noting = true;
            found.note_at = None;
            self.work(Effect::SetPublished { partition, generation, epoch, published });
        }
    }
}

impl Partition {
    /// The owner's number, next and published positions, if the first record can be applied now.
    fn ready(&self) -> Option<(u64, Position, Position)> {
        let Phase::Running(progress) = &self.phase else { return None };
        let front = self.intake.front()?;
        // Not beside a note: of two writers of the published position the older one must not win.
        let ready = self.busy == Busy::Idle && !self.noting && front.position >= progress.next();
        ready.then(|| (progress.epoch(), progress.next(), progress.published()))
    }
}
