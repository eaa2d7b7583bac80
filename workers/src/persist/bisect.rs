//! Finding the one record whose data the Store refuses: by partition first, then in log order, never by guessing.

use roost_ports::log::Position;

use crate::consume::backoff_ms;

/// What to do next with a suspected partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trial {
    /// Try so many of its first records in a transaction of their own.
    Try(usize),
    /// Nothing before this time.
    Wait(u64),
    /// Its first record has failed alone while another transaction succeeded: it is poison.
    DeadLetter,
}

/// A partition whose records were in a batch that failed with a data error.
///
/// Alone it is tried whole, then by halves from the front, so that everything before the culprit is applied in order.
/// A single record that fails is tried again after a witness (another transaction that succeeded meanwhile), and only
/// if it fails again it is poison: a Store that refuses everything makes no dead letters.
#[derive(Clone, Debug)]
pub struct Suspicion {
    until: Position,
    count_max: usize,
    failures: u32,
    witness: Witness,
    retry_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Witness {
    None,
    Seen,
    Convicted,
}

const RETRY_MS: (u64, u64) = (20, 2_000);

impl Suspicion {
    /// Suspects everything before `until`.
    pub fn new(until: Position) -> Self {
        Self { until, count_max: usize::MAX, failures: 0, witness: Witness::None, retry_at: 0 }
    }

    /// What to do now.
    pub fn trial(&self, now_ms: u64) -> Trial {
        if now_ms < self.retry_at {
            return Trial::Wait(self.retry_at);
        }
        match self.witness {
            Witness::Convicted => Trial::DeadLetter,
            _ => Trial::Try(self.count_max),
        }
    }

    /// Nothing is tried before this time.
    pub fn retry_at(&self) -> u64 {
        self.retry_at
    }

    /// Whether a single record has failed and nobody else is known to have succeeded since.
    pub fn wants_witness(&self) -> bool {
        self.failures > 0 && self.witness == Witness::None
    }

    /// Another transaction succeeded.
    pub fn on_witness(&mut self) {
        if self.wants_witness() {
            self.witness = Witness::Seen;
        }
    }

    /// So many of the first records were refused together, in a transaction of their own.
    pub fn on_refused(&mut self, count: usize, now_ms: u64) {
        if count > 1 {
            self.count_max = count / 2;
            return;
        }
        self.count_max = 1;
        self.failures += 1;
        self.retry_at = now_ms + backoff_ms(self.failures, RETRY_MS.0, RETRY_MS.1);
        if self.witness == Witness::Seen {
            self.witness = Witness::Convicted;
        }
    }

    /// Records up to `end` were applied. Returns whether the suspicion is over.
    pub fn on_applied(&mut self, end: Position) -> bool {
        self.count_max = self.count_max.saturating_mul(2);
        self.failures = 0;
        self.witness = Witness::None;
        end >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a partition of `total` records to its end; those in `bad` are refused. Returns the dead letters, the order
    /// applied and the number of transactions.
    fn drive(total: usize, bad: &[usize], witnesses: bool) -> (Vec<usize>, Vec<usize>, usize) {
        let mut suspicion = Some(Suspicion::new(Position(total as u64)));
        let (mut at, mut now, mut transactions) = (0, 0, 0);
        let (mut dead, mut applied) = (Vec::new(), Vec::new());
        while at < total && transactions < 10_000 {
            let trial = suspicion.as_ref().map_or(Trial::Try(usize::MAX), |suspicion| suspicion.trial(now));
            let (count, poison) = match trial {
                Trial::Try(count) => (count.min(total - at), false),
                Trial::DeadLetter => (1, true),
                Trial::Wait(until) => {
                    now = until;
                    continue;
                }
            };
            transactions += 1;
            let range = at..at + count;
            if !poison && range.clone().any(|index| bad.contains(&index)) {
                let suspicion = suspicion.as_mut().expect("suspected");
                suspicion.on_refused(count, now);
                if witnesses {
                    suspicion.on_witness();
                }
                continue;
            }
            if poison {
                dead.push(at)
            } else {
                applied.extend(range)
            }
            at += count;
            if suspicion.as_mut().is_some_and(|suspicion| suspicion.on_applied(Position(at as u64))) {
                suspicion = None;
            }
        }
        (dead, applied, transactions)
    }

    #[test]
    fn exactly_the_bad_records_are_dead_letters_and_the_rest_is_applied_in_order() {
        for bad in [vec![], vec![0], vec![99], vec![37], vec![0, 1, 2], vec![10, 50, 51, 99]] {
            let (dead, applied, transactions) = drive(100, &bad, true);
            let good: Vec<usize> = (0..100).filter(|index| !bad.contains(index)).collect();
            assert_eq!((dead, applied), (bad.clone(), good));
            assert!(transactions <= 2 + bad.len() * 24, "{transactions} transactions for {} records", bad.len());
        }
    }

    #[test]
    fn without_a_witness_nothing_is_poison() {
        let (dead, applied, _) = drive(10, &[4], false);
        assert_eq!((dead, applied), (vec![], vec![0, 1, 2, 3]));
    }
}
