//! The cases: order, acknowledgement, one life, bounds.

use std::sync::Arc;

use bytes::Bytes;
use roost_protocol::limits::{MEMBERS_MAX, RECORD_BYTES_MAX};
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, ConversationId, ErrorCode, Incarnation, SessionId, UserId};

use super::sink::TestSink;
use super::{DeliveryHarness, LIVENESS_LIMIT, QUIET};
use crate::delivery::{
    Audience, DeliveryBatch, DeliveryError, DeliveryItem, OUTSTANDING_BYTES_MAX, Verdict, VerdictOutcome,
};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIVENESS_LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {LIVENESS_LIMIT:?}"),
    }
}

fn message(record: Bytes) -> DeliveryItem {
    DeliveryItem::Message { audience: Audience::Everyone, record }
}

/// A batch that says which one it is.
fn numbered(number: usize) -> DeliveryBatch {
    DeliveryBatch { items: vec![message(Bytes::from(format!("batch-{number}")))] }
}

fn verdict(session: Option<SessionId>, outcome: VerdictOutcome) -> DeliveryItem {
    DeliveryItem::Verdict(Verdict {
        session,
        request: u64::MAX - 3,
        client_msg_id: ClientMsgId::new(),
        conversation_id: ConversationId::from_bytes([9; 16]),
        outcome,
    })
}

/// One item of every kind and every field.
fn every_item(incarnation: Incarnation) -> DeliveryBatch {
    let session = SessionId::new(incarnation, 255, u32::MAX, SessionId::GENERATION_MAX);
    let sessions: Arc<[SessionId]> = (0..3).map(|slot| SessionId::new(incarnation, 1, slot, 7)).collect();
    let users: Arc<[UserId]> = (0..3).map(|_| UserId::new()).collect();
    let conversation_id = ConversationId::from_bytes([1; 16]);
    let mut items = vec![
        verdict(Some(session), VerdictOutcome::Committed { seq: u64::MAX >> 11, time: 1_700_000_000_000 }),
        verdict(None, VerdictOutcome::Committed { seq: 1, time: 0 }),
        DeliveryItem::Message { audience: Audience::Sessions(sessions), record: Bytes::from_static(b"\x00\xff one") },
        DeliveryItem::Message { audience: Audience::Users(Arc::clone(&users)), record: Bytes::new() },
        message(Bytes::from_static(b"everyone")),
        DeliveryItem::Heads { audience: Audience::Users(users), conversation_id, last_seq: 77 },
        DeliveryItem::Heads { audience: Audience::Sessions(Arc::new([])), conversation_id, last_seq: 0 },
        DeliveryItem::SyncAll,
    ];
    for code in ErrorCode::ALL {
        let message = format!("why: {code:?} \u{1f426}");
        items.push(verdict(Some(session), VerdictOutcome::Rejected { code: *code, message }));
    }
    DeliveryBatch { items }
}

/// Every kind, every code, every audience, in order within the batch.
pub async fn every_item_arrives_as_it_was_sent<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    let batch = every_item(endpoint.incarnation);
    let sent = within("the acknowledgement", harness.delivery().send(&endpoint, batch.clone())).await;
    assert_eq!(sent, Ok(()));
    assert_eq!(sink.batches(), [batch]);
    harness.detach(&endpoint).await;
}

/// The calls put the batches in line, whichever future is polled first.
pub async fn batches_arrive_in_the_order_of_the_calls<H: DeliveryHarness>(harness: &H) {
    const COUNT: usize = 500;
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    let delivery = harness.delivery();
    let futures: Vec<_> = (0..COUNT).map(|number| delivery.send(&endpoint, numbered(number))).collect();
    for future in futures.into_iter().rev() {
        assert_eq!(within("the acknowledgement", future).await, Ok(()));
    }
    assert!(sink.batches() == (0..COUNT).map(numbered).collect::<Vec<_>>(), "batches are out of order");
    harness.detach(&endpoint).await;
}

