//! Gap repair against orders, holes and a full application.

use bytes::Bytes;
use roost_protocol::{ClientMsgId, DeviceId, Epoch, UserId};

use super::*;

const NONE: [Seq; 0] = [];
const ROOM: usize = 10_000;

struct Bench {
    repair: Repair,
    conversation: ConversationId,
    now: Instant,
    room: usize,
}

fn bench() -> Bench {
    let bench =
        Bench { repair: Repair::default(), conversation: ConversationId::new(), now: Instant::now(), room: ROOM };
    assert!(!bench.repair.needs_sync());
    bench
}

fn known_bench() -> Bench {
    let mut bench = bench();
    bench.head(Some(1), 0);
    bench
}

impl Bench {
    fn head(&mut self, first_seq: Option<Seq>, last_seq: Seq) {
        let conversation_id = self.conversation;
        self.repair.on_head(&Head { conversation_id, first_seq, last_seq, read_seq: None, delivered_seq: None });
    }

    fn message(&self, seq: Seq) -> Message {
        Message {
            conversation_id: self.conversation,
            seq,
            sender_id: UserId::new(),
            device_id: DeviceId::new(),
            client_msg_id: ClientMsgId::new(),
            time: 0,
            content_type: "text/plain".to_owned(),
            body: Bytes::new(),
            event: None,
        }
    }

    fn live(&mut self, seq: Seq) -> Vec<Seq> {
        let mut out = Vec::new();
        let message = self.message(seq);
        self.repair.on_message(message, self.room, &mut out);
        seqs(out)
    }

    fn page(&mut self, from: Seq, to: Seq, holds: impl IntoIterator<Item = Seq>, more: bool) -> Vec<Seq> {
        let mut out = Vec::new();
        let messages = holds.into_iter().map(|seq| self.message(seq)).collect();
        let page = Page { conversation_id: self.conversation, from, to, messages, more, epoch: Epoch::new() };
        self.repair.on_page(page, self.room, self.now, &mut out);
        seqs(out)
    }

    fn release(&mut self) -> Vec<Seq> {
        let mut out = Vec::new();
        self.repair.release(self.room, &mut out);
        seqs(out)
    }

    fn asked(&mut self) -> Option<Seq> {
        self.repair.poll_request(self.now).map(|(_, after)| after)
    }
}

fn seqs(messages: Vec<Message>) -> Vec<Seq> {
    messages.iter().map(|message| message.seq).collect()
}

#[test]
fn in_order_is_shown_at_once_and_duplicates_never() {
    let mut bench = known_bench();
    assert_eq!(bench.live(1), [1]);
    assert_eq!(bench.live(2), [2]);
    assert_eq!(bench.live(1), NONE);
    assert_eq!(bench.live(2), NONE);
    assert_eq!(bench.asked(), None);
}

#[test]
fn a_gap_is_filled_before_anything_later_is_shown() {
    let mut bench = known_bench();
    bench.live(1);
    assert_eq!(bench.live(4), NONE);
    assert_eq!(bench.asked(), Some(1));
    assert_eq!(bench.asked(), None, "one request at a time");
    assert_eq!(bench.live(5), NONE);
    assert_eq!(bench.page(2, 3, [2, 3], false), [2, 3, 4, 5]);
    assert_eq!(bench.asked(), None);
}

#[test]
fn the_missing_message_may_come_by_itself() {
    let mut bench = known_bench();
    assert_eq!(bench.live(2), NONE);
    assert_eq!(bench.asked(), Some(0));
    assert_eq!(bench.live(1), [1, 2]);
    assert_eq!(bench.page(1, 2, [1, 2], false), NONE, "the page comes too late and shows nothing twice");
    assert_eq!(bench.live(3), [3]);
}

#[test]
fn a_head_is_enough_to_find_a_lost_newest_message() {
    let mut bench = known_bench();
    bench.live(1);
    bench.head(None, 2);
    assert_eq!(bench.asked(), Some(1));
    assert_eq!(bench.page(2, 2, [2], false), [2]);
}

#[test]
fn long_gaps_take_several_pages() {
    let mut bench = bench();
    bench.head(Some(1), 450);
    assert_eq!(bench.asked(), Some(0));
    assert_eq!(bench.page(1, 200, 1..=200, true).len(), 200);
    assert_eq!(bench.asked(), Some(200));
    assert_eq!(bench.page(201, 400, 201..=400, true).len(), 200);
    assert_eq!(bench.asked(), Some(400));
    assert_eq!(bench.page(401, 450, 401..=450, false).len(), 50);
    assert_eq!(bench.asked(), None);
}

#[test]
fn what_a_page_settles_without_a_message_is_no_gap() {
    let mut bench = known_bench();
    assert_eq!(bench.live(10), NONE);
    assert_eq!(bench.asked(), Some(0));
    assert_eq!(bench.page(1, 9, [1, 2, 9], false), [1, 2, 9, 10]);
}

