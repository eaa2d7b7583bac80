//! The command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Many sessions against an installation of Roost: a seed first, then a scenario.
#[derive(Parser)]
#[command(name = "roost-swarm", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Put users, their conversations and a signing key straight into a Store, and write the plan.
    Seed(SeedOptions),
    /// Print access tokens of seeded users as JSON, for clients of other kinds.
    Tokens(TokensOptions),
    /// One of the processes of a run: reads its orders from standard input.
    #[command(hide = true)]
    Child,
    /// A scenario.
    #[command(flatten)]
    Run(Scenario),
}

/// `roost-swarm seed`.
#[derive(Args)]
pub struct SeedOptions {
    /// The folder of an embedded installation, whose server must not run.
    #[arg(long, value_name = "FOLDER", required_unless_present = "store")]
    pub data: Option<PathBuf>,
    /// The Store: `postgres://user:password@host:port/database`.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub store: Option<String>,
    /// How many users.
    #[arg(long)]
    pub users: u32,
    /// Conversations: `pairs=N` direct ones between users 0 and 1, 2 and 3, …, and `groups=K,members=M`.
    #[arg(long, value_name = "pairs=N,groups=K,members=M", default_value = "")]
    pub conversations: String,
    /// Where the plan is written. It holds a private key.
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
}

/// `roost-swarm tokens`.
#[derive(Args)]
pub struct TokensOptions {
    /// The plan that the seed wrote.
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// How many users.
    #[arg(long)]
    pub count: u32,
    /// The first user's number.
    #[arg(long, default_value_t = 0)]
    pub first_user: u32,
}

/// The scenarios.
#[derive(Subcommand)]
pub enum Scenario {
    /// Sessions that only answer pings; a sample of them is sent a message at the end.
    Idle(IdleOptions),
    /// Pairs of users that write to each other at a steady rate.
    Chat(ChatOptions),
    /// One sender and a group of thousands.
    Broadcast(BroadcastOptions),
    /// Each session asks `ping` and measures the answer.
    Ping(PingOptions),
    /// Chat, while a share of the sessions comes and goes.
    Churn(ChurnOptions),
    /// Chat, while a share of the connections is cut at once, and all return.
    Storm(StormOptions),
    /// Broadcast, while a share of the readers stops reading.
    Slow(SlowOptions),
}

/// What every scenario needs.
#[derive(Args, Clone)]
pub struct RunOptions {
    /// The plan that the seed wrote.
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// Where to connect; may be given more than once, and sessions are shared out.
    #[arg(long = "url", value_name = "ws://HOST:PORT/v1/connect", required = true)]
    pub urls: Vec<String>,
    /// How many sessions, each of its own user.
    #[arg(long)]
    pub sessions: u32,
    /// The first session's user; where a group is addressed, its place in the group.
    #[arg(long, default_value_t = 0)]
    pub first_user: u32,
    /// Processes; by default one per 15,000 sessions.
    #[arg(long)]
    pub processes: Option<u32>,
    /// Addresses to connect from, as `127.0.0.2` or `127.0.0.2-127.0.0.60`; by default, on loopback, two per process.
    #[arg(long, value_name = "ADDRESS[-ADDRESS]", value_parser = parse_sources)]
    pub source: Option<Sources>,
    /// Connections a second while the sessions are built up. A gateway takes 1,000 unless it is told otherwise.
    #[arg(long, default_value_t = 900)]
    pub rate: u32,
    /// Seconds of the measured phase.
    #[arg(long, default_value_t = 20)]
    pub duration: u64,
    /// Seconds of load before anything is measured.
    #[arg(long, default_value_t = 2)]
    pub warm_up: u64,
    /// Seconds that the last messages may take to arrive.
    #[arg(long, default_value_t = 30)]
    pub settle: u64,
    /// Seconds until every session must be connected for the first time.
    #[arg(long, default_value_t = 600)]
    pub connect_limit: u64,
    /// Write the result to this file too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report with plots for people.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Wait for a line `go` on standard input once all are connected, and keep the sessions until `stop` or its end.
    #[arg(long)]
    pub wait: bool,
}

