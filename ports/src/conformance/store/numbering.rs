//! Cases about numbers and verdicts: order, duplicates, rights, creation.

use futures::future::join_all;
use roost_protocol::frames::{ConversationKind, Event, HistoryRange};
use roost_protocol::limits::{BODY_BYTES_MAX, MEMBERS_MAX, SEQ_MAX};
use roost_protocol::records::Action;
use roost_protocol::{ConversationId, ErrorCode, Seq, UserId};

use super::StoreHarness;
use super::lab::{Lab, apply, code_of, create, create_as, send, seq_of, with_body};
use crate::delivery::VerdictOutcome;
use crate::store::apply::{Outcome, PartOutcome};

/// A creation takes seq 1 as an event, and messages follow in log order, each with the fields it was sent with.
pub async fn numbers_follow_the_log(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let mut lane = lab.lane(0).await;
    let group = ConversationId::new();
    let creation = create_as(users[1], group, ConversationKind::Group, Some("Größe"), &users);
    let log = [creation, send(users[0], group, "a"), send(users[2], group, "b"), send(users[0], group, "c")];
    let mut outcomes = lane.apply(log[..2].to_vec()).await;
    outcomes.extend(lane.apply(log[2..].to_vec()).await);
    for (number, (record, outcome)) in log.iter().zip(&outcomes).enumerate() {
        let Outcome::Numbered(numbered) = outcome else { panic!("{outcome:?}") };
        let message = &numbered.message;
        assert_eq!((message.conversation_id, message.seq), (group, number as Seq + 1));
        assert_eq!((message.sender_id, message.device_id), (record.actor, record.device));
        assert_eq!((message.client_msg_id, message.time), (record.client_msg_id, record.time));
        assert_eq!(numbered.members_version, 1);
        if let Action::Send { content_type, body, .. } = &record.action {
            assert_eq!((&message.content_type[..], &message.body[..]), (&content_type[..], &body[..]));
            assert_eq!(message.event, None);
        }
    }
    let Outcome::Numbered(created) = &outcomes[0] else { unreachable!("seen above") };
    let title = Some("Größe".to_owned());
    let event = Event::Created { kind: ConversationKind::Group, title, member_count: 3 };
    assert_eq!(created.message.event, Some(event));
}

/// The same request again has the first verdict, inside a batch and later, and takes no number.
pub async fn a_duplicate_has_the_first_verdict(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let (one, two) = (send(users[0], group, "one"), send(users[0], group, "two"));
    let mut later = one.clone();
    later.time += 60_000;
    later.device = roost_protocol::DeviceId::new();
    let inside = lane.apply(vec![one.clone(), two.clone(), later.clone(), two.clone()]).await;
    assert_eq!(inside.iter().map(seq_of).collect::<Vec<_>>(), [Some(2), Some(3), Some(2), Some(3)]);
    let outside = lane.apply(vec![two, later, send(users[0], group, "three")]).await;
    assert_eq!(outside.iter().map(seq_of).collect::<Vec<_>>(), [Some(3), Some(2), Some(4)]);
    for duplicate in inside[2..].iter().chain(&outside[..2]) {
        assert!(matches!(duplicate, Outcome::Duplicate(_)), "{duplicate:?}");
    }
    assert_eq!(inside[2].verdict(), inside[0].verdict(), "the time is the first one's too");
    let known = lab.store.outcome(group, users[0], one.client_msg_id).await;
    assert_eq!(known, Ok(inside[0].verdict()));
}

