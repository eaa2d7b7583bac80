//! `cargo xtask up`: Kafka, Redis and PostgreSQL for trying the separate roles by hand, until Ctrl-C.

use crate::Result;
use crate::install::Tools;
use crate::janitor::Janitor;
use crate::servers::{Selection, Servers};
use crate::workspace::Workspace;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

#[derive(clap::Args)]
pub struct UpOptions {
    /// Start these roles too, e.g. gateway,persist,fanout,api.
    #[arg(long, value_delimiter = ',')]
    roles: Vec<String>,
    /// Use the release build of the program.
    #[arg(long)]
    release: bool,
}

const ROLES: [&str; 4] = ["gateway", "persist", "fanout", "api"];

/// Ctrl-C ends this process; the janitor stops the rest.
pub fn run(options: &UpOptions) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let program = build(&workspace, options.release)?;
    let tools = Tools::ensure(&workspace)?;
    let janitor = Janitor::start()?;
    let logs = janitor.folder().join("logs");
    let servers = Servers::start(&janitor, &tools, &Selection::all(), &logs)?;
    let addresses = addresses(&servers);
    let mut migrate = Command::new(&program);
    migrate.arg("migrate").envs(&addresses);
    let status = migrate.status().map_err(|error| format!("{}: {error}", program.display()))?;
    if !status.success() {
        return Err(format!("roost migrate: {status}"));
    }
    print_commands(&program, &addresses, &logs);
    let mut children = Vec::new();
    for role in &options.roles {
        let mut command = Command::new(&program);
        command.arg(role).envs(&addresses).stdin(Stdio::null());
        children.push((role, janitor.spawn(&mut command, "TERM")?));
    }
    loop {
        for (role, child) in &mut children {
            if let Some(status) = child.try_wait().map_err(|error| format!("{role}: {error}"))? {
                return Err(format!("roost {role} has ended: {status}"));
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The program's settings that name the servers.
fn addresses(servers: &Servers) -> BTreeMap<&'static str, String> {
    let renamed = servers.environment().into_iter().filter_map(|(name, value)| match name {
        "ROOST_TEST_KAFKA" => Some(("ROOST_LOG", format!("kafka://{value}"))),
        "ROOST_TEST_REDIS" => Some(("ROOST_REGISTRY", value)),
        "ROOST_TEST_POSTGRES" => Some(("ROOST_STORE", value)),
        _ => None,
    });
    renamed.collect()
}

fn print_commands(program: &Path, addresses: &BTreeMap<&str, String>, logs: &Path) {
    println!("\nThe servers run and the store is migrated. In another terminal:\n");
    for (name, value) in addresses {
        println!("export {name}={value}");
    }
    for role in ROLES {
        println!("{} {role}", program.display());
    }
    println!("\nLogs: {}. Ctrl-C stops everything and removes the data.", logs.display());
}

fn build(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "-p", "roost"]);
    if release {
        cargo.arg("--release");
    }
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err("the build failed".to_owned());
    }
    Ok(workspace.target.join(if release { "release" } else { "debug" }).join("roost"))
}
