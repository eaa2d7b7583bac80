//! The program `roost`: everything in one process, or one role of it.

mod chat;
mod cli;
mod compose;
mod config;
mod doctor;
mod roles;
mod stop;
mod takeover;
mod tls;
mod workers;

use std::process::ExitCode;

use crate::cli::{Command, CommonArgs, LogFormat};

#[cfg(not(feature = "system-allocator"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match config::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(config::ConfigError::CommandLine(error)) => {
            // clap's own words, colours and exit code, for --help too.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(error) => {
            eprintln!("roost: {error}");
            return ExitCode::from(2);
        }
    };
    let mut common = cli.common;
    if matches!(cli.command, Command::Chat(_)) && common.log_level == "info" {
        // The chat's own lines say what a person needs.
        common.log_level = "off".into();
    }
    if let Err(error) = start_logging(&common) {
        eprintln!("roost: {error}");
        return ExitCode::from(2);
    }
    raise_descriptor_limit();
    // Fail points are configured from the environment, where this build has them: crash tests need them.
    let _fail_points = fail::FailScenario::setup();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = runtime_threads(&cli.command) {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("roost: the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(cli.command));
    // What still blocks (a client library on its way down) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("roost: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// A role alone has one thread for every two cores: what goes on there is small and comes in turns, and a thread more
/// is woken for nothing most of the time. None is tokio's own choice.
fn runtime_threads(command: &Command) -> Option<usize> {
    let alone = matches!(command, Command::Gateway(_) | Command::Persist(_) | Command::Fanout(_));
    alone.then(|| std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)))
}

/// Systems give a process few descriptors and let it have many: every session without io_uring takes one.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}

async fn run(command: Command) -> Result<(), compose::Problem> {
    match command {
        Command::Serve(args) => roles::serve(&args).await,
        Command::Gateway(args) => roles::gateway(&args).await,
        Command::Persist(args) => roles::persist(&args).await,
        Command::Fanout(args) => roles::fanout(&args).await,
        Command::Api(args) => roles::api(&args).await,
        Command::Migrate(args) => roles::migrate(&args).await,
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Chat(args) => chat::run(&args).await,
    }
}

/// Logs go to standard error: standard output belongs to what a command prints.
fn start_logging(common: &CommonArgs) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&common.log_level)
        .map_err(|error| format!("log-level {:?} is not a filter: {error}", common.log_level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match common.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
