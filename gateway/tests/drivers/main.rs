//! What every driver promises, on each of them.

mod bed;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bed::Bed;
use bytes::Bytes;
use roost_gateway::Stream;
use roost_gateway::driver::portable::Portable;
#[cfg(target_os = "linux")]
use roost_gateway::driver::uring::{Uring, probe};
use roost_gateway::driver::{Driver, Key, Submission};

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn send_all(bed: &mut Bed<impl Driver>, key: Key, body: &Bytes, mut at: usize) {
    while at < body.len() {
        bed.send(key, &[body.slice(at..)], 0);
        let answers = bed.lives[&key].sent.len();
        bed.until("an answer to the send", |bed| bed.lives[&key].sent.len() > answers);
        at += bed.lives[&key].sent.last().unwrap().as_ref().expect("the peer reads");
    }
}

fn bytes_come_in_order_and_never_more_than_was_asked_for(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(7);
    peer.write_all(&pattern(100)).expect("room");
    bed.until("a hundred bytes", |bed| bed.lives[&key].received.len() == 100);
    assert_eq!(bed.lives[&key].lent_max, 7);
    assert_eq!(bed.lives[&key].received, pattern(100));

    bed.driver.submit(Submission::Receive { key, bytes_max: 0 });
    bed.linger();
    peer.write_all(b"later").expect("room");
    bed.linger();
    assert_eq!(bed.lives[&key].received.len(), 100, "nothing is asked for");
    bed.driver.submit(Submission::Receive { key, bytes_max: usize::MAX });
    bed.until("the rest", |bed| bed.lives[&key].received.ends_with(b"later"));
}

/// The quiet become busy, and quiet again, without losing a byte.
fn a_conversation_of_many_short_frames_is_complete(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    let mut expected = Vec::new();
    for word in 0..300_usize {
        let bytes = pattern(word % 90 + 1);
        peer.write_all(&bytes).expect("room");
        expected.extend_from_slice(&bytes);
        if word % 100 == 99 {
            std::thread::sleep(Duration::from_millis(60));
        }
        bed.until("a frame", |bed| bed.lives[&key].received.len() == expected.len());
    }
    assert_eq!(bed.lives[&key].received, expected);
}

fn what_is_longer_than_any_buffer_goes_both_ways(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    let body = pattern(5 << 20);
    let (there, back) = (body.clone(), Bytes::from(body.clone()));
    let other_end = std::thread::spawn(move || {
        peer.write_all(&there).expect("it is read");
        let mut heard = vec![0; there.len()];
        peer.read_exact(&mut heard).expect("it is written");
        (peer, heard)
    });
    bed.until("all of it", |bed| bed.lives[&key].received.len() == body.len());
    assert!(bed.lives[&key].received == body);
    send_all(&mut bed, key, &back, 0);
    let (_peer, heard) = other_end.join().expect("the other end");
    assert!(heard == body);
}

/// Where not all of a send can be written, its completion does not wait for something else to happen.
fn a_send_without_room_ends_the_waiting(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    let body = Bytes::from(pattern(16 << 20));
    bed.send(key, std::slice::from_ref(&body), 0);
    bed.until_waiting_long("what the socket had room for", |bed| bed.lives[&key].sent.len() == 1);
    let mut at = *bed.lives[&key].sent[0].as_ref().expect("the peer is there");
    assert!(at > 0 && at < body.len(), "{at} bytes fit into the socket: the test needs more");
    bed.send(key, &[body.slice(at..)], 0);
    bed.linger();
    assert_eq!(bed.lives[&key].sent.len(), 1, "nobody reads");
    let length = body.len();
    let other_end = std::thread::spawn(move || {
        let mut heard = vec![0; length];
        peer.read_exact(&mut heard).expect("it is written");
        (peer, heard)
    });
    bed.until_waiting_long("the peer to read", |bed| bed.lives[&key].sent.len() == 2);
    at += bed.lives[&key].sent[1].as_ref().expect("the peer reads");
    send_all(&mut bed, key, &body, at);
    let (_peer, heard) = other_end.join().expect("the other end");
    assert!(heard == body);
}

fn several_frames_go_out_in_one_send(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    let frames: Vec<Bytes> = (0..32_u8).map(|number| Bytes::from(vec![number; 100])).collect();
    bed.send(key, &frames, 40);
    bed.until("the send", |bed| bed.lives[&key].sent.len() == 1);
    assert_eq!(*bed.lives[&key].sent[0].as_ref().expect("sent"), 3160);
    let mut heard = vec![0; 3160];
    peer.read_exact(&mut heard).expect("it was written");
    assert_eq!(heard, frames.concat()[40..]);
}

