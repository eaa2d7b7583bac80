//! Peers that stall, speak something else or something old, or break what was agreed.

use std::net::SocketAddr;
use std::time::Duration;

use roost_protocol::ConversationId;
use roost_protocol::frames::{ClientBody, Form};
use rustls::AlertDescription;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Client, End};
use crate::eventually;
use crate::pair::{Pair, dial, secure};
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// Says something and hears the answer until the end, which is a clean one.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed in time");
    ended.expect("a clean end");
    answer
}

/// A fatal alert as a plaintext record, of whatever version.
fn alert(answer: &[u8]) -> Option<u8> {
    match answer {
        [21, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

/// A ClientHello, by hand: RFC 5246, 7.4.1.2 and RFC 8446, 4.1.2.
fn hello(version: [u8; 2], suites: &[[u8; 2]], extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend((suites.len() as u16 * 2).to_be_bytes());
    suites.iter().for_each(|suite| body.extend(suite));
    body.extend([1, 0]);
    let mut list = Vec::new();
    for (kind, content) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend((content.len() as u16).to_be_bytes());
        list.extend_from_slice(content);
    }
    body.extend((list.len() as u16).to_be_bytes());
    body.extend(list);
    let mut record = vec![22, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.push(1);
    record.extend(&(body.len() as u32).to_be_bytes()[1..]);
    record.extend(body);
    record
}

const GROUPS: (u16, &[u8]) = (10, &[0, 4, 0, 29, 0, 23]);
const POINTS: (u16, &[u8]) = (11, &[1, 0]);
const SIGNATURES: (u16, &[u8]) = (13, &[0, 4, 4, 3, 8, 4]);
const ONLY_TLS11: (u16, &[u8]) = (43, &[2, 3, 2]);
const GOOD: [u8; 2] = [0xc0, 0x2b];
/// RC4, 3DES, AES in CBC without and with forward secrecy, NULL, export.
const WEAK: [[u8; 2]; 7] = [[0, 5], [0, 10], [0, 0x2f], [0xc0, 9], [0xc0, 0x24], [0, 2], [0, 3]];

const HANDSHAKE_FAILURE: u8 = 40;
const PROTOCOL_VERSION: u8 = 70;

#[tokio::test(flavor = "multi_thread")]
async fn s60_old_versions_weak_suites_and_other_protocols_are_refused() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    let extensions = [GROUPS, POINTS, SIGNATURES];
    for (what, version, suites, extensions, expected) in [
        ("TLS 1.0", [3, 1], &[GOOD][..], &extensions[..], PROTOCOL_VERSION),
        ("TLS 1.1", [3, 2], &[GOOD], &extensions, PROTOCOL_VERSION),
        ("SSL 3.0", [3, 0], &[GOOD], &extensions, PROTOCOL_VERSION),
        ("TLS 1.1 in an extension", [3, 3], &[GOOD], &[GROUPS, POINTS, SIGNATURES, ONLY_TLS11], PROTOCOL_VERSION),
        ("weak suites", [3, 3], &WEAK, &extensions, HANDSHAKE_FAILURE),
    ] {
        let answer = raw(address, &hello(version, suites, extensions)).await;
        assert_eq!(alert(&answer), Some(expected), "{what}: {answer:?}");
    }
    // The same hello with a good version and suite is answered with a ServerHello: the refusals were of what they name.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&hello([3, 3], &[GOOD], &extensions)).await.unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2), "{answer:?}");
    drop(stream);

    for version in [&TLS13, &TLS12] {
        let mut config = pair.trusting(&[version]);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let refused = secure(config.clone(), TcpStream::connect(address).await.unwrap()).await.unwrap_err();
        let refused = refused.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).cloned();
        assert_eq!(refused, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
        // Without any offer there is nothing to refuse.
        config.alpn_protocols.clear();
        let stream = dial(config, address).await;
        drop(Client::connect_over(stream, address, Form::Binary).await);
    }
    eventually("nobody is left", || gateway.connections() == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_may_come_in_many_records() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let whole = hello([3, 3], &[GOOD], &[GROUPS, POINTS, SIGNATURES]);
    for (bytes, at_once) in [(1, true), (7, true), (50, true), (1, false), (7, false), (50, false)] {
        let records = whole[5..].chunks(bytes).map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat());
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if at_once {
            stream.write_all(&records.collect::<Vec<_>>().concat()).await.unwrap();
        } else {
            for record in records {
                stream.write_all(&record).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!((answer[0], answer[5]), (22, 2), "{bytes} {at_once}: {answer:?}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_a_hello_that_stalls_is_closed_in_the_handshakes_time() {
    let (world, pair) = (World::new(), Pair::new());
    let mut config = pair.config();
    config.timings.handshake_ms = 400;
    let gateway = world.start(config).await;
    let address = gateway.address();
    let whole = hello([3, 3], &[GOOD], &[GROUPS, POINTS, SIGNATURES]);
    // Nothing, a beginning, and a hello after which nothing follows.
    for said in [&[][..], &whole[..1], &whole[..40], &whole] {
        raw(address, said).await;
    }
    // One byte after the other, slower than the time allows.
    let mut slow = TcpStream::connect(address).await.unwrap();
    let dribbled = async {
        for byte in whole.iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dribbled).await.expect("it is closed in time");
    eventually("nobody is left", || gateway.connections() == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_is_closed_cleanly_and_nobody_else_notices() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    let stream = dial(pair.trusting(&[&TLS13]), address).await;
    let mut good = Client::connect_over(stream, address, Form::Json).await;
    for said in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 100],
        vec![0xff; 4_000],
        // A record that is longer than any may be.
        vec![22, 3, 1, 0xff, 0xff, 1],
        // Data where a hello should be.
        vec![23, 3, 3, 0, 1, 0],
    ] {
        let answer = raw(address, &said).await;
        assert!(answer.is_empty() || alert(&answer).is_some(), "{said:?}: {answer:?}");
    }
    // A handshake message without an end is not kept for ever. The peer may be cut off while it writes.
    let mut endless = TcpStream::connect(address).await.unwrap();
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    record.resize(5 + 0x4000, 7);
    for _ in 0..100 {
        if endless.write_all(&record).await.is_err() {
            break;
        }
    }
    drop(endless);
    eventually("only the good one is left", || gateway.connections() == 1).await;
    good.say(Some(2), ClientBody::Ping).await;
    assert_eq!(good.hear().await.id, Some(2));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_record_ends_its_session_and_no_other() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    for (version, appended) in [(&TLS13, 1), (&TLS12, 2)] {
        let stream = dial(pair.trusting(&[version]), address).await;
        let mut good = Client::connect_over(stream, address, Form::Json).await;
        let stream = dial(pair.trusting(&[version]), address).await;
        let mut bad = Client::connect_over(stream, address, Form::Json).await;
        // What is whole before it still counts.
        bad.send(2, ConversationId::new(), "whole").await;
        let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
        bad.socket.get_mut().get_mut().0.write_all(&forged).await.unwrap();
        let error = loop {
            match futures::StreamExt::next(&mut bad.socket).await {
                // Its verdict may be quicker.
                Some(Ok(_)) => {}
                Some(Err(tokio_tungstenite::tungstenite::Error::Io(error))) => break error.to_string(),
                other => panic!("{other:?}"),
            }
        };
        assert!(error.contains("BadRecordMac"), "{error}");
        eventually("only the good one is left", || gateway.sessions() == 1).await;
        eventually("what came before is in the log", || world.appended.lock().len() == appended).await;
        good.say(Some(2), ClientBody::Ping).await;
        // The message may come before.
        while good.hear().await.id != Some(2) {}
        good.socket.close(None).await.unwrap();
        assert_eq!(good.end().await, End::Closed(1005));
        eventually("nobody is left", || gateway.connections() == 0).await;
    }
    gateway.stop().await;
}
