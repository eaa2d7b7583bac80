//! One partition in memory: what the file holds of it, and its newest records.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use roost_ports::log::{Bounds, LogRecord, Position};

/// What a record in the tail costs besides its bytes.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// A partition. Only the writer changes it, after a commit.
pub struct Partition {
    begin: AtomicU64,
    end: AtomicU64,
    tail: Mutex<Tail>,
}

/// The records `first .. end`, without holes.
struct Tail {
    first: u64,
    records: VecDeque<Bytes>,
}

/// What a record counts in the queue and in the tail.
pub fn record_bytes(payload: &Bytes) -> usize {
    payload.len() + RECORD_OVERHEAD_BYTES
}

/// The record that stands at a position.
pub fn log_record(position: u64, payload: Bytes) -> LogRecord {
    LogRecord { position: Position(position), next: Position(position + 1), payload }
}

impl Partition {
    /// One that the file holds from `begin` to before `end`.
    pub fn new(begin: u64, end: u64) -> Self {
        let tail = Tail { first: end, records: VecDeque::new() };
        Self { begin: AtomicU64::new(begin), end: AtomicU64::new(end), tail: Mutex::new(tail) }
    }

    /// The first position held.
    pub fn begin(&self) -> u64 {
        self.begin.load(Ordering::Acquire)
    }

    /// The position of the next record.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Both.
    pub fn bounds(&self) -> Bounds {
        // The end last: it never falls, so the pair is never upside down.
        let begin = self.begin();
        Bounds { begin: Position(begin), end: Position(self.end()) }
    }

    /// Shows committed records to consumers.
    pub fn publish(&self, payloads: &mut Vec<Bytes>) {
        let mut tail = self.tail.lock();
        let count = payloads.len() as u64;
        tail.records.extend(payloads.drain(..));
        self.end.fetch_add(count, Ordering::AcqRel);
    }

    /// Takes over what the file says after a failure. Where that is something new, nothing of the partition is in memory
    /// then. Returns the bytes that are free now.
    pub fn reset(&self, begin: u64, end: u64) -> usize {
        let mut tail = self.tail.lock();
        let mut freed = 0;
        if end != self.end() {
            freed = tail.records.iter().map(record_bytes).sum();
            *tail = Tail { first: end, records: VecDeque::new() };
            self.end.store(end, Ordering::Release);
        }
        self.begin.store(begin, Ordering::Release);
        freed
    }

    /// The first position in memory.
    pub fn tail_first(&self) -> u64 {
        self.tail.lock().first
    }

    /// Notes that the file begins later now.
    pub fn set_begin(&self, begin: u64) {
        self.begin.store(begin, Ordering::Release);
    }

    /// Drops records before `position` from memory; returns the bytes that are free now.
    pub fn forget_before(&self, position: u64) -> usize {
        let mut tail = self.tail.lock();
        let mut freed = 0;
        while tail.first < position
            && let Some(payload) = tail.records.pop_front()
        {
            tail.first += 1;
            freed += record_bytes(&payload);
        }
        if tail.records.is_empty() {
            tail.records.shrink_to(16);
        }
        freed
    }

    /// The records from `position` on; `None` where the tail begins later, and the file has to be read.
    pub fn fetch(&self, position: u64, records_max: usize, bytes_max: usize) -> Option<Vec<LogRecord>> {
        let tail = self.tail.lock();
        let skip = position.checked_sub(tail.first)? as usize;
        let mut records = Vec::with_capacity(tail.records.len().saturating_sub(skip).min(records_max));
        let mut bytes = 0;
        for (index, payload) in tail.records.range(skip.min(tail.records.len())..).take(records_max).enumerate() {
            bytes += payload.len();
            if bytes > bytes_max && index > 0 {
                break;
            }
            records.push(log_record(position + index as u64, payload.clone()));
        }
        Some(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(texts: &[&'static str]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
    }

    #[test]
    fn the_tail_gives_what_it_holds_and_says_what_it_does_not() {
        let partition = Partition::new(3, 10);
        assert_eq!(partition.fetch(9, 5, 100), None);
        assert_eq!(partition.fetch(10, 5, 100), Some(vec![]));
        partition.publish(&mut payloads(&["a", "b", "c"]));
        assert_eq!(partition.bounds(), Bounds { begin: Position(3), end: Position(13) });
        let texts = |position, records, bytes| {
            let found = partition.fetch(position, records, bytes).expect("in the tail");
            found.into_iter().map(|r| (r.position.0, String::from_utf8_lossy(&r.payload).into_owned())).collect()
        };
        let of = |pairs: &[(u64, &str)]| pairs.iter().map(|(p, t)| (*p, (*t).to_owned())).collect::<Vec<_>>();
        let (all, two, one): (Vec<_>, Vec<_>, Vec<_>) = (texts(10, 9, 99), texts(11, 2, 99), texts(10, 9, 1));
        assert_eq!(
            (all, two, one),
            (of(&[(10, "a"), (11, "b"), (12, "c")]), of(&[(11, "b"), (12, "c")]), of(&[(10, "a")]))
        );
        assert_eq!(partition.forget_before(12), 2 * (1 + RECORD_OVERHEAD_BYTES));
        assert_eq!(partition.fetch(11, 9, 99), None);
        assert_eq!(partition.reset(3, 20), 1 + RECORD_OVERHEAD_BYTES);
        assert_eq!(partition.fetch(19, 9, 99), None);
        assert_eq!(partition.end(), 20);
    }
}
