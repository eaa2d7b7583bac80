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
    /// Leave the program out: only the servers, and the variables by which single tests find them.
    #[arg(long, conflicts_with_all = ["roles", "release"])]
    servers_only: bool,
    /// Use the release build of the program.
    #[arg(long)]
    release: bool,
}

const ROLES: [&str; 4] = ["gateway", "persist", "fanout", "api"];

/// Ctrl-C ends this process; the janitor stops the rest.
pub fn run(options: &UpOptions) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let program = if options.servers_only { None } else { Some(build(&workspace, options.release)?) };
    let tools = Tools::ensure(&workspace)?;
    let janitor = Janitor::start()?;
    let logs = janitor.folder().join("logs");
    let servers = Servers::start(&janitor, &tools, &Selection::all(), &logs)?;
    let mut children = Vec::new();
    if let Some(program) = program {
        let addresses = addresses(&servers);
        migrate(&program, &addresses)?;
        println!("\nThe servers run and the store is migrated. In another terminal:\n");
        print_exports(addresses.iter().map(|(name, value)| (*name, value.as_str())));
        for role in ROLES {
            println!("{} {role}", program.display());
        }
        for role in &options.roles {
            let mut command = Command::new(&program);
            command.arg(role).envs(&addresses).stdin(Stdio::null());
            children.push((role, janitor.spawn(&mut command, "TERM")?));
        }
    } else {
        println!("\nThe servers run. In another terminal, before cargo test:\n");
        let python = tools.python.display().to_string();
        let environment = servers.environment();
        print_exports(environment.iter().map(|(name, value)| (*name, value.as_str())));
        print_exports([("ROOST_TEST_PYTHON", python.as_str()), ("ROOST_REQUIRE_SERVERS", "1")].into_iter());
    }
    println!("\nLogs: {}. Ctrl-C stops everything and removes the data.", logs.display());
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

fn migrate(program: &Path, addresses: &BTreeMap<&str, String>) -> Result<()> {
    let status = Command::new(program).arg("migrate").envs(addresses).status();
    let status = status.map_err(|error| format!("{}: {error}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("roost migrate: {status}")) }
}

fn print_exports<'a>(variables: impl Iterator<Item = (&'a str, &'a str)>) {
    for (name, value) in variables {
        println!("export {name}={value}");
    }
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
