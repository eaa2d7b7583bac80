//! The persist worker's decisions: which partition is claimed, replayed, applied, published, and when.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use roost_ports::delivery::DeliveryBatch;
use roost_ports::log::{AppendError, Assignment, ConsumerEvent, LogRecord, NewRecord, Position, Topic};
use roost_ports::store::{Applied, ApplyBatch, ApplyError, Incoming, Replayed, StoreError};
use roost_protocol::records::Endpoint;

use super::Config;
use super::bisect::Suspicion;
use super::progress::{Claimed, Progress};
use crate::consume::{self, ConsumerCommand, Intake, IntakeLimits, Step, backoff_ms};
use crate::evidence::PersistEvidence;

mod lane;
mod outcomes;

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
    /// The partitions that are not at rest: only these are looked at.
    active: BTreeSet<u32>,
    /// When partitions at rest are to be looked at again.
    resting_until: BTreeSet<(u64, u32)>,
    lanes: Vec<Lane>,
    calls: HashMap<u64, Vec<CallPart>>,
    steps: VecDeque<Step<Effect>>,
    counter: u64,
    stopping: bool,
    /// A handler has run since the last look at what can begin; and when the next look is due without one.
    stirred: bool,
    wake_at: Option<u64>,
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
    /// It is at rest until then, and stands under this time among those that are.
    resting_until: Option<u64>,
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
/// Another owner: time for the group to tell us that it is no longer us, before we take the partition back.
const FENCED_MS: u64 = 1_000;
/// The outcome of a commit is not known: nobody else is suspected.
const UNCERTAIN_MS: u64 = 200;
const CLAIM_AGAIN_MS_MAX: u64 = 10_000;
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
            active: BTreeSet::new(),
            resting_until: BTreeSet::new(),
            lanes,
            calls: HashMap::new(),
            steps: VecDeque::new(),
            counter: 0,
            stopping: false,
            stirred: true,
            wake_at: None,
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
            resting_until: None,
        };
        self.remove(partition);
        self.partitions.insert(partition, fresh);
        self.active.insert(partition);
    }

    fn remove(&mut self, partition: u32) {
        self.stir(partition);
        self.active.remove(&partition);
        self.partitions.remove(&partition);
    }

    /// Something has happened to a partition: it is looked at in the next round.
    fn stir(&mut self, partition: u32) {
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        if let Some(at) = found.resting_until.take() {
            self.resting_until.remove(&(at, partition));
        }
        self.active.insert(partition);
    }

    /// Those that have rested long enough.
    fn stir_due(&mut self, now_ms: u64) {
        while let Some(&(at, partition)) = self.resting_until.first()
            && at <= now_ms
        {
            self.stir(partition);
        }
    }

    /// After a round: what has nothing to do before a certain time, or before something happens to it, rests.
    fn settle_down(&mut self, now_ms: u64) {
        let Self { active, partitions, resting_until, .. } = self;
        active.retain(|&partition| {
            let Some(found) = partitions.get_mut(&partition) else { return false };
            let wake_at = found.wake_at();
            let rests = found.is_at_rest() && wake_at.is_none_or(|at| at > now_ms);
            if rests && let Some(at) = wake_at {
                if let Some(before) = found.resting_until.replace(at) {
                    resting_until.remove(&(before, partition));
                }
                resting_until.insert((at, partition));
            }
            !rests
        });
    }

    /// The partition, if what comes back now still belongs to it.
    fn current(&mut self, partition: u32, generation: u64) -> Option<&mut Partition> {
        self.stir(partition);
        self.partitions.get_mut(&partition).filter(|found| found.generation == generation)
    }

    /// Gives a partition up: nothing of it is applied or published until it is assigned again.
    fn refuse(&mut self, partition: u32, text: String) {
        let generation = self.number();
        self.stir(partition);
        if let Some(found) = self.partitions.get_mut(&partition) {
            found.reset(generation, Phase::Refused);
            self.steps.push_back(Step::Consumer(ConsumerCommand::Stop { partition }));
        }
        self.alarm(partition, text);
    }

    /// Claims a partition again after it was fenced, or after an error at or after the commit; all memory of it goes.
    fn claim_again(&mut self, partition: u32, reason: &str, first_ms: u64, now_ms: u64) {
        let generation = self.number();
        self.stir(partition);
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        if now_ms.saturating_sub(found.fenced_at) > FENCES_TOGETHER_MS {
            found.fences = 0;
        }
        found.fences += 1;
        found.fenced_at = now_ms;
        let fences = found.fences;
        let wait = backoff_ms(fences, first_ms, CLAIM_AGAIN_MS_MAX);
        found.reset(generation, Phase::Waiting(now_ms + wait));
        self.steps.push_back(Step::Consumer(ConsumerCommand::Stop { partition }));
        tracing::warn!(partition, reason, fences, "claiming again");
        if fences >= FENCES_ALARM {
            self.alarm(partition, format!("claiming again for the {fences}th time in a row: {reason}"));
        }
    }

    fn on_records(&mut self, partition: u32, assignment: Assignment, records: Vec<LogRecord>) {
        self.stir(partition);
        if let Some(found) = self.partitions.get_mut(&partition).filter(|found| found.is_running()) {
            found.intake.push(assignment, records);
        }
    }

    /// When, after now, something can begin without any event.
    fn next_wake(&self, now_ms: u64) -> Option<u64> {
        let active = self.active.iter().filter_map(|partition| self.partitions.get(partition)?.wake_at());
        let resting = self.resting_until.first().map(|&(at, _)| at);
        let lanes = self.lanes.iter().filter_map(Lane::deadline);
        active.chain(resting).chain(lanes).filter(|&at| at > now_ms).min()
    }
}

impl Partition {
    /// When something can begin without any event.
    fn wake_at(&self) -> Option<u64> {
        match &self.phase {
            Phase::Waiting(at) => Some(*at),
            Phase::Running(progress) => {
                let suspicion = self.suspicion.as_ref().map(Suspicion::retry_at);
                [progress.deadline(), self.note_at, suspicion].into_iter().flatten().min()
            }
            _ => None,
        }
    }

    /// Whether nothing can begin before that, or before something happens to it; and no other one has to know of it.
    fn is_at_rest(&self) -> bool {
        match &self.phase {
            Phase::Running(progress) => {
                let empty = self.intake.is_empty() && self.intake.is_flowing();
                empty && progress.is_published() && self.suspicion.is_none()
            }
            _ => true,
        }
    }

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
        self.stirred = true;
        match event {
            ConsumerEvent::Assigned(partitions, assignment) => {
                for partition in partitions {
                    self.on_assigned(partition, assignment);
                }
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.remove(partition);
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
        self.stirred = true;
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
        self.stirred = true;
        self.stopping = true;
        self.active = self.partitions.keys().copied().collect();
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
        let due = self.stirred || self.wake_at.is_some_and(|at| at <= now_ms);
        if self.steps.is_empty() && due {
            self.stirred = false;
            self.stir_due(now_ms);
            self.advance(now_ms);
            self.settle_down(now_ms);
            self.wake_at = self.next_wake(now_ms);
        }
        self.steps.pop_front()
    }

    fn deadline(&self) -> Option<u64> {
        self.wake_at
    }
}
