//! Where a claimed partition stands: what is applied, what is being published, and how far that is acknowledged.

use std::collections::VecDeque;

use bytes::Bytes;
use roost_ports::log::{AppendError, Bounds, LogRecord, Position, Topic};
use roost_ports::store::Claim;
use roost_protocol::digest;

use crate::consume::backoff_ms;

/// What a claim found, in the Store and then in the log.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The Store's word.
    pub claim: Claim,
    /// What the log holds.
    pub bounds: Bounds,
    /// The record before the next position, where the log still holds it.
    pub before: Option<LogRecord>,
}

/// Why a claimed partition is not worked on: the Store and the log do not belong together, and a person has to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The log has lost records that were applied.
    #[error("the log ends before what the store has applied")]
    LogEndsEarly,
    /// The log has dropped records that were not published yet.
    #[error("the log no longer holds what is not published yet")]
    PublishedGone,
    /// It is another log.
    #[error("the record before the next position is not the one that was applied")]
    AnotherLog,
}

impl Claimed {
    /// Where reading starts: at what is not published.
    ///
    /// Never beyond the next position: a Store that lost commits may still be told by its owner of before what was
    /// published (truly: it is in the log), while what it lost has to be applied again.
    pub fn start(&self) -> Position {
        self.claim.published.min(self.claim.next)
    }

    /// Whether the log is the one that the Store has read so far, and still holds what is needed.
    pub fn verify(&self) -> Result<(), Refusal> {
        let Claim { next, last_digest, .. } = self.claim;
        if self.bounds.end < next {
            return Err(Refusal::LogEndsEarly);
        }
        if self.start() < self.bounds.begin {
            return Err(Refusal::PublishedGone);
        }
        match (last_digest, &self.before) {
            (Some(expected), Some(record)) if digest::of_record(&record.payload) != expected => {
                Err(Refusal::AnotherLog)
            }
            // Retention has removed the record: the log begins exactly at next, since it holds what is published.
            (Some(_), None) if self.bounds.begin != next => Err(Refusal::PublishedGone),
            _ => Ok(()),
        }
    }
}

/// Something to append because of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Where.
    pub topic: Topic,
    /// Its bytes.
    pub payload: Bytes,
}

/// Publications of one transaction in one partition, on their way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shipment {
    /// The transaction.
    pub transaction: u64,
    /// Which attempt of the partition this belongs to: results of older attempts mean nothing.
    pub attempt: u64,
    /// In log order.
    pub publications: Vec<Publication>,
}

/// The progress of one claimed partition.
#[derive(Debug)]
pub struct Progress {
    epoch: u64,
    next: Position,
    published: Position,
    stored: Position,
    outstanding: VecDeque<Outstanding>,
    attempt: u64,
    failures: u32,
    retry_at: Option<u64>,
}

/// A transaction's part of this partition whose publications are not all acknowledged, or that stands behind such a one.
#[derive(Debug)]
struct Outstanding {
    transaction: u64,
    replayed: bool,
    end: Position,
    publications: Vec<Publication>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Queued,
    Sent,
    Acknowledged,
}

const PUBLISH_BACKOFF_MS: (u64, u64) = (20, 2_000);

impl Progress {
    /// The progress right after a claim.
    pub fn new(claim: &Claim) -> Self {
        let published = claim.published.min(claim.next);
        Self {
            epoch: claim.epoch,
            next: claim.next,
            published,
            stored: published,
            outstanding: VecDeque::new(),
            attempt: 0,
            failures: 0,
            retry_at: None,
        }
    }

    /// The owner's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Every record before this is applied.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Every record before this is applied and published.
    pub fn published(&self) -> Position {
        self.published
    }

    /// The published position that the Store holds.
    pub fn stored(&self) -> Position {
        self.stored
    }

    /// A transaction applied records up to `end`: only now may they be published.
    pub fn applied(&mut self, transaction: u64, end: Position, publications: Vec<Publication>) {
        assert!(end > self.next, "a transaction moves the next position forward");
        self.next = end;
        self.enqueue(transaction, false, end, publications);
    }

    /// Records below the next position were looked up, up to `end`.
    pub fn replayed(&mut self, transaction: u64, end: Position, publications: Vec<Publication>) {
        self.enqueue(transaction, true, end, publications);
    }

