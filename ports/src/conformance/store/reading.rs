//! Cases about what users see: history, heads, conversations, members.

use std::collections::HashMap;

use roost_protocol::frames::{ConversationKind, Head, HistoryRange, Page};
use roost_protocol::limits::{HEADS_MAX, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX};
use roost_protocol::{ConversationId, Epoch, Seq, UserId};

use super::StoreHarness;
use super::lab::{Lab, create_as, send};
use crate::store::StoreError;

fn seqs(page: &Page) -> Vec<Seq> {
    page.messages.iter().map(|message| message.seq).collect()
}

/// A page holds what is asked for, in rising order, settles its range, and says whether there is more.
pub async fn history_pages_settle_their_range(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    lane.apply((2..=10).map(|n| send(users[0], group, &format!("{n}"))).collect()).await;
    let epoch = lab.store.epoch().await.expect("an epoch");
    use HistoryRange::{After, Before};
    let cases = [
        (After(0), 100, (1..=10).collect::<Vec<Seq>>(), (1, 10), false),
        (After(0), 3, vec![1, 2, 3], (1, 3), true),
        (After(7), 3, vec![8, 9, 10], (8, 10), false),
        (After(8), 1, vec![9], (9, 9), true),
        (After(10), 5, vec![], (11, 10), false),
        (After(u64::MAX), 5, vec![], (11, 10), false),
        (Before(11), 3, vec![8, 9, 10], (8, 10), true),
        (Before(u64::MAX), 2, vec![9, 10], (9, 10), true),
        (Before(4), 100, vec![1, 2, 3], (1, 3), false),
        (Before(4), 3, vec![1, 2, 3], (1, 3), false),
        (Before(1), 5, vec![], (1, 0), false),
        (Before(0), 5, vec![], (1, 0), false),
    ];
    for (range, limit, expected, settled, more) in cases {
        let page = lab.store.history(users[1], group, range, limit).await.expect("a page");
        assert_eq!((seqs(&page), (page.from, page.to), page.more), (expected, settled, more), "{range:?} {limit}");
        assert_eq!((page.conversation_id, page.epoch), (group, epoch));
    }
    let first = lab.store.history(users[0], group, After(0), 1).await.expect("a page");
    assert!(first.messages[0].event.is_some(), "the creation is part of the history");
}

/// A limit of nothing or of too much is clamped.
pub async fn history_limits_are_clamped(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let limit = PAGE_MESSAGES_MAX as usize;
    lane.apply((0..limit + 20).map(|_| send(users[0], group, "x")).collect()).await;
    let page = lab.store.history(users[0], group, HistoryRange::After(0), u32::MAX).await.expect("a page");
    assert_eq!((page.messages.len(), page.to, page.more), (limit, limit as Seq, true));
    let page = lab.store.history(users[0], group, HistoryRange::Before(u64::MAX), 0).await.expect("a page");
    assert_eq!((seqs(&page), page.more), (vec![limit as Seq + 21], true));
}

/// A page ends early where the bodies are large, from either side, but always goes on.
pub async fn history_pages_are_bounded_in_bytes(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    let body = "b".repeat(60_000);
    for _ in 0..3 {
        lane.apply((0..4).map(|_| send(users[0], group, &body)).collect()).await;
    }
    let (mut forward, mut after) = (Vec::new(), 0);
    loop {
        let page = lab.store.history(users[0], group, HistoryRange::After(after), 200).await.expect("a page");
        let bytes: usize = page.messages.iter().map(|message| message.body.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX && !page.messages.is_empty());
        assert_eq!((page.from, page.to), (after + 1, *seqs(&page).last().expect("not empty")));
        forward.extend(seqs(&page));
        after = page.to;
        if !page.more {
            break;
        }
    }
    assert!(forward.iter().copied().eq(1..=13), "{forward:?}");
    let (mut backward, mut before) = (Vec::new(), u64::MAX);
    loop {
        let page = lab.store.history(users[0], group, HistoryRange::Before(before), 200).await.expect("a page");
        assert_eq!((page.from, page.to), (seqs(&page)[0], *seqs(&page).last().expect("not empty")));
        backward.extend(seqs(&page).into_iter().rev());
        before = page.from;
        if !page.more {
            break;
        }
    }
    assert!(backward.iter().copied().eq((1..=13).rev()), "{backward:?}");
}

