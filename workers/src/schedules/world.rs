//! The world of one seed: two workers, a log and a Store, and a scheduler that decides what happens next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roost_ports::Store;
use roost_ports::delivery::{DeliveryItem, VerdictOutcome};
use roost_ports::log::{
    AppendError, Assignment, Bounds, ConsumerEvent, LogRecord, NewRecord, Position, StartAt, Topic,
};
use roost_ports::store::{Account, ApplyError, Migration, StoreError};
use roost_protocol::UserId;

use super::load::{Load, REFUSED_BODY};
use super::{PARTITIONS, Report, StoreFactory};
use crate::consume::{ConsumerCommand, Machine as _, Step};
use crate::evidence::PersistEvidence;
use crate::persist::Config;
use crate::persist::machine::{ClaimFailure, Done, Effect, Machine};
use crate::persist::progress::Claimed;

/// Everything that a schedule knows.
pub struct World<'a> {
    pub(super) load: Load,
    pub(super) store: Arc<dyn Store>,
    pub(super) log_id: String,
    /// The topics that the workers append to: (partition, payload) in the order of the log.
    pub(super) deliver: Vec<(u32, bytes::Bytes)>,
    pub(super) dead_letters: Vec<(u32, bytes::Bytes)>,
    /// (request, verdict), as they were told.
    pub(super) verdicts: Vec<(u64, VerdictOutcome)>,
    pub(super) alarms: Vec<String>,
    factory: &'a mut dyn StoreFactory,
    random: StdRng,
    workers: Vec<Worker>,
    calls: Vec<Call>,
    /// Records whose append was not acknowledged and that land later all the same.
    late: Vec<(Topic, NewRecord)>,
    owners: Vec<usize>,
    assignments: u64,
    incarnations: u64,
    now_ms: u64,
    healed: bool,
    kept: bool,
    report: Report,
}

/// A worker: the real machine, and a consumer made of the load's log.
struct Worker {
    incarnation: u64,
    machine: Machine,
    evidence: Arc<PersistEvidence>,
    membership: VecDeque<ConsumerEvent>,
    reading: BTreeMap<u32, Reading>,
    answers: Vec<Done>,
    frozen: bool,
}

struct Reading {
    assignment: Assignment,
    at: Option<Position>,
}

/// A call that a worker has begun and that has not reached the Store.
struct Call {
    worker: usize,
    incarnation: u64,
    effect: Effect,
}

const WORKERS: usize = 2;
const STEPS: usize = 400;
const HEALING_ROUNDS_MAX: usize = 2_000;

fn config() -> Config {
    // Small limits, so that every limit is met.
    Config { batch_records_max: 6, buffer_records_max: 8, records_unpublished_max: 20, ..Config::default() }
}

