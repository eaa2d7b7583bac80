//! One message to the largest group: how long until all have it, and what a delivery costs against the group of `deliver`.

use clap::Args;
use roost_protocol::limits;
use serde_json::{Value, json};

use crate::compare::{self, Contestant};
use crate::installation::Setup;
use crate::target::{ServerOptions, Target, without_waiting};
use crate::{Result, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Members, all connected.
    #[arg(long, default_value_t = limits::MEMBERS_MAX)]
    members: usize,
    /// Members of the group that it is compared with.
    #[arg(long, default_value_t = 5_000)]
    compared_with: usize,
    /// Deliveries a second, whatever the group.
    #[arg(long, default_value_t = 50_000)]
    per_second: usize,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 5)]
    seconds: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    server: ServerOptions,
}

/// Both groups in turn, each on a product of its own.
pub async fn run(options: &Options) -> Result<Value> {
    let mut all = Vec::new();
    let mut driver = "";
    for (name, members) in [("group", options.members), ("deliver", options.compared_with)] {
        let groups = vec![(0..members).collect()];
        let setup = Setup {
            users: members,
            groups,
            arguments: without_waiting(options.server.arguments()),
            ..Setup::default()
        };
        let target = Target::product(setup).await?;
        driver = target.driver()?;
        all.push(Contestant::ready(name, target, members, 128).await?);
    }
    // A message to the smaller group is with all before the next one is due, and one to the larger has twice the time.
    let p90_ms_max = 1_000.0 * options.members as f64 / options.per_second as f64;
    let discarded = compare::rounds(&mut all, options.rounds, p90_ms_max, |contestant| {
        let members = if contestant.name == "group" { options.members } else { options.compared_with };
        let per_second = (options.per_second / members).max(1);
        format!("broadcast 0 {} {} {per_second} {members}", contestant.target.group(0), per_second * options.seconds)
    })
    .await?;
    let mut outcome = json!({
        "bench": "group",
        "machine": machine::describe(),
        "driver": driver,
        "members": options.members,
        "rounds_discarded": discarded,
        "records_per_gateway": Value::Null,
        "records_per_gateway_why": "the program does not tell its counters yet; the tests of fan-out count them",
        "p99_ms": all[0].figures()["p99_ms"],
    });
    compare::add_figures(&mut outcome, &all);
    Ok(outcome)
}
