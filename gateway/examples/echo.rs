//! An echo of WebSocket messages for the Autobahn suite: the gateway's driver, and the session's handshake and codec,
//! without the chat above them. It is no part of the product.
//!
//! `echo portable` (or `uring`) listens on a free port of the loopback interface and says which on its first line, or
//! why this machine refuses the driver. With `tls` after it, TLS is spoken with a certificate made for the occasion.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use roost_gateway::Certificates;
use roost_gateway::driver::portable::Portable;
use roost_gateway::driver::tls::Tls;
#[cfg(target_os = "linux")]
use roost_gateway::driver::uring::{self, Uring};
use roost_gateway::driver::{Completion, Driver, Frames, Key, SEND_BYTES_MAX, SEND_FRAMES_MAX, Submission};
use roost_session::framing::handshake::{Handshake, OriginPolicy, Step};
use roost_session::framing::websocket::{
    CloseState, Decoder, Event, Limits, MessageKind, Opcode, close_frame, encode_frame, pong_frame,
};
use slab::Slab;

/// The suite's largest message, and its most fragments (of 64 bytes).
const LIMITS: Limits = Limits { message_bytes_max: 16 << 20, message_fragments_max: 1 << 20 };
/// Received at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// With so many bytes to be sent, nothing more is read: the peer is to take them first.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// The suite opens one at a time.
#[cfg(target_os = "linux")]
const CONNECTIONS_MAX: usize = 64;

fn main() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    match std::env::args().nth(1).as_deref() {
        Some("portable") => run(address, Portable::new(Some(listener))?),
        #[cfg(target_os = "linux")]
        Some("uring") => match uring::probe() {
            Ok(()) => run(address, Uring::new(Some(listener), CONNECTIONS_MAX)?),
            Err(refusal) => {
                println!("refused: {refusal}");
                Ok(())
            }
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "say which driver: portable or uring")),
    }
}

fn run(address: SocketAddr, driver: impl Driver) -> io::Result<()> {
    if std::env::args().nth(2).as_deref() != Some("tls") {
        println!("ws://{address}");
        return Echo::new(driver).run();
    }
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(io::Error::other)?;
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, pair.cert.pem())?;
    std::fs::write(&key, pair.signing_key.serialize_pem())?;
    let certificates = Certificates::open(&certificate, &key).map_err(io::Error::other)?;
    drop(folder);
    println!("wss://{address}");
    Echo::new(Tls::new(driver, certificates.config())).run()
}

struct Echo<D> {
    driver: D,
    origins: OriginPolicy,
    connections: Slab<Connection>,
    /// Of the next connection.
    generation: u32,
    /// Somebody may have something to do when its send is complete.
    awaits_sent: bool,
}

struct Connection {
    key: Key,
    stage: Stage,
    close: CloseState,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Bytes of the first frame that have been written.
    offset: usize,
    sending: bool,
    /// What the driver was last told to receive at once.
    receives: usize,
    shut_down: bool,
}

enum Stage {
    Opening(Handshake),
    Open(Decoder),
    /// What comes is not read any more.
    Over,
}

impl<D: Driver> Echo<D> {
    fn new(driver: D) -> Self {
        Self { driver, origins: OriginPolicy::default(), connections: Slab::new(), generation: 0, awaits_sent: false }
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let at_once = std::mem::take(&mut self.awaits_sent).then_some(Duration::ZERO);
            self.driver.wait(at_once)?;
            while self.step() {}
        }
    }

    /// Deals with one completion; false: there is none.
    fn step(&mut self) -> bool {
        let Some(completion) = self.driver.next() else { return false };
        let key = match completion {
            Completion::Accepted { stream, .. } => {
                let place = self.connections.vacant_entry();
                let key = Key { slot: place.key() as u32, generation: self.generation };
                self.generation += 1;
                place.insert(Connection::new(key));
                self.driver.submit(Submission::Adopt { key, stream, bytes_max: RECEIVE_BYTES });
                return true;
            }
            Completion::Received { key, bytes } => {
                self.connections[key.slot as usize].receive(bytes, &self.origins);
                key
            }
            Completion::Sent { key, result: Ok(bytes) } => {
                self.connections[key.slot as usize].sent(bytes);
                key
            }
            Completion::Ended { key } | Completion::Sent { key, result: Err(_) } => {
                self.driver.submit(Submission::Close { key });
                return true;
            }
            Completion::Closed { key } => {
                self.connections.remove(key.slot as usize);
                return true;
            }
            Completion::AcceptFailed(error) => panic!("the suite opens one connection at a time: {error}"),
            Completion::Released { .. } => unreachable!("nothing is released"),
        };
        let connection = &mut self.connections[key.slot as usize];
        assert_eq!(connection.key, key, "a completion of an earlier connection");
        connection.settle(&mut self.driver);
        self.awaits_sent |= connection.sending;
        true
    }
}

