//! What the parent and its children say to each other: one JSON object a line.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::clock::Nanos;
use crate::figures::Figures;
use crate::plan::{Plan, Range};

/// What one child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The seeded installation.
    pub plan: Plan,
    /// When the run began: seconds are counted from then.
    pub begun: Nanos,
    /// Marks the messages of this run.
    pub run: u32,
    /// Where to connect.
    pub targets: Vec<Target>,
    /// Addresses to connect from; empty: whatever the kernel takes.
    pub sources: Vec<Ipv4Addr>,
    /// The users of all sessions of the run.
    pub users: Range,
    /// The first of this child's sessions, and how many it has.
    pub first: u32,
    /// How many sessions it has.
    pub count: u32,
    /// Connections a second of this child.
    pub rate: f64,
    /// What is sent.
    pub traffic: Traffic,
    /// Bytes of a message.
    pub body_bytes: usize,
    /// What happens to a share of the sessions.
    pub trouble: Trouble,
    /// The share of the sessions that it happens to.
    pub share: f64,
    /// How long the last messages may take.
    pub settle: Nanos,
}

/// A gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// The `Host` of the request.
    pub host: String,
    /// The path of the request.
    pub path: String,
}

/// What is sent, on a schedule that every child can work out for itself: the n-th thing is due at n / rate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Traffic {
    /// Users 2k and 2k + 1 write to each other by turns.
    Pairs { per_second: u64 },
    /// The first session writes to a group.
    Group { group: u32, per_second: u64, messages: Option<u64> },
    /// One message to each of the first so many groups, from a member of it.
    EachGroup { groups: u32, per_second: u64 },
    /// Sessions ping by turns.
    Pings { per_second: u64 },
}

impl Traffic {
    /// Things due in a second.
    pub fn per_second(&self) -> u64 {
        match *self {
            Traffic::Pairs { per_second }
            | Traffic::Group { per_second, .. }
            | Traffic::EachGroup { per_second, .. }
            | Traffic::Pings { per_second } => per_second,
        }
    }

    /// How many things there are, where time alone does not say it.
    pub fn limit(&self) -> Option<u64> {
        match *self {
            Traffic::Group { messages, .. } => messages,
            Traffic::EachGroup { groups, .. } => Some(u64::from(groups)),
            Traffic::Pairs { .. } | Traffic::Pings { .. } => None,
        }
    }

    /// Whether sessions ask for their heads once connected. Those that only sit there do not.
    pub fn syncs(&self) -> bool {
        matches!(self, Traffic::Pairs { .. } | Traffic::Group { .. })
    }
}

/// What happens to a share of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Trouble {
    /// Nothing.
    None,
    /// They come and go, so many a second in this child.
    Churn { per_second: f64 },
    /// They are cut at once, and return.
    Storm { backoff: bool },
    /// They stop reading for a while.
    Slow,
}

/// When the parts of the measured phase begin.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Phases {
    /// The first thing is due.
    pub begin: Nanos,
    /// Latencies count from here.
    pub measured_from: Nanos,
    /// The trouble begins.
    pub trouble_from: Nanos,
    /// The trouble ends, and nothing more is due.
    pub until: Nanos,
}

/// What the parent orders.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Connect all sessions.
    Begin(Box<Task>),
    /// The measured phase.
    Go(Phases),
    /// Nothing is due any more after this moment.
    End(Nanos),
    /// These messages are stored: wait for those that have not arrived, and tell the figures.
    Verify(Written),
    /// Go away.
    Stop,
}

/// What a child says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Word {
    /// How things stand; every fifth of a second.
    Progress(Progress),
    /// All sessions are connected.
    Ready {
        /// Memory of the process before its first session.
        bytes_before: u64,
        /// Memory of the process now.
        bytes_now: u64,
    },
    /// Everything due is sent and answered, or given up.
    Acted(Written),
    /// The figures.
    Outcome(Box<Figures>),
    /// It cannot go on.
    Failed(String),
}

/// Which seqs of which conversation were acknowledged: ranges, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written(pub BTreeMap<u32, Vec<(u64, u64)>>);

impl Written {
    /// Of seqs in any order.
    pub fn of(mut seqs: Vec<(u32, u64)>) -> Self {
        seqs.sort_unstable();
        seqs.dedup();
        let mut written = Self::default();
        for (conversation, seq) in seqs {
            let ranges = written.0.entry(conversation).or_default();
            match ranges.last_mut() {
                Some((_, to)) if *to + 1 == seq => *to = seq,
                _ => ranges.push((seq, seq)),
            }
        }
        written
    }

    /// Adds another child's.
    pub fn add(&mut self, other: Self) {
        for (conversation, ranges) in other.0 {
            self.0.entry(conversation).or_default().extend(ranges);
        }
    }
}

/// How things stand in one child.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Sessions that are connected.
    pub live: u64,
    /// Connections made so far.
    pub connects: u64,
    /// Attempts that failed so far.
    pub failures: u64,
    /// The last reason for a failure.
    pub last_failure: Option<String>,
    /// Things sent so far.
    pub sent: u64,
    /// Sends answered so far.
    pub acknowledged: u64,
    /// Messages received so far.
    pub delivered: u64,
    /// The 99th percentile of what was received since the last word, in microseconds.
    pub p99_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_kept_as_ranges() {
        let mut written = Written::of(vec![(1, 4), (1, 2), (0, 9), (1, 3), (1, 7)]);
        assert_eq!(written.0[&1], [(2, 4), (7, 7)]);
        written.add(Written::of(vec![(1, 5)]));
        assert_eq!(written.0[&1], [(2, 4), (7, 7), (5, 5)]);
    }
}
