//! The seam between a shard and the kernel, in the shape of io_uring: submissions in, completions out.
//!
//! Buffers are owned by whoever works on them: frames to be sent go to the driver by reference ([`Bytes`]) and stay
//! with it until the send is complete; received bytes lie in the driver's buffer, shared by the whole shard, and are
//! lent until the next call. Readiness does not show here: the portable driver adapts.

pub mod portable;
pub mod tls;
#[cfg(target_os = "linux")]
pub mod uring;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

pub use crate::mailbox::Wake;
pub use crate::slab::Key;

/// The frames of one send.
pub type Frames = SmallVec<[Bytes; 4]>;

/// Frames in one send at most.
pub const SEND_FRAMES_MAX: usize = 32;
/// Bytes in one send, about.
pub const SEND_BYTES_MAX: usize = 256 * 1024;

/// What a shard asks of its driver.
pub enum Submission {
    /// Take a connection in under this key, and receive at most so many bytes at once from it.
    Adopt {
        /// Its key from now on.
        key: Key,
        /// The connection, non-blocking.
        stream: TcpStream,
        /// See `Receive`.
        bytes_max: usize,
    },
    /// Receive at most so many bytes at once, again and again; 0 stops it.
    Receive {
        /// Whose.
        key: Key,
        /// So many.
        bytes_max: usize,
    },
    /// Write the frames in order, without the first `offset` bytes. One send per connection at a time.
    Send {
        /// Whose.
        key: Key,
        /// At most [`SEND_FRAMES_MAX`].
        frames: Frames,
        /// Bytes of the first frame that have been written.
        offset: usize,
    },
    /// Close the writing half.
    ShutdownWrite {
        /// Whose.
        key: Key,
    },
    /// Close the connection, whatever is under way.
    Close {
        /// Whose.
        key: Key,
    },
    /// Give the connection back as a socket, without closing it.
    Release {
        /// Whose.
        key: Key,
    },
    /// Accept connections, or stop. Without a listener it does nothing.
    Accept(bool),
}

/// What has happened.
pub enum Completion<'b> {
    /// A connection came in.
    Accepted {
        /// Non-blocking.
        stream: TcpStream,
        /// Whose it is.
        peer: SocketAddr,
    },
    /// Accepting failed: for want of descriptors or memory, mostly. It is stopped until it is asked for again.
    AcceptFailed(io::Error),
    /// Bytes came, lent until the next call.
    Received {
        /// Whose.
        key: Key,
        /// At least one.
        bytes: &'b mut [u8],
    },
    /// The peer has closed its writing half, or the connection is broken. Nothing more is received.
    Ended {
        /// Whose.
        key: Key,
    },
    /// A send is complete; so many bytes were written, not always all.
    Sent {
        /// Whose.
        key: Key,
        /// How many, or why none.
        result: io::Result<usize>,
    },
    /// The last word of a connection that was closed: its key may be used for another.
    Closed {
        /// Whose.
        key: Key,
    },
    /// The last word of a connection that was released.
    Released {
        /// Whose.
        key: Key,
        /// What it is now.
        stream: Stream,
    },
}

/// A connection that has left its driver; its socket is non-blocking.
pub enum Stream {
    /// A socket.
    Plain(TcpStream),
    /// A socket, and the TLS that is spoken on it.
    Tls(Box<tls::Detached>),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

/// A driver. One per shard, used by its thread only.
///
/// * Every connection adopted has exactly one last word: `Closed` or `Released`.
/// * After `Close` or `Release` nothing but the last word comes for the key.
/// * Every `Send` is answered by one `Sent`, unless the connection is closed or released first. That
///   everything could be written at once does not end a `wait`: such a `Sent` may come as late as whatever comes next.
///   Whoever cannot go on without it waits for no time once; any other `Sent` ends the next `wait`.
/// * `wait` begins what was submitted; a driver may begin it sooner.
pub trait Driver {
    /// Puts something in line.
    fn submit(&mut self, submission: Submission);

    /// Waits until something has happened, the time is up, or the shard is woken.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next completion; `None` means: wait again.
    fn next(&mut self) -> Option<Completion<'_>>;

    /// How others wake this driver out of `wait`.
    fn wake(&self) -> Wake;

    /// Connections that it can have at once. Keys with higher slots are not to be adopted.
    fn connections_max(&self) -> usize {
        usize::MAX
    }
}
