//! Everybody's connection is cut at once: how long until all are back, and what those who stayed notice of it.

use clap::Args;
use serde_json::{Value, json};

use crate::compare::median;
use crate::fleet::Crowd;
use crate::installation::Setup;
use crate::target::{ServerOptions, Target};
use crate::{Result, machine};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Sessions that are cut.
    #[arg(long, default_value_t = 15_000)]
    sessions: usize,
    /// Sessions that stay: one group, in which messages go on.
    #[arg(long, default_value_t = 500)]
    others: usize,
    /// Messages a second in their group.
    #[arg(long, default_value_t = 20)]
    per_second: usize,
    /// Storms; the median counts.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// The data on the disk instead of in memory: whatever the storm does, its stalls are in the latencies too.
    #[arg(long)]
    on_disk: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Those who are cut come from so many addresses, for a gateway lets one address have half of its handshakes at most.
const ADDRESSES: u32 = 100;
/// A window of the others' latencies: about as long as a storm, so that one is compared with as much calm.
const WINDOW_SECONDS: usize = 30;
const STORM_SECONDS_MAX: usize = 300;

/// Storms on one server, each with calm before it.
pub async fn run(options: &Options) -> Result<Value> {
    let (others, sessions) = (options.others, options.sessions);
    let groups = vec![(0..others).collect()];
    let setup = Setup {
        users: others + sessions,
        groups,
        arguments: options.server.arguments(),
        in_memory: !options.on_disk,
        ..Setup::default()
    };
    let target = Target::product(setup).await?;
    let mut staying = Crowd::start(&target, 0, 128).await?;
    staying.open(others, 2_000).await?;
    let mut cut = Crowd::start_from(&target, others, 128, ADDRESSES).await?;
    cut.open(sessions, 2_000).await?;
    let messages = options.per_second * WINDOW_SECONDS;
    let order = format!("broadcast 0 {} {messages} {} {others}", target.group(0), options.per_second);
    let mut storms = Vec::new();
    for number in 0..options.times.max(1) {
        let calm = window(&mut staying, &order).await?;
        let storm_order = format!("storm {STORM_SECONDS_MAX}");
        let mut storm = Box::pin(cut.order(&storm_order));
        let mut stormy = Vec::new();
        let outcome = loop {
            let mut during = Box::pin(window(&mut staying, &order));
            let ended = tokio::select! {
                biased;
                outcome = &mut storm => Some(outcome?),
                latencies = &mut during => { stormy.push(latencies?); None }
            };
            if let Some(outcome) = ended {
                // The window in which the last came back counts too.
                stormy.push(during.await?);
                break outcome;
            }
        };
        eprintln!("storm {}: {outcome}, others {stormy:?}, before {calm:?}", number + 1);
        let storm = Storm::new(&outcome, calm, &stormy)?;
        storms.push(storm);
    }
    Ok(figures(options, target.driver()?, &storms))
}

/// The others' latencies in one window.
#[derive(Clone, Copy, Debug)]
struct Latencies {
    p99_ms: f64,
    max_ms: f64,
}

/// Has messages go on in their group for a window.
async fn window(staying: &mut Crowd, order: &str) -> Result<Latencies> {
    let outcome = staying.order(order).await?;
    if outcome["lost"].as_u64() != Some(0) || outcome["answers"] != outcome["expected"] {
        return Err(format!("those who stayed lost something: {outcome}").into());
    }
    let figure = |name: &str| outcome[name].as_f64().ok_or_else(|| format!("no {name}"));
    Ok(Latencies { p99_ms: figure("p99_ms")?, max_ms: figure("max_ms")? })
}

struct Storm {
    all_back_s: f64,
    calm: Latencies,
    /// Of its worst window.
    stormy: Latencies,
    refused: u64,
    back_each_second: Value,
}

impl Storm {
    fn new(outcome: &Value, calm: Latencies, stormy: &[Latencies]) -> Result<Self> {
        if outcome["live"] != outcome["cut"] {
            return Err(format!("not all came back within {STORM_SECONDS_MAX} s: {outcome}").into());
        }
        Ok(Self {
            all_back_s: outcome["seconds"].as_f64().unwrap_or(f64::NAN),
            calm,
            stormy: Latencies {
                p99_ms: stormy.iter().map(|window| window.p99_ms).fold(0.0, f64::max),
                max_ms: stormy.iter().map(|window| window.max_ms).fold(0.0, f64::max),
            },
            refused: outcome["refused"].as_u64().unwrap_or(0),
            back_each_second: outcome["back_each_second"].clone(),
        })
    }

    fn ratio(&self) -> f64 {
        self.stormy.p99_ms / self.calm.p99_ms
    }
}

fn figures(options: &Options, driver: &str, storms: &[Storm]) -> Value {
    let middle = |figure: fn(&Storm) -> f64| {
        let value = median(&storms.iter().map(figure).collect::<Vec<_>>());
        (value * 100.0).round() / 100.0
    };
    json!({
        "bench": "storm",
        "machine": machine::describe(),
        "driver": driver,
        "data": if options.on_disk { "disk" } else { "memory" },
        "sessions": options.sessions,
        "others": options.others,
        "all_back_s": middle(|storm| storm.all_back_s),
        "others_p99_ratio": middle(Storm::ratio),
        "others_p99_ratios": storms.iter().map(Storm::ratio).collect::<Vec<_>>(),
        "others_p99_ms": middle(|storm| storm.stormy.p99_ms),
        "others_max_ms": middle(|storm| storm.stormy.max_ms),
        "refused": storms.iter().map(|storm| storm.refused).collect::<Vec<_>>(),
        "back_each_second": storms.iter().map(|storm| storm.back_each_second.clone()).collect::<Vec<_>>(),
        "reference": {
            "calm_p99_ms": middle(|storm| storm.calm.p99_ms),
            "calm_max_ms": middle(|storm| storm.calm.max_ms),
        },
    })
}
