//! The outbox: sends repeated under their id until there is a verdict, in order within each conversation.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_protocol::{ClientMsgId, ConversationId};

/// A message on its way to a verdict.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Its name, the same for every attempt.
    pub client_msg_id: ClientMsgId,
    /// Where it goes.
    pub conversation_id: ConversationId,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

/// All sends without a verdict.
///
/// Commands: `push`. Handlers: `on_verdict`, `on_seen`, `on_retry`, `on_disconnected`, `on_timeout`. Polls: `poll_send`
/// until it gives nothing, then `next_deadline`.
#[derive(Debug)]
pub struct Outbox {
    queues: HashMap<ConversationId, Queue>,
    places: HashMap<ClientMsgId, ConversationId>,
    /// Conversations that may have something to send, each at most once.
    ready: VecDeque<ConversationId>,
    in_flight: usize,
    in_flight_max: usize,
    answer_within: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of sending; the first `sent` of them are in flight.
    entries: VecDeque<Slot>,
    sent: usize,
    /// When the first of those in flight was sent.
    since: Option<Instant>,
    paused_until: Option<Instant>,
    queued: bool,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// It was answered `retry` and has not gone out since: the server holds the conversation up for it.
    refused: bool,
    /// Its verdict is known; it goes out once more only so that the server goes on.
    told: bool,
}

impl Outbox {
    /// An empty outbox that repeats what has no answer within `answer_within` on a live connection.
    pub fn new(in_flight_max: usize, answer_within: Duration) -> Self {
        Self {
            queues: HashMap::new(),
            places: HashMap::new(),
            ready: VecDeque::new(),
            in_flight: 0,
            in_flight_max,
            answer_within,
        }
    }

    /// How many sends may be without an answer, as the server says.
    pub fn set_in_flight_max(&mut self, in_flight_max: usize) {
        self.in_flight_max = in_flight_max.max(1);
    }

    /// Sends without a verdict.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Adds a message at the end of its conversation; nothing happens if its id waits for a verdict already.
    pub fn push(&mut self, entry: Entry) {
        let conversation = entry.conversation_id;
        if self.places.insert(entry.client_msg_id, conversation).is_none() {
            let slot = Slot { entry, refused: false, told: false };
            self.queues.entry(conversation).or_default().entries.push_back(slot);
            self.make_ready(conversation);
        }
    }

