//! Members of each port's family that fail with a seed: for the tests of whoever stands on a port.

mod delivery;
mod log;
mod registry;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use delivery::FailingDelivery;
pub use log::FailingLog;
pub use registry::FailingRegistry;
pub use store::FailingStore;

/// When to fail: seeded, shared by several wrappers if wanted, and to be healed.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    rng: Mutex<StdRng>,
    per_mille: AtomicU32,
    injected: AtomicU64,
}

/// Where a failing call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultPlace {
    /// Before anything was done.
    Before,
    /// After it was done: only the answer is lost.
    After,
}

impl Faults {
    /// Fails this many of a thousand calls, in an order that the seed decides.
    pub fn new(seed: u64, per_mille: u32) -> Self {
        assert!(per_mille <= 1000, "{per_mille} of a thousand");
        Self(Arc::new(Inner {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            per_mille: AtomicU32::new(per_mille),
            injected: AtomicU64::new(0),
        }))
    }

    /// Another rate from now on.
    pub fn set_per_mille(&self, per_mille: u32) {
        assert!(per_mille <= 1000, "{per_mille} of a thousand");
        self.0.per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// No failures from now on.
    pub fn heal(&self) {
        self.set_per_mille(0);
    }

    /// How many failures there were: a test that met none has shown nothing.
    pub fn injected(&self) -> u64 {
        self.0.injected.load(Ordering::Relaxed)
    }

    /// Whether and where this call fails.
    pub fn roll(&self) -> Option<FaultPlace> {
        let per_mille = self.0.per_mille.load(Ordering::Relaxed);
        let mut rng = self.0.rng.lock();
        if rng.random_range(0..1000) >= per_mille {
            return None;
        }
        self.0.injected.fetch_add(1, Ordering::Relaxed);
        Some(if rng.random_bool(0.5) { FaultPlace::Before } else { FaultPlace::After })
    }

    /// A coin of the same seed, for choosing between two ways to fail.
    pub fn coin(&self) -> bool {
        self.0.rng.lock().random_bool(0.5)
    }
}

/// What an injected failure says.
pub(crate) const INJECTED: &str = "injected";
