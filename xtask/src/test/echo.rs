//! The gateway's example `echo`, running on one driver.

use crate::Result;
use crate::janitor::{Janitor, signal_group};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running echo, stopped when it is dropped.
pub struct Echo<'a> {
    janitor: &'a Janitor,
    child: Child,
    /// With its scheme.
    pub address: String,
}

/// What starting it came to.
pub enum Started<'a> {
    Runs(Echo<'a>),
    /// This machine refuses the driver; why, in words.
    Refused(String),
}

impl<'a> Echo<'a> {
    /// The words are the driver's name, and `tls`.
    pub fn start(janitor: &'a Janitor, program: &Path, words: &[&str]) -> Result<Started<'a>> {
        let child = janitor.spawn(Command::new(program).args(words).stdout(Stdio::piped()), "KILL")?;
        let mut echo = Echo { janitor, child, address: String::new() };
        let mut line = String::new();
        if let Some(output) = echo.child.stdout.take() {
            BufReader::new(output).read_line(&mut line).map_err(|error| format!("the echo: {error}"))?;
        }
        match line.trim().split_once("refused: ") {
            Some((_, reason)) => Ok(Started::Refused(reason.to_owned())),
            None if line.trim().is_empty() => Err("the echo says no address".to_owned()),
            None => {
                line.trim().clone_into(&mut echo.address);
                Ok(Started::Runs(echo))
            }
        }
    }
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        signal_group(self.child.id(), "KILL");
        let _ = self.child.wait();
        self.janitor.forget(self.child.id());
    }
}
