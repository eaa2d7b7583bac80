//! The result of a run as one JSON object.

use serde_json::{Map, Value, json};

use crate::clock::{Nanos, SECOND};
use crate::figures::{Figures, Latency};
use crate::setup::Setup;
use crate::task::{Phases, Trouble};

/// What a measured phase came to.
pub struct Measured {
    /// The figures of all children.
    pub figures: Figures,
    /// When its parts began.
    pub phases: Phases,
    /// When the run began.
    pub begun: Nanos,
    /// When all figures were there.
    pub ended: Nanos,
}

/// The memory of the children.
pub struct Memory {
    before: u64,
    now: u64,
    sessions: u32,
}

impl Memory {
    /// Of the children's bytes before their first session, and with all of them connected.
    pub fn of(children: impl Iterator<Item = (u64, u64)>, sessions: u32) -> Self {
        let (before, now) = children.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Self { before, now, sessions }
    }

    /// With the figure that counts: what a session adds, and what it costs with all that is shared.
    pub fn to_json(&self) -> Value {
        let sessions = u64::from(self.sessions.max(1));
        json!({
            "client_bytes_per_session": self.now.saturating_sub(self.before) / sessions,
            "client_bytes": self.now,
            "client_bytes_before": self.before,
        })
    }
}

/// The quantiles of the JSON.
const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];
/// Points of a curve for the plot: they come closer to the end the further it goes.
const CURVE: [f64; 22] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995,
    0.9999, 0.99999, 1.0,
];

/// Everything that is known of a run.
pub fn to_json(setup: &Setup, measured: &Measured, connected: &Value) -> Value {
    let figures = &measured.figures;
    let mut result = json!({
        "event": "result",
        "scenario": setup.name,
        "sessions": setup.users.count,
        "processes": connected["processes"],
        "connect_s": connected["connect_s"],
        "due": figures.due,
        "acknowledged": figures.acknowledged,
        "unanswered": figures.unanswered,
        "retries": figures.retries,
        "rejected": figures.rejected,
        "expected": figures.expected,
        "delivered": figures.delivered,
        "duplicates": figures.duplicates,
        "missing": figures.missing,
        "pongs": figures.pongs,
        "server_pings": figures.server_pings,
        "reconnects": figures.reconnects,
        "closes": figures.closes,
        "failures": figures.failures,
        "given_up": figures.given_up,
        "memory": connected["memory"],
        "client_cpu_us": figures.cpu_us,
        "latency_ms": latencies(figures),
        "measured_s": seconds(measured.phases.until.min(measured.ended), measured.phases.measured_from),
        "phases_s": phases(measured),
        "timeline": timeline(figures),
    });
    // A thing that was sent is one that was due: the open loop drops nothing.
    result["sent"] = figures.due.into();
    if let Some(object) = result.as_object_mut() {
        object.extend(of_scenario(setup, measured));
    }
    result
}

fn latencies(figures: &Figures) -> Value {
    let all = [
        ("sent", &figures.sent),
        ("received", &figures.received),
        ("received_in_trouble", &figures.received_in_trouble),
        ("repaired", &figures.repaired),
        ("pong", &figures.pong),
        ("connect", &figures.connect),
    ];
    let there = all.into_iter().filter(|(_, latency)| !latency.0.is_empty());
    Value::Object(there.map(|(name, latency)| (name.to_owned(), one_latency(latency))).collect())
}

fn one_latency(latency: &Latency) -> Value {
    let mut of: Map<String, Value> =
        QUANTILES.iter().map(|&(name, quantile)| (name.to_owned(), json!(latency.ms(quantile)))).collect();
    of.insert("count".to_owned(), latency.0.len().into());
    of.insert("mean".to_owned(), (latency.0.mean() / 1000.0).into());
    let curve: Vec<_> = CURVE.iter().map(|&quantile| json!([quantile, latency.ms(quantile)])).collect();
    of.insert("curve".to_owned(), curve.into());
    Value::Object(of)
}

fn phases(measured: &Measured) -> Value {
    let Measured { phases, begun, ended, figures } = measured;
    let since = |at: Nanos| seconds(at, *begun);
    json!({
        "begin": since(phases.begin),
        "measured_from": since(phases.measured_from),
        "trouble_from": since(phases.trouble_from),
        "until": since(phases.until.min(*ended)),
        "all_back": figures.all_back.map(since),
        "ended": since(*ended),
    })
}

fn timeline(figures: &Figures) -> Value {
    let rows = figures.seconds.iter().map(|(at, second)| {
        let quantile = |quantile| second.latency.as_ref().and_then(|latency| latency.ms(quantile));
        json!({
            "second": at,
            "connects": second.connects,
            "closes": second.closes,
            "failures": second.failures,
            "acknowledged": second.acknowledged,
            "delivered": second.delivered,
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
        })
    });
    rows.collect()
}

/// What only some scenarios have.
fn of_scenario(setup: &Setup, measured: &Measured) -> Map<String, Value> {
    let (figures, phases) = (&measured.figures, &measured.phases);
    let mut more = Map::new();
    if setup.name == "idle" {
        more.insert("sampled".to_owned(), figures.sampled.into());
        more.insert("sampled_delivered".to_owned(), figures.sampled_complete.into());
    }
    if setup.trouble == Trouble::None {
        return more;
    }
    more.insert("troubled".to_owned(), figures.troubled.into());
    if setup.trouble == Trouble::Slow {
        more.insert("slow_closed".to_owned(), figures.slow_closed.into());
    }
    let storm = matches!(setup.trouble, Trouble::Storm { .. });
    if storm {
        let back = figures.all_back.map(|back| seconds(back, phases.trouble_from));
        more.insert("all_back_s".to_owned(), json!(back));
    }
    if storm || setup.trouble == Trouble::Slow {
        let during_until = figures.all_back.filter(|_| storm).unwrap_or(phases.until);
        let before = window(measured, phases.measured_from, phases.trouble_from);
        let during = window(measured, phases.trouble_from, during_until);
        let ratio = before.ms(0.99).zip(during.ms(0.99)).map(|(before, during)| during / before);
        more.insert("others_before_ms".to_owned(), one_latency(&before));
        more.insert("others_during_ms".to_owned(), one_latency(&during));
        more.insert("others_p99_ratio".to_owned(), json!(ratio));
    }
    more
}

/// The latencies of what was due in the seconds from one moment to the one that another is in. Trouble begins with a
/// second.
fn window(measured: &Measured, from: Nanos, until: Nanos) -> Latency {
    let second = |at: Nanos| at.saturating_sub(measured.begun) / SECOND;
    let mut sum = Latency::default();
    for (_, second) in measured.figures.seconds.range(second(from)..=second(until.saturating_sub(1))) {
        if let Some(latency) = &second.latency {
            sum.add(latency);
        }
    }
    sum
}

fn seconds(at: Nanos, since: Nanos) -> f64 {
    (at.saturating_sub(since) as f64 / SECOND as f64 * 1000.0).round() / 1000.0
}
