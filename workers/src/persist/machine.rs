//! The persist worker's decisions: which partition is claimed, replayed, applied, published, and when.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use roost_ports::delivery::DeliveryBatch;
use roost_ports::log::{AppendError, Assignment, ConsumerEvent, LogRecord, NewRecord, Position, StartAt, Topic};
use roost_ports::store::{Applied, ApplyBatch, ApplyError, Incoming, PartOutcome, Replayed, StoreError};
use roost_protocol::records::Endpoint;

use super::Config;
use super::bisect::Suspicion;
use super::notices::{self, Verdicts};
use super::progress::{Claimed, Progress};
use crate::consume::{self, ConsumerCommand, Intake, IntakeLimits, Step, backoff_ms};
use crate::evidence::PersistEvidence;

mod lane;

use lane::Lane;

/// What the persist machine asks its driver to do.
#[derive(Debug)]
pub enum Effect {
    /// `Store::claim`, then compare with the log.
    Claim {
        /// Which partition.
        partition: u32,
        /// Comes back with the outcome: an older one means nothing.
        generation: u64,
    },
    /// `Store::replay`.
    Replay {
        /// Which partition.
        partition: u32,
        /// Comes back with the outcome.
        generation: u64,
        /// Below the next position, in order.
        records: Vec<Incoming>,
    },
    /// `Store::apply`.
    Apply {
        /// Which lane.
        lane: usize,
        /// Comes back with the outcome.
        transaction: u64,
        /// What.
        batch: Arc<ApplyBatch>,
    },
    /// `Delivery::send`, each; what becomes of them does not matter.
    Verdicts(Vec<(Endpoint, DeliveryBatch)>),
    /// `Log::append`, in order within each topic.
    Publish {
        /// Comes back with the outcome.
        call: u64,
        /// What.
        records: Vec<(Topic, NewRecord)>,
    },
    /// `Store::set_published`.
    SetPublished {
        /// Which partition.
        partition: u32,
        /// Comes back with the outcome.
        generation: u64,
        /// The owner's number.
        epoch: u64,
        /// Up to where.
        published: Position,
    },
    /// A person has to look.
    Alarm {
        /// Which partition.
        partition: u32,
        /// What has happened.
        text: String,
    },
}

/// Why a claim failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimFailure {
    /// Something does not answer: try again.
    Unavailable(String),
    /// The Store or the log is not what it should be.
    Refused(String),
}

/// What has become of an effect.
#[derive(Debug)]
pub enum Done {
    /// Of [`Effect::Claim`].
    Claimed {
        /// Which partition.
        partition: u32,
        /// The effect's.
        generation: u64,
        /// What was found.
        result: Result<Claimed, ClaimFailure>,
    },
    /// Of [`Effect::Replay`].
    Replayed {
        /// Which partition.
        partition: u32,
        /// The effect's.
        generation: u64,
        /// The records that were asked for.
        records: Vec<Incoming>,
        /// What they became.
        result: Result<Vec<Replayed>, StoreError>,
    },
    /// Of [`Effect::Apply`].
    Applied {
        /// Which lane.
        lane: usize,
        /// The effect's.
        transaction: u64,
        /// What became of it.
        result: Result<Applied, ApplyError>,
    },
    /// Of [`Effect::Publish`].
    Published {
        /// The effect's.
        call: u64,
        /// In order.
        results: Vec<Result<Position, AppendError>>,
    },
    /// Of [`Effect::SetPublished`].
    Noted {
        /// Which partition.
        partition: u32,
        /// The effect's.
        generation: u64,
        /// The effect's.
        published: Position,
        /// Whether it was written.
        result: Result<(), StoreError>,
    },
}

/// The persist worker without I/O: see [`consume::Machine`] for how it is driven.
pub struct Machine {
    config: Config,
    log_id: String,
    partition_count: u32,
    evidence: Arc<PersistEvidence>,
    partitions: BTreeMap<u32, Partition>,
    lanes: Vec<Lane>,
    calls: HashMap<u64, Vec<CallPart>>,
    steps: VecDeque<Step<Effect>>,
    counter: u64,
    stopping: bool,
}

/// An assigned partition.
struct Partition {
    /// Raised by everything after which what is still running for it means nothing.
    generation: u64,
    intake: Intake,
    phase: Phase,
    busy: Busy,
    noting: bool,
    note_at: Option<u64>,
    suspicion: Option<Suspicion>,
    /// A replay has not found a row since the claim before this one.
    missed: bool,
    fences: u32,
    fenced_at: u64,
    failures: u32,
}

