//! Product and references side by side: all of them stand ready, and take turns under the same load, for several rounds.
//! Neighbours that come and go then hit all alike, and the ratio of a round is a ratio within seconds.

use serde_json::{Value, json};

use crate::fleet::Crowd;
use crate::installation::Setup;
use crate::reference::{Kind, Mode};
use crate::target::Target;
use crate::{Result, machine};

/// One of those compared.
pub struct Contestant {
    /// Its name in the figures.
    pub name: &'static str,
    /// The server.
    pub target: Target,
    /// Its own crowd; all crowds are the same program.
    pub crowd: Crowd,
    micros: Vec<f64>,
    latencies: Vec<Latencies>,
}

/// Of one turn, in milliseconds.
#[derive(Clone, Copy)]
struct Latencies {
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Contestant {
    /// Connects its crowd.
    pub async fn ready(name: &'static str, target: Target, sessions: usize, body_bytes: usize) -> Result<Self> {
        let mut crowd = Crowd::start(&target, 0, body_bytes).await?;
        crowd.open(sessions, 2_000).await?;
        Ok(Self { name, target, crowd, micros: Vec::new(), latencies: Vec::new() })
    }

    /// One turn: what the order's answers cost the server each.
    pub async fn turn(&mut self, order: &str) -> Result<()> {
        let before = self.target.cpu_nanos()?;
        let outcome = self.crowd.order(order).await?;
        let nanos = self.target.cpu_nanos()? - before;
        let answers = outcome["answers"].as_u64().unwrap_or(0);
        if answers == 0 || outcome["answers"] != outcome["expected"] {
            return Err(format!("{}: not everything was answered: {outcome}", self.name).into());
        }
        self.micros.push(nanos as f64 / answers as f64 / 1000.0);
        let ms = |name: &str| outcome[name].as_f64().unwrap_or(0.0);
        let latencies = Latencies { p50: ms("p50_ms"), p90: ms("p90_ms"), p99: ms("p99_ms") };
        self.latencies.push(latencies);
        let micros = self.micros[self.micros.len() - 1];
        eprintln!("{}: {micros:.2} µs, p90 {} ms, p99 {} ms", self.name, latencies.p90, latencies.p99);
        Ok(())
    }

    fn forget_last(&mut self) {
        self.micros.pop();
        self.latencies.pop();
    }

    fn last_p90_ms(&self) -> f64 {
        self.latencies.last().map_or(0.0, |latencies| latencies.p90)
    }

    /// The median of its turns, in microseconds.
    pub fn micros(&self) -> f64 {
        round(median(&self.micros))
    }

    /// All that was seen.
    pub fn figures(&self) -> Value {
        json!({
            "cpu_us": self.micros(),
            "cpu_us_rounds": self.micros.iter().copied().map(round).collect::<Vec<_>>(),
            "p50_ms": self.latency(|latencies| latencies.p50),
            "p90_ms": self.latency(|latencies| latencies.p90),
            "p99_ms": self.latency(|latencies| latencies.p99),
        })
    }

    fn latency(&self, which: impl Fn(&Latencies) -> f64) -> f64 {
        median(&self.latencies.iter().map(which).collect::<Vec<_>>())
    }

    /// The median over the rounds of this one's cost to the other's, and its least and most.
    pub fn ratio_to(&self, other: &Self) -> (f64, [f64; 2]) {
        let mut ratios: Vec<f64> = self.micros.iter().zip(&other.micros).map(|(own, others)| own / others).collect();
        ratios.sort_by(f64::total_cmp);
        let ends = [ratios.first(), ratios.last()].map(|end| round(end.copied().unwrap_or(f64::NAN)));
        (round(median(&ratios)), ends)
    }
}

/// The product beside both references, each with a crowd of the same size and as many threads that hold its sessions.
pub async fn beside_references(setup: Setup, mode: Mode, threads: usize, body_bytes: usize) -> Result<Vec<Contestant>> {
    let sessions = setup.users;
    let product = Target::product(setup).await?;
    let mut all = vec![Contestant::ready("product", product, sessions, body_bytes).await?];
    for (name, kind) in [("raw", Kind::Raw), ("tokio", Kind::Tokio)] {
        // What it broadcasts comes from one thread.
        let threads = if (kind, mode) == (Kind::Raw, Mode::Broadcast) { 1 } else { threads };
        let target = Target::reference(kind, mode, threads).await?;
        all.push(Contestant::ready(name, target, sessions, body_bytes).await?);
    }
    Ok(all)
}

/// The same measurement with one thread each, and with as many as the servers have cores: with several, each sleeps more
/// often, and waking up is most of what little there is to do for a frame. Where the product's are told, with so many.
pub async fn by_threads(told: Option<usize>, measure: impl AsyncFn(usize) -> Result<Value>) -> Result<Value> {
    let mut outcome = measure(told.unwrap_or(1)).await?;
    let all = machine::server_cores();
    if told.is_none() && all > 1 {
        outcome["all_cores"] = measure(all).await?;
    }
    Ok(outcome)
}

/// Adds what was seen of the first, its ratio to each of the others, and what was seen of those.
pub fn add_figures(outcome: &mut Value, all: &[Contestant]) {
    let Some((first, others)) = all.split_first() else { return };
    for other in others {
        let (ratio, spread) = first.ratio_to(other);
        outcome[format!("ratio_to_{}", other.name)] = ratio.into();
        outcome[format!("ratio_to_{}_spread", other.name)] = json!(spread);
        outcome["reference"][other.name] = other.figures();
    }
    outcome[first.name] = first.figures();
}

/// Rounds that were discarded at most for each one that counts, before the machine is called too busy.
const DISCARDED_MAX: usize = 3;

/// All of them in turn, each round beginning with another, after one round that does not count. A round in which anybody's
/// p90 was over the limit is discarded, for a server that could not keep up was working on heaps, which are cheaper. (Where a
/// round has fifty messages, its p99 is the slowest one alone, and one long fsync would discard it.) Says how many were.
pub async fn rounds(
    all: &mut [Contestant],
    rounds: usize,
    p90_ms_max: f64,
    order: impl Fn(&Contestant) -> String,
) -> Result<usize> {
    let (mut counted, mut discarded) = (0, 0);
    while counted < rounds {
        let count = all.len();
        for place in 0..count {
            let contestant = &mut all[(counted + place) % count];
            let order = order(contestant);
            contestant.turn(&order).await?;
        }
        let warm_up = counted == 0 && discarded == 0;
        if !warm_up && all.iter().all(|contestant| contestant.last_p90_ms() <= p90_ms_max) {
            counted += 1;
            continue;
        }
        all.iter_mut().for_each(Contestant::forget_last);
        discarded += 1;
        if discarded > rounds * DISCARDED_MAX {
            return Err(format!("the machine is too busy: only {counted} rounds stayed below {p90_ms_max} ms").into());
        }
    }
    Ok(discarded - 1)
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// To three digits after the point.
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
