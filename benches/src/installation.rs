//! Roost's own processes, in one composition, seeded with users and their conversations.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use roost_ports::Store;
use roost_ports::store::{ApplyBatch, Incoming, Migration, PartBatch, PartOutcome};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId, digest, limits};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::machine::server_command;
use crate::seed::{self, User};
use crate::{Result, cpu};

/// Which composition is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Composition {
    /// Everything in one process, on SQLite.
    Embedded,
    /// Separate roles over Kafka, Redis and PostgreSQL.
    Distributed,
}

/// Two users and their conversation.
pub struct Pair {
    /// Both users.
    pub users: [User; 2],
    /// Their direct conversation.
    pub conversation: ConversationId,
}

/// A running installation. Dropping it kills its processes.
pub struct Installation {
    /// `host:port` of the gateway.
    pub address: String,
    /// The users that can connect.
    pub pairs: Vec<Pair>,
    composition: Composition,
    settings: Vec<String>,
    processes: Vec<Child>,
    servers: Vec<u32>,
    _data: TempDir,
}

impl Installation {
    /// Seeds the Store, then starts every role and waits until it is ready.
    pub async fn start(composition: Composition, pairs: usize) -> Result<Self> {
        Self::prepare(composition, pairs).await?.launch().await
    }

    /// Seeds the Store; nothing of Roost runs yet.
    pub async fn prepare(composition: Composition, pairs: usize) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("roost-bench-").tempdir()?;
        let folder = data.path().display().to_string();
        let settings: Vec<String> = match composition {
            Composition::Embedded => vec!["--data".into(), folder],
            Composition::Distributed => vec![
                "--log".into(),
                // Topics of its own: what an earlier run left is none of this one's business.
                format!("kafka://{}/bench-{}", variable("ROOST_TEST_KAFKA")?, UserId::new().uuid().simple()),
                "--store".into(),
                variable("ROOST_TEST_POSTGRES")?,
            ],
        };
        run("migrate", &settings).await?;
        let store: Arc<dyn Store> = match composition {
            Composition::Embedded => Arc::new(roost_embedded::store::SqliteStore::open(&data.path().join("store.db"))?),
            Composition::Distributed => {
                Arc::new(roost_postgres::PostgresStore::connect(&variable("ROOST_TEST_POSTGRES")?).await?)
            }
        };
        let users = seed::users(&*store, pairs * 2).await?;
        let pairs = conversations(&*store, users).await?;
        let servers = if composition == Composition::Distributed { server_processes() } else { Vec::new() };
        let address = String::new();
        Ok(Self { address, pairs, composition, settings, processes: Vec::new(), servers, _data: data })
    }

    /// Starts every role and waits until it is ready.
    pub async fn launch(mut self) -> Result<Self> {
        let settings = self.settings.clone();
        match self.composition {
            Composition::Embedded => {
                let mut arguments = vec!["serve".to_owned(), "--listen".into(), "127.0.0.1:0".into()];
                arguments.extend(settings);
                self.address = self.role(&arguments).await?;
            }
            Composition::Distributed => self.start_roles(&settings).await?,
        }
        Ok(self)
    }

    async fn start_roles(&mut self, settings: &[String]) -> Result<()> {
        let registry = ["--registry".to_owned(), variable("ROOST_TEST_REDIS")?];
        let role = |name: &str, more: &[String]| -> Vec<String> { [&[name.to_owned()], settings, more].concat() };
        self.role(&role("persist", &[])).await?;
        self.role(&role("fanout", &registry)).await?;
        let listen = ["--listen".to_owned(), "127.0.0.1:0".into()];
        self.address = self.role(&role("gateway", &[&registry[..], &listen[..]].concat())).await?;
        Ok(())
    }

    async fn role(&mut self, arguments: &[String]) -> Result<String> {
        let mut command = server_command(&program()?);
        command.args(arguments).args(["--log-level", "warn"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let address = tokio::time::timeout(Duration::from_secs(60), async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, rest)) = line.split_once(" is ready") {
                    let url = rest.split_whitespace().find_map(|word| word.strip_prefix("http://"));
                    return Ok::<_, crate::Failure>(url.unwrap_or_default().to_owned());
                }
            }
            Err(format!("{arguments:?} ended before it was ready").into())
        })
        .await??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.processes.push(child);
        Ok(address)
    }

    /// Process ids of Roost's own processes.
    pub fn own_processes(&self) -> Vec<u32> {
        self.processes.iter().filter_map(Child::id).collect()
    }

    /// Microseconds of CPU that all server processes have used so far, Kafka, Redis and PostgreSQL included.
    pub fn cpu_micros(&self) -> u64 {
        cpu::micros_of_trees(&[self.own_processes(), self.servers.clone()].concat())
    }
}

/// The program under measurement.
pub fn program() -> Result<PathBuf> {
    Ok(variable("ROOST_BENCH_BIN")?.into())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run this by `cargo xtask bench`").into())
}

/// The servers of this run.
fn server_processes() -> Vec<u32> {
    let listed = std::env::var("ROOST_BENCH_SERVER_PIDS").unwrap_or_default();
    listed.split(',').filter_map(|entry| entry.split_once(':')?.1.parse().ok()).collect()
}

async fn run(command: &str, settings: &[String]) -> Result<()> {
    let output = tokio::process::Command::new(program()?).arg(command).args(settings).output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("roost {command}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// One direct conversation per two users, made by the Store's own transaction under a log of the seed's own.
async fn conversations(store: &dyn Store, users: Vec<User>) -> Result<Vec<Pair>> {
    let log_id = "bench-seed".to_owned();
    store.migrate(&Migration { log_id: log_id.clone(), partitions: 1 }).await?;
    let claim = store.claim(&log_id, 0).await?;
    let mut pairs = Vec::new();
    let mut records = Vec::new();
    for (number, two) in users.chunks_exact(2).enumerate() {
        let conversation = ConversationId::direct(two[0].user_id, two[1].user_id);
        records.push(creation(conversation, [two[0].user_id, two[1].user_id], number as u64));
        pairs.push(Pair { users: [two[0].clone(), two[1].clone()], conversation });
    }
    let part = PartBatch { partition: 0, epoch: claim.epoch, from: claim.next, published: claim.published, records };
    let applied = store.apply(&ApplyBatch { log_id, parts: vec![part] }).await?;
    match applied.parts.as_slice() {
        [PartOutcome::Applied(_)] => Ok(pairs),
        other => Err(format!("the seed was not applied: {other:?}").into()),
    }
}

fn creation(conversation_id: ConversationId, mut members: [UserId; 2], number: u64) -> Incoming {
    members.sort_unstable();
    let record = IngressRecord {
        actor: members[0],
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: limits::PING_MS,
        origin: None,
        if_last_seq: None,
        action: Action::Create {
            conversation_id,
            kind: ConversationKind::Direct,
            title: None,
            members: members.to_vec(),
        },
    };
    Incoming {
        position: roost_ports::log::Position(number),
        next: roost_ports::log::Position(number + 1),
        digest: digest::of_record(&record.encode()),
        content: Ok(record),
    }
}
