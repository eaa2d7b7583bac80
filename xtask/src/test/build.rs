//! Builds everything a run needs in one cargo call, and finds out what it made.

use super::plan::Plan;
use crate::Result;
use crate::janitor::Janitor;
use crate::process::{self, Output};
use crate::workspace::Workspace;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Instant;

/// One test program.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    pub package: String,
    pub version: String,
    /// The package's folder, in which cargo runs its tests.
    pub folder: PathBuf,
    /// "lib", "bin", or "test".
    kind: String,
    name: String,
    pub executable: PathBuf,
}

impl Program {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Not a package's own unit tests.
    pub fn is_integration(&self) -> bool {
        self.kind == "test"
    }

    pub fn title(&self) -> String {
        format!("{} ({} {})", self.package, self.kind, self.name)
    }
}

/// What the build made.
#[derive(Debug, Default)]
pub struct Built {
    /// In the order of running: by package, a package's unit tests first.
    pub programs: Vec<Program>,
    /// The program `roost`, if it was covered.
    pub roost: Option<PathBuf>,
    /// The gateway's example `echo`, if it was covered.
    pub echo: Option<PathBuf>,
}

/// Builds, printing cargo's messages.
pub fn build(workspace: &Workspace, janitor: &Janitor, plan: &Plan, deadline: Instant) -> Result<Built> {
    let mut command = workspace.cargo();
    command.arg("build").args(plan.selection()).args(["--all-targets", "--message-format=json-render-diagnostics"]);
    let mut built = Built::default();
    let ended = process::run(janitor, &mut command, deadline, &mut |output, line| match output {
        Output::Standard => built.take(workspace, line),
        Output::Error => eprintln!("{line}"),
    })?;
    if ended.timed_out {
        return Err("the build was stopped at its time limit".to_owned());
    }
    if !ended.success {
        return Err("the build failed".to_owned());
    }
    built.programs.sort_by(|a, b| (&a.package, &a.kind, &a.name).cmp(&(&b.package, &b.kind, &b.name)));
    Ok(built)
}

#[derive(Deserialize)]
struct Artifact {
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Built {
    fn take(&mut self, workspace: &Workspace, line: &str) {
        // Other messages have other fields, or no executable.
        let Ok(Artifact { manifest_path, target, profile, executable: Some(executable) }) = serde_json::from_str(line)
        else {
            return;
        };
        let Some(package) = workspace.packages.iter().find(|package| package.manifest_path == manifest_path) else {
            return;
        };
        let kind = target.kind.first().cloned().unwrap_or_default();
        if !profile.test {
            match (kind.as_str(), target.name.as_str()) {
                ("bin", "roost") => self.roost = Some(executable),
                ("example", "echo") => self.echo = Some(executable),
                _ => {}
            }
            return;
        }
        if matches!(kind.as_str(), "bench" | "example") {
            return;
        }
        self.programs.push(Program {
            package: package.name.clone(),
            version: package.version.clone(),
            folder: package.folder().to_owned(),
            kind,
            name: target.name,
            executable,
        });
    }
}
