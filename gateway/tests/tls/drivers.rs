//! What every driver promises is promised by TLS over it, in plaintext's terms.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use roost_gateway::driver::portable::Portable;
use roost_gateway::driver::tls::Tls;
#[cfg(target_os = "linux")]
use roost_gateway::driver::uring::{Uring, probe};
use roost_gateway::driver::{Driver, Key, SEND_BYTES_MAX, Submission};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion};

use crate::bed::Bed;
use crate::pair::generate;

type Peer = StreamOwned<ClientConnection, TcpStream>;

/// Both ends' settings.
struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Ends {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let pair = generate();
        let provider = || Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()).into();
        let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![pair.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        Self { server: Arc::new(server), client: Arc::new(client) }
    }
}

/// The other end is blocked while nobody drives this one: it works on a thread, and this one goes round until it is done.
fn meanwhile<D: Driver, T: Send + 'static>(bed: &mut Bed<D>, work: JoinHandle<T>) -> T {
    bed.until("the other end's work", |_| work.is_finished());
    work.join().expect("it works")
}

fn connect<D: Driver>(bed: &mut Bed<D>, ends: &Ends, bytes_max: usize) -> (Key, Peer) {
    let (key, socket) = bed.connect(bytes_max);
    let client = ClientConnection::new(Arc::clone(&ends.client), "localhost".try_into().unwrap()).unwrap();
    let mut peer = StreamOwned::new(client, socket);
    let handshake = std::thread::spawn(move || {
        while peer.conn.is_handshaking() {
            peer.conn.complete_io(&mut peer.sock).expect("the handshake goes on");
        }
        peer
    });
    let peer = meanwhile(bed, handshake);
    // Its last word has been written, and is read now.
    bed.linger();
    (key, peer)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn budgets_count_plaintext(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, 7);
    // One record; it is whole when it comes, and still only so much of it is wanted at once.
    peer.write_all(&pattern(100)).expect("room");
    bed.until("a hundred bytes", |bed| bed.lives[&key].received.len() == 100);
    assert_eq!((bed.lives[&key].lent_max, &bed.lives[&key].received), (7, &pattern(100)));
    bed.driver.submit(Submission::Receive { key, bytes_max: 0 });
    bed.linger();
    peer.write_all(b"later").expect("room");
    bed.linger();
    assert_eq!(bed.lives[&key].received.len(), 100, "nothing is asked for");
    bed.driver.submit(Submission::Receive { key, bytes_max: usize::MAX });
    bed.until("the rest", |bed| bed.lives[&key].received.ends_with(b"later"));
}

fn what_is_decrypted_waits_while_nothing_is_wanted(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, 10);
    peer.write_all(&pattern(16_000)).expect("room");
    peer.conn.send_close_notify();
    peer.flush().expect("room");
    bed.until("a beginning", |bed| bed.lives[&key].received.len() >= 30);
    bed.driver.submit(Submission::Receive { key, bytes_max: 0 });
    bed.linger();
    let heard = bed.lives[&key].received.len();
    bed.linger();
    assert_eq!((bed.lives[&key].received.len(), bed.lives[&key].ended), (heard, 0), "nothing is asked for");
    bed.driver.submit(Submission::Receive { key, bytes_max: 1_000 });
    // The end comes after the last byte: the bed minds.
    bed.until("the end", |bed| bed.lives[&key].ended == 1);
    assert_eq!((bed.lives[&key].lent_max, &bed.lives[&key].received), (1_000, &pattern(16_000)));
    // Half open: what we say is still heard, and the end is TLS's own.
    bed.send(key, &[Bytes::from_static(b"farewell")], 0);
    bed.until("the send", |bed| bed.lives[&key].sent.len() == 1);
    bed.driver.submit(Submission::ShutdownWrite { key });
    bed.linger();
    let mut heard = String::new();
    peer.read_to_string(&mut heard).expect("an orderly end");
    assert_eq!((heard.as_str(), bed.lives[&key].ended), ("farewell", 1));
}

fn what_is_longer_than_any_buffer_goes_both_ways(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, usize::MAX);
    let body = pattern(5 << 20);
    let (there, back) = (body.clone(), Bytes::from(body.clone()));
    let other_end = std::thread::spawn(move || {
        peer.write_all(&there).expect("it is read");
        let mut heard = vec![0; there.len()];
        // Slowly, so that the socket is full at times and a send is written in several goes.
        for part in heard.chunks_mut(16_000) {
            std::thread::sleep(Duration::from_micros(500));
            peer.read_exact(part).expect("it is written");
        }
        (peer, heard)
    });
    bed.until("all of it", |bed| bed.lives[&key].received.len() == body.len());
    assert!(bed.lives[&key].received == body);
    let mut at = 0;
    while at < body.len() {
        // Split anyhow: the second frame begins where the first ends.
        let middle = (at + 10_000).min(body.len());
        bed.send(key, &[back.slice(at..middle), back.slice(middle..)], 0);
        let answers = bed.lives[&key].sent.len();
        if body.len() - at > SEND_BYTES_MAX {
            // Not all of it is written at once, and that is told without anything else happening.
            bed.until_waiting_long("an answer to the send", |bed| bed.lives[&key].sent.len() > answers);
        }
        bed.until("an answer to the send", |bed| bed.lives[&key].sent.len() > answers);
        at += bed.lives[&key].sent.last().unwrap().as_ref().expect("the peer reads");
    }
    let (_peer, heard) = meanwhile(&mut bed, other_end);
    assert!(heard == body);
}

