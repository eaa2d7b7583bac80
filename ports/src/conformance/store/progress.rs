//! Cases about progress: claims, fences, positions, dead letters, replay.

use roost_protocol::ConversationId;

use super::StoreHarness;
use super::lab::{Lab, PARTITIONS, apply, code_of, create, poison, send, seq_of, with_body};
use crate::delivery::VerdictOutcome;
use crate::log::Position;
use crate::store::apply::{Claim, Incoming, Outcome, PartOutcome, Replayed};
use crate::store::{Migration, StoreError};

/// A new log begins at 0; migrating again changes nothing; another count of partitions is refused.
pub async fn a_new_log_begins_at_zero_and_keeps_its_partitions(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    assert_eq!(lab.store.check().await, Ok(()));
    assert_eq!(lab.store.partitions(&lab.log_id).await, Ok(PARTITIONS));
    let epoch = lab.store.epoch().await.expect("an epoch");
    let nothing = Position(0);
    let fresh = Claim { epoch: 1, next: nothing, published: nothing, last_digest: None };
    assert_eq!(lab.claim(0).await, fresh);
    assert_eq!(lab.store.migrate(&lab.migration()).await, Ok(()));
    assert_eq!(lab.claim(0).await, Claim { epoch: 2, ..fresh }, "a second migration leaves the progress");
    for partitions in [PARTITIONS - 1, PARTITIONS + 1] {
        let other = Migration { partitions, ..lab.migration() };
        assert!(matches!(lab.store.migrate(&other).await, Err(StoreError::Refused(_))), "{partitions} partitions");
    }
    assert_eq!(lab.store.partitions(&lab.log_id).await, Ok(PARTITIONS));
    assert_eq!(lab.store.epoch().await, Ok(epoch));
    assert!(matches!(lab.store.claim(&lab.log_id, PARTITIONS).await, Err(StoreError::Refused(_))));
    assert!(matches!(lab.store.claim("no such log", 0).await, Err(StoreError::Refused(_))));
    assert_eq!(lab.store.partitions("no such log").await, Err(StoreError::NotFound));
}

/// Logs do not share their progress.
pub async fn logs_are_independent(harness: &impl StoreHarness) {
    let store = harness.make().await;
    let (one, other) = (Lab::new(store.clone()).await, Lab::new(store).await);
    let users = one.users(2).await;
    let mut lane = one.lane(1).await;
    one.group(&mut lane, &users).await;
    assert_eq!(other.claim(1).await.next, Position(0));
}

/// A claim fences whoever held the partition before: nothing of theirs is applied, and nothing is noted.
pub async fn a_claim_fences_the_owner_before(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut before = lab.lane(0).await;
    let group = lab.group(&mut before, &users).await;
    let mut after = lab.lane(0).await;
    assert_eq!(after.claim.epoch, before.claim.epoch + 1);
    assert_eq!((after.claim.next, after.claim.last_digest), (before.claim.next, before.claim.last_digest));
    let zombie = send(users[0], group, "zombie");
    let outcomes = apply(&lab.store, &lab.log_id, vec![before.part(vec![zombie.clone()])]).await;
    assert_eq!(outcomes, [PartOutcome::NotOurs]);
    let noted = lab.store.set_published(&lab.log_id, 0, before.claim.epoch, before.claim.next).await;
    assert_eq!(noted, Ok(()));
    assert_eq!(lab.store.outcome(group, users[0], zombie.client_msg_id).await, Ok(None));
    assert_eq!(seq_of(&after.apply_one(send(users[0], group, "owner")).await), Some(2));
    assert_eq!(lab.claim(0).await.published, Position(0));
}

