//! Sends, verdicts, deliveries, syncs and histories.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryItem};
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::records::{Action, DeliverRecord};
use roost_protocol::{ConversationId, ErrorCode, SessionId, UserId, partition};

use crate::client::Client;
use crate::eventually;
use crate::world::{LogMode, RegistryMode, World, foreign, message, token, wall_ms};

#[tokio::test(flavor = "multi_thread")]
async fn a_send_is_committed_and_reaches_both_forms() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut sender = Client::connect(gateway.address(), Form::Json).await;
    let mut others = Vec::new();
    for form in [Form::Binary, Form::Json, Form::Binary, Form::Json] {
        others.push(Client::connect(gateway.address(), form).await);
    }
    let conversation = ConversationId::new();
    let id = sender.send(7, conversation, "hello").await;
    let (mut sent, mut own) = (None, None);
    while sent.is_none() || own.is_none() {
        let frame = sender.hear().await;
        match frame.body {
            ServerBody::Sent { client_msg_id, seq, .. } => sent = Some((frame.id, client_msg_id, seq)),
            ServerBody::Message(message) => own = Some(message),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, Some((Some(7), id, 1)));
    for other in &mut others {
        let ServerBody::Message(message) = other.hear().await.body else { panic!("a message") };
        assert_eq!((message.seq, &message.body[..], message.sender_id), (1, &b"hello"[..], sender.user));
        assert_eq!(Some(message), own);
    }
    let (partition, record) = world.appended.lock()[0].clone();
    assert_eq!(partition, partition::of(conversation, 48));
    assert_eq!((record.actor, record.device), (sender.user, sender.device));
    assert!(matches!(record.action, Action::Send { .. }));
    let session = record.origin.unwrap().session.unwrap();
    assert_eq!(session, sender.connected.as_ref().unwrap().session_id);
    assert_eq!((gateway.sessions(), gateway.metrics().sends.get()), (5, 1));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_sends_keep_their_order() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut sender = Client::connect(gateway.address(), Form::Binary).await;
    let conversation = ConversationId::new();
    for index in 0..200 {
        sender.send(index, conversation, &format!("{index}")).await;
    }
    let mut sent = 0;
    while sent < 200 {
        let frame = sender.hear().await;
        if let ServerBody::Sent { seq, .. } = frame.body {
            assert_eq!(u64::from(frame.id.unwrap()) + 1, seq);
            sent += 1;
        }
    }
    let bodies: Vec<_> = world.conversations.lock()[&conversation].iter().map(|m| m.body.clone()).collect();
    assert!(bodies.iter().enumerate().all(|(index, body)| body == index.to_string().as_bytes()));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_rejected_or_retried() {
    let world = World::new();
    let mut config = World::config();
    config.timings.send_deadline_ms = 300;
    let gateway = world.start(config).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    client.send(1, foreign(), "x").await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Rejected { code: ErrorCode::NotFound, .. }), "{frame:?}");
    client.send(2, ConversationId::new(), &"x".repeat(65_537)).await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Rejected { code: ErrorCode::BodyTooLarge, .. }), "{frame:?}");

    *world.log_mode.lock() = LogMode::Full;
    let conversation = ConversationId::new();
    let first = client.send(3, conversation, "one").await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Retry { code: ErrorCode::Busy, .. }), "{frame:?}");
    *world.log_mode.lock() = LogMode::Works;
    let second = client.send(4, conversation, "two").await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Retry { code: ErrorCode::Order, .. }), "{frame:?}");
    client.send_as(5, conversation, first, "one").await;
    client.send_as(6, conversation, second, "two").await;
    let (mut seqs, mut retries) = (Vec::new(), 2);
    while seqs.len() < 2 {
        match client.hear().await.body {
            ServerBody::Sent { seq, client_msg_id, .. } => seqs.push((client_msg_id, seq)),
            // The short deadline, on a busy machine.
            ServerBody::Retry { .. } => retries += 1,
            _ => {}
        }
    }
    assert_eq!(seqs, [(first, 1), (second, 2)]);

    *world.log_mode.lock() = LogMode::Silent;
    let lost = client.send(7, ConversationId::new(), "lost").await;
    loop {
        match client.hear().await.body {
            ServerBody::Message(_) => {}
            ServerBody::Retry { code, client_msg_id, .. } => {
                assert_eq!((code, client_msg_id), (ErrorCode::Deadline, lost));
                retries += 1;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gateway.metrics().retries.get(), retries);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_message_is_an_answer_where_the_verdict_is_lost() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut client = Client::connect(gateway.address(), Form::Binary).await;
    *world.log_mode.lock() = LogMode::NoVerdict;
    let id = client.send(1, ConversationId::new(), "x").await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Sent { client_msg_id, seq: 1, .. } if client_msg_id == id), "{frame:?}");
    assert!(matches!(client.hear().await.body, ServerBody::Message(_)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_and_history_come_from_the_store() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    let conversation = ConversationId::new();
    let stored = (1..=450).map(|seq| message(conversation, seq, b"stored")).collect();
    world.conversations.lock().insert(conversation, stored);
    client.sync(1, None).await;
    let frame = client.hear().await;
    assert_eq!(frame.id, Some(1));
    let ServerBody::Heads(heads) = frame.body else { panic!("heads") };
    assert_eq!((heads.conversations[0].last_seq, heads.next.as_deref()), (450, Some("c:1")));
    // All at once: they are answered in order, one after the other.
    for (id, after) in [(2, 0), (3, 200), (4, 400)] {
        client.history(id, conversation, after).await;
    }
    for (id, from, to, more) in [(2, 1, 200, true), (3, 201, 400, true), (4, 401, 450, false)] {
        let frame = client.hear().await;
        let ServerBody::Page(page) = frame.body else { panic!("a page") };
        assert_eq!((frame.id, page.from, page.to, page.more), (Some(id), from, to, more));
    }
    client.history(5, foreign(), 0).await;
    let frame = client.hear().await;
    assert!(
        matches!(frame.body, ServerBody::Error { code: ErrorCode::NotFound, fatal: false, .. }) && frame.id == Some(5)
    );
    client.sync(6, Some("nonsense")).await;
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::InvalidCursor, .. }), "{frame:?}");
    *world.store_away.lock() = true;
    client.sync(7, None).await;
    let frame = client.hear().await;
    assert!(
        matches!(
            frame.body,
            ServerBody::Error { code: ErrorCode::Unavailable, retry_after_ms: Some(_), fatal: false, .. }
        ),
        "{frame:?}"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_acknowledged_and_touches_only_its_sessions() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut one = Client::connect(gateway.address(), Form::Binary).await;
    let mut other = Client::connect(gateway.address(), Form::Json).await;
    let conversation = ConversationId::new();
    let record = |seq| DeliverRecord { members_version: 1, message: message(conversation, seq, b"x") }.encode();
    let here = one.connected.as_ref().unwrap().session_id;
    // The next inhabitant of the slot, and another life.
    let gone = SessionId::new(here.incarnation(), here.shard(), here.slot(), here.generation() + 1);
    let elsewhere = SessionId::new(roost_protocol::Incarnation(1), here.shard(), here.slot(), here.generation());
    let sink = gateway.sink();
    let batch = DeliveryBatch {
        items: vec![
            DeliveryItem::Message { audience: Audience::Sessions([gone, elsewhere].into()), record: record(1) },
            DeliveryItem::Message { audience: Audience::Sessions([here].into()), record: record(2) },
            DeliveryItem::Message { audience: Audience::Users([other.user, UserId::new()].into()), record: record(3) },
            DeliveryItem::Heads {
                audience: Audience::Users([one.user, other.user].into()),
                conversation_id: conversation,
                last_seq: 9,
            },
        ],
    };
    sink.deliver(batch).await.expect("it is acknowledged");
    for (client, expected) in [(&mut one, 2), (&mut other, 3)] {
        let ServerBody::Message(message) = client.hear().await.body else { panic!("a message") };
        assert_eq!(message.seq, expected);
        let ServerBody::Heads(heads) = client.hear().await.body else { panic!("heads") };
        assert_eq!((heads.conversations[0].last_seq, heads.next, heads.epoch), (9, None, None));
    }
    assert_eq!(gateway.metrics().suppressed.get(), 2);
    let everyone =
        DeliveryBatch { items: vec![DeliveryItem::Message { audience: Audience::Everyone, record: record(4) }] };
    assert!(matches!(sink.deliver(everyone).await, Err(DeliveryError::Unavailable(_))));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_session_is_told_its_heads_when_the_log_was_out_of_range() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut clients = Vec::new();
    for form in [Form::Json, Form::Binary, Form::Json] {
        clients.push(Client::connect(gateway.address(), form).await);
    }
    let conversation = ConversationId::new();
    world.conversations.lock().insert(conversation, vec![message(conversation, 1, b"missed")]);
    gateway.sink().deliver(DeliveryBatch { items: vec![DeliveryItem::SyncAll] }).await.expect("taken");
    for client in &mut clients {
        let ServerBody::Heads(heads) = client.hear().await.body else { panic!("heads") };
        assert_eq!((heads.conversations[0].last_seq, heads.next), (1, None));
        assert_eq!(heads.conversations[0].first_seq, None);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_keeps_the_session_and_an_old_one_ends_it() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut kept = Client::open(gateway.address(), Form::Json).await;
    let mut ended = Client::open(gateway.address(), Form::Json).await;
    for client in [&mut kept, &mut ended] {
        let short = token(client.user, client.device, wall_ms() + 1_500);
        client.say_connect(&short, None).await;
        client.wait_connected().await;
    }
    let longer = token(kept.user, kept.device, wall_ms() + 60_000);
    let foreign = token(UserId::new(), kept.device, wall_ms() + 60_000);
    kept.say(Some(2), ClientBody::Refresh { token: foreign.into() }).await;
    let frame = kept.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::DeviceMismatch, fatal: false, .. }));
    kept.say(Some(3), ClientBody::Refresh { token: longer.into() }).await;
    assert_eq!(ended.end().await, crate::client::End::Closed(4101));
    kept.say(Some(4), ClientBody::Ping).await;
    let frame = kept.hear().await;
    assert_eq!((frame.id, frame.body), (Some(4), ServerBody::Pong));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registry_clients_connect_and_are_registered_when_it_is_back() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    for mode in [RegistryMode::Away, RegistryMode::Frozen] {
        *world.registry_mode.lock() = mode;
        let began = std::time::Instant::now();
        let client = Client::connect(gateway.address(), Form::Binary).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{mode:?}: {:?}", began.elapsed());
        let session = client.connected.as_ref().unwrap().session_id;
        assert!(!world.registered.lock().contains_key(&session));
        *world.registry_mode.lock() = RegistryMode::Works;
        eventually("it is registered", || world.registered.lock().contains_key(&session)).await;
    }
    assert_eq!(gateway.metrics().leases_lost.get(), 0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lost_writes_hears_everything_again() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::connect(gateway.address(), Form::Binary).await);
    }
    let sessions: Arc<[SessionId]> = clients.iter().map(|c| c.connected.as_ref().unwrap().session_id).collect();
    let all = || sessions.iter().all(|session| world.registered.lock().contains_key(session));
    for lose in [
        // It failed over and lost its last writes; then it came back empty.
        &(|| world.writes.store(0, Ordering::Relaxed)) as &dyn Fn(),
        &|| {
            world.registry_life.fetch_add(1, Ordering::Relaxed);
        },
    ] {
        let completes = world.completes.load(Ordering::Relaxed);
        lose();
        world.registered.lock().clear();
        eventually("all are registered again", all).await;
        eventually("complete is said", || world.completes.load(Ordering::Relaxed) > completes).await;
    }
    assert_eq!((gateway.metrics().reregistrations.get(), gateway.sessions()), (2, 6));
    drop(clients);
    eventually("all are gone", || world.registered.lock().is_empty()).await;
    gateway.stop().await;
}
