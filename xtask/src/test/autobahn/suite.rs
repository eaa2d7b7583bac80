//! The suite itself: found or fetched, and run against one address.

use super::{Outcome, Outcomes};
use crate::Result;
use crate::install::find;
use crate::janitor::Janitor;
use crate::process;
use crate::workspace::Workspace;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The last release; it never came to Python 3.
const VERSION: &str = "0.8.2";
const AGENT: &str = "echo";
/// A folder of packages becomes importable with its namespace packages only by `addsitedir`.
const START: &str =
    "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()";

/// A Python 2.7, and the folder with the suite's packages.
pub struct Suite {
    python: PathBuf,
    packages: PathBuf,
}

/// Why there is no suite.
pub enum Missing {
    /// This machine has not what it needs, or nothing may be fetched.
    Here(String),
    /// It should have worked.
    Failed(String),
}

impl Suite {
    /// Fetches the suite once into `servers` in cargo's target folder.
    pub fn find(workspace: &Workspace, may_install: bool) -> std::result::Result<Suite, Missing> {
        let python = pythons().into_iter().find(|python| is_2_7_with_pip(python));
        let python = python.ok_or_else(|| Missing::Here("no Python 2.7 with pip, which the suite needs".to_owned()))?;
        let cache = workspace.target.join("servers");
        let packages = cache.join(format!("autobahn-{VERSION}"));
        if !packages.join("complete").is_file() {
            if !may_install {
                return Err(Missing::Here("the suite is not installed, and --no-servers installs nothing".to_owned()));
            }
            install(&python, &cache, &packages).map_err(Missing::Failed)?;
        }
        Ok(Suite { python, packages })
    }

    /// Runs cases (`7.1.6`, `7.*`) and reads how they ended.
    pub fn run(&self, janitor: &Janitor, address: &str, cases: &[String], deadline: Instant) -> Result<Outcomes> {
        let failed = |error: std::io::Error| format!("the suite's folder: {error}");
        let folder = tempfile::tempdir_in(janitor.folder()).map_err(failed)?;
        let specification = serde_json::json!({
            "outdir": folder.path(),
            "servers": [{"agent": AGENT, "url": format!("{address}/v1/connect"), "protocols": ["roost.v1"]}],
            "options": {"openHandshakeTimeout": 30, "closeHandshakeTimeout": 30, "serverConnectionDropTimeout": 30},
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        });
        let file = folder.path().join("specification.json");
        std::fs::write(&file, specification.to_string()).map_err(failed)?;
        let mut command = Command::new(&self.python);
        command.args(["-c", START]).arg(&self.packages).args(["-m", "fuzzingclient", "-s"]).arg(&file);
        command.current_dir(folder.path());
        let mut told = Vec::new();
        let ended = process::run(janitor, &mut command, deadline, &mut |_, line| told.push(line.to_owned()))?;
        let report = std::fs::read(folder.path().join("index.json")).ok().filter(|_| ended.success);
        let report = report.ok_or_else(|| {
            let last = told.len().saturating_sub(20);
            format!("the suite ended with {} and no report:\n{}", ended.status, told[last..].join("\n"))
        })?;
        read(&report)
    }
}

#[derive(Deserialize)]
struct Case {
    behavior: String,
    #[serde(rename = "behaviorClose")]
    close: String,
}

fn read(report: &[u8]) -> Result<Outcomes> {
    let mut agents: BTreeMap<String, BTreeMap<String, Case>> =
        serde_json::from_slice(report).map_err(|error| format!("the suite's report: {error}"))?;
    let cases = agents.remove(AGENT).unwrap_or_default();
    let outcome = |(name, case): (String, Case)| {
        let number = name.split('.').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>();
        let number = number.map_err(|_| format!("the suite's report names a case {name}"))?;
        Ok((number, Outcome { behavior: case.behavior, close: case.close }))
    };
    cases.into_iter().map(outcome).collect()
}

/// On the search path, and among those that pyenv has built.
fn pythons() -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = root.into_iter().filter_map(|root| std::fs::read_dir(root.join("versions")).ok());
    let built = versions.flatten().flatten().map(|entry| entry.path().join("bin/python2.7"));
    find("python2.7").into_iter().chain(built.filter(|python| python.is_file())).collect()
}

/// One on the search path may be pyenv's stand-in for a version that is not chosen.
fn is_2_7_with_pip(python: &Path) -> bool {
    let probe = "import sys, pip; assert sys.version_info[:2] == (2, 7)";
    Command::new(python).args(["-c", probe]).output().is_ok_and(|output| output.status.success())
}

fn install(python: &Path, cache: &Path, packages: &Path) -> Result<()> {
    eprintln!("fetching the Autobahn suite {VERSION}");
    let failed = |error: std::io::Error| format!("{}: {error}", cache.display());
    std::fs::create_dir_all(cache).map_err(failed)?;
    let work = tempfile::tempdir_in(cache).map_err(failed)?;
    let fetched = work.path().join("packages");
    let output = Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
        .arg(&fetched)
        .arg(format!("autobahntestsuite=={VERSION}"))
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(format!("pip could not fetch the suite:\n{}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    std::fs::write(fetched.join("complete"), VERSION).map_err(failed)?;
    if packages.exists() {
        std::fs::remove_dir_all(packages).map_err(failed)?;
    }
    std::fs::rename(fetched, packages).map_err(failed)
}
