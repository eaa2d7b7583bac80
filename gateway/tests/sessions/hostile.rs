//! Bad input: each gets a clear answer, and nobody else notices.

use std::time::{Duration, Instant};

use futures::SinkExt;
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::{DeviceId, ErrorCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, End};
use crate::eventually;
use crate::world::{World, token, wall_ms};

async fn raw(gateway: &roost_gateway::GatewayHandle, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_s19_slow_and_silent_handshakes_are_closed() {
    let world = World::new();
    let mut config = World::config();
    config.timings.handshake_ms = 400;
    config.timings.connect_ms = 400;
    let gateway = world.start(config).await;
    // One header byte after the other.
    let mut slow = TcpStream::connect(gateway.address()).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    for byte in b"GET /v1/connect HTTP/1.1\r\n".iter().cycle() {
        if slow.write_all(&[*byte]).await.is_err() || began.elapsed() > Duration::from_millis(600) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = slow.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    // An upgrade, and no connect.
    let mut silent = Client::open(gateway.address(), Form::Json).await;
    assert_eq!(silent.end().await, End::Closed(4200));
    eventually("they are freed", || gateway.connections() == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_s14_s18_refusals_are_heard_before_the_end() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    for (request, status) in [
        ("GET /v1/connect?token=secret HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        ("GET /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n", "426"),
        ("GET /v1/connect HTTP/1.1\nHost: x\n\n", "400"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
    ] {
        let answer = raw(&gateway, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(!answer.contains("secret"));
    }
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    // The refusal may come before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_connect_comes_first_and_with_a_good_token() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let open = || Client::open(gateway.address(), Form::Json);

    let mut early = open().await;
    early.sync(1, None).await;
    let frame = early.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::NotConnected, fatal: true, .. }), "{frame:?}");
    assert_eq!(early.end().await, End::Closed(4201));

    let mut much = open().await;
    let _ = much.socket.send(Message::Text("x".repeat(5_000).into())).await;
    assert_eq!(much.end().await, End::Closed(4201));

    let mut junk = open().await;
    let _ = junk.socket.send(Message::Text("{".into())).await;
    assert_eq!(junk.end().await, End::Closed(4202));

    let mut bad = open().await;
    bad.say_connect("no such token", None).await;
    let frame = bad.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::Unauthenticated, fatal: true, .. }));
    assert_eq!(bad.end().await, End::Closed(4100));

    let mut other_device = open().await;
    let good = token(other_device.user, other_device.device, wall_ms() + 60_000);
    other_device.say_connect(&good, Some(DeviceId::new())).await;
    let frame = other_device.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::DeviceMismatch, fatal: true, .. }));
    assert_eq!(other_device.end().await, End::Closed(4203));

    let mut twice = Client::connect(gateway.address(), Form::Json).await;
    twice.say_connect(&good, None).await;
    let frame = twice.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { code: ErrorCode::AlreadyConnected, fatal: false, .. }));
    eventually("only the last one lives", || (gateway.connections(), gateway.sessions()) == (1, 1)).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_with_connect_is_read_after_connected() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut eager = Client::open(gateway.address(), Form::Binary).await;
    let good = token(eager.user, eager.device, wall_ms() + 60_000);
    eager.say_connect(&good, None).await;
    eager.say(Some(2), ClientBody::Ping).await;
    eager.sync(3, None).await;
    eager.wait_connected().await;
    assert_eq!(eager.hear().await.id, Some(2));
    assert_eq!(eager.hear().await.id, Some(3));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_s10_s37_broken_frames_and_floods_get_their_codes() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut good = Client::connect(gateway.address(), Form::Json).await;

    let mut undecodable = Client::connect(gateway.address(), Form::Binary).await;
    undecodable.socket.send(Message::Binary(vec![0xff; 20].into())).await.unwrap();
    assert_eq!(undecodable.end().await, End::Closed(4202));

    let mut wrong_kind = Client::connect(gateway.address(), Form::Binary).await;
    wrong_kind.socket.send(Message::Text("{}".into())).await.unwrap();
    assert_eq!(wrong_kind.end().await, End::Closed(4202));

    let mut flood = Client::connect(gateway.address(), Form::Binary).await;
    for _ in 0..60 {
        if flood.socket.send(Message::Ping(bytes::Bytes::new())).await.is_err() {
            break;
        }
    }
    assert_eq!(flood.end().await, End::Closed(1008));

    let mut unmasked = Client::connect(gateway.address(), Form::Binary).await;
    unmasked.socket.get_mut().write_all(&[0x82, 0x00]).await.unwrap();
    assert_eq!(unmasked.end().await, End::Closed(1002));

    let bad_field = r#"{"type":"history","id":9,"conversation_id":"no uuid","after":0}"#;
    good.socket.send(Message::Text(bad_field.into())).await.unwrap();
    let frame = good.hear().await;
    assert!(matches!(frame.body, ServerBody::Error { fatal: false, .. }) && frame.id == Some(9), "{frame:?}");
    good.say(Some(10), ClientBody::Ping).await;
    assert_eq!(good.hear().await.id, Some(10));
    gateway.stop().await;
}
