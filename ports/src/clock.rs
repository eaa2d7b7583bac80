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
        // CLOCK_BOOTTIME as /proc tells it needs no unsafe code; elsewhere Instant has to do.
        boottime_ms().unwrap_or_else(|| u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

fn boottime_ms() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, rest) = text.split_once('.')?;
    let hundredths = rest.split_whitespace().next()?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10)
}
