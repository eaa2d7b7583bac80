//! Leases, new lives, the drain, and the history that changes under the clients.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roost_gateway::Gateway;
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryItem};
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::records::DeliverRecord;
use roost_protocol::{CloseCode, ConversationId, Epoch};

use crate::client::{Client, End, request};
use crate::eventually;
use crate::world::{LogMode, RegistryMode, World, message};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_closes_everyone_before_anything_is_served() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    for freeze in [false, true] {
        let mut clients = Vec::new();
        for form in [Form::Json, Form::Binary, Form::Json, Form::Binary] {
            clients.push(Client::connect(gateway.address(), form).await);
        }
        let before = gateway.endpoint();
        if freeze {
            world.frozen_ms.fetch_add(20_000, Ordering::Relaxed);
        } else {
            *world.registry_mode.lock() = RegistryMode::Lost;
        }
        for client in &mut clients {
            assert_eq!(client.end().await, End::Closed(CloseCode::LeaseLost.code()));
        }
        eventually("a new life begins", || gateway.endpoint().incarnation != before.incarnation).await;
        eventually("it is acquired", || world.acquired.lock().last() == Some(&gateway.endpoint().incarnation)).await;
        assert_eq!(gateway.sink().incarnation(), gateway.endpoint().incarnation);
        let client = Client::connect(gateway.address(), Form::Json).await;
        let session = client.connected.as_ref().unwrap().session_id;
        assert_eq!(session.incarnation(), gateway.endpoint().incarnation);
        drop(client);
    }
    assert_eq!(gateway.metrics().leases_lost.get(), 2);
    eventually("all are counted", || gateway.metrics().closed(CloseCode::LeaseLost) == 8).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_delivered_to_a_life_that_is_over() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    let session = client.connected.as_ref().unwrap().session_id;
    world.frozen_ms.fetch_add(20_000, Ordering::Relaxed);
    let record = DeliverRecord { members_version: 1, message: message(ConversationId::new(), 1, b"late") }.encode();
    let item = DeliveryItem::Message { audience: Audience::Sessions([session].into()), record };
    gateway.sink().deliver(DeliveryBatch { items: vec![item] }).await.expect("the session counts as served");
    assert_eq!(client.next().await, Err(End::Closed(CloseCode::LeaseLost.code())), "the close comes first");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_sends_everyone_away_and_lets_sends_finish() {
    let world = World::new();
    let mut config = World::config();
    config.timings.send_deadline_ms = 600;
    let gateway = world.start(config).await;
    let address = gateway.address();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::connect(address, Form::Binary).await);
    }
    *world.log_mode.lock() = LogMode::Silent;
    let mut sender = Client::connect(address, Form::Json).await;
    let id = sender.send(1, ConversationId::new(), "in flight").await;
    eventually("it is in the log", || !world.appended.lock().is_empty()).await;
    let began = Instant::now();
    let draining = tokio::spawn(gateway.drain(Duration::from_secs(2)));
    let mut answered = false;
    let end = loop {
        match sender.next().await {
            Ok(frame) => {
                answered |= matches!(frame.body, ServerBody::Retry { client_msg_id, .. } if client_msg_id == id)
            }
            Err(end) => break end,
        }
    };
    assert_eq!((answered, end), (true, End::Closed(CloseCode::Drained.code())));
    for client in &mut clients {
        let frame = client.hear().await;
        assert!(matches!(frame.body, ServerBody::Goaway { .. }), "{frame:?}");
        assert_eq!(client.end().await, End::Closed(CloseCode::Drained.code()));
    }
    draining.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(world.registered.lock().is_empty());
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_new_clients_are_sent_elsewhere() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let address = gateway.address();
    let mut client = Client::connect(address, Form::Binary).await;
    assert!(gateway.ready());
    let draining = tokio::spawn(gateway.drain(Duration::from_secs(4)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let refused = tokio_tungstenite::client_async(request(address, Form::Binary), stream).await.unwrap_err();
    let tokio_tungstenite::tungstenite::Error::Http(response) = refused else { panic!("{refused:?}") };
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    client.end().await;
    draining.await.unwrap();
}

/// Two gateways on one socket, until the first lets go of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_goes_to_another_gateway_and_nobody_is_refused() {
    let listener = roost_gateway::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let (first, second) = (World::new(), World::new());
    let old = listener.try_clone().unwrap();
    let old = Gateway::start_on(old, World::config(), first.ports(None)).await.unwrap();
    let mut stays = Client::connect(address, Form::Binary).await;
    let new = Gateway::start_on(listener, World::config(), second.ports(None)).await.unwrap();
    old.stop_accepting(Duration::from_secs(1)).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::connect(address, Form::Json).await);
    }
    assert_eq!((old.sessions(), new.sessions()), (1, 20));
    let draining = tokio::spawn(old.drain(Duration::from_secs(2)));
    let frame = stays.hear().await;
    assert!(matches!(frame.body, ServerBody::Goaway { .. }), "{frame:?}");
    assert_eq!(stays.end().await, End::Closed(CloseCode::Drained.code()));
    draining.await.unwrap();
    clients.push(Client::connect(address, Form::Json).await);
    assert_eq!(new.sessions(), 21);
    new.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_makes_clients_start_afresh() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    *world.epoch.lock() = Epoch::new();
    let frame = client.hear().await;
    assert!(matches!(frame.body, ServerBody::Reload { .. }), "{frame:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_pinged_and_then_closed() {
    let world = World::new();
    let mut config = World::config();
    config.timings.ping_ms = 300;
    config.timings.pong_grace_ms = 300;
    let gateway = world.start(config).await;
    let mut lively = Client::connect(gateway.address(), Form::Json).await;
    let mut silent = Client::connect(gateway.address(), Form::Binary).await;
    assert_eq!(silent.next().await.unwrap().body, ServerBody::Ping);
    for _ in 0..3 {
        assert_eq!(lively.next().await.unwrap().body, ServerBody::Ping);
        lively.say(None, ClientBody::Pong).await;
    }
    assert_eq!(silent.next().await, Err(End::Closed(CloseCode::Silent.code())));
    eventually("it is counted", || gateway.metrics().closed(CloseCode::Silent) == 1).await;
    gateway.stop().await;
}
