//! What the Store on SQLite holds after its process was killed, between any two steps of a transaction.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_ports::conformance::store::{Lab, Lane};
use roost_ports::store::apply::{Incoming, Outcome, Replayed};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};

/// Set for the process that is to die: its folder.
const FOLDER: &str = "ROOST_STORE_CRASH_FOLDER";
const LOG: &str = "crash";
/// Records in each batch.
const BATCH: usize = 7;

/// Killed by a signal while it commits one batch after the other.
#[test]
fn what_was_acknowledged_survives_a_kill() {
    for acknowledged in [1, 5, 60] {
        crash(None, acknowledged * BATCH as u64);
    }
}

/// Killed at each step of the transaction.
#[test]
#[cfg(feature = "failpoints")]
fn what_was_acknowledged_survives_a_crash_between_any_two_steps() {
    let points =
        ["store-after-lock", "store-after-lookup", "store-after-insert", "store-before-commit", "store-after-commit"];
    for point in points {
        crash(Some(&format!("{point}=8*off->return")), u64::MAX);
    }
}

/// Lets a process apply until it has acknowledged so much or dies by itself, and looks at what it left.
fn crash(fail_points: Option<&str>, kill_after: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut child = Command::new(std::env::current_exe().expect("this test's own program"))
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .env("FAILPOINTS", fail_points.unwrap_or(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the process that is to die");
    let mut acknowledged: u64 = 0;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        if let Some(position) = line.expect("text").strip_prefix("acknowledged ") {
            acknowledged = position.parse().expect("a position");
            if acknowledged >= kill_after {
                child.kill().expect("the process lives");
            }
        }
    }
    assert!(!child.wait().expect("the process has ended").success(), "it has died, not ended");
    assert!(acknowledged > 0, "{fail_points:?}: it has done something before");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(examine(folder.path(), acknowledged, fail_points));
}

/// Whatever the Store says is applied has its rows, with dense numbers; what was acknowledged is applied; and it can go on.
async fn examine(folder: &Path, acknowledged: u64, fail_points: Option<&str>) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join("store.db")).expect("it opens"));
    let lab = Lab { store: store.clone(), log_id: LOG.to_owned() };
    let mut lane = lab.lane(0).await;
    let next = lane.claim.next.0;
    assert!(next == acknowledged || next == acknowledged + BATCH as u64, "{fail_points:?}: {next} {acknowledged}");
    let ids = Ids::read(folder);
    let applied: Vec<Incoming> = (0..next).map(|position| ids.incoming(position)).collect();
    assert_eq!(lane.claim.last_digest, applied.last().map(|record| record.digest));
    let replayed = store.replay(LOG, 0, &applied).await.expect("a replay");
    for (position, replayed) in replayed.iter().enumerate() {
        let Replayed::Numbered(record) = replayed else { panic!("{fail_points:?}: {position} is {replayed:?}") };
        assert_eq!(record.message.seq, position as u64 + 1);
    }
    let beyond = store.replay(LOG, 0, &[ids.incoming(next)]).await.expect("a replay");
    assert_eq!(beyond, [Replayed::Missing], "nothing of a batch without its progress");
    let part = lane.part_of((next..next + 3).map(|position| ids.incoming(position)).collect());
    let outcomes = lane.apply_part(part).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Numbered(_))), "{outcomes:?}");
}

/// The process that is to die.
#[test]
#[ignore = "run by the other tests"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(apply_for_ever(Path::new(&folder)));
}

async fn apply_for_ever(folder: &Path) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join("store.db")).expect("it opens"));
    let migration = roost_ports::store::Migration { log_id: LOG.to_owned(), partitions: 1 };
    store.migrate(&migration).await.expect("it migrates");
    let lab = Lab { store, log_id: LOG.to_owned() };
    let users = lab.users(2).await;
    let ids = Ids { users: [users[0], users[1]] };
    ids.write(folder);
    let mut lane: Lane = lab.lane(0).await;
    loop {
        let first = lane.claim.next.0;
        let part = lane.part_of((first..first + BATCH as u64).map(|position| ids.incoming(position)).collect());
        lane.apply_part(part).await;
        println!("acknowledged {}", lane.claim.next.0);
    }
}

/// Says what stands at each position of the log, to both processes.
struct Ids {
    users: [UserId; 2],
}

impl Ids {
    fn write(&self, folder: &Path) {
        let text = format!("{} {}", self.users[0], self.users[1]);
        std::fs::write(folder.join("ids"), text).expect("the folder can be written");
    }

    fn read(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join("ids")).expect("the ids are written before the first batch");
        let (one, other) = text.split_once(' ').expect("two ids");
        Self { users: [one.parse().expect("an id"), other.parse().expect("an id")] }
    }

    fn incoming(&self, position: u64) -> Incoming {
        let conversation_id = ConversationId::direct(self.users[0], self.users[1]);
        let action = match position {
            0 => {
                let members = self.users.to_vec();
                Action::Create { conversation_id, kind: ConversationKind::Direct, title: None, members }
            }
            _ => Action::Send {
                conversation_id,
                content_type: "text/plain".into(),
                body: position.to_string().into_bytes().into(),
            },
        };
        let record = IngressRecord {
            actor: self.users[position as usize % 2],
            device: DeviceId::from_bytes([1; 16]),
            client_msg_id: ClientMsgId::from_bytes(u128::from(position).to_be_bytes()),
            time: 1,
            origin: None,
            if_last_seq: None,
            action,
        };
        Incoming {
            position: roost_ports::log::Position(position),
            next: roost_ports::log::Position(position + 1),
            digest: roost_protocol::digest::of_record(&record.encode()),
            content: Ok(record),
        }
    }
}
