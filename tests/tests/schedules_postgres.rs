//! Hundreds of seeded schedules of the persist workers over a real PostgreSQL; some of them with a Store that falls back
//! to an older copy, as a failover that lost commits does.

use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::Store;
use roost_postgres::PostgresStore;
use roost_tests::servers::{self, Manifest};
use roost_workers::schedules::{self, Report, StoreFactory};

/// Seeds on one shared database, which never falls back.
const SEEDS: u64 = 200;
/// Seeds on databases of their own, which do.
const FAILOVER_SEEDS: u64 = 12;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("ROOST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ROOST_SEEDS_POSTGRES").unwrap_or(default),
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
    println!("{total:?}");
    total
}

/// Databases of one server.
struct Databases {
    manifest: Manifest,
    server: String,
    /// The database in use.
    current: String,
    /// Where the last copy stands.
    kept: tempfile::NamedTempFile,
    may_fall_back: bool,
}

impl Databases {
    fn new(may_fall_back: bool) -> Self {
        Self {
            manifest: Manifest::read(),
            server: std::env::var("ROOST_TEST_POSTGRES").expect("the servers are there"),
            current: String::new(),
            kept: tempfile::NamedTempFile::new().expect("a file"),
            may_fall_back,
        }
    }

    async fn make(&mut self) {
        let name = format!("schedules{}", &uuid::Uuid::now_v7().simple().to_string()[8..]);
        self.manifest.sql(&self.server, &format!("create database {name}")).await;
        let base = self.server.rsplit_once('/').expect("a database in the address").0;
        self.current = format!("{base}/{name}");
    }

    async fn connect(&self) -> Arc<dyn Store> {
        Arc::new(PostgresStore::connect(&self.current).await.expect("a store"))
    }
}

#[async_trait]
impl StoreFactory for Databases {
    async fn fresh(&mut self) -> Arc<dyn Store> {
        if self.current.is_empty() || self.may_fall_back {
            self.make().await;
        }
        self.connect().await
    }

    async fn keep(&mut self) -> bool {
        if self.may_fall_back {
            self.manifest.dump(&self.current, self.kept.path()).await;
        }
        self.may_fall_back
    }

    async fn fall_back(&mut self) -> Arc<dyn Store> {
        self.make().await;
        self.manifest.restore(&self.current, self.kept.path()).await;
        self.connect().await
    }
}

#[tokio::test]
async fn postgres_keeps_every_promise_under_any_schedule() {
    if servers::available("postgres_keeps_every_promise_under_any_schedule") {
        let report = run_all(seeds(SEEDS), &mut Databases::new(false)).await;
        assert!(report.numbered > 0 && report.crashes > 0 && report.freezes > 0 && report.fenced > 0, "{report:?}");
    }
}

#[tokio::test]
async fn postgres_that_lost_commits_gets_the_same_numbers_again() {
    if servers::available("postgres_that_lost_commits_gets_the_same_numbers_again") {
        let report = run_all(seeds(FAILOVER_SEEDS), &mut Databases::new(true)).await;
        assert!(report.failovers > 0 && report.replayed > 0, "{report:?}");
    }
}