impl<'a> World<'a> {
    /// A world in which nothing has happened.
    pub async fn new(seed: u64, factory: &'a mut dyn StoreFactory) -> World<'a> {
        let store = factory.fresh().await;
        let log_id = format!("schedule-{}", UserId::new().uuid().simple());
        let migration = Migration { log_id: log_id.clone(), partitions: PARTITIONS };
        store.migrate(&migration).await.expect("the store can be migrated");
        let load = Load::new();
        for &user_id in load.members.iter().chain([&load.foreigner]) {
            let name = user_id.uuid().simple().to_string();
            let account = Account { user_id, name, password_hash: String::new(), created: 1 };
            store.create_account(&account).await.expect("a new account");
        }
        let mut world = Self {
            load,
            store,
            log_id,
            deliver: Vec::new(),
            dead_letters: Vec::new(),
            verdicts: Vec::new(),
            alarms: Vec::new(),
            factory,
            random: StdRng::seed_from_u64(seed),
            workers: Vec::new(),
            calls: Vec::new(),
            late: Vec::new(),
            owners: vec![0; PARTITIONS as usize],
            assignments: 0,
            incarnations: 0,
            now_ms: 1,
            healed: false,
            kept: false,
            report: Report::default(),
        };
        for _ in 0..WORKERS {
            let worker = world.born();
            world.workers.push(worker);
        }
        for partition in 0..PARTITIONS {
            let worker = world.random.random_range(0..WORKERS);
            world.assign(partition, worker);
        }
        world
    }

    /// What has been met.
    pub fn report(&self) -> Report {
        let mut report = self.report;
        report.records = self.load.requests.len() as u64;
        for worker in &self.workers {
            report.add(&met(&worker.evidence));
        }
        report
    }

    /// The schedule: so many steps of whatever the seed chooses.
    pub async fn run(&mut self) {
        for index in 0..self.load.conversations.len() {
            if self.random.random_ratio(4, 5) {
                self.load.create(index);
            }
        }
        for _ in 0..STEPS {
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let worker = self.random.random_range(0..WORKERS);
        match self.random.random_range(0..1000) {
            0..220 => self.load.produce(&mut self.random),
            220..420 => drop(self.fetch(worker)),
            420..640 => self.call().await,
            640..800 => self.answer(worker),
            800..880 => self.tell_membership(worker),
            880..930 => self.pass_time(worker),
            930..950 => self.rebalance(),
            950..965 => self.freeze(worker),
            965..980 => self.thaw(worker),
            980..988 => self.crash(worker),
            988..992 => self.land_late(),
            992..996 => self.kept |= self.factory.keep().await,
            _ => self.fail_over().await,
        }
    }

    /// No more faults: everything runs until there is nothing left to do, and once more after a record in every
    /// partition. (An owner that was deposed by a late claim while nothing arrived learns of it only by a record.)
    pub async fn heal(&mut self) -> Result<(), String> {
        self.healed = true;
        for _ in 0..2 {
            for index in 0..self.load.conversations.len() {
                self.load.create(index);
            }
            self.run_until_quiet().await?;
        }
        Ok(())
    }

    async fn run_until_quiet(&mut self) -> Result<(), String> {
        let mut quiet = 0;
        for _ in 0..HEALING_ROUNDS_MAX {
            let mut busy = false;
            for worker in 0..WORKERS {
                self.workers[worker].frozen = false;
                while !self.workers[worker].membership.is_empty() {
                    self.tell_membership(worker);
                    busy = true;
                }
                while !self.workers[worker].answers.is_empty() {
                    self.answer(worker);
                    busy = true;
                }
                busy |= self.fetch(worker);
            }
            while !self.calls.is_empty() {
                self.call().await;
                busy = true;
            }
            self.now_ms += 3_000;
            for worker in 0..WORKERS {
                self.drain(worker);
            }
            let settled = self.workers.iter().all(|worker| worker.machine.is_settled() && worker.answers.is_empty());
            quiet = if busy || !settled || !self.calls.is_empty() { 0 } else { quiet + 1 };
            // Longer than any back-off.
            if quiet > 5 {
                return Ok(());
            }
        }
        Err(format!("the workers do not come to rest; alarms: {:?}", self.alarms))
    }

    fn born(&mut self) -> Worker {
        self.incarnations += 1;
        let evidence = Arc::new(PersistEvidence::default());
        Worker {
            incarnation: self.incarnations,
            machine: Machine::new(config(), &self.log_id, PARTITIONS, Arc::clone(&evidence)),
            evidence,
            membership: VecDeque::new(),
            reading: BTreeMap::new(),
            answers: Vec::new(),
            frozen: false,
        }
    }

    fn assign(&mut self, partition: u32, worker: usize) {
        self.assignments += 1;
        self.owners[partition as usize] = worker;
        let assigned = ConsumerEvent::Assigned(vec![partition], Assignment(self.assignments));
        self.workers[worker].membership.push_back(assigned);
    }

    fn rebalance(&mut self) {
        let partition = self.random.random_range(0..PARTITIONS);
        let from = self.owners[partition as usize];
        self.workers[from].membership.push_back(ConsumerEvent::Revoked(vec![partition]));
        self.assign(partition, 1 - from);
        self.report.moves += 1;
    }

    /// The worker learns of a change of the group, sooner or later.
    fn tell_membership(&mut self, worker: usize) {
        let now_ms = self.now_ms;
        let state = &mut self.workers[worker];
        if state.frozen {
            return;
        }
        let Some(event) = state.membership.pop_front() else { return };
        match &event {
            ConsumerEvent::Assigned(partitions, assignment) => {
                for &partition in partitions {
                    state.reading.insert(partition, Reading { assignment: *assignment, at: None });
                }
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    state.reading.remove(partition);
                }
            }
            _ => {}
        }
        state.machine.on_event(event, now_ms);
        self.drain(worker);
    }

    /// The worker reads some records of a partition that it believes to own.
    fn fetch(&mut self, worker: usize) -> bool {
        let count = self.random.random_range(1..8);
        let state = &mut self.workers[worker];
        if state.frozen {
            return false;
        }
        let log = &self.load.log;
        let readable = |(partition, reading): (&u32, &Reading)| {
            let at = reading.at?;
            let records = &log[*partition as usize];
            let first = records.partition_point(|record| record.position < at);
            (first < records.len()).then_some((*partition, first))
        };
        let choices: Vec<(u32, usize)> = state.reading.iter().filter_map(readable).collect();
        if choices.is_empty() {
            return false;
        }
        let (partition, first) = choices[self.random.random_range(0..choices.len())];
        let rest = &log[partition as usize][first..];
        let records: Vec<LogRecord> = rest.iter().take(count).cloned().collect();
        let reading = state.reading.get_mut(&partition).expect("it was chosen");
        reading.at = records.last().map(|record| record.next);
        let assignment = reading.assignment;
        state.machine.on_event(ConsumerEvent::Records { partition, assignment, records }, self.now_ms);
        self.drain(worker);
        true
    }

    fn answer(&mut self, worker: usize) {
        let state = &mut self.workers[worker];
        if state.frozen || state.answers.is_empty() {
            return;
        }
        let done = state.answers.swap_remove(self.random.random_range(0..state.answers.len()));
        state.machine.on_done(done, self.now_ms);
        self.drain(worker);
    }

    fn pass_time(&mut self, worker: usize) {
        self.now_ms += self.random.random_range(1..1_500);
        if !self.workers[worker].frozen {
            self.drain(worker);
        }
    }

    fn freeze(&mut self, worker: usize) {
        if !self.workers[worker].frozen {
            self.workers[worker].frozen = true;
            self.report.freezes += 1;
            // Its session runs out: the other one gets everything.
            if self.random.random_bool(0.7) {
                self.move_all(worker);
            }
        }
    }

    fn thaw(&mut self, worker: usize) {
        self.workers[worker].frozen = false;
    }

    fn move_all(&mut self, from: usize) {
        for partition in 0..PARTITIONS {
            if self.owners[partition as usize] == from {
                self.workers[from].membership.push_back(ConsumerEvent::Revoked(vec![partition]));
                self.assign(partition, 1 - from);
            }
        }
    }

    /// The worker is gone, with all it knew; what it has begun may reach the Store later.
    fn crash(&mut self, worker: usize) {
        let crashed = self.born();
        let crashed = std::mem::replace(&mut self.workers[worker], crashed);
        self.report.add(&met(&crashed.evidence));
        self.report.crashes += 1;
        for partition in 0..PARTITIONS {
            if self.owners[partition as usize] == worker {
                let to = self.random.random_range(0..WORKERS);
                self.assign(partition, to);
            }
        }
    }

    /// Commits since the last copy are lost; the log keeps everything.
    async fn fail_over(&mut self) {
        if std::mem::take(&mut self.kept) {
            self.store = self.factory.fall_back().await;
            self.report.failovers += 1;
        }
    }

    fn land_late(&mut self) {
        for (topic, record) in std::mem::take(&mut self.late) {
            self.land(topic, record);
        }
    }

    fn land(&mut self, topic: Topic, record: NewRecord) {
        let log = if topic == Topic::Deliver { &mut self.deliver } else { &mut self.dead_letters };
        log.push((record.partition, record.payload));
    }

    /// Takes what the machine wants done; it may crash between any two steps of that.
    fn drain(&mut self, worker: usize) {
        while let Some(step) = self.workers[worker].machine.poll_step(self.now_ms) {
            if !self.healed && self.random.random_ratio(1, 400) {
                return self.crash(worker);
            }
            match step {
                Step::Consumer(command) => self.obey(worker, command),
                Step::Work(effect) => self.begin(worker, effect),
            }
        }
    }

    fn obey(&mut self, worker: usize, command: ConsumerCommand) {
        let reading = &mut self.workers[worker].reading;
        match command {
            ConsumerCommand::Start { partition, assignment, at } => {
                let StartAt::Position(at) = at else { panic!("persist starts at the Store's positions") };
                if let Some(reading) = reading.get_mut(&partition).filter(|found| found.assignment == assignment) {
                    reading.at = Some(at);
                }
            }
            ConsumerCommand::Stop { partition } => {
                if let Some(reading) = reading.get_mut(&partition) {
                    reading.at = None;
                }
            }
            ConsumerCommand::Commit { .. } => {}
        }
    }

    fn begin(&mut self, worker: usize, effect: Effect) {
        let incarnation = self.workers[worker].incarnation;
        match effect {
            Effect::Publish { call, records } => {
                let results = self.append(records);
                self.workers[worker].answers.push(Done::Published { call, results });
            }
            Effect::Verdicts(batches) => {
                for item in batches.into_iter().flat_map(|(_, batch)| batch.items) {
                    let DeliveryItem::Verdict(verdict) = item else { panic!("persist sends verdicts only") };
                    self.verdicts.push((verdict.request, verdict.outcome));
                }
            }
            Effect::Alarm { partition, text } => self.alarms.push(format!("{partition}: {text}")),
            effect => self.calls.push(Call { worker, incarnation, effect }),
        }
    }

    /// The call of an append puts the records in line; from some record on it may go unacknowledged, and then each of
    /// the rest has landed, lands later, or never does.
    fn append(&mut self, records: Vec<(Topic, NewRecord)>) -> Vec<Result<Position, AppendError>> {
        let fails = !self.healed && self.random.random_ratio(1, 6);
        let good = if fails { self.random.random_range(0..=records.len()) } else { records.len() };
        let full = self.random.random_ratio(1, 3);
        let mut results = Vec::with_capacity(records.len());
        for (index, (topic, record)) in records.into_iter().enumerate() {
            if index < good {
                results.push(Ok(Position(self.deliver.len() as u64)));
                self.land(topic, record);
                continue;
            }
            if full {
                results.push(Err(AppendError::Full));
                continue;
            }
            results.push(Err(AppendError::Unknown("no acknowledgement".into())));
            match self.random.random_range(0..3) {
                0 => self.land(topic, record),
                1 => self.late.push((topic, record)),
                _ => {}
            }
        }
        results
    }

    /// One of the calls that were begun reaches the Store, or is lost; the answer waits until its worker takes it.
    async fn call(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let Call { worker, incarnation, effect } =
            self.calls.swap_remove(self.random.random_range(0..self.calls.len()));
        let done = match effect {
            Effect::Claim { partition, generation } => {
                Done::Claimed { partition, generation, result: self.claim(partition).await }
            }
            Effect::Replay { partition, generation, records } => {
                let result = match self.is_away() {
                    true => Err(StoreError::Unavailable("away".into())),
                    false => self.store.replay(&self.log_id, partition, &records).await,
                };
                Done::Replayed { partition, generation, records, result }
            }
            Effect::Apply { lane, transaction, batch } => {
                Done::Applied { lane, transaction, result: self.apply(&batch).await }
            }
            Effect::SetPublished { partition, generation, epoch, published } => {
                let result = match self.is_away() {
                    true => Err(StoreError::Unavailable("away".into())),
                    false => self.store.set_published(&self.log_id, partition, epoch, published).await,
                };
                Done::Noted { partition, generation, published, result }
            }
            Effect::Verdicts(_) | Effect::Publish { .. } | Effect::Alarm { .. } => {
                unreachable!("these are no calls to the store")
            }
        };
        let state = &mut self.workers[worker];
        if state.incarnation == incarnation {
            state.answers.push(done);
        }
    }

    fn is_away(&mut self) -> bool {
        !self.healed && self.random.random_ratio(1, 20)
    }

    async fn claim(&mut self, partition: u32) -> Result<Claimed, ClaimFailure> {
        if self.is_away() {
            return Err(ClaimFailure::Unavailable("away".into()));
        }
        let claim = self.store.claim(&self.log_id, partition).await;
        let claim = claim.map_err(|error| ClaimFailure::Refused(error.to_string()))?;
        let records = &self.load.log[partition as usize];
        let before = records.iter().rev().find(|record| record.next <= claim.next).cloned();
        let bounds = Bounds { begin: Position(0), end: self.load.end(partition) };
        Ok(Claimed { claim, bounds, before })
    }

    async fn apply(
        &mut self,
        batch: &roost_ports::store::ApplyBatch,
    ) -> Result<roost_ports::store::Applied, ApplyError> {
        if self.is_away() {
            return Err(ApplyError::Unavailable("away".into()));
        }
        let uncertain = !self.healed && self.random.random_ratio(1, 20);
        if uncertain && self.random.random_bool(0.5) {
            return Err(ApplyError::Uncertain("lost before the commit".into()));
        }
        let records = batch.parts.iter().flat_map(|part| &part.records);
        if records.filter_map(|incoming| incoming.content.as_ref().ok()).any(is_refused) {
            return Err(ApplyError::Data("refused".into()));
        }
        let result = self.store.apply(batch).await;
        if uncertain && result.is_ok() {
            return Err(ApplyError::Uncertain("lost after the commit".into()));
        }
        result
    }
}

/// Whether the Store of the schedules refuses this record's data.
pub(super) fn is_refused(record: &roost_protocol::records::IngressRecord<'static>) -> bool {
    use roost_protocol::records::Action;
    matches!(&record.action, Action::Send { body, .. } if body.as_ref() == REFUSED_BODY)
}

fn met(evidence: &PersistEvidence) -> Report {
    Report {
        numbered: evidence.numbered.get(),
        claims: evidence.claims.get(),
        fenced: evidence.fenced.get(),
        replayed: evidence.replayed_records.get(),
        duplicates: evidence.duplicates_suppressed.get(),
        rejected: evidence.rejected.get(),
        dead_letters: evidence.dead_letters.get(),
        publish_retries: evidence.publish_retries.get(),
        ..Report::default()
    }
}
