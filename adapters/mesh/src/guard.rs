//! Accepted connections: counted, ended by the server's word, and closed when nobody on them has proven the secret in
//! time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::limits::{CONNECTIONS_MAX, OPEN_WITHIN};

/// Whether a stream of the connection has proven the secret.
#[derive(Clone, Default)]
pub(crate) struct Proven(Arc<AtomicBool>);

impl Proven {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The connections of a listener, until `end` is cancelled.
pub(crate) fn connections(
    listener: TcpListener,
    end: CancellationToken,
) -> impl Stream<Item = io::Result<Guarded>> + Send + 'static {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures::stream::unfold((listener, places, end), |(listener, places, end)| async move {
        let place = places.clone().acquire_owned().await.ok()?;
        let tcp = accept(&listener).await;
        let guarded = Guarded {
            tcp,
            proven: Proven::default(),
            proven_by: Some(Box::pin(sleep(OPEN_WITHIN))),
            end: Box::pin(end.clone().cancelled_owned()),
            _place: place,
        };
        Some((Ok(guarded), (listener, places, end)))
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                // Acknowledgements are small and must not wait for one another.
                let _ = tcp.set_nodelay(true);
                return tcp;
            }
            // Out of descriptors, or a connection that ended before it was taken: the next try may do.
            Err(error) => {
                tracing::warn!(%error, "a mesh connection was not accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A connection with its conditions. They are looked at when it is read: HTTP/2 always has a read outstanding.
pub(crate) struct Guarded {
    tcp: TcpStream,
    proven: Proven,
    proven_by: Option<Pin<Box<Sleep>>>,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn refusal(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        if self.end.as_mut().poll(context).is_ready() {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has stopped"));
        }
        if self.proven_by.as_mut()?.as_mut().poll(context).is_pending() {
            return None;
        }
        self.proven_by = None;
        let proven = self.proven.0.load(Ordering::Relaxed);
        (!proven).then(|| io::Error::new(io::ErrorKind::TimedOut, "no stream was opened in time"))
    }
}

impl Connected for Guarded {
    type ConnectInfo = Proven;

    fn connect_info(&self) -> Proven {
        self.proven.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.refusal(context) {
            Some(refusal) => Poll::Ready(Err(refusal)),
            None => Pin::new(&mut self.tcp).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