fn an_end_is_told_once_and_after_the_last_byte(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    peer.write_all(b"bye").expect("room");
    peer.shutdown(Shutdown::Write).expect("open");
    bed.until("the end", |bed| bed.lives[&key].ended > 0);
    bed.linger();
    assert_eq!((bed.lives[&key].received.as_slice(), bed.lives[&key].ended), (&b"bye"[..], 1));
    // Half open: what we say is still heard.
    bed.send(key, &[Bytes::from_static(b"farewell")], 0);
    bed.driver.submit(Submission::ShutdownWrite { key });
    bed.until("the send", |bed| bed.lives[&key].sent.len() == 1);
    bed.linger();
    let mut heard = String::new();
    peer.read_to_string(&mut heard).expect("an orderly end");
    assert_eq!(heard, "farewell");
}

fn an_end_is_told_where_bytes_are_not_wanted_yet(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(0);
    peer.write_all(b"wait").expect("room");
    drop(peer);
    bed.linger();
    assert_eq!((bed.lives[&key].received.len(), bed.lives[&key].ended), (0, 0));
    bed.driver.submit(Submission::Receive { key, bytes_max: 3 });
    bed.until("the end", |bed| bed.lives[&key].ended == 1);
    assert_eq!(bed.lives[&key].received, b"wait");
}

fn a_reset_is_an_end(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, peer) = bed.connect(usize::MAX);
    bed.linger();
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(peer);
    bed.until("the end", |bed| bed.lives[&key].ended == 1);
    bed.send(key, &[Bytes::from_static(b"anybody?")], 0);
    bed.until("the send's answer", |bed| bed.lives[&key].sent.len() == 1);
    assert!(bed.lives[&key].sent[0].is_err());
}

/// Knows when nobody holds it any more.
struct Held(Arc<AtomicBool>, Vec<u8>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn a_close_cuts_off_a_send_and_lets_its_frames_go(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, peer) = bed.connect(usize::MAX);
    let let_go = Arc::new(AtomicBool::new(false));
    let frame = Bytes::from_owner(Held(Arc::clone(&let_go), vec![1; 32 << 20]));
    let mut sent = 0;
    // The socket takes some and then no more.
    while bed.lives[&key].sent.len() == sent {
        bed.send(key, std::slice::from_ref(&frame), 0);
        bed.linger();
        if bed.lives[&key].sent.len() > sent {
            sent += 1;
        } else {
            break;
        }
    }
    drop(frame);
    assert!(!let_go.load(Ordering::Acquire));
    bed.driver.submit(Submission::Close { key });
    bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    assert!(let_go.load(Ordering::Acquire), "the frames are held after the last word");
    bed.linger();
    drop(peer);
    bed.linger();
}

fn a_released_connection_goes_on_as_a_socket(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(4);
    peer.write_all(b"GET / and more").expect("room");
    bed.until("the beginning", |bed| !bed.lives[&key].received.is_empty());
    bed.driver.submit(Submission::Receive { key, bytes_max: 0 });
    bed.driver.submit(Submission::Release { key });
    bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    let life = bed.lives.get_mut(&key).expect("its life");
    let Some(Stream::Plain(mut stream)) = life.released.take() else { panic!("nobody spoke TLS") };
    let heard_here = life.received.clone();
    let mut nothing = [0; 1];
    let mut rest = vec![0; 14 - heard_here.len()];
    stream.read_exact(&mut rest).expect("what was not received is still there");
    assert_eq!([heard_here, rest].concat(), b"GET / and more");
    assert_eq!(stream.read(&mut nothing).expect_err("no more").kind(), std::io::ErrorKind::WouldBlock);
    stream.write_all(b"200").expect("open");
    drop(stream);
    let mut answer = String::new();
    peer.read_to_string(&mut answer).expect("an orderly end");
    assert_eq!(answer, "200");
}

fn a_slot_serves_one_connection_after_the_other(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    for generation in 0..200 {
        let key = Key { slot: 3, generation };
        let mut peer = bed.connect_as(key, usize::MAX);
        peer.write_all(&generation.to_be_bytes()).expect("room");
        // Some are closed before they have been heard, some in the middle of a conversation.
        if generation % 3 > 0 {
            bed.until("its word", |bed| bed.lives[&key].received == generation.to_be_bytes());
            peer.write_all(b"more").expect("room");
        }
        if generation % 3 == 2 {
            bed.until("more", |bed| bed.lives[&key].received.ends_with(b"more"));
            peer.write_all(b"and more").expect("room");
        }
        bed.send(key, &[Bytes::from_static(b"cut off?")], 0);
        bed.driver.submit(Submission::Close { key });
        bed.until("the last word", |bed| bed.lives[&key].last_words == 1);
    }
}

