//! The gateway's own suite runs once on each driver, and once more where the kernel refuses io_uring (F34).

use super::build::Program;
use super::echo::{Echo, Started};
use crate::janitor::Janitor;
use crate::refuse;
use std::path::Path;
use std::process::Command;

/// One way to run a test program.
pub struct Variant {
    /// Behind the program's title.
    pub title: &'static str,
    /// What the suite is told; None for programs that know nothing of drivers.
    io: Option<&'static str>,
    refused: bool,
}

const PLAIN: [Variant; 1] = [Variant { title: "", io: None, refused: false }];
const EACH: [Variant; 3] = [
    Variant { title: " on the portable driver", io: Some("portable"), refused: false },
    Variant { title: " on io_uring", io: Some("uring"), refused: false },
    Variant { title: " with io_uring refused", io: Some("auto"), refused: true },
];

/// These choose their drivers themselves (`descriptors` is about a limit that only the portable one has), or are about
/// nothing that a driver does.
const ONCE: [&str; 3] = ["descriptors", "drivers", "tls_memory"];

/// The ways to run a program.
pub fn variants(program: &Program) -> &'static [Variant] {
    let suite = program.package == "roost-gateway" && program.is_integration();
    if suite && !ONCE.contains(&program.name()) { &EACH } else { &PLAIN }
}

impl Variant {
    /// Why this machine cannot run it.
    pub fn obstacle(&self, janitor: &Janitor, echo: Option<&Path>) -> Option<String> {
        if self.io == Some("uring") {
            let Some(echo) = echo else { return Some("the build made no example `echo`".to_owned()) };
            return match Echo::start(janitor, echo, &["uring"]) {
                Ok(Started::Runs(_)) => None,
                Ok(Started::Refused(reason)) => Some(reason),
                Err(message) => Some(message),
            };
        }
        (self.refused && cfg!(not(target_os = "linux"))).then(|| "only Linux has io_uring".to_owned())
    }

    /// The command that runs it so.
    pub fn command(&self, program: &Program) -> Command {
        let mut command = if self.refused {
            let mut command = Command::new(refuse::own_program());
            command.args(refuse::COMMAND).arg(&program.executable).env("ROOST_TEST_IO_URING_REFUSED", "1");
            command
        } else {
            Command::new(&program.executable)
        };
        if let Some(io) = self.io {
            command.env("ROOST_TEST_IO", io);
        }
        command
    }
}
