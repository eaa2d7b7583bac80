//! One client of the crowd, and what it does with what it receives.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};
use roost_protocol::frames::{Form, ServerBody, ServerFrame};
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

use super::{Crowd, tls, wire};

/// The product's own clients wait a random time below this before they connect again, doubled each time …
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// … up to this.
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// Small, since a crowd of a million is on the same machine as its server.
pub struct Session {
    stream: Option<TcpStream>,
    tls: Option<Box<ClientConnection>>,
    pub state: State,
    /// Attempts since it was last live.
    pub attempts: u8,
    /// A ping of ours is unanswered.
    pub asked: bool,
    /// Answers since the order began.
    pub answers: u32,
    /// The one that is unanswered was due then, as an index of the crowd's `due`.
    pub due: u32,
    /// The beginning of a frame whose end has not come.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Absent,
    Connecting,
    Upgrading,
    Authenticating,
    Live,
}

impl Session {
    pub fn new() -> Self {
        Self {
            stream: None,
            tls: None,
            state: State::Absent,
            attempts: 0,
            asked: false,
            answers: 0,
            due: 0,
            partial: Vec::new(),
        }
    }

    /// A connection under way.
    pub fn connect(
        address: SocketAddr,
        source: IpAddr,
        register: impl FnOnce(&mut TcpStream) -> std::io::Result<()>,
    ) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // The port is chosen when the target is known: one that is free towards anyone takes the kernel milliseconds to find.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            result => result?,
        }
        let mut stream = TcpStream::from_std(socket.into());
        register(&mut stream)?;
        Ok(stream)
    }

    pub fn begin(&mut self, stream: TcpStream) {
        (self.stream, self.state, self.asked) = (Some(stream), State::Connecting, false);
    }

    /// Forgets the connection, and says what it was.
    pub fn end(&mut self) -> State {
        (self.stream, self.tls, self.partial) = (None, None, Vec::new());
        std::mem::replace(&mut self.state, State::Absent)
    }

    /// Cuts the connection as a broken network would: nothing is said, and the server hears of a reset.
    pub fn cut(&mut self) {
        if let Some(stream) = &self.stream {
            // Without it the cut would be a polite end.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// How long to wait before the next attempt.
    pub fn back_off(&mut self) -> Duration {
        let cap = BACKOFF_FIRST.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_MOST);
        self.attempts = self.attempts.saturating_add(1);
        cap.mul_f64(rand::random::<f64>())
    }

    /// False: the connection is gone or full, which no load of ours should make it.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match &mut self.tls {
            // What is said before its handshake is over waits in it.
            Some(tls) => tls.writer().write_all(bytes).is_ok() && tls::flush(tls, stream).is_ok(),
            None => stream.write(bytes).is_ok_and(|written| written == bytes.len()),
        }
    }

    /// What has come, deciphered; `WouldBlock` where there is no more.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Err(ErrorKind::WouldBlock.into()) };
        match &mut self.tls {
            Some(tls) => tls::read(tls, stream, buffer),
            None => stream.read(buffer),
        }
    }
}

/// Both at once and edge-triggered: one call per connection.
pub fn register(registry: &Registry, stream: &mut TcpStream, index: usize) -> std::io::Result<()> {
    registry.register(stream, Token(index), Interest::READABLE | Interest::WRITABLE)
}

/// What was read has an end, or an error.
struct Ended;

impl Crowd {
    pub(super) fn ready(&mut self, index: usize, writable: bool) {
        let session = &mut self.sessions[index];
        if session.state == State::Connecting && writable {
            let failed = session.stream.as_ref().is_none_or(|stream| stream.peer_addr().is_err());
            session.state = State::Upgrading;
            session.tls = self.tls.as_ref().map(tls::begin);
            if failed || !session.write(&wire::upgrade_request(&self.address)) {
                return self.ended(index, Duration::ZERO);
            }
        }
        if self.sessions[index].state != State::Absent && self.read(index).is_err() {
            self.ended(index, Duration::ZERO);
        }
    }