enum Phase {
    /// Claimed again at this time.
    Waiting(u64),
    Claiming,
    Running(Progress),
    /// Given up, until it is assigned again.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Busy {
    Idle,
    Replaying,
    Applying,
}

/// A partition's share of an append.
struct CallPart {
    partition: u32,
    generation: u64,
    transaction: u64,
    attempt: u64,
    count: usize,
}

const CLAIM_RETRY_MS: (u64, u64) = (100, 2_000);
const FENCED_BACKOFF_MS: (u64, u64) = (500, 10_000);
/// Fences further apart than this are not in a row.
const FENCES_TOGETHER_MS: u64 = 60_000;
const FENCES_ALARM: u32 = 3;
const STORE_RETRY_MS: (u64, u64) = (50, 2_000);

impl Machine {
    /// A machine for this log, with nothing assigned.
    pub fn new(config: Config, log_id: &str, partition_count: u32, evidence: Arc<PersistEvidence>) -> Self {
        assert!(config.lanes > 0, "a worker has at least one lane");
        let lanes = (0..config.lanes).map(|_| Lane::default()).collect();
        Self {
            config,
            log_id: log_id.to_owned(),
            partition_count,
            evidence,
            partitions: BTreeMap::new(),
            lanes,
            calls: HashMap::new(),
            steps: VecDeque::new(),
            counter: 0,
            stopping: false,
        }
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn work(&mut self, effect: Effect) {
        self.steps.push_back(Step::Work(effect));
    }

    fn alarm(&mut self, partition: u32, text: String) {
        self.evidence.alarms.add(1);
        self.work(Effect::Alarm { partition, text });
    }

    fn on_assigned(&mut self, partition: u32, assignment: Assignment) {
        let limits =
            IntakeLimits { records_max: self.config.buffer_records_max, bytes_max: self.config.buffer_bytes_max };
        let generation = self.number();
        let fresh = Partition {
            generation,
            intake: Intake::new(assignment, limits),
            phase: Phase::Waiting(0),
            busy: Busy::Idle,
            noting: false,
            note_at: None,
            suspicion: None,
            missed: false,
            fences: 0,
            fenced_at: 0,
            failures: 0,
        };
        self.partitions.insert(partition, fresh);
    }

    /// The partition, if what comes back now still belongs to it.
    fn current(&mut self, partition: u32, generation: u64) -> Option<&mut Partition> {
        self.partitions.get_mut(&partition).filter(|found| found.generation == generation)
    }

    /// Gives a partition up: nothing of it is applied or published until it is assigned again.
    fn refuse(&mut self, partition: u32, text: String) {
        let generation = self.number();
        if let Some(found) = self.partitions.get_mut(&partition) {
            found.reset(generation, Phase::Refused);
            self.steps.push_back(Step::Consumer(ConsumerCommand::Stop { partition }));
        }
        self.alarm(partition, text);
    }

    /// Claims a partition again after it was fenced, or after an error at or after the commit; all memory of it goes.
    fn claim_again(&mut self, partition: u32, reason: &str, now_ms: u64) {
        let generation = self.number();
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        if now_ms.saturating_sub(found.fenced_at) > FENCES_TOGETHER_MS {
            found.fences = 0;
        }
        found.fences += 1;
        found.fenced_at = now_ms;
        let fences = found.fences;
        let wait = backoff_ms(fences, FENCED_BACKOFF_MS.0, FENCED_BACKOFF_MS.1);
        found.reset(generation, Phase::Waiting(now_ms + wait));
        self.steps.push_back(Step::Consumer(ConsumerCommand::Stop { partition }));
        tracing::warn!(partition, reason, fences, "claiming again");
        if fences >= FENCES_ALARM {
            self.alarm(partition, format!("claiming again for the {fences}th time in a row: {reason}"));
        }
    }

    fn on_claimed(&mut self, partition: u32, generation: u64, result: Result<Claimed, ClaimFailure>, now_ms: u64) {
        let Some(found) = self.current(partition, generation) else { return };
        match result {
            Err(ClaimFailure::Unavailable(error)) => {
                found.failures += 1;
                found.phase = Phase::Waiting(now_ms + backoff_ms(found.failures, CLAIM_RETRY_MS.0, CLAIM_RETRY_MS.1));
                tracing::warn!(partition, error, "the claim is tried again");
            }
            Err(ClaimFailure::Refused(error)) => self.refuse(partition, error),
            Ok(claimed) => {
                self.evidence.claims.add(1);
                match claimed.verify() {
                    Err(refusal) => self.refuse(partition, refusal.to_string()),
                    Ok(()) => self.begin(partition, &claimed),
                }
            }
        }
    }

    fn begin(&mut self, partition: u32, claimed: &Claimed) {
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let at = claimed.start();
        found.failures = 0;
        found.phase = Phase::Running(Progress::new(&claimed.claim));
        found.intake.started(Some(at));
        let assignment = found.intake.assignment();
        let start = ConsumerCommand::Start { partition, assignment, at: StartAt::Position(at) };
        let commit = ConsumerCommand::Commit { partition, assignment, next: at };
        self.steps.extend([Step::Consumer(start), Step::Consumer(commit)]);
    }

    fn on_replayed(
        &mut self,
        partition: u32,
        generation: u64,
        records: &[Incoming],
        result: Result<Vec<Replayed>, StoreError>,
        now_ms: u64,
    ) {
        let transaction = self.number();
        let Some(found) = self.current(partition, generation) else { return };
        let replayed = match result {
            Ok(replayed) => replayed,
            Err(StoreError::Unavailable(error)) => {
                tracing::warn!(partition, error, "the replay is tried again");
                found.busy = Busy::Idle;
                found.failures += 1;
                // A claim is cheap, and begins again exactly where this one began.
                let wait = backoff_ms(found.failures, CLAIM_RETRY_MS.0, CLAIM_RETRY_MS.1);
                let generation = self.number();
                let Some(found) = self.partitions.get_mut(&partition) else { return };
                found.reset(generation, Phase::Waiting(now_ms + wait));
                self.steps.push_back(Step::Consumer(ConsumerCommand::Stop { partition }));
                return;
            }
            Err(error) => return self.refuse(partition, format!("the replay failed: {error}")),
        };
        let missing = replayed.len() != records.len() || replayed.contains(&Replayed::Missing);
        if missing && !found.missed {
            // A Store that has lost commits since the claim has lost the rows with the position: ask it once more.
            self.claim_again(partition, "a record below the next position has no row", now_ms);
            if let Some(found) = self.partitions.get_mut(&partition) {
                found.missed = true;
            }
            return;
        }
        if missing {
            return self.refuse(partition, "a record below the next position has no row in the store".into());
        }
        found.missed = false;
        let Phase::Running(progress) = &mut found.phase else { return };
        let mut verdicts = Verdicts::default();
        let mut publications = Vec::new();
        for (incoming, replayed) in records.iter().zip(&replayed) {
            let (publication, verdict) = notices::of_replayed(partition, incoming, replayed);
            publications.extend(publication);
            verdicts.add(incoming, verdict);
        }
        let end = records.last().expect("a replay has records").next;
        progress.replayed(transaction, end, publications);
        found.busy = Busy::Idle;
        found.intake.pop(records.len());
        self.evidence.replayed_records.add(records.len() as u64);
        self.tell(verdicts);
    }

    fn tell(&mut self, verdicts: Verdicts) {
        let batches = verdicts.into_batches();
        if !batches.is_empty() {
            self.work(Effect::Verdicts(batches));
        }
    }

    fn on_applied(&mut self, index: usize, transaction: u64, result: Result<Applied, ApplyError>, now_ms: u64) {
        let Some(flight) = self.lanes[index].land(transaction) else { return };
        for &(partition, generation) in &flight.parts {
            if let Some(found) = self.current(partition, generation) {
                found.busy = Busy::Idle;
            }
        }
        match result {
            Ok(applied) => self.on_committed(index, transaction, &flight, &applied, now_ms),
            Err(ApplyError::Unavailable(error)) => {
                tracing::warn!(lane = index, error, "the batch is tried again");
                self.evidence.apply_retries.add(1);
                self.lanes[index].rest(now_ms);
            }
            Err(ApplyError::Data(error)) => {
                tracing::warn!(lane = index, error, "the store refuses the data of a record");
                self.evidence.apply_retries.add(1);
                self.on_data_error(&flight, now_ms);
            }
            Err(ApplyError::Uncertain(error)) => self.claim_all_again(&flight, &error, now_ms),
            Err(ApplyError::Conflict(error)) => {
                let partition = flight.parts.first().map_or(0, |&(partition, _)| partition);
                self.alarm(partition, format!("a row that must be new exists: {error}"));
                self.claim_all_again(&flight, "a conflict", now_ms);
            }
        }
    }

    fn claim_all_again(&mut self, flight: &lane::Flight, reason: &str, now_ms: u64) {
        for &(partition, generation) in &flight.parts {
            if self.current(partition, generation).is_some() {
                self.claim_again(partition, reason, now_ms);
            }
        }
    }

    fn on_committed(&mut self, index: usize, transaction: u64, flight: &lane::Flight, applied: &Applied, now_ms: u64) {
        assert_eq!(applied.parts.len(), flight.parts.len(), "the store answers for every part of a batch");
        self.lanes[index].succeeded();
        self.evidence.transactions.add(1);
        let mut verdicts = Verdicts::default();
        let mut any_applied = false;
        let parts = flight.parts.iter().zip(&flight.batch.parts).zip(&applied.parts);
        for ((&(partition, generation), part), outcome) in parts {
            let PartOutcome::Applied(outcomes) = outcome else {
                self.evidence.fenced.add(1);
                if self.current(partition, generation).is_some() {
                    self.claim_again(partition, "another owner or another position", now_ms);
                }
                continue;
            };
            any_applied = true;
            assert_eq!(outcomes.len(), part.records.len(), "the store answers for every record of a part");
            // Committed is committed, even if the partition went to somebody else meanwhile: its verdicts are true.
            // Its publishing is then theirs.
            let mut publications = Vec::new();
            for (incoming, outcome) in part.records.iter().zip(outcomes) {
                verdicts.add(incoming, outcome.verdict());
                publications.extend(notices::of_outcome(partition, incoming, outcome));
                self.count(outcome);
            }
            let end = part.records.last().expect("a part has records").next;
            let Some(found) = self.current(partition, generation) else { continue };
            let Phase::Running(progress) = &mut found.phase else { continue };
            found.missed = false;
            progress.applied(transaction, end, publications);
            let news = progress.noted(part.published);
            found.intake.pop(part.records.len());
            if found.suspicion.as_mut().is_some_and(|suspicion| suspicion.on_applied(end)) {
                found.suspicion = None;
            }
            self.commit_position(partition, news);
        }
        if any_applied {
            self.witness(Some(flight));
        }
        self.tell(verdicts);
    }

    fn count(&self, outcome: &roost_ports::store::Outcome) {
        use roost_ports::store::Outcome::{DeadLetter, Duplicate, Numbered, Rejected};
        let counter = match outcome {
            Numbered(_) => &self.evidence.numbered,
            Duplicate(_) => &self.evidence.duplicates_suppressed,
            Rejected(_) => &self.evidence.rejected,
            DeadLetter { .. } => &self.evidence.dead_letters,
        };
        counter.add(1);
    }

    /// The group's position follows what the *Store* holds as published, never what only this process knows: the
    /// embedded log deletes up to it, and the next owner starts to read at the Store's.
    fn commit_position(&mut self, partition: u32, news: bool) {
        let Some(found) = self.partitions.get(&partition).filter(|_| news) else { return };
        let Phase::Running(progress) = &found.phase else { return };
        let assignment = found.intake.assignment();
        let command = ConsumerCommand::Commit { partition, assignment, next: progress.stored() };
        self.steps.push_back(Step::Consumer(command));
    }

    /// A transaction has succeeded: a witness for the suspected partitions that were not in it.
    fn witness(&mut self, flight: Option<&lane::Flight>) {
        for (&partition, found) in &mut self.partitions {
            let inside = flight.is_some_and(|flight| flight.parts.iter().any(|&(part, _)| part == partition));
            if let Some(suspicion) = found.suspicion.as_mut().filter(|_| !inside) {
                suspicion.on_witness();
            }
        }
    }

    fn on_data_error(&mut self, flight: &lane::Flight, now_ms: u64) {
        let alone = flight.parts.len() == 1;
        for (&(partition, generation), part) in flight.parts.iter().zip(&flight.batch.parts) {
            let Some(found) = self.current(partition, generation) else { continue };
            let until = part.records.last().expect("a part has records").next;
            let suspicion = found.suspicion.get_or_insert_with(|| Suspicion::new(until));
            if alone {
                suspicion.on_refused(part.records.len(), now_ms);
            }
        }
    }

    fn on_published(&mut self, call: u64, results: &[Result<Position, AppendError>], now_ms: u64) {
        let Some(parts) = self.calls.remove(&call) else { return };
        let mut results = results;
        for CallPart { partition, generation, transaction, attempt, count } in parts {
            let (own, rest) = results.split_at(count.min(results.len()));
            results = rest;
            let Some(found) = self.current(partition, generation) else { continue };
            let Phase::Running(progress) = &mut found.phase else { continue };
            // An answer that is too short is a failure too.
            let short = [Err(AppendError::Unknown("no answer for the record".into()))];
            let own = if own.len() < count { &short[..] } else { own };
            match progress.on_shipped(transaction, attempt, own, now_ms) {
                None => {}
                Some(AppendError::TooLarge) => {
                    self.alarm(partition, "a committed record is too large for the log".into());
                }
                Some(error) => {
                    self.evidence.publish_retries.add(1);
                    tracing::warn!(partition, %error, "publishing is tried again");
                }
            }
        }
    }

    fn on_noted(
        &mut self,
        partition: u32,
        generation: u64,
        published: Position,
        result: Result<(), StoreError>,
        now_ms: u64,
    ) {
        let note_after_ms = self.config.note_after_ms;
        let Some(found) = self.current(partition, generation) else { return };
        found.noting = false;
        let Phase::Running(progress) = &mut found.phase else { return };
        match result {
            Ok(()) => {
                let news = progress.noted(published);
                if let Some(suspicion) = &mut found.suspicion {
                    suspicion.on_witness();
                }
                self.commit_position(partition, news);
                self.witness(None);
            }
            Err(error) => {
                tracing::warn!(partition, %error, "the published position is written later");
                found.note_at = Some(now_ms + note_after_ms.max(STORE_RETRY_MS.1));
            }
        }
    }

    fn on_records(&mut self, partition: u32, assignment: Assignment, records: Vec<LogRecord>) {
        if let Some(found) = self.partitions.get_mut(&partition).filter(|found| found.is_running()) {
            found.intake.push(assignment, records);
        }
    }
}

impl Partition {
    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running(_))
    }

    /// Drops all memory of what was read, applied and published.
    fn reset(&mut self, generation: u64, phase: Phase) {
        self.generation = generation;
        self.phase = phase;
        self.intake.clear();
        self.busy = Busy::Idle;
        self.noting = false;
        self.note_at = None;
        self.suspicion = None;
    }
}

