//! From the start of the process to the first accepted session, and memory at rest, embedded.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::installation::{Composition, Installation, Setup};
use crate::{Result, client, cpu, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Starts; the median counts.
    #[arg(long, default_value_t = 5)]
    times: usize,
}

/// How long the process is left alone before its memory is read.
const REST: Duration = Duration::from_secs(5);

/// Starts the program again and again on a fresh folder.
pub async fn run(options: &Options) -> Result<Value> {
    let mut ready = Vec::new();
    let mut rest = Vec::new();
    for number in 0..options.times.max(1) {
        let setup = Setup { pairs: 1, ..Setup::default() };
        let installation = Installation::prepare(Composition::Embedded, setup).await?;
        let begun = Instant::now();
        let installation = installation.launch().await?;
        let session = client::connect(&installation.address, &installation.pairs[0].users[0].token).await?;
        ready.push(begun.elapsed().as_secs_f64() * 1000.0);
        drop(session);
        tokio::time::sleep(REST).await;
        let bytes: u64 = installation.own_processes().into_iter().filter_map(cpu::memory_bytes).sum();
        rest.push(bytes as f64 / 1_000_000.0);
        eprintln!("start {}: {:.0} ms, {:.1} MB at rest", number + 1, ready[number], rest[number]);
    }
    Ok(json!({
        "bench": "start",
        "machine": machine::describe(),
        "ready_ms": median(&mut ready),
        "rest_mb": median(&mut rest),
        "reference": { "process_ms": reference_ms()? },
    }))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2] * 10.0).round() / 10.0
}

/// What starting any process costs here.
fn reference_ms() -> Result<f64> {
    let begun = Instant::now();
    std::process::Command::new("true").status()?;
    Ok((begun.elapsed().as_secs_f64() * 10_000.0).round() / 10.0)
}
