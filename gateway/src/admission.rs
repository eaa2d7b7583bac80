//! Whether more connections are accepted: counted over all shards, decided by the one that accepts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts of connections.
pub(crate) struct Admission {
    connections: AtomicUsize,
    openings: AtomicUsize,
    live: AtomicUsize,
    draining: AtomicBool,
    connections_max: usize,
    openings_max: usize,
}

impl Admission {
    pub(crate) fn new(connections_max: usize, openings_max: usize) -> Self {
        Self {
            connections: AtomicUsize::new(0),
            openings: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            connections_max,
            openings_max,
        }
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Whether another connection may be accepted now.
    pub(crate) fn has_room(&self) -> bool {
        self.connections.load(Ordering::Relaxed) < self.connections_max
            && self.openings.load(Ordering::Relaxed) < self.openings_max
    }

    /// Whether handshakes may become sessions.
    pub(crate) fn admits(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.openings.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn no_longer_opening(&self) {
        self.openings.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn became_live(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn no_longer_live(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}
