//! Cases about one consumer: where it starts, what it is told, what it must not lose.

use std::sync::Arc;
use std::time::Duration;

use super::{LogHarness, PARTITIONS, Reader, append, fresh_group, texts};
use crate::log::{Log, Position, StartAt, Topic};

async fn sole_reader(log: &Arc<dyn Log>, topic: Topic) -> Reader {
    let mut reader = Reader::join(log, topic, &fresh_group(), None).await;
    reader.until_owns_all(PARTITIONS).await;
    reader
}

/// From exactly there on; at the end it waits for what comes.
pub async fn a_consumer_starts_at_a_position<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("s", 40);
    let positions = append(&log, Topic::Ingress, 0, &wanted).await;
    let mut reader = sole_reader(&log, Topic::Ingress).await;
    reader.start(0, StartAt::Position(positions[25]));
    reader.until_read(0, 15).await;
    assert_eq!(reader.texts(0), wanted[25..]);
    assert_eq!(reader.positions(0), positions[25..]);
    let end = log.bounds(Topic::Ingress, 0).await.expect("bounds").end;
    reader.start(0, StartAt::Position(end));
    reader.watch().await;
    assert_eq!(reader.texts(0), [""; 0]);
    assert!(reader.out_of_range.is_empty(), "the end is not out of range");
    append(&log, Topic::Ingress, 0, &["new".into()]).await;
    reader.until_read(0, 1).await;
    assert_eq!(reader.texts(0), ["new"]);
    reader.close().await;
}

/// A waiting consumer hears of each record, one at a time.
pub async fn a_consumer_is_woken_by_an_append<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let mut reader = sole_reader(&log, Topic::Deliver).await;
    for partition in 0..PARTITIONS {
        reader.start(partition, StartAt::Committed);
    }
    for round in 0..20 {
        let partition = round as u32 % PARTITIONS;
        let appender = Arc::clone(&log);
        let append = tokio::spawn(async move {
            // Later than the reader's wait, mostly: either order has to work.
            tokio::time::sleep(Duration::from_millis(5)).await;
            append(&appender, Topic::Deliver, partition, &[format!("round-{round}")]).await;
        });
        reader.until_read(partition, round / PARTITIONS as usize + 1).await;
        append.await.expect("the append does not panic");
    }
    reader.close().await;
}

/// An assigned partition is silent until it is started, and after it was stopped.
pub async fn nothing_arrives_before_start_or_after_stop<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    append(&log, Topic::Ingress, 0, &texts("a", 5)).await;
    append(&log, Topic::Ingress, 1, &texts("b", 5)).await;
    let mut reader = sole_reader(&log, Topic::Ingress).await;
    reader.watch().await;
    assert!(reader.records.is_empty(), "records before start");
    reader.start(1, StartAt::Committed);
    reader.until_read(1, 5).await;
    assert!(!reader.records.contains_key(&0), "records of a partition that was not started");
    reader.start(0, StartAt::Committed);
    reader.until_read(0, 5).await;

    // The reader itself fails on records of a partition that it has stopped.
    reader.stop(0);
    append(&log, Topic::Ingress, 0, &texts("a2", 5)).await;
    append(&log, Topic::Ingress, 1, &texts("b2", 5)).await;
    reader.until_read(1, 10).await;
    reader.watch().await;
    assert_eq!(reader.records[&0].len(), 5);
    let resume = reader.records[&0][4].next;
    reader.start(0, StartAt::Position(resume));
    reader.until_read(0, 5).await;
    assert_eq!(reader.texts(0), texts("a2", 5));
    reader.close().await;
}

