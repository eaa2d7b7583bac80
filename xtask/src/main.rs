//! The project's own commands: `cargo xtask check`, `test`, `up` and `bench`.

mod bench;
mod check;
mod install;
mod janitor;
mod libtest;
mod process;
mod refuse;
mod servers;
mod test;
mod up;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// An error is a sentence for the person at the terminal; nothing here decides by its kind.
pub type Result<T> = std::result::Result<T, String>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, clippy, layers between the crates, and lengths of files and functions.
    Check(check::CheckOptions),
    /// Installs and starts the real servers, runs every test, stops what it started.
    Test(test::TestOptions),
    /// Starts Kafka, Redis and PostgreSQL for trying the separate roles by hand, until Ctrl-C.
    Up(up::UpOptions),
    /// Starts a program that the kernel refuses io_uring, as containers do.
    #[command(hide = true)]
    RefuseIoUring(refuse::RefuseOptions),
    /// Runs a benchmark; the last line printed is one JSON object.
    Bench(bench::BenchOptions),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check(options) => check::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Up(options) => up::run(&options),
        Command::RefuseIoUring(options) => refuse::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
