//! Slow readers, full mailboxes, too many connections, and connections that are somebody else's.

use std::net::SocketAddr;
use std::time::Duration;

use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryItem};
use roost_protocol::frames::{ClientBody, Form};
use roost_protocol::records::DeliverRecord;
use roost_protocol::{CloseCode, ConversationId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Client, End};
use crate::eventually;
use crate::world::{World, message};

/// The whole answer to an upgrade that is refused.
async fn handshake(address: SocketAddr, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(upgrade(headers).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn upgrade(headers: &str) -> String {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: roost.v1.json\r\n{headers}\r\n"
    )
}

fn retry_after_s(answer: &str) -> u64 {
    let line = answer.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    line.expect("it says when to come back").parse().expect("seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_closed_and_the_others_get_everything() {
    let world = World::new();
    let mut config = World::config();
    config.timings.close_ms = 500;
    let gateway = world.start(config).await;
    let mut slow = Client::connect(gateway.address(), Form::Binary).await;
    let mut quick = Client::connect(gateway.address(), Form::Binary).await;
    let conversation = ConversationId::new();
    let body = vec![b'x'; 60_000];
    let reader = tokio::spawn(async move {
        for seq in 1..=400 {
            let roost_protocol::frames::ServerBody::Message(message) = quick.hear().await.body else { panic!() };
            assert_eq!(message.seq, seq);
        }
        quick
    });
    for seq in 1..=400 {
        let record = DeliverRecord { members_version: 1, message: message(conversation, seq, &body) }.encode();
        let sessions = world.registered.lock().keys().copied().collect();
        let item = DeliveryItem::Message { audience: Audience::Sessions(sessions), record };
        while let Err(error) = gateway.sink().deliver(DeliveryBatch { items: vec![item.clone()] }).await {
            assert_eq!(error, DeliveryError::Busy);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The quick one is to be quick enough on a busy machine, too.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eventually("it is closed", || gateway.metrics().closed(CloseCode::Slow) == 1).await;
    let mut quick = reader.await.unwrap();
    quick.say(Some(2), ClientBody::Ping).await;
    assert_eq!(quick.hear().await.id, Some(2));
    eventually("it is freed", || gateway.connections() == 1).await;
    assert!(matches!(slow.end().await, End::Broken | End::Closed(4000)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_that_wakes_up_hears_why() {
    let world = World::new();
    let mut config = World::config();
    config.timings.close_ms = 20_000;
    let gateway = world.start(config).await;
    let mut slow = Client::connect(gateway.address(), Form::Json).await;
    let body = vec![b'x'; 60_000];
    let session = slow.connected.as_ref().unwrap().session_id;
    for seq in 1..=400 {
        let record = DeliverRecord { members_version: 1, message: message(ConversationId::new(), seq, &body) };
        let audience = Audience::Sessions([session].into());
        let item = DeliveryItem::Message { audience, record: record.encode() };
        gateway.sink().deliver(DeliveryBatch { items: vec![item] }).await.unwrap();
    }
    assert_eq!(slow.end().await, End::Closed(CloseCode::Slow.code()));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_says_when_to_come_back_and_those_that_are_there_stay() {
    let world = World::new();
    let mut config = World::config();
    config.sessions_max = 3;
    let gateway = world.start(config).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(gateway.address(), Form::Json).await);
    }
    let refused = handshake(gateway.address(), "").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!((1..=10).contains(&retry_after_s(&refused)), "{refused}");
    assert!(!gateway.ready());
    assert_eq!(gateway.metrics().refused_full.get(), 1);
    for client in &mut clients {
        client.say(Some(2), ClientBody::Ping).await;
        assert_eq!(client.hear().await.id, Some(2));
    }
    clients.pop();
    eventually("there is room", || gateway.ready()).await;
    Client::connect(gateway.address(), Form::Json).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_handed_over_with_what_was_read() {
    let world = World::new();
    let (http, mut connections) = tokio::sync::mpsc::channel(1);
    let gateway = world.start_with_http(World::config(), Some(http)).await;
    let address = gateway.address();
    let asked = tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc").await.unwrap();
        stream.write_all(b"def").await.unwrap();
        let local = stream.local_addr().unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (local, answer)
    });
    let connection = connections.recv().await.unwrap();
    let mut stream = connection.stream.into_async().unwrap();
    let mut received = connection.head.to_vec();
    while !received.ends_with(b"def") {
        let mut piece = [0; 64];
        let bytes = stream.read(&mut piece).await.unwrap();
        received.extend_from_slice(&piece[..bytes]);
    }
    assert!(received.starts_with(b"POST /v1/messages HTTP/1.1\r\n"));
    eventually("it is no longer the gateway's", || gateway.connections() == 0).await;
    stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.unwrap();
    drop(stream);
    let (peer, answer) = asked.await.unwrap();
    assert_eq!(peer, connection.peer);
    assert!(answer.starts_with("HTTP/1.1 204"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_come_and_go_and_nothing_is_left() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    for _ in 0..3 {
        let connecting = (0..100)
            .map(|index| Client::connect(gateway.address(), if index % 2 == 0 { Form::Binary } else { Form::Json }));
        let mut clients = futures::future::join_all(connecting).await;
        assert_eq!(gateway.sessions(), 100);
        eventually("all are registered", || world.registered.lock().len() == 100).await;
        for client in clients.drain(..50) {
            drop(client);
        }
        for client in &mut clients {
            client.socket.close(None).await.unwrap();
        }
        eventually("all are gone", || gateway.connections() == 0 && world.registered.lock().is_empty()).await;
    }
    gateway.stop().await;
}
