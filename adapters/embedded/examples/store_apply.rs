//! How many messages a second the Store on SQLite numbers: `store_apply [MESSAGES] [BATCH] [LANES] [FOLDER]`.
//!
//! 500 pairs, bodies of 128 bytes, every batch on its lane's own conversations, as persist workers make them; the lanes'
//! applies meet at the writer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_ports::log::Position;
use roost_ports::store::{Account, ApplyBatch, Incoming, Migration, PartBatch, PartOutcome};
use roost_protocol::digest;
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};

const LOG: &str = "bench";
const PAIRS: usize = 500;

type Pair = (UserId, UserId, ConversationId);

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (messages, batch, lanes) = (number(200_000), number(500), number(4));
    let folder = arguments.next().map(PathBuf::from);
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let path = folder.unwrap_or_else(|| scratch.path().to_owned()).join("store.db");
    let store = Arc::new(SqliteStore::open(&path).expect("the store opens"));
    let migration = Migration { log_id: LOG.to_owned(), partitions: lanes as u32 };
    store.migrate(&migration).await.expect("the store migrates");
    let mut workers = Vec::new();
    for partition in 0..lanes {
        let pairs = pairs(&store, PAIRS / lanes).await;
        workers.push(Worker::new(store.clone(), partition as u32, pairs).await);
    }
    let (started, used) = (Instant::now(), cpu());
    let running = workers.into_iter().map(|worker| tokio::spawn(worker.run(messages / lanes, batch)));
    let mut latencies: Vec<Duration> =
        futures::future::join_all(running).await.into_iter().flat_map(|one| one.expect("a worker")).collect();
    let (elapsed, used) = (started.elapsed(), cpu() - used);
    latencies.sort_unstable();
    let ms = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{:.0} messages a second; {:.1} us of CPU a message; apply p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; file {} MB, log {} MB",
        messages as f64 / elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / messages as f64,
        ms(0.5),
        ms(0.99),
        ms(1.0),
        megabytes(&path),
        megabytes(&path.with_extension("db-wal")),
    );
}

async fn pairs(store: &SqliteStore, count: usize) -> Vec<Pair> {
    let user = async || {
        let user_id = UserId::new();
        let account = Account { user_id, name: user_id.to_string(), password_hash: String::new(), created: 0 };
        store.create_account(&account).await.expect("an account");
        user_id
    };
    let pair = || async {
        let (one, other) = tokio::join!(user(), user());
        (one.min(other), one.max(other), ConversationId::direct(one, other))
    };
    futures::future::join_all((0..count).map(|_| pair())).await
}

struct Worker {
    store: Arc<SqliteStore>,
    partition: u32,
    epoch: u64,
    at: u64,
    pairs: Vec<Pair>,
}

impl Worker {
    async fn new(store: Arc<SqliteStore>, partition: u32, pairs: Vec<Pair>) -> Self {
        let claim = store.claim(LOG, partition).await.expect("a claim");
        let mut worker = Self { store, partition, epoch: claim.epoch, at: claim.next.0, pairs };
        let create = |&(one, other, conversation_id): &Pair| {
            let members = vec![one, other];
            record(one, Action::Create { conversation_id, kind: ConversationKind::Direct, title: None, members })
        };
        let creations = worker.pairs.iter().map(create).collect();
        let batch = worker.batch(creations);
        worker.apply(&batch).await;
        worker
    }

    fn batch(&mut self, records: Vec<IngressRecord<'static>>) -> ApplyBatch {
        let from = Position(self.at);
        let records = records.into_iter().map(|record| {
            let position = Position(self.at);
            self.at += 1;
            let digest = digest::of_record(&self.at.to_be_bytes());
            Incoming { position, next: Position(self.at), digest, content: Ok(record) }
        });
        let records = records.collect();
        let part = PartBatch { partition: self.partition, epoch: self.epoch, from, published: from, records };
        ApplyBatch { log_id: LOG.to_owned(), parts: vec![part] }
    }

    async fn apply(&self, batch: &ApplyBatch) {
        let applied = self.store.apply(batch).await.expect("the batch is applied");
        let PartOutcome::Applied(outcomes) = &applied.parts[0] else { panic!("it is ours") };
        assert!(outcomes.iter().all(|outcome| matches!(outcome, roost_ports::store::Outcome::Numbered(_))));
    }

    async fn run(mut self, messages: usize, size: usize) -> Vec<Duration> {
        let (mut latencies, mut next) = (Vec::new(), 0);
        for _ in 0..messages.div_ceil(size) {
            let send = |_| {
                let (one, other, conversation_id) = self.pairs[next % self.pairs.len()];
                next += 7;
                let actor = if next.is_multiple_of(2) { one } else { other };
                let body = vec![b'x'; 128].into();
                record(actor, Action::Send { conversation_id, content_type: "text/plain".into(), body })
            };
            let records = (0..size).map(send).collect();
            let batch = self.batch(records);
            let started = Instant::now();
            self.apply(&batch).await;
            latencies.push(started.elapsed());
        }
        latencies
    }
}

fn record(actor: UserId, action: Action<'static>) -> IngressRecord<'static> {
    IngressRecord {
        actor,
        device: DeviceId::from_bytes([7; 16]),
        client_msg_id: ClientMsgId::new(),
        time: 1_700_000_000_000,
        origin: None,
        if_last_seq: None,
        action,
    }
}

/// What this process has used so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime, in hundredths of a second.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn megabytes(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len() >> 20)
}
