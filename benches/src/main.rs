//! The program behind `cargo xtask bench`: its own load against Roost's own processes, and one JSON object at the end.

mod client;
mod cpu;
mod durable;
mod installation;
mod load;
mod machine;
mod reference;
mod seed;
mod start;

use clap::{Parser, Subcommand};

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
}

fn main() -> Result<()> {
    machine::pin_load();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let figures = match Arguments::parse().bench {
        Bench::Durable(options) => runtime.block_on(durable::run(&options))?,
        Bench::Start(options) => runtime.block_on(start::run(&options))?,
    };
    println!("{figures}");
    Ok(())
}
