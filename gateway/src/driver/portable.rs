//! The portable driver: mio's readiness (epoll, kqueue) made into submissions and completions.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::{Completion, Driver, Frames, SEND_FRAMES_MAX, Submission};
use crate::mailbox::Wake;
use crate::slab::{Key, Table};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const EVENTS_MAX: usize = 1024;
/// The shard's one receive buffer.
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections accepted in one round, so that a storm of them leaves time for those that are there.
const ACCEPTS_PER_ROUND: u32 = 64;

/// See [`Driver`].
pub struct Portable {
    poll: Poll,
    waker: Arc<Waker>,
    events: Events,
    listener: Option<TcpListener>,
    accepting: bool,
    accept_ready: bool,
    accepts_left: u32,
    connections: Table<Option<Connection>>,
    /// To be read in this round.
    ready: VecDeque<Key>,
    /// To be read in the next one: a peer that floods us waits for the others.
    again: Vec<Key>,
    done: VecDeque<Done>,
    buffer: Box<[u8]>,
}

struct Connection {
    stream: TcpStream,
    generation: u32,
    bytes_max: u32,
    /// The kernel may have bytes, an end or an error for us.
    readable: bool,
    /// It has an end: only a read of 0 says that everything was read.
    read_closed: bool,
    /// It stands in `ready` or `again`.
    queued: bool,
    /// A send that the socket did not take at once.
    sending: Option<Box<Sending>>,
}

struct Sending {
    frames: Frames,
    offset: usize,
}

/// A completion without borrowed bytes.
enum Done {
    Accepted(TcpStream, SocketAddr),
    AcceptFailed(io::Error),
    Received(Key, usize),
    Ended(Key),
    Sent(Key, io::Result<usize>),
    Closed(Key),
    Released(Key, TcpStream),
}

impl Portable {
    /// A driver; one of the shards has the listener.
    pub fn new(listener: Option<std::net::TcpListener>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut listener = listener.map(TcpListener::from_std);
        if let Some(listener) = &mut listener {
            poll.registry().register(listener, LISTENER, Interest::READABLE)?;
        }
        Ok(Self {
            poll,
            waker,
            events: Events::with_capacity(EVENTS_MAX),
            listener,
            accepting: true,
            accept_ready: false,
            accepts_left: 0,
            connections: Table::new(),
            ready: VecDeque::new(),
            again: Vec::new(),
            done: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        })
    }

    fn connection(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.at(key.slot).as_mut().filter(|connection| connection.generation == key.generation)
    }

    fn take(&mut self, key: Key) -> Option<Connection> {
        self.connection(key)?;
        self.connections.at(key.slot).take()
    }

    fn adopt(&mut self, key: Key, stream: std::net::TcpStream, bytes_max: usize) {
        let mut stream = TcpStream::from_std(stream);
        let token = Token((key.generation as usize) << 32 | key.slot as usize);
        // Both at once and edge-triggered: one call per connection, and none when it turns from reading to writing.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, token, interest);
        let connection = Connection {
            stream,
            generation: key.generation,
            bytes_max: clamp(bytes_max),
            readable: false,
            read_closed: false,
            queued: false,
            sending: None,
        };
        *self.connections.at(key.slot) = Some(connection);
        if registered.is_err() {
            self.done.push_back(Done::Ended(key));
        }
    }

    fn receive(&mut self, key: Key, bytes_max: usize) {
        if let Some(connection) = self.connection(key) {
            connection.bytes_max = clamp(bytes_max);
            self.queue_read(key);
        }
    }

    fn queue_read(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        if connection.readable && connection.bytes_max > 0 && !connection.queued {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    fn send(&mut self, key: Key, frames: Frames, offset: usize) {
        let Some(connection) = self.connection(key) else { return };
        debug_assert!(connection.sending.is_none(), "one send at a time");
        match write(&mut connection.stream, &frames, offset) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.sending = Some(Box::new(Sending { frames, offset }));
            }
            result => self.done.push_back(Done::Sent(key, result)),
        }
    }

