//! Starts a program that the kernel refuses io_uring, as containers' seccomp profiles do.

use crate::Result;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct RefuseOptions {
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The command by which this program starts another without io_uring; the other's own words follow.
pub const COMMAND: [&str; 2] = ["refuse-io-uring", "--"];

/// This program's file, for whoever starts it again while it runs. Not by its name: cargo may have built it anew under
/// the same name meanwhile.
pub fn own_program() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}

/// Becomes the program. Returns only if that fails.
pub fn run(options: &RefuseOptions) -> Result<std::process::ExitCode> {
    refuse()?;
    let (program, arguments) = options.command.split_first().ok_or("no program is named")?;
    let error = std::os::unix::process::CommandExt::exec(std::process::Command::new(program).args(arguments));
    Err(format!("{}: {error}", program.display()))
}

#[cfg(target_os = "linux")]
fn refuse() -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    // Without a condition: whatever its arguments are.
    let rules = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let said = |error: &dyn std::fmt::Display| format!("the filter against io_uring: {error}");
    let machine = std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| said(&error))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, machine).map_err(|error| said(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| said(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| said(&error))
}

#[cfg(not(target_os = "linux"))]
fn refuse() -> Result<()> {
    Err("io_uring is Linux's".to_owned())
}
