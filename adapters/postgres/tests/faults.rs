//! What the Store does when the database, the network or another worker misbehaves.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Database;
use common::proxy::{Fault, Proxy};
use futures::future::join_all;
use rand::seq::SliceRandom as _;
use roost_ports::conformance::store::{Lab, Lane};
use roost_ports::store::{ApplyBatch, ApplyError, Claim, Migration, Outcome, PartOutcome, Replayed, Store, StoreError};
use roost_postgres::{PostgresConfig, PostgresStore};
use roost_protocol::frames::HistoryRange;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Seq, UserId};
use sqlx::AssertSqlSafe;

fn send(actor: UserId, conversation_id: ConversationId, body: &str) -> IngressRecord<'static> {
    IngressRecord {
        actor,
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1_700_000_000_000,
        origin: None,
        if_last_seq: None,
        action: Action::Send {
            conversation_id,
            content_type: "text/plain".into(),
            body: body.as_bytes().to_vec().into(),
        },
    }
}

fn batch(lab: &Lab, lane: &Lane, records: Vec<IngressRecord<'static>>) -> ApplyBatch {
    ApplyBatch { log_id: lab.log_id.clone(), parts: vec![lane.part(records)] }
}

/// A group of two users on partition 0, made without any fault.
async fn lab(database: &Database) -> (Lab, Lane, Vec<UserId>, ConversationId) {
    let lab = Lab::new(database.store().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    (lab, lane, users, group)
}

/// The seq of the only record of a batch.
fn only_seq(outcome: &PartOutcome) -> Option<Seq> {
    match outcome {
        PartOutcome::Applied(outcomes) => match &outcomes[..] {
            [Outcome::Numbered(record)] => Some(record.message.seq),
            _ => None,
        },
        PartOutcome::NotOurs => None,
    }
}

async fn bodies(store: &Arc<dyn Store>, user: UserId, group: ConversationId) -> Vec<String> {
    let mut bodies = Vec::new();
    loop {
        let range = HistoryRange::After(bodies.len() as Seq);
        let page = store.history(user, group, range, 200).await.expect("a page");
        assert!(page.messages.iter().map(|message| message.seq).eq(page.from..=page.to), "no hole");
        bodies.extend(page.messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()));
        if !page.more {
            return bodies;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_transaction_is_cut_and_a_successor_gets_its_rows() {
    let Some(database) = Database::new().await else { return };
    let (lab, lane, users, group) = lab(&database).await;
    let proxy = Proxy::before(&database.url).await;
    let frozen: Arc<dyn Store> = Arc::new(PostgresStore::connect(&proxy.url).await.expect("through the proxy"));
    proxy.set(Some(Fault::Freeze(b"INSERT INTO messages")));
    let zombies = batch(&lab, &lane, vec![send(users[0], group, "zombie")]);
    let zombie = tokio::spawn(async move { frozen.apply(&zombies).await });
    tokio::time::sleep(Duration::from_millis(300)).await;

    let begun = Instant::now();
    let mut waited = 0;
    let claim = loop {
        match lab.store.claim(&lab.log_id, 0).await {
            Ok(claim) => break claim,
            Err(StoreError::Unavailable(_)) => waited += 1,
            Err(error) => panic!("only the lock is in the way: {error}"),
        }
    };
    assert!(waited > 0, "the zombie held the row");
    assert!(begun.elapsed() < Duration::from_secs(15), "3 s, and five times that on a busy machine");
    assert_eq!((claim.epoch, claim.next), (lane.claim.epoch + 1, lane.claim.next));

    let mut successor = lab.lane(0).await;
    successor.apply_one(send(users[1], group, "successor")).await;
    let answer = zombie.await.expect("no panic");
    assert!(matches!(answer, Err(ApplyError::Unavailable(_))), "before COMMIT nothing is uncertain: {answer:?}");
    assert_eq!(bodies(&lab.store, users[0], group).await, ["", "successor"], "the zombie wrote nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_commit_is_uncertain_and_makes_no_duplicate() {
    let Some(database) = Database::new().await else { return };
    let (lab, lane, users, group) = lab(&database).await;
    let proxy = Proxy::before(&database.url).await;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&proxy.url).await.expect("through the proxy"));
    let record = send(users[0], group, "once");
    let batch = batch(&lab, &lane, vec![record.clone()]);
    proxy.set(Some(Fault::LoseAnswer(b"COMMIT")));
    let answer = store.apply(&batch).await;
    assert!(matches!(answer, Err(ApplyError::Uncertain(_))), "{answer:?}");
    proxy.set(None);

    // The row was locked until the commit was done, so the claim tells how it went.
    let claim = store.claim(&lab.log_id, 0).await.expect("a claim");
    assert_eq!(claim.next, batch.parts[0].records[0].next, "it was committed");
    let replayed = store.replay(&lab.log_id, 0, &batch.parts[0].records).await.expect("a replay");
    assert!(matches!(&replayed[..], [Replayed::Numbered(record)] if record.message.seq == 2), "{replayed:?}");
    let mut again = lab.lane(0).await;
    assert!(matches!(again.apply_one(record).await, Outcome::Duplicate(_)));
    assert_eq!(bodies(&lab.store, users[0], group).await, ["", "once"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_is_only_slow() {
    let Some(database) = Database::new().await else { return };
    let (lab, mut lane, users, group) = lab(&database).await;
    let proxy = Proxy::before(&database.url).await;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&proxy.url).await.expect("through the proxy"));
    proxy.set(Some(Fault::Slow(Duration::from_millis(200))));
    for seq in 2..5 {
        let batch = batch(&lab, &lane, vec![send(users[0], group, "slow")]);
        let applied = store.apply(&batch).await.expect("nothing takes longer than it may");
        assert_eq!(only_seq(&applied.parts[0]), Some(seq));
        lane.claim.next = batch.parts[0].records[0].next;
    }
}

/// A lock that someone else holds ends the wait, not the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_held_by_another_is_unavailable() {
    let Some(database) = Database::new().await else { return };
    let (lab, lane, users, group) = lab(&database).await;
    let mut other = database.session().await;
    sqlx::raw_sql("BEGIN; SELECT FROM conversations FOR UPDATE").execute(&mut other).await.expect("a lock");
    let batch = batch(&lab, &lane, vec![send(users[0], group, "x")]);
    let answer = lab.store.apply(&batch).await;
    assert!(matches!(&answer, Err(ApplyError::Unavailable(words)) if words.contains("55P03")), "{answer:?}");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("the lock is gone");
    assert_eq!(only_seq(&lab.store.apply(&batch).await.expect("free again").parts[0]), Some(2));
}

/// What a transaction changed that was running when heads were asked for is in the next answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_waits_for_the_transactions_that_run() {
    let Some(database) = Database::new().await else { return };
    let (lab, mut lane, users, group) = lab(&database).await;
    let late = lab.group(&mut lane, &users).await;
    let start = lab.store.heads(users[0], None, 10).await.expect("heads").next.expect("a cursor");
    let mut other = database.session().await;
    let statement = format!(
        "BEGIN; UPDATE conversations SET last_seq = last_seq + 1, changed = pg_current_xact_id()::text::bigint
         WHERE conversation_id = '{late}'"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut other).await.expect("an update");
    // Later transactions commit earlier.
    for _ in 0..5 {
        lane.apply_one(send(users[0], group, "x")).await;
    }
    let ids = |heads: &roost_protocol::frames::Heads| {
        heads.conversations.iter().map(|head| (head.conversation_id, head.last_seq)).collect::<Vec<_>>()
    };
    let during = lab.store.heads(users[0], Some(&start), 10).await.expect("heads");
    assert_eq!(ids(&during), [(group, 6)]);
    sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("a commit");
    let after = lab.store.heads(users[0], during.next.as_deref(), 10).await.expect("heads");
    assert!(ids(&after).contains(&(late, 2)), "{after:?}");
    let quiet = lab.store.heads(users[0], after.next.as_deref(), 10).await.expect("heads");
    assert_eq!(ids(&quiet), []);
}

/// Lanes that touch the same conversations, each in its own order, never wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_never_deadlock() {
    let Some(database) = Database::new().await else { return };
    let (lab, mut first, users, _) = lab(&database).await;
    let mut groups = Vec::new();
    for _ in 0..20 {
        groups.push(lab.group(&mut first, &users).await);
    }
    let mut lanes = vec![first];
    for partition in 1..4 {
        lanes.push(lab.lane(partition).await);
    }
    let working = lanes.into_iter().map(|mut lane| {
        let (store, log_id, mut groups, user) = (lab.store.clone(), lab.log_id.clone(), groups.clone(), users[0]);
        async move {
            for _ in 0..50 {
                groups.shuffle(&mut rand::rng());
                let part = lane.part(groups.iter().map(|&group| send(user, group, "x")).collect());
                let next = part.records.last().expect("records").next;
                store.apply(&ApplyBatch { log_id: log_id.clone(), parts: vec![part] }).await.expect("no deadlock");
                lane.claim.next = next;
            }
        }
    });
    join_all(working).await;
    for group in groups {
        let history = lab.store.history(users[0], group, HistoryRange::Before(Seq::MAX), 1).await.expect("a page");
        assert_eq!(history.to, 201);
    }
}

/// A worker's life with a database that ends its sessions all the time: every record is numbered once, in log order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_ended_lose_and_repeat_nothing() {
    let Some(database) = Database::new().await else { return };
    let (lab, mut lane, users, group) = lab(&database).await;
    let mut killer = database.session().await;
    let killing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(15)).await;
            let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                             WHERE datname = current_database() AND application_name = 'roost'";
            sqlx::raw_sql(statement).execute(&mut killer).await.expect("a killing");
        }
    });
    let (mut failed, mut uncertain) = (0, 0);
    for round in 0..150 {
        let from = lane.claim.next;
        let records = lane.incoming(vec![send(users[0], group, &format!("{round}"))]);
        let next = records[0].next;
        while lane.claim.next != next {
            let batch = ApplyBatch { log_id: lab.log_id.clone(), parts: vec![lane.part_of(records.clone())] };
            match lab.store.apply(&batch).await {
                Ok(applied) => {
                    assert_eq!(only_seq(&applied.parts[0]), Some(round + 2));
                    lane.claim.next = next;
                    break;
                }
                Err(ApplyError::Unavailable(_)) => failed += 1,
                Err(ApplyError::Uncertain(_)) => uncertain += 1,
                Err(error) => panic!("{error}"),
            }
            lane.claim = claim(&lab).await;
            assert!([from, next].contains(&lane.claim.next), "all of it or nothing");
        }
    }
    killing.abort();
    let _ = killing.await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    println!("{failed} transactions failed, {uncertain} were uncertain");
    assert!(failed > 0, "inconclusive: no session was ended in the middle of a transaction");
    let store = database.store().await;
    let expected: Vec<String> = std::iter::once(String::new()).chain((0..150).map(|n| n.to_string())).collect();
    assert_eq!(bodies(&store, users[0], group).await, expected);
}