    fn handle(&mut self, event: &Seen) {
        let key = Key { slot: event.token.0 as u32, generation: (event.token.0 >> 32) as u32 };
        let Some(connection) = self.connection(key) else { return };
        if event.writable
            && let Some(sending) = connection.sending.take()
        {
            match write(&mut connection.stream, &sending.frames, sending.offset) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.sending = Some(sending),
                result => self.done.push_back(Done::Sent(key, result)),
            }
        }
        let Some(connection) = self.connection(key) else { return };
        connection.readable |= event.readable;
        connection.read_closed |= event.read_closed;
        self.queue_read(key);
    }

    fn advance(&mut self) -> Option<Done> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        if let Some(done) = self.accept() {
            return Some(done);
        }
        while let Some(key) = self.ready.pop_front() {
            if let Some(done) = self.read(key) {
                return Some(done);
            }
        }
        None
    }

    fn accept(&mut self) -> Option<Done> {
        while self.accepting && self.accept_ready && self.accepts_left > 0 {
            self.accepts_left -= 1;
            match self.listener.as_ref()?.accept() {
                Ok((stream, peer)) => return Some(Done::Accepted(stream, peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.accept_ready = false,
                // The peer gave up before we came to it.
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => {
                    self.accepting = false;
                    return Some(Done::AcceptFailed(error));
                }
            }
        }
        None
    }

    fn read(&mut self, key: Key) -> Option<Done> {
        let place = self.connections.at(key.slot).as_mut();
        let connection = place.filter(|connection| connection.generation == key.generation)?;
        connection.queued = false;
        if connection.bytes_max == 0 || !connection.readable {
            return None;
        }
        let room = self.buffer.len().min(connection.bytes_max as usize);
        match connection.stream.read(&mut self.buffer[..room]) {
            Ok(0) => {
                connection.readable = false;
                Some(Done::Ended(key))
            }
            Ok(bytes) => {
                // Less than asked for means that the kernel has no more, which saves a call that would say so.
                connection.readable = bytes == room || connection.read_closed;
                if connection.readable {
                    connection.queued = true;
                    self.again.push(key);
                }
                Some(Done::Received(key, bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.readable = false;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                connection.queued = true;
                self.again.push(key);
                None
            }
            Err(_) => {
                connection.readable = false;
                Some(Done::Ended(key))
            }
        }
    }
}

impl Driver for Portable {
    fn submit(&mut self, submission: Submission) {
        match submission {
            Submission::Adopt { key, stream, bytes_max } => self.adopt(key, stream, bytes_max),
            Submission::Receive { key, bytes_max } => self.receive(key, bytes_max),
            Submission::Send { key, frames, offset } => self.send(key, frames, offset),
            Submission::ShutdownWrite { key } => {
                if let Some(connection) = self.connection(key) {
                    // Fails only where the peer is gone, which the next read says.
                    let _ = connection.stream.shutdown(Shutdown::Write);
                }
            }
            Submission::Close { key } => {
                if self.take(key).is_some() {
                    self.done.push_back(Done::Closed(key));
                }
            }
            Submission::Release { key } => {
                if let Some(mut connection) = self.take(key) {
                    let _ = self.poll.registry().deregister(&mut connection.stream);
                    self.done.push_back(Done::Released(key, connection.stream));
                }
            }
            Submission::Accept(accepting) => self.accepting = accepting,
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.extend(self.again.drain(..));
        self.accepts_left = ACCEPTS_PER_ROUND;
        let busy = !self.ready.is_empty() || !self.done.is_empty() || (self.accepting && self.accept_ready);
        let timeout = if busy { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                LISTENER => self.accept_ready = true,
                WAKER => {}
                _ => self.handle(&Seen::of(event)),
            }
        }
        self.events = events;
        Ok(())
    }

    fn next(&mut self) -> Option<Completion<'_>> {
        Some(match self.advance()? {
            Done::Accepted(stream, peer) => Completion::Accepted { stream: stream.into(), peer },
            Done::AcceptFailed(error) => Completion::AcceptFailed(error),
            Done::Received(key, bytes) => Completion::Received { key, bytes: &mut self.buffer[..bytes] },
            Done::Ended(key) => Completion::Ended { key },
            Done::Sent(key, result) => Completion::Sent { key, result },
            Done::Closed(key) => Completion::Closed { key },
            Done::Released(key, stream) => {
                Completion::Released { key, stream: std::net::TcpStream::from(stream).into() }
            }
        })
    }

    fn wake(&self) -> Wake {
        let waker = Arc::clone(&self.waker);
        Box::new(move || {
            if let Err(error) = waker.wake() {
                tracing::error!(%error, "a shard could not be woken");
            }
        })
    }
}

/// What an event says, without borrowing the list that it stands in.
struct Seen {
    token: Token,
    readable: bool,
    read_closed: bool,
    writable: bool,
}

impl Seen {
    fn of(event: &Event) -> Self {
        let ended = event.is_read_closed() || event.is_error();
        Self {
            token: event.token(),
            readable: event.is_readable() || ended,
            read_closed: ended,
            writable: event.is_writable() || event.is_write_closed() || event.is_error(),
        }
    }
}

fn clamp(bytes_max: usize) -> u32 {
    u32::try_from(bytes_max).unwrap_or(u32::MAX)
}

fn write(stream: &mut TcpStream, frames: &[Bytes], offset: usize) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SEND_FRAMES_MAX];
    let count = frames.len().min(SEND_FRAMES_MAX);
    for (index, frame) in frames[..count].iter().enumerate() {
        slices[index] = IoSlice::new(if index == 0 { &frame[offset..] } else { frame });
    }
    loop {
        match stream.write_vectored(&slices[..count]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
