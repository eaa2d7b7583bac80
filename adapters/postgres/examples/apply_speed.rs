//! How quick the numbering transaction is: `apply_speed postgres://…/database`, in a database that may be filled.
//!
//! Prints the latency of transactions of one message at an unhurried pace, of lanes that never pause, and how many
//! messages a second big batches reach, beside the server's own time for an empty durable commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_ports::conformance::store::{Lab, Lane};
use roost_ports::store::{ApplyBatch, PartBatch, Store};
use roost_postgres::PostgresStore;
use roost_protocol::frames::HistoryRange;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Seq, UserId};
use sqlx::Connection;

#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).expect("usage: apply_speed postgres://user@host:port/database");
    reference(&url).await;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&url).await.expect("a database"));
    let lab = Lab::new(store).await;
    let users = lab.users(2).await;
    let mut workers = Vec::new();
    for partition in 0..4 {
        let mut lane = lab.lane(partition).await;
        let mut groups = Vec::new();
        for _ in 0..250 {
            groups.push(lab.group(&mut lane, &users).await);
        }
        workers.push(Worker { store: lab.store.clone(), log_id: lab.log_id.clone(), lane, groups, user: users[0] });
    }
    report("1 lane, 1 message, paced at 100/s", workers[0].run(300, 1, Duration::from_millis(10)).await, 1);
    report("1 lane, 1 message", workers[0].run(1000, 1, Duration::ZERO).await, 1);
    for (lanes, size, times) in [(2, 4, 800), (4, 4, 800), (4, 100, 100), (2, 2000, 30), (4, 2000, 30)] {
        let begun = Instant::now();
        let runs = workers[..lanes].iter_mut().map(|worker| worker.run(times, size, Duration::ZERO));
        let spent: Vec<Duration> = futures::future::join_all(runs).await.into_iter().flatten().collect();
        let rate = (lanes * size * times) as f64 / begun.elapsed().as_secs_f64();
        report(&format!("{lanes} lanes, {size} messages"), spent, size);
        println!("    {rate:.0} messages a second in all");
    }
    let (mut heads, mut history) = (Vec::new(), Vec::new());
    let now = lab.store.heads(users[0], None, 500).await.expect("heads").next;
    for n in 0..200 {
        let begun = Instant::now();
        lab.store.heads(users[0], now.as_deref(), 500).await.expect("heads");
        heads.push(begun.elapsed());
        let begun = Instant::now();
        let group = workers[n % 4].groups[n];
        lab.store.history(users[0], group, HistoryRange::Before(Seq::MAX), 50).await.expect("a page");
        history.push(begun.elapsed());
    }
    report("heads of a user with 1,000 conversations", heads, 1);
    report("a page of 50 messages", history, 1);
}

struct Worker {
    store: Arc<dyn Store>,
    log_id: String,
    lane: Lane,
    groups: Vec<ConversationId>,
    user: UserId,
}

impl Worker {
    async fn run(&mut self, times: usize, size: usize, pause: Duration) -> Vec<Duration> {
        let mut spent = Vec::with_capacity(times);
        for time in 0..times {
            tokio::time::sleep(pause).await;
            let records = (0..size).map(|n| message(self.user, self.groups[(time * 7 + n) % self.groups.len()]));
            let part: PartBatch = self.lane.part(records.collect());
            let next = part.records.last().expect("records").next;
            let batch = ApplyBatch { log_id: self.log_id.clone(), parts: vec![part] };
            let begun = Instant::now();
            self.store.apply(&batch).await.expect("applied");
            spent.push(begun.elapsed());
            self.lane.claim.next = next;
        }
        spent
    }
}

fn message(actor: UserId, conversation_id: ConversationId) -> IngressRecord<'static> {
    IngressRecord {
        actor,
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1,
        origin: None,
        if_last_seq: None,
        action: Action::Send { conversation_id, content_type: "text/plain".into(), body: vec![120; 128].into() },
    }
}

fn report(what: &str, mut spent: Vec<Duration>, size: usize) {
    spent.sort_unstable();
    let at = |share: f64| spent[((spent.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let rate = (size * spent.len()) as f64 / spent.iter().sum::<Duration>().as_secs_f64();
    println!("{what}: p50 {:.2} ms, p99 {:.2} ms, {rate:.0} messages a second for each lane", at(0.5), at(0.99));
}

/// The least that a durable transaction takes here: one row, one statement.
async fn reference(url: &str) {
    let mut session = sqlx::PgConnection::connect(url).await.expect("a database");
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS apply_speed (n bigint)").execute(&mut session).await.expect("a table");
    let mut spent = Vec::new();
    let mut round_trips = Vec::new();
    for n in 0..500i64 {
        let begun = Instant::now();
        let insert = sqlx::query("INSERT INTO apply_speed VALUES ($1)").bind(n);
        insert.execute(&mut session).await.expect("a row");
        spent.push(begun.elapsed());
        let begun = Instant::now();
        sqlx::query("SELECT $1::bigint").bind(n).execute(&mut session).await.expect("an answer");
        round_trips.push(begun.elapsed());
    }
    report("reference, an insert of one row", spent, 1);
    report("reference, a round trip", round_trips, 1);
}