/// Another body under the same id is refused each time, and the first verdict's row stays.
pub async fn another_body_under_the_same_id_is_refused(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let first = send(users[0], group, "first");
    let other = with_body(first.clone(), "other");
    let mut other_type = first.clone();
    if let Action::Send { content_type, .. } = &mut other_type.action {
        *content_type = "text/html".into();
    }
    let mismatch = Some(ErrorCode::IdempotencyMismatch);
    let inside = lane.apply(vec![first.clone(), other.clone(), other_type.clone()]).await;
    assert_eq!(inside.iter().map(code_of).collect::<Vec<_>>(), [None, mismatch, mismatch]);
    let outside = lane.apply(vec![other, other_type, first.clone()]).await;
    assert_eq!(outside.iter().map(code_of).collect::<Vec<_>>(), [mismatch, mismatch, None]);
    assert_eq!(outside[2].verdict(), inside[0].verdict());
    assert_eq!(lab.store.outcome(group, users[0], first.client_msg_id).await, Ok(inside[0].verdict()));
    let next = lane.apply_one(send(users[0], group, "next")).await;
    assert_eq!(seq_of(&next), Some(3));
}

/// What was refused once stays refused, also once the sender is a member.
pub async fn a_rejection_stays_one(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = ConversationId::new();
    let early = send(users[0], group, "early");
    let refused = lane.apply_one(early.clone()).await;
    assert_eq!(code_of(&refused), Some(ErrorCode::NotFound));
    assert_eq!(lab.store.outcome(group, users[0], early.client_msg_id).await, Ok(refused.verdict()));
    let outcomes = lane.apply(vec![create(users[0], group, &users), early.clone()]).await;
    assert_eq!(seq_of(&outcomes[0]), Some(1));
    assert!(matches!(&outcomes[1], Outcome::Duplicate(verdict) if Some(verdict) == refused.verdict().as_ref()));
    assert_eq!(lane.apply_one(early.clone()).await.verdict(), refused.verdict());
    let other = lane.apply_one(with_body(early, "other")).await;
    assert_eq!(code_of(&other), Some(ErrorCode::IdempotencyMismatch));
    assert_eq!(seq_of(&lane.apply_one(send(users[0], group, "new id")).await), Some(2));
}

/// A client_msg_id belongs to its sender and conversation: others' use of it is independent.
pub async fn ids_are_scoped_by_sender_and_conversation(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let (group, other) = (lab.group(&mut lane, &users).await, lab.group(&mut lane, &users).await);
    let first = send(users[0], group, "mine");
    let mut squatted = send(users[1], group, "another's");
    let mut elsewhere = send(users[0], other, "elsewhere");
    squatted.client_msg_id = first.client_msg_id;
    elsewhere.client_msg_id = first.client_msg_id;
    let outcomes = lane.apply(vec![squatted, first, elsewhere]).await;
    assert_eq!(outcomes.iter().map(seq_of).collect::<Vec<_>>(), [Some(2), Some(3), Some(2)]);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Numbered(_))));
}

/// Sending to a foreign conversation has the same answer as to one that does not exist, and no side effect.
pub async fn a_foreign_conversation_is_one_that_does_not_exist(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let stranger = UserId::new();
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users[..2]).await;
    for actor in [users[2], stranger] {
        let outcomes = lane.apply(vec![send(actor, group, "x"), send(actor, ConversationId::new(), "x")]).await;
        assert_eq!(code_of(&outcomes[0]), Some(ErrorCode::NotFound));
        assert_eq!(outcomes[0], outcomes[1]);
        let (foreign, nowhere) = (
            lab.store.history(actor, group, HistoryRange::After(0), 10).await,
            lab.store.history(actor, ConversationId::new(), HistoryRange::After(0), 10).await,
        );
        assert!(foreign.is_err() && foreign == nowhere, "{foreign:?}");
    }
    assert_eq!(seq_of(&lane.apply_one(send(users[0], group, "y")).await), Some(2));
}

