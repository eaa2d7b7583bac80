//! From nothing to `connected`: a TCP connection from one of our addresses, the WebSocket handshake by fastwebsockets,
//! then the socket goes to io_uring and `connect` is the first frame on it.
//!
//! The handshake runs on tokio's own sockets, which fastwebsockets and hyper want; it is over in a moment, and what
//! they allocate for it is gone before the session sits idle.

use std::borrow::Cow;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::{WebSocketError, handshake};
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use roost_protocol::Form;
use roost_protocol::frames::{ClientBody, ClientFrame, ServerBody, ServerFrame};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_uring::buf::BoundedBuf as _;

use super::framing::{Frame, Opcode, Parser};
use super::shard::{Link, Shard};
use crate::task::{Target, Trouble};

/// Why there is no session.
#[derive(Debug)]
pub struct Refused {
    /// For the figures: few different texts.
    pub reason: String,
    /// How long the server asks to wait.
    pub wait_ms: Option<u64>,
    /// The close code, where there was one.
    pub code: Option<u16>,
}

impl Refused {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), wait_ms: None, code: None }
    }
}

/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);
/// What a slow reader's kernel takes for it.
const SLOW_RECEIVE_BYTES: usize = 16 * 1024;

/// One attempt for a session.
pub async fn open(shard: &Shard, index: u32) -> Result<(Rc<Link>, Parser), Refused> {
    let _permit = shard.openings.acquire().await.map_err(|_| Refused::because("the run is over"))?;
    let number = (shard.task.first + index) as usize;
    let target = &shard.task.targets[number % shard.task.targets.len()];
    let upgraded = tokio::time::timeout(ATTEMPT, upgrade(shard, index, target)).await;
    let (stream, early) = upgraded.map_err(|_| Refused::because("no handshake in time"))??;
    let link = Link::new(tokio_uring::net::TcpStream::from_std(stream));
    let mut parser = Parser::new(&early);
    match tokio::time::timeout(ATTEMPT, connect(shard, index, &link, &mut parser)).await {
        Ok(connected) => connected.map(|()| (link, parser)),
        Err(_) => {
            // The read that waits holds the socket: without an end it would stay open for ever.
            link.end_reading();
            Err(Refused::because("no connected in time"))
        }
    }
}

async fn upgrade(shard: &Shard, index: u32, target: &Target) -> Result<(StdStream, Bytes), Refused> {
    let stream = dial(shard, index, target.address).await.map_err(|error| Refused::because(kind(&error)))?;
    let head = Arc::new(Mutex::new(Vec::new()));
    let overheard = Overheard { stream, head: Arc::clone(&head) };
    let request = Request::get(&target.path)
        .header("Host", &target.host)
        .header("Upgrade", "websocket")
        .header("Connection", "upgrade")
        .header("Sec-WebSocket-Key", handshake::generate_key())
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Protocol", Form::Binary.subprotocol())
        .body(Empty::<Bytes>::new())
        .map_err(|_| Refused::because("the URL makes no request"))?;
    let (socket, _) = handshake::client(&OnThisThread, request, overheard).await.map_err(|error| {
        let wait_ms = retry_after_ms(&head.lock());
        let reason = match error {
            WebSocketError::InvalidStatusCode(code) => format!("HTTP {code}"),
            _ => "no handshake".to_owned(),
        };
        Refused { reason, wait_ms, code: None }
    })?;
    let parts = socket.into_inner().into_inner().downcast::<TokioIo<Overheard>>();
    let parts = parts.map_err(|_| Refused::because("another socket came back"))?;
    let stream = parts.io.into_inner().stream.into_std().map_err(|error| Refused::because(kind(&error)))?;
    // io_uring waits by itself only on a socket that blocks.
    stream.set_nonblocking(false).map_err(|error| Refused::because(kind(&error)))?;
    Ok((stream, parts.read_buf))
}