/// Parts of another owner or another position are dropped, and the others of the same batch are applied.
pub async fn what_is_not_ours_is_dropped_and_the_rest_goes_on(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let (mut ours, mut fenced, mut behind) = (lab.lane(0).await, lab.lane(1).await, lab.lane(2).await);
    let mut groups = Vec::new();
    for lane in [&mut ours, &mut fenced, &mut behind] {
        groups.push(lab.group(lane, &users).await);
    }
    lab.claim(1).await;
    let stale = behind.claim;
    behind.apply_one(send(users[0], groups[2], "in between")).await;
    behind.claim = stale;
    let lost = [send(users[0], groups[1], "fenced"), send(users[0], groups[2], "behind")];
    let parts = vec![
        behind.part(vec![lost[1].clone()]),
        ours.part(vec![send(users[0], groups[0], "ours")]),
        fenced.part(vec![lost[0].clone()]),
    ];
    let outcomes = apply(&lab.store, &lab.log_id, parts).await;
    let [PartOutcome::NotOurs, PartOutcome::Applied(applied), PartOutcome::NotOurs] = &outcomes[..] else {
        panic!("the order of the parts is kept, and one is applied: {outcomes:?}");
    };
    assert_eq!(applied.iter().map(seq_of).collect::<Vec<_>>(), [Some(2)]);
    for (record, group) in lost.iter().zip(&groups[1..]) {
        assert_eq!(lab.store.outcome(*group, users[0], record.client_msg_id).await, Ok(None));
    }
    // Ahead of the Store is not ours either.
    let mut ahead = ours.part(vec![send(users[0], groups[0], "ahead")]);
    ahead.from = Position(ahead.from.0 + 10);
    ahead.records[0].position = Position(ahead.from.0 + 1);
    ahead.records[0].next = Position(ahead.from.0 + 2);
    assert_eq!(apply(&lab.store, &lab.log_id, vec![ahead]).await, [PartOutcome::NotOurs]);
}

/// The same batch from two workers at once is applied by one of them.
pub async fn a_batch_applied_twice_at_once_counts_once(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    for round in 0..10u64 {
        let part = lane.part(vec![send(users[0], group, "one"), send(users[1], group, "two")]);
        let apply_it = || apply(&lab.store, &lab.log_id, vec![part.clone()]);
        let (one, two, three) = tokio::join!(apply_it(), apply_it(), apply_it());
        let applied: Vec<&PartOutcome> =
            [&one[0], &two[0], &three[0]].into_iter().filter(|outcome| **outcome != PartOutcome::NotOurs).collect();
        let [PartOutcome::Applied(outcomes)] = &applied[..] else { panic!("one of three: {one:?} {two:?} {three:?}") };
        assert_eq!(outcomes.iter().map(seq_of).collect::<Vec<_>>(), [Some(2 * round + 2), Some(2 * round + 3)]);
        lane.claim.next = part.records[1].next;
    }
}

/// An applied batch moves the next position and the last digest; the published position follows and never goes back.
pub async fn progress_follows_what_is_applied(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(3).await;
    let group = lab.group(&mut lane, &users).await;
    let first = lane.claim.next;
    lane.claim.published = first;
    let part = lane.part(vec![send(users[0], group, "a"), send(users[0], group, "b")]);
    let last = part.records[1].clone();
    lane.apply_part(part).await;
    let claim = lab.claim(3).await;
    assert_eq!((claim.next, claim.last_digest, claim.published), (last.next, Some(last.digest), first));
    let set = |epoch, position| lab.store.set_published(&lab.log_id, 3, epoch, position);
    assert_eq!(set(claim.epoch, last.next).await, Ok(()));
    assert_eq!(set(claim.epoch, first).await, Ok(()));
    assert_eq!(set(claim.epoch - 1, Position(last.next.0 + 5)).await, Ok(()), "a no-op for another owner");
    assert_eq!(lab.claim(3).await.published, last.next);
}

/// Poison leaves a row and takes no number, and its neighbours are applied.
pub async fn poison_is_kept_and_takes_no_number(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let mut records = lane.incoming((0..4).map(|_| send(users[0], group, "a")).collect());
    for (record, reason) in records.iter_mut().take(3).skip(1).zip(["it does not decode", "'; DROP TABLE messages"]) {
        record.content = Err(poison(reason));
    }
    let outcomes = lane.apply_part(lane.part_of(records.clone())).await;
    assert_eq!(outcomes.iter().map(seq_of).collect::<Vec<_>>(), [Some(2), None, None, Some(3)]);
    let dead = |reason: &str| Outcome::DeadLetter { reason: reason.to_owned() };
    assert_eq!(outcomes[1..3], [dead("it does not decode"), dead("'; DROP TABLE messages")]);
    let replayed = lab.store.replay(&lab.log_id, 0, &records).await.expect("a replay");
    assert_eq!(replayed[1], Replayed::DeadLetter { reason: "it does not decode".to_owned() });
    assert_eq!(replayed[2], Replayed::DeadLetter { reason: "'; DROP TABLE messages".to_owned() });
    // A partition of nothing but poison moves too.
    let mut alone = lane.incoming(vec![send(users[0], group, "b")]);
    alone[0].content = Err(poison("alone"));
    lane.apply_part(lane.part_of(alone.clone())).await;
    assert_eq!(lab.claim(0).await.next, alone[0].next);
}

