//! The receiving end: a gRPC server that hands batches to one sink.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use roost_ports::DeliverySink;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::config::MeshConfig;
use crate::guard;
use crate::limits::{
    ACKS_BYTES_MAX, FRAME_BYTES_TAKEN, HEADERS_BYTES_MAX, HTTP2_FRAME_BYTES, STOP_WITHIN, STREAMS_PER_CONNECTION_MAX,
    WINDOW_BYTES,
};
use crate::proto::mesh_server::MeshServer as Generated;
use crate::service::MeshService;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum MeshServerError {
    /// Anyone who reaches the address could deliver: people have to set something.
    #[error(
        "the mesh would listen on {0}, which other machines may reach, without a shared secret: \
         give all processes the same --mesh-secret-file (ROOST_MESH_SECRET_FILE), or listen on 127.0.0.1"
    )]
    NeedsSecret(SocketAddr),
    /// The address cannot be listened on.
    #[error("the mesh cannot listen on {address}: {error}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// A listening server. Dropping it ends all streams at once; what was not acknowledged is `Unavailable` for its sender.
pub struct MeshServer {
    local_addr: SocketAddr,
    /// Streams take nothing more, acknowledge what they have, and end.
    stop: CancellationToken,
    /// Connections end where they are.
    end: CancellationToken,
    serving: JoinHandle<()>,
}

impl MeshServer {
    /// Listens, on loopback only unless the configuration has a shared secret. The sink is asked for its incarnation at
    /// every batch, so that it may change.
    pub async fn bind(
        address: SocketAddr,
        sink: Arc<dyn DeliverySink>,
        config: MeshConfig,
    ) -> Result<Self, MeshServerError> {
        if config.shared_secret.is_none() && !address.ip().to_canonical().is_loopback() {
            return Err(MeshServerError::NeedsSecret(address));
        }
        let failed = |error| MeshServerError::Bind { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let service = MeshService::new(sink, config.shared_secret.clone(), stop.clone(), end.clone());
        let service = Generated::new(service)
            .max_decoding_message_size(FRAME_BYTES_TAKEN)
            .max_encoding_message_size(ACKS_BYTES_MAX);
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .max_frame_size(HTTP2_FRAME_BYTES)
            .http2_max_header_list_size(HEADERS_BYTES_MAX)
            .http2_keepalive_interval(Some(config.ping_every))
            .http2_keepalive_timeout(Some(config.ping_every));
        let connections = Box::pin(guard::connections(listener, end.clone()));
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(service, connections, stopped).await {
                tracing::error!(%error, "the mesh's server failed");
            }
        });
        Ok(Self { local_addr, stop, end, serving })
    }

    /// Where it listens; the port too if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops: no new streams, and the old ones end once what has arrived is acknowledged, or after five seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if timeout(STOP_WITHIN, &mut self.serving).await.is_err() {
            tracing::warn!("mesh streams were ended with batches unacknowledged");
        }
    }
}

impl Drop for MeshServer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.end.cancel();
        self.serving.abort();
    }
}
