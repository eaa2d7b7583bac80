//! The stop of a process: on SIGTERM or Ctrl-C, and within its grace whatever hangs.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Waits for SIGTERM or Ctrl-C.
pub async fn stop_asked() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!(%error, "SIGTERM cannot be heard; stopping only on Ctrl-C");
            let _ = tokio::signal::ctrl_c().await;
            return;
        }
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = tokio::signal::ctrl_c() => tracing::info!("Ctrl-C: stopping"),
    }
}

/// Ends the process when its grace is over, until this is dropped. A thread of its own, so that it needs nothing that may
/// be stuck.
pub struct StopLimit {
    end: Instant,
    _ended: SyncSender<()>,
}

impl StopLimit {
    pub fn start(grace_ms: u64) -> Self {
        let grace = Duration::from_millis(grace_ms);
        let (ended, waits) = sync_channel(1);
        let watch = move || {
            if waits.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
                tracing::error!(grace_ms, "the stop hangs and its grace is over: what is not done is left");
                end_process();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("roost-stop".into()).spawn(watch) {
            tracing::warn!(%error, "the stop goes on without a limit");
        }
        Self { end: Instant::now() + grace, _ended: ended }
    }

    /// What is left of the grace.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "what hangs would keep main from returning; nothing durable waits for destructors"
)]
fn end_process() {
    std::process::exit(1);
}
