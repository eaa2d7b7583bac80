//! What an idle session costs: memory by the slope between two numbers of sessions, and CPU while nothing but pings goes on.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::compare::round;
use crate::fleet::Fleet;
use crate::installation::Setup;
use crate::reference::{Kind, Mode};
use crate::target::{ServerOptions, Target, without_waiting};
use crate::{Result, cpu, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// The smaller number of sessions; 20,000, or 2,000 where a descriptor each bounds it.
    #[arg(long)]
    from: Option<usize>,
    /// The larger number; 100,000, or 18,000.
    #[arg(long)]
    to: Option<usize>,
    /// The larger number with TLS, whose clients take more memory than the sessions; half of the other.
    #[arg(long)]
    tls_to: Option<usize>,
    /// Sessions that connect in a second.
    #[arg(long, default_value_t = 3_000)]
    per_second: usize,
    /// Seconds over which CPU is measured: whole rounds of pings.
    #[arg(long, default_value_t = 75)]
    seconds: u64,
    #[command(flatten)]
    server: ServerOptions,
}

/// Where every session has a descriptor of its process.
const DESCRIPTOR_EACH: (usize, usize) = (2_000, 18_000);
const RING_TABLES: (usize, usize) = (20_000, 100_000);
/// Each shard's ring has a table as large as the process's limit of descriptors at most.
const SESSIONS_PER_SHARD: usize = 16_000;
/// What connecting has left behind is given back by then.
const SETTLE: Duration = Duration::from_secs(12);
/// From here on all sessions are in the rhythm of their pings.
const PING_ROUND: Duration = Duration::from_secs(26);

/// The product, then the references, one after the other.
pub async fn run(options: &Options) -> Result<Value> {
    let plain = product(options, false).await?;
    let tls = product(options, true).await?;
    let tokio = reference(options, Kind::Tokio).await?;
    let raw = reference(options, Kind::Raw).await?;
    // The client's end and the tokio reference's are alike: a socket, a descriptor and epoll's entry for it.
    let client_end = tokio.kernel_both_ends / 2.0;
    let kernel = |slope: &Slope| (slope.kernel_both_ends - client_end).round();
    let described = |slope: &Slope| {
        json!({
            "sessions": [slope.from, slope.to],
            "user_bytes_per_session": slope.user.round(),
            "user_bytes_per_session_from_rest": slope.user_from_rest.round(),
            "kernel_bytes_per_session": kernel(slope),
            "kernel_bytes_per_session_both_ends": slope.kernel_both_ends.round(),
            "cpu_us_per_session_second": slope.cpu,
        })
    };
    Ok(json!({
        "bench": "idle",
        "machine": machine::describe(),
        "driver": plain.driver,
        "sessions": [plain.from, plain.to],
        "user_bytes_per_session": plain.user.round(),
        "user_bytes_per_session_from_rest": plain.user_from_rest.round(),
        "tls_user_bytes_per_session": tls.user.round(),
        "kernel_bytes_per_session": kernel(&plain),
        "kernel_bytes_per_session_how": "slope of Slab for both ends, without the client's end: half of the tokio reference's two",
        "kernel_bytes_per_session_both_ends": plain.kernel_both_ends.round(),
        "cpu_us_per_session_second": plain.cpu,
        "tls": described(&tls),
        "reference": { "tokio": described(&tokio), "raw": described(&raw) },
    }))
}

struct Slope {
    driver: &'static str,
    from: usize,
    to: usize,
    user: f64,
    /// From no sessions at all: what the allocator has kept of other work counts too.
    user_from_rest: f64,
    kernel_both_ends: f64,
    cpu: f64,
}

async fn product(options: &Options, tls: bool) -> Result<Slope> {
    let portable = options.server.io.as_deref() == Some("portable");
    let (_, most) = bounds(options, if portable { DESCRIPTOR_EACH } else { RING_TABLES });
    let mut server = options.server.clone();
    if !portable && server.shards.is_none() {
        server.shards = Some(most.div_ceil(SESSIONS_PER_SHARD).max(2));
    }
    let arguments = without_waiting(server.arguments());
    let target = Target::product(Setup { users: most, arguments, tls, ..Setup::default() }).await?;
    let usual = if target.driver()? == "portable" { DESCRIPTOR_EACH } else { RING_TABLES };
    let (from, mut to) = bounds(options, usual);
    if tls {
        to = options.tls_to.unwrap_or(to / 2).max(from + 1);
    }
    slope(if tls { "product with TLS" } else { "product" }, target, from, to, options).await
}

async fn reference(options: &Options, kind: Kind) -> Result<Slope> {
    let target = Target::reference(kind, Mode::Broadcast, 1).await?;
    let (from, to) = DESCRIPTOR_EACH;
    slope(if kind == Kind::Raw { "raw" } else { "tokio" }, target, from, to, options).await
}

fn bounds(options: &Options, usual: (usize, usize)) -> (usize, usize) {
    (options.from.unwrap_or(usual.0), options.to.unwrap_or(usual.1))
}

async fn slope(name: &str, target: Target, from: usize, to: usize, options: &Options) -> Result<Slope> {
    let mut fleet = Fleet::default();
    tokio::time::sleep(SETTLE).await;
    let rest = memory(&target)?;
    fleet.open(&target, from, options.per_second, |_| {}).await?;
    tokio::time::sleep(SETTLE).await;
    let first = memory(&target)?;
    eprintln!("{name}: {from} sessions: {first:?}");
    fleet.open(&target, to, options.per_second, |live| eprintln!("{name}: {live} sessions")).await?;
    tokio::time::sleep(SETTLE).await;
    let last = memory(&target)?;
    eprintln!("{name}: {to} sessions: {last:?}");
    let each = |first: u64, last: u64| (last as f64 - first as f64) / (to - from) as f64;
    tokio::time::sleep(PING_ROUND).await;
    let (before, during) = (target.cpu_nanos()?, Duration::from_secs(options.seconds));
    tokio::time::sleep(during).await;
    let nanos = target.cpu_nanos()? - before;
    let lost = fleet.sum("counts", "lost").await?;
    if lost > 0 {
        return Err(format!("{name}: {lost} sessions were lost while they were idle").into());
    }
    let cpu = round(nanos as f64 / 1000.0 / to as f64 / during.as_secs_f64());
    eprintln!("{name}: {cpu} µs of CPU a session and second");
    Ok(Slope {
        driver: target.driver()?,
        from,
        to,
        user: each(first.user, last.user),
        user_from_rest: (last.user as f64 - rest.user as f64) / to as f64,
        kernel_both_ends: each(first.kernel, last.kernel),
        cpu,
    })
}

#[derive(Debug)]
struct Memory {
    user: u64,
    kernel: u64,
}

fn memory(target: &Target) -> Result<Memory> {
    let user = cpu::private_bytes(target.process()?).ok_or("no memory figures of the server")?;
    Ok(Memory { user, kernel: cpu::slab_bytes().ok_or("no memory figures of the kernel")? })
}
