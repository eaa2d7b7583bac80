//! The clocks: wall time for what people read, and a steady one for leases and deadlines.

use std::time::Instant;

use roost_protocol::TimeMs;

/// Tells the time. Numbers and order never depend on it.
pub trait Clock: Send + Sync + 'static {
    /// Unix time in milliseconds; may jump either way.
    fn now_ms(&self) -> TimeMs;

    /// Milliseconds since some fixed moment; never goes back, and counts the time that the machine slept, so that a
    /// lease that passed meanwhile is seen to have passed.
    fn steady_ms(&self) -> u64;
}

/// The machine's own clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose steady time starts now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> TimeMs {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn steady_ms(&self) -> u64 {
        boottime_ms().unwrap_or_else(|| u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(target_os = "linux")]
fn boottime_ms() -> Option<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Some(u64::try_from(time.tv_sec).ok()? * 1000 + u64::try_from(time.tv_nsec).ok()? / 1_000_000)
}

/// Elsewhere the time that the machine slept is not counted.
#[cfg(not(target_os = "linux"))]
fn boottime_ms() -> Option<u64> {
    None
}
