//! The gateway: shards that hold the sessions, the driver under them, and their ways to the log, the Store, the
//! Registry and back from Delivery.
//!
//! The program starts it with [`Gateway::start`], connects [`GatewayHandle::sink`] to its Delivery, takes plain HTTP
//! from the channel in [`Ports::http`], and ends it with [`GatewayHandle::drain`].

mod admission;
mod authenticate;
mod certificates;
mod config;
// Not for users of the gateway: the conformance suite runs an echo on the very drivers that the shards use.
#[doc(hidden)]
pub mod driver;
mod drivers;
mod egress;
mod handle;
mod ingress;
mod mail;
mod mailbox;
mod membership;
mod metrics;
mod proxied;
mod requests;
mod resync;
mod shard;
mod shared;
mod slab;
mod watch;
mod watchdog;
mod wheel;

pub use authenticate::{Authenticate, StoreKeys};
pub use certificates::{CertificateError, Certificates};
pub use config::{
    CONNECTIONS_PER_ADDRESS_MAX, Config, HANDSHAKES_PER_SECOND, HandedOver, Io, Place, Ports, QUEUE_BYTES_SUM_MAX,
    RESUMES_PER_SECOND, SESSIONS_PER_USER_MAX, StartError,
};
pub use driver::Stream;
pub use driver::tls::AsyncStream;
pub use handle::{Gateway, GatewayHandle, listen};
pub use metrics::{Counter, Metrics};
// What the configuration is made of.
pub use roost_session::framing::peer::{Network, Proxies};
pub use roost_session::rate::Rate;
pub use watchdog::fail_points;
