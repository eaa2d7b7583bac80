//! Sees to it that a drain reaches the sessions, whatever hangs before it does.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::mail::Mail;
use crate::shared::Shared;

/// Where a test can make a drain hang: with the feature `failpoints`, `FAILPOINTS=gateway-before-waves=pause`.
pub mod fail_points {
    /// New sessions are refused; nobody has been told to go.
    pub const BEFORE_WAVES: &str = "gateway-before-waves";
}

/// Hangs here where the fail point says so.
pub(crate) fn pass(name: &str) {
    let _ = name;
    fail::fail_point!(name);
}

/// A thread of its own, so that it needs nothing that may be stuck. Dropping it says that the shards know: from then on
/// they keep to the time by themselves.
pub(crate) struct Watchdog {
    _shards_know: Option<SyncSender<()>>,
}

impl Watchdog {
    pub(crate) fn start(shared: &Arc<Shared>, grace: Duration) -> Self {
        let (shards_know, known) = sync_channel(1);
        let shared = Arc::downgrade(shared);
        let watch = move || {
            if known.recv_timeout(grace * 8 / 10) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let Some(shared) = shared.upgrade() else { return };
            tracing::error!(sessions = shared.admission.live(), "the drain hangs: everybody is sent away now");
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            shared.admission.start_draining();
            shared.tell_all_shards(|| Mail::Drain { grace_ms, late: true });
        };
        match std::thread::Builder::new().name("roost-drain".into()).spawn(watch) {
            Ok(_) => Self { _shards_know: Some(shards_know) },
            Err(error) => {
                tracing::warn!(%error, "the drain goes on without its watchdog");
                Self { _shards_know: None }
            }
        }
    }
}
