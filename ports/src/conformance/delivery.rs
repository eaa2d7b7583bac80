//! What every Delivery does, whatever it stands on.

mod cases;
mod sink;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use roost_protocol::records::Endpoint;

use crate::delivery::{Delivery, DeliverySink};

pub use cases::*;
pub use sink::TestSink;

/// Nothing that has to happen may take longer: not a figure, only the difference between slow and never.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(240);

/// How long the suite watches that something does not happen. A right adapter passes however busy the machine is.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// What an adapter's tests give to the suite.
#[async_trait]
pub trait DeliveryHarness: Send + Sync {
    /// The sending side.
    fn delivery(&self) -> Arc<dyn Delivery>;

    /// Begins a process that receives with this sink; its endpoint has the sink's incarnation. Several may live at
    /// once.
    async fn attach(&self, sink: Arc<dyn DeliverySink>) -> Endpoint;

    /// Ends that process.
    async fn detach(&self, endpoint: &Endpoint);
}
