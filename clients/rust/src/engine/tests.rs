//! The engine against frames and time, without a socket.

use bytes::Bytes;
use roost_protocol::frames::{Head, ServerLimits};
use roost_protocol::{DeviceId, Seq, SessionId};

use super::*;

const ROOM: usize = 10_000;

struct Bench {
    engine: Engine,
    seen: Arc<Mutex<Seen>>,
    now: Instant,
    me: UserId,
    epoch: Epoch,
    conversation: ConversationId,
    room: usize,
}

fn bench_of(state: SavedState) -> Bench {
    let (seen, now) = (Arc::new(Mutex::new(Seen::default())), Instant::now());
    let epoch = state.epoch.unwrap_or_else(Epoch::new);
    Bench {
        engine: Engine::new(state, seen.clone(), now),
        seen,
        now,
        me: UserId::new(),
        epoch,
        conversation: ConversationId::new(),
        room: ROOM,
    }
}

/// A bench that is connected and has synced one empty conversation.
fn ready() -> Bench {
    let mut bench = bench_of(SavedState::default());
    bench.connect();
    bench.answer_sync("c1", vec![bench.head(Some(1), 0)], false);
    bench.events();
    bench
}

impl Bench {
    fn connect(&mut self) {
        self.engine.on_opened("token", "test", self.now);
        assert!(matches!(&self.frames()[..], [ClientFrame { body: ClientBody::Connect { .. }, .. }]));
        let connected = Connected {
            session_id: SessionId::from_slice(&[1; 16]).expect("16 bytes"),
            user_id: self.me,
            device_id: DeviceId::new(),
            server_time: 1_000_000,
            ping_ms: 25_000,
            limits: ServerLimits::OURS,
            expires_at: 1_900_000,
            epoch: self.epoch,
        };
        self.frame(None, ServerBody::Connected(connected));
    }

    fn frame(&mut self, id: Option<u32>, body: ServerBody) {
        self.engine.on_heard(self.now);
        self.engine.on_frame(ServerFrame { id, body }, self.room, self.now);
    }

    fn frames(&mut self) -> Vec<ClientFrame<'static>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.engine.poll_frame(self.room, self.now) {
            frames.push(frame.into_owned());
        }
        frames
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    fn shown(&mut self) -> Vec<Seq> {
        self.events().into_iter().filter_map(seq_of).collect()
    }

    fn head(&self, first_seq: Option<Seq>, last_seq: Seq) -> Head {
        let conversation_id = self.conversation;
        Head { conversation_id, first_seq, last_seq, read_seq: None, delivered_seq: None }
    }

    /// The one sync that must be due: its id and cursor.
    fn asked_sync(&mut self) -> (u32, Option<String>) {
        match &self.frames()[..] {
            [ClientFrame { id: Some(id), body: ClientBody::Sync { since } }] => {
                (*id, since.as_ref().map(|since| since.to_string()))
            }
            other => panic!("a sync, not {other:?}"),
        }
    }

    fn answer_sync(&mut self, next: &str, conversations: Vec<Head>, more: bool) -> Option<String> {
        let (id, since) = self.asked_sync();
        let heads = Heads { conversations, next: Some(next.to_owned()), more, epoch: Some(self.epoch) };
        self.frame(Some(id), ServerBody::Heads(heads));
        since
    }

    fn unsolicited(&mut self, last_seq: Seq) {
        let heads = Heads { conversations: vec![self.head(None, last_seq)], next: None, more: false, epoch: None };
        self.frame(None, ServerBody::Heads(heads));
    }

    /// The one page that must be asked for: its id and `after`.
    fn asked_page(&mut self) -> (u32, Seq) {
        match &self.frames()[..] {
            [ClientFrame { id: Some(id), body: ClientBody::History { range: HistoryRange::After(after), .. } }] => {
                (*id, *after)
            }
            other => panic!("a history, not {other:?}"),
        }
    }

    fn answer_page(&mut self, to: Seq) -> Seq {
        let (id, after) = self.asked_page();
        let messages = (after + 1..=to).map(|seq| self.message(seq, UserId::new(), ClientMsgId::new())).collect();
        let (conversation_id, epoch) = (self.conversation, self.epoch);
        let page = Page { conversation_id, from: after + 1, to, messages, more: false, epoch };
        self.frame(Some(id), ServerBody::Page(page));
        after
    }

    fn message(&self, seq: Seq, sender_id: UserId, client_msg_id: ClientMsgId) -> Message {
        Message {
            conversation_id: self.conversation,
            seq,
            sender_id,
            device_id: DeviceId::new(),
            client_msg_id,
            time: 5,
            content_type: "text/plain".to_owned(),
            body: Bytes::from_static(b"x"),
            event: None,
        }
    }

    fn live(&mut self, seq: Seq) {
        let message = self.message(seq, UserId::new(), ClientMsgId::new());
        self.frame(None, ServerBody::Message(message));
    }

    fn send(&mut self) -> ClientMsgId {
        let client_msg_id = ClientMsgId::new();
        let (conversation_id, body) = (self.conversation, Bytes::from_static(b"x"));
        self.engine.send(Entry { client_msg_id, conversation_id, content_type: "text/plain".to_owned(), body });
        client_msg_id
    }

    fn sends(&mut self) -> Vec<ClientMsgId> {
        self.frames().iter().filter_map(|frame| frame.body.client_msg_id()).collect()
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.engine.on_timeout(self.now);
    }
}