/// A precondition holds against the numbers of the same batch too.
pub async fn a_precondition_is_on_the_last_seq(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let expecting = |seq| {
        let mut record = send(users[0], group, "if");
        record.if_last_seq = Some(seq);
        record
    };
    let log = [1, 1, 2, 0, u64::MAX].map(expecting).to_vec();
    let outcomes = lane.apply(log.clone()).await;
    let failed = Some(ErrorCode::PreconditionFailed);
    assert_eq!(outcomes.iter().map(code_of).collect::<Vec<_>>(), [None, failed, None, failed, failed]);
    let again = lane.apply(log).await;
    let verdicts = |list: &[Outcome]| list.iter().map(Outcome::verdict).collect::<Vec<_>>();
    assert_eq!(verdicts(&again), verdicts(&outcomes), "a retry keeps its verdict, whatever the last seq is by now");
}

/// A pair has one direct conversation, whoever asks first.
pub async fn a_pair_has_one_direct_conversation(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let mut lane = lab.lane(0).await;
    let pair = ConversationId::direct(users[0], users[1]);
    let direct =
        |actor: usize, id, members: &[UserId]| create_as(users[actor], id, ConversationKind::Direct, None, members);
    let (invalid, exists) = (Some(ErrorCode::InvalidField), Some(ErrorCode::AlreadyExists));
    let cases = [
        (direct(0, ConversationId::new(), &users[..2]), invalid),
        (direct(2, pair, &users[..2]), invalid),
        (direct(0, pair, &users), invalid),
        (create_as(users[0], pair, ConversationKind::Direct, Some("title"), &users[..2]), invalid),
        (direct(1, pair, &users[..2]), None),
        (direct(0, pair, &users[..2]), exists),
    ];
    let (log, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let outcomes = lane.apply(log.clone()).await;
    assert_eq!(outcomes.iter().map(code_of).collect::<Vec<_>>(), expected);
    let later = lane.apply(vec![direct(0, pair, &users[..2]), log[5].clone(), log[4].clone()]).await;
    assert_eq!(later.iter().map(code_of).collect::<Vec<_>>(), [exists, exists, None]);
    assert_eq!(seq_of(&later[2]), Some(1));
}

/// Creations that cannot be are refused, with a row each.
pub async fn creations_that_cannot_be_are_refused(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let mut lane = lab.lane(0).await;
    let group = ConversationId::new();
    let (invalid, unknown) = (Some(ErrorCode::InvalidField), Some(ErrorCode::NotFound));
    let title = "x".repeat(roost_protocol::limits::TITLE_BYTES_MAX + 1);
    let cases = [
        (create(users[0], group, &users[..1]), invalid),
        (create(users[0], group, &users[1..]), invalid),
        (create(users[0], group, &[users[0], users[0], users[1]]), invalid),
        (create(users[0], group, &[users[0], UserId::new()]), unknown),
        (create_as(users[0], group, ConversationKind::Group, Some(&title), &users), invalid),
        (create_as(users[0], group, ConversationKind::Group, Some("nul \0"), &users), invalid),
        (create(users[0], group, &users), None),
        (create(users[0], group, &users), Some(ErrorCode::AlreadyExists)),
    ];
    let (log, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let outcomes = lane.apply(log.clone()).await;
    assert_eq!(outcomes.iter().map(code_of).collect::<Vec<_>>(), expected);
    for (record, outcome) in log.iter().zip(&outcomes) {
        let known = lab.store.outcome(group, record.actor, record.client_msg_id).await;
        assert_eq!(known, Ok(outcome.verdict()));
    }
    assert_eq!(lab.store.outcome(group, users[2], log[0].client_msg_id).await, Ok(None));
}

/// A group of the largest size can be made, listed page by page, and every member may send.
pub async fn the_largest_group_can_be_made_and_listed(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(MEMBERS_MAX).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let mut listed = Vec::new();
    loop {
        let after = listed.last().copied();
        let page = lab.store.members(group, after, 999).await.expect("a page of members");
        assert_eq!(page.version, 1);
        assert!(page.members.iter().all(|member| member.from_seq == 1 && member.to_seq.is_none()));
        assert_eq!(page.members.len(), (MEMBERS_MAX - listed.len()).min(999));
        listed.extend(page.members.iter().map(|member| member.user_id));
        if !page.more {
            break;
        }
    }
    assert!(listed == users, "every member once, in order");
    let log = [0, 1, 4_999, 9_999].map(|member: usize| send(users[member], group, "here")).to_vec();
    assert_eq!(lane.apply(log).await.iter().map(seq_of).collect::<Vec<_>>(), [Some(2), Some(3), Some(4), Some(5)]);
}

/// Lanes that apply at once number their conversations without holes and without disturbing each other, whatever
/// order their batches touch the conversations in.
pub async fn lanes_number_side_by_side(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(4).await;
    let mut lanes = Vec::new();
    let mut groups = Vec::new();
    for partition in 0..4 {
        let mut lane = lab.lane(partition).await;
        groups.push(lab.group(&mut lane, &users).await);
        lanes.push(lane);
    }
    let (lab, groups, users) = (&lab, &groups, &users);
    let working = lanes.into_iter().enumerate().map(|(number, mut lane)| async move {
        let mut seqs: Vec<(usize, Seq)> = Vec::new();
        for round in 0..25 {
            // Every lane touches every conversation, each in another order: only a common order of locks ends this.
            let order: Vec<usize> = (0..4).map(|n| if number % 2 == 0 { (n + number) % 4 } else { 3 - n }).collect();
            let log = order.iter().map(|&group| send(users[number], groups[group], &format!("{round}"))).collect();
            let part = lane.part(log);
            let next = part.records.last().expect("four records").next;
            let outcomes = apply(&lab.store, &lab.log_id, vec![part]).await.remove(0);
            let PartOutcome::Applied(outcomes) = outcomes else { panic!("the lane owns its partition") };
            lane.claim.next = next;
            seqs.extend(order.iter().zip(&outcomes).map(|(&group, outcome)| (group, seq_of(outcome).expect("a seq"))));
        }
        seqs
    });
    let seqs: Vec<(usize, Seq)> = join_all(working).await.into_iter().flatten().collect();
    for group in 0..4 {
        let mut of_group: Vec<Seq> = seqs.iter().filter(|(of, _)| *of == group).map(|(_, seq)| *seq).collect();
        of_group.sort_unstable();
        assert!(of_group.iter().copied().eq(2..=101), "{of_group:?}");
    }
}

/// Every byte of what was sent comes back, however odd; times stay within what JSON can say.
pub async fn what_was_sent_comes_back_literally(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = ConversationId::new();
    let odd = "'; DROP TABLE messages; -- \u{202e}\u{1F980} %s \\ \" \r\n\t";
    let creation = create_as(users[0], group, ConversationKind::Group, Some(odd), &users);
    let mut bytes = send(users[0], group, "");
    let mut largest = send(users[0], group, &"m".repeat(BODY_BYTES_MAX));
    let mut nul = send(users[0], group, "nul");
    let all: Vec<u8> = (0..=255).collect();
    if let Action::Send { body, content_type, .. } = &mut bytes.action {
        *body = all.clone().into();
        *content_type = odd.into();
    }
    largest.time = u64::MAX;
    if let Action::Send { content_type, .. } = &mut nul.action {
        *content_type = "text/\0".into();
    }
    let outcomes = lane.apply(vec![creation, bytes, largest, send(users[1], group, ""), nul]).await;
    let page = lab.store.history(users[1], group, HistoryRange::After(0), 10).await.expect("a page");
    assert_eq!(page.messages.len(), 4);
    for (outcome, message) in outcomes.iter().zip(&page.messages) {
        assert!(matches!(outcome, Outcome::Numbered(record) if record.message == *message), "{outcome:?}");
    }
    assert_eq!((&page.messages[1].body[..], &page.messages[1].content_type[..]), (&all[..], odd));
    assert_eq!((page.messages[2].body.len(), page.messages[2].time), (BODY_BYTES_MAX, SEQ_MAX));
    assert!(matches!(outcomes[4].verdict(), Some(VerdictOutcome::Rejected { code: ErrorCode::InvalidField, .. })));
}