/// A record that decodes but stands in the dead letters (it failed alone) stays there on replay.
pub async fn a_dead_letter_stays_one_on_replay(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let records = lane.incoming(vec![send(users[0], group, "refused by the database")]);
    let mut given_up = records.clone();
    given_up[0].content = Err(poison("refused by the database"));
    lane.apply_part(lane.part_of(given_up)).await;
    let replayed = lab.store.replay(&lab.log_id, 0, &records).await.expect("a replay");
    assert_eq!(replayed, [Replayed::DeadLetter { reason: "refused by the database".to_owned() }]);
}

/// Replay tells what the Store holds: messages with their old numbers and all their fields, rejections, mismatches.
pub async fn replay_tells_what_the_store_holds(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let (pair, stranger) = (&users[..2], users[2]);
    let mut lane = lab.lane(2).await;
    let group = ConversationId::new();
    let first = send(users[0], group, "first");
    let records = lane.incoming(vec![
        create(users[0], group, pair),
        first.clone(),
        first.clone(),
        with_body(first.clone(), "another"),
        send(stranger, group, "foreign"),
        send(users[1], group, "last"),
    ]);
    let outcomes = lane.apply_part(lane.part_of(records.clone())).await;
    let replayed = lab.store.replay(&lab.log_id, 2, &records).await.expect("a replay");
    assert_eq!(replayed.len(), records.len());
    for (outcome, again) in outcomes.iter().zip(&replayed) {
        match (outcome, again) {
            (Outcome::Numbered(one), Replayed::Numbered(other)) => assert_eq!(one, other),
            (Outcome::Duplicate(VerdictOutcome::Committed { seq, .. }), Replayed::Numbered(other)) => {
                assert_eq!(*seq, other.message.seq);
            }
            (Outcome::Rejected(one), Replayed::Rejected(other)) => assert_eq!(one, other),
            other => panic!("the same as when it was applied: {other:?}"),
        }
    }
    assert_eq!(code_of(&outcomes[3]), Some(roost_protocol::ErrorCode::IdempotencyMismatch));
    assert_eq!(lab.store.replay(&lab.log_id, 2, &records).await, Ok(replayed), "looking changes nothing");
}

/// A record that left no row is missing, and says so.
pub async fn a_record_without_its_row_is_missing(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let there = lane.incoming(vec![send(users[0], group, "there")]);
    lane.apply_part(lane.part_of(there.clone())).await;
    let mut never = lane.incoming(vec![send(users[0], group, "never"), send(users[0], group, "poison")]);
    never[1].content = Err(poison("never applied"));
    let unknown = lane.incoming(vec![send(users[0], ConversationId::new(), "no conversation")]);
    let records: Vec<Incoming> = never.into_iter().chain(there).chain(unknown).collect();
    let replayed = lab.store.replay(&lab.log_id, 0, &records).await.expect("a replay");
    assert!(
        matches!(&replayed[..], [Replayed::Missing, Replayed::Missing, Replayed::Numbered(_), Replayed::Missing]),
        "{replayed:?}"
    );
    assert_eq!(lab.store.replay(&lab.log_id, 0, &[]).await, Ok(vec![]));
}

/// What was acknowledged is there after the process died, and the progress with it.
pub async fn what_is_applied_survives_reopening(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let mut records = Vec::new();
    for round in 0..20 {
        let part = lane.part((0..5).map(|n| send(users[0], group, &format!("{round}-{n}"))).collect());
        records.extend(part.records.clone());
        lane.apply_part(part).await;
    }
    let claim = lane.claim;
    let epoch = lab.store.epoch().await.expect("an epoch");
    drop(lane);
    let Lab { store, log_id } = lab;
    let lab = Lab { store: harness.reopen(store).await, log_id };
    assert_eq!(lab.store.epoch().await, Ok(epoch));
    let again = lab.claim(0).await;
    assert_eq!((again.epoch, again.next, again.last_digest), (claim.epoch + 1, claim.next, claim.last_digest));
    assert_eq!(again.last_digest, records.last().map(|record| record.digest));
    let replayed = lab.store.replay(&lab.log_id, 0, &records).await.expect("a replay");
    for (number, replayed) in replayed.iter().enumerate() {
        let Replayed::Numbered(record) = replayed else { panic!("{replayed:?}") };
        assert_eq!(record.message.seq, number as u64 + 2);
        assert_eq!(record.message.body, format!("{}-{}", number / 5, number % 5));
    }
}