fn seq_of(event: Event) -> Option<Seq> {
    match event {
        Event::Message(message) => Some(message.seq),
        _ => None,
    }
}

#[test]
fn a_session_syncs_and_repairs_before_it_shows_anything_later() {
    let mut bench = bench_of(SavedState { cursor: Some("c0".to_owned()), ..SavedState::default() });
    bench.connect();
    assert!(matches!(bench.events()[..], [Event::Connected { .. }]));
    let head = bench.head(Some(1), 2);
    assert_eq!(bench.answer_sync("c1", vec![head], true), Some("c0".to_owned()));
    let frames = bench.frames();
    assert!(matches!(&frames[0].body, ClientBody::Sync { since: Some(since) } if since == "c1"));
    assert!(matches!(frames[1].body, ClientBody::History { range: HistoryRange::After(0), .. }));
    bench.live(3);
    assert!(bench.shown().is_empty());
    let messages = [1, 2].map(|seq| bench.message(seq, UserId::new(), ClientMsgId::new())).to_vec();
    let (conversation_id, epoch) = (bench.conversation, bench.epoch);
    let page = Page { conversation_id, from: 1, to: 2, messages, more: false, epoch };
    bench.frame(frames[1].id, ServerBody::Page(page));
    assert_eq!(bench.shown(), [1, 2, 3]);
}

#[test]
fn an_unsolicited_head_repairs_a_lost_newest_message() {
    let mut bench = ready();
    bench.unsolicited(1);
    assert_eq!(bench.answer_page(1), 0);
    assert_eq!(bench.shown(), [1]);
}

#[test]
fn a_message_of_an_unknown_conversation_waits_for_its_sync() {
    let mut bench = ready();
    bench.conversation = ConversationId::new();
    bench.live(5);
    assert!(bench.shown().is_empty());
    let head = bench.head(Some(5), 5);
    assert_eq!(bench.answer_sync("c2", vec![head], false), Some("c1".to_owned()));
    assert_eq!(bench.shown(), [5]);
}

#[test]
fn a_sync_that_does_not_bring_the_conversation_is_repeated_and_then_starts_over() {
    let mut bench = ready();
    bench.conversation = ConversationId::new();
    bench.live(5);
    for _ in 0..3 {
        assert!(bench.answer_sync("c2", vec![], false).is_some());
        assert_eq!(bench.frames(), [], "not at once");
        bench.pass(5_000);
    }
    assert_eq!(bench.answer_sync("c3", vec![bench.head(Some(5), 5)], false), None);
    assert_eq!(bench.shown(), [5]);
}

#[test]
fn a_cursor_that_is_not_accepted_is_dropped() {
    let mut bench = bench_of(SavedState { cursor: Some("old".to_owned()), ..SavedState::default() });
    bench.connect();
    let (id, since) = bench.asked_sync();
    assert_eq!(since.as_deref(), Some("old"));
    let (code, message) = (ErrorCode::InvalidCursor, String::new());
    bench.frame(Some(id), ServerBody::Error { code, message, retry_after_ms: None, fatal: false });
    bench.pass(1_000);
    assert_eq!(bench.asked_sync().1, None);
}

