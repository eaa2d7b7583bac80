//! Cases about groups: sharing, handing over, assignments, commits.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{LogHarness, PARTITIONS, Reader, append, fresh_group, texts, within};
use crate::log::{Log, StartAt, Topic};

/// Takes events in on all members until together they own everything, each partition once, and evenly.
async fn settle(members: &mut [&mut Reader]) {
    within("an even assignment", async {
        loop {
            let owned: Vec<u32> = members.iter().flat_map(|member| member.owned.keys().copied()).collect();
            let distinct: BTreeSet<u32> = owned.iter().copied().collect();
            let sizes: Vec<usize> = members.iter().map(|member| member.owned.len()).collect();
            let even = sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1;
            if owned.len() == PARTITIONS as usize && distinct.len() == owned.len() && even {
                return;
            }
            let steps = members.iter_mut().map(|member| {
                Box::pin(async move {
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(20), member.step()).await;
                })
            });
            futures::future::join_all(steps).await;
        }
    })
    .await;
}

/// Takes events in on all members until every text of every partition was read by somebody.
async fn read_everything(members: &mut [&mut Reader], wanted: &BTreeSet<String>) {
    within("all records", async {
        let mut seen = BTreeSet::new();
        loop {
            for member in members.iter() {
                for partition in 0..PARTITIONS {
                    seen.extend(member.texts(partition));
                }
            }
            if wanted.is_subset(&seen) {
                return;
            }
            let steps = members.iter_mut().map(|member| {
                Box::pin(async move {
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(20), member.step()).await;
                })
            });
            futures::future::join_all(steps).await;
        }
    })
    .await;
}

async fn append_everywhere(log: &Arc<dyn Log>, topic: Topic, prefix: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for partition in 0..PARTITIONS {
        let wanted = texts(&format!("{prefix}-p{partition}"), 20);
        append(log, topic, partition, &wanted).await;
        all.extend(wanted);
    }
    all
}

/// A commit may be lost, but nobody starts after it; without one, reading begins at the beginning.
pub async fn committed_is_a_hint<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = texts("h", 30);
    let positions = append(&log, Topic::Ingress, 0, &wanted).await;
    let group = fresh_group();
    let mut reader = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    reader.until_read(0, 30).await;
    assert_eq!(reader.texts(0), wanted, "without a commit it begins at the beginning");
    let assignment = reader.owned[&0];
    reader.consumer.commit(0, assignment, positions[12]);
    reader.close().await;
    let mut reader = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    reader.until("the last record", |reader| reader.texts(0).last().is_some_and(|text| text == "h-29")).await;
    let first = reader.positions(0)[0];
    assert!(first <= positions[12], "started at {first:?}, after what was committed");
    assert_eq!(reader.positions(0).last(), positions.last());
    reader.close().await;
}

/// Each group reads everything, and one group's commits move nobody else.
pub async fn groups_are_independent<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let wanted = append_everywhere(&log, Topic::Deliver, "g").await;
    let mut one = Reader::join(&log, Topic::Deliver, &fresh_group(), Some(StartAt::Committed)).await;
    read_everything(&mut [&mut one], &wanted).await;
    for partition in 0..PARTITIONS {
        let next = one.records[&partition].last().expect("read").next;
        one.consumer.commit(partition, one.owned[&partition], next);
    }
    let mut other = Reader::join(&log, Topic::Deliver, &fresh_group(), Some(StartAt::Committed)).await;
    read_everything(&mut [&mut other], &wanted).await;
    assert_eq!(one.owned.len(), PARTITIONS as usize, "another group took partitions away");

    // The same name on another topic is another group.
    let group = fresh_group();
    let mut deliver = Reader::join(&log, Topic::Deliver, &group, Some(StartAt::Committed)).await;
    let mut ingress = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    deliver.until_owns_all(PARTITIONS).await;
    ingress.until_owns_all(PARTITIONS).await;
    deliver.watch().await;
    assert_eq!(deliver.owned.len(), PARTITIONS as usize);
    for reader in [one, other, deliver, ingress] {
        reader.close().await;
    }
}

/// Members that come take their share; every record is read by whoever owns its partition.
pub async fn members_share_the_partitions<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let group = fresh_group();
    let mut one = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    one.until_owns_all(PARTITIONS).await;
    let mut two = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    settle(&mut [&mut one, &mut two]).await;
    let wanted = append_everywhere(&log, Topic::Ingress, "two").await;
    read_everything(&mut [&mut one, &mut two], &wanted).await;
    let mut three = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    settle(&mut [&mut one, &mut two, &mut three]).await;
    let wanted = append_everywhere(&log, Topic::Ingress, "three").await;
    read_everything(&mut [&mut one, &mut two, &mut three], &wanted).await;
    three.close().await;
    settle(&mut [&mut one, &mut two]).await;
    one.close().await;
    two.close().await;
}

/// A member that leaves gives up everything to those who stay.
pub async fn closing_hands_over<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let group = fresh_group();
    let mut one = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    one.until_owns_all(PARTITIONS).await;
    let mut two = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    settle(&mut [&mut one, &mut two]).await;
    one.close().await;
    two.until_owns_all(PARTITIONS).await;
    let wanted = append_everywhere(&log, Topic::Ingress, "after").await;
    read_everything(&mut [&mut two], &wanted).await;
    two.close().await;
}

/// A member that is dropped (its task was aborted) is found out, at the latest by the group's session timeout.
pub async fn dropping_hands_over<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let group = fresh_group();
    let mut one = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    one.until_owns_all(PARTITIONS).await;
    let mut two = Reader::join(&log, Topic::Ingress, &group, Some(StartAt::Committed)).await;
    settle(&mut [&mut one, &mut two]).await;
    drop(one);
    two.until_owns_all(PARTITIONS).await;
    let wanted = append_everywhere(&log, Topic::Ingress, "after").await;
    read_everything(&mut [&mut two], &wanted).await;
    two.close().await;
}

/// A partition that went and came back has a higher assignment; start and commit under the old one do nothing.
pub async fn an_assignment_that_is_over_counts_for_nothing<H: LogHarness>(harness: &H) {
    let log = harness.make().await;
    let group = fresh_group();
    let mut one = Reader::join(&log, Topic::Ingress, &group, None).await;
    one.until_owns_all(PARTITIONS).await;
    let before = one.owned.clone();
    let mut two = Reader::join(&log, Topic::Ingress, &group, None).await;
    settle(&mut [&mut one, &mut two]).await;
    let moved = *two.owned.keys().next().expect("the second member owns something");
    two.close().await;
    one.until_owns_all(PARTITIONS).await;
    assert!(one.owned[&moved] > before[&moved], "{:?} is not after {:?}", one.owned[&moved], before[&moved]);

    let positions = append(&log, Topic::Ingress, moved, &texts("m", 5)).await;
    let _ = one.consumer.start(moved, before[&moved], StartAt::Committed);
    one.consumer.commit(moved, before[&moved], positions[4]);
    // The reader fails on records that it has not started.
    one.watch().await;
    one.start(moved, StartAt::Committed);
    one.until_read(moved, 5).await;
    assert_eq!(one.positions(moved), positions, "a commit under an old assignment has moved the group");
    one.close().await;
}
