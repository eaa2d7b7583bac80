//! The ceiling: io_uring on as many threads as are asked for, each with direct descriptors, a ring of provided buffers,
//! multishot receives and sends by pointer to one shared payload, all submitted in batches. No protocol: it never looks at
//! what it receives, beyond finding the end of the HTTP head (so that any WebSocket client can connect) and counting what
//! asks for a broadcast.
//!
//! This is the one module of the benches with `unsafe`: the ring takes pointers, and nothing that would make it safe may
//! stand between the kernel and the figure.
#![allow(unsafe_code, reason = "the ceiling is the bare ring; `cargo xtask check` allows it in this file only")]

use std::alloc::Layout;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{Domain, Socket, Type};

use super::Mode;
use crate::Result;

const SUBMISSIONS: u32 = 4_096;
const COMPLETIONS: u32 = 65_536;
/// The ring's table of descriptors: below the 20,000 that a process may usually have, which bounds it too.
const CONNECTIONS_MAX: u32 = 19_000;
const BUFFERS: u16 = 4_096;
const BUFFER_BYTES: usize = 1_024;
const BUFFER_GROUP: u16 = 0;
/// The answer to the key of RFC 6455's own example, which the load always sends.
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Serves for ever.
pub fn serve(mode: Mode, frame: &Bytes, threads: usize) -> Result<()> {
    if mode == Mode::Broadcast && threads > 1 {
        return Err("a broadcast reaches the connections of one thread only".into());
    }
    let (listener, address) = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let others = (1..threads).map(|_| Ok(listen(address)?.0)).collect::<Result<Vec<_>>>()?;
    let (ended, end) = sync_channel(threads);
    for listener in others.into_iter().chain([listener]) {
        let (ended, frame) = (ended.clone(), frame.clone());
        // A ring belongs to the thread that makes it.
        std::thread::spawn(move || {
            // The first one to end ends all.
            let _ = ended.send(Server::new(mode, frame, listener).and_then(|mut server| server.run()));
        });
    }
    super::announce(address);
    end.recv()?
}

/// One of the listeners of a port, among which the kernel shares out what comes.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    // Inherited by what is accepted, for a direct descriptor cannot be asked for it afterwards.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// What a completion is about; travels in its user data.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    Accept,
    Receive,
    Answer,
    Send,
    Close,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Accept, Self::Receive, Self::Answer, Self::Send, Self::Close];

    fn data(self, slot: u32) -> u64 {
        (self as u64) << 32 | u64::from(slot)
    }

    fn of(data: u64) -> (Self, u32) {
        (Self::ALL[(data >> 32) as usize], data as u32)
    }
}

#[derive(Default)]
struct Connection {
    state: State,
    /// How much of the end of the HTTP head has been seen.
    head_matched: u8,
    /// Broadcast: bytes of a trigger that has not come as a whole.
    trigger_bytes: u32,
    /// Broadcast: sends to do, the one under way included. Each is the whole frame.
    sends: u32,
    /// Bytes of the first of them that are written.
    written: u32,
    /// Echo: received buffers in the order in which they go back, the one under way first.
    echoes: VecDeque<Part>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Handshake,
    Open,
}

/// What is left to echo of one buffer.
#[derive(Clone, Copy)]
struct Part {
    buffer: u16,
    from: u32,
    to: u32,
}

struct Server {
    ring: IoUring,
    buffers: Buffers,
    connections: Vec<Connection>,
    mode: Mode,
    frame: Bytes,
    trigger_bytes: u32,
    listener: TcpListener,
}

