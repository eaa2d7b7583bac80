//! TLS over any driver: ciphertext below, plaintext above, and the same seam on both sides.
//!
//! Idle, a connection keeps rustls's state and nothing else: what comes is decrypted in a buffer that the shard's
//! connections share, and ciphertext lives from its encryption until the kernel has it. Budgets and the answers to sends
//! count plaintext.

mod machine;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConfig;
use smallvec::smallvec;

use super::{Completion, Driver, Frames, Stream, Submission, Wake};
use crate::slab::{Key, Table};
use machine::Machine;
pub use stream::{AsyncStream, Detached};

/// Received at once before the session has a say: a hello fits.
const HANDSHAKE_BYTES: u32 = 4 * 1024;
/// Added to a session's budget, so that a record that fits it needs one read.
const OVERHEAD_BYTES: u32 = 64;
/// The shared buffers keep so much for the next connection.
const SHARED_BYTES_MAX: usize = 128 * 1024;

/// See the module.
pub struct Tls<D> {
    inner: D,
    config: Arc<ServerConfig>,
    connections: Table<Option<Connection>>,
    done: VecDeque<Done>,
    /// With plaintext left over from an earlier receive, which their budgets allow now.
    ready: VecDeque<Key>,
    /// The same, but for the next round.
    again: Vec<Key>,
    /// What was decrypted last: lent to the shard.
    plain: Vec<u8>,
    /// Small frames come together here before they are encrypted.
    gather: Vec<u8>,
    /// Somebody cannot go on before a send is complete.
    awaits_sent: bool,
}

struct Connection {
    generation: u32,
    /// What the session wants at once.
    bytes_max: u32,
    /// What the inner driver was told last.
    receives: u32,
    stage: Stage,
    /// It stands in `ready` or `again`.
    queued: bool,
    /// Nothing more comes; said to the session once it has all that came before.
    ended: bool,
    end_told: bool,
    /// Absent until the first byte comes.
    machine: Option<Box<Machine>>,
    /// Decrypted, and more than the session wanted at once.
    pending: Vec<u8>,
    /// Absent where nothing is on its way out.
    outgoing: Option<Box<Outgoing>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The handshake is under way.
    Opening,
    /// Data flows.
    Open,
    /// The handshake failed; the peer may read why, until it or the session's time ends it.
    Refused,
    /// To be released once what is on its way is out.
    Releasing,
}

#[derive(Default)]
struct Outgoing {
    /// What the inner driver has, and how much of it was written.
    in_flight: Option<(Bytes, usize)>,
    /// Ciphertext that goes next.
    next: Vec<u8>,
    /// Plaintext bytes of the session's send, told once all is written.
    tell: Option<usize>,
    /// Then the writing half is closed.
    shutdown: bool,
}

/// A completion without borrowed bytes.
enum Done {
    /// So many bytes of `plain`.
    Received(Key, usize),
    Accepted(std::net::TcpStream, SocketAddr),
    AcceptFailed(io::Error),
    Ended(Key),
    Sent(Key, io::Result<usize>),
    Closed(Key),
    Released(Key, Stream),
}

impl<D: Driver> Tls<D> {
    /// TLS over a driver.
    pub fn new(inner: D, config: Arc<ServerConfig>) -> Self {
        Self {
            inner,
            config,
            connections: Table::new(),
            done: VecDeque::new(),
            ready: VecDeque::new(),
            again: Vec::new(),
            plain: Vec::new(),
            gather: Vec::new(),
            awaits_sent: false,
        }
    }

    fn connection(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.at(key.slot).as_mut().filter(|connection| connection.generation == key.generation)
    }

    fn take(&mut self, key: Key) -> Option<Connection> {
        self.connection(key)?;
        self.connections.at(key.slot).take()
    }

    fn adopt(&mut self, key: Key, stream: std::net::TcpStream, bytes_max: usize) {
        *self.connections.at(key.slot) = Some(Connection {
            generation: key.generation,
            bytes_max: clamp(bytes_max),
            receives: HANDSHAKE_BYTES,
            stage: Stage::Opening,
            queued: false,
            ended: false,
            end_told: false,
            machine: None,
            pending: Vec::new(),
            outgoing: None,
        });
        self.inner.submit(Submission::Adopt { key, stream, bytes_max: HANDSHAKE_BYTES as usize });
    }

