//! The io_uring driver: one ring per shard, direct descriptors, one ring of receive buffers for all connections.
//!
//! What it costs is decided here:
//!
//! * A connection is a slot of the ring's own table of files, the same slot as the session's: no descriptor of the
//!   process, no map. Nothing is given up before the last completion that names the slot has come.
//! * A quiet connection has a multishot poll armed, which takes less than a third of the kernel memory of a receive.
//!   Bytes are then fetched by a receive that never waits. A connection that goes on talking gets a multishot receive
//!   instead, until it has been silent for a while: then each message costs one completion and no submission.
//! * Whatever a round submits goes to the kernel in one call, the same that waits for what comes next.
//! * Frames are sent from where they lie: they belong to the driver until their send is complete. A send is tried first,
//!   and the kernel is silent where it succeeds: who sleeps is not woken to hear that.
//!
//! Its rooms: [`ring`] talks to the kernel, [`buffers`] holds the receive buffers, [`sends`] what is being sent,
//! [`connection`] the state of a slot, [`probe`] finds out whether all this works here. `unsafe` stands in the first
//! three only.

mod accept;
mod buffers;
mod connection;
mod probe;
mod reading;
mod ring;
mod sends;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::accept::Acceptor;
use self::buffers::Buffers;
use self::connection::{Connection, Leaving, Receiving};
pub use self::probe::{Refusal, probe};
use self::ring::{Completed, Kind, Operation, Ring};
use self::sends::Sends;
use super::{Completion, Driver, Submission};
use crate::mailbox::Wake;
use crate::slab::{Key, Table};

/// How long what is under way is waited for when the driver is dropped.
const FAREWELL: Duration = Duration::from_secs(1);

/// See [`Driver`].
pub struct Uring {
    ring: Ring,
    /// Given back to the kernel at the next call.
    lent: Option<u16>,
    buffers: Buffers,
    sends: Sends,
    connections: Table<Option<Connection>>,
    acceptor: Option<Acceptor>,
    /// What the kernel has completed and nobody has looked at.
    completed: VecDeque<Completed>,
    done: VecDeque<Done>,
    /// To be received from when the next round begins.
    reads: Vec<Key>,
    /// Those with a multishot receive, in the order in which they are to be looked at again, and when.
    busy: VecDeque<(Key, u32)>,
    waker: Arc<File>,
    started: Instant,
    now_ms: u32,
    /// Whoever was silent for so long is quiet again.
    quiet_ms: u32,
    /// The ring belongs to the thread that uses it first.
    enabled: bool,
}

/// A completion without borrowed bytes.
enum Done {
    Accepted(TcpStream, SocketAddr),
    AcceptFailed(io::Error),
    Received(Key, u16, usize),
    Ended(Key),
    Sent(Key, io::Result<usize>),
    Closed(Key),
    Released(Key, TcpStream),
}

impl Uring {
    /// A driver for so many connections at most; one of the shards has the listener. The thread that uses it first is
    /// the only one that may use it.
    pub fn new(listener: Option<TcpListener>, connections_max: usize) -> io::Result<Self> {
        let mut ring = Ring::new(connections_max)?;
        let buffers = Buffers::new(&mut ring)?;
        Ok(Self {
            buffers,
            lent: None,
            sends: Sends::default(),
            connections: Table::new(),
            acceptor: listener.map(Acceptor::new).transpose()?,
            completed: VecDeque::new(),
            done: VecDeque::new(),
            reads: Vec::new(),
            busy: VecDeque::new(),
            waker: Arc::new(File::from(ring::event_counter()?)),
            started: Instant::now(),
            now_ms: 0,
            quiet_ms: reading::QUIET_MS,
            enabled: false,
            ring,
        })
    }

    /// Takes connections for quiet after a shorter silence, for tests.
    #[must_use]
    pub fn quiet_after(mut self, quiet_ms: u32) -> Self {
        self.quiet_ms = quiet_ms;
        self
    }

    fn connection(&mut self, key: Key) -> Option<&mut Connection> {
        let connection = self.connections.at(key.slot).as_mut()?;
        (connection.generation == key.generation && connection.is_here()).then_some(connection)
    }

    /// Everything that starts something in the kernel goes through here, so that it is counted.
    fn begin(&mut self, slot: u32, operation: Operation) {
        if let Some(connection) = self.connections.at(slot) {
            connection.under_way += 1;
        }
        self.ring.push(slot, operation, &mut self.completed);
    }

    fn enable(&mut self) -> io::Result<()> {
        if self.enabled {
            return Ok(());
        }
        self.ring.enable()?;
        self.enabled = true;
        self.ring.watch(ring::WAKER, self.waker.as_raw_fd(), &mut self.completed);
        if let Some(acceptor) = &self.acceptor {
            self.ring.watch(ring::LISTENER, acceptor.as_raw_fd(), &mut self.completed);
        }
        Ok(())
    }

