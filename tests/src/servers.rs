//! Kafka, Redis and PostgreSQL for one test: the run's shared ones, or private ones that the test may kill and restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::process::{eventually, free_port};

/// How servers are started on this machine, as `cargo xtask test` found out.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    java: PathBuf,
    java_options: Vec<String>,
    kafka_classpath_glob: String,
    redis_server: PathBuf,
    pg_bin: PathBuf,
    run_as_uid: Option<u32>,
    run_as_gid: Option<u32>,
    scratch: PathBuf,
}

/// Whether the real servers are there. Without them a test of the distributed composition says that it was skipped,
/// or fails where the run has promised them.
pub fn available(test: &str) -> bool {
    if std::env::var_os("ROOST_TEST_SERVERS").is_some() {
        return true;
    }
    skip(test, "needs Kafka, Redis and PostgreSQL: run it by `cargo xtask test`");
    false
}

/// Says that a test was skipped and why; fails where the run has promised what it needs.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("ROOST_REQUIRE_SERVERS").is_none(), "promised but not there: {test} {reason}");
    eprintln!("skipped: {test} {reason}");
    if let Some(path) = std::env::var_os("ROOST_TEST_SKIPS")
        && let Ok(mut file) = std::fs::File::options().append(true).create(true).open(path)
    {
        use std::io::Write;
        let _ = writeln!(file, "{test}: {reason}");
    }
}

impl Manifest {
    /// Reads what the run has found out.
    pub fn read() -> Self {
        let path = std::env::var("ROOST_TEST_SERVERS").expect("checked by available()");
        let text = std::fs::read_to_string(&path).expect("the manifest of the servers");
        serde_json::from_str(&text).expect("a manifest")
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.scratch.join(format!("{name}-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder).expect("a folder for a server");
        folder
    }

    fn as_user<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let (Some(uid), Some(gid)) = (self.run_as_uid, self.run_as_gid) {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/")
    }

    /// Writes a whole database into a file.
    pub async fn dump(&self, url: &str, file: &Path) {
        let output = Command::new(self.pg_bin.join("pg_dump")).args(["-d", url, "-f"]).arg(file).output().await;
        let output = output.expect("pg_dump");
        assert!(output.status.success(), "pg_dump: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Reads a file of [`dump`](Self::dump) into an empty database.
    pub async fn restore(&self, url: &str, file: &Path) {
        let mut psql = Command::new(self.pg_bin.join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d", url, "-f"]).arg(file);
        let output = psql.output().await.expect("psql");
        assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs SQL with psql; for what no port offers, such as making a database.
    pub async fn sql(&self, url: &str, statement: &str) -> String {
        let output = Command::new(self.pg_bin.join("psql"))
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement])
            .output()
            .await
            .expect("psql");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// The kinds of server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One node, broker and controller.
    Kafka,
    /// Without persistence.
    Redis,
    /// With fsync on.
    Postgres,
}

/// A private server: its data and port outlive its process.
pub struct Server {
    kind: Kind,
    manifest: Manifest,
    port: u16,
    data: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Prepares the data and starts the process.
    pub async fn start(kind: Kind, manifest: &Manifest) -> Self {
        let name = format!("{kind:?}").to_lowercase();
        let mut server =
            Self { kind, manifest: manifest.clone(), port: free_port(), data: manifest.folder(&name), child: None };
        match kind {
            Kind::Kafka => server.format_kafka().await,
            Kind::Postgres => server.init_postgres().await,
            Kind::Redis => {}
        }
        server.restart().await;
        server
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// kill -9, as a crash of the machine's process would be.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.expect("kill");
    }

    /// PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start.
    pub async fn stop_immediately(&mut self) {
        assert_eq!(self.kind, Kind::Postgres);
        let mut child = self.child.take().expect("it runs");
        crate::process::signal(child.id().expect("it runs"), "QUIT");
        child.wait().await.expect("it ends");
    }

    /// Starts the process on the same port and data.
    pub async fn restart(&mut self) {
        let mut command = match self.kind {
            Kind::Kafka => {
                let mut command = Command::new(&self.manifest.java);
                command
                    .args(&self.manifest.java_options)
                    .args(["-cp", &self.manifest.kafka_classpath_glob, "kafka.Kafka"])
                    .arg(self.data.join("server.properties"));
                command
            }
            Kind::Redis => {
                let mut command = Command::new(&self.manifest.redis_server);
                let port = self.port.to_string();
                command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
                command.arg(&self.data);
                command
            }
            Kind::Postgres => {
                let mut command = Command::new(self.manifest.pg_bin.join("postgres"));
                command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
                command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
                self.manifest.as_user(&mut command);
                command
            }
        };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.data.with_extension("log"))
            .expect("a log for a server");
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        command.stdout(log.try_clone().expect("a copy")).stderr(log);
        self.child = Some(command.spawn().expect("a server"));
        let what = format!("{:?} answers on port {}", self.kind, self.port);
        eventually(&what, Duration::from_secs(60), async || self.answers().await).await;
    }

    async fn answers(&self) -> bool {
        match self.kind {
            Kind::Kafka => asked(self.port, &kafka_metadata_request(), 16)
                .await
                .is_some_and(|answer| i32::from_be_bytes([answer[12], answer[13], answer[14], answer[15]]) >= 1),
            Kind::Redis => asked(self.port, b"*1\r\n$4\r\nPING\r\n", 7).await.is_some_and(|a| a == b"+PONG\r\n"),
            Kind::Postgres => {
                let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
                Command::new(self.manifest.pg_bin.join("psql"))
                    .args(["-X", "-w", "-d", &url, "-c", "select 1"])
                    .output()
                    .await
                    .is_ok_and(|output| output.status.success())
            }
        }
    }

    async fn init_postgres(&self) {
        use std::os::unix::fs::{PermissionsExt, chown};
        std::fs::set_permissions(&self.data, PermissionsExt::from_mode(0o700)).expect("permissions");
        chown(&self.data, self.manifest.run_as_uid, self.manifest.run_as_gid).expect("owner");
        let mut command = Command::new(self.manifest.pg_bin.join("initdb"));
        command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]).arg(&self.data);
        let output = self.manifest.as_user(&mut command).output().await.expect("initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn format_kafka(&self) {
        let properties = self.data.join("server.properties");
        std::fs::write(&properties, kafka_properties(self.port, free_port(), &self.data)).expect("properties");
        let id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(uuid::Uuid::now_v7().as_bytes());
        let output = Command::new(&self.manifest.java)
            .args(["-XX:TieredStopAtLevel=1", "-cp", &self.manifest.kafka_classpath_glob, "kafka.tools.StorageTool"])
            .args(["format", "-t", &id, "-c"])
            .arg(&properties)
            .output()
            .await
            .expect("java");
        assert!(output.status.success(), "kafka format: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn kafka_properties(port: u16, controller: u16, data: &Path) -> String {
    format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n",
        data.join("log").display()
    )
}

/// The metadata request, version 4, for no topics: a broker that has not joined yet names no broker.
fn kafka_metadata_request() -> Vec<u8> {
    let mut body = vec![0, 3, 0, 4];
    body.extend(7_i32.to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.push(0);
    [(body.len() as u32).to_be_bytes().to_vec(), body].concat()
}

async fn asked(port: u16, question: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(question).await.ok()?;
        let mut answer = vec![0; bytes];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten()
}
