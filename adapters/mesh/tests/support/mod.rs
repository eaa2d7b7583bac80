//! What the mesh's tests share.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use roost_mesh::{MeshConfig, MeshServer, Secret};
use roost_ports::DeliverySink;
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryFuture, DeliveryItem};
use roost_protocol::records::Endpoint;
use roost_protocol::{Incarnation, SessionId};
use tokio::sync::watch;

/// Not a figure: the difference between slow and never.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(60);

/// A secret of one letter.
pub fn secret(letter: char) -> Secret {
    Secret::new(&letter.to_string().repeat(32)).expect("long enough")
}

/// A server on a free port.
pub async fn serve(sink: Arc<dyn DeliverySink>, config: &MeshConfig) -> MeshServer {
    MeshServer::bind("127.0.0.1:0".parse().expect("an address"), sink, config.clone()).await.expect("bound")
}

/// The endpoint of a server.
pub fn endpoint(server: &MeshServer, incarnation: Incarnation) -> Endpoint {
    Endpoint { address: format!("http://{}", server.local_addr()), incarnation }
}

/// A batch of one message to one session.
pub fn batch(record: impl Into<Bytes>) -> DeliveryBatch {
    let sessions = Arc::new([SessionId::new(Incarnation(1), 0, 1, 1)]);
    DeliveryBatch {
        items: vec![DeliveryItem::Message { audience: Audience::Sessions(sessions), record: record.into() }],
    }
}

/// Waits, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIVENESS_LIMIT, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// A sink that counts, keeps what it is told to keep, and answers while it is open.
pub struct Sink {
    pub incarnation: AtomicU64,
    pub kept: Option<Mutex<Vec<DeliveryBatch>>>,
    pub count: AtomicU64,
    pub open: watch::Sender<bool>,
}

impl Sink {
    /// Keeps every batch and answers at once.
    pub fn keeping() -> Arc<Self> {
        Self::new(Some(Mutex::default()), true)
    }

    /// Keeps every batch and answers none.
    pub fn held() -> Arc<Self> {
        Self::new(Some(Mutex::default()), false)
    }

    /// Only counts.
    pub fn counting() -> Arc<Self> {
        Self::new(None, true)
    }

    fn new(kept: Option<Mutex<Vec<DeliveryBatch>>>, open: bool) -> Arc<Self> {
        let incarnation = AtomicU64::new(Incarnation::new().0);
        Arc::new(Self { incarnation, kept, count: AtomicU64::new(0), open: watch::Sender::new(open) })
    }

    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Relaxed))
    }

    pub fn batches(&self) -> Vec<DeliveryBatch> {
        self.kept.as_ref().expect("keeps").lock().clone()
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl DeliverySink for Sink {
    fn incarnation(&self) -> Incarnation {
        Sink::incarnation(self)
    }

    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(kept) = &self.kept {
            kept.lock().push(batch);
        }
        if *self.open.borrow() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let mut open = self.open.subscribe();
        Box::pin(async move { open.wait_for(|open| *open).await.map(drop).map_err(|_| DeliveryError::Gone) })
    }
}
