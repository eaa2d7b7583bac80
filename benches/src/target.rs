//! What a bench measures: the product or a reference, each in a process of its own on the servers' cores.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};

use crate::installation::{Composition, Installation, Setup};
use crate::machine::server_command;
use crate::reference::{Kind, Mode};
use crate::{Result, cpu};

/// How the product is started.
#[derive(Args, Clone)]
pub struct ServerOptions {
    /// The driver: auto, uring or portable; absent leaves it to the program.
    #[arg(long)]
    pub io: Option<String>,
    /// Threads that hold sessions; absent leaves it to the program, or to the bench where it needs many.
    #[arg(long)]
    pub shards: Option<usize>,
}

impl ServerOptions {
    /// More of the command line of `roost serve`. All of the load comes from a few addresses, as no clients do.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--connections-per-address-max".to_owned(), "0".to_owned()];
        arguments.extend(self.io.iter().flat_map(|io| ["--io".to_owned(), io.clone()]));
        arguments.extend(self.shards.iter().flat_map(|shards| ["--shards".to_owned(), shards.to_string()]));
        arguments
    }
}

/// For benches that do not ask how many may come at once.
pub fn without_waiting(mut arguments: Vec<String>) -> Vec<String> {
    arguments.extend(["--handshakes-per-second".to_owned(), "0".to_owned()]);
    arguments
}

/// A server under measurement. Dropping it ends its process.
pub enum Target {
    /// Roost, embedded.
    Product(Box<Installation>),
    /// What it is compared with.
    Reference(Box<Reference>),
}

/// A reference that runs.
pub struct Reference {
    child: Child,
    address: SocketAddr,
    /// Its end ends the process, if nothing else does.
    _stdin: ChildStdin,
}

impl Target {
    /// The product, embedded.
    pub async fn product(setup: Setup) -> Result<Self> {
        Ok(Self::Product(Box::new(Installation::start(Composition::Embedded, setup).await?)))
    }

    /// A reference.
    pub async fn reference(kind: Kind, mode: Mode, threads: usize) -> Result<Self> {
        let name = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
        let mut command = server_command(&std::env::current_exe()?);
        command.arg("reference").args(name(kind.to_possible_value())).args(name(mode.to_possible_value()));
        command.args(["--threads", &threads.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
        let address = line.as_deref().and_then(|line| line.strip_prefix("listening "));
        let address = address.ok_or_else(|| format!("the {kind:?} reference did not start"))?.parse()?;
        let stdin = child.stdin.take().ok_or("no input")?;
        Ok(Self::Reference(Box::new(Reference { child, address, _stdin: stdin })))
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        match self {
            Self::Product(installation) => Ok(installation.address.parse()?),
            Self::Reference(reference) => Ok(reference.address),
        }
    }

    /// The product's users; a reference knows none.
    pub fn plan_file(&self) -> Option<&Path> {
        match self {
            Self::Product(installation) => Some(&installation.plan_file),
            Self::Reference(_) => None,
        }
    }

    /// Whom clients are to trust; absent where plaintext is spoken.
    pub fn certificate(&self) -> Option<&Path> {
        match self {
            Self::Product(installation) => installation.certificate.as_deref(),
            Self::Reference(_) => None,
        }
    }

    /// A group that the product was set up with; a reference takes any.
    pub fn group(&self, number: usize) -> String {
        match self {
            Self::Product(installation) => installation.groups[number].to_string(),
            Self::Reference(_) => roost_protocol::ConversationId::new().to_string(),
        }
    }

    /// Its process.
    pub fn process(&self) -> Result<u32> {
        let process = match self {
            Self::Product(installation) => installation.own_processes().first().copied(),
            Self::Reference(reference) => reference.child.id(),
        };
        process.ok_or_else(|| "a server has ended".into())
    }

    /// CPU that it has used so far.
    pub fn cpu_nanos(&self) -> Result<u64> {
        cpu::process_nanos(self.process()?)
    }

    /// Which driver holds its sessions, seen from outside: an io_uring is a descriptor of the process.
    pub fn driver(&self) -> Result<&'static str> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.process()?))?;
        let rings = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let uring = rings.into_iter().any(|link| link.to_string_lossy().contains("io_uring"));
        Ok(if uring { "uring" } else { "portable" })
    }
}