    fn adopt(&mut self, key: Key, stream: TcpStream, bytes_max: usize) {
        let taken = self.ring.put_file(key.slot, &stream);
        // The table holds the socket from here on.
        drop(stream);
        *self.connections.at(key.slot) = Some(Connection::new(key.generation, clamp(bytes_max)));
        match taken {
            Ok(()) => self.arm(key),
            Err(error) => {
                tracing::error!(%error, slot = key.slot, "the ring's table does not take a connection");
                self.done.push_back(Done::Ended(key));
            }
        }
    }

    fn send(&mut self, key: Key, frames: super::Frames, offset: usize) {
        let Some(connection) = self.connection(key) else { return };
        debug_assert!(connection.send.is_none(), "one send at a time");
        let send = self.sends.put(frames, offset);
        let operation = Operation::TrySend(self.sends.outgoing(send));
        if let Some(connection) = self.connections.at(key.slot) {
            connection.send = Some(send);
        }
        self.begin(key.slot, operation);
    }

    /// Cancels whatever would wait; the rest follows when the last completion has come. Each by its own name: cancelled
    /// by its socket the kernel would look through everybody's, which in a storm costs a shard seconds.
    fn leave(&mut self, key: Key, leaving: Leaving) {
        let Some(connection) = self.connection(key) else { return };
        let closes = matches!(leaving, Leaving::Close);
        connection.leaving = leaving;
        let (polling, sending) = (connection.polling, connection.send.is_some());
        let receiving = connection.receiving == Receiving::Many;
        if polling {
            self.begin(key.slot, Operation::CancelPoll);
        }
        if receiving {
            self.begin(key.slot, Operation::CancelReceive);
        }
        if sending {
            self.begin(key.slot, Operation::CancelSend);
        }
        if closes {
            self.begin(key.slot, Operation::Close);
        } else {
            self.step_release(key.slot);
        }
    }

    /// Nothing under way any more: the socket becomes a descriptor, and then leaves the table.
    fn step_release(&mut self, slot: u32) {
        let Some(connection) = self.connections.at(slot) else { return };
        if matches!(connection.leaving, Leaving::Release) && connection.under_way == 0 {
            connection.leaving = Leaving::Installing;
            self.begin(slot, Operation::Install);
        }
    }

    /// What the kernel has completed, for whom it may concern.
    fn handle(&mut self, completed: Completed) {
        match completed.slot() {
            ring::WAKER => self.watch_again(&completed, self.waker.as_raw_fd()),
            ring::LISTENER => self.listener_is_ready(&completed),
            slot => self.handle_slot(slot, &completed),
        }
    }

    fn watch_again(&mut self, completed: &Completed, descriptor: i32) {
        if !completed.more() {
            self.ring.watch(completed.slot(), descriptor, &mut self.completed);
        }
    }

    fn listener_is_ready(&mut self, completed: &Completed) {
        let Some(acceptor) = &mut self.acceptor else { return };
        acceptor.is_ready();
        let descriptor = acceptor.as_raw_fd();
        self.watch_again(completed, descriptor);
    }

    fn handle_slot(&mut self, slot: u32, completed: &Completed) {
        let Some(connection) = self.connections.at(slot).as_mut() else {
            debug_assert!(false, "a completion for an empty slot");
            return;
        };
        if !completed.more() {
            connection.under_way -= 1;
        }
        let key = Key { slot, generation: connection.generation };
        match completed.kind() {
            Kind::Poll => self.polled(key, completed),
            Kind::Receive => self.received(key, completed),
            Kind::TrySend if completed.found_no_room() => self.send_when_there_is_room(key),
            Kind::TrySend | Kind::Send => self.sent(key, completed.result()),
            Kind::Install => self.installed(key, completed.result()),
            Kind::Cancel | Kind::Close | Kind::Shutdown => {}
        }
        self.finish_leaving(key);
    }

    fn send_when_there_is_room(&mut self, key: Key) {
        match self.connection(key).and_then(|connection| connection.send) {
            Some(send) => {
                let operation = Operation::Send(self.sends.outgoing(send));
                self.begin(key.slot, operation);
            }
            // It has left meanwhile.
            None => self.sent(key, Ok(0)),
        }
    }

    fn sent(&mut self, key: Key, result: io::Result<usize>) {
        let Some(connection) = self.connections.at(key.slot) else { return };
        let is_here = connection.is_here();
        if let Some(send) = connection.send.take() {
            self.sends.finish(send);
        }
        if is_here {
            self.done.push_back(Done::Sent(key, result));
        }
    }

