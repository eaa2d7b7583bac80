//! One gateway as fan-out sees it: a bounded buffer that keeps order, and what becomes of it when the gateway is slow.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryItem};
use roost_protocol::records::Endpoint;
use roost_protocol::{ConversationId, Seq};

use crate::consume::backoff_ms;

/// How much a gateway may be behind before its messages become heads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkLimits {
    /// Items that wait.
    pub items_max: usize,
    /// Bytes of records that wait.
    pub bytes_max: usize,
    /// Conversations kept as heads; beyond, every session of the gateway syncs.
    pub heads_max: usize,
    /// Items in one batch.
    pub batch_items_max: usize,
    /// Bytes in one batch.
    pub batch_bytes_max: usize,
    /// Batches that are not acknowledged.
    pub batches_in_flight_max: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            items_max: 20_000,
            bytes_max: 16 * 1024 * 1024,
            heads_max: 50_000,
            batch_items_max: 512,
            batch_bytes_max: 1024 * 1024,
            batches_in_flight_max: 4,
        }
    }
}

/// What an acknowledged item means.
#[derive(Clone, PartialEq, Debug)]
pub enum Receipt {
    /// This audience has the conversation's message (or its number) in its queues.
    Served {
        /// Which conversation.
        conversation: ConversationId,
        /// Up to which seq.
        seq: Seq,
        /// Whom.
        audience: Audience,
    },
    /// Every session of the gateway was told to sync.
    SyncedAll,
}

#[derive(Clone, Debug)]
enum Item {
    Message { conversation: ConversationId, seq: Seq, audience: Audience, record: Bytes },
    Heads { conversation: ConversationId, seq: Seq, audience: Audience },
    SyncAll,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    items: Vec<Item>,
    outcome: Option<bool>,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Landing {
    /// What its items mean now that they are acknowledged.
    pub receipts: Vec<Receipt>,
    /// That life of the gateway is over.
    pub gone: bool,
}

/// The way to one life of one gateway.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    limits: LinkLimits,
    queue: VecDeque<Item>,
    bytes: usize,
    heads: HashMap<ConversationId, (Seq, Audience)>,
    sync_all: bool,
    flights: VecDeque<Flight>,
    failures: u32,
    retry_at: u64,
}

const RETRY_MS: (u64, u64) = (20, 2_000);
/// Audiences' bytes count too: a queue of few large groups is not small.
const SESSION_BYTES: usize = 16;