    fn receive(&mut self, key: Key, bytes_max: usize) {
        let Some(connection) = self.connection(key) else { return };
        connection.bytes_max = clamp(bytes_max);
        if connection.is_willing() {
            connection.queued = true;
            self.ready.push_back(key);
        }
        self.tune(key);
    }

    fn send(&mut self, key: Key, frames: &Frames, offset: usize) {
        let place = self.connections.at(key.slot).as_mut();
        let Some(connection) = place.filter(|connection| connection.generation == key.generation) else { return };
        let Some(machine) = connection.machine.as_mut().filter(|_| connection.stage == Stage::Open) else {
            let reason = "the TLS handshake is not complete";
            return self.done.push_back(Done::Sent(key, Err(io::Error::new(io::ErrorKind::NotConnected, reason))));
        };
        let outgoing = connection.outgoing.get_or_insert_default();
        debug_assert!(outgoing.tell.is_none(), "one send at a time");
        match machine.encrypt(frames, offset, &mut self.gather, &mut outgoing.next) {
            Ok(bytes) => {
                outgoing.tell = Some(bytes);
                self.awaits_sent |= offset + bytes < frames.iter().map(Bytes::len).sum();
                self.push(key);
            }
            Err(error) => self.done.push_back(Done::Sent(key, Err(io::Error::other(error)))),
        }
    }

    fn shut_down(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        connection.say_goodbye();
        connection.outgoing.get_or_insert_default().shutdown = true;
        self.push(key);
    }

    /// What is under way is cut off; a connection that is idle is closed in TLS's own way.
    fn close(&mut self, key: Key) {
        let Some(mut connection) = self.take(key) else { return };
        if connection.outgoing.is_none() {
            connection.say_goodbye();
            if let Some(outgoing) = connection.outgoing.filter(|outgoing| !outgoing.next.is_empty()) {
                self.inner.submit(Submission::Send { key, frames: smallvec![outgoing.next.into()], offset: 0 });
            }
        }
        self.inner.submit(Submission::Close { key });
    }

    fn release(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        connection.stage = Stage::Releasing;
        connection.outgoing.get_or_insert_default();
        self.tune(key);
        self.push(key);
    }

    /// Ciphertext came. Returns what of its plaintext is for the session now.
    fn received(&mut self, key: Key, result: Taken) -> Option<Done> {
        if let Err(error) = result {
            tracing::debug!(slot = key.slot, generation = key.generation, %error, "TLS fails");
            self.fail(key);
        }
        self.push(key);
        let connection = self.connection(key)?;
        if let Some(machine) = &connection.machine {
            if connection.stage == Stage::Opening && machine.is_established() {
                connection.stage = Stage::Open;
            }
            connection.ended |= machine.peer_closed();
        }
        let lent = self.portion(key);
        self.tune(key);
        self.tell_end(key);
        lent
    }

    /// Lends what the session wants of `plain`, and keeps the rest for the next round.
    fn portion(&mut self, key: Key) -> Option<Done> {
        let place = self.connections.at(key.slot).as_mut();
        let connection = place.filter(|connection| connection.generation == key.generation)?;
        let wants = match connection.stage {
            Stage::Open if connection.pending.is_empty() => connection.bytes_max as usize,
            _ => 0,
        };
        let bytes = self.plain.len().min(wants);
        connection.pending.extend_from_slice(&self.plain[bytes..]);
        if connection.is_willing() {
            connection.queued = true;
            self.again.push(key);
        }
        (bytes > 0).then_some(Done::Received(key, bytes))
    }

    /// Lends what was left over.
    fn leftover(&mut self, key: Key) -> Option<Done> {
        let place = self.connections.at(key.slot).as_mut();
        let connection = place.filter(|connection| connection.generation == key.generation)?;
        connection.queued = false;
        if !connection.is_willing() {
            return None;
        }
        // Copied, so that the connection is not left with the room of the shared buffer.
        let pending = std::mem::take(&mut connection.pending);
        self.plain.clear();
        self.plain.extend_from_slice(&pending);
        let lent = self.portion(key);
        self.tune(key);
        self.tell_end(key);
        lent
    }

