//! As many sessions of distinct users as the machine holds, both ends on it, and messages that still reach a sample of them.

use std::time::{Duration, Instant};

use clap::Args;
use roost_protocol::limits;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::installation::Setup;
use crate::target::{ServerOptions, Target, without_waiting};
use crate::{Result, cpu, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Sessions, each of a user of its own.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: usize,
    /// Of those, so many are to receive a message.
    #[arg(long, default_value_t = 100_000)]
    sampled: usize,
    /// Sessions that connect in a second, at most.
    #[arg(long, default_value_t = 6_000)]
    per_second: usize,
    #[command(flatten)]
    server: ServerOptions,
}

/// Both ends and the seed in the Store's page cache, with room to breathe.
const BYTES_PER_SESSION: u64 = 10 * 1024;
/// Memory that is left alone.
const SPARE_BYTES: u64 = 2 << 30;
const SESSIONS_PER_SHARD: usize = 16_000;
/// The slope begins here: what the process holds without sessions is not theirs.
const SLOPE_FROM: usize = 17_000;
const SETTLE: Duration = Duration::from_secs(12);
const DELIVERED_WITHIN: Duration = Duration::from_secs(120);

/// Connects them all, then sends one message to each group of the sample.
pub async fn run(options: &Options) -> Result<Value> {
    let sessions = that_fit(options.sessions)?;
    let sampled = options.sampled.min(sessions);
    let groups = sample(sessions, sampled);
    let mut server = options.server.clone();
    server.shards.get_or_insert(sessions.div_ceil(SESSIONS_PER_SHARD).max(2));
    let mut arguments = without_waiting(server.arguments());
    arguments.extend(["--sessions-max".to_owned(), (sessions + 1_000).to_string()]);
    let begun = Instant::now();
    let target =
        Target::product(Setup { users: sessions, groups: groups.clone(), arguments, ..Setup::default() }).await?;
    let seeded_s = begun.elapsed().as_secs();
    eprintln!("{sessions} users are in the store after {seeded_s} s");
    let mut fleet = Fleet::default();
    let from = SLOPE_FROM.min(sessions / 2);
    let told = |live: usize| eprintln!("{live} of {sessions} sessions after {} s", begun.elapsed().as_secs());
    fleet.open(&target, from, options.per_second, told).await?;
    let first = settled(&target).await?;
    let opening = Instant::now();
    fleet.open(&target, sessions, options.per_second, told).await?;
    let opened_s = opening.elapsed().as_secs_f64();
    let last = settled(&target).await?;
    let delivered = deliver(&target, &mut fleet, &groups, sampled).await?;
    Ok(json!({
        "bench": "million",
        "machine": machine::describe(),
        "driver": target.driver()?,
        "asked": options.sessions,
        "sessions": fleet.sum("counts", "live").await?,
        "sampled": sampled,
        "sampled_delivered": delivered.count,
        "sampled_delivered_s": delivered.seconds,
        "user_bytes_per_session": (last as f64 - first as f64) / (sessions - from) as f64,
        "seeded_s": seeded_s,
        "opened_s": opened_s,
        "opened_per_second": (sessions - from) as f64 / opened_s,
        "reference": { "available_gib_left": cpu::available_bytes().map(|bytes| bytes >> 30) },
    }))
}

/// Fewer, where the machine is smaller.
fn that_fit(asked: usize) -> Result<usize> {
    let available = cpu::available_bytes().ok_or("the machine does not say how much memory it has")?;
    let fit = usize::try_from(available.saturating_sub(SPARE_BYTES) / BYTES_PER_SESSION)?;
    if fit < asked {
        eprintln!(
            "{asked} sessions need {} GiB on this machine, both ends counted, and {} are free: {fit} are tried instead",
            (asked as u64 * BYTES_PER_SESSION + SPARE_BYTES) >> 30,
            available >> 30
        );
    }
    Ok(asked.min(fit))
}

/// Users spread evenly over all, in groups as large as may be.
fn sample(sessions: usize, sampled: usize) -> Vec<Vec<usize>> {
    let users: Vec<usize> = (0..sampled).map(|number| number * sessions / sampled.max(1)).collect();
    users.chunks(limits::MEMBERS_MAX).map(<[usize]>::to_vec).collect()
}

/// The server's own memory, once it has given back what connecting needed.
async fn settled(target: &Target) -> Result<u64> {
    tokio::time::sleep(SETTLE).await;
    cpu::private_bytes(target.process()?).ok_or_else(|| "no memory figures of the server".into())
}

struct Delivered {
    count: u64,
    seconds: f64,
}

async fn deliver(target: &Target, fleet: &mut Fleet, groups: &[Vec<usize>], sampled: usize) -> Result<Delivered> {
    fleet.sum("reset", "").await?;
    let begun = Instant::now();
    for (number, members) in groups.iter().enumerate() {
        fleet.order_of(members[0], "send", &target.group(number)).await?;
    }
    loop {
        let count = fleet.sum("counts", "answers").await?;
        if count >= sampled as u64 || begun.elapsed() > DELIVERED_WITHIN {
            return Ok(Delivered { count, seconds: begun.elapsed().as_secs_f64() });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_spread_and_nobody_is_in_it_twice() {
        let mut all: Vec<usize> = sample(1_000_000, 100_000).concat();
        assert_eq!((all.len(), all[0], all[99_999]), (100_000, 0, 999_990));
        all.dedup();
        assert_eq!(all.len(), 100_000);
        assert_eq!(sample(5, 5), [[0, 1, 2, 3, 4]]);
    }
}