async fn dial(shard: &Shard, index: u32, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Cut without a word, which the server sees as a reset; and the port is free at once, where a hundred thousand
    // connections in TIME_WAIT would stand in the way of the next run.
    socket.set_linger(Some(Duration::ZERO))?;
    if shard.task.trouble == Trouble::Slow && shard.troubled(index) {
        socket.set_recv_buffer_size(SLOW_RECEIVE_BYTES)?;
    }
    let sources = &shard.task.sources;
    if !sources.is_empty() {
        let source = sources[(shard.task.first + index) as usize % sources.len()];
        // The port is chosen when the target is known, as for every other connection: chosen here it would have to be one
        // that nobody on this machine uses towards anyone, and looking for one takes the kernel milliseconds.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// Sends `connect` and waits for `connected`.
async fn connect(shard: &Shard, index: u32, link: &Rc<Link>, parser: &mut Parser) -> Result<(), Refused> {
    let user = shard.user(index);
    let token = shard.signer.token(shard.task.plan.user(user), shard.task.plan.device(user));
    let body = ClientBody::Connect { token: Some(Cow::Owned(token)), device_id: None, client: "roost-swarm".into() };
    link.write(Opcode::Binary, &ClientFrame { id: None, body }.encode(Form::Binary));
    let mut wait_ms = None;
    loop {
        while let Some(frame) = parser.next().map_err(|broken| Refused::because(broken.0))? {
            match frame {
                Frame::Binary(bytes) => match decode(bytes)? {
                    Some(ServerBody::Connected(_)) => return Ok(()),
                    Some(ServerBody::Error { code, retry_after_ms, .. }) => {
                        wait_ms = retry_after_ms;
                        if retry_after_ms.is_none() {
                            return Err(Refused::because(format!("error {code}")));
                        }
                    }
                    Some(ServerBody::Goaway { reconnect_in_ms, .. }) => wait_ms = Some(reconnect_in_ms),
                    _ => {}
                },
                Frame::Close(code) => {
                    return Err(Refused { reason: format!("close {code}"), wait_ms, code: Some(code) });
                }
                Frame::Ping(_) | Frame::Pong => {}
            }
        }
        let buffer = parser.lend(512);
        let filled = buffer.len();
        let (read, buffer) = link.stream.read(buffer.slice(filled..)).await;
        parser.give_back(buffer.into_inner());
        match read {
            Ok(0) => return Err(Refused { reason: "closed before connected".into(), wait_ms, code: None }),
            Ok(_) => {}
            Err(error) => return Err(Refused { reason: kind(&error), wait_ms, code: None }),
        }
    }
}

/// A frame of the server, if it is of a kind that this build knows.
pub fn decode(bytes: &[u8]) -> Result<Option<ServerBody>, Refused> {
    let frame = ServerFrame::decode(Form::Binary, Bytes::copy_from_slice(bytes));
    Ok(frame.map_err(|_| Refused::because("a frame does not decode"))?.map(|frame| frame.body))
}

/// Few different texts, whatever the ports in a message are.
fn kind(error: &std::io::Error) -> String {
    error.kind().to_string()
}

/// The wait that a refusal asks for: `Retry-After` in seconds.
fn retry_after_ms(head: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(head);
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let seconds: u64 = value.trim().parse().ok()?;
        name.eq_ignore_ascii_case("retry-after").then_some(seconds * 1000)
    })
}

/// Bytes of an answer that are kept to look for `Retry-After`: fastwebsockets tells only the status of a refusal.
const HEAD_BYTES: usize = 1024;

/// A socket that remembers the beginning of what it reads.
struct Overheard {
    stream: TcpStream,
    head: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Overheard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        let mut head = self.head.lock();
        let room = HEAD_BYTES.saturating_sub(head.len());
        let new = &into.filled()[before..];
        head.extend_from_slice(&new[..new.len().min(room)]);
        drop(head);
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Runs hyper's side of a handshake.
struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_how_long_to_wait() {
        let head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(retry_after_ms(head), Some(7_000));
        assert_eq!(retry_after_ms(b"HTTP/1.1 403 Forbidden\r\n\r\n"), None);
    }
}