    /// The next message to send now, or nothing. It counts as in flight from here on.
    pub fn poll_send(&mut self, now: Instant) -> Option<&Entry> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        for _ in 0..self.ready.len() {
            let conversation = self.ready.pop_front()?;
            let Some(queue) = self.queues.get_mut(&conversation) else { continue };
            queue.queued = false;
            if queue.sent == queue.entries.len() {
                continue;
            }
            if queue.paused_until.is_some_and(|until| until > now) {
                self.make_ready(conversation);
                continue;
            }
            queue.paused_until = None;
            queue.since.get_or_insert(now);
            queue.sent += 1;
            self.in_flight += 1;
            let index = queue.sent - 1;
            queue.entries[index].refused = false;
            if queue.sent < queue.entries.len() {
                self.make_ready(conversation);
            }
            return self.queues.get(&conversation).map(|queue| &queue.entries[index].entry);
        }
        None
    }

    /// The message itself came back, which is as good as a verdict. Nothing, if it was not waiting.
    pub fn on_seen(&mut self, client_msg_id: ClientMsgId, now: Instant) -> Option<Entry> {
        let queue = self.queues.get_mut(self.places.get(&client_msg_id)?).expect("a place leads to a queue");
        let slot = queue.entries.iter_mut().find(|slot| slot.entry.client_msg_id == client_msg_id)?;
        if slot.refused {
            let first = !std::mem::replace(&mut slot.told, true);
            return first.then(|| slot.entry.clone());
        }
        self.on_verdict(client_msg_id, now)
    }

    /// A verdict came: the message leaves. Nothing, if it was not waiting for one.
    pub fn on_verdict(&mut self, client_msg_id: ClientMsgId, now: Instant) -> Option<Entry> {
        let conversation = self.places.remove(&client_msg_id)?;
        let queue = self.queues.get_mut(&conversation).expect("a place leads to a queue");
        let index = queue.entries.iter().position(|slot| slot.entry.client_msg_id == client_msg_id);
        let index = index.expect("a place leads to an entry");
        let slot = queue.entries.remove(index).expect("the index was just found");
        if index < queue.sent {
            queue.sent -= 1;
            self.in_flight -= 1;
            // Those behind it were sent later: they get their whole time.
            queue.since = (queue.sent > 0).then_some(now);
        }
        if queue.entries.is_empty() {
            self.queues.remove(&conversation);
        }
        (!slot.told).then_some(slot.entry)
    }

    /// The server said `retry`: after the wait the conversation is sent again from its first unanswered message on.
    pub fn on_retry(&mut self, client_msg_id: ClientMsgId, wait: Duration, now: Instant) {
        let Some(&conversation) = self.places.get(&client_msg_id) else { return };
        let queue = self.queues.get_mut(&conversation).expect("a place leads to a queue");
        let until = now + wait;
        queue.paused_until = Some(queue.paused_until.map_or(until, |before| before.max(until)));
        if let Some(slot) = queue.entries.iter_mut().find(|slot| slot.entry.client_msg_id == client_msg_id) {
            slot.refused = true;
        }
        self.rewind(conversation);
    }

    /// The connection is gone: nothing is in flight any more.
    pub fn on_disconnected(&mut self) {
        let conversations: Vec<_> = self.queues.keys().copied().collect();
        for conversation in conversations {
            self.rewind(conversation);
            let Some(queue) = self.queues.get_mut(&conversation) else { continue };
            // A new session holds nothing up.
            queue.entries.retain_mut(|slot| {
                slot.refused = false;
                if slot.told {
                    self.places.remove(&slot.entry.client_msg_id);
                }
                !slot.told
            });
            if queue.entries.is_empty() {
                self.queues.remove(&conversation);
            }
        }
    }

    /// Sends again what has waited too long on a live connection.
    pub fn on_timeout(&mut self, now: Instant) {
        let overdue = |queue: &Queue| queue.since.is_some_and(|since| since + self.answer_within <= now);
        let late: Vec<_> = self.queues.iter().filter(|(_, queue)| overdue(queue)).map(|(id, _)| *id).collect();
        for conversation in late {
            self.rewind(conversation);
        }
    }

    /// When `on_timeout` or `poll_send` has something to do without anything else happening.
    pub fn next_deadline(&self) -> Option<Instant> {
        let has_room = self.in_flight < self.in_flight_max;
        self.queues
            .values()
            .filter_map(|queue| match queue.since {
                Some(since) => Some(since + self.answer_within),
                None => queue.paused_until.filter(|_| has_room),
            })
            .min()
    }

    /// Everything without a verdict; in order within each conversation.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.queues.values().flat_map(|queue| &queue.entries).filter(|slot| !slot.told).map(|slot| &slot.entry)
    }

    fn rewind(&mut self, conversation: ConversationId) {
        let Some(queue) = self.queues.get_mut(&conversation) else { return };
        self.in_flight -= queue.sent;
        queue.sent = 0;
        queue.since = None;
        self.make_ready(conversation);
    }

    fn make_ready(&mut self, conversation: ConversationId) {
        if let Some(queue) = self.queues.get_mut(&conversation)
            && !std::mem::replace(&mut queue.queued, true)
        {
            self.ready.push_back(conversation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    struct Bench {
        outbox: Outbox,
        now: Instant,
        conversation: ConversationId,
    }

    fn bench(in_flight_max: usize) -> Bench {
        Bench { outbox: Outbox::new(in_flight_max, WITHIN), now: Instant::now(), conversation: ConversationId::new() }
    }

    impl Bench {
        fn push(&mut self, conversation_id: ConversationId) -> ClientMsgId {
            let client_msg_id = ClientMsgId::new();
            let (content_type, body) = ("text/plain".to_owned(), Bytes::from_static(b"x"));
            self.outbox.push(Entry { client_msg_id, conversation_id, content_type, body });
            client_msg_id
        }

        fn three(&mut self) -> [ClientMsgId; 3] {
            [0; 3].map(|_| self.push(self.conversation))
        }

        fn sent_now(&mut self) -> Vec<ClientMsgId> {
            std::iter::from_fn(|| self.outbox.poll_send(self.now).map(|entry| entry.client_msg_id)).collect()
        }

        fn pass(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
        }
    }

    #[test]
    fn sends_go_out_once_and_in_order() {
        let mut bench = bench(10);
        let ids = bench.three();
        assert_eq!(bench.sent_now(), ids);
        assert_eq!(bench.sent_now(), []);
    }

    #[test]
    fn after_retry_the_conversation_goes_again_from_its_first_unanswered() {
        let mut bench = bench(10);
        let [one, two, three] = bench.three();
        bench.sent_now();
        assert!(bench.outbox.on_verdict(one, bench.now).is_some());
        bench.outbox.on_retry(three, Duration::from_millis(1000), bench.now);
        let four = bench.push(bench.conversation);
        assert_eq!(bench.sent_now(), [], "the wait holds for new sends of the conversation too");
        let elsewhere = bench.push(ConversationId::new());
        assert_eq!(bench.sent_now(), [elsewhere], "another conversation does not wait");
        assert!(bench.outbox.next_deadline().is_some_and(|at| at <= bench.now + Duration::from_millis(1000)));
        bench.pass(1000);
        assert_eq!(bench.sent_now(), [two, three, four]);
    }

    #[test]
    fn the_longest_wait_holds_and_retries_of_one_round_cause_one_round() {
        let mut bench = bench(10);
        let ids = bench.three();
        bench.sent_now();
        bench.outbox.on_retry(ids[0], Duration::from_millis(500), bench.now);
        bench.outbox.on_retry(ids[1], Duration::from_millis(200), bench.now);
        bench.outbox.on_retry(ids[2], Duration::ZERO, bench.now);
        bench.pass(499);
        assert_eq!(bench.sent_now(), []);
        bench.pass(1);
        assert_eq!(bench.sent_now(), ids);
        assert_eq!(bench.sent_now(), []);
    }

    #[test]
    fn a_new_connection_sends_all_unanswered_again() {
        let mut bench = bench(10);
        let [one, two, three] = bench.three();
        bench.sent_now();
        bench.outbox.on_verdict(two, bench.now);
        bench.outbox.on_disconnected();
        assert_eq!(bench.sent_now(), [one, three]);
    }

    #[test]
    fn no_answer_on_a_live_connection_is_a_retry() {
        let mut bench = bench(10);
        let [one, two, three] = bench.three();
        bench.sent_now();
        bench.pass(19_999);
        bench.outbox.on_timeout(bench.now);
        assert_eq!(bench.sent_now(), []);
        bench.outbox.on_verdict(one, bench.now);
        bench.pass(1);
        bench.outbox.on_timeout(bench.now);
        assert_eq!(bench.sent_now(), [], "an answer to one gives the others their whole time");
        assert_eq!(bench.outbox.next_deadline(), Some(bench.now + WITHIN - Duration::from_millis(1)));
        bench.pass(20_000);
        bench.outbox.on_timeout(bench.now);
        assert_eq!(bench.sent_now(), [two, three]);
    }

    #[test]
    fn at_most_so_many_are_in_flight() {
        let mut bench = bench(2);
        let [one, two, three] = bench.three();
        let other = ConversationId::new();
        let four = bench.push(other);
        assert_eq!(bench.sent_now().len(), 2);
        assert_eq!(bench.sent_now(), []);
        for id in [one, two, three, four] {
            bench.outbox.on_verdict(id, bench.now);
        }
        assert_eq!(bench.outbox.len(), 0);
        assert_eq!(bench.sent_now(), []);
        assert_eq!(bench.outbox.next_deadline(), None);
        let five = bench.push(other);
        assert_eq!(bench.sent_now(), [five]);
    }

    #[test]
    fn what_came_back_after_a_retry_goes_out_once_more_for_the_server_to_go_on() {
        let mut bench = bench(10);
        let [one, two, three] = bench.three();
        bench.sent_now();
        assert!(bench.outbox.on_seen(three, bench.now).is_some());
        assert!(bench.outbox.on_seen(three, bench.now).is_none());
        bench.outbox.on_retry(one, Duration::ZERO, bench.now);
        assert!(bench.outbox.on_seen(one, bench.now).is_some());
        assert!(bench.outbox.on_seen(one, bench.now).is_none(), "told once");
        assert_eq!(bench.outbox.entries().count(), 1, "it needs no verdict in another life");
        assert_eq!(bench.sent_now(), [one, two]);
        assert!(bench.outbox.on_verdict(one, bench.now).is_none());
        bench.outbox.on_retry(two, Duration::ZERO, bench.now);
        assert!(bench.outbox.on_seen(two, bench.now).is_some());
        bench.outbox.on_disconnected();
        assert_eq!(bench.sent_now(), [], "a new session holds nothing up");
        assert_eq!(bench.outbox.len(), 0);
    }

    #[test]
    fn an_id_waits_once() {
        let mut bench = bench(10);
        let id = bench.push(bench.conversation);
        let entry = bench.outbox.entries().next().expect("it waits").clone();
        bench.outbox.push(entry);
        assert_eq!(bench.sent_now(), [id]);
        assert!(bench.outbox.on_verdict(id, bench.now).is_some());
        assert!(bench.outbox.on_verdict(id, bench.now).is_none());
    }
}