impl Link {
    /// A way with nothing on it.
    pub fn new(endpoint: Endpoint, limits: LinkLimits) -> Self {
        Self {
            endpoint,
            limits,
            queue: VecDeque::new(),
            bytes: 0,
            heads: HashMap::new(),
            sync_all: false,
            flights: VecDeque::new(),
            failures: 0,
            retry_at: 0,
        }
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Puts a message in line; or, where the buffer is full or the conversation has overflowed already, keeps only its
    /// number. Returns whether the message is in line.
    pub fn push_message(&mut self, conversation: ConversationId, seq: Seq, audience: Audience, record: Bytes) -> bool {
        let full = self.queue.len() >= self.limits.items_max || self.bytes >= self.limits.bytes_max;
        if full || self.heads.contains_key(&conversation) {
            self.push_heads(conversation, seq, audience);
            return false;
        }
        self.enqueue(Item::Message { conversation, seq, audience, record });
        true
    }

    /// Keeps the newest seq of a conversation, to be sent after the messages.
    pub fn push_heads(&mut self, conversation: ConversationId, seq: Seq, audience: Audience) {
        let held = self.heads.get(&conversation).map(|(held, _)| *held);
        self.heads.insert(conversation, (held.map_or(seq, |held| held.max(seq)), audience));
        if self.heads.len() > self.limits.heads_max {
            self.heads.clear();
            self.sync_all = true;
        }
    }

    /// Every session of the gateway is to sync.
    pub fn push_sync_all(&mut self) {
        self.sync_all = true;
    }

    /// The next batch, if the gateway takes one now, with the number to land it under, and how many heads it holds.
    pub fn next_batch(&mut self, number: u64, now_ms: u64) -> Option<(DeliveryBatch, u64)> {
        let rests = now_ms < self.retry_at || self.flights.iter().any(|flight| flight.outcome == Some(false));
        if rests || self.flights.len() >= self.limits.batches_in_flight_max {
            return None;
        }
        let mut items = Vec::new();
        if std::mem::take(&mut self.sync_all) {
            items.push(Item::SyncAll);
        }
        let mut bytes = 0;
        while items.len() < self.limits.batch_items_max && bytes < self.limits.batch_bytes_max {
            let Some(item) = self.queue.pop_front() else { break };
            bytes += item.bytes();
            items.push(item);
        }
        self.bytes -= bytes;
        let room = self.limits.batch_items_max.saturating_sub(items.len());
        if self.queue.is_empty() && !self.heads.is_empty() && room > 0 {
            let chosen: Vec<ConversationId> = self.heads.keys().copied().take(room).collect();
            for conversation in chosen {
                if let Some((seq, audience)) = self.heads.remove(&conversation) {
                    items.push(Item::Heads { conversation, seq, audience });
                }
            }
        }
        if items.is_empty() {
            return None;
        }
        let heads = items.iter().filter(|item| matches!(item, Item::Heads { .. })).count() as u64;
        let batch = DeliveryBatch { items: items.iter().map(Item::to_delivery).collect() };
        self.flights.push_back(Flight { number, items, outcome: None });
        Some((batch, heads))
    }

    /// What became of a batch. One that failed is sent again, in order, unless a later one has arrived already: then
    /// only its numbers go again, since an older message after a newer one helps nobody.
    pub fn land(&mut self, number: u64, result: Result<(), &DeliveryError>, now_ms: u64) -> Landing {
        let mut landing = Landing { receipts: Vec::new(), gone: false };
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.number == number) else { return landing };
        match result {
            Ok(()) => {
                flight.outcome = Some(true);
                landing.receipts = std::mem::take(&mut flight.items).into_iter().map(Item::into_receipt).collect();
                self.failures = 0;
            }
            Err(DeliveryError::Gone) => {
                landing.gone = true;
                return landing;
            }
            Err(DeliveryError::Busy | DeliveryError::Unavailable(_)) => {
                flight.outcome = Some(false);
                self.failures += 1;
                self.retry_at = now_ms + backoff_ms(self.failures, RETRY_MS.0, RETRY_MS.1);
            }
        }
        self.settle_flights();
        landing
    }

    /// Nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.heads.is_empty() && !self.sync_all && self.flights.is_empty()
    }

    /// When it may be tried again.
    pub fn deadline(&self) -> Option<u64> {
        (!self.is_idle()).then_some(self.retry_at)
    }

    fn enqueue(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.queue.push_back(item);
    }

    fn settle_flights(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.outcome == Some(true)) {
            self.flights.pop_front();
        }
        if self.flights.iter().any(|flight| flight.outcome.is_none()) {
            return;
        }
        let arrived = self.flights.iter().rposition(|flight| flight.outcome == Some(true));
        let flights: Vec<Flight> = self.flights.drain(..).collect();
        for (index, flight) in flights.into_iter().enumerate().rev() {
            for item in flight.items.into_iter().rev() {
                match item {
                    Item::Message { conversation, seq, audience, .. } if arrived.is_some_and(|last| index < last) => {
                        self.push_heads(conversation, seq, audience);
                    }
                    Item::Message { .. } => {
                        self.bytes += item.bytes();
                        self.queue.push_front(item);
                    }
                    Item::Heads { conversation, seq, audience } => self.push_heads(conversation, seq, audience),
                    Item::SyncAll => self.sync_all = true,
                }
            }
        }
    }
}

impl Item {
    fn bytes(&self) -> usize {
        let audience = |audience: &Audience| match audience {
            Audience::Sessions(sessions) => sessions.len() * SESSION_BYTES,
            Audience::Users(users) => users.len() * SESSION_BYTES,
            Audience::Everyone => 0,
        };
        match self {
            Item::Message { audience: whom, record, .. } => record.len() + audience(whom),
            Item::Heads { audience: whom, .. } => audience(whom),
            Item::SyncAll => 0,
        }
    }

    fn to_delivery(&self) -> DeliveryItem {
        match self {
            Item::Message { audience, record, .. } => {
                DeliveryItem::Message { audience: audience.clone(), record: record.clone() }
            }
            Item::Heads { conversation, seq, audience } => {
                DeliveryItem::Heads { audience: audience.clone(), conversation_id: *conversation, last_seq: *seq }
            }
            Item::SyncAll => DeliveryItem::SyncAll,
        }
    }

