//! Thousands of seeded schedules of the persist workers, each judged against the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_workers::schedules::model::{ModelFactory, Wrong};
use roost_workers::schedules::{self, Report, StoreFactory};
use tempfile::TempDir;

/// So many are done in half a minute without optimisation.
const SQLITE_SEEDS: u64 = 1_000;

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
    let seeds = seeds(2_000);
    let many = seeds.end - seeds.start >= 100;
    let report = run_all(seeds.clone(), &mut ModelFactory::default()).await;
    println!("{} seeds: {report:?}", seeds.end - seeds.start);
    if many {
        met_everything(&report, true);
    }
}

/// SQLite in files of a folder in memory, where there is one: the schedules are about order, not about the disk.
struct SqliteFactory {
    folder: TempDir,
    files: u64,
    open: PathBuf,
    kept: PathBuf,
}

impl SqliteFactory {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { folder: folder.expect("a folder"), files: 0, open: PathBuf::new(), kept: PathBuf::new() }
    }

    fn next_file(&mut self) -> PathBuf {
        self.files += 1;
        self.folder.path().join(format!("store-{}", self.files))
    }

    /// The file and its write-ahead log. Nobody writes meanwhile, and so few pages start no checkpoint.
    fn copy(from: &Path, to: &Path) {
        for suffix in ["", "-wal"] {
            let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            if of(from).exists() {
                std::fs::copy(of(from), of(to)).expect("a copy");
            }
        }
    }
}

#[async_trait]
impl StoreFactory for SqliteFactory {
    async fn fresh(&mut self) -> Arc<dyn Store> {
        for entry in std::fs::read_dir(self.folder.path()).expect("the folder").flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        self.open = self.next_file();
        Arc::new(SqliteStore::open(&self.open).expect("a store"))
    }

    async fn keep(&mut self) -> bool {
        self.kept = self.next_file();
        Self::copy(&self.open, &self.kept);
        true
    }

    async fn fall_back(&mut self) -> Arc<dyn Store> {
        self.open = self.next_file();
        Self::copy(&self.kept, &self.open);
        Arc::new(SqliteStore::open(&self.open).expect("the older store"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_every_promise_under_any_schedule() {
    let seeds = seeds(SQLITE_SEEDS);
    let many = seeds.end - seeds.start >= 100;
    let tasks = split(seeds.clone(), 4)
        .into_iter()
        .map(|share| tokio::spawn(async move { run_all(share, &mut SqliteFactory::new()).await }));
    let mut total = Report::default();
    for task in tasks.collect::<Vec<_>>() {
        total.add(&task.await.expect("every promise is kept"));
    }
    println!("{} seeds: {total:?}", seeds.end - seeds.start);
    if many {
        met_everything(&total, true);
    }
}

fn split(seeds: std::ops::Range<u64>, shares: u64) -> Vec<std::ops::Range<u64>> {
    let size = (seeds.end - seeds.start).div_ceil(shares).max(1);
    let starts = (seeds.start..seeds.end).step_by(size as usize);
    starts.map(|start| start..(start + size).min(seeds.end)).collect()
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

#[tokio::test]
async fn the_judge_finds_every_planted_fault() {
    for wrong in Wrong::ALL {
        let mut found = None;
        for seed in 0..300 {
            // A wrong Store may also break an assertion of the model's or the machine's.
            let run = tokio::spawn(async move { schedules::run(seed, &mut ModelFactory::wrong(wrong)).await });
            match run.await {
                Ok(Ok(_)) => continue,
                Ok(Err(broken)) => found = Some(broken),
                Err(_) => found = Some(format!("seed {seed}: an assertion")),
            }
            break;
        }
        println!("{wrong:?}: {found:?}");
        assert!(found.is_some(), "{wrong:?} went unseen");
    }
}
