//! What an idle session costs with TLS and without it, in a process in which nothing else runs. The clients keep nothing
//! but their sockets; what the test's own ports keep of a session is counted too.

#[path = "../sessions/client.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod client;
#[path = "../tls/pair.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod pair;
#[path = "../sessions/world.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod world;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use pair::{Pair, dial};
use roost_gateway::Config;
use roost_protocol::frames::Form;
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The goal for one idle session with TLS.
const TLS_BYTES_MAX: usize = 6_144;
/// Sessions that are there before anything is measured, and those that are measured.
const BEFORE: usize = 1_000;
const MEASURED: usize = 4_000;
const AT_ONCE: usize = 8;
const FIGURE: &str = "bytes per idle session: ";

fn anonymous_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it is told");
    line.trim_end_matches("kB").trim().parse::<usize>().expect("a number") * 1_024
}

async fn connect(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> std::net::TcpStream {
    match tls {
        None => Client::connect(address, Form::Binary).await.socket.into_inner().into_std().unwrap(),
        Some(tls) => {
            let stream = dial(tls, address).await;
            let client = Client::connect_over(stream, address, Form::Binary).await;
            client.socket.into_inner().into_inner().0.into_std().unwrap()
        }
    }
}

async fn connect_many(address: SocketAddr, count: usize, tls: Option<&Arc<ClientConfig>>) -> Vec<std::net::TcpStream> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let several = (0..AT_ONCE).map(|_| connect(address, tls.cloned()));
        sockets.extend(futures::future::join_all(several).await);
    }
    sockets
}

async fn bytes_per_session(config: Config, tls: Option<Arc<ClientConfig>>) -> usize {
    let world = World::new();
    let gateway = world.start(config).await;
    let before = connect_many(gateway.address(), BEFORE, tls.as_ref()).await;
    let settle = || tokio::time::sleep(Duration::from_millis(300));
    settle().await;
    let bytes_before = anonymous_bytes();
    let measured = connect_many(gateway.address(), MEASURED, tls.as_ref()).await;
    settle().await;
    let bytes = anonymous_bytes().saturating_sub(bytes_before) / MEASURED;
    assert_eq!(gateway.sessions(), before.len() + measured.len());
    gateway.stop().await;
    bytes
}

fn quiet(mut config: Config) -> Config {
    config.shards = 1;
    config.timings.ping_ms = 600_000;
    config.handshakes_per_second = 0;
    config.lease_ttl_ms = 10_000;
    config
}

/// Run by the other test, in a process for each case: memory that one case has used is no longer new to the next.
#[tokio::test]
#[ignore = "the other test runs it"]
async fn measure() {
    let pair = Pair::new();
    let version = match std::env::var("ROOST_TEST_TLS").as_deref() {
        Ok("1.3") => Some(&TLS13),
        Ok("1.2") => Some(&TLS12),
        _ => None,
    };
    let bytes = match version {
        Some(version) => bytes_per_session(quiet(pair.config()), Some(Arc::new(pair.trusting(&[version])))).await,
        None => bytes_per_session(quiet(World::config()), None).await,
    };
    println!("\n{FIGURE}{bytes}");
}

#[test]
fn an_idle_session_costs_little_with_tls_too() {
    for version in ["none", "1.3", "1.2"] {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "measure", "--ignored", "--nocapture"]).env("ROOST_TEST_TLS", version);
        let output = process.output().expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        let bytes = printed.lines().find_map(|line| line.strip_prefix(FIGURE)).expect("a figure");
        println!("TLS {version}: {bytes} bytes per idle session");
        assert!(bytes.parse::<usize>().unwrap() <= TLS_BYTES_MAX, "TLS {version}: {bytes} bytes per idle session");
    }
}