    /// After an error: the alert is on its way. A session that was live ends; a handshake that failed leaves the peer
    /// time to read why, until it goes or the handshake's time is over.
    fn fail(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        match connection.stage {
            Stage::Opening => {
                connection.stage = Stage::Refused;
                connection.outgoing.get_or_insert_default().shutdown = true;
            }
            _ => connection.ended = true,
        }
    }

    /// Says once that the peer has ended, after all that it had sent.
    fn tell_end(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        let tells = connection.ended && connection.pending.is_empty() && connection.stage != Stage::Releasing;
        if tells && !std::mem::replace(&mut connection.end_told, true) {
            self.done.push_back(Done::Ended(key));
        }
    }

    /// Tells the inner driver how much to receive, where that has changed.
    fn tune(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        let wants = match connection.stage {
            Stage::Opening | Stage::Refused => HANDSHAKE_BYTES,
            Stage::Releasing => 0,
            Stage::Open if !connection.pending.is_empty() => 0,
            Stage::Open if connection.bytes_max == 0 => 0,
            Stage::Open => connection.bytes_max.saturating_add(OVERHEAD_BYTES),
        };
        if std::mem::replace(&mut connection.receives, wants) != wants {
            self.inner.submit(Submission::Receive { key, bytes_max: wants as usize });
        }
    }

    /// Gives the inner driver what goes next, or does what waits for everything to be out.
    fn push(&mut self, key: Key) {
        let place = self.connections.at(key.slot).as_mut();
        let Some(connection) = place.filter(|connection| connection.generation == key.generation) else { return };
        let Some(outgoing) = &mut connection.outgoing else { return };
        let goes_on = outgoing.shutdown || connection.stage == Stage::Releasing;
        if outgoing.in_flight.is_some() {
            self.awaits_sent |= goes_on || !outgoing.next.is_empty();
            return;
        }
        if !outgoing.next.is_empty() {
            self.awaits_sent |= goes_on;
            let bytes = Bytes::from(std::mem::take(&mut outgoing.next));
            outgoing.in_flight = Some((bytes.clone(), 0));
            return self.inner.submit(Submission::Send { key, frames: smallvec![bytes], offset: 0 });
        }
        if let Some(bytes) = outgoing.tell {
            self.done.push_back(Done::Sent(key, Ok(bytes)));
        }
        if outgoing.shutdown {
            self.inner.submit(Submission::ShutdownWrite { key });
        }
        connection.outgoing = None;
        if connection.stage == Stage::Releasing {
            self.inner.submit(Submission::Release { key });
        }
    }

    /// The inner driver has written, or cannot.
    fn sent(&mut self, key: Key, result: io::Result<usize>) {
        let place = self.connections.at(key.slot).as_mut();
        let Some(connection) = place.filter(|connection| connection.generation == key.generation) else { return };
        let Some(outgoing) = &mut connection.outgoing else { return };
        let Some((bytes, written)) = &mut outgoing.in_flight else { return };
        let error = match result {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(more) => {
                *written += more;
                if *written < bytes.len() {
                    self.awaits_sent = true;
                    let (frames, offset) = (smallvec![bytes.clone()], *written);
                    return self.inner.submit(Submission::Send { key, frames, offset });
                }
                outgoing.in_flight = None;
                self.awaits_sent |= !outgoing.next.is_empty();
                return self.push(key);
            }
            Err(error) => error,
        };
        let tells = outgoing.tell.is_some();
        connection.outgoing = None;
        if connection.stage == Stage::Releasing {
            return self.inner.submit(Submission::Release { key });
        }
        connection.ended = true;
        match tells {
            true => self.done.push_back(Done::Sent(key, Err(error))),
            false => self.tell_end(key),
        }
    }

    fn released(&mut self, key: Key, stream: Stream) -> Done {
        let connection = self.take(key);
        Done::Released(
            key,
            match (stream, connection) {
                (Stream::Plain(stream), Some(Connection { machine: Some(machine), pending, .. })) => {
                    Stream::Tls(Box::new(Detached::new(stream, machine, pending)))
                }
                (stream, _) => stream,
            },
        )
    }

