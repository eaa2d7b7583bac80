//! Thousands of seeded schedules of the persist workers, each judged against the log.

use roost_workers::schedules::model::ModelFactory;
use roost_workers::schedules::{self, Report, StoreFactory};

/// `ROOST_SEEDS` says how many, `ROOST_SEED` runs a single one.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("ROOST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ROOST_SEEDS").unwrap_or(default),
    }
}

async fn run_all(seeds: std::ops::Range<u64>, factory: &mut dyn StoreFactory) -> Report {
    let mut total = Report::default();
    for seed in seeds {
        match schedules::run(seed, factory).await {
            Ok(report) => total.add(&report),
            Err(broken) => panic!("{broken}\n(again: ROOST_SEED={seed})"),
        }
    }
    total
}

#[tokio::test]
async fn the_model_keeps_every_promise_under_any_schedule() {
    let seeds = seeds(3_000);
    let many = seeds.end - seeds.start >= 100;
    let report = run_all(seeds.clone(), &mut ModelFactory::default()).await;
    println!("{} seeds: {report:?}", seeds.end - seeds.start);
    if many {
        met_everything(&report, true);
    }
}

/// A run that met nothing proves nothing.
fn met_everything(report: &Report, falls_back: bool) {
    let Report { claims, fenced, replayed, duplicates, rejected, dead_letters, .. } = *report;
    let Report { publish_retries, crashes, freezes, failovers, moves, .. } = *report;
    let kinds = [claims, fenced, replayed, duplicates, rejected, dead_letters];
    let faults = [publish_retries, crashes, freezes, moves];
    assert!(kinds.iter().chain(&faults).all(|&count| count > 0), "{report:?}");
    assert!(failovers > 0 || !falls_back, "{report:?}");
}