    fn into_receipt(self) -> Receipt {
        match self {
            Item::Message { conversation, seq, audience, .. } | Item::Heads { conversation, seq, audience } => {
                Receipt::Served { conversation, seq, audience }
            }
            Item::SyncAll => Receipt::SyncedAll,
        }
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::{Incarnation, SessionId};

    use super::*;

    fn link(items_max: usize) -> Link {
        let endpoint = Endpoint { address: String::new(), incarnation: Incarnation(1) };
        let limits = LinkLimits { items_max, batch_items_max: 2, batches_in_flight_max: 2, ..LinkLimits::default() };
        Link::new(endpoint, limits)
    }

    fn audience() -> Audience {
        Audience::Sessions(vec![SessionId::new(Incarnation(1), 0, 0, 0)].into())
    }

    fn push(link: &mut Link, conversation: ConversationId, seqs: std::ops::RangeInclusive<u64>) -> usize {
        seqs.filter(|&seq| link.push_message(conversation, seq, audience(), Bytes::from(vec![seq as u8]))).count()
    }

    fn seen(batch: &DeliveryBatch) -> Vec<(char, u64)> {
        let seen = batch.items.iter().map(|item| match item {
            DeliveryItem::Message { record, .. } => ('m', u64::from(record[0])),
            DeliveryItem::Heads { last_seq, .. } => ('h', *last_seq),
            DeliveryItem::SyncAll => ('s', 0),
            other => panic!("{other:?}"),
        });
        seen.collect()
    }

    #[test]
    fn an_overflow_keeps_the_newest_seq_and_tells_it_after_the_messages() {
        let (mut link, conversation) = (link(2), ConversationId::new());
        assert_eq!(push(&mut link, conversation, 1..=5), 2);
        let (batch, _) = link.next_batch(1, 0).expect("a batch");
        assert_eq!(seen(&batch), [('m', 1), ('m', 2)]);
        assert_eq!(push(&mut link, conversation, 6..=6), 0, "once overflowed, only the number goes");
        let (batch, heads) = link.next_batch(2, 0).expect("a batch");
        assert_eq!((seen(&batch), heads), (vec![('h', 6)], 1));
        assert_eq!(push(&mut link, conversation, 7..=7), 1, "after the heads messages go again");
    }

    #[test]
    fn a_busy_gateway_gets_the_same_again_in_order() {
        let (mut link, conversation) = (link(10), ConversationId::new());
        push(&mut link, conversation, 1..=5);
        link.next_batch(1, 0).expect("a batch");
        link.next_batch(2, 0).expect("a batch");
        assert!(link.next_batch(3, 0).is_none(), "at most two are in flight");
        link.land(1, Err(&DeliveryError::Busy), 0);
        link.land(2, Err(&DeliveryError::Busy), 0);
        assert!(link.next_batch(3, 0).is_none(), "not before the back-off");
        let at = link.deadline().expect("a time");
        assert_eq!(seen(&link.next_batch(3, at).expect("a batch").0), [('m', 1), ('m', 2)]);
        assert_eq!(seen(&link.next_batch(4, at).expect("a batch").0), [('m', 3), ('m', 4)]);
        assert_eq!(link.land(3, Ok(()), at).receipts.len(), 2);
    }

    #[test]
    fn what_failed_before_something_that_arrived_goes_as_heads_only() {
        let (mut link, conversation) = (link(10), ConversationId::new());
        push(&mut link, conversation, 1..=4);
        link.next_batch(1, 0).expect("a batch");
        link.next_batch(2, 0).expect("a batch");
        link.land(1, Err(&DeliveryError::Unavailable(String::new())), 0);
        link.land(2, Ok(()), 0);
        assert_eq!(seen(&link.next_batch(3, 10_000).expect("a batch").0), [('h', 2)]);
        link.land(3, Ok(()), 10_000);
        assert!(link.is_idle());
    }

    #[test]
    fn too_many_heads_become_one_sync_of_all() {
        let mut link = link(0);
        link.limits.heads_max = 3;
        for _ in 0..4 {
            push(&mut link, ConversationId::new(), 1..=1);
        }
        assert_eq!(seen(&link.next_batch(1, 0).expect("a batch").0), [('s', 0)]);
        link.land(1, Err(&DeliveryError::Busy), 0);
        assert_eq!(seen(&link.next_batch(2, 10_000).expect("a batch").0), [('s', 0)]);
        assert_eq!(link.land(2, Ok(()), 0).receipts, [Receipt::SyncedAll]);
        assert!(link.is_idle());
    }
}
