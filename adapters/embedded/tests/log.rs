//! The Log on SQLite passes the suite, and what is its own besides.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_embedded::log::{Options, SqliteLog};
use roost_ports::conformance::log::{LogHarness, PARTITIONS, Reader, append, fresh_group, record, texts};
use roost_ports::log::{AppendError, Log, LogError, Position, StartAt, Topic};
use tempfile::TempDir;

/// Folders and the logs made in them: `reopen` has to find the file of a log that it knows as a trait object only.
struct Harness {
    folder: TempDir,
    logs: Mutex<Vec<(Arc<SqliteLog>, PathBuf)>>,
}

fn options() -> Options {
    Options { partitions: PARTITIONS, keep_behind: 16, ..Options::default() }
}

async fn harness() -> Option<Harness> {
    Some(Harness { folder: tempfile::tempdir().expect("a folder"), logs: Mutex::new(Vec::new()) })
}

impl Harness {
    fn open(&self, path: PathBuf) -> Arc<dyn Log> {
        let log = SqliteLog::open(&path, options()).expect("the log opens");
        self.logs.lock().push((Arc::clone(&log), path));
        log
    }

    fn position(&self, log: &Arc<dyn Log>) -> usize {
        let is_it = |known: &Arc<SqliteLog>| Arc::as_ptr(known).cast::<()>() == Arc::as_ptr(log).cast::<()>();
        self.logs.lock().iter().position(|(known, _)| is_it(known)).expect("a log of this harness")
    }
}

#[async_trait]
impl LogHarness for Harness {
    async fn make(&self) -> Arc<dyn Log> {
        let path = self.folder.path().join(format!("{}.db", self.logs.lock().len()));
        self.open(path)
    }

    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log> {
        let position = self.position(&log);
        let (known, path) = self.logs.lock().swap_remove(position);
        drop(log);
        drop(known);
        self.open(path)
    }

    async fn trim(&self, log: &Arc<dyn Log>, topic: Topic, partition: u32, before: Position) -> bool {
        let position = self.position(log);
        let sqlite = Arc::clone(&self.logs.lock()[position].0);
        let mut reader = Reader::join(log, topic, &fresh_group(), None).await;
        reader.until_owns_all(PARTITIONS).await;
        reader.consumer.commit(partition, reader.owned[&partition], before);
        sqlite.sweep().await;
        reader.close().await;
        true
    }
}

roost_ports::conformance_tests!(log, harness);

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log.db");
    (folder, path)
}

