//! Who is let in: by rate, by address, by user, through proxies; and that the others do not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roost_gateway::{Config, GatewayHandle, Rate};
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::{CloseCode, ConversationId, ErrorCode, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{Client, End};
use crate::eventually;
use crate::world::{LogMode, World, token, wall_ms};

const HERE: &str = "127.0.0.1";
const ELSEWHERE: &str = "127.0.0.2";

/// With a lease that does not pass on a machine that is busy with these very tests.
fn config() -> Config {
    let mut config = World::config();
    config.lease_ttl_ms = 60_000;
    config
}

/// A connection from this address of the loopback network.
async fn from(local: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(local.parse().unwrap(), 0)).unwrap();
    socket.connect(address).await.expect("the kernel accepts")
}

fn upgrade(headers: &str) -> String {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: roost.v1.json\r\n{headers}\r\n"
    )
}

/// Says something first, and returns the stream with the answer's head.
async fn say(mut stream: TcpStream, words: &[u8]) -> (TcpStream, String) {
    let _ = stream.write_all(words).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => answer.push(byte[0]),
            _ => break,
        }
    }
    (stream, String::from_utf8(answer).unwrap())
}

async fn handshake(local: &str, address: SocketAddr, headers: &str) -> (TcpStream, String) {
    say(from(local, address).await, upgrade(headers).as_bytes()).await
}

fn retry_after_s(answer: &str) -> u64 {
    let line = answer.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    line.unwrap_or_else(|| panic!("when to come back? {answer}")).parse().expect("seconds")
}

/// A live session's ping is answered.
async fn answers(client: &mut Client) {
    client.say(Some(77), ClientBody::Ping).await;
    assert_eq!(client.hear().await.id, Some(77));
}

