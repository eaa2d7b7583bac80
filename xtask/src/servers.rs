//! The real servers, private to one run: started on free ports of 127.0.0.1, stopped when the value is dropped.

mod kafka;
mod postgres;
mod redis;

use crate::Result;
use crate::install::Tools;
use crate::janitor::{Janitor, signal_group};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which servers to start, and where they may run.
#[derive(Debug, Default, Clone)]
pub struct Selection {
    pub kafka: bool,
    pub redis: bool,
    pub postgres: bool,
    /// A list of cores as `taskset` takes it; None leaves the servers where the kernel puts them.
    pub cores: Option<String>,
    /// Java with its full compiler: slower to start, and what an installation runs with.
    pub for_measuring: bool,
}

impl Selection {
    pub fn all() -> Selection {
        Selection { kafka: true, redis: true, postgres: true, cores: None, for_measuring: false }
    }

    pub fn any(&self) -> bool {
        self.kafka || self.redis || self.postgres
    }
}

/// Running servers. Dropping the value stops them.
pub struct Servers {
    kafka: Option<Running>,
    redis: Option<Running>,
    postgres: Option<Running>,
    folder: PathBuf,
}

impl Servers {
    /// Starts the selected servers side by side and returns once each answers. Logs go to `logs`.
    pub fn start(janitor: &Janitor, tools: &Tools, selection: &Selection, logs: &Path) -> Result<Servers> {
        std::fs::create_dir_all(logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        let place =
            Place { janitor, tools, logs, cores: selection.cores.as_deref(), for_measuring: selection.for_measuring };
        let (kafka, redis, postgres) = std::thread::scope(|scope| {
            let kafka =
                selection.kafka.then(|| scope.spawn(|| with_retries("kafka", &|port| kafka::start(&place, port))));
            let redis =
                selection.redis.then(|| scope.spawn(|| with_retries("redis", &|port| redis::start(&place, port))));
            let postgres = selection
                .postgres
                .then(|| scope.spawn(|| with_retries("postgres", &|port| postgres::start(&place, port))));
            (kafka.map(join), redis.map(join), postgres.map(join))
        });
        // All are taken up first: where one failed, the others stop by being dropped.
        let (kafka, redis, postgres) = (kafka.transpose(), redis.transpose(), postgres.transpose());
        let folder = janitor.folder().to_owned();
        let servers = Servers { kafka: kafka?, redis: redis?, postgres: postgres?, folder };
        servers.write_manifest(tools)?;
        Ok(servers)
    }

    /// The variables by which tests and benches find the servers.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("ROOST_TEST_SERVERS_DIR", self.folder.display().to_string()),
            ("ROOST_TEST_SERVERS", self.manifest().display().to_string()),
        ];
        if let Some(kafka) = &self.kafka {
            variables.push(("ROOST_TEST_KAFKA", format!("127.0.0.1:{}", kafka.port)));
        }
        if let Some(redis) = &self.redis {
            variables.push(("ROOST_TEST_REDIS", format!("redis://127.0.0.1:{}", redis.port)));
        }
        if let Some(postgres) = &self.postgres {
            variables
                .push(("ROOST_TEST_POSTGRES", format!("postgres://postgres@127.0.0.1:{}/postgres", postgres.port)));
        }
        variables
    }

    /// Process ids, for measuring: `kafka:1,redis:2,postgres:3`. That of PostgreSQL is the parent of its backends.
    pub fn process_ids(&self) -> String {
        self.named().map(|(name, server)| format!("{name}:{}", server.child.id())).collect::<Vec<_>>().join(",")
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &Running)> {
        let all = [("kafka", &self.kafka), ("redis", &self.redis), ("postgres", &self.postgres)];
        all.into_iter().filter_map(|(name, server)| Some((name, server.as_ref()?)))
    }

    fn manifest(&self) -> PathBuf {
        self.folder.join("servers.json")
    }

    /// Tells crash tests how to start servers of their own, and where these may keep their data.
    fn write_manifest(&self, tools: &Tools) -> Result<()> {
        let scratch = self.folder.join("scratch");
        create_open_folder(&scratch)?;
        let user = tools.postgres_user.as_ref();
        let running = self.named().map(|(name, server)| {
            (name.to_owned(), serde_json::json!({ "process_id": server.child.id(), "port": server.port }))
        });
        let manifest = serde_json::json!({
            "java": tools.java,
            "java_options": kafka::JAVA_OPTIONS,
            "kafka_classpath_glob": kafka::classpath(tools),
            "redis_server": tools.redis_server,
            "pg_bin": tools.postgres_programs,
            "run_as_user": user.map(|user| &user.name),
            "run_as_uid": user.map(|user| user.uid),
            "run_as_gid": user.map(|user| user.gid),
            "scratch": scratch,
            "running": running.collect::<serde_json::Map<_, _>>(),
        });
        let path = self.manifest();
        std::fs::write(&path, format!("{manifest:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// What every server's start needs to know.
struct Place<'a> {
    janitor: &'a Janitor,
    tools: &'a Tools,
    logs: &'a Path,
    cores: Option<&'a str>,
    for_measuring: bool,
}

impl Place<'_> {
    /// A command that stays on the chosen cores. `taskset` becomes the program, so the process id is the server's.
    fn command(&self, program: &Path) -> Command {
        let Some(cores) = self.cores else { return Command::new(program) };
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program);
        command
    }

    /// Starts the server and waits until `ready` says so; the whole output goes to NAME.log.
    fn launch(
        &self,
        name: &str,
        command: &mut Command,
        stop: Stop,
        port: u16,
        ready: &dyn Fn() -> bool,
    ) -> Result<Running> {
        let path = self.logs.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|error| format!("{}: {error}", path.display()))?;
        let copy = log.try_clone().map_err(|error| format!("{}: {error}", path.display()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = self.janitor.spawn(command, stop.0)?;
        let group = child.id();
        let mut running = Running { child, port, stop };
        let end = Instant::now() + READY_LIMIT;
        while !ready() {
            let exited = running.child.try_wait().map_err(|error| format!("{name}: {error}"))?;
            if exited.is_some() || Instant::now() > end {
                drop(running);
                self.janitor.forget(group);
                let why =
                    exited.map_or("did not answer in time".to_owned(), |status| format!("ended at once: {status}"));
                return Err(format!("{name} {why}\n{}", tail(&path)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }
}

/// The signal that ends a server quickly; its data is not kept.
#[derive(Clone, Copy)]
struct Stop(&'static str);

/// One server process, the leader of its own group.
struct Running {
    child: Child,
    port: u16,
    stop: Stop,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            signal_group(self.child.id(), self.stop.0);
            let end = Instant::now() + STOP_LIMIT;
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > end {
                    let _ = self.child.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        signal_group(self.child.id(), "KILL");
    }
}

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A port that was free may be taken before the server binds it.
const ATTEMPTS_MAX: u32 = 3;

fn with_retries(name: &str, start: &dyn Fn(u16) -> Result<Running>) -> Result<Running> {
    let begun = Instant::now();
    let mut attempt = 1;
    loop {
        match free_port().and_then(start) {
            Ok(running) => {
                eprintln!("{name} answers on port {} after {:.1} s", running.port, begun.elapsed().as_secs_f64());
                return Ok(running);
            }
            Err(message) if attempt == ATTEMPTS_MAX => return Err(message),
            Err(message) => eprintln!("{message}\ntrying again"),
        }
        attempt += 1;
    }
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<Running>>) -> Result<Running> {
    thread.join().unwrap_or_else(|_| Err("the start of a server panicked".to_owned()))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("no free port: {error}"))?;
    listener.local_addr().map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// A folder that any user may write to.
fn create_open_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let create = || {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o1777))
    };
    create().map_err(|error| format!("{}: {error}", path.display()))
}

/// A fresh folder of its own for each attempt at a server.
fn data_folder(place: &Place<'_>, name: &str, port: u16) -> Result<PathBuf> {
    let path = place.janitor.folder().join(format!("{name}-{port}"));
    std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