    /// The Store holds this published position now. Returns whether that is news.
    pub fn noted(&mut self, published: Position) -> bool {
        let news = published > self.stored;
        self.stored = self.stored.max(published);
        news
    }

    /// What is to be appended now, in order: the call of the append puts it in line.
    pub fn ship(&mut self, now_ms: u64) -> Vec<Shipment> {
        if self.retry_at.is_some_and(|at| now_ms < at) {
            return Vec::new();
        }
        self.retry_at = None;
        let attempt = self.attempt;
        let queued = self.outstanding.iter_mut().filter(|part| part.state == State::Queued);
        queued
            .map(|part| {
                part.state = State::Sent;
                Shipment { transaction: part.transaction, attempt, publications: part.publications.clone() }
            })
            .collect()
    }

    /// What became of a shipment. A failure puts everything from the first record that failed on in line again, in
    /// order, later transactions included: then the last copies in `deliver` stand in order.
    ///
    /// Returns the failure, if it is one.
    pub fn on_shipped(
        &mut self,
        transaction: u64,
        attempt: u64,
        results: &[Result<Position, AppendError>],
        now_ms: u64,
    ) -> Option<AppendError> {
        if attempt != self.attempt {
            return None;
        }
        let index = self.outstanding.iter().position(|part| part.transaction == transaction)?;
        let Some(failed) = results.iter().position(Result::is_err) else {
            self.failures = 0;
            self.outstanding[index].state = State::Acknowledged;
            self.move_published();
            return None;
        };
        self.outstanding[index].publications.drain(..failed);
        for part in self.outstanding.iter_mut().skip(index).filter(|part| !part.publications.is_empty()) {
            part.state = State::Queued;
        }
        // What stands before it under this attempt is shipped again too: its results would not be known otherwise.
        for part in self.outstanding.iter_mut().take(index).filter(|part| part.state == State::Sent) {
            part.state = State::Queued;
        }
        self.attempt += 1;
        self.failures += 1;
        self.retry_at = Some(now_ms + backoff_ms(self.failures, PUBLISH_BACKOFF_MS.0, PUBLISH_BACKOFF_MS.1));
        results[failed].as_ref().err().cloned()
    }

    /// The transactions (not replays) that are not wholly published.
    pub fn transactions_unpublished(&self) -> impl Iterator<Item = u64> {
        self.outstanding.iter().filter(|part| !part.replayed).map(|part| part.transaction)
    }

    /// The replays that are not wholly published.
    pub fn replays_unpublished(&self) -> usize {
        self.outstanding.iter().filter(|part| part.replayed).count()
    }

    /// The records that are not wholly published.
    pub fn records_unpublished(&self) -> usize {
        self.outstanding.iter().map(|part| part.publications.len()).sum()
    }