/// More than there are receive buffers, and more than there is room for completions.
fn a_crowd_that_talks_at_once_is_heard_by_all(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let crowd: Vec<(Key, TcpStream)> = (0..4_500).map(|_| bed.connect(usize::MAX)).collect();
    for round in 1..=3 {
        for (_, peer) in &crowd {
            (&*peer).write_all(&pattern(3_000)).expect("room");
        }
        let all = |bed: &Bed<_>| crowd.iter().all(|(key, _)| bed.lives[key].received.len() == 3_000 * round);
        bed.until("everybody's word", all);
    }
    let frame = Bytes::from(pattern(500));
    for (key, _) in &crowd {
        bed.send(*key, &[frame.clone(), frame.clone()], 0);
    }
    bed.until("every send", |bed| crowd.iter().all(|(key, _)| bed.lives[key].sent.len() == 1));
    let mut heard = vec![0; 1_000];
    for (_, peer) in &crowd {
        (&*peer).read_exact(&mut heard).expect("it was written");
        assert_eq!(heard[500..], frame);
    }
    for (key, _) in &crowd {
        bed.driver.submit(Submission::Close { key: *key });
    }
    bed.until("every last word", |bed| crowd.iter().all(|(key, _)| bed.lives[key].last_words == 1));
}

fn somebody_else_wakes_it(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let wake = bed.driver.wake();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                wake();
            });
            // Nothing else ends this wait.
            bed.driver.wait(None).expect("it waits");
            while bed.driver.next().is_some() {}
        });
    }
}

fn connections_wait_while_none_are_accepted<D: Driver>(new: impl Fn(TcpListener) -> D) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("bound");
    let mut bed = Bed::new(new(listener));
    let first = TcpStream::connect(address).expect("it connects");
    bed.until("the first", |bed| bed.accepted.len() == 1);
    assert_eq!(bed.accepted[0].1, first.local_addr().expect("connected"));
    bed.driver.submit(Submission::Accept(false));
    bed.linger();
    let _others: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).expect("the kernel takes it")).collect();
    bed.linger();
    assert_eq!(bed.accepted.len(), 1, "accepted while it should not");
    bed.driver.submit(Submission::Accept(true));
    bed.until("the others", |bed| bed.accepted.len() == 101);
    assert!(bed.accept_errors.is_empty());
}

fn the_end_of_a_driver_ends_its_connections(driver: impl Driver) {
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    bed.send(key, &[Bytes::from(vec![7; 32 << 20])], 0);
    bed.linger();
    let Bed { driver, .. } = bed;
    drop(driver);
    peer.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let mut heard = Vec::new();
    let end = peer.read_to_end(&mut heard);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

macro_rules! on {
    ($driver:ident, $new:expr) => {
        mod $driver {
            use super::*;

            on!(@each $new,
                bytes_come_in_order_and_never_more_than_was_asked_for,
                a_conversation_of_many_short_frames_is_complete,
                what_is_longer_than_any_buffer_goes_both_ways,
                a_send_without_room_ends_the_waiting,
                several_frames_go_out_in_one_send,
                an_end_is_told_once_and_after_the_last_byte,
                an_end_is_told_where_bytes_are_not_wanted_yet,
                a_reset_is_an_end,
                a_close_cuts_off_a_send_and_lets_its_frames_go,
                a_released_connection_goes_on_as_a_socket,
                a_slot_serves_one_connection_after_the_other,
                a_crowd_that_talks_at_once_is_heard_by_all,
                somebody_else_wakes_it,
                the_end_of_a_driver_ends_its_connections
            );

            #[test]
            fn connections_wait_while_none_are_accepted() {
                let new = $new;
                if new(None).is_some() {
                    super::connections_wait_while_none_are_accepted(|listener| new(Some(listener)).expect("a driver"));
                }
            }
        }
    };
    (@each $new:expr, $($case:ident),*) => {
        $(
            #[test]
            fn $case() {
                let new = $new;
                if let Some(driver) = new(None) {
                    super::$case(driver);
                }
            }
        )*
    };
}

on!(portable, |listener: Option<TcpListener>| Some(Portable::new(listener).expect("a poller")));
#[cfg(target_os = "linux")]
on!(uring, |listener: Option<TcpListener>| match probe() {
    Ok(()) => Some(Uring::new(listener, 10_000).expect("a ring").quiet_after(50)),
    Err(refusal) => {
        eprintln!("skipped: {refusal}");
        None
    }
});

/// Whoever sleeps is not woken to hear that a send has succeeded: that comes with what comes next.
#[test]
#[cfg(target_os = "linux")]
fn the_ring_is_silent_about_a_success() {
    const WAIT: Duration = Duration::from_millis(200);
    let Ok(driver) = probe().map(|()| Uring::new(None, 10_000).expect("a ring")) else { return };
    let mut bed = Bed::new(driver);
    let (key, mut peer) = bed.connect(usize::MAX);
    bed.linger();
    bed.send(key, &[Bytes::from_static(b"psst")], 0);
    let begun = Instant::now();
    bed.round(WAIT);
    assert!(begun.elapsed() >= WAIT, "it woke up after {:?}", begun.elapsed());
    assert_eq!(*bed.lives[&key].sent[0].as_ref().expect("the peer is there"), 4);
    let mut heard = [0; 4];
    peer.read_exact(&mut heard).expect("it was written");
    assert_eq!(&heard, b"psst");
}
