//! A driver on the test bench: everything that it says is written down, by connection.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_gateway::Stream;
use roost_gateway::driver::{Completion, Driver, Frames, Key, Submission};

/// Five times what a loaded machine has ever needed.
const LIVENESS: Duration = Duration::from_secs(60);

/// What a connection has been through.
#[derive(Default)]
pub struct Life {
    pub received: Vec<u8>,
    /// The largest number of bytes lent at once.
    pub lent_max: usize,
    pub ended: usize,
    pub sent: Vec<io::Result<usize>>,
    pub last_words: usize,
    pub released: Option<Stream>,
}

/// A driver and what it has said.
pub struct Bed<D> {
    pub driver: D,
    pub lives: HashMap<Key, Life>,
    pub accepted: Vec<(TcpStream, SocketAddr)>,
    pub accept_errors: Vec<io::Error>,
    listener: TcpListener,
    next_slot: u32,
}

impl<D: Driver> Bed<D> {
    pub fn new(driver: D) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self { driver, lives: HashMap::new(), accepted: vec![], accept_errors: vec![], listener, next_slot: 0 }
    }

    /// A connection in a slot of its own, and its other end.
    pub fn connect(&mut self, bytes_max: usize) -> (Key, TcpStream) {
        let key = Key { slot: self.next_slot, generation: 0 };
        self.next_slot += 1;
        (key, self.connect_as(key, bytes_max))
    }

    pub fn connect_as(&mut self, key: Key, bytes_max: usize) -> TcpStream {
        let peer = TcpStream::connect(self.listener.local_addr().expect("bound")).expect("it connects");
        let (stream, _) = self.listener.accept().expect("it is accepted");
        stream.set_nonblocking(true).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        self.lives.insert(key, Life::default());
        self.driver.submit(Submission::Adopt { key, stream, bytes_max });
        peer
    }

    pub fn send(&mut self, key: Key, frames: &[Bytes], offset: usize) {
        let frames: Frames = frames.iter().cloned().collect();
        self.driver.submit(Submission::Send { key, frames, offset });
    }

    /// One round: waits and takes what has come.
    pub fn round(&mut self, timeout: Duration) {
        self.driver.wait(Some(timeout)).expect("it waits");
        while let Some(completion) = self.driver.next() {
            let key = match &completion {
                Completion::Received { key, .. }
                | Completion::Ended { key }
                | Completion::Sent { key, .. }
                | Completion::Closed { key }
                | Completion::Released { key, .. } => *key,
                Completion::Accepted { .. } | Completion::AcceptFailed(_) => Key { slot: u32::MAX, generation: 0 },
            };
            let life = self.lives.entry(key).or_default();
            assert_eq!(life.last_words, 0, "something comes after the last word");
            match completion {
                Completion::Accepted { stream, peer } => self.accepted.push((stream, peer)),
                Completion::AcceptFailed(error) => self.accept_errors.push(error),
                Completion::Received { bytes, .. } => {
                    assert!(!bytes.is_empty() && life.ended == 0);
                    life.received.extend_from_slice(bytes);
                    life.lent_max = life.lent_max.max(bytes.len());
                    // Whoever is lent bytes may change them.
                    bytes.fill(0xee);
                }
                Completion::Ended { .. } => life.ended += 1,
                Completion::Sent { result, .. } => life.sent.push(result),
                Completion::Closed { .. } => life.last_words += 1,
                Completion::Released { stream, .. } => {
                    life.last_words += 1;
                    life.released = Some(stream);
                }
            }
        }
    }

    /// Rounds until something holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.rounds_until(what, Duration::from_millis(20), holds);
    }

    /// Rounds that only the driver itself can end, until something holds.
    pub fn until_waiting_long(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.rounds_until(what, LIVENESS, holds);
    }

    fn rounds_until(&mut self, what: &str, timeout: Duration, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < LIVENESS, "never happened: {what}");
            self.round(timeout);
        }
        assert!(began.elapsed() < LIVENESS, "too late: {what}");
    }

    /// Rounds for a while, in which nothing is to happen.
    pub fn linger(&mut self) {
        for _ in 0..5 {
            self.round(Duration::from_millis(10));
        }
    }
}