impl consume::Machine for Machine {
    type Effect = Effect;
    type Done = Done;

    fn on_event(&mut self, event: ConsumerEvent, _now_ms: u64) {
        match event {
            ConsumerEvent::Assigned(partitions, assignment) => {
                for partition in partitions {
                    self.on_assigned(partition, assignment);
                }
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.partitions.remove(&partition);
                }
            }
            ConsumerEvent::Records { partition, assignment, records } => {
                self.on_records(partition, assignment, records);
            }
            ConsumerEvent::OutOfRange { partition, assignment, .. } => {
                let running = self
                    .partitions
                    .get(&partition)
                    .is_some_and(|found| found.is_running() && assignment >= found.intake.assignment());
                if running {
                    self.refuse(partition, "the log does not hold the position that was to be read".into());
                }
            }
        }
    }

    fn on_done(&mut self, done: Done, now_ms: u64) {
        match done {
            Done::Claimed { partition, generation, result } => self.on_claimed(partition, generation, result, now_ms),
            Done::Replayed { partition, generation, records, result } => {
                self.on_replayed(partition, generation, &records, result, now_ms);
            }
            Done::Applied { lane, transaction, result } => self.on_applied(lane, transaction, result, now_ms),
            Done::Published { call, results } => self.on_published(call, &results, now_ms),
            Done::Noted { partition, generation, published, result } => {
                self.on_noted(partition, generation, published, result, now_ms);
            }
        }
    }

    fn stop(&mut self, _now_ms: u64) {
        self.stopping = true;
    }

    fn is_settled(&self) -> bool {
        let lanes_rest = self.lanes.iter().all(Lane::is_idle);
        lanes_rest
            && self.partitions.values().all(|found| match &found.phase {
                Phase::Running(progress) => {
                    !found.noting && progress.is_published() && progress.stored() == progress.published()
                }
                _ => true,
            })
    }

    fn poll_step(&mut self, now_ms: u64) -> Option<Step<Effect>> {
        if self.steps.is_empty() {
            self.advance(now_ms);
        }
        self.steps.pop_front()
    }

    fn deadline(&self, now_ms: u64) -> Option<u64> {
        let partitions = self.partitions.values().filter_map(|found| match &found.phase {
            Phase::Waiting(at) => Some(*at),
            Phase::Running(progress) => {
                let suspicion = found.suspicion.as_ref().map(Suspicion::retry_at);
                [progress.deadline(), found.note_at, suspicion].into_iter().flatten().min()
            }
            _ => None,
        });
        let lanes = self.lanes.iter().filter_map(Lane::deadline);
        partitions.chain(lanes).filter(|&at| at > now_ms).min()
    }
}