fn refusal(path: &std::path::Path, options: Options) -> String {
    match SqliteLog::open(path, options) {
        Err(LogError::Refused(why)) => why,
        Err(other) => panic!("not refused but {other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn a_log_made_for_something_else_is_refused() {
    let (_folder, path) = file();
    let log = SqliteLog::open(&path, options()).expect("the log opens");
    assert!(refusal(&path, options()).contains("in use"));
    drop(log);
    let why = refusal(&path, Options { partitions: PARTITIONS * 2, ..options() });
    assert!(why.contains("partitions 4, not 8"), "{why}");
    let why = refusal(&path, Options { log_id: "another".into(), ..options() });
    assert!(why.contains("log_id embedded, not another"), "{why}");
    SqliteLog::open(&path, options()).expect("the log opens as it was made");

    let (_folder, path) = file();
    std::fs::write(&path, "this is not a database, it only has been given the name of one".repeat(100))
        .expect("written");
    assert!(refusal(&path, options()).contains("not a log"));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_takes_more_later() {
    let (_folder, path) = file();
    let log = SqliteLog::open(&path, Options { queue_records_max: 50, ..options() }).expect("the log opens");
    let mut pending = Vec::new();
    let refused = loop {
        let mut call = log.append(Topic::Ingress, (0..10).map(|_| record(0, "x")).collect());
        if let std::task::Poll::Ready(results) = futures::poll!(&mut call) {
            if results[0] == Err(AppendError::Full) {
                break results;
            }
        } else {
            pending.push(call);
        }
        assert!(pending.len() < 100_000, "the queue is never full");
    };
    assert_eq!(refused, vec![Err(AppendError::Full); 10]);
    let mut accepted = 0;
    for call in pending {
        accepted += call.await.into_iter().filter(Result::is_ok).count() as u64;
    }
    let bounds = log.bounds(Topic::Ingress, 0).await.expect("bounds");
    assert!(bounds.end.0 >= accepted, "{bounds:?} {accepted}");
    let again = log.append(Topic::Ingress, vec![record(0, "again")]).await;
    assert!(again[0].is_ok(), "{again:?}");
    // One call larger than the whole bound is not refused for ever.
    let large = log.append(Topic::Ingress, (0..200).map(|_| record(1, "large")).collect()).await;
    assert!(large.iter().all(Result::is_ok));
}

#[tokio::test]
async fn consumed_records_are_deleted_and_the_ones_a_claim_reads_are_kept() {
    let (_folder, path) = file();
    let log = SqliteLog::open(&path, options()).expect("the log opens");
    let dynamic: Arc<dyn Log> = log.clone();
    let group = fresh_group();
    let mut reader = Reader::join(&dynamic, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    for round in 0..20 {
        append(&dynamic, Topic::Ingress, 0, &texts(&format!("round{round}"), 100)).await;
    }
    reader.until_read(0, 2_000).await;
    log.sweep().await;
    assert_eq!(log.bounds(Topic::Ingress, 0).await.expect("bounds").begin, Position(0), "nothing is committed yet");
    reader.consumer.commit(0, reader.owned[&0], Position(2_000));
    log.sweep().await;
    let bounds = log.bounds(Topic::Ingress, 0).await.expect("bounds");
    assert!(bounds.begin > Position(1_000) && bounds.begin <= Position(2_000 - 16), "{bounds:?}");
    let before = log.read_before(Topic::Ingress, 0, Position(2_000)).await.expect("answers").expect("is kept");
    assert_eq!(before.payload.as_ref(), b"round19-99");

    // A reader that goes back stops deletion where it is.
    reader.start(0, StartAt::Position(Position(1_950)));
    append(&dynamic, Topic::Ingress, 0, &texts("more", 1_000)).await;
    log.sweep().await;
    reader.until_read(0, 1_050).await;
    reader.close().await;
    drop((log, dynamic));

    // The committed position and the bounds are in the file.
    let log = SqliteLog::open(&path, options()).expect("the log opens");
    assert_eq!(
        log.bounds(Topic::Ingress, 0).await.expect("bounds"),
        roost_ports::log::Bounds { end: Position(3_000), ..bounds }
    );
    let dynamic: Arc<dyn Log> = log;
    let mut reader = Reader::join(&dynamic, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    reader.until_read(0, 1).await;
    assert_eq!(reader.positions(0)[0], Position(1_950));
}

#[tokio::test]
async fn a_topic_that_nobody_reads_does_not_grow_for_ever() {
    let (_folder, path) = file();
    let log = SqliteLog::open(&path, Options { keep_unread: 100, ..options() }).expect("the log opens");
    let dynamic: Arc<dyn Log> = log.clone();
    for round in 0..50 {
        append(&dynamic, Topic::DeadLetter, 0, &texts(&format!("round{round}"), 50)).await;
    }
    log.sweep().await;
    let bounds = log.bounds(Topic::DeadLetter, 0).await.expect("bounds");
    assert_eq!(bounds.end, Position(2_500));
    assert!(bounds.begin >= Position(2_300) && bounds.begin <= Position(2_400), "{bounds:?}");
}

/// What is behind the tail in memory comes from the file, and nothing is missed where the two meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_far_behind_reads_the_file_and_then_the_memory() {
    let (_folder, path) = file();
    let log: Arc<dyn Log> =
        SqliteLog::open(&path, Options { tail_bytes_max: 20_000, ..options() }).expect("the log opens");
    let mut wanted = Vec::new();
    for round in 0..40 {
        let some = texts(&format!("round{round}"), 250);
        append(&log, Topic::Deliver, 3, &some).await;
        wanted.extend(some);
    }
    let mut reader = Reader::join(&log, Topic::Deliver, &fresh_group(), Some(StartAt::Committed)).await;
    let appender = Arc::clone(&log);
    let more = tokio::spawn(async move {
        for text in texts("late", 500) {
            append(&appender, Topic::Deliver, 3, &[text]).await;
        }
    });
    reader.until_read(3, 10_500).await;
    more.await.expect("the appends do not panic");
    wanted.extend(texts("late", 500));
    assert!(reader.texts(3) == wanted, "what was read is not what was appended");
}

#[tokio::test]
async fn a_closed_log_says_so() {
    let (_folder, path) = file();
    let log = SqliteLog::open(&path, options()).expect("the log opens");
    let mut consumer = log.consume(Topic::Ingress, "g").await.expect("joined");
    let pending = log.append(Topic::Ingress, vec![record(0, "in line")]);
    drop(log);
    assert!(pending.await[0].is_ok(), "what was in line is written before the end");
    let ended = loop {
        if let Err(error) = consumer.next().await {
            break error;
        }
    };
    assert!(matches!(ended, LogError::Unavailable(_)), "{ended:?}");
}
