//! The program behind `cargo xtask bench`: its own load against Roost's own processes, and one JSON object at the end.

mod client;
mod compare;
mod cpu;
mod crowd;
mod deliver;
mod durable;
mod fleet;
mod group;
mod idle;
mod installation;
mod load;
mod machine;
mod million;
mod ping;
mod reference;
mod seed;
mod start;
mod storm;
mod target;

use std::future::Future;

use clap::{Parser, Subcommand};
use serde_json::Value;

/// The references have the product's allocator, so that they differ in what they do.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A figure that could not be measured says why; nothing here decides by the kind of an error.
pub type Result<T> = std::result::Result<T, Failure>;

/// Whatever went wrong, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(name = "roost-bench", about = "Load and figures; run it by `cargo xtask bench NAME`")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Committed messages: latencies and CPU at a fixed rate, and the most per second.
    Durable(durable::Options),
    /// From the start of the process to the first accepted session, and memory at rest.
    Start(start::Options),
    /// Memory and CPU of idle sessions.
    Idle(idle::Options),
    /// CPU of a delivery.
    Deliver(deliver::Options),
    /// CPU of a client's frame and its answer.
    Ping(ping::Options),
    /// One message to the largest group.
    Group(group::Options),
    /// All connections cut at once.
    Storm(storm::Options),
    /// As many sessions as the machine holds.
    Million(million::Options),
    /// Internal: clients of the benches above, in a process of their own.
    #[command(hide = true)]
    Crowd(crowd::Options),
    /// Internal: a server to compare with, in a process of its own.
    #[command(hide = true)]
    Reference(reference::Options),
}

fn main() -> Result<()> {
    let figures = match Arguments::parse().bench {
        // Whoever started them has put them on their cores.
        Bench::Crowd(options) => return crowd::run(options),
        Bench::Reference(options) => return reference::serve(&options),
        Bench::Durable(options) => measure(durable::run(&options)),
        Bench::Start(options) => measure(start::run(&options)),
        Bench::Idle(options) => measure(idle::run(&options)),
        Bench::Deliver(options) => measure(deliver::run(&options)),
        Bench::Ping(options) => measure(ping::run(&options)),
        Bench::Group(options) => measure(group::run(&options)),
        Bench::Storm(options) => measure(storm::run(&options)),
        Bench::Million(options) => measure(million::run(&options)),
    }?;
    println!("{figures}");
    Ok(())
}

fn measure(bench: impl Future<Output = Result<Value>>) -> Result<Value> {
    machine::pin_load();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(bench)
}