/// All heads without a cursor; after that only what changed, oldest change first.
pub async fn heads_tell_what_changed(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let mut lane = lab.lane(0).await;
    let empty = lab.store.heads(users[0], None, 10).await.expect("heads");
    assert_eq!((empty.conversations.len(), empty.more), (0, false));
    assert_eq!(empty.epoch, Some(lab.store.epoch().await.expect("an epoch")));
    let mut groups = Vec::new();
    for _ in 0..3 {
        groups.push(lab.group(&mut lane, &users[..2]).await);
    }
    lab.group(&mut lane, &users[1..]).await;
    let all = lab.store.heads(users[0], None, 10).await.expect("heads");
    let head = |group: usize, last_seq| Head {
        conversation_id: groups[group],
        first_seq: Some(1),
        last_seq,
        read_seq: Some(0),
        delivered_seq: Some(0),
    };
    assert_eq!(all.conversations, [head(0, 1), head(1, 1), head(2, 1)]);
    let since = lab.store.heads(users[0], empty.next.as_deref(), 10).await.expect("heads");
    assert_eq!(since.conversations, all.conversations, "an empty sync's cursor leads to what came after it");
    for (group, body) in [(2, "a"), (0, "b"), (2, "c"), (1, "d"), (0, "e")] {
        lane.apply_one(send(users[1], groups[group], body)).await;
    }
    let changed = follow(&lab, users[0], all.next.as_deref(), 10).await;
    assert_eq!(changed.0, [head(2, 3), head(1, 2), head(0, 3)]);
    let quiet = follow(&lab, users[0], Some(&changed.1), 10).await;
    assert_eq!(quiet.0, []);
    lane.apply_one(send(users[1], groups[1], "f")).await;
    for cursor in [&changed.1, &quiet.1] {
        assert_eq!(follow(&lab, users[0], Some(cursor), 10).await.0, [head(1, 3)]);
    }
    assert_eq!(follow(&lab, users[2], None, 10).await.0.len(), 1, "others' conversations are not told");
}

/// Many heads, changed by few transactions, come page by page, each once while nothing changes.
pub async fn heads_come_in_pages(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    let count = HEADS_MAX as usize + 30;
    let groups: Vec<ConversationId> = (0..count).map(|_| ConversationId::new()).collect();
    for some in groups.chunks(200) {
        let creations = some.iter().map(|&id| create_as(users[0], id, ConversationKind::Group, None, &users));
        lane.apply(creations.collect()).await;
    }
    for limit in [7, 500, u32::MAX] {
        let (heads, next) = follow(&lab, users[1], None, limit).await;
        let mut ids: Vec<ConversationId> = heads.iter().map(|head| head.conversation_id).collect();
        ids.sort_unstable();
        assert_eq!(ids.len(), count);
        ids.dedup();
        assert_eq!(ids.len(), count, "each once");
        assert_eq!(follow(&lab, users[1], Some(&next), limit).await.0, []);
    }
    let first = lab.store.heads(users[1], None, u32::MAX).await.expect("heads");
    assert_eq!((first.conversations.len(), first.more), (HEADS_MAX as usize, true));
    let least = lab.store.heads(users[1], None, 0).await.expect("heads");
    assert_eq!((least.conversations.len(), least.more), (1, true));
}

/// A client that follows its cursor while lanes commit side by side misses nothing.
pub async fn a_cursor_never_jumps_over_a_commit(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lanes = Vec::new();
    for partition in 0..4 {
        let mut lane = lab.lane(partition).await;
        let mut groups = Vec::new();
        for _ in 0..5 {
            groups.push(lab.group(&mut lane, &users).await);
        }
        lanes.push((lane, groups));
    }
    let (first, mut cursor) = follow(&lab, users[1], None, 3).await;
    let mut seen: HashMap<ConversationId, Seq> =
        first.iter().map(|head| (head.conversation_id, head.last_seq)).collect();
    let working = futures::future::join_all(lanes.iter_mut().map(|(lane, groups)| async {
        for round in 0..30 {
            let touched = [round % 5, (round * 3) % 5];
            lane.apply(touched.iter().map(|&group| send(users[0], groups[group], "x")).collect()).await;
        }
    }));
    tokio::pin!(working);
    let mut done = false;
    while !done {
        tokio::select! {
            biased;
            _ = &mut working => done = true,
            (heads, next) = follow(&lab, users[1], Some(&cursor), 3) => {
                seen.extend(heads.iter().map(|head| (head.conversation_id, head.last_seq)));
                cursor = next;
            }
        }
    }
    let (heads, _) = follow(&lab, users[1], Some(&cursor), 3).await;
    seen.extend(heads.iter().map(|head| (head.conversation_id, head.last_seq)));
    let (all, _) = follow(&lab, users[1], None, 500).await;
    assert_eq!(all.len(), 20);
    for head in all {
        assert_eq!(seen.get(&head.conversation_id), Some(&head.last_seq), "{:?}", head.conversation_id);
    }
}

