//! HTTP/1.1 over hyper: a listener of our own in the api role, or connections that the gateway hands over.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use bytes::{Buf as _, Bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use roost_session::framing::handshake::{HEAD_BYTES_MAX, HEADERS_MAX, Handshake, HttpError, OriginPolicy, Step};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};
use tower::Service as _;

use crate::config::{CONNECTION_MS_MAX, Config, HEAD_MS_MAX, REQUEST_MS_MAX};
use crate::extract::PeerAddress;

/// A write that makes no progress for this long ends the connection.
const WRITE_STALL_MS_MAX: u64 = 30_000;
/// How long a refused client's bytes are read on, so that the refusal reaches it before a reset does.
const LINGER_MS_MAX: u64 = 1_000;
/// How long accepting pauses where the process is out of descriptors.
const ACCEPT_PAUSE_MS: u64 = 50;

/// Serves the REST interface. Clones share their connections and their end.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    router: Router,
    http: http1::Builder,
    connections: Arc<Semaphore>,
    connections_max: u32,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
    stopping: watch::Sender<bool>,
}

impl Server {
    pub(crate) fn new(router: Router, config: &Config) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(HEAD_MS_MAX))
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX);
        let connections_max = u32::try_from(config.connections_max).unwrap_or(u32::MAX).max(1);
        Self(Arc::new(Inner {
            router,
            http,
            connections: Arc::new(Semaphore::new(connections_max as usize)),
            connections_max,
            per_address: Mutex::default(),
            per_address_max: config.connections_per_address_max,
            stopping: watch::Sender::new(false),
        }))
    }

    /// Accepts and serves connections until [`Server::shut_down`]. With all connections in use it stops accepting.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        let mut stopping = self.0.stopping.subscribe();
        loop {
            let accept = async {
                let permit = Arc::clone(&self.0.connections).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, peer)| (permit, stream, peer))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            };
            match accepted {
                Ok((permit, stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    let server = self.clone();
                    tokio::spawn(async move { server.serve_accepted(permit, stream, peer).await });
                }
                // Out of descriptors, or a client that left already: neither ends the listener.
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }

    /// Serves a connection of which `prefix` has been read already, until it ends. For connections that a gateway has
    /// accepted, checked and counted; a stream of any kind will do.
    pub async fn serve_connection<S>(&self, mut stream: S, prefix: Bytes, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.0.connections).try_acquire_owned() else {
            let busy = HttpError::unavailable("Too many connections: try again soon.", 1);
            return refuse(&mut stream, &busy.response()).await;
        };
        self.serve_http(permit, stream, prefix, peer).await;
    }

    /// Stops accepting, lets the requests under way end, and gives up on the rest after `grace`.
    pub async fn shut_down(&self, grace: Duration) {
        self.0.stopping.send_replace(true);
        // Every connection holds one permit: all of them mean that none is left.
        let _ = timeout(grace, self.0.connections.acquire_many(self.0.connections_max)).await;
    }

    /// The first head is held to the gateway's strict rules, so that both doors refuse the same things.
    async fn serve_accepted<S>(&self, permit: OwnedSemaphorePermit, mut stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(_counted) = self.count(peer.ip().to_canonical()) else {
            let refusal = HttpError::too_many_requests("Too many connections from this address.", 1);
            return refuse(&mut stream, &refusal.response()).await;
        };
        let mut stopping = self.0.stopping.subscribe();
        let first = tokio::select! {
            first = timeout(Duration::from_millis(HEAD_MS_MAX), read_head(&mut stream)) => first,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match first {
            Ok(Ok(Step::Http(http))) => self.serve_http(permit, stream, http.received, peer).await,
            Ok(Ok(Step::Upgrade(_) | Step::Incomplete)) => refuse(&mut stream, NO_SESSIONS_HERE).await,
            Ok(Ok(Step::Refused(error))) => refuse(&mut stream, &error.response()).await,
            Ok(Err(_)) => {}
            Err(_) => refuse(&mut stream, &HttpError::timeout().response()).await,
        }
    }

    async fn serve_http<S>(&self, permit: OwnedSemaphorePermit, stream: S, prefix: Bytes, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _permit = permit;
        let router = self.0.router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(PeerAddress(peer));
            // A router is always ready.
            router.clone().call(request)
        });
        let io = TokioIo::new(Rewound { prefix, stream, stalled: None });
        let mut connection = pin!(self.0.http.serve_connection(io, service));
        let mut stopping = self.0.stopping.subscribe();
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            _ = stopping.wait_for(|stopping| *stopping) => None,
            () = sleep(Duration::from_millis(CONNECTION_MS_MAX)) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                timeout(Duration::from_millis(REQUEST_MS_MAX), connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection broke");
        }
    }

    fn count(&self, address: IpAddr) -> Option<Counted> {
        let mut per_address = self.0.per_address.lock();
        let count = per_address.entry(address).or_insert(0);
        if *count >= self.0.per_address_max {
            return None;
        }
        *count += 1;
        Some(Counted { server: self.clone(), address })
    }
}

/// One connection of an address, until dropped.
struct Counted {
    server: Server,
    address: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut per_address = self.server.0.per_address.lock();
        if let Some(count) = per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.address);
            }
        }
    }
}

const NO_SESSIONS_HERE: &[u8] = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Step> {
    let mut handshake = Handshake::new();
    let origins = OriginPolicy::default();
    let mut piece = [0u8; 4096];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match handshake.receive(&piece[..count], &origins) {
            Step::Incomplete => {}
            decided => return Ok(decided),
        }
    }
}

/// Writes a refusal and closes, reading on for a moment: a close over unread bytes would reset the connection and take
/// the refusal with it.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, response: &[u8]) {
    let _ = timeout(Duration::from_millis(LINGER_MS_MAX), async {
        stream.write_all(response).await?;
        stream.shutdown().await?;
        let mut rest = [0u8; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// A stream that gives what was read of it before once more, and that fails where a write stands still.
struct Rewound<S> {
    prefix: Bytes,
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Rewound<S> {
    /// Watches over a write: progress forgets the wait, the lack of it goes on waiting, up to a limit.
    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = || Box::pin(sleep(Duration::from_millis(WRITE_STALL_MS_MAX)));
        ready!(self.stalled.get_or_insert_with(limit).as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