    fn installed(&mut self, key: Key, result: io::Result<usize>) {
        let Some(connection) = self.connections.at(key.slot) else { return };
        connection.leaving = match result.map(ring::own) {
            Ok(socket) => Leaving::Released(socket),
            Err(error) => {
                tracing::error!(%error, "a connection could not be handed over");
                Leaving::Close
            }
        };
        self.begin(key.slot, Operation::Close);
    }

    /// The last word, once nothing is under way.
    fn finish_leaving(&mut self, key: Key) {
        self.step_release(key.slot);
        let place = self.connections.at(key.slot);
        let Some(connection) = place else { return };
        if connection.under_way > 0 || connection.is_here() {
            return;
        }
        let Some(Connection { leaving, .. }) = place.take() else { return };
        self.done.push_back(match leaving {
            Leaving::Released(socket) => released(key, socket),
            _ => Done::Closed(key),
        });
    }

    fn advance(&mut self) -> Option<Done> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            let Some(completed) = self.completed.pop_front() else { break };
            self.handle(completed);
        }
        self.acceptor.as_mut()?.next()
    }

    fn give_back_lent(&mut self) {
        if let Some(buffer) = self.lent.take() {
            self.buffers.give_back(buffer);
        }
    }
}

impl Driver for Uring {
    fn submit(&mut self, submission: Submission) {
        if let Err(error) = self.enable() {
            // Waiting fails in the same way, and ends the shard.
            return tracing::error!(%error, "the ring cannot be enabled");
        }
        match submission {
            Submission::Adopt { key, stream, bytes_max } => self.adopt(key, stream, bytes_max),
            Submission::Receive { key, bytes_max } => self.receive(key, clamp(bytes_max)),
            Submission::Send { key, frames, offset } => self.send(key, frames, offset),
            Submission::ShutdownWrite { key } => {
                if self.connection(key).is_some() {
                    self.begin(key.slot, Operation::Shutdown);
                }
            }
            Submission::Close { key } => self.leave(key, Leaving::Close),
            Submission::Release { key } => self.leave(key, Leaving::Release),
            Submission::Accept(accepting) => {
                if let Some(acceptor) = &mut self.acceptor {
                    acceptor.accept(accepting);
                }
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.enable()?;
        self.give_back_lent();
        self.now_ms = self.started.elapsed().as_millis() as u32;
        self.calm_the_silent();
        self.begin_reads();
        let acceptor_has_more = self.acceptor.as_mut().is_some_and(Acceptor::begin_round);
        let at_once = acceptor_has_more || !self.done.is_empty() || !self.completed.is_empty();
        self.ring.wait(if at_once { Some(Duration::ZERO) } else { timeout }, &mut self.completed)
    }

    fn next(&mut self) -> Option<Completion<'_>> {
        self.give_back_lent();
        Some(match self.advance()? {
            Done::Accepted(stream, peer) => Completion::Accepted { stream, peer },
            Done::AcceptFailed(error) => Completion::AcceptFailed(error),
            Done::Received(key, buffer, bytes) => {
                self.lent = Some(buffer);
                Completion::Received { key, bytes: self.buffers.bytes(buffer, bytes) }
            }
            Done::Ended(key) => Completion::Ended { key },
            Done::Sent(key, result) => Completion::Sent { key, result },
            Done::Closed(key) => Completion::Closed { key },
            Done::Released(key, stream) => Completion::Released { key, stream: stream.into() },
        })
    }

    fn wake(&self) -> Wake {
        let waker = Arc::clone(&self.waker);
        Box::new(move || {
            // A counter that is full wakes too.
            if let Err(error) = (&*waker).write_all(&1_u64.to_ne_bytes())
                && error.kind() != io::ErrorKind::WouldBlock
            {
                tracing::error!(%error, "a shard could not be woken");
            }
        })
    }

    fn connections_max(&self) -> usize {
        self.ring.files_max()
    }
}

impl Drop for Uring {
    /// The kernel may still read from frames and write into buffers: they go when it has let go of them.
    fn drop(&mut self) {
        if !self.enabled {
            return;
        }
        let until = Instant::now() + FAREWELL;
        self.ring.cancel_everything(&mut self.completed);
        while self.ring.under_way() > 0 && Instant::now() < until {
            if self.ring.wait(Some(Duration::from_millis(10)), &mut self.completed).is_err() {
                break;
            }
            self.completed.clear();
        }
        if self.ring.under_way() > 0 {
            tracing::error!(under_way = self.ring.under_way(), "the ring does not let go: its memory is left to it");
            self.sends.leak();
            self.buffers.leak();
        }
    }
}

fn released(key: Key, socket: OwnedFd) -> Done {
    let stream = TcpStream::from(socket);
    match stream.set_nonblocking(true) {
        Ok(()) => Done::Released(key, stream),
        Err(_) => Done::Closed(key),
    }
}

fn clamp(bytes_max: usize) -> u32 {
    u32::try_from(bytes_max).unwrap_or(u32::MAX)
}
