//! Measures the Log: appends one after the other, at 1,700 a second, and as many as it takes; beside the disk itself.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_embedded::log::{Options, SqliteLog};
use roost_ports::Log;
use roost_ports::log::{ConsumerEvent, NewRecord, StartAt, Topic};

const PAYLOAD_BYTES: usize = 256;
const PARTITIONS: u32 = 48;
const PER_SECOND: u32 = 1_700;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    report("disk: write 8 KiB, fdatasync", disk(&folder.path().join("raw")));
    let log = SqliteLog::open(&folder.path().join("log.db"), Options { partitions: PARTITIONS, ..Options::default() });
    let log = log.expect("the log opens");
    println!("memory at rest, {PARTITIONS} partitions: {} KiB", resident_kib());
    let consumer = tokio::spawn(consume(Arc::clone(&log)));
    report("append, one after the other", sequence(&log).await);
    let (ingress, both) = at_a_rate(&log).await;
    report("append to ingress at 1,700/s (each followed by deliver)", ingress);
    report("  ingress, then deliver", both);
    most(&log, 64, 1).await;
    most(&log, 64, 16).await;
    most(&log, 8, 512).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("memory after it: {} KiB", resident_kib());
    let size = |name: &str| std::fs::metadata(folder.path().join(name)).map_or(0, |data| data.len() / 1024);
    println!("files: log.db {} KiB, log.db-wal {} KiB", size("log.db"), size("log.db-wal"));
    consumer.abort();
}

fn report(what: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let count = latencies.len();
    println!("{what}: p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms ({count})", at(0.5), at(0.99), at(1.0));
}

fn disk(path: &Path) -> Vec<Duration> {
    let mut file = std::fs::File::create(path).expect("a file");
    let block = vec![1; 8192];
    let once = |_| {
        let begun = Instant::now();
        file.write_all(&block).expect("written");
        file.sync_data().expect("synced");
        begun.elapsed()
    };
    (0..1_000).map(once).collect()
}

fn record(number: u32) -> NewRecord {
    NewRecord { partition: number % PARTITIONS, payload: Bytes::from(vec![number as u8; PAYLOAD_BYTES]) }
}

async fn sequence(log: &Arc<SqliteLog>) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for number in 0..1_000 {
        let begun = Instant::now();
        assert!(log.append(Topic::Ingress, vec![record(number)]).await[0].is_ok());
        latencies.push(begun.elapsed());
    }
    latencies
}

/// Open loop: a slow answer makes nobody else wait.
async fn at_a_rate(log: &Arc<SqliteLog>) -> (Vec<Duration>, Vec<Duration>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed() < Duration::from_secs(10) {
        ticks.tick().await;
        while f64::from(number) < begun.elapsed().as_secs_f64() * f64::from(PER_SECOND) {
            let log = Arc::clone(log);
            number += 1;
            tasks.spawn(async move {
                let begun = Instant::now();
                assert!(log.append(Topic::Ingress, vec![record(number)]).await[0].is_ok());
                let ingress = begun.elapsed();
                assert!(log.append(Topic::Deliver, vec![record(number)]).await[0].is_ok());
                (ingress, begun.elapsed())
            });
        }
    }
    tasks.join_all().await.into_iter().unzip()
}

async fn most(log: &Arc<SqliteLog>, appenders: u32, each: u32) {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for appender in 0..appenders {
        let log = Arc::clone(log);
        tasks.spawn(async move {
            let (mut count, mut slowest) = (0u64, Duration::ZERO);
            while begun.elapsed() < Duration::from_secs(5) {
                let call = Instant::now();
                let records = (0..each).map(|number| record(appender * 7 + number)).collect();
                let topic = if count % 2 == 0 { Topic::Ingress } else { Topic::Deliver };
                assert!(log.append(topic, records).await.iter().all(Result::is_ok));
                slowest = slowest.max(call.elapsed());
                count += u64::from(each);
            }
            (count, slowest)
        });
    }
    let done = tasks.join_all().await;
    let rate = done.iter().map(|(count, _)| count).sum::<u64>() as f64 / begun.elapsed().as_secs_f64();
    let slowest = done.iter().map(|(_, slowest)| slowest.as_millis()).max().unwrap_or(0);
    println!("most, {appenders} callers with {each} records a call: {rate:.0} records/s, slowest call {slowest} ms");
}

/// Reads and commits as the workers do, so that deletion is part of what is measured.
async fn consume(log: Arc<SqliteLog>) {
    let mut consumers = Vec::new();
    for topic in [Topic::Ingress, Topic::Deliver] {
        let mut consumer = log.consume(topic, "figures").await.expect("joined");
        consumers.push(tokio::spawn(async move {
            while let Ok(event) = consumer.next().await {
                match event {
                    ConsumerEvent::Assigned(partitions, assignment) => {
                        for partition in partitions {
                            consumer.start(partition, assignment, StartAt::Committed).expect("started");
                        }
                    }
                    ConsumerEvent::Records { partition, assignment, records } => {
                        let next = records.last().expect("at least one").next;
                        consumer.commit(partition, assignment, next);
                    }
                    ConsumerEvent::Revoked(_) => {}
                    ConsumerEvent::OutOfRange { .. } => panic!("{event:?}"),
                }
            }
        }));
    }
    for consumer in consumers {
        consumer.await.expect("no consumer panics");
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
