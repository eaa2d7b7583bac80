//! The program `roost-swarm`: seeds an installation, and lets many sessions loose on it from several processes.

mod children;
mod cli;
mod client;
mod clock;
mod control;
mod figures;
mod memory;
mod plan;
mod plot;
mod report;
mod results;
mod seed;
mod setup;
mod task;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// A run that fails says why; nothing here decides by the kind of an error.
pub type Result<T> = std::result::Result<T, Failure>;

/// Whatever went wrong, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Child => client::run(),
        Command::Seed(options) => on_runtime(seed::run(&options)),
        Command::Tokens(options) => plan::print_tokens(&options),
        Command::Run(scenario) => on_runtime(control::run(scenario)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roost-swarm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn on_runtime(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}
