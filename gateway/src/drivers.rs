//! Which driver the shards get, and their threads.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::{Config, Io, StartError};
use crate::driver::Driver;
use crate::driver::portable::Portable;
use crate::driver::tls::Tls;
#[cfg(target_os = "linux")]
use crate::driver::uring::{self, Uring};
use crate::shard::Shard;
use crate::shared::Shared;

/// Descriptors kept for everything that is no session.
const DESCRIPTORS_RESERVED: usize = 256;
/// Places in a shard's table beside its even share: connections end where they will.
const UNEVEN_SHARE: usize = 1024;

/// A driver per shard. The first has the listener.
pub(crate) enum Drivers {
    Portable(Vec<Portable>),
    #[cfg(target_os = "linux")]
    Uring(Vec<Uring>),
}

impl Drivers {
    /// Made before any thread starts, so that a refusal is an error of the start.
    pub(crate) fn new(config: &Config, listener: TcpListener) -> Result<Self, StartError> {
        #[cfg(target_os = "linux")]
        match (config.io, uring::probe()) {
            (Io::Portable, _) => {}
            (_, Ok(())) => return Self::uring(config, listener),
            (Io::Uring, Err(refusal)) => return Err(refusal.into()),
            (Io::Auto, Err(refusal)) => tracing::warn!("the portable driver is used: {refusal}"),
        }
        #[cfg(not(target_os = "linux"))]
        if config.io == Io::Uring {
            return Err(StartError::Io);
        }
        let drivers = one_per_shard(config.shards, listener, Portable::new);
        drivers.map(Self::Portable).map_err(StartError::Shard)
    }

    #[cfg(target_os = "linux")]
    fn uring(config: &Config, listener: TcpListener) -> Result<Self, StartError> {
        let share = (config.sessions_max / config.shards).saturating_add(UNEVEN_SHARE);
        let drivers = one_per_shard(config.shards, listener, |listener| Uring::new(listener, share));
        drivers.map(Self::Uring).map_err(StartError::Shard)
    }

    /// For the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Portable(_) => "portable",
            #[cfg(target_os = "linux")]
            Self::Uring(_) => "io_uring",
        }
    }

    /// Connections of all shards at most.
    pub(crate) fn connections_max(&self) -> usize {
        match self {
            // A quarter is the most that is kept back, so that a small limit still leaves room for sessions.
            Self::Portable(_) => {
                let descriptors = descriptors_max();
                descriptors - DESCRIPTORS_RESERVED.min(descriptors / 4)
            }
            #[cfg(target_os = "linux")]
            Self::Uring(drivers) => drivers.iter().map(Driver::connections_max).sum(),
        }
    }

    pub(crate) fn start(self, shared: &Arc<Shared>) -> std::io::Result<Vec<JoinHandle<()>>> {
        match self {
            Self::Portable(drivers) => start_secured(shared, drivers),
            #[cfg(target_os = "linux")]
            Self::Uring(drivers) => start_secured(shared, drivers),
        }
    }
}

fn one_per_shard<D>(
    shards: usize,
    listener: TcpListener,
    mut new: impl FnMut(Option<TcpListener>) -> std::io::Result<D>,
) -> std::io::Result<Vec<D>> {
    let mut listener = Some(listener);
    (0..shards).map(|_| new(listener.take())).collect()
}

/// Puts TLS over the drivers, where it is wanted.
fn start_secured<D>(shared: &Arc<Shared>, drivers: Vec<D>) -> std::io::Result<Vec<JoinHandle<()>>>
where
    D: Driver + Send + 'static,
{
    match &shared.config.tls {
        None => start(shared, drivers),
        Some(tls) => start(shared, drivers.into_iter().map(|driver| Tls::new(driver, tls.config())).collect()),
    }
}

fn start<D: Driver + Send + 'static>(shared: &Arc<Shared>, drivers: Vec<D>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let threads = drivers.into_iter().enumerate().map(|(index, driver)| {
        let shard = Shard::new(Arc::clone(shared), index, driver, index == 0);
        std::thread::Builder::new().name(format!("roost-shard-{index}")).spawn(move || shard.run())
    });
    threads.collect()
}

/// How many descriptors the process may have.
pub(crate) fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
