//! Cases about appending and keeping: order, durability, bounds, sizes.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use roost_protocol::limits::RECORD_BYTES_MAX;

use super::reader::read_all;
use super::{LogHarness, PARTITIONS, append, record, texts, within};
use crate::log::{AppendError, NewRecord, Position, Topic};

/// The calls put the records in line, whichever future is polled first.
pub async fn appends_stand_in_the_order_of_the_calls<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("call", 300);
    let calls: Vec<_> = wanted.iter().map(|text| log.append(Topic::Ingress, vec![record(1, text)])).collect();
    let mut positions = Vec::new();
    for call in calls.into_iter().rev() {
        positions.push(within("an append", call).await.remove(0).expect("acknowledged"));
    }
    positions.reverse();
    assert!(positions.is_sorted_by(|one, next| one < next), "positions do not rise: {positions:?}");
    assert_eq!(read_all(&log, Topic::Ingress, 1, wanted.len()).await, wanted);
}

/// One result per record, in the order given; the order within a partition is that of the call.
pub async fn records_of_one_call_keep_their_order<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let records: Vec<_> = (0..200u32).map(|number| record(number % PARTITIONS, &format!("in-{number}"))).collect();
    let results = within("an append", log.append(Topic::Deliver, records)).await;
    assert_eq!(results.len(), 200);
    for partition in 0..PARTITIONS {
        let positions: Vec<_> = results.iter().skip(partition as usize).step_by(PARTITIONS as usize).collect();
        let positions: Vec<_> = positions.into_iter().map(|result| result.clone().expect("acknowledged")).collect();
        assert!(positions.is_sorted_by(|one, next| one < next), "{positions:?}");
        let wanted: Vec<_> = (0..200).filter(|n| n % PARTITIONS == partition).map(|n| format!("in-{n}")).collect();
        assert_eq!(read_all(&log, Topic::Deliver, partition, wanted.len()).await, wanted);
    }
}

/// Appends from several tasks: nothing is lost, nothing is twice, each task's order holds.
pub async fn appends_of_many_tasks_are_all_there_once<H: LogHarness>(harness: &H) {
    const TASKS: usize = 8;
    const EACH: usize = 500;
    let log = harness.make().await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let log = Arc::clone(&log);
        tasks.spawn(async move {
            let wanted = texts(&format!("task{task}"), EACH);
            for chunk in wanted.chunks(25) {
                append(&log, Topic::Ingress, 2, chunk).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task panics");
    }
    let read = read_all(&log, Topic::Ingress, 2, TASKS * EACH).await;
    assert_eq!(read.len(), TASKS * EACH);
    for task in 0..TASKS {
        let prefix = format!("task{task}-");
        let own: Vec<_> = read.iter().filter(|text| text.starts_with(&prefix)).cloned().collect();
        assert_eq!(own, texts(&format!("task{task}"), EACH));
    }
}

/// The call is what appends; the future only tells.
pub async fn a_dropped_append_still_stands<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    drop(log.append(Topic::Ingress, vec![record(0, "dropped")]));
    append(&log, Topic::Ingress, 0, &["kept".into()]).await;
    assert_eq!(read_all(&log, Topic::Ingress, 0, 2).await, ["dropped", "kept"]);
}

/// Nothing to append is no reason to wait.
pub async fn an_empty_append_resolves<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    assert_eq!(within("an empty append", log.append(Topic::Ingress, Vec::new())).await, []);
}

/// What goes into one partition of one topic is seen there and nowhere else.
pub async fn topics_and_partitions_are_independent<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    for topic in Topic::ALL {
        for partition in 0..PARTITIONS {
            let name = format!("{}-{partition}", topic.as_str());
            append(&log, topic, partition, &texts(&name, 3)).await;
        }
    }
    for topic in Topic::ALL {
        for partition in 0..PARTITIONS {
            let name = format!("{}-{partition}", topic.as_str());
            assert_eq!(read_all(&log, topic, partition, 3).await, texts(&name, 3));
        }
    }
}

/// An empty partition begins where it ends; a record stands within the bounds.
pub async fn bounds_tell_what_a_partition_holds<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let empty = within("bounds", log.bounds(Topic::Deliver, 3)).await.expect("bounds");
    assert_eq!((empty.begin, empty.end), (Position(0), Position(0)), "a new partition begins at 0");
    let positions = append(&log, Topic::Deliver, 3, &texts("b", 10)).await;
    let full = within("bounds", log.bounds(Topic::Deliver, 3)).await.expect("bounds");
    assert_eq!(full.begin, positions[0]);
    assert_eq!(full.begin, Position(0), "the first position is 0");
    assert!(full.end > positions[9], "{full:?} {positions:?}");
    let next = append(&log, Topic::Deliver, 3, &["after".into()]).await[0];
    assert!(next >= full.end, "a record at {next:?} before the end {full:?}");
    assert_eq!(within("bounds", log.bounds(Topic::Deliver, 2)).await.expect("bounds"), empty);
}

