//! What one delivery costs the server: one message to the sessions of thousands of distinct users, one frame each.

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
    /// Distinct users, with one session each, in one group.
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// Messages a second: each is as many deliveries as there are sessions.
    #[arg(long, default_value_t = 10)]
    per_second: usize,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 5)]
    seconds: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 128)]
    body_bytes: usize,
    #[command(flatten)]
    server: ServerOptions,
}

/// The whole path of the product (append, number, fan out, deliver) against a broadcast of the same frame.
pub async fn run(options: &Options) -> Result<Value> {
    compare::by_threads(options.server.shards, async |threads| with_threads(options, threads).await).await
}

async fn with_threads(options: &Options, threads: usize) -> Result<Value> {
    let (sessions, body_bytes) = (options.sessions, options.body_bytes);
    let groups = vec![(0..sessions).collect()];
    let server = ServerOptions { shards: Some(threads), ..options.server.clone() };
    let setup = Setup { users: sessions, groups, arguments: without_waiting(server.arguments()), ..Setup::default() };
    let mut all = compare::beside_references(setup, Mode::Broadcast, threads, body_bytes).await?;
    let driver = all[0].target.driver()?;
    let count = options.per_second * options.seconds;
    // A message is with all before the next one is due.
    let p90_ms_max = 1_000.0 / options.per_second as f64;
    let discarded = compare::rounds(&mut all, options.rounds, p90_ms_max, |contestant| {
        format!("broadcast 0 {} {count} {} {sessions}", contestant.target.group(0), options.per_second)
    })
    .await?;
    let mut outcome = json!({
        "bench": "deliver",
        "machine": machine::describe(),
        "driver": driver,
        "threads": threads,
        "sessions": sessions,
        "messages_per_second": options.per_second,
        "rounds_discarded": discarded,
        "cpu_us_per_delivery": all[0].micros(),
    });
    compare::add_figures(&mut outcome, &all);
    Ok(outcome)
}
