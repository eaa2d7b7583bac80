//! Connections of proxies that say first, in a PROXY header, whose they are.
//!
//! The header comes before everything else, TLS included, and only from a few peers: so it is read on the runtime,
//! byte for byte no further than its end, before any shard has seen the connection.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use roost_session::framing::proxy::{FIXED_BYTES, Fixed, REST_BYTES_MAX};
use tokio::io::AsyncReadExt as _;

use crate::admission::Arrival;
use crate::mail::Mail;
use crate::shared::Shared;

/// Reads the header of a connection that was accepted for a shard, and puts it into the shard's mailbox.
pub(crate) fn introduce(shared: &Arc<Shared>, shard: usize, stream: TcpStream, proxy: SocketAddr) {
    let shared = Arc::clone(shared);
    let runtime = shared.runtime.clone();
    runtime.spawn(async move {
        let limit = Duration::from_millis(shared.config.timings.handshake_ms);
        let read = tokio::time::timeout(limit, read_header(stream)).await;
        match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((stream, source)) => {
                let peer = source.unwrap_or(proxy);
                if let Some(arrival) = Arrival::judge(&shared, shard, stream, peer, shared.steady_ms()) {
                    shared.mailboxes[shard].put(Mail::Connection(arrival));
                }
            }
            Err(problem) => {
                tracing::debug!(%proxy, %problem, "a connection of a trusted proxy without its header");
                shared.metrics.refused_proxy_headers.add(1);
                shared.admission.no_longer_opening(None);
                shared.admission.closed(shard);
            }
        }
    });
}

async fn read_header(stream: TcpStream) -> io::Result<(TcpStream, Option<SocketAddr>)> {
    let mut stream = tokio::net::TcpStream::from_std(stream)?;
    let mut fixed = [0; FIXED_BYTES];
    stream.read_exact(&mut fixed).await?;
    let header = Fixed::parse(&fixed).map_err(io::Error::other)?;
    let mut rest = [0; REST_BYTES_MAX];
    let rest = &mut rest[..header.rest_bytes];
    stream.read_exact(rest).await?;
    let source = header.source(rest).map_err(io::Error::other)?;
    Ok((stream.into_std()?, source))
}
