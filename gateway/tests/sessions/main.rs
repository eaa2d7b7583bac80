//! A gateway with real sockets and ports in memory, seen by clients that are not ours.

mod admission;
mod bad_input;
mod client;
mod driver;
mod fastwebsockets;
mod hostile;
mod keys;
mod life;
mod messages;
mod overload;
mod world;

use std::time::Duration;

/// Waits until something holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