/// The record whose `next` is the position asked for; the last one from beyond the end; none at the beginning.
pub async fn read_before_gives_the_record_before<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let before = |at| within("read_before", log.read_before(Topic::Ingress, 0, at));
    assert_eq!(before(Position(0)).await, Ok(None));
    assert_eq!(before(Position(5)).await, Ok(None), "an empty partition has nothing before anything");
    let wanted = texts("r", 50);
    let positions = append(&log, Topic::Ingress, 0, &wanted).await;
    assert_eq!(before(positions[0]).await, Ok(None));
    for (number, text) in wanted.iter().enumerate() {
        let at = Position(positions[number].0 + 1);
        let found = before(at).await.expect("the log answers").expect("a record stands before");
        assert_eq!((found.position, found.payload.as_ref()), (positions[number], text.as_bytes()));
        assert!(found.next > found.position);
        let again = before(found.next).await.expect("the log answers").expect("a record stands before");
        assert_eq!(again, found, "asked by its own next");
    }
    let last = before(Position(positions[49].0 + 100_000)).await.expect("the log answers");
    assert_eq!(last.expect("the last record").position, positions[49]);
}

/// The limit is the same in every log, and a record beyond it spoils nothing.
pub async fn the_largest_record_fits_and_a_larger_one_is_refused<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let largest: Bytes = (0..RECORD_BYTES_MAX).map(|index| (index % 251) as u8).collect();
    let too_large = Bytes::from(vec![7; RECORD_BYTES_MAX + 1]);
    let new = |payload: &Bytes| NewRecord { partition: 0, payload: payload.clone() };
    let batch = vec![new(&Bytes::from_static(b"small")), new(&too_large), new(&largest), new(&Bytes::new())];
    let results = within("an append", log.append(Topic::Ingress, batch)).await;
    assert_eq!(results[1], Err(AppendError::TooLarge));
    for result in [&results[0], &results[2], &results[3]] {
        assert!(result.is_ok(), "{result:?}");
    }
    let group = super::fresh_group();
    let mut reader = super::Reader::join(&log, Topic::Ingress, &group, Some(crate::log::StartAt::Committed)).await;
    reader.until_read(0, 3).await;
    let read: Vec<_> = reader.records[&0].iter().map(|record| record.payload.clone()).collect();
    assert!(read == [Bytes::from_static(b"small"), largest, Bytes::new()], "the records are not as they were");
    reader.close().await;
}

/// Acknowledged means durable: the same records at the same positions after a reopening.
pub async fn what_is_acknowledged_survives_reopening<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let (id, wanted) = (log.log_id().to_owned(), texts("durable", 100));
    let first = append(&log, Topic::Ingress, 1, &wanted).await;
    let bounds = within("bounds", log.bounds(Topic::Ingress, 1)).await.expect("bounds");
    let log = harness.reopen(log).await;
    assert_eq!(log.log_id(), id);
    assert_eq!(log.partitions(), PARTITIONS);
    assert_eq!(within("bounds", log.bounds(Topic::Ingress, 1)).await, Ok(bounds));
    let last = within("read_before", log.read_before(Topic::Ingress, 1, bounds.end)).await.expect("answers");
    assert_eq!(last.expect("the last record").position, first[99]);
    let later = append(&log, Topic::Ingress, 1, &["later".into()]).await;
    assert!(later[0] > first[99]);
    let mut all = wanted;
    all.push("later".into());
    assert_eq!(read_all(&log, Topic::Ingress, 1, all.len()).await, all);
}

/// Not after a removal, not after a reopening.
pub async fn positions_are_never_given_twice<H: LogHarness>(harness: &H) {
    let mut log = harness.make().await;
    let mut seen = BTreeSet::new();
    for round in 0..3 {
        let positions = append(&log, Topic::Ingress, 0, &texts(&format!("round{round}"), 300)).await;
        for position in &positions {
            assert!(seen.last().is_none_or(|last| last < position), "{position:?} is not new");
            seen.insert(*position);
        }
        let _skipped = !harness.trim(&log, Topic::Ingress, 0, Position(positions[299].0 + 1)).await;
        log = harness.reopen(log).await;
    }
}

/// Its partitions and its health.
pub async fn the_log_is_what_it_says<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    assert_eq!(log.partitions(), PARTITIONS);
    assert!(!log.log_id().is_empty());
    assert_eq!(within("check", log.check()).await, Ok(()));
}