fn a_send_is_told_in_the_bytes_of_its_frames(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, usize::MAX);
    let frames: Vec<Bytes> = (0..32_u8).map(|number| Bytes::from(vec![number; 100])).collect();
    bed.send(key, &frames, 40);
    bed.until("the send", |bed| bed.lives[&key].sent.len() == 1);
    assert_eq!(*bed.lives[&key].sent[0].as_ref().expect("sent"), 3_160);
    let mut heard = vec![0; 3_160];
    peer.read_exact(&mut heard).expect("it was written");
    assert_eq!(heard, frames.concat()[40..]);
}

fn nothing_is_sent_before_the_handshake(driver: impl Driver, _: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    bed.send(key, &[Bytes::from_static(b"secret")], 0);
    bed.until("the send's answer", |bed| bed.lives[&key].sent.len() == 1);
    assert!(bed.lives[&key].sent[0].is_err());
    bed.driver.submit(Submission::Close { key });
    bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).expect("an orderly end");
    assert_eq!(heard, b"");
}

fn whatever_is_under_way_there_is_one_last_word(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    for round in 0..12 {
        let (key, mut peer) = connect(&mut bed, ends, if round % 2 == 0 { usize::MAX } else { 5 });
        match round % 4 {
            // More than the socket takes.
            0 | 1 => {
                bed.send(key, &[Bytes::from(vec![1; 32 << 20])], 0);
                while bed.lives[&key].sent.len() == 1 {
                    bed.lives.get_mut(&key).unwrap().sent.clear();
                    bed.send(key, &[Bytes::from(vec![1; 32 << 20])], 0);
                    bed.linger();
                }
            }
            // Decrypted, and not wanted yet.
            2 | 3 => peer.write_all(&pattern(10_000)).expect("room"),
            _ => unreachable!(),
        }
        if round > 5 {
            bed.linger();
        }
        bed.driver.submit(Submission::Close { key });
        bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
        bed.linger();
    }
}

fn an_idle_connection_is_closed_in_tlss_own_way(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, usize::MAX);
    bed.linger();
    bed.driver.submit(Submission::Close { key });
    bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).expect("nothing was cut off");
}

fn a_released_connection_goes_on_where_it_was(driver: impl Driver, ends: &Ends) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = connect(&mut bed, ends, 4);
    let body = pattern(100_000);
    let said = body.clone();
    let other_end = std::thread::spawn(move || {
        peer.write_all(&said).expect("it is read");
        peer.conn.send_close_notify();
        peer.flush().expect("it is read");
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).expect("an orderly end");
        heard
    });
    bed.until("the beginning", |bed| !bed.lives[&key].received.is_empty());
    bed.driver.submit(Submission::Receive { key, bytes_max: 0 });
    bed.driver.submit(Submission::Release { key });
    bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    let life = bed.lives.remove(&key).expect("its life");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = life.released.expect("a stream").into_async().expect("a socket");
        let mut received = life.received;
        stream.read_to_end(&mut received).await.expect("an orderly end");
        assert!(received == body);
        stream.write_all(&body).await.expect("open");
        stream.shutdown().await.expect("open");
    });
    assert!(other_end.join().expect("the other end") == body);
}

macro_rules! on {
    ($driver:ident, $new:expr, $($case:ident),*) => {
        mod $driver {
            use super::*;

            $(
                #[test]
                fn $case() {
                    for version in [&TLS13, &TLS12] {
                        let ends = Ends::new(version);
                        if let Some(driver) = $new {
                            super::$case(Tls::new(driver, Arc::clone(&ends.server)), &ends);
                        }
                    }
                }
            )*
        }
    };
    ($($driver:ident, $new:expr;)*) => {
        $(
            on!(
                $driver,
                $new,
                budgets_count_plaintext,
                what_is_decrypted_waits_while_nothing_is_wanted,
                what_is_longer_than_any_buffer_goes_both_ways,
                a_send_is_told_in_the_bytes_of_its_frames,
                nothing_is_sent_before_the_handshake,
                whatever_is_under_way_there_is_one_last_word,
                an_idle_connection_is_closed_in_tlss_own_way,
                a_released_connection_goes_on_where_it_was
            );
        )*
    };
}

fn portable_driver() -> Option<Portable> {
    Some(Portable::new(None).expect("a poller"))
}

#[cfg(target_os = "linux")]
fn uring_driver() -> Option<Uring> {
    match probe() {
        Ok(()) => Some(Uring::new(None, 1_000).expect("a ring")),
        Err(refusal) => {
            eprintln!("skipped: {refusal}");
            None
        }
    }
}

on! { portable, portable_driver(); }
#[cfg(target_os = "linux")]
on! { uring, uring_driver(); }
