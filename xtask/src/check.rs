//! `cargo xtask check`: what a machine can say about the code without running it.

pub mod layers;
pub mod lengths;
mod scan;

use crate::Result;
use crate::janitor::Janitor;
use crate::libtest::Tally;
use crate::process;
use crate::workspace::{Package, Workspace};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct CheckOptions {
    /// Rewrite the ratchet of file and function lengths to what is there now.
    #[arg(long)]
    bless: bool,
}

/// The features that every build of the whole workspace has, so that nothing is compiled in two variants.
pub const FEATURES: &str = "roost/failpoints";

pub fn run(options: &CheckOptions) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    if options.bless {
        let (present, _) = lengths::measure(&workspace.root)?;
        for line in lengths::growth(&lengths::load(&workspace.root)?, &present) {
            println!("raised: {line}");
        }
        lengths::bless(&workspace.root, &present)?;
    }
    let janitor = Janitor::start()?;
    let tally = check(&workspace, &janitor, Instant::now() + LIMIT);
    println!("{}", tally.last_line());
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every check counts as one test. A failing one does not stop the others.
pub fn check(workspace: &Workspace, janitor: &Janitor, deadline: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut record = |name: &str, outcome: Result<()>| match outcome {
        Ok(()) => {
            println!("check {name} ... ok");
            tally.passed += 1;
        }
        Err(message) => {
            println!("check {name} ... FAILED\n{message}");
            tally.fail(format!("check {name}"));
        }
    };
    record("layers", listed(layers::violations(workspace)));
    record("lints", listed(packages_without_lints(workspace)));
    let (growth, unsafe_places) = length_findings(workspace);
    record("lengths", growth);
    record("unsafe", unsafe_places);
    record("format", cargo(workspace, janitor, deadline, &["fmt", "--all", "--", "--check"]));
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"];
    record("clippy", cargo(workspace, janitor, deadline, &clippy));
    tally
}

const LIMIT: Duration = Duration::from_secs(30 * 60);

fn listed(found: Vec<String>) -> Result<()> {
    if found.is_empty() { Ok(()) } else { Err(format!("  {}", found.join("\n  "))) }
}

fn length_findings(workspace: &Workspace) -> (Result<()>, Result<()>) {
    let measured = lengths::load(&workspace.root).and_then(|ratchet| Ok((ratchet, lengths::measure(&workspace.root)?)));
    let (ratchet, (present, unsafe_places)) = match measured {
        Ok(measured) => measured,
        Err(message) => return (Err(message), Ok(())),
    };
    for (name, lines) in present.files.iter().chain(&present.functions) {
        println!("long: {name}: {lines} lines");
    }
    if ratchet != present && lengths::growth(&ratchet, &present).is_empty() {
        println!("the ratchet can be tightened: cargo xtask check --bless");
    }
    (listed(lengths::growth(&ratchet, &present)), listed(unsafe_places))
}

/// Lints, `unsafe_code = "deny"` first of all, stand in the workspace and hold for a package only if it says so.
fn packages_without_lints(workspace: &Workspace) -> Vec<String> {
    let inherits = |package: &Package| {
        let text = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
        let manifest: toml::Table = text.parse().unwrap_or_default();
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        lints.and_then(toml::Value::as_bool) == Some(true)
    };
    let without = workspace.packages.iter().filter(|package| !inherits(package));
    without.map(|package| format!("{}: [lints] workspace = true is missing", package.name)).collect()
}

fn cargo(workspace: &Workspace, janitor: &Janitor, deadline: Instant, arguments: &[&str]) -> Result<()> {
    let mut lines = 0_usize;
    let mut show = |_, line: &str| {
        lines += 1;
        println!("{line}");
    };
    let ended = process::run(janitor, workspace.cargo().args(arguments), deadline, &mut show)?;
    match (ended.success, ended.timed_out) {
        (true, _) => Ok(()),
        (_, true) => Err(format!("cargo {} was stopped at its time limit", arguments[0])),
        _ => Err(format!("cargo {}: {}, {lines} lines above", arguments[0], ended.status)),
    }
}
