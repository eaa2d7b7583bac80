//! Roost in one of its two compositions, behind one interface, so that the same test bodies run on both.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_postgres::PostgresStore;
use tempfile::TempDir;

use crate::process::Process;
use crate::servers::{Kind, Manifest, Server};

/// Which composition a test runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Composition {
    /// Everything in one process.
    Embedded,
    /// Separate roles over the run's shared servers.
    Distributed,
    /// Separate roles over servers of this test's own, which it may kill.
    DistributedOnPrivateServers,
}

/// The servers of a test that has its own.
pub struct PrivateServers {
    /// The log.
    pub kafka: Server,
    /// The registry.
    pub redis: Server,
    /// The store.
    pub postgres: Server,
}

/// A running installation.
pub struct Cluster {
    /// What holds the sessions: the gateway, or the whole program where it is embedded.
    pub gateways: Vec<Process>,
    /// The persist workers; none where it is embedded.
    pub persist: Vec<Process>,
    /// The fan-out workers; none where it is embedded.
    pub fanout: Vec<Process>,
    /// REST; absent where it is embedded.
    pub api: Option<Process>,
    /// The test's own servers, where it has them.
    pub servers: Option<PrivateServers>,
    settings: Vec<String>,
    data: TempDir,
}

/// How what holds the sessions is set up.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    /// Gateways can be taken over by their successors.
    pub takeover: bool,
    /// How long a stop may take.
    pub grace_ms: u64,
    /// How long the registry remembers one that is silent.
    pub lease_ms: u64,
    /// Says how each connection ended.
    pub verbose: bool,
}

impl Default for Holders {
    fn default() -> Self {
        Self { takeover: false, grace_ms: 8_000, lease_ms: 10_000, verbose: false }
    }
}

impl Holders {
    fn arguments(&self) -> Vec<String> {
        let level = if self.verbose { "info,roost_gateway=debug" } else { "info" };
        let (grace, lease) = (self.grace_ms.to_string(), self.lease_ms.to_string());
        ["--grace-ms", &grace, "--lease-ms", &lease, "--log-level", level].map(str::to_owned).to_vec()
    }
}

/// How many processes of each role a distributed cluster has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Gateways.
    pub gateways: usize,
    /// Persist workers.
    pub persist: usize,
    /// Fan-out workers.
    pub fanout: usize,
}

impl Size {
    /// One of each.
    pub const ONE: Size = Size { gateways: 1, persist: 1, fanout: 1 };
    /// Two of each.
    pub const TWO: Size = Size { gateways: 2, persist: 2, fanout: 2 };
}

impl Cluster {
    /// Starts it and waits until every part is ready.
    pub async fn start(composition: Composition, size: Size) -> Self {
        Self::start_with(composition, size, Holders::default()).await
    }

    /// The same with holders of sessions that are set up otherwise.
    pub async fn start_with(composition: Composition, size: Size, holders: Holders) -> Self {
        // What is left of a failure can be looked at with ROOST_TEST_KEEP=1.
        let keep = std::env::var_os("ROOST_TEST_KEEP").is_some();
        let data = tempfile::Builder::new().disable_cleanup(keep).tempdir().expect("a data folder");
        match composition {
            Composition::Embedded => Self::embedded(data, holders, Vec::new()).await,
            Composition::Distributed => {
                let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
                let (kafka, redis) = (variable("ROOST_TEST_KAFKA"), variable("ROOST_TEST_REDIS"));
                let postgres = variable("ROOST_TEST_POSTGRES");
                Self::distributed(data, (size, holders), (&kafka, &redis, &postgres), None).await
            }
            Composition::DistributedOnPrivateServers => {
                let manifest = Manifest::read();
                let (kafka, redis, postgres) = tokio::join!(
                    Server::start(Kind::Kafka, &manifest),
                    Server::start(Kind::Redis, &manifest),
                    Server::start(Kind::Postgres, &manifest)
                );
                let (log, registry) = (kafka.address(), format!("redis://{}", redis.address()));
                let store = format!("postgres://postgres@{}/postgres", postgres.address());
                let servers = PrivateServers { kafka, redis, postgres };
                Self::distributed(data, (size, holders), (&log, &registry, &store), Some(servers)).await
            }
        }
    }

    /// Everything in one process, which a launcher starts.
    pub async fn embedded_by(launcher: Vec<OsString>) -> Self {
        Self::embedded(tempfile::tempdir().expect("a data folder"), Holders::default(), launcher).await
    }

