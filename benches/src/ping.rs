//! What a question and its answer cost the server: a client's frame in, a frame out.

use clap::Args;
use serde_json::{Value, json};

use crate::compare;
use crate::installation::Setup;
use crate::reference::Mode;
use crate::target::{ServerOptions, without_waiting};
use crate::{Result, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Sessions that ping in turn.
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// Pings a second, all sessions together; one session may send 20.
    #[arg(long, default_value_t = 40_000)]
    per_second: usize,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 5)]
    seconds: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    server: ServerOptions,
}

/// Beyond, a server no longer answers one by one.
const P90_MS_MAX: f64 = 20.0;

/// The product's `ping` and `pong` against echoes of the same bytes.
pub async fn run(options: &Options) -> Result<Value> {
    compare::by_threads(options.server.shards, async |threads| with_threads(options, threads).await).await
}

async fn with_threads(options: &Options, threads: usize) -> Result<Value> {
    let sessions = options.sessions;
    let server = ServerOptions { shards: Some(threads), ..options.server.clone() };
    let setup = Setup { users: sessions, arguments: without_waiting(server.arguments()), ..Setup::default() };
    let mut all = compare::beside_references(setup, Mode::Echo, threads, 0).await?;
    let driver = all[0].target.driver()?;
    let count = options.per_second * options.seconds;
    let discarded =
        compare::rounds(&mut all, options.rounds, P90_MS_MAX, |_| format!("ping {count} {}", options.per_second))
            .await?;
    let mut outcome = json!({
        "bench": "ping",
        "machine": machine::describe(),
        "driver": driver,
        "threads": threads,
        "sessions": sessions,
        "pings_per_second": options.per_second,
        "rounds_discarded": discarded,
        "cpu_us_per_ping": all[0].micros(),
    });
    compare::add_figures(&mut outcome, &all);
    Ok(outcome)
}
