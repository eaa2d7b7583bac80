//! `cargo xtask bench NAME`: the release build of the program, measured with its own servers.

use crate::Result;
use crate::install::Tools;
use crate::janitor::Janitor;
use crate::servers::{Selection, Servers};
use crate::workspace::Workspace;
use std::process::{ExitCode, Stdio};

#[derive(clap::Args)]
pub struct BenchOptions {
    /// Which bench: durable, start, idle, deliver, ping, group, storm, million.
    name: String,
    /// Handed on to the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// From this many cores on, servers and load have two each; below, nobody is pinned.
const CORES_TO_PIN: usize = 4;
const SERVER_CORES: &str = "0,1";
const LOAD_CORES: &str = "2,3";
/// Benches of one process, which need none of the servers.
const EMBEDDED_ONLY: [&str; 7] = ["start", "idle", "deliver", "ping", "group", "storm", "million"];

/// Everything but the bench's own output goes to standard error: its last line is for machines.
pub fn run(options: &BenchOptions) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    build(&workspace)?;
    let janitor = Janitor::start()?;
    let pinned = std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= CORES_TO_PIN);
    let release = workspace.target.join("release");
    let mut command = std::process::Command::new(release.join("roost-bench"));
    command.arg(&options.name).args(&options.arguments).current_dir(&workspace.root).stdin(Stdio::null());
    command.env("ROOST_BENCH_BIN", release.join("roost")).env("ROOST_BENCH_COMMIT", commit(&workspace));
    if pinned {
        command.env("ROOST_BENCH_SERVER_CPUS", SERVER_CORES).env("ROOST_BENCH_LOAD_CPUS", LOAD_CORES);
    }
    let mut servers = None;
    if !EMBEDDED_ONLY.contains(&options.name.as_str()) {
        let tools = Tools::ensure(&workspace)?;
        let cores = pinned.then(|| SERVER_CORES.to_owned());
        let selection = Selection { cores, for_measuring: true, ..Selection::all() };
        let logs = workspace.target.join("bench-logs");
        let started = servers.insert(Servers::start(&janitor, &tools, &selection, &logs)?);
        command.envs(started.environment()).env("ROOST_BENCH_SERVER_PIDS", started.process_ids());
    }
    let mut child = janitor.spawn(&mut command, "KILL")?;
    let status = child.wait().map_err(|error| format!("roost-bench: {error}"))?;
    janitor.forget(child.id());
    drop(servers);
    if !status.success() {
        eprintln!("roost-bench: {status}");
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "-p", "roost", "-p", "roost-benches"]);
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err("the release build failed".to_owned()) }
}

/// What is built, for the figures; with a mark where files differ from it.
fn commit(workspace: &Workspace) -> String {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude=*"]).current_dir(&workspace.root);
    let output = git.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
