//! What a child measures, and how the figures of several children are added up.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub struct Latency(pub Histogram<u64>);

/// Digits that count: one part in a thousand.
const DIGITS: u8 = 3;

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(DIGITS).expect("three digits are allowed"))
    }
}

impl Latency {
    /// Counts a latency.
    pub fn record(&mut self, nanos: u64) {
        // It grows by itself: nothing is out of range.
        let _ = self.0.record(nanos / 1_000);
    }

    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        let _ = self.0.add(&other.0);
    }

    /// A quantile in milliseconds; none without values.
    pub fn ms(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1_000.0)
    }
}

// As (value, how often): that needs no codec on either side.
impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut latency = Self::default();
        for (value, times) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latency.0.record_n(value, times).map_err(serde::de::Error::custom)?;
        }
        Ok(latency)
    }
}

/// One second of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Second {
    /// Sessions connected in it.
    pub connects: u64,
    /// Connections that ended in it.
    pub closes: u64,
    /// Attempts that failed in it.
    pub failures: u64,
    /// Sends answered in it.
    pub acknowledged: u64,
    /// Messages received in it.
    pub delivered: u64,
    /// What was due in it and reached a session that no trouble befell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Box<Latency>>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// From due to `sent`.
    pub sent: Latency,
    /// From due to another member's session, where no trouble befell it.
    pub received: Latency,
    /// The same for the sessions that trouble befell.
    pub received_in_trouble: Latency,
    /// From due to a page of history that brought it.
    pub repaired: Latency,
    /// From the beginning of an attempt to `connected`.
    pub connect: Latency,
    /// From due to `pong`.
    pub pong: Latency,
    /// Messages or pings that were due.
    pub due: u64,
    /// Sends answered `sent`.
    pub acknowledged: u64,
    /// Sends that had no verdict in the end.
    pub unanswered: u64,
    /// `retry` answers.
    pub retries: u64,
    /// `rejected` answers.
    pub rejected: u64,
    /// Messages that the sessions should have: each acknowledged one, once for each session of a member.
    pub expected: u64,
    /// Of those, the ones that arrived.
    pub delivered: u64,
    /// Messages that came live to a session that had them already. The protocol allows it.
    pub duplicates: u64,
    /// Acknowledged messages that a member's session never got.
    pub missing: u64,
    /// Answers to pings.
    pub pongs: u64,
    /// Pings of the server that were answered.
    pub server_pings: u64,
    /// Sessions connected.
    pub connects: u64,
    /// Sessions connected that had been connected before.
    pub reconnects: u64,
    /// Attempts that failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Connections that ended, by close code, `broken`, or `cut` and `left` where we did it.
    pub closes: BTreeMap<String, u64>,
    /// Sessions that trouble befell.
    pub troubled: u64,
    /// Sessions whose connection the server ended because they did not read.
    pub slow_closed: u64,
    /// Sessions that are members of a conversation of the sample.
    pub sampled: u64,
    /// Of those, the ones that got every message of it.
    pub sampled_complete: u64,
    /// Sessions that will not come back, by the protocol's own rules.
    pub given_up: u64,
    /// When the last troubled session was back.
    pub all_back: Option<u64>,
    /// Microseconds of CPU in the measured phase.
    pub cpu_us: u64,
    /// By the second of the run.
    pub seconds: BTreeMap<u64, Second>,
}

impl Figures {
    /// Adds another child's.
    pub fn add(&mut self, other: &Figures) {
        let latencies = [
            (&mut self.sent, &other.sent),
            (&mut self.received, &other.received),
            (&mut self.received_in_trouble, &other.received_in_trouble),
            (&mut self.repaired, &other.repaired),
            (&mut self.connect, &other.connect),
            (&mut self.pong, &other.pong),
        ];
        latencies.into_iter().for_each(|(own, other)| own.add(other));
        let counts = [
            (&mut self.due, other.due),
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.unanswered, other.unanswered),
            (&mut self.retries, other.retries),
            (&mut self.rejected, other.rejected),
            (&mut self.expected, other.expected),
            (&mut self.delivered, other.delivered),
            (&mut self.duplicates, other.duplicates),
            (&mut self.missing, other.missing),
            (&mut self.pongs, other.pongs),
            (&mut self.server_pings, other.server_pings),
            (&mut self.connects, other.connects),
            (&mut self.reconnects, other.reconnects),
            (&mut self.troubled, other.troubled),
            (&mut self.slow_closed, other.slow_closed),
            (&mut self.sampled, other.sampled),
            (&mut self.sampled_complete, other.sampled_complete),
            (&mut self.given_up, other.given_up),
            (&mut self.cpu_us, other.cpu_us),
        ];
        counts.into_iter().for_each(|(own, other)| *own += other);
        self.all_back = self.all_back.max(other.all_back);
        for (own, other) in [(&mut self.failures, &other.failures), (&mut self.closes, &other.closes)] {
            for (name, count) in other {
                *own.entry(name.clone()).or_default() += count;
            }
        }
        for (&at, second) in &other.seconds {
            self.seconds.entry(at).or_default().add(second);
        }
    }
}

impl Second {
    fn add(&mut self, other: &Second) {
        self.connects += other.connects;
        self.closes += other.closes;
        self.failures += other.failures;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        if let Some(latency) = &other.latency {
            self.latency.get_or_insert_default().add(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_travel_and_add_up() {
        let mut one = Figures { due: 2, ..Figures::default() };
        one.sent.record(5_000_000);
        one.closes.insert("4000".to_owned(), 1);
        one.seconds.entry(7).or_default().latency.get_or_insert_default().record(1_000_000);
        let text = serde_json::to_string(&one).expect("JSON");
        let mut sum: Figures = serde_json::from_str(&text).expect("the same");
        sum.add(&one);
        assert_eq!((sum.due, sum.closes["4000"], sum.sent.0.len()), (4, 2, 2));
        assert_eq!(sum.seconds[&7].latency.as_ref().map(|latency| latency.0.len()), Some(2));
        assert!((sum.sent.ms(0.99).expect("values") - 5.0).abs() < 0.01);
    }
}
