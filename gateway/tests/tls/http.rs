//! A connection that turns out to be plain HTTP goes on as TLS with whoever takes it.

use roost_protocol::frames::Form;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::client::Client;
use crate::eventually;
use crate::pair::{Pair, dial, secure};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_handed_over_with_what_was_read_and_stays_secret() {
    let (world, pair) = (World::new(), Pair::new());
    let (http, mut connections) = mpsc::channel(4);
    let gateway = world.start_with_http(pair.config(), Some(http)).await;
    let address = gateway.address();
    const BODY_BYTES: usize = 200_000;
    for version in [&TLS13, &TLS12] {
        let mut stream = dial(pair.trusting(&[version]), address).await;
        let asked = tokio::spawn(async move {
            let head = format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![b'x'; BODY_BYTES]).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = Vec::new();
            // The end is TLS's own: nothing was cut off.
            stream.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let connection = connections.recv().await.unwrap();
        let mut stream = connection.stream.into_async().unwrap();
        let mut received = connection.head.to_vec();
        let head_bytes = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        while received.len() < head_bytes + BODY_BYTES {
            let mut piece = [0; 1_000];
            let bytes = stream.read(&mut piece).await.unwrap();
            assert!(bytes > 0);
            received.extend_from_slice(&piece[..bytes]);
        }
        assert!(received.starts_with(b"POST /v1/messages HTTP/1.1\r\n"));
        assert!(received[head_bytes..].iter().all(|&byte| byte == b'x'));
        eventually("it is no longer the gateway's", || gateway.connections() == 0).await;
        let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
        answer.extend((0..500_000u32).map(|number| number as u8));
        stream.write_all(&answer).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(asked.await.unwrap() == answer);
    }
    assert_eq!(gateway.metrics().handed_over.get(), 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_anybody_for_http_it_is_answered_and_closed() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let mut stream = dial(pair.trusting(&[&TLS13]), gateway.address()).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("TLS ends as it should");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    drop(stream);
    let stream = dial(pair.trusting(&[&TLS13]), gateway.address()).await;
    drop(Client::connect_over(stream, gateway.address(), Form::Json).await);
    eventually("nobody is left", || gateway.connections() == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxys_header_comes_before_tls() {
    let (world, pair) = (World::new(), Pair::new());
    let (http, mut connections) = mpsc::channel(4);
    let mut config = pair.config();
    config.proxies = ["127.0.0.1/32".parse().unwrap()].into_iter().collect();
    config.proxy_protocol = true;
    let gateway = world.start_with_http(config, Some(http)).await;
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([203, 0, 113, 9, 192, 0, 2, 1]);
    header.extend([4711_u16, 443].map(u16::to_be_bytes).concat());
    socket.write_all(&header).await.unwrap();
    let mut stream = secure(pair.trusting(&[&TLS13]), socket).await.expect("the handshake completes");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let connection = connections.recv().await.unwrap();
    assert_eq!(connection.peer, "203.0.113.9:4711".parse().unwrap());
    assert_eq!(&connection.head[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    gateway.stop().await;
}
