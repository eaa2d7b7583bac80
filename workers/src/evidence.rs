//! Counters that show what a worker has met: exported as metrics, and readable in the process by tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter: a metric, and a value that a test can read without an exporter.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    value: AtomicU64,
}

impl Counter {
    /// A counter at 0, exported under this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, value: AtomicU64::new(0) }
    }

    /// Counts so many more.
    pub fn add(&self, more: u64) {
        if more > 0 {
            self.value.fetch_add(more, Ordering::Relaxed);
            metrics::counter!(self.name).increment(more);
        }
    }

    /// How many it has counted.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

macro_rules! evidence {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident = $metric:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name { $($(#[$field_doc])* pub $field: Counter,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: Counter::new($metric),)* }
            }
        }
    };
}

evidence! {
    /// What a persist worker has met.
    PersistEvidence {
        /// Partitions taken over.
        claims = "roost_persist_claims",
        /// Parts of a batch that were another owner's by the time of the transaction.
        fenced = "roost_persist_fenced",
        /// Records below the next position, looked up and published again.
        replayed_records = "roost_persist_replayed_records",
        /// Records whose client_msg_id was known: the first verdict again.
        duplicates_suppressed = "roost_persist_duplicates_suppressed",
        /// Records that took a number.
        numbered = "roost_persist_numbered",
        /// Records that were refused.
        rejected = "roost_persist_rejected",
        /// Records that were put into the dead letters.
        dead_letters = "roost_persist_dead_letters",
        /// Transactions that committed.
        transactions = "roost_persist_transactions",
        /// Batches that the Store did not apply and that were tried again.
        apply_retries = "roost_persist_apply_retries",
        /// Appends to `deliver` that failed and were tried again.
        publish_retries = "roost_persist_publish_retries",
        /// Verdict batches that did not arrive; the clients retry.
        verdicts_lost = "roost_persist_verdicts_lost",
        /// Things that a person has to look at.
        alarms = "roost_persist_alarms",
    }
}

evidence! {
    /// What a fan-out worker has met.
    FanoutEvidence {
        /// Records read from `deliver`.
        records = "roost_fanout_records",
        /// Message items sent to gateways.
        items_sent = "roost_fanout_items_sent",
        /// Sessions that learned a newest seq only by the settling.
        settling_told = "roost_fanout_settling_told",
        /// Heads items sent: after an overflow or a failed batch, and by the settling.
        heads_sent = "roost_fanout_heads_sent",
        /// Messages that a gateway's full buffer turned into heads.
        overflow = "roost_fanout_overflow",
        /// Batches that a gateway did not acknowledge.
        batches_failed = "roost_fanout_batches_failed",
        /// Look-ups that went without the Registry.
        fallbacks = "roost_fanout_fallbacks",
        /// Jumps over what the log no longer holds.
        jumps = "roost_fanout_jumps",
        /// Things that a person has to look at.
        alarms = "roost_fanout_alarms",
    }
}
