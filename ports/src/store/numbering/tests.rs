//! The planner's rules one by one, and their promises over any batching of a log.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::apply::{PartOutcome, Poison};
use super::*;

fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

fn group(n: u8) -> ConversationId {
    ConversationId::from_bytes([n; 16])
}

fn record(actor: u8, id: u8, action: Action<'static>) -> IngressRecord<'static> {
    IngressRecord {
        actor: user(actor),
        device: DeviceId::from_bytes([9; 16]),
        client_msg_id: ClientMsgId::from_bytes([id; 16]),
        time: 1000,
        origin: None,
        if_last_seq: None,
        action,
    }
}

fn send(actor: u8, id: u8, conversation: ConversationId, body: &str) -> IngressRecord<'static> {
    let body = Cow::Owned(body.as_bytes().to_vec());
    record(actor, id, Action::Send { conversation_id: conversation, content_type: "text/plain".into(), body })
}

fn create(actor: u8, id: u8, conversation: ConversationId, members: &[u8]) -> IngressRecord<'static> {
    let members = members.iter().map(|&n| user(n)).collect();
    let kind = ConversationKind::Group;
    record(actor, id, Action::Create { conversation_id: conversation, kind, title: None, members })
}

fn direct(actor: u8, id: u8, conversation: ConversationId, members: &[u8]) -> IngressRecord<'static> {
    let mut record = create(actor, id, conversation, members);
    if let Action::Create { kind, .. } = &mut record.action {
        *kind = ConversationKind::Direct;
    }
    record
}

/// What a Store keeps, in maps.
struct Memory {
    found: Found,
    messages: BTreeMap<ConversationId, Vec<Seq>>,
    position: u64,
}

impl Memory {
    fn with_users(users: u8) -> Self {
        let found = Found { users: (0..users).map(user).collect(), ..Found::default() };
        Self { found, messages: BTreeMap::new(), position: 0 }
    }

