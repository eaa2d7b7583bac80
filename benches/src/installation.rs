//! Roost's own processes, in one composition, seeded with users and their conversations.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use roost_ports::Store;
use roost_ports::store::{ApplyBatch, Incoming, Migration, Outcome, PartBatch, PartOutcome};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId, digest, limits};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::machine::server_command;
use crate::seed::{self, Plan, User};
use crate::{Result, cpu};

/// Which composition is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Composition {
    /// Everything in one process, on SQLite.
    Embedded,
    /// Separate roles over Kafka, Redis and PostgreSQL.
    Distributed,
}

/// Whom the Store knows before anything is measured, and how the gateway is started.
#[derive(Default)]
pub struct Setup {
    /// So many users, numbered from 0.
    pub users: usize,
    /// The first users two by two, each pair with a direct conversation.
    pub pairs: usize,
    /// Groups of these users; the first of each made it.
    pub groups: Vec<Vec<usize>>,
    /// More of the command line of `roost serve` or `roost gateway`.
    pub arguments: Vec<String>,
    /// Whether the gateway speaks TLS, with a certificate made for the run.
    pub tls: bool,
    /// Whether its data lie in memory, where the disk's stalls would hide what is measured.
    pub in_memory: bool,
}

/// A folder in memory, on Linux.
const MEMORY: &str = "/dev/shm";

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
    /// Those of the users that are pairs.
    pub pairs: Vec<Pair>,
    /// The groups, as they were asked for.
    pub groups: Vec<ConversationId>,
    /// The users and their key, for processes of the load.
    pub plan_file: PathBuf,
    /// Whom to trust, where TLS is spoken.
    pub certificate: Option<PathBuf>,
    arguments: Vec<String>,
    composition: Composition,
    settings: Vec<String>,
    processes: Vec<Child>,
    servers: Vec<u32>,
    _data: TempDir,
}

impl Installation {
    /// Seeds the Store, then starts every role and waits until it is ready.
    pub async fn start(composition: Composition, setup: Setup) -> Result<Self> {
        Self::prepare(composition, setup).await?.launch().await
    }

    /// Seeds the Store; nothing of Roost runs yet.
    pub async fn prepare(composition: Composition, setup: Setup) -> Result<Self> {
        let place = if setup.in_memory { PathBuf::from(MEMORY) } else { std::env::temp_dir() };
        let data = tempfile::Builder::new().prefix("roost-bench-").tempdir_in(place)?;
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
        let (plan, plan_file) = (Plan::new()?, data.path().join("plan.json"));
        plan.save(&plan_file)?;
        seed::store(&*store, &plan, setup.users.max(setup.pairs * 2)).await?;
        let (pairs, groups) = conversations(&*store, &plan, &setup).await?;
        let (certificate, mut arguments) = (setup.tls.then(|| data.path().join("certificate.pem")), setup.arguments);
        if let Some(certificate) = &certificate {
            arguments.extend(new_certificate(certificate, &data.path().join("key.pem"))?);
        }
        Ok(Self {
            address: String::new(),
            pairs,
            groups,
            plan_file,
            certificate,
            arguments,
            composition,
            settings,
            processes: Vec::new(),
            servers: if composition == Composition::Distributed { server_processes() } else { Vec::new() },
            _data: data,
        })
    }

    /// Starts every role and waits until it is ready.
    pub async fn launch(mut self) -> Result<Self> {
        let settings = self.settings.clone();
        match self.composition {
            Composition::Embedded => {
                let mut arguments = vec!["serve".to_owned(), "--listen".into(), "127.0.0.1:0".into()];
                arguments.extend([settings, self.arguments.clone()].concat());
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
        self.address = self.role(&role("gateway", &[&registry[..], &listen[..], &self.arguments[..]].concat())).await?;
        Ok(())
    }

    async fn role(&mut self, arguments: &[String]) -> Result<String> {
        let mut command = server_command(&program()?);
        command.args(arguments).args(["--log-level", "warn"]);
        // The load comes from few addresses, and a few of its sessions send for many.
        command.env("ROOST_CONNECTIONS_PER_ADDRESS_MAX", "0").env("ROOST_SENDS_PER_SECOND", "0");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let address = tokio::time::timeout(Duration::from_secs(60), async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, rest)) = line.split_once(" is ready") {
                    let url = rest
                        .split_whitespace()
                        .find_map(|word| word.strip_prefix("http://").or_else(|| word.strip_prefix("https://")));
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

/// Makes a certificate and its key, and says how the gateway is told of them.
fn new_certificate(certificate: &Path, key: &Path) -> Result<[String; 4]> {
    let made = rcgen::generate_simple_self_signed([crate::crowd::SERVER_NAME.to_owned()])?;
    std::fs::write(certificate, made.cert.pem())?;
    std::fs::write(key, made.signing_key.serialize_pem())?;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600))?;
    let path = |path: &Path| path.display().to_string();
    Ok(["--tls-certificate".into(), path(certificate), "--tls-key".into(), path(key)])
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

/// Direct conversations of the pairs, and groups, made by the Store's own transaction under a log of the seed's own.
async fn conversations(store: &dyn Store, plan: &Plan, setup: &Setup) -> Result<(Vec<Pair>, Vec<ConversationId>)> {
    let log_id = "bench-seed".to_owned();
    store.migrate(&Migration { log_id: log_id.clone(), partitions: 1 }).await?;
    let claim = store.claim(&log_id, 0).await?;
    let (mut pairs, mut groups, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..setup.pairs {
        let users = [pair * 2, pair * 2 + 1].map(|n| User { user_id: plan.user_id(n), token: plan.token(n) });
        let members = vec![users[0].user_id, users[1].user_id];
        let conversation = ConversationId::direct(members[0], members[1]);
        records.push(creation(conversation, ConversationKind::Direct, members, records.len() as u64));
        pairs.push(Pair { users, conversation });
    }
    for members in &setup.groups {
        let members: Vec<UserId> = members.iter().map(|&number| plan.user_id(number)).collect();
        let conversation = ConversationId::new();
        records.push(creation(conversation, ConversationKind::Group, members, records.len() as u64));
        groups.push(conversation);
    }
    if records.is_empty() {
        return Ok((pairs, groups));
    }
    let part = PartBatch { partition: 0, epoch: claim.epoch, from: claim.next, published: claim.published, records };
    let applied = store.apply(&ApplyBatch { log_id, parts: vec![part] }).await?;
    let [PartOutcome::Applied(applied)] = applied.parts.as_slice() else {
        return Err(format!("the seed was not applied: {:?}", applied.parts).into());
    };
    match applied.iter().find(|outcome| !matches!(outcome, Outcome::Numbered(_))) {
        None => Ok((pairs, groups)),
        Some(refused) => Err(format!("the Store refused a conversation of the seed: {refused:?}").into()),
    }
}

fn creation(conversation_id: ConversationId, kind: ConversationKind, mut members: Vec<UserId>, at: u64) -> Incoming {
    let actor = members[0];
    members.sort_unstable();
    let record = IngressRecord {
        actor,
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: limits::PING_MS,
        origin: None,
        if_last_seq: None,
        action: Action::Create { conversation_id, kind, title: None, members },
    };
    Incoming {
        position: roost_ports::log::Position(at),
        next: roost_ports::log::Position(at + 1),
        digest: digest::of_record(&record.encode()),
        content: Ok(record),
    }
}