/// What is no cursor of this Store is refused.
pub async fn a_foreign_cursor_is_refused(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(2).await;
    let mut lane = lab.lane(0).await;
    lab.group(&mut lane, &users).await;
    let next = lab.store.heads(users[0], None, 10).await.expect("heads").next.expect("an answer has a cursor");
    let epoch = lab.store.epoch().await.expect("an epoch").to_string();
    assert!(next.contains(&epoch), "a cursor names its epoch");
    let texts = ["", "0", "-1", "nonsense", "' OR 1=1", "1.2.3", "\u{0}", "1e400", "9223372036854775807"];
    let foreign = next.replace(&epoch, &Epoch::new().to_string());
    let longer = format!("{next}0000000000000000000000");
    for text in texts.iter().map(|text| (*text).to_owned()).chain([foreign, longer, next.repeat(100)]) {
        let answer = lab.store.heads(users[0], Some(&text), 10).await;
        assert_eq!(answer, Err(StoreError::InvalidCursor), "{text}");
    }
}

/// A user's conversations are listed in order of id with what a list shows.
pub async fn conversations_are_listed_in_pages(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(3).await;
    let mut lane = lab.lane(0).await;
    let pair = ConversationId::direct(users[0], users[1]);
    let titled = ConversationId::new();
    let mut ids = vec![pair, titled];
    lane.apply(vec![
        create_as(users[0], pair, ConversationKind::Direct, None, &users[..2]),
        create_as(users[0], titled, ConversationKind::Group, Some("Titled"), &users),
        send(users[1], pair, "a"),
    ])
    .await;
    for _ in 0..5 {
        ids.push(lab.group(&mut lane, &users[..2]).await);
    }
    ids.sort_unstable();
    for limit in [1, 3, 7, 8, u32::MAX] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = lab.store.conversations(users[1], after, limit).await.expect("a page");
            after = page.conversations.last().map(|entry| entry.head.conversation_id);
            listed.extend(page.conversations);
            if !page.more {
                break;
            }
        }
        assert_eq!(listed.iter().map(|entry| entry.head.conversation_id).collect::<Vec<_>>(), ids, "limit {limit}");
        let direct = listed.iter().find(|entry| entry.head.conversation_id == pair).expect("listed");
        assert_eq!((direct.kind, direct.peer), (ConversationKind::Direct, Some(users[0])));
        assert_eq!((direct.head.first_seq, direct.head.last_seq, direct.title.as_deref()), (Some(1), 2, None));
        let group = listed.iter().find(|entry| entry.head.conversation_id == titled).expect("listed");
        assert_eq!((group.kind, group.peer, group.title.as_deref()), (ConversationKind::Group, None, Some("Titled")));
    }
    let nobody = lab.store.conversations(UserId::new(), None, 10).await.expect("a page");
    assert_eq!((nobody.conversations.len(), nobody.more), (0, false));
}

/// Members come in order of id; a conversation that does not exist has none.
pub async fn members_are_listed_in_pages(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let users = lab.users(5).await;
    let mut lane = lab.lane(0).await;
    let group = lab.group(&mut lane, &users).await;
    lane.apply_one(send(users[0], group, "a message does not change the version")).await;
    let page = |after, limit| lab.store.members(group, after, limit);
    let ids = |page: &crate::store::MembersPage| page.members.iter().map(|one| one.user_id).collect::<Vec<_>>();
    let first = page(None, 2).await.expect("a page");
    assert_eq!((ids(&first), first.more, first.version), (users[..2].to_vec(), true, 1));
    let rest = page(Some(users[1]), 3).await.expect("a page");
    assert_eq!((ids(&rest), rest.more), (users[2..].to_vec(), false));
    let none = page(Some(users[4]), 3).await.expect("a page");
    assert_eq!((none.members.len(), none.more), (0, false));
    let nowhere = lab.store.members(ConversationId::new(), None, 10).await;
    assert_eq!(nowhere, Err(StoreError::NotFound));
}

/// All heads from a cursor on, page by page, and the cursor after them.
async fn follow(lab: &Lab, user: UserId, since: Option<&str>, limit: u32) -> (Vec<Head>, String) {
    let (mut heads, mut cursor) = (Vec::new(), since.map(str::to_owned));
    for _ in 0..10_000 {
        let answer = lab.store.heads(user, cursor.as_deref(), limit).await.expect("heads");
        heads.extend(answer.conversations);
        let next = answer.next.expect("an answer has a cursor");
        if !answer.more {
            return (heads, next);
        }
        cursor = Some(next);
    }
    panic!("the cursor gets nowhere");
}
