//! A process that dies at every fail point, one after the other, and what its successor makes of what it left behind.
#![cfg(feature = "failpoints")]

mod support;

use std::borrow::Cow;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use roost_embedded::log::{Options, SqliteLog};
use roost_embedded::store::SqliteStore;
use roost_ports::log::{NewRecord, Position, Topic};
use roost_ports::store::{Account, Migration};
use roost_ports::{Log, Store};
use roost_protocol::frames::{ConversationKind, HistoryRange};
use roost_protocol::records::{Action, DeliverRecord, Endpoint, IngressRecord, Origin};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Incarnation, UserId, partition};
use roost_workers::persist::{self, fail_points};
use support::RecordingDelivery;

const FOLDER: &str = "ROOST_CRASH_FOLDER";
const PARTITIONS: u32 = 4;
const SENDS: u8 = 40;
const CONVERSATIONS: u8 = 3;

#[test]
fn no_crash_between_two_steps_loses_or_doubles_a_number() {
    for point in fail_points::ALL {
        let folder = tempfile::tempdir().expect("a folder");
        // The first one leaves records that are committed and not published: the second one has something to replay.
        let first = live(folder.path(), &format!("{}=return", fail_points::AFTER_APPLY));
        assert!(!first.success(), "{point}: the first process was to crash");
        let second = live(folder.path(), &format!("{point}=return"));
        assert!(!second.success(), "{point} was not reached");
        let third = live(folder.path(), "");
        assert!(third.success(), "{point}: the third process did not finish: {third}");
        println!("{point}: ok");
    }
}

/// One life of the process, in this very binary.
fn live(folder: &Path, fail_points: &str) -> ExitStatus {
    let binary = std::env::current_exe().expect("this binary");
    let mut command = Command::new(binary);
    command.args(["--exact", "one_life", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder).env("FAILPOINTS", fail_points).env("RUST_BACKTRACE", "0");
    let output = command.output().expect("a process");
    if fail_points.is_empty() && !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of its own, started by the test above"]
async fn one_life() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let _scenario = fail::FailScenario::setup();
    let folder = Path::new(&folder);
    let options = Options { log_id: "crash".into(), partitions: PARTITIONS, ..Options::default() };
    let log: Arc<dyn Log> = SqliteLog::open(&folder.join("log"), options).expect("a log");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join("store")).expect("a store"));
    store.migrate(&Migration { log_id: "crash".into(), partitions: PARTITIONS }).await.expect("migrated");
    let user = UserId::from_bytes([1; 16]);
    for user_id in members(user) {
        let account = Account { user_id, name: user_id.to_string(), password_hash: String::new(), created: 1 };
        // An earlier life may have made it.
        let _ = store.create_account(&account).await;
    }
    let config = persist::Config { note_after_ms: 20, ..persist::Config::default() };
    let delivery = Arc::new(RecordingDelivery::default());
    let ports = persist::Ports { log: log.clone(), store: store.clone(), delivery };
    let worker = persist::Worker::start(config, ports);
    // A client retries for ever: every life sends everything again, under the same ids.
    for record in records(user) {
        let partition = partition::of(record.conversation_id(), PARTITIONS);
        let appended = log.append(Topic::Ingress, vec![NewRecord { partition, payload: record.encode() }]).await;
        assert!(appended.iter().all(Result::is_ok));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while let Err(missing) = complete(log.as_ref(), store.as_ref(), user).await {
        assert!(tokio::time::Instant::now() < deadline, "{missing}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.stop().await;
    for partition in 0..PARTITIONS {
        let claim = store.claim("crash", partition).await.expect("a claim");
        let end = log.bounds(Topic::Ingress, partition).await.expect("bounds").end;
        assert_eq!((claim.next, claim.published), (end, end), "partition {partition}");
    }
}

fn records(user: UserId) -> Vec<IngressRecord<'static>> {
    let origin = Endpoint { address: "nobody".into(), incarnation: Incarnation(1) };
    let record = |id: [u8; 2], action| IngressRecord {
        actor: user,
        device: DeviceId::from_bytes([2; 16]),
        client_msg_id: ClientMsgId::from_bytes([[id[0]; 8], [id[1]; 8]].concat().try_into().expect("16 bytes")),
        time: 1,
        origin: Some(Origin { endpoint: origin.clone(), session: None, request: 1 }),
        if_last_seq: None,
        action,
    };
    let mut records = Vec::new();
    for number in 0..CONVERSATIONS {
        let conversation_id = conversation(number);
        let action =
            Action::Create { conversation_id, kind: ConversationKind::Group, title: None, members: members(user) };
        records.push(record([number, 255], action));
        for send in 0..SENDS {
            let (content_type, body) = (Cow::Borrowed("text/plain"), Cow::Owned(vec![send]));
            records.push(record([number, send], Action::Send { conversation_id, content_type, body }));
        }
    }
    records
}

fn members(user: UserId) -> Vec<UserId> {
    vec![user, UserId::from_bytes([9; 16])]
}

fn conversation(number: u8) -> ConversationId {
    ConversationId::from_bytes([number + 1; 16])
}

/// Every message is numbered once, in the order sent, and every number is in `deliver`.
async fn complete(log: &dyn Log, store: &dyn Store, user: UserId) -> Result<(), String> {
    for number in 0..CONVERSATIONS {
        let conversation = conversation(number);
        let page = store.history(user, conversation, HistoryRange::After(0), 200).await;
        let page = page.map_err(|error| error.to_string())?;
        let bodies: Vec<u8> =
            page.messages.iter().skip(1).filter_map(|message| message.body.first().copied()).collect();
        let seqs: Vec<u64> = page.messages.iter().map(|message| message.seq).collect();
        if bodies != (0..SENDS).collect::<Vec<_>>() || seqs != (1..=u64::from(SENDS) + 1).collect::<Vec<_>>() {
            return Err(format!("{conversation} holds {seqs:?}, {bodies:?}"));
        }
        let mut delivered = delivered(log, conversation).await?;
        delivered.sort_unstable();
        delivered.dedup();
        if delivered != seqs {
            return Err(format!("{conversation} is delivered as {delivered:?}"));
        }
    }
    Ok(())
}

async fn delivered(log: &dyn Log, conversation: ConversationId) -> Result<Vec<u64>, String> {
    let partition = partition::of(conversation, PARTITIONS);
    let mut at = log.bounds(Topic::Deliver, partition).await.map_err(|error| error.to_string())?.end;
    let mut seqs = Vec::new();
    while let Some(record) = log.read_before(Topic::Deliver, partition, at).await.map_err(|error| error.to_string())? {
        at = record.position;
        let record = DeliverRecord::decode(record.payload).map_err(|error| error.to_string())?;
        if record.message.conversation_id == conversation {
            seqs.push(record.message.seq);
        }
        if at == Position(0) {
            break;
        }
    }
    Ok(seqs)
}
