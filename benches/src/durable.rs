//! Committed messages: latencies and CPU at a fixed rate among pairs, and the most a second.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::installation::{Composition, Installation, Setup};
use crate::load::{Load, Outcome, Sessions};
use crate::{Result, machine, reference};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Messages a second for the latencies.
    #[arg(long, default_value_t = 1_700)]
    per_second: u64,
    /// Pairs of users.
    #[arg(long, default_value_t = 500)]
    pairs: usize,
    /// Seconds of measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds of load before the measurement: Java compiles what is hot while it runs, and before that a broker's figures
    /// are its compiler's.
    #[arg(long, default_value_t = 30)]
    warm_up: u64,
    /// Only one composition: embedded or distributed.
    #[arg(long)]
    only: Option<String>,
    /// Also look for the most messages a second.
    #[arg(long)]
    max: bool,
}

const BODY_BYTES: usize = 128;
/// The most a second is the highest rate whose p99 stays below this.
const P99_MS_MAX: f64 = 250.0;

/// Both compositions, one after the other, with the disk's own speed beside them.
pub async fn run(options: &Options) -> Result<Value> {
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let folder = tempfile::tempdir()?;
    let mut figures = json!({ "bench": "durable", "machine": machine::describe() });
    figures["reference"] = reference::disk::fdatasync(folder.path(), Duration::from_secs(options.seconds))?;
    for (name, composition) in [("embedded", Composition::Embedded), ("distributed", Composition::Distributed)] {
        if wanted(name) {
            figures[name] = measure(name, composition, options).await?;
        }
    }
    Ok(figures)
}

async fn measure(name: &str, composition: Composition, options: &Options) -> Result<Value> {
    eprintln!("{name}: {} pairs, {} messages a second", options.pairs, options.per_second);
    let installation = Installation::start(composition, Setup { pairs: options.pairs, ..Setup::default() }).await?;
    let sessions = Sessions::connect(&installation).await?;
    let load = Load {
        per_second: options.per_second,
        during: Duration::from_secs(options.seconds),
        warm_up: Duration::ZERO,
        body_bytes: BODY_BYTES,
    };
    // A load of its own, so that neither the latencies nor the CPU have anything of it.
    sessions.run(Load { during: Duration::from_secs(options.warm_up), ..load }).await?;
    let cpu_before = installation.cpu_micros();
    let outcome = sessions.run(load).await?;
    let cpu = (installation.cpu_micros() - cpu_before) / outcome.due.max(1);
    let ms = Outcome::ms;
    let mut figures = json!({
        "sent_p50_ms": ms(&outcome.sent, 0.5),
        "sent_p99_ms": ms(&outcome.sent, 0.99),
        "received_p50_ms": ms(&outcome.received, 0.5),
        "received_p99_ms": ms(&outcome.received, 0.99),
        "cpu_us_per_message": cpu,
        "due": outcome.due,
        "unanswered": outcome.unanswered,
        "received": outcome.received.len(),
        "retries": outcome.retries,
    });
    eprintln!("{name}: {figures}");
    if options.max {
        figures["per_second_max"] = most(name, &sessions, options.per_second / 2).await?.into();
    }
    Ok(figures)
}

/// So often a rate is tried before it counts as missed: a disk that others use stands still now and then.
const TRIES: u32 = 3;

/// Raises the rate by a fifth at a time until the p99 is missed. 0 means that it was missed from the beginning.
async fn most(name: &str, sessions: &Sessions, from: u64) -> Result<u64> {
    let (mut best, mut rate, mut missed) = (0, from, 0);
    loop {
        let load = Load {
            per_second: rate,
            during: Duration::from_secs(5),
            warm_up: Duration::from_secs(1),
            body_bytes: BODY_BYTES,
        };
        let outcome = sessions.run(load).await?;
        let p99 = Outcome::ms(&outcome.sent, 0.99);
        eprintln!("{name}: {rate} a second: p99 {p99} ms, {} unanswered", outcome.unanswered);
        if p99 < P99_MS_MAX && outcome.unanswered == 0 {
            (best, missed) = (rate, 0);
            rate += rate / 5;
            continue;
        }
        missed += 1;
        if missed == TRIES {
            return Ok(best);
        }
    }
}