    fn advance(&mut self) -> Option<Done> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            while let Some(key) = self.ready.pop_front() {
                if let Some(done) = self.leftover(key) {
                    return Some(done);
                }
            }
            let done = match self.inner.next()? {
                Completion::Received { key, bytes } => {
                    let place = self.connections.at(key.slot).as_mut();
                    let connection = place.filter(|connection| connection.generation == key.generation);
                    self.plain.clear();
                    let taken = connection.map(|connection| connection.take(&self.config, bytes, &mut self.plain));
                    taken.and_then(|taken| self.received(key, taken))
                }
                Completion::Ended { key } => {
                    if let Some(connection) = self.connection(key) {
                        connection.ended = true;
                        self.tell_end(key);
                    }
                    None
                }
                Completion::Sent { key, result } => {
                    self.sent(key, result);
                    None
                }
                Completion::Closed { key } => {
                    self.take(key);
                    Some(Done::Closed(key))
                }
                Completion::Released { key, stream } => Some(self.released(key, stream)),
                Completion::Accepted { stream, peer } => Some(Done::Accepted(stream, peer)),
                Completion::AcceptFailed(error) => Some(Done::AcceptFailed(error)),
            };
            if done.is_some() {
                return done;
            }
        }
    }
}

impl<D: Driver> Driver for Tls<D> {
    fn submit(&mut self, submission: Submission) {
        match submission {
            Submission::Adopt { key, stream, bytes_max } => self.adopt(key, stream, bytes_max),
            Submission::Receive { key, bytes_max } => self.receive(key, bytes_max),
            Submission::Send { key, frames, offset } => self.send(key, &frames, offset),
            Submission::ShutdownWrite { key } => self.shut_down(key),
            Submission::Close { key } => self.close(key),
            Submission::Release { key } => self.release(key),
            Submission::Accept(accepting) => self.inner.submit(Submission::Accept(accepting)),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.extend(self.again.drain(..));
        self.plain.clear();
        self.plain.shrink_to(SHARED_BYTES_MAX);
        let awaits_sent = std::mem::take(&mut self.awaits_sent);
        let busy = awaits_sent || !self.ready.is_empty() || !self.done.is_empty();
        self.inner.wait(if busy { Some(Duration::ZERO) } else { timeout })
    }

    fn next(&mut self) -> Option<Completion<'_>> {
        Some(match self.advance()? {
            Done::Received(key, bytes) => Completion::Received { key, bytes: &mut self.plain[..bytes] },
            Done::Accepted(stream, peer) => Completion::Accepted { stream, peer },
            Done::AcceptFailed(error) => Completion::AcceptFailed(error),
            Done::Ended(key) => Completion::Ended { key },
            Done::Sent(key, result) => Completion::Sent { key, result },
            Done::Closed(key) => Completion::Closed { key },
            Done::Released(key, stream) => Completion::Released { key, stream },
        })
    }

    fn wake(&self) -> Wake {
        self.inner.wake()
    }

    fn connections_max(&self) -> usize {
        self.inner.connections_max()
    }
}

type Taken = Result<(), machine::TlsError>;

impl Connection {
    /// Decrypts. What has to be answered waits in `outgoing`.
    fn take(&mut self, config: &Arc<ServerConfig>, bytes: &mut [u8], plain: &mut Vec<u8>) -> Taken {
        if self.stage == Stage::Refused || self.ended {
            return Ok(());
        }
        let machine = match &mut self.machine {
            Some(machine) => machine,
            None => self.machine.insert(Box::new(Machine::new(config)?)),
        };
        let mut out = self.outgoing.as_mut().map(|outgoing| std::mem::take(&mut outgoing.next)).unwrap_or_default();
        let result = machine.receive(bytes, plain, &mut out);
        if !out.is_empty() {
            self.outgoing.get_or_insert_default().next = out;
        }
        result
    }

    /// It has something left over that its session wants, and does not stand in line yet.
    fn is_willing(&self) -> bool {
        !self.pending.is_empty() && self.bytes_max > 0 && !self.queued && self.stage == Stage::Open
    }

    fn say_goodbye(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        if let Some(machine) = &mut self.machine {
            let mut out = self.outgoing.as_mut().map(|outgoing| std::mem::take(&mut outgoing.next)).unwrap_or_default();
            machine.close_notify(&mut out);
            if !out.is_empty() {
                self.outgoing.get_or_insert_default().next = out;
            }
        }
    }
}

fn clamp(bytes_max: usize) -> u32 {
    u32::try_from(bytes_max).unwrap_or(u32::MAX)
}
