//! TLS on real sockets, seen by clients that are not ours: rustls's own buffered one, and hellos written by hand.

#[path = "../drivers/bed.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod bed;
#[path = "../sessions/client.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod client;
mod drivers;
mod hostile;
mod http;
mod pair;
mod records;
mod reload;
mod sessions;
#[path = "../sessions/world.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
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