#[test]
fn verdicts_end_a_send_and_so_does_its_own_message() {
    let mut bench = ready();
    let [one, two, three] = [0; 3].map(|_| bench.send());
    assert_eq!(bench.sends(), [one, two, three]);
    let conversation_id = bench.conversation;
    bench.frame(None, ServerBody::Sent { client_msg_id: one, conversation_id, seq: 1, time: 4 });
    bench.live(1);
    let own = bench.message(2, bench.me, two);
    bench.frame(None, ServerBody::Message(own));
    let (code, message) = (ErrorCode::NotFound, "no".to_owned());
    bench.frame(None, ServerBody::Rejected { client_msg_id: three, code, message: message.clone() });
    let verdicts: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Verdict { client_msg_id, outcome, .. } => Some((client_msg_id, outcome)),
            _ => None,
        })
        .collect();
    let sent = |seq, time| Outcome::Sent { seq, time };
    assert_eq!(verdicts, [(one, sent(1, 4)), (two, sent(2, 5)), (three, Outcome::Rejected { code, message })]);
    assert_eq!(bench.engine.waiting(), 0);
}

#[test]
fn a_foreign_message_with_the_same_id_is_no_verdict() {
    let mut bench = ready();
    let id = bench.send();
    bench.sends();
    let foreign = bench.message(1, UserId::new(), id);
    bench.frame(None, ServerBody::Message(foreign));
    assert_eq!(bench.engine.waiting(), 1);
}

#[test]
fn unanswered_sends_go_again_after_retry_silence_and_reconnect() {
    let mut bench = ready();
    let ids = [0; 3].map(|_| bench.send());
    assert_eq!(bench.sends(), ids);
    bench.frame(None, ServerBody::Retry { client_msg_id: ids[1], retry_after_ms: 500, code: ErrorCode::Busy });
    assert_eq!(bench.sends(), []);
    bench.pass(500);
    assert_eq!(bench.sends(), ids);
    bench.pass(20_000);
    assert_eq!(bench.sends(), ids);
    bench.engine.on_closed();
    assert_eq!(bench.frames(), []);
    bench.connect();
    assert_eq!(bench.sends(), ids);
}

#[test]
fn another_epoch_starts_everything_anew_but_the_sends() {
    let mut bench = ready();
    bench.live(1);
    bench.events();
    let id = bench.send();
    bench.engine.on_closed();
    bench.epoch = Epoch::new();
    bench.connect();
    assert!(matches!(bench.events()[..], [Event::Reloaded { .. }, Event::Connected { .. }]));
    let frames = bench.frames();
    assert!(matches!(frames[0].body, ClientBody::Sync { since: None }));
    assert_eq!(frames[1].body.client_msg_id(), Some(id));
    assert_eq!(bench.engine.state().conversations, [], "the application does not know of it yet");
    let heads = Heads {
        conversations: vec![bench.head(Some(1), 1)],
        next: Some("d1".to_owned()),
        more: false,
        epoch: Some(bench.epoch),
    };
    bench.frame(frames[0].id, ServerBody::Heads(heads));
    assert_eq!(bench.answer_page(1), 0);
    assert_eq!(bench.shown(), [1]);
}