    /// Whether everything applied is published.
    pub fn is_published(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// When something is to be shipped again.
    pub fn deadline(&self) -> Option<u64> {
        self.retry_at
    }

    fn enqueue(&mut self, transaction: u64, replayed: bool, end: Position, publications: Vec<Publication>) {
        let state = if publications.is_empty() { State::Acknowledged } else { State::Queued };
        self.outstanding.push_back(Outstanding { transaction, replayed, end, publications, state });
        self.move_published();
    }

    fn move_published(&mut self) {
        while self.outstanding.front().is_some_and(|part| part.state == State::Acknowledged) {
            let part = self.outstanding.pop_front().expect("it was there a moment ago");
            self.published = self.published.max(part.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(next: u64, published: u64, last: Option<&[u8]>) -> Claim {
        Claim {
            epoch: 1,
            next: Position(next),
            published: Position(published),
            last_digest: last.map(digest::of_record),
        }
    }

    fn claimed(claim: Claim, begin: u64, end: u64, before: Option<&'static [u8]>) -> Claimed {
        let before = before.map(|payload| LogRecord {
            position: Position(claim.next.0 - 1),
            next: claim.next,
            payload: Bytes::from_static(payload),
        });
        Claimed { claim, bounds: Bounds { begin: Position(begin), end: Position(end) }, before }
    }

    #[test]
    fn a_claim_is_compared_with_the_log() {
        let good = claimed(claim(5, 3, Some(b"four")), 0, 9, Some(b"four"));
        assert_eq!(good.verify(), Ok(()));
        let fresh = claimed(claim(0, 0, None), 0, 0, None);
        assert_eq!(fresh.verify(), Ok(()));
        let another = claimed(claim(5, 3, Some(b"four")), 0, 9, Some(b"five"));
        assert_eq!(another.verify(), Err(Refusal::AnotherLog));
        let shorter = claimed(claim(5, 3, Some(b"four")), 0, 4, Some(b"four"));
        assert_eq!(shorter.verify(), Err(Refusal::LogEndsEarly));
        let passed = claimed(claim(5, 3, Some(b"four")), 4, 9, Some(b"four"));
        assert_eq!(passed.verify(), Err(Refusal::PublishedGone));
    }

    #[test]
    fn a_published_mark_beyond_next_is_not_believed() {
        let fallen_back = claimed(claim(5, 9, Some(b"four")), 0, 9, Some(b"four"));
        assert_eq!((fallen_back.verify(), fallen_back.start()), (Ok(()), Position(5)));
        assert_eq!(Progress::new(&fallen_back.claim).published(), Position(5));
    }

    #[test]
    fn where_retention_took_the_last_record_the_log_must_begin_exactly_at_next() {
        assert_eq!(claimed(claim(5, 5, Some(b"four")), 5, 9, None).verify(), Ok(()));
        assert_eq!(claimed(claim(5, 5, Some(b"four")), 6, 9, None).verify(), Err(Refusal::PublishedGone));
        assert_eq!(claimed(claim(5, 4, Some(b"four")), 5, 9, None).verify(), Err(Refusal::PublishedGone));
    }

    fn one(text: &'static str) -> Vec<Publication> {
        vec![Publication { topic: Topic::Deliver, payload: Bytes::from_static(text.as_bytes()) }]
    }

    fn texts(shipments: &[Shipment]) -> Vec<String> {
        let all = shipments.iter().flat_map(|shipment| &shipment.publications);
        all.map(|publication| String::from_utf8_lossy(&publication.payload).into_owned()).collect()
    }

    #[test]
    fn published_moves_over_the_contiguous_prefix_only() {
        let mut progress = Progress::new(&claim(0, 0, None));
        progress.applied(1, Position(2), one("a"));
        progress.applied(2, Position(4), one("b"));
        progress.applied(3, Position(5), Vec::new());
        assert_eq!(texts(&progress.ship(0)), ["a", "b"]);
        assert!(progress.ship(0).is_empty(), "nothing is shipped twice");
        assert_eq!(progress.on_shipped(2, 0, &[Ok(Position(1))], 0), None);
        assert_eq!(progress.published(), Position(0), "the first transaction is not acknowledged");
        assert_eq!(progress.on_shipped(1, 0, &[Ok(Position(0))], 0), None);
        assert_eq!(progress.published(), Position(5));
        assert!(progress.is_published());
    }

    #[test]
    fn a_failure_ships_everything_from_there_on_again_in_order() {
        let mut progress = Progress::new(&claim(0, 0, None));
        let mut first = one("a");
        first.extend(one("b"));
        progress.applied(1, Position(2), first);
        progress.applied(2, Position(4), one("c"));
        progress.ship(0);
        let unknown = AppendError::Unknown("no".into());
        let results = [Ok(Position(0)), Err(unknown.clone())];
        assert_eq!(progress.on_shipped(1, 0, &results, 100), Some(unknown));
        assert_eq!(progress.on_shipped(2, 0, &[Ok(Position(1))], 100), None, "an older attempt means nothing");
        assert_eq!(progress.published(), Position(0));
        assert!(progress.ship(100).is_empty(), "not before the back-off");
        let at = progress.deadline().expect("a time to ship again");
        let again = progress.ship(at);
        assert_eq!(texts(&again), ["b", "c"]);
        progress.on_shipped(1, 1, &[Ok(Position(2))], at);
        progress.on_shipped(2, 1, &[Ok(Position(3))], at);
        assert_eq!(progress.published(), Position(4));
    }

    #[test]
    fn what_the_store_holds_never_goes_back() {
        let mut progress = Progress::new(&claim(9, 5, None));
        assert!(!progress.noted(Position(5)));
        assert!(progress.noted(Position(7)));
        assert!(!progress.noted(Position(6)));
        assert_eq!(progress.stored(), Position(7));
    }
}