/// A claim, however often it takes.
async fn claim(lab: &Lab) -> Claim {
    loop {
        match lab.store.claim(&lab.log_id, 0).await {
            Ok(claim) => return claim,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// However many readers wait, numbering goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_cannot_starve_numbering() {
    let Some(database) = Database::new().await else { return };
    let (lab, lane, users, group) = lab(&database).await;
    let mut other = database.session().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE meta").execute(&mut other).await.expect("a lock that all readers meet");
    let reading: Vec<_> = (0..100)
        .map(|_| {
            let (store, user) = (lab.store.clone(), users[0]);
            tokio::spawn(async move { store.heads(user, None, 10).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let batch = batch(&lab, &lane, vec![send(users[0], group, "x")]);
    assert_eq!(only_seq(&lab.store.apply(&batch).await.expect("numbering goes on").parts[0]), Some(2));
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("the lock is gone");
    for answer in join_all(reading).await {
        answer.expect("no panic").expect("answered once the lock was gone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_would_lose_commits_is_refused() {
    let Some(database) = Database::new().await else { return };
    let store = database.store().await;
    let mut session = database.session().await;
    let name = database.url.rsplit_once('/').expect("a name").1;
    let statement = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.expect("a setting");
    let refused = PostgresStore::connect(&database.url).await.err().expect("refused");
    assert!(
        matches!(&refused, StoreError::Refused(words) if words.contains("set synchronous_commit = on")),
        "{refused:?}"
    );
    drop(store);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_not_ours_is_refused() {
    let Some(database) = Database::new().await else { return };
    let store = database.store().await;
    for answer in [store.check().await, store.epoch().await.map(|_| ())] {
        assert!(matches!(&answer, Err(StoreError::Refused(words)) if words.contains("migration")), "{answer:?}");
    }
    let migration = Migration { log_id: "log".into(), partitions: 8 };
    let programs = join_all((0..4).map(|_| database.store())).await;
    let migrating = join_all(programs.iter().map(|store| store.migrate(&migration))).await;
    assert!(migrating.iter().all(Result::is_ok), "several programs may migrate at once: {migrating:?}");
    assert_eq!(store.check().await, Ok(()));
    let mut session = database.session().await;
    let newer = "INSERT INTO _sqlx_migrations VALUES (9999, 'newer', now(), true, '', 0)";
    sqlx::raw_sql(newer).execute(&mut session).await.expect("a row");
    assert!(matches!(store.check().await, Err(StoreError::Refused(_))), "a newer build has been here");
}

#[tokio::test]
async fn an_address_where_nobody_answers_is_unavailable() {
    // Port 1 of this machine is nobody's; 203.0.113.0/24 is nobody's anywhere.
    let refused = PostgresStore::connect("postgres://postgres@127.0.0.1:1/x").await.err();
    assert!(matches!(refused, Some(StoreError::Unavailable(_))), "{refused:?}");
    let config = PostgresConfig::parse("postgres://postgres@203.0.113.1/x").expect("a URL");
    let silent = PostgresStore::connect_with(config).await.err();
    assert!(matches!(silent, Some(StoreError::Unavailable(_))), "{silent:?}");
}

/// Wherever the transaction stops: before COMMIT nothing of it is there, after it all of it.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_may_be_the_last() {
    let Some(database) = Database::new().await else { return };
    let scenario = fail::FailScenario::setup();
    let (lab, mut lane, users, group) = lab(&database).await;
    let before = ["store-after-lock", "store-after-lookup", "store-after-insert", "store-before-commit"];
    for (number, point) in before.into_iter().chain(["store-after-commit"]).enumerate() {
        let body = format!("{number}");
        let batch = batch(&lab, &lane, vec![send(users[0], group, &body)]);
        fail::cfg(point, "1*return").expect("a fail point");
        let answer = lab.store.apply(&batch).await;
        let next = lab.claim(0).await.next;
        if point == "store-after-commit" {
            assert!(matches!(answer, Err(ApplyError::Uncertain(_))), "{point}: {answer:?}");
            assert_eq!(next, batch.parts[0].records[0].next, "{point}");
        } else {
            assert!(matches!(answer, Err(ApplyError::Unavailable(_))), "{point}: {answer:?}");
            assert_eq!(next, lane.claim.next, "{point}");
        }
        lane = lab.lane(0).await;
    }
    scenario.teardown();
    lane.apply_one(send(users[0], group, "last")).await;
    assert_eq!(bodies(&lab.store, users[0], group).await, ["", "4", "last"]);
}