/// Pings while something goes on, and says how often.
fn keep_asking(mut client: Client, until: Arc<AtomicBool>) -> tokio::task::JoinHandle<(Client, usize)> {
    tokio::spawn(async move {
        let mut answered = 0;
        while !until.load(Ordering::Relaxed) {
            answers(&mut client).await;
            answered += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (client, answered)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_the_newest_session_of_a_user_is_refused() {
    let world = World::new();
    let mut config = config();
    config.sessions_per_user_max = 3;
    let gateway = world.start(config).await;
    let user = UserId::new();
    let connect = async || {
        let mut client = Client::open(gateway.address(), Form::Json).await;
        client.user = user;
        client.say_connect(&token(user, client.device, wall_ms() + 60_000), None).await;
        client
    };
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = connect().await;
        client.wait_connected().await;
        clients.push(client);
    }
    let mut fourth = connect().await;
    let ServerBody::Error { code, retry_after_ms, fatal, .. } = fourth.hear().await.body else { panic!("an error") };
    assert_eq!((code, retry_after_ms, fatal), (ErrorCode::TooManySessions, Some(40_000), true));
    assert_eq!(fourth.end().await, End::Closed(CloseCode::TooManySessions.code()));
    assert_eq!(gateway.metrics().refused_user_sessions.get(), 1);
    for client in &mut clients {
        answers(client).await;
    }
    Client::connect(gateway.address(), Form::Json).await;
    clients.pop();
    eventually("it is gone", || gateway.sessions() == 2).await;
    connect().await.wait_connected().await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_one_address_has_so_many_connections_and_the_others_do_not_notice() {
    let world = World::new();
    let mut config = config();
    config.connections_per_address_max = 10;
    let gateway = world.start(config).await;
    let mut here = Vec::new();
    for _ in 0..10 {
        let stream = from(HERE, gateway.address()).await;
        here.push(Client::connect_over(stream, gateway.address(), Form::Json).await);
    }
    let (_, refused) = handshake(HERE, gateway.address(), "").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!((1..=10).contains(&retry_after_s(&refused)));
    let (_, http) = say(from(HERE, gateway.address()).await, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(http.starts_with("HTTP/1.1 429 "), "{http}");
    assert_eq!(gateway.metrics().refused_address_connections.get(), 2);

    let elsewhere = from(ELSEWHERE, gateway.address()).await;
    let elsewhere = Client::connect_over(elsewhere, gateway.address(), Form::Json).await;
    let over = Arc::new(AtomicBool::new(false));
    let asking = keep_asking(elsewhere, Arc::clone(&over));
    // A flood of connections that say nothing: a few may wait for their answer, the others are dropped.
    let mut flood = Vec::new();
    for _ in 0..500 {
        flood.push(from(HERE, gateway.address()).await);
    }
    eventually("they are dropped", || gateway.metrics().dropped.get() >= 400).await;
    // One more counts for a moment, between its coming and its being dropped.
    eventually("few of them stay", || gateway.connections() <= 10 + 64 + 1).await;
    let newcomer = from(ELSEWHERE, gateway.address()).await;
    Client::connect_over(newcomer, gateway.address(), Form::Json).await;
    over.store(true, Ordering::Relaxed);
    let (_, answered) = asking.await.unwrap();
    assert!(answered > 0);
    drop((flood, here));
    eventually("all are forgotten", || gateway.connections() == 0).await;
    let (_, welcome) = handshake(HERE, gateway.address(), "").await;
    assert!(welcome.starts_with("HTTP/1.1 101 "), "{welcome}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_handed_over_to_http_still_counts_for_its_address() {
    let world = World::new();
    let (http, mut connections) = tokio::sync::mpsc::channel(8);
    let mut config = config();
    config.connections_per_address_max = 1;
    let gateway = world.start_with_http(config, Some(http)).await;
    let mut first = from(HERE, gateway.address()).await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let handed_over = connections.recv().await.unwrap();
    eventually("it is no longer the gateway's", || gateway.connections() == 0).await;
    let (_, refused) = handshake(HERE, gateway.address(), "").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    drop(handed_over);
    eventually("the refused one is gone", || gateway.connections() == 0).await;
    let (_, welcome) = handshake(HERE, gateway.address(), "").await;
    assert!(welcome.starts_with("HTTP/1.1 101 "), "{welcome}");
    gateway.stop().await;
}

/// The accept rate stays in its bucket, and all are back.
async fn storm(config: Config, clients: usize) -> (GatewayHandle, usize) {
    let rate = Rate::per_second(config.handshakes_per_second);
    let world = World::new();
    let gateway = world.start(config).await;
    let staying = Client::connect(gateway.address(), Form::Binary).await;
    let over = Arc::new(AtomicBool::new(false));
    let asking = keep_asking(staying, Arc::clone(&over));
    let before = gateway.metrics().accepted.get();
    let began = Instant::now();
    let address = gateway.address();
    let storming: Vec<_> =
        (0..clients).map(|_| tokio::spawn(async move { Client::connect(address, Form::Binary).await })).collect();
    let mut back = Vec::new();
    let checking = async {
        loop {
            let accepted = gateway.metrics().accepted.get() - before;
            // One round of the driver may be under way already when accepting is paused.
            let allowed = f64::from(rate.burst) + f64::from(rate.per_second) * began.elapsed().as_secs_f64() + 64.0;
            assert!((accepted as f64) <= allowed, "{accepted} of {allowed}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let returning = async {
        for client in storming {
            back.push(client.await.unwrap());
        }
    };
    tokio::select! {
        () = checking => unreachable!("it never ends"),
        () = returning => {}
    }
    over.store(true, Ordering::Relaxed);
    let (_staying, answered) = asking.await.unwrap();
    assert!(answered > 0, "who is connected is answered all the time");
    assert_eq!(gateway.sessions(), clients + 1);
    (gateway, back.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_a_storm_of_reconnects_stays_in_its_bucket_and_all_are_back() {
    let mut config = config();
    config.handshakes_per_second = 100;
    config.connections_per_address_max = 0;
    let (gateway, back) = storm(config, 400).await;
    assert_eq!(back, 400);
    assert!(gateway.metrics().accept_paces.get() > 0, "inconclusive: nobody had to wait");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_clients_that_do_not_back_off_are_refused_and_come_in_once_there_is_room() {
    let world = World::new();
    let mut config = config();
    config.sessions_max = 5;
    config.handshakes_per_second = 500;
    config.connections_per_address_max = 0;
    let gateway = world.start(config).await;
    let mut there = Vec::new();
    for _ in 0..5 {
        there.push(Client::connect(gateway.address(), Form::Json).await);
    }
    let staying = there.pop().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let asking = keep_asking(staying, Arc::clone(&over));
    let (address, refused) = (gateway.address(), Arc::new(AtomicUsize::new(0)));
    let mut insistent = Vec::new();
    for _ in 0..20 {
        let (over, refused) = (Arc::clone(&over), Arc::clone(&refused));
        insistent.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let (stream, answer) = handshake(HERE, address, "").await;
                if answer.starts_with("HTTP/1.1 101 ") {
                    return Some(stream);
                }
                assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
                assert!(retry_after_s(&answer) >= 1);
                refused.fetch_add(1, Ordering::Relaxed);
            }
            None
        }));
    }
    eventually("they insist", || refused.load(Ordering::Relaxed) >= 200).await;
    // Two go: two of those who insist get in.
    there.truncate(2);
    eventually("there is no room again", || gateway.sessions() == 3 && !gateway.ready()).await;
    let before = refused.load(Ordering::Relaxed);
    eventually("the others still insist", || refused.load(Ordering::Relaxed) >= before + 50).await;
    over.store(true, Ordering::Relaxed);
    // It stays until the end: whoever still insists would take its place.
    let (_staying, answered) = asking.await.unwrap();
    assert!(answered > 0);
    let mut let_in = 0;
    for one in insistent {
        let_in += usize::from(one.await.unwrap().is_some());
    }
    assert_eq!(let_in, 2);
    assert!(gateway.metrics().refused_full.get() >= 250);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_after_a_storm_take_their_turn() {
    let world = World::new();
    let mut config = config();
    config.resumes_per_second = 10;
    let gateway = world.start(config).await;
    let began = Instant::now();
    let mut syncing = Vec::new();
    for _ in 0..60 {
        let address = gateway.address();
        syncing.push(tokio::spawn(async move {
            let mut client = Client::connect(address, Form::Json).await;
            let mut told_to_wait = 0;
            loop {
                client.sync(3, None).await;
                match client.hear().await.body {
                    ServerBody::Heads(_) => return told_to_wait,
                    ServerBody::Error {
                        code: ErrorCode::Busy, retry_after_ms: Some(wait_ms), fatal: false, ..
                    } => {
                        told_to_wait += 1;
                        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }));
    }
    let mut told_to_wait = 0;
    for one in syncing {
        told_to_wait += one.await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(4_900), "ten at once, then ten a second");
    assert!(told_to_wait >= 20, "only those of the next two seconds wait here: {told_to_wait}");
    assert!(gateway.metrics().resumes_delayed.get() >= 20);
    assert_eq!(gateway.metrics().resumes_refused.get(), told_to_wait);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s40_a_session_over_its_rates_is_told_when_to_come_again() {
    let world = World::new();
    let mut config = config();
    config.sends = Rate { per_second: 5, burst: 10 };
    config.requests = Rate { per_second: 1, burst: 2 };
    let gateway = world.start(config).await;
    let mut eager = Client::connect(gateway.address(), Form::Binary).await;
    for id in 0..30 {
        eager.send(id, ConversationId::new(), "hello").await;
    }
    for id in 100..105 {
        eager.sync(id, None).await;
    }
    let (mut sent, mut retry, mut heads, mut limited) = (0, 0, 0, 0);
    while sent + retry < 30 || heads + limited < 5 {
        match eager.hear().await.body {
            ServerBody::Sent { .. } => sent += 1,
            ServerBody::Retry { code: ErrorCode::RateLimited, retry_after_ms: 100..=1_000, .. } => retry += 1,
            ServerBody::Heads(_) => heads += 1,
            ServerBody::Error { code: ErrorCode::RateLimited, retry_after_ms: Some(100..), .. } => limited += 1,
            ServerBody::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // A slow machine may have let some time pass between them.
    assert!((10..20).contains(&sent) && (2..4).contains(&heads), "{sent} sent, {heads} answered");
    assert_eq!(gateway.metrics().rate_limited.get(), retry + limited);
    let mut other = Client::connect(gateway.address(), Form::Binary).await;
    other.send(1, ConversationId::new(), "hello").await;
    assert!(matches!(other.hear().await.body, ServerBody::Sent { .. } | ServerBody::Message(_)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxys_clients_are_counted_by_their_own_addresses() {
    let world = World::new();
    let mut config = config();
    config.connections_per_address_max = 2;
    config.proxies = [HERE.parse().unwrap()].into_iter().collect();
    let gateway = world.start(config).await;
    let mut kept = Vec::new();
    for (headers, status) in [
        ("X-Forwarded-For: 203.0.113.9\r\n", "101"),
        ("X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n", "101"),
        ("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.9\r\n", "429"),
        ("X-Forwarded-For: 203.0.113.10\r\n", "101"),
        // What is no address stands for nobody: the proxy itself, which is not limited.
        ("X-Forwarded-For: unknown\r\n", "101"),
        ("", "101"),
        ("", "101"),
    ] {
        let (stream, answer) = handshake(HERE, gateway.address(), headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{headers:?}: {answer}");
        kept.push(stream);
    }
    // Who is no proxy may write there what they like.
    for (number, status) in ["101", "101", "429"].into_iter().enumerate() {
        let headers = format!("X-Forwarded-For: 192.0.2.{number}\r\n");
        let (stream, answer) = handshake(ELSEWHERE, gateway.address(), &headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        kept.push(stream);
    }
    drop(kept);
    eventually("all are gone", || gateway.connections() == 0).await;
    let (_, answer) = handshake(HERE, gateway.address(), "X-Forwarded-For: 203.0.113.9\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    gateway.stop().await;
}

/// A PROXY header, version 2, that speaks for a client.
fn proxy_header(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([192, 0, 2, 1]);
    header.extend(port.to_be_bytes());
    header.extend(443u16.to_be_bytes());
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_says_whose_the_connection_is() {
    let world = World::new();
    let (http, mut connections) = tokio::sync::mpsc::channel(8);
    let mut config = config();
    config.connections_per_address_max = 2;
    config.proxies = ["127.0.0.1/32".parse().unwrap()].into_iter().collect();
    config.proxy_protocol = true;
    config.timings.handshake_ms = 500;
    let gateway = world.start_with_http(config, Some(http)).await;
    let address = gateway.address();

    let mut words = proxy_header([203, 0, 113, 9], 4711);
    words.extend(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut stream = from(HERE, address).await;
    for byte in words {
        // However it is cut.
        stream.write_all(&[byte]).await.unwrap();
    }
    let handed_over = connections.recv().await.unwrap();
    assert_eq!(handed_over.peer, "203.0.113.9:4711".parse().unwrap());
    assert_eq!(&handed_over.head[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");

    let mut kept = vec![];
    for status in ["101", "429"] {
        let mut words = proxy_header([203, 0, 113, 9], 4712);
        words.extend(upgrade("").bytes());
        let (stream, answer) = say(from(HERE, address).await, &words).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        kept.push(stream);
    }
    let header = proxy_header([203, 0, 113, 10], 4712);
    let mut through = from(HERE, address).await;
    through.write_all(&header).await.unwrap();
    let mut live = Client::connect_over(through, address, Form::Json).await;
    answers(&mut live).await;

    // A trusted proxy without its header, and one that never ends it, are closed without an answer.
    let (_, none) = handshake(HERE, address, "").await;
    assert_eq!(none, "");
    let (_, none) = say(from(HERE, address).await, &header[..20]).await;
    assert_eq!(none, "");
    assert_eq!(gateway.metrics().refused_proxy_headers.get(), 2);
    // From anybody else it is no header but a bad request.
    let mut words = header.clone();
    words.extend(upgrade("").bytes());
    let (_, refused) = say(from(ELSEWHERE, address).await, &words).await;
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    let (_, direct) = handshake(ELSEWHERE, address, "").await;
    assert!(direct.starts_with("HTTP/1.1 101 "), "{direct}");
    drop((live, kept, handed_over));
    eventually("all are gone", || gateway.connections() == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_a_thousand_slow_handshakes_are_closed_and_leave_the_others_alone() {
    let world = World::new();
    let mut config = config();
    config.timings.handshake_ms = 3_000;
    config.connections_per_address_max = 0;
    config.handshakes_per_second = 0;
    let gateway = world.start(config).await;
    let over = Arc::new(AtomicBool::new(false));
    let asking = keep_asking(Client::connect(gateway.address(), Form::Binary).await, Arc::clone(&over));
    let mut slow = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(b"G").await.unwrap();
        slow.push(stream);
    }
    eventually("they are all in", || gateway.metrics().accepted.get() >= 1_001).await;
    Client::connect(gateway.address(), Form::Binary).await;
    let mut told = 0;
    for mut stream in slow {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        told += usize::from(answer.starts_with(b"HTTP/1.1 408 "));
    }
    assert_eq!(told, 1_000);
    over.store(true, Ordering::Relaxed);
    let (_staying, answered) = asking.await.unwrap();
    assert!(answered > 0);
    eventually("they are freed", || gateway.connections() == 1).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_address_leave_room_for_the_others() {
    let world = World::new();
    let mut config = config();
    config.openings_max = 40;
    config.timings.handshake_ms = 20_000;
    let gateway = world.start(config).await;
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(from(HERE, gateway.address()).await);
    }
    eventually("they are all in", || gateway.metrics().accepted.get() >= 30).await;
    let elsewhere = from(ELSEWHERE, gateway.address()).await;
    Client::connect_over(elsewhere, gateway.address(), Form::Json).await;
    let (_, refused) = handshake(HERE, gateway.address(), "").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(gateway.metrics().refused_address_rate.get() >= 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_hangs_is_noticed() {
    let world = World::new();
    let mut config = config();
    config.stall_ms = 250;
    let gateway = world.start(config).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    eventually("it is ready", || gateway.ready()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(gateway.metrics().stalls.get(), 0, "an idle shard has not stalled");
    *world.log_mode.lock() = LogMode::Stuck;
    client.send(1, ConversationId::new(), "hello").await;
    eventually("it is noticed", || !gateway.ready()).await;
    assert_eq!(gateway.metrics().stalls.get(), 1);
    *world.log_mode.lock() = LogMode::Works;
    eventually("it goes on", || gateway.ready()).await;
    loop {
        if matches!(client.hear().await.body, ServerBody::Sent { .. }) {
            break;
        }
    }
    gateway.stop().await;
}