/// `roost-swarm idle`.
#[derive(Args)]
pub struct IdleOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// So many of the sessions, members of the plan's groups, must receive a message at the end.
    #[arg(long, default_value_t = 0)]
    pub sample: u32,
    /// Messages a second to the groups of the sample, one message each.
    #[arg(long, default_value_t = 2)]
    pub per_second: u64,
}

/// `roost-swarm chat`.
#[derive(Args)]
pub struct ChatOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub talk: TalkOptions,
}

/// Messages between pairs.
#[derive(Args, Clone, Copy)]
pub struct TalkOptions {
    /// Messages a second, all pairs together.
    #[arg(long, default_value_t = 1_000)]
    pub per_second: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    pub body_bytes: usize,
}

/// `roost-swarm broadcast`.
#[derive(Args)]
pub struct BroadcastOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Which group of the plan.
    #[arg(long, default_value_t = 0)]
    pub group: u32,
    /// How many messages; without it, as many as are due in the duration.
    #[arg(long)]
    pub messages: Option<u64>,
    /// Messages a second.
    #[arg(long, default_value_t = 10)]
    pub per_second: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    pub body_bytes: usize,
}

/// `roost-swarm ping`.
#[derive(Args)]
pub struct PingOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Pings a second, all sessions together; at most 15 for each session.
    #[arg(long, default_value_t = 1_000)]
    pub per_second: u64,
}

/// `roost-swarm churn`.
#[derive(Args)]
pub struct ChurnOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub talk: TalkOptions,
    /// The share of the sessions that come and go.
    #[arg(long, default_value_t = 0.5, value_parser = parse_share)]
    pub share: f64,
    /// Sessions that leave, a second.
    #[arg(long, default_value_t = 50)]
    pub churn: u64,
}

/// `roost-swarm storm`.
#[derive(Args)]
pub struct StormOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub talk: TalkOptions,
    /// The share of the connections that is cut.
    #[arg(long, default_value_t = 0.9, value_parser = parse_share)]
    pub share: f64,
    /// Seconds of load before the cut, for comparison.
    #[arg(long, default_value_t = 10)]
    pub before: u64,
    /// Clients that come back at once, again and again, whatever they are told.
    #[arg(long)]
    pub no_backoff: bool,
}

/// `roost-swarm slow`.
#[derive(Args)]
pub struct SlowOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Which group of the plan.
    #[arg(long, default_value_t = 0)]
    pub group: u32,
    /// The share of the readers that stop.
    #[arg(long, default_value_t = 0.1, value_parser = parse_share)]
    pub share: f64,
    /// Seconds of load before they stop, for comparison.
    #[arg(long, default_value_t = 10)]
    pub before: u64,
    /// Messages a second.
    #[arg(long, default_value_t = 50)]
    pub per_second: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 16_384)]
    pub body_bytes: usize,
}

/// Addresses to connect from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(pub Vec<Ipv4Addr>);

fn parse_sources(text: &str) -> Result<Sources, String> {
    let one = |text: &str| text.parse::<Ipv4Addr>().map_err(|error| format!("{text}: {error}"));
    let (first, last) = text.split_once('-').map_or((text, text), |ends| ends);
    let (first, last) = (u32::from(one(first)?), u32::from(one(last)?));
    if first > last || last - first > 65_535 {
        return Err("from the lower address to the higher one".to_owned());
    }
    Ok(Sources((first..=last).map(Ipv4Addr::from).collect()))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share is from 0 to 1".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_an_address_or_a_range() {
        let many = parse_sources("127.0.0.254-127.0.1.1").expect("a range").0;
        assert_eq!(many.len(), 4);
        assert_eq!(parse_sources("127.0.0.9").expect("one").0, ["127.0.0.9".parse::<Ipv4Addr>().expect("an address")]);
        assert!(parse_sources("127.0.0.9-127.0.0.2").is_err());
        assert!(parse_share("1.5").is_err());
    }
}