    async fn embedded(data: TempDir, holders: Holders, launcher: Vec<OsString>) -> Self {
        let folder = data.path().display().to_string();
        let settings = vec!["--data".to_owned(), folder];
        let port = crate::process::free_port();
        let listen = format!("127.0.0.1:{port}");
        let more = holders.arguments();
        let mut arguments = vec!["serve", "--listen", &listen, &settings[0], &settings[1]];
        arguments.extend(more.iter().map(String::as_str));
        let gateway = Process::start_by(launcher, "serve", &arguments).await;
        Self {
            gateways: vec![gateway],
            persist: Vec::new(),
            fanout: Vec::new(),
            api: None,
            servers: None,
            settings,
            data,
        }
    }

    async fn distributed(
        data: TempDir,
        (size, holders): (Size, Holders),
        (kafka, redis, postgres): (&str, &str, &str),
        servers: Option<PrivateServers>,
    ) -> Self {
        // A name of its own on each server, so that tests side by side do not meet.
        let name = format!("t{}", &uuid::Uuid::now_v7().simple().to_string()[12..]);
        Manifest::read().sql(postgres, &format!("create database {name}")).await;
        let base = postgres.rsplit_once('/').expect("a database in the address").0;
        let settings: Vec<String> = [
            ("--log", format!("kafka://{kafka}/{name}")),
            ("--store", format!("{base}/{name}")),
            ("--partitions", "8".to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        let registry = format!("{redis}?prefix={name}");
        let mut cluster =
            Self { gateways: Vec::new(), persist: Vec::new(), fanout: Vec::new(), api: None, servers, settings, data };
        cluster.run(&["migrate"]).await;
        for _ in 0..size.persist {
            cluster.persist.push(cluster.role("persist", &[]).await);
        }
        for _ in 0..size.fanout {
            cluster.fanout.push(cluster.role("fanout", &["--registry", &registry]).await);
        }
        for number in 0..size.gateways {
            let listen = format!("127.0.0.1:{}", crate::process::free_port());
            let mesh_port = if holders.takeover { 0 } else { crate::process::free_port() };
            let (mesh, mut more) = (format!("127.0.0.1:{mesh_port}"), holders.arguments());
            if holders.takeover {
                more.extend(["--takeover".to_owned(), cluster.takeover_path(number).display().to_string()]);
            }
            let mut arguments =
                vec!["--registry", &registry, "--listen", &listen, "--mesh-listen", &mesh, "--shards", "2"];
            arguments.extend(more.iter().map(String::as_str));
            cluster.gateways.push(cluster.role("gateway", &arguments).await);
        }
        let listen = format!("127.0.0.1:{}", crate::process::free_port());
        cluster.api = Some(cluster.role("api", &["--registry", &registry, "--listen", &listen]).await);
        cluster
    }

    /// Where a gateway waits for its successor.
    pub fn takeover_path(&self, gateway: usize) -> std::path::PathBuf {
        self.data.path().join(format!("gateway-{gateway}.sock"))
    }

    async fn role(&self, role: &str, arguments: &[&str]) -> Process {
        let mut all = vec![role];
        all.extend(self.settings.iter().map(String::as_str));
        all.extend(arguments);
        Process::start(role, &all).await
    }

    /// Runs a command of the program over this cluster's settings to its end, and returns what it printed.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new(crate::process::program());
        let output = command.args(arguments).args(&self.settings).output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "roost {arguments:?} failed:\n{printed}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        printed
    }

    /// Runs a command of the program that is to be refused, and returns what it says about it.
    pub async fn refused(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new(crate::process::program());
        let output = command.args(arguments).args(&self.settings).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").expect("it runs");
        assert!(!output.status.success(), "roost {arguments:?} was not refused");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The cluster's Store, for what no interface offers. Where it is embedded the process must have stopped.
    pub async fn store(&self) -> Arc<dyn Store> {
        let setting = |name: &str| self.settings.iter().skip_while(|flag| *flag != name).nth(1);
        match setting("--store") {
            Some(url) => Arc::new(PostgresStore::connect(url).await.expect("the store")),
            None => {
                let folder = std::path::Path::new(setting("--data").expect("a folder"));
                Arc::new(SqliteStore::open(&folder.join("store.db")).expect("the store"))
            }
        }
    }

    /// How often partitions have been claimed so far, by whomever.
    pub async fn claims(&self) -> u64 {
        let url = self.settings.iter().skip_while(|flag| *flag != "--store").nth(1).expect("a distributed cluster");
        let sum = Manifest::read().sql(url, "select sum(owner_epoch) from partition_offset").await;
        sum.parse().expect("a number")
    }

    /// Where clients connect: gateways in turn.
    pub fn url(&self, client: usize) -> String {
        self.gateways[client % self.gateways.len()].address().to_owned()
    }

    /// Where REST is.
    pub fn api_url(&self) -> String {
        self.api.as_ref().unwrap_or(&self.gateways[0]).address().to_owned()
    }
}