/// Senders at once: every batch once, each sender's order kept.
pub async fn batches_of_many_tasks_all_arrive_once<H: DeliveryHarness>(harness: &H) {
    const TASKS: usize = 8;
    const EACH: usize = 100;
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (delivery, endpoint) = (harness.delivery(), endpoint.clone());
        tasks.spawn(async move {
            for number in 0..EACH {
                assert_eq!(within("send", delivery.send(&endpoint, numbered(task * EACH + number))).await, Ok(()));
            }
        });
    }
    tasks.join_all().await;
    let arrived = sink.batches();
    assert_eq!(arrived.len(), TASKS * EACH);
    for task in 0..TASKS {
        let own: Vec<_> = (0..EACH).map(|number| numbered(task * EACH + number)).collect();
        let got: Vec<_> = arrived.iter().filter(|batch| own.contains(batch)).cloned().collect();
        assert!(got == own, "the batches of task {task} are out of order, lost or twice");
    }
    harness.detach(&endpoint).await;
}

/// Arrived is not enough.
pub async fn a_batch_is_acknowledged_only_after_the_sink_has<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::held();
    let endpoint = harness.attach(sink.clone()).await;
    let mut sent = harness.delivery().send(&endpoint, numbered(1));
    sink.arrived(1).await;
    assert!(tokio::time::timeout(QUIET, &mut sent).await.is_err(), "acknowledged before the sink did");
    sink.release();
    assert_eq!(within("the acknowledgement", sent).await, Ok(()));
    harness.detach(&endpoint).await;
}

/// The call is what sends; the future only tells.
pub async fn a_dropped_send_still_arrives<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    drop(harness.delivery().send(&endpoint, numbered(1)));
    assert_eq!(within("the acknowledgement", harness.delivery().send(&endpoint, numbered(2))).await, Ok(()));
    assert_eq!(sink.batches(), [numbered(1), numbered(2)]);
    harness.detach(&endpoint).await;
}

/// Busy stays Busy and Gone stays Gone, and the next batch has a new chance.
pub async fn the_sinks_refusal_is_the_senders<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    for error in [DeliveryError::Busy, DeliveryError::Gone, DeliveryError::Unavailable("tired".into())] {
        sink.refuse(Some(error.clone()));
        let sent = within("the refusal", harness.delivery().send(&endpoint, numbered(1))).await;
        match (&error, sent) {
            (DeliveryError::Unavailable(_), Err(DeliveryError::Unavailable(_))) => {}
            (_, sent) => assert_eq!(sent, Err(error)),
        }
        sink.refuse(None);
        assert_eq!(within("the acknowledgement", harness.delivery().send(&endpoint, numbered(2))).await, Ok(()));
    }
    harness.detach(&endpoint).await;
}

/// A batch for another life of the same address.
pub async fn another_incarnation_is_gone_and_touches_nobody<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    let other = Incarnation(endpoint.incarnation.0 ^ 1);
    let stale = Endpoint { address: endpoint.address.clone(), incarnation: other };
    let sent = within("the refusal", harness.delivery().send(&stale, numbered(1))).await;
    assert_eq!(sent, Err(DeliveryError::Gone));
    assert_eq!(within("the acknowledgement", harness.delivery().send(&endpoint, numbered(2))).await, Ok(()));
    assert_eq!(sink.batches(), [numbered(2)]);
    harness.detach(&endpoint).await;
}

/// `Gone` or `Unavailable`, never `Ok`; its successor gets only its own.
pub async fn an_endpoint_that_is_gone_acknowledges_nothing<H: DeliveryHarness>(harness: &H) {
    let (old, new) = (TestSink::open(), TestSink::open());
    let endpoint = harness.attach(old.clone()).await;
    assert_eq!(within("the acknowledgement", harness.delivery().send(&endpoint, numbered(1))).await, Ok(()));
    harness.detach(&endpoint).await;
    let successor = harness.attach(new.clone()).await;
    let sent = within("the refusal", harness.delivery().send(&endpoint, numbered(2))).await;
    assert!(matches!(sent, Err(DeliveryError::Gone | DeliveryError::Unavailable(_))), "{sent:?}");
    assert_eq!(within("the acknowledgement", harness.delivery().send(&successor, numbered(3))).await, Ok(()));
    assert_eq!(old.batches(), [numbered(1)]);
    assert_eq!(new.batches(), [numbered(3)]);
    harness.detach(&successor).await;
}

