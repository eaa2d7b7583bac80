//! The listener: polled by the ring, accepted from by system calls.
//!
//! A multishot accept gives no peer address, and a direct descriptor cannot be asked for it. So connections are
//! accepted as ordinary descriptors and moved into a shard's table, which also lets one shard accept for all.
//!
//! The ring polls an epoll that knows the listener, never the listener itself: the kernel takes a ring apart some time
//! after its process was killed, and until then it would hold the port against the process that comes next.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::epoll;

use super::Done;

/// Connections accepted in one round, so that a storm of them leaves time for those that are there.
const ACCEPTS_PER_ROUND: u32 = 64;

pub(super) struct Acceptor {
    listener: TcpListener,
    epoll: OwnedFd,
    accepting: bool,
    ready: bool,
    left: u32,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Self { listener, epoll, accepting: true, ready: false, left: 0 })
    }

    pub(super) fn accept(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    pub(super) fn is_ready(&mut self) {
        self.ready = true;
    }

    /// Whether there is something to accept at once.
    pub(super) fn begin_round(&mut self) -> bool {
        self.left = ACCEPTS_PER_ROUND;
        self.accepting && self.ready
    }

    pub(super) fn next(&mut self) -> Option<Done> {
        while self.accepting && self.ready && self.left > 0 {
            self.left -= 1;
            match self.listener.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(true)?;
                Ok((stream, peer))
            }) {
                Ok((stream, peer)) => return Some(Done::Accepted(stream, peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
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
}

impl AsRawFd for Acceptor {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