impl Server {
    fn new(mode: Mode, frame: Bytes, listener: TcpListener) -> Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(|error| format!("io_uring is not to be had here: {error}"))?;
        ring.submitter().register_files_sparse(CONNECTIONS_MAX)?;
        let buffers = Buffers::register(&ring)?;
        Ok(Self { ring, buffers, connections: Vec::new(), mode, frame, trigger_bytes: 0, listener })
    }

    fn run(&mut self) -> Result<()> {
        self.accept()?;
        let mut completed: Vec<cqueue::Entry> = Vec::new();
        loop {
            self.ring.submit_and_wait(1)?;
            completed.extend(self.ring.completion());
            for entry in completed.drain(..) {
                self.complete(&entry)?;
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Result<()> {
        let (operation, slot) = Operation::of(entry.user_data());
        let more = cqueue::more(entry.flags());
        match operation {
            Operation::Accept => {
                let slot = u32::try_from(entry.result())
                    .map_err(|_| format!("accept: {}", std::io::Error::from_raw_os_error(-entry.result())))?;
                self.accepted(slot)?;
                if !more {
                    self.accept()?;
                }
            }
            Operation::Receive => self.received(slot, entry, more)?,
            Operation::Answer => {}
            Operation::Send => self.sent(slot, entry.result())?,
            Operation::Close => {}
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).allocate_file_index(true).build();
        self.push(accept.user_data(Operation::Accept.data(0)))
    }

    fn accepted(&mut self, slot: u32) -> Result<()> {
        while self.connections.len() <= slot as usize {
            self.connections.push(Connection::default());
        }
        self.connections[slot as usize] = Connection { state: State::Handshake, ..Connection::default() };
        self.receive(slot)
    }

    fn receive(&mut self, slot: u32) -> Result<()> {
        let receive = opcode::RecvMulti::new(Fixed(slot), BUFFER_GROUP).build();
        self.push(receive.user_data(Operation::Receive.data(slot)))
    }

    fn received(&mut self, slot: u32, entry: &cqueue::Entry, more: bool) -> Result<()> {
        let Some(buffer) = cqueue::buffer_select(entry.flags()) else {
            // Without a buffer it is an end, an error, or no buffer was left, which passes.
            return if entry.result() == -libc::ENOBUFS { self.receive(slot) } else { self.close(slot) };
        };
        let length = u32::try_from(entry.result())?;
        if length == 0 {
            self.buffers.give_back(buffer);
            return self.close(slot);
        }
        match (self.connections[slot as usize].state, self.mode) {
            (State::Open, Mode::Echo) => self.echo(slot, Part { buffer, from: 0, to: length })?,
            (State::Open, Mode::Broadcast) => {
                // All triggers are alike: the first one says how long they are.
                if self.trigger_bytes == 0 {
                    self.trigger_bytes = frame_bytes(self.buffers.bytes(buffer, length));
                }
                self.buffers.give_back(buffer);
                let connection = &mut self.connections[slot as usize];
                let bytes = connection.trigger_bytes + length;
                connection.trigger_bytes = bytes % self.trigger_bytes;
                self.broadcast(bytes / self.trigger_bytes)?;
            }
            (State::Handshake, _) => {
                self.handshake(slot, buffer, length)?;
                self.buffers.give_back(buffer);
            }
            (State::Closed, _) => self.buffers.give_back(buffer),
        }
        if more { Ok(()) } else { self.receive(slot) }
    }

    fn handshake(&mut self, slot: u32, buffer: u16, length: u32) -> Result<()> {
        let connection = &mut self.connections[slot as usize];
        for byte in self.buffers.bytes(buffer, length) {
            let matched = usize::from(connection.head_matched);
            connection.head_matched =
                if *byte == HEAD_END[matched] { connection.head_matched + 1 } else { u8::from(*byte == HEAD_END[0]) };
            if usize::from(connection.head_matched) == HEAD_END.len() {
                // The client says nothing more until it is answered.
                connection.state = State::Open;
                let length = u32::try_from(SWITCHING.len())?;
                let answer = opcode::Send::new(Fixed(slot), SWITCHING.as_ptr(), length).build();
                return self.push(answer.user_data(Operation::Answer.data(slot)));
            }
        }
        Ok(())
    }

    fn echo(&mut self, slot: u32, part: Part) -> Result<()> {
        let echoes = &mut self.connections[slot as usize].echoes;
        echoes.push_back(part);
        if echoes.len() == 1 { self.send(slot) } else { Ok(()) }
    }

    fn broadcast(&mut self, frames: u32) -> Result<()> {
        for slot in 0..self.connections.len() as u32 {
            let connection = &mut self.connections[slot as usize];
            if connection.state == State::Open && frames > 0 {
                connection.sends += frames;
                if connection.sends == frames {
                    self.send(slot)?;
                }
            }
        }
        Ok(())
    }

    /// Begins the next send of a connection that has one to do and none under way.
    fn send(&mut self, slot: u32) -> Result<()> {
        let connection = &self.connections[slot as usize];
        let bytes = match connection.echoes.front() {
            Some(part) => &self.buffers.bytes(part.buffer, part.to)[part.from as usize..],
            None => &self.frame[connection.written as usize..],
        };
        let send = opcode::Send::new(Fixed(slot), bytes.as_ptr(), u32::try_from(bytes.len())?);
        let send = send.flags(libc::MSG_NOSIGNAL).build();
        self.push(send.user_data(Operation::Send.data(slot)))
    }

    fn sent(&mut self, slot: u32, result: i32) -> Result<()> {
        let Ok(written) = u32::try_from(result) else {
            return self.close(slot);
        };
        let connection = &mut self.connections[slot as usize];
        let again = match self.mode {
            Mode::Echo => {
                if let Some(part) = connection.echoes.front_mut() {
                    part.from += written;
                    if part.from == part.to {
                        self.buffers.give_back(part.buffer);
                        connection.echoes.pop_front();
                    }
                }
                !connection.echoes.is_empty()
            }
            Mode::Broadcast => {
                connection.written += written;
                if connection.written as usize == self.frame.len() {
                    (connection.written, connection.sends) = (0, connection.sends.saturating_sub(1));
                }
                connection.sends > 0
            }
        };
        if again && connection.state == State::Open { self.send(slot) } else { Ok(()) }
    }

    fn close(&mut self, slot: u32) -> Result<()> {
        let connection = std::mem::take(&mut self.connections[slot as usize]);
        if connection.state == State::Closed {
            return Ok(());
        }
        for part in connection.echoes {
            self.buffers.give_back(part.buffer);
        }
        self.push(opcode::Close::new(Fixed(slot)).build().user_data(Operation::Close.data(slot)))
    }

    fn push(&mut self, entry: squeue::Entry) -> Result<()> {
        loop {
            // SAFETY: every pointer in an entry is of the shared frame, of a static, or of the buffers, all of which live
            // as long as the ring; a buffer is not given back to the kernel before the send from it is complete, or its
            // connection is closed, when what it sends matters to nobody.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            match pushed {
                Ok(()) => return Ok(()),
                Err(_) => self.ring.submit()?,
            };
        }
    }
}

/// The length of the masked frame that begins here, header included.
fn frame_bytes(bytes: &[u8]) -> u32 {
    match bytes {
        [_, length, high, low, ..] if length & 0x7f == 126 => 8 + u32::from(u16::from_be_bytes([*high, *low])),
        [_, length, ..] => 6 + u32::from(length & 0x7f),
        _ => 1,
    }
}

/// The ring of provided buffers and the memory behind it.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> Result<Self> {
        let layout = Layout::array::<BufRingEntry>(usize::from(BUFFERS))?.align_to(4096)?;
        // SAFETY: the layout has a size; the pages are zeroed and live until the process ends.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BufRingEntry>();
        if entries.is_null() {
            return Err("no memory for the ring of buffers".into());
        }
        // SAFETY: `entries` is aligned to a page and has room for so many entries for as long as the process lives.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, BUFFER_GROUP, 0)? };
        let mut buffers = Self { entries, memory: vec![0; usize::from(BUFFERS) * BUFFER_BYTES], tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    /// What the kernel has put into a buffer that it has given us.
    fn bytes(&self, buffer: u16, length: u32) -> &[u8] {
        let from = usize::from(buffer) * BUFFER_BYTES;
        &self.memory[from..from + length as usize]
    }

    fn give_back(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (BUFFERS - 1));
        let memory = self.memory[usize::from(buffer) * BUFFER_BYTES..].as_mut_ptr();
        // SAFETY: `place` is below the number of entries; the kernel does not read one that is not below the tail.
        let entry = unsafe { &mut *self.entries.add(place) };
        entry.set_addr(memory as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry of the ring; the kernel reads it as an atomic.
        unsafe { (*BufRingEntry::tail(self.entries).cast::<AtomicU16>()).store(self.tail, Ordering::Release) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_trigger_is_in_its_header() {
        assert_eq!(frame_bytes(&[0x82, 0x82, 1, 2, 3, 4, 9, 9]), 8);
        assert_eq!(frame_bytes(&[0x82, 0xfe, 0, 200, 1, 2, 3, 4]), 208);
    }
}
