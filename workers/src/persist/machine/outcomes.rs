//! What the persist machine makes of what comes back: claims, replays, transactions, appends, notes.

use roost_ports::log::{AppendError, Position, StartAt};
use roost_ports::store::{Applied, ApplyError, Incoming, Outcome, PartOutcome, Replayed, StoreError};

use super::Busy;
use super::lane::Flight;
use super::{CLAIM_RETRY_MS, CallPart, ClaimFailure, Effect, FENCED_MS, Machine, Phase, STORE_RETRY_MS, UNCERTAIN_MS};
use crate::consume::{ConsumerCommand, Step, backoff_ms};
use crate::persist::bisect::Suspicion;
use crate::persist::notices::{self, Verdicts};
use crate::persist::progress::{Claimed, Progress};

impl Machine {
    pub(super) fn on_claimed(
        &mut self,
        partition: u32,
        generation: u64,
        result: Result<Claimed, ClaimFailure>,
        now_ms: u64,
    ) {
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

    pub(super) fn on_replayed(
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
            self.claim_again(partition, "a record below the next position has no row", UNCERTAIN_MS, now_ms);
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

    pub(super) fn on_applied(
        &mut self,
        index: usize,
        transaction: u64,
        result: Result<Applied, ApplyError>,
        now_ms: u64,
    ) {
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

    fn claim_all_again(&mut self, flight: &Flight, reason: &str, now_ms: u64) {
        for &(partition, generation) in &flight.parts {
            if self.current(partition, generation).is_some() {
                self.claim_again(partition, reason, UNCERTAIN_MS, now_ms);
            }
        }
    }

    fn on_committed(&mut self, index: usize, transaction: u64, flight: &Flight, applied: &Applied, now_ms: u64) {
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
                    self.claim_again(partition, "another owner or another position", FENCED_MS, now_ms);
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

    fn count(&self, outcome: &Outcome) {
        use Outcome::{DeadLetter, Duplicate, Numbered, Rejected};
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
    fn witness(&mut self, flight: Option<&Flight>) {
        // A suspected partition never rests.
        for &partition in &self.active {
            let Some(found) = self.partitions.get_mut(&partition) else { continue };
            let inside = flight.is_some_and(|flight| flight.parts.iter().any(|&(part, _)| part == partition));
            if let Some(suspicion) = found.suspicion.as_mut().filter(|_| !inside) {
                suspicion.on_witness();
            }
        }
    }

    fn on_data_error(&mut self, flight: &Flight, now_ms: u64) {
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

    pub(super) fn on_published(&mut self, call: u64, results: &[Result<Position, AppendError>], now_ms: u64) {
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

    pub(super) fn on_noted(
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
}