impl Connection {
    fn new(key: Key) -> Self {
        Self {
            key,
            stage: Stage::Opening(Handshake::new()),
            close: CloseState::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            offset: 0,
            sending: false,
            receives: RECEIVE_BYTES,
            shut_down: false,
        }
    }

    fn receive(&mut self, bytes: &mut [u8], origins: &OriginPolicy) {
        match &mut self.stage {
            Stage::Opening(handshake) => match handshake.receive(bytes, origins) {
                Step::Incomplete => {}
                Step::Upgrade(mut upgrade) => {
                    self.push(upgrade.response.into());
                    self.stage = Stage::Open(Decoder::new());
                    self.receive(&mut upgrade.rest, origins);
                }
                Step::Http(_) => self.stage = Stage::Over,
                Step::Refused(error) => {
                    self.push(error.response().into());
                    self.stage = Stage::Over;
                }
            },
            Stage::Open(_) => self.read_frames(bytes),
            Stage::Over => {}
        }
    }

    fn read_frames(&mut self, mut bytes: &mut [u8]) {
        loop {
            let Stage::Open(decoder) = &mut self.stage else { return };
            match decoder.next(&mut bytes, &LIMITS) {
                Ok(None) => return,
                Ok(Some(Event::Message { kind, payload })) => {
                    let opcode = if kind == MessageKind::Text { Opcode::Text } else { Opcode::Binary };
                    self.push(encode_frame(opcode, payload.len(), |frame| frame.put_slice(&payload)));
                }
                Ok(Some(Event::Ping(payload))) => self.push(pong_frame(&payload)),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close { code, .. })) => {
                    if let Some(reply) = self.close.receive(code) {
                        self.push(close_frame(reply.code, ""));
                    }
                    self.stage = Stage::Over;
                }
                Err(error) => {
                    if self.close.fail() {
                        self.push(close_frame(Some(error.close_code()), ""));
                    }
                    self.stage = Stage::Over;
                }
            }
        }
    }

    fn push(&mut self, frame: Bytes) {
        self.queued_bytes += frame.len();
        self.queue.push_back(frame);
    }

    fn sent(&mut self, bytes: usize) {
        self.sending = false;
        self.queued_bytes -= bytes;
        self.offset += bytes;
        while let Some(first) = self.queue.front()
            && self.offset >= first.len()
        {
            self.offset -= first.len();
            self.queue.pop_front();
        }
    }

    /// Sends what is queued; once all of it is sent and nothing more will be, the peer is to close the connection.
    fn settle(&mut self, driver: &mut impl Driver) {
        let key = self.key;
        if !self.sending && !self.queue.is_empty() {
            let mut bytes = 0;
            let fits = |frame: &&Bytes| {
                let before = bytes;
                bytes += frame.len();
                before < SEND_BYTES_MAX
            };
            let frames: Frames = self.queue.iter().take(SEND_FRAMES_MAX).take_while(fits).cloned().collect();
            self.sending = true;
            driver.submit(Submission::Send { key, frames, offset: self.offset });
        }
        if self.queue.is_empty() && matches!(self.stage, Stage::Over) && !self.shut_down {
            self.shut_down = true;
            driver.submit(Submission::ShutdownWrite { key });
        }
        let receives = if self.queued_bytes < QUEUE_BYTES_MAX { RECEIVE_BYTES } else { 0 };
        if receives != self.receives {
            self.receives = receives;
            driver.submit(Submission::Receive { key, bytes_max: receives });
        }
    }
}