/// A second start of the same assignment begins where it says, with nothing of the first mixed in.
pub async fn starting_again_reads_again<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("again", 500);
    let positions = append(&log, Topic::Ingress, 2, &wanted).await;
    let mut reader = sole_reader(&log, Topic::Ingress).await;
    for from in [0usize, 400, 100, 499, 0] {
        reader.start(2, StartAt::Position(positions[from]));
        // Only a part of it, so that the next start meets what is already on its way.
        reader.until_read(2, 1).await;
        assert_eq!(reader.records[&2][0].position, positions[from]);
    }
    reader.until_read(2, wanted.len()).await;
    assert_eq!(reader.texts(2), wanted);
    reader.close().await;
}

/// `next` may be dropped at any moment.
pub async fn a_dropped_next_loses_nothing<H: LogHarness>(harness: &H) {
    const COUNT: usize = 400;
    let log = harness.make().await;
    let mut reader = sole_reader(&log, Topic::Ingress).await;
    reader.start(0, StartAt::Committed);
    let appender = Arc::clone(&log);
    let appends = tokio::spawn(async move {
        for text in texts("c", COUNT) {
            append(&appender, Topic::Ingress, 0, &[text]).await;
        }
    });
    let deadline = tokio::time::Instant::now() + super::LIVENESS_LIMIT;
    let mut round = 0;
    while reader.records.get(&0).map_or(0, Vec::len) < COUNT {
        assert!(tokio::time::Instant::now() < deadline, "records are lost");
        round += 1;
        let patience = Duration::from_micros(round % 7 * 150);
        let _ = tokio::time::timeout(patience, reader.step()).await;
        tokio::task::yield_now().await;
    }
    appends.await.expect("the appends do not panic");
    assert_eq!(reader.texts(0), texts("c", COUNT));
    reader.close().await;
}

/// Reported with the bounds; the log never resets by itself, and other partitions go on.
pub async fn a_start_beyond_the_end_is_out_of_range<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("o", 20);
    let positions = append(&log, Topic::Ingress, 0, &wanted).await;
    let mut reader = sole_reader(&log, Topic::Ingress).await;
    reader.start(0, StartAt::Position(Position(positions[19].0 + 1_000_000)));
    reader.start(1, StartAt::Committed);
    reader.until("OutOfRange", |reader| reader.out_of_range.contains_key(&0)).await;
    let bounds = reader.out_of_range[&0];
    assert_eq!(bounds.begin, positions[0]);
    assert!(bounds.end > positions[19]);
    append(&log, Topic::Ingress, 0, &["more".into()]).await;
    append(&log, Topic::Ingress, 1, &["witness".into()]).await;
    reader.until_read(1, 1).await;
    reader.watch().await;
    assert!(!reader.records.contains_key(&0), "the log has reset by itself");
    reader.start(0, StartAt::Position(positions[10]));
    reader.until_read(0, 11).await;
    assert_eq!(reader.texts(0)[..10], wanted[10..]);
    reader.close().await;
}

/// What retention has removed is not skipped silently.
pub async fn a_start_before_the_beginning_is_out_of_range<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("t", 600);
    let positions = append(&log, Topic::Deliver, 0, &wanted).await;
    if !harness.trim(&log, Topic::Deliver, 0, positions[500]).await {
        eprintln!("skipped: this harness cannot trim");
        return;
    }
    let bounds = log.bounds(Topic::Deliver, 0).await.expect("bounds");
    assert!(positions[0] < bounds.begin && bounds.begin <= positions[500], "{bounds:?}");
    assert_eq!(log.read_before(Topic::Deliver, 0, bounds.begin).await, Ok(None));
    let mut reader = sole_reader(&log, Topic::Deliver).await;
    reader.start(0, StartAt::Position(positions[0]));
    reader.until("OutOfRange", |reader| reader.out_of_range.contains_key(&0)).await;
    assert_eq!(reader.out_of_range[&0].begin, bounds.begin);
    reader.watch().await;
    assert!(!reader.records.contains_key(&0), "the log has reset by itself");
    reader.start(0, StartAt::Position(positions[500]));
    reader.until_read(0, 100).await;
    assert_eq!(reader.texts(0), wanted[500..]);
    reader.close().await;
}
