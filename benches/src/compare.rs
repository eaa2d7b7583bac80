//! Product and references side by side: all of them stand ready, and take turns under the same load, for several rounds.
//! Neighbours that come and go then hit all alike, and the ratio of a round is a ratio within seconds.

use serde_json::{Value, json};

use crate::Result;
use crate::fleet::Crowd;
use crate::target::Target;

/// One of those compared.
pub struct Contestant {
    /// Its name in the figures.
    pub name: &'static str,
    /// The server.
    pub target: Target,
    /// Its own crowd; all crowds are the same program.
    pub crowd: Crowd,
    micros: Vec<f64>,
    latencies: Vec<(f64, f64)>,
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
        self.latencies.push((ms("p50_ms"), ms("p99_ms")));
        eprintln!("{}: {:.2} µs, p99 {} ms", self.name, self.micros[self.micros.len() - 1], ms("p99_ms"));
        Ok(())
    }

    /// Forgets the turns so far: they were warm-up.
    pub fn forget(&mut self) {
        self.micros.clear();
        self.latencies.clear();
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
            "p50_ms": median(&self.latencies.iter().map(|both| both.0).collect::<Vec<_>>()),
            "p99_ms": median(&self.latencies.iter().map(|both| both.1).collect::<Vec<_>>()),
        })
    }

    /// The median over the rounds of this one's cost to the other's, and its least and most.
    pub fn ratio_to(&self, other: &Self) -> (f64, [f64; 2]) {
        let mut ratios: Vec<f64> = self.micros.iter().zip(&other.micros).map(|(own, others)| own / others).collect();
        ratios.sort_by(f64::total_cmp);
        let ends = [ratios.first(), ratios.last()].map(|end| round(end.copied().unwrap_or(f64::NAN)));
        (round(median(&ratios)), ends)
    }
}

/// All of them in turn, each round beginning with another, after one round that does not count.
pub async fn rounds(all: &mut [Contestant], rounds: usize, order: impl Fn(&Contestant) -> String) -> Result<()> {
    for round in 0..=rounds {
        let count = all.len();
        for place in 0..count {
            let contestant = &mut all[(round + place) % count];
            let order = order(contestant);
            contestant.turn(&order).await?;
        }
        if round == 0 {
            all.iter_mut().for_each(Contestant::forget);
        }
    }
    Ok(())
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