#[test]
fn reload_starts_anew_on_a_live_connection() {
    let mut bench = ready();
    bench.live(1);
    bench.frame(None, ServerBody::Reload { reason: "restored".to_owned() });
    assert_eq!(bench.answer_sync("d1", vec![bench.head(Some(1), 1)], false), None);
    assert_eq!(bench.answer_page(1), 0);
    let events = bench.events();
    let reloaded = events.iter().position(|event| matches!(event, Event::Reloaded { .. })).expect("it says so");
    assert_eq!(events[reloaded..].iter().cloned().filter_map(seq_of).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_ping_is_answered_and_silence_ends_the_connection() {
    let mut bench = ready();
    bench.frame(Some(7), ServerBody::Ping);
    assert_eq!(bench.frames(), [ClientFrame { id: Some(7), body: ClientBody::Pong }]);
    bench.pass(39_999);
    assert_eq!(bench.engine.ending(), None);
    bench.pass(1);
    assert_eq!(bench.engine.ending().map(|ending| ending.policy), Some(ReconnectPolicy::Resume));
}

#[test]
fn requests_without_an_answer_are_made_again() {
    let mut bench = ready();
    bench.unsolicited(3);
    let (first, after) = bench.asked_page();
    bench.pass(19_999);
    assert_eq!(bench.frames(), []);
    bench.pass(1);
    bench.pass(1_000);
    let (second, same) = bench.asked_page();
    assert_eq!(after, same);
    assert_ne!(first, second);
}

#[test]
fn the_token_is_refreshed_before_it_ends() {
    let mut bench = ready();
    assert!(!bench.engine.poll_refresh(bench.now + Duration::from_secs(719)));
    bench.now += Duration::from_secs(720);
    assert!(bench.engine.poll_refresh(bench.now), "after four fifths of 900 s");
    assert!(!bench.engine.poll_refresh(bench.now), "once");
    bench.engine.refresh("new", 1_000_000 + 720_000 + 900_000, bench.now);
    let frames = bench.frames();
    assert!(matches!(&frames[..], [ClientFrame { body: ClientBody::Refresh { token }, .. }] if token == "new"));
    assert!(bench.engine.poll_refresh(bench.now + Duration::from_secs(720)));
    let (code, message) = (ErrorCode::Unauthenticated, "odd token".to_owned());
    bench.frame(frames[0].id, ServerBody::Error { code, message, retry_after_ms: None, fatal: false });
    assert_eq!(bench.engine.ending().map(|ending| ending.policy), Some(ReconnectPolicy::Reauthenticate));
}

#[test]
fn goaway_leaves_when_told_and_not_before() {
    let mut bench = ready();
    bench.frame(None, ServerBody::Goaway { reconnect_in_ms: 1_500, reason: "drained".to_owned() });
    bench.pass(1_499);
    assert_eq!(bench.engine.ending(), None);
    assert_eq!(bench.engine.reconnect_at(), Some(bench.now + Duration::from_millis(1)));
    bench.pass(1);
    assert_eq!(bench.engine.ending().map(|ending| ending.policy), Some(ReconnectPolicy::Resume));
}

#[test]
fn a_saved_state_holds_what_the_application_has_taken_and_what_has_no_verdict() {
    let mut bench = ready();
    let id = bench.send();
    for seq in 1..=3 {
        bench.live(seq);
    }
    bench.seen.lock().shown.insert(bench.conversation, 2);
    let state = bench.engine.state();
    let conversation_id = bench.conversation;
    assert_eq!(state.conversations, [SavedConversation { conversation_id, shown: 2, target: 3 }]);
    assert_eq!((state.cursor.as_deref(), state.outbox[0].client_msg_id), (Some("c1"), id));
    let text = serde_json::to_string(&state).expect("it serialises");
    let state: SavedState = serde_json::from_str(&text).expect("it reads back");
    let mut next = bench_of(state);
    (next.conversation, next.epoch) = (bench.conversation, bench.epoch);
    next.connect();
    let frames = next.frames();
    assert!(matches!(&frames[0].body, ClientBody::Sync { since: Some(since) } if since == "c1"));
    assert!(matches!(frames[1].body, ClientBody::History { range: HistoryRange::After(2), .. }));
    assert_eq!(frames[2].body.client_msg_id(), Some(id));
}

#[test]
fn without_room_nothing_is_fetched_and_nothing_is_lost() {
    let mut bench = ready();
    bench.room = 0;
    bench.live(1);
    bench.live(2);
    assert!(bench.shown().is_empty());
    assert_eq!(bench.engine.wants_room(0), Some(1));
    bench.room = 199;
    bench.engine.release(bench.room);
    assert_eq!(bench.shown(), [1, 2]);
    bench.unsolicited(4);
    assert_eq!(bench.frames(), [], "a page would not fit");
    assert_eq!(bench.engine.wants_room(199), Some(200));
    bench.room = 200;
    assert_eq!(bench.answer_page(4), 2);
    assert_eq!(bench.shown(), [3, 4]);
}