#[test]
fn an_unknown_conversation_waits_for_its_head() {
    let mut bench = bench();
    assert_eq!(bench.live(8), NONE);
    assert!(bench.repair.needs_sync());
    assert_eq!(bench.asked(), None);
    bench.head(None, 9);
    assert!(bench.repair.needs_sync(), "an unsolicited head does not say where it begins");
    bench.head(Some(8), 9);
    assert!(!bench.repair.needs_sync());
    assert_eq!(bench.release(), [8]);
    assert_eq!(bench.asked(), Some(8));
    assert_eq!(bench.page(9, 9, [9], false), [9]);
}

#[test]
fn a_page_that_settles_nothing_is_asked_for_again_and_then_given_up() {
    let mut bench = known_bench();
    bench.head(Some(1), 3);
    for _ in 0..2 {
        assert_eq!(bench.asked(), Some(0));
        assert_eq!(bench.page(1, 0, [], false), NONE);
        assert_eq!(bench.asked(), None, "not at once");
        bench.now = bench.repair.next_deadline().expect("again later");
    }
    assert_eq!(bench.asked(), Some(0));
    bench.page(1, 0, [], false);
    assert_eq!((bench.asked(), bench.repair.next_deadline()), (None, None));
    assert_eq!(bench.live(1), [1], "new messages still come");
}

#[test]
fn failures_wait_as_long_as_the_server_says() {
    let mut bench = known_bench();
    bench.head(None, 3);
    assert_eq!(bench.asked(), Some(0));
    bench.repair.on_failure(bench.conversation, Duration::from_secs(5), bench.now);
    assert_eq!(bench.asked(), None);
    assert_eq!(bench.repair.next_deadline(), Some(bench.now + Duration::from_secs(5)));
    bench.now += Duration::from_secs(5);
    assert_eq!(bench.asked(), Some(0));
    bench.repair.give_up(bench.conversation);
    assert_eq!((bench.asked(), bench.repair.next_deadline()), (None, None));
}

#[test]
fn a_new_connection_asks_again() {
    let mut bench = known_bench();
    bench.head(None, 3);
    assert_eq!(bench.asked(), Some(0));
    bench.repair.on_disconnected();
    assert_eq!(bench.asked(), Some(0));
    assert_eq!(bench.asked(), None);
}

#[test]
fn what_the_application_cannot_take_waits_and_is_fetched_later() {
    let mut bench = known_bench();
    bench.room = 0;
    for seq in 1..=600 {
        assert_eq!(bench.live(seq), NONE);
    }
    assert!(bench.repair.withholds());
    assert_eq!(bench.asked(), None, "the next one is here");
    bench.room = 100;
    assert_eq!(bench.release(), (1..=100).collect::<Vec<_>>());
    bench.room = 1000;
    assert_eq!(bench.release(), (101..=256).collect::<Vec<_>>());
    assert!(!bench.repair.withholds());
    assert_eq!(bench.asked(), Some(256));
    assert_eq!(bench.page(257, 456, 257..=456, true).len(), 200);
    assert_eq!(bench.asked(), Some(456));
    assert_eq!(bench.page(457, 600, 457..=600, false).len(), 144);
}

#[test]
fn a_saved_state_goes_on_where_it_was() {
    let mut bench = bench();
    bench.repair.restore(bench.conversation, 5, 7);
    assert_eq!(bench.asked(), Some(5));
    assert_eq!(bench.page(6, 7, [6, 7], false), [6, 7]);
    assert_eq!(bench.repair.positions().collect::<Vec<_>>(), [(bench.conversation, 5, 7)]);
    bench.head(Some(20), 20);
    assert_eq!(bench.asked(), Some(19), "what is before first_seq is not for us any more");
}

/// Any order of messages, losses, pages and room shows 1, 2, 3 … without a hole, and all of it in the end.
#[test]
fn whatever_happens_everything_comes_out_once_in_order() {
    for seed in 1..300u64 {
        let mut bench = known_bench();
        let mut random = seed;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % bound
        };
        let (mut last, mut shown, mut out) = (0, 0, Vec::new());
        for step in 0..400 {
            let quiet = step >= 350;
            bench.room = if quiet || below(3) > 0 { ROOM } else { below(3) as usize };
            out.clear();
            match below(6) {
                0 | 1 if !quiet => last += 1,
                2 if last > 0 => out = bench.live(1 + below(last)),
                3 => bench.head(None, last),
                4 if last > 0 && !quiet => out = bench.live(last),
                _ => {
                    bench.now += Duration::from_secs(20);
                    if let Some(after) = bench.asked() {
                        let to = last.min(after + 1 + below(5));
                        out = bench.page(after + 1, to, after + 1..=to, to < last);
                    }
                }
            }
            out.extend(bench.release());
            for &seq in &out {
                assert_eq!(seq, shown + 1, "seed {seed}");
                shown = seq;
            }
        }
        bench.head(None, last);
        bench.now += Duration::from_secs(20);
        while let Some(after) = bench.asked() {
            shown += bench.page(after + 1, last, after + 1..=last, false).len() as u64;
        }
        shown += bench.release().len() as u64;
        assert_eq!(shown, last, "seed {seed}");
    }
}