    fn part(&mut self, records: &[IngressRecord<'static>]) -> PartBatch {
        let from = Position(self.position);
        let records = records
            .iter()
            .map(|record| {
                let position = Position(self.position);
                self.position += 1;
                Incoming { position, next: Position(self.position), digest: [0; 16], content: Ok(record.clone()) }
            })
            .collect();
        PartBatch { partition: 0, epoch: 1, from, published: from, records }
    }

    /// Looks up only what the needs name, decides, and writes the plan's rows.
    fn apply(&mut self, parts: &[&PartBatch]) -> Vec<Vec<Outcome>> {
        let needs = Needs::of(parts);
        let found = Found {
            conversations: only(&self.found.conversations, &needs.conversations),
            known: only(&self.found.known, &needs.identities),
            members: needs.memberships.iter().filter(|key| self.found.members.contains(key)).copied().collect(),
            users: needs.users.iter().filter(|key| self.found.users.contains(key)).copied().collect(),
        };
        let plan = decide(parts, &found);
        for new in &plan.new_conversations {
            let state = ConversationState { last_seq: new.last_seq, members_version: new.members_version };
            assert_eq!(self.found.conversations.insert(new.conversation_id, state), None);
            self.found.members.extend(new.members.iter().map(|&member| (new.conversation_id, member)));
        }
        for update in &plan.updated_conversations {
            let state = ConversationState { last_seq: update.last_seq, members_version: update.members_version };
            assert!(self.found.conversations.insert(update.conversation_id, state).is_some());
        }
        for row in &plan.messages {
            self.messages.entry(row.identity.conversation_id).or_default().push(row.seq);
            let verdict = VerdictOutcome::Committed { seq: row.seq, time: row.time };
            assert_eq!(self.found.known.insert(row.identity, Known { digest: row.digest, verdict }), None);
        }
        for row in &plan.rejections {
            let verdict = VerdictOutcome::Rejected { code: row.code, message: row.message.to_owned() };
            assert_eq!(self.found.known.insert(row.identity, Known { digest: row.digest, verdict }), None);
        }
        plan.outcomes
    }

    fn one_by_one(&mut self, records: &[IngressRecord<'static>]) -> Vec<Outcome> {
        records
            .iter()
            .map(|record| {
                let part = self.part(std::slice::from_ref(record));
                self.apply(&[&part]).remove(0).remove(0)
            })
            .collect()
    }

    fn batch(&mut self, records: &[IngressRecord<'static>]) -> Vec<Outcome> {
        let part = self.part(records);
        self.apply(&[&part]).remove(0)
    }
}

fn only<K: Copy + Eq + std::hash::Hash, V: Clone>(map: &HashMap<K, V>, keys: &[K]) -> HashMap<K, V> {
    keys.iter().filter_map(|key| map.get(key).map(|value| (*key, value.clone()))).collect()
}

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome.verdict() {
        Some(VerdictOutcome::Rejected { code, .. }) => Some(code),
        _ => None,
    }
}

fn seq(outcome: &Outcome) -> Option<Seq> {
    match outcome.verdict() {
        Some(VerdictOutcome::Committed { seq, .. }) => Some(seq),
        _ => None,
    }
}

#[test]
fn a_creation_takes_seq_1_and_sends_go_on_from_there_in_one_batch() {
    let mut store = Memory::with_users(3);
    let log = [create(0, 1, group(1), &[0, 1]), send(1, 2, group(1), "a"), send(0, 3, group(1), "b")];
    let outcomes = store.batch(&log);
    assert_eq!(outcomes.iter().map(seq).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    let Outcome::Numbered(created) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(created.members_version, 1);
    let event = Event::Created { kind: ConversationKind::Group, title: None, member_count: 2 };
    assert_eq!(created.message.event, Some(event));
    assert_eq!(store.found.conversations[&group(1)], ConversationState { last_seq: 3, members_version: 1 });
}

#[test]
fn a_duplicate_keeps_its_verdict_and_another_body_is_a_mismatch_without_a_row() {
    let mut store = Memory::with_users(2);
    store.batch(&[create(0, 1, group(1), &[0, 1])]);
    for inside in [true, false] {
        let id = if inside { 2 } else { 3 };
        let log = [send(0, id, group(1), "a"), send(0, id, group(1), "a"), send(0, id, group(1), "b")];
        let outcomes = if inside { store.batch(&log) } else { store.one_by_one(&log) };
        assert!(matches!(&outcomes[1], Outcome::Duplicate(verdict) if Some(verdict) == outcomes[0].verdict().as_ref()));
        assert!(matches!(&outcomes[2], Outcome::Rejected(_)));
        assert_eq!(code(&outcomes[2]), Some(ErrorCode::IdempotencyMismatch));
        assert_eq!(store.one_by_one(&log[..1])[0].verdict(), outcomes[0].verdict(), "the first verdict's row stays");
    }
}

#[test]
fn a_rejection_stays_one_once_the_sender_is_a_member() {
    let mut store = Memory::with_users(2);
    let early = send(0, 1, group(1), "early");
    let outcomes = store.batch(&[early.clone(), create(0, 2, group(1), &[0, 1]), early.clone()]);
    assert_eq!(code(&outcomes[0]), Some(ErrorCode::NotFound));
    assert_eq!(seq(&outcomes[1]), Some(1));
    assert!(matches!(&outcomes[2], Outcome::Duplicate(VerdictOutcome::Rejected { .. })), "{outcomes:?}");
    assert_eq!(code(&store.batch(&[early])[0]), Some(ErrorCode::NotFound));
    let other_body = store.batch(&[send(0, 1, group(1), "other")]);
    assert_eq!(code(&other_body[0]), Some(ErrorCode::IdempotencyMismatch));
}

#[test]
fn dedupe_comes_before_membership() {
    let mut store = Memory::with_users(2);
    store.batch(&[create(0, 1, group(1), &[0, 1]), send(1, 2, group(1), "a")]);
    store.found.members.remove(&(group(1), user(1)));
    let outcomes = store.batch(&[send(1, 2, group(1), "a"), send(1, 3, group(1), "b")]);
    assert_eq!(seq(&outcomes[0]), Some(2));
    assert_eq!(code(&outcomes[1]), Some(ErrorCode::NotFound));
}

#[test]
fn a_foreign_conversation_answers_as_one_that_does_not_exist() {
    let mut store = Memory::with_users(3);
    store.batch(&[create(0, 1, group(1), &[0, 1])]);
    let outcomes = store.batch(&[send(2, 1, group(1), "a"), send(2, 1, group(2), "a")]);
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(code(&outcomes[0]), Some(ErrorCode::NotFound));
}

#[test]
fn another_users_client_msg_id_is_independent() {
    let mut store = Memory::with_users(2);
    store.batch(&[create(0, 1, group(1), &[0, 1])]);
    let outcomes = store.batch(&[send(0, 7, group(1), "a"), send(1, 7, group(1), "b")]);
    assert_eq!(outcomes.iter().map(seq).collect::<Vec<_>>(), [Some(2), Some(3)]);
}

#[test]
fn a_precondition_is_on_the_last_seq() {
    let mut store = Memory::with_users(2);
    let expecting = |seq, mut record: IngressRecord<'static>| {
        record.if_last_seq = Some(seq);
        record
    };
    let outcomes = store.batch(&[
        expecting(1, create(0, 1, group(2), &[0, 1])),
        expecting(0, create(0, 2, group(1), &[0, 1])),
        expecting(0, send(0, 3, group(1), "too old")),
        expecting(1, send(0, 4, group(1), "right")),
        expecting(u64::MAX, send(0, 5, group(1), "enormous")),
    ]);
    let failed = Some(ErrorCode::PreconditionFailed);
    assert_eq!(outcomes.iter().map(code).collect::<Vec<_>>(), [failed, None, failed, None, failed]);
}

#[test]
fn creations_that_cannot_be_are_refused() {
    let mut store = Memory::with_users(4);
    let pair = ConversationId::direct(user(0), user(1));
    let invalid = Some(ErrorCode::InvalidField);
    let mut titled = direct(0, 9, pair, &[0, 1]);
    if let Action::Create { title, .. } = &mut titled.action {
        *title = Some("no".into());
    }
    let cases = [
        (create(0, 1, group(1), &[0]), invalid),
        (create(0, 2, group(1), &[1, 2]), invalid),
        (create(0, 3, group(1), &[1, 0]), invalid),
        (create(0, 4, group(1), &[0, 0, 1]), invalid),
        (direct(0, 5, group(1), &[0, 1]), invalid),
        (direct(0, 6, pair, &[0, 1, 2]), invalid),
        (direct(2, 7, pair, &[0, 1]), invalid),
        (create(0, 8, group(1), &[0, 200]), Some(ErrorCode::NotFound)),
        (titled, invalid),
        (direct(0, 10, pair, &[0, 1]), None),
        (direct(1, 11, pair, &[0, 1]), Some(ErrorCode::AlreadyExists)),
    ];
    let (log, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    assert_eq!(store.batch(&log).iter().map(code).collect::<Vec<_>>(), expected);
    let everyone: Vec<UserId> = (0..=MEMBERS_MAX as u128).map(|n| UserId::from_bytes(n.to_be_bytes())).collect();
    let too_many = check_creation(group(1), everyone[0], ConversationKind::Group, None, &everyone);
    assert!(too_many.is_err_and(|(code, _)| code == ErrorCode::InvalidField));
    assert!(check_creation(group(1), everyone[0], ConversationKind::Group, None, &everyone[1..]).is_err());
    assert!(check_creation(group(1), everyone[0], ConversationKind::Group, None, &everyone[..MEMBERS_MAX]).is_ok());
}

#[test]
fn poison_leaves_a_dead_letter_and_takes_no_number() {
    let mut store = Memory::with_users(2);
    let mut part = store.part(&[create(0, 1, group(1), &[0, 1]), send(0, 2, group(1), "a"), send(0, 3, group(1), "b")]);
    part.records[1].content = Err(Poison { reason: "odd".to_owned(), payload: "bytes".into() });
    let plan_found = Found { users: store.found.users.clone(), ..Found::default() };
    let plan = decide(&[&part], &plan_found);
    assert_eq!(plan.dead_letters.len(), 1);
    assert_eq!((plan.dead_letters[0].position, plan.dead_letters[0].payload), (Position(1), &b"bytes"[..]));
    assert_eq!(plan.outcomes[0].iter().map(seq).collect::<Vec<_>>(), [Some(1), None, Some(2)]);
    assert_eq!(plan.outcomes[0][1].verdict(), None);
    assert!(matches!(PartOutcome::Applied(plan.outcomes[0].clone()), PartOutcome::Applied(list) if list.len() == 3));
}

#[test]
fn digests_are_frozen_and_tell_contents_apart() {
    let of = |record: &IngressRecord<'static>| content_digest(&record.action);
    let first = create(0, 1, group(1), &[0, 1]);
    assert_eq!(of(&first), of(&create(5, 6, group(2), &[0, 1])), "the identity is not part of it");
    assert_ne!(of(&first), of(&create(0, 1, group(1), &[0, 2])));
    assert_ne!(of(&first), of(&direct(0, 1, group(1), &[0, 1])));
    assert_eq!(hex(&of(&first)), "a006647f8475e989dce181187b529a00");
    assert_eq!(hex(&of(&send(0, 1, group(1), "hello"))), "07d2ea53a0c15f736c27a06c01c3978f");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn any_record() -> impl Strategy<Value = IngressRecord<'static>> {
    let members = prop::collection::btree_set(0u8..5, 1..4).prop_map(|set| set.into_iter().collect::<Vec<u8>>());
    let precondition = prop::option::weighted(0.1, 0u64..5);
    (0u8..4, 0u8..12, 0u8..4, 0u8..2, prop::bool::weighted(0.25), members, precondition).prop_map(
        |(actor, id, conversation, body, creates, members, if_last_seq)| {
            let mut record = match creates {
                true => create(actor, id, group(conversation), &members),
                false => send(actor, id, group(conversation), ["x", "y"][body as usize]),
            };
            record.if_last_seq = if_last_seq;
            record
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn verdicts_and_numbers_do_not_depend_on_the_batching(
        log in prop::collection::vec(any_record(), 1..60),
        cuts in prop::collection::vec(1usize..12, 1..60),
    ) {
        let mut single = Memory::with_users(4);
        let expected = single.one_by_one(&log);
        let mut batched = Memory::with_users(4);
        let (mut seen, mut rest, mut cuts) = (Vec::new(), &log[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
            seen.extend(batched.batch(now));
            rest = later;
        }
        prop_assert_eq!(&seen, &expected);
        prop_assert_eq!(&batched.messages, &single.messages);
        for seqs in batched.messages.values() {
            prop_assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{:?}", seqs);
        }
        // The whole log again, as after a lost reply: the same verdicts, and nothing new.
        for (outcome, first) in batched.batch(&log).iter().zip(&expected) {
            prop_assert!(!matches!(outcome, Outcome::Numbered(_)));
            prop_assert_eq!(outcome.verdict(), first.verdict());
        }
        prop_assert_eq!(&batched.messages, &single.messages);
    }

    #[test]
    fn parts_do_not_disturb_each_other(
        one in prop::collection::vec(any_record(), 1..30),
        other in prop::collection::vec(any_record(), 1..30),
    ) {
        // As partitions have it: no conversation stands in two.
        let odd = |record: &IngressRecord<'_>| record.conversation_id().as_bytes()[0] % 2 == 1;
        let one: Vec<_> = one.into_iter().filter(&odd).collect();
        let other: Vec<_> = other.into_iter().filter(|record| !odd(record)).collect();
        let mut apart = Memory::with_users(4);
        let expected = [apart.batch(&one), apart.batch(&other)];
        let mut together = Memory::with_users(4);
        let parts = [together.part(&one), together.part(&other)];
        prop_assert_eq!(&together.apply(&[&parts[0], &parts[1]])[..], &expected[..]);
        prop_assert_eq!(together.messages, apart.messages);
    }
}
