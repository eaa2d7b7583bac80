//! A connection that left its driver, for the tokio side: plain or TLS, it reads and writes plaintext.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::machine::Machine;
use crate::driver::Stream;

const READ_BYTES: usize = 16 * 1024;

/// A socket and the TLS that is spoken on it, outside of any driver.
pub struct Detached {
    stream: std::net::TcpStream,
    machine: Box<Machine>,
    pending: Vec<u8>,
}

impl Detached {
    pub(super) fn new(stream: std::net::TcpStream, machine: Box<Machine>, pending: Vec<u8>) -> Self {
        Self { stream, machine, pending }
    }
}

impl Stream {
    /// Makes it a stream of the current tokio runtime.
    pub fn into_async(self) -> io::Result<AsyncStream> {
        match self {
            Self::Plain(stream) => Ok(AsyncStream(Kind::Plain(TcpStream::from_std(stream)?))),
            Self::Tls(detached) => {
                let Detached { stream, machine, pending } = *detached;
                Ok(AsyncStream(Kind::Tls(Box::new(TlsStream {
                    stream: TcpStream::from_std(stream)?,
                    machine,
                    plain: pending,
                    plain_read: 0,
                    out: Vec::new(),
                    out_written: 0,
                    gather: Vec::new(),
                    incoming: vec![0; READ_BYTES].into_boxed_slice(),
                    ended: false,
                }))))
            }
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
        })
    }
}

/// Plaintext, whatever is below.
pub struct AsyncStream(Kind);

enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

struct TlsStream {
    stream: TcpStream,
    machine: Box<Machine>,
    /// Decrypted, and read up to `plain_read`.
    plain: Vec<u8>,
    plain_read: usize,
    /// Encrypted, and written up to `out_written`.
    out: Vec<u8>,
    out_written: usize,
    gather: Vec<u8>,
    incoming: Box<[u8]>,
    ended: bool,
}

impl TlsStream {
    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out_written < self.out.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.out[self.out_written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_written += written;
        }
        self.out.clear();
        self.out_written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_plain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.plain_read == self.plain.len() && !self.ended {
            self.plain.clear();
            self.plain_read = 0;
            let mut buffer = ReadBuf::new(&mut self.incoming);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let bytes = buffer.filled_mut();
            if bytes.is_empty() {
                self.ended = true;
                break;
            }
            let received = self.machine.receive(bytes, &mut self.plain, &mut self.out);
            self.ended |= self.machine.peer_closed();
            // An answer to the handshake, or an alert; whoever writes next writes the rest.
            if let Poll::Ready(Err(error)) = self.poll_out(context) {
                return Poll::Ready(Err(error));
            }
            received.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_plain(context))?;
        let plain = &self.plain[self.plain_read..];
        let bytes = plain.len().min(buffer.remaining());
        buffer.put_slice(&plain[..bytes]);
        self.plain_read += bytes;
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        // One write's ciphertext at a time.
        ready!(self.poll_out(context))?;
        let frame = bytes::Bytes::copy_from_slice(&plain[..plain.len().min(super::machine::SEND_BYTES_MAX)]);
        let taken = self.machine.encrypt(&[frame], 0, &mut self.gather, &mut self.out).map_err(io::Error::other)?;
        match self.poll_out(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.machine.close_notify(&mut self.out);
        ready!(self.poll_out(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for AsyncStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Kind::Tls(stream) => stream.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for AsyncStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Kind::Tls(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(context),
            Kind::Tls(stream) => stream.poll_out(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Kind::Tls(stream) => stream.poll_shutdown(context),
        }
    }
}