    /// Reads until there is nothing more. In plaintext a read that does not fill the buffer has taken all.
    fn read(&mut self, index: usize) -> Result<(), Ended> {
        loop {
            match self.sessions[index].read(&mut self.buffer) {
                Ok(0) => return Err(Ended),
                Ok(length) => {
                    // Taken out for a moment, so that the crowd can be used meanwhile.
                    let buffer = std::mem::take(&mut self.buffer);
                    let result = self.take_in(index, &buffer[..length]);
                    self.buffer = buffer;
                    result?;
                    if length < self.buffer.len() && self.sessions[index].tls.is_none() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
    }

    fn take_in(&mut self, index: usize, bytes: &[u8]) -> Result<(), Ended> {
        let mut whole = std::mem::take(&mut self.sessions[index].partial);
        if whole.is_empty() {
            let taken = self.understand(index, bytes)?;
            self.sessions[index].partial = bytes[taken..].to_vec();
            return Ok(());
        }
        whole.extend_from_slice(bytes);
        let taken = self.understand(index, &whole)?;
        whole.drain(..taken);
        whole.shrink_to_fit();
        self.sessions[index].partial = whole;
        Ok(())
    }

    /// Says how many bytes it has understood.
    fn understand(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Ended> {
        let mut at = 0;
        if self.sessions[index].state == State::Upgrading {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(0) };
            self.upgraded(index, &bytes[..end])?;
            at = end + 4;
        }
        while let Some((opcode, payload, taken)) = wire::parse(&bytes[at..]) {
            self.frame(index, opcode, payload)?;
            at += taken;
        }
        Ok(at)
    }

    fn upgraded(&mut self, index: usize, head: &[u8]) -> Result<(), Ended> {
        if !head.starts_with(b"HTTP/1.1 101") {
            self.counts.refused += 1;
            let after = String::from_utf8_lossy(head).lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("retry-after").then(|| value.trim().parse().ok())?
            });
            self.ended(index, Duration::from_secs(after.unwrap_or(0)));
            return Ok(());
        }
        match &self.plan {
            Some(plan) => {
                let connect = wire::connect(&plan.token(self.first_user + index));
                self.sessions[index].state = State::Authenticating;
                if self.sessions[index].write(&connect) { Ok(()) } else { Err(Ended) }
            }
            None => {
                self.became_live(index);
                Ok(())
            }
        }
    }

    fn frame(&mut self, index: usize, opcode: u8, payload: &[u8]) -> Result<(), Ended> {
        match opcode {
            1 | 2 if self.plan.is_none() => self.answered(index),
            1 | 2 => return self.product_frame(index, payload),
            8 => {
                if self.counts.closed_by_server == 0 {
                    let (code, reason) = payload.split_at(payload.len().min(2));
                    let code = code.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
                    eprintln!("the server closes: {code} {}", String::from_utf8_lossy(reason));
                }
                self.counts.closed_by_server += 1;
                return Err(Ended);
            }
            9 if !self.sessions[index].write(&wire::control_pong(payload)) => return Err(Ended),
            _ => {}
        }
        Ok(())
    }

    fn product_frame(&mut self, index: usize, payload: &[u8]) -> Result<(), Ended> {
        let decoded = ServerFrame::decode(Form::Binary, Bytes::copy_from_slice(payload));
        let Ok(Some(frame)) = decoded else { return Err(Ended) };
        match frame.body {
            ServerBody::Connected(_) => self.became_live(index),
            ServerBody::Message(_) | ServerBody::Pong => self.answered(index),
            ServerBody::Ping if !self.sessions[index].write(&wire::pong()) => return Err(Ended),
            ServerBody::Retry { .. } | ServerBody::Rejected { .. } => self.counts.not_taken += 1,
            ServerBody::Error { retry_after_ms, fatal: true, code, .. } => {
                self.counts.refused += 1;
                if self.counts.refused == 1 {
                    eprintln!("refused: {code:?}");
                }
                self.ended(index, Duration::from_millis(retry_after_ms.unwrap_or(0)));
            }
            _ => {}
        }
        Ok(())
    }

    /// A message or a pong: its latency counts from when it was due.
    fn answered(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let due = if session.asked { session.due } else { session.answers };
        session.answers += 1;
        session.asked = false;
        self.counts.answers += 1;
        if let Some(due) = self.due.get(due as usize) {
            let late = Instant::now().saturating_duration_since(*due);
            // The histogram grows up to an hour; what is later still counts as that.
            self.latencies.saturating_record(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 64, "{} bytes", size_of::<Session>());
    }
}
