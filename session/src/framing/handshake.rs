//! The first bytes of a connection: a WebSocket upgrade to be answered here, plain HTTP to be handed over, or a refusal.

mod error;
mod head;
mod origin;
mod upgrade;

use std::fmt;

use bytes::Bytes;

pub use error::HttpError;
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX, Request};
pub use origin::{InvalidOrigin, OriginPolicy};
pub use upgrade::{Bearer, CONNECT_PATH, Subprotocol};

use head::HeadScan;
use upgrade::Route;

/// A connection whose request head has not fully arrived. It holds no more than [`HEAD_BYTES_MAX`] and the last piece.
///
/// [`receive`](Self::receive) takes bytes until it decides; the deadline is the driver's.
#[derive(Default)]
pub struct Handshake {
    received: Vec<u8>,
    scan: HeadScan,
    decided: bool,
}

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read on.
    Incomplete,
    /// A session begins.
    Upgrade(Box<Upgrade>),
    /// Not for us: the HTTP server is to get the connection.
    Http(Box<PlainHttp>),
    /// [`HttpError::response`] is to be written, and the connection closed.
    Refused(HttpError),
}

/// An upgrade that passed every rule of framing and origin. Whether the token is good is for the session to say.
#[derive(PartialEq, Eq)]
pub struct Upgrade {
    /// The 101 answer, to be written before anything else.
    pub response: Vec<u8>,
    /// The form of the frames, chosen in the client's order of preference.
    pub subprotocol: Subprotocol,
    /// The token of an `Authorization: Bearer` header.
    pub bearer: Option<Bearer>,
    /// The head, for the forwarding headers of configured proxies.
    pub request: Request,
    /// What came after the head: the first bytes for the frame decoder. Mostly empty.
    pub rest: Vec<u8>,
}

/// A well-formed request that is no WebSocket upgrade on [`CONNECT_PATH`].
#[derive(PartialEq, Eq)]
pub struct PlainHttp {
    /// The parsed head, should somebody want to look.
    pub request: Request,
    /// Every byte received so far, from the first one: what the HTTP server must be given to read again.
    pub received: Bytes,
}

impl Handshake {
    /// For a connection just accepted; it allocates nothing until bytes come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the connection. Each byte is looked at once, however they are cut.
    ///
    /// # Panics
    ///
    /// If called again after a step other than [`Step::Incomplete`].
    pub fn receive(&mut self, bytes: &[u8], origins: &OriginPolicy) -> Step {
        assert!(!self.decided, "the handshake is over");
        let step = match self.scan.push(bytes) {
            Ok(None) => {
                self.received.extend_from_slice(bytes);
                return Step::Incomplete;
            }
            Ok(Some(head_end)) => {
                let head_bytes = self.received.len() + head_end;
                self.received.extend_from_slice(bytes);
                let received = Bytes::from(std::mem::take(&mut self.received));
                decide(received, head_bytes, origins).unwrap_or_else(Step::Refused)
            }
            Err(error) => Step::Refused(error),
        };
        *self = Self { decided: true, ..Self::default() };
        step
    }
}

fn decide(received: Bytes, head_bytes: usize, origins: &OriginPolicy) -> Result<Step, HttpError> {
    let request = Request::parse(received.slice(..head_bytes))?;
    match upgrade::judge(&request, origins)? {
        Route::Http => Ok(Step::Http(Box::new(PlainHttp { request, received }))),
        Route::Upgrade { subprotocol, bearer, response } => {
            let rest = received[head_bytes..].to_vec();
            Ok(Step::Upgrade(Box::new(Upgrade { response, subprotocol, bearer, request, rest })))
        }
    }
}

// Received bytes hold tokens and messages: these types can be logged, but show none of them.

impl fmt::Debug for Handshake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Handshake {{ {} bytes received }}", self.received.len())
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, subprotocol, rest, .. } = self;
        write!(out, "Upgrade {{ {request:?}, {subprotocol:?}, {} bytes after it }}", rest.len())
    }
}

impl fmt::Debug for PlainHttp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PlainHttp {{ {:?}, {} bytes received }}", self.request, self.received.len())
    }
}
