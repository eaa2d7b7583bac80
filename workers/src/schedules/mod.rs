//! Seeded schedules: the persist machines and a real Store driven step by step through crashes, freezes and failovers.
//!
//! One seed is one run: two workers with two lanes each, a log, and a Store behind the port. A scheduler of its own,
//! single-threaded and fed by nothing but the seed, decides what happens next: a record arrives, a partition moves, a
//! call to the Store begins or its answer arrives, a worker freezes, crashes or goes on, the Store falls back to an
//! older copy. No time passes but the scheduler's. At the end everything heals, and the run is judged against the log
//! applied record by record in order.
//!
//! It is generic over the Store, like the ports' conformance suites: every adapter can be driven through the same seeds.

mod judge;
mod load;
pub mod model;
mod world;

use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::Store;

/// How many partitions the log of a schedule has; a Store is migrated for so many.
pub const PARTITIONS: u32 = 4;

/// Where the Stores of the schedules come from.
#[async_trait]
pub trait StoreFactory: Send + Sync {
    /// A Store for the next seed; it may be shared with earlier ones, whose ids and log ids are others.
    async fn fresh(&mut self) -> Arc<dyn Store>;

    /// Keeps a copy of the Store as it is now. False where this Store cannot be copied: then it never falls back.
    async fn keep(&mut self) -> bool;

    /// The Store as it was when the last copy was kept: what was committed since is lost, as after a failover.
    async fn fall_back(&mut self) -> Arc<dyn Store>;
}

/// What a run has met. A run that met nothing proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Records in the log.
    pub records: u64,
    /// Records that took a number.
    pub numbered: u64,
    /// Partitions taken over.
    pub claims: u64,
    /// Parts of a batch that were another owner's by then.
    pub fenced: u64,
    /// Records looked up again.
    pub replayed: u64,
    /// Known client_msg_ids.
    pub duplicates: u64,
    /// Refused requests.
    pub rejected: u64,
    /// Poison.
    pub dead_letters: u64,
    /// Failed appends that were made again.
    pub publish_retries: u64,
    /// Workers that crashed.
    pub crashes: u64,
    /// Workers that froze and went on.
    pub freezes: u64,
    /// Times the Store lost commits.
    pub failovers: u64,
    /// Moves of a partition to another worker.
    pub moves: u64,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Report) {
        self.records += other.records;
        self.numbered += other.numbered;
        self.claims += other.claims;
        self.fenced += other.fenced;
        self.replayed += other.replayed;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
        self.dead_letters += other.dead_letters;
        self.publish_retries += other.publish_retries;
        self.crashes += other.crashes;
        self.freezes += other.freezes;
        self.failovers += other.failovers;
        self.moves += other.moves;
    }
}

/// Runs one seed; an error says which promise was broken, and how.
pub async fn run(seed: u64, factory: &mut dyn StoreFactory) -> Result<Report, String> {
    let mut world = world::World::new(seed, factory).await;
    world.run().await;
    world.heal().await.map_err(|error| format!("seed {seed}: {error}"))?;
    judge::judge(&world).await.map_err(|error| format!("seed {seed}: {error}"))?;
    Ok(world.report())
}
