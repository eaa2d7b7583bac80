//! The Log on SQLite when a commit fails, when its answer is lost, and when its writer dies.
#![cfg(feature = "failpoints")]

use std::sync::Arc;

use fail::FailScenario;
use roost_embedded::log::{Options, SqliteLog};
use roost_ports::Log;
use roost_ports::conformance::log::{Reader, append, fresh_group, record, texts};
use roost_ports::log::{AppendError, LogError, Position, StartAt, Topic};

// One test: fail points belong to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_confuses_nobody() {
    let scenario = FailScenario::setup();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log.db");
    let options = Options { partitions: 4, ..Options::default() };
    let log = SqliteLog::open(&path, options.clone()).expect("the log opens");
    let dynamic: Arc<dyn Log> = log.clone();
    let mut reader = Reader::join(&dynamic, Topic::Ingress, &fresh_group(), Some(StartAt::Committed)).await;
    append(&dynamic, Topic::Ingress, 0, &texts("first", 2)).await;

    fail::cfg("log-before-commit", "1*return").expect("configured");
    let lost = log.append(Topic::Ingress, vec![record(0, "lost")]).await;
    assert!(matches!(lost[0], Err(AppendError::Unknown(_))), "{lost:?}");

    fail::cfg("log-after-commit", "1*return").expect("configured");
    let unanswered = log.append(Topic::Ingress, vec![record(0, "unanswered")]).await;
    assert!(matches!(unanswered[0], Err(AppendError::Unknown(_))), "{unanswered:?}");
    assert_eq!(append(&dynamic, Topic::Ingress, 0, &["last".into()]).await, [Position(3)]);
    reader.until_read(0, 4).await;
    assert_eq!(reader.texts(0), ["first-0", "first-1", "unanswered", "last"]);
    assert_eq!(log.check().await, Ok(()));

    fail::cfg("log-before-commit", "panic").expect("configured");
    let dead = log.append(Topic::Ingress, vec![record(0, "never")]).await;
    assert!(matches!(dead[0], Err(AppendError::Unknown(_))), "{dead:?}");
    let after = log.append(Topic::Ingress, vec![record(0, "never")]).await;
    assert!(matches!(after[0], Err(AppendError::Unknown(_))), "{after:?}");
    assert!(matches!(log.check().await, Err(LogError::Unavailable(_))));
    fail::remove("log-before-commit");
    reader.close().await;
    drop((log, dynamic));

    let log: Arc<dyn Log> = SqliteLog::open(&path, options).expect("the log opens after its writer's death");
    // A reader that is behind meets a commit that is in the file but not made known yet.
    fail::cfg("log-after-commit", "1*sleep(300)").expect("configured");
    let appended = log.append(Topic::Ingress, vec![record(0, "new")]);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let mut reader = Reader::join(&log, Topic::Ingress, &fresh_group(), Some(StartAt::Committed)).await;
    reader.until_read(0, 4).await;
    let reads_on = tokio::time::timeout(std::time::Duration::from_millis(50), reader.until_read(0, 7));
    assert!(reads_on.await.is_err(), "there is no more");
    assert_eq!(appended.await, [Ok(Position(4))]);
    append(&log, Topic::Ingress, 0, &["newer".into()]).await;
    reader.until_read(0, 6).await;
    assert_eq!(reader.texts(0), ["first-0", "first-1", "unanswered", "last", "new", "newer"]);
    assert!(reader.out_of_range.is_empty(), "{:?}", reader.out_of_range);
    scenario.teardown();
}