/// Beyond the bound `Busy`, at once; what was accepted is acknowledged later, and there is room again.
pub async fn a_full_buffer_is_busy_and_recovers<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::held();
    let endpoint = harness.attach(sink.clone()).await;
    let delivery = harness.delivery();
    let payload = Bytes::from(vec![5; RECORD_BYTES_MAX]);
    let batch = DeliveryBatch { items: vec![message(payload.clone()), message(payload)] };
    let fits = OUTSTANDING_BYTES_MAX / batch.bytes();
    let mut accepted = Vec::new();
    for number in 0..fits {
        let mut sent = delivery.send(&endpoint, batch.clone());
        let early = futures::poll!(&mut sent);
        assert!(early.is_pending(), "batch {number} of {fits} that fit: {early:?}");
        accepted.push(sent);
    }
    for _ in 0..3 {
        let sent = within("Busy", delivery.send(&endpoint, batch.clone())).await;
        assert_eq!(sent, Err(DeliveryError::Busy));
    }
    sink.release();
    for sent in accepted {
        assert_eq!(within("the acknowledgement", sent).await, Ok(()));
    }
    assert_eq!(within("the acknowledgement", delivery.send(&endpoint, numbered(1))).await, Ok(()));
    assert_eq!(sink.count(), fits + 1, "a refused batch has arrived");
    harness.detach(&endpoint).await;
}

/// The largest record, thousands of items, and audiences of the largest conversation.
pub async fn large_batches_arrive_whole<H: DeliveryHarness>(harness: &H) {
    let sink = TestSink::open();
    let endpoint = harness.attach(sink.clone()).await;
    let largest: Bytes = (0..RECORD_BYTES_MAX).map(|index| (index % 251) as u8).collect();
    let sessions: Arc<[SessionId]> =
        (0..MEMBERS_MAX as u32).map(|slot| SessionId::new(endpoint.incarnation, 0, slot, 1)).collect();
    let users: Arc<[UserId]> = (0..MEMBERS_MAX).map(|_| UserId::new()).collect();
    let small = Bytes::from(vec![3; 1024]);
    let mut items = vec![
        DeliveryItem::Message { audience: Audience::Sessions(sessions), record: largest },
        DeliveryItem::Message { audience: Audience::Users(users), record: small.clone() },
    ];
    items.extend((0..5_000).map(|_| message(small.clone())));
    let batch = DeliveryBatch { items };
    assert!(batch.bytes() < OUTSTANDING_BYTES_MAX);
    let sent = within("the acknowledgement", harness.delivery().send(&endpoint, batch.clone())).await;
    assert_eq!(sent, Ok(()));
    // Not assert_eq: nobody wants to read five megabytes.
    assert!(sink.batches() == [batch], "the batch is not as it was sent");
    harness.detach(&endpoint).await;
}

/// The bound and the wait are each endpoint's own.
pub async fn one_stuck_endpoint_does_not_stop_another<H: DeliveryHarness>(harness: &H) {
    let (stuck, free) = (TestSink::held(), TestSink::open());
    let (one, other) = (harness.attach(stuck.clone()).await, harness.attach(free.clone()).await);
    let delivery = harness.delivery();
    let waiting: Vec<_> = (0..20).map(|number| delivery.send(&one, numbered(number))).collect();
    for number in 0..20 {
        assert_eq!(within("the acknowledgement", delivery.send(&other, numbered(number))).await, Ok(()));
    }
    stuck.release();
    for sent in waiting {
        assert_eq!(within("the acknowledgement", sent).await, Ok(()));
    }
    assert_eq!((stuck.count(), free.count()), (20, 20));
    harness.detach(&one).await;
    harness.detach(&other).await;
}
