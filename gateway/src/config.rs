//! How a gateway is set up, and what it is given.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use roost_ports::{Clock, Log, Registry, Store};
use roost_protocol::limits;
use roost_session::framing::handshake::InvalidOrigin;
use roost_session::framing::peer::Proxies;
use roost_session::machine::Timings;
use roost_session::rate::Rate;
use tokio::sync::mpsc;

pub use crate::admission::Place;
use crate::authenticate::Authenticate;
use crate::certificates::Certificates;
use crate::driver::Stream;

/// Which driver the shards use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Io {
    /// The best one that works here.
    #[default]
    Auto,
    /// io_uring, or no start at all.
    Uring,
    /// Readiness: epoll or kqueue.
    Portable,
}

/// The usual rate of handshakes. To accept, verify, register and sync one session took 0.2 to 0.3 ms of processor time
/// where it was measured (embedded, 15,000 at once, noisy machine): so this is about a quarter of one core.
pub const HANDSHAKES_PER_SECOND: u32 = 1_000;
/// The usual number of connections that one address may have: what a large office or a mobile network's shared address
/// needs. Loopback is an address like any other.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 10_000;
/// The usual number of sessions that one user may have.
pub const SESSIONS_PER_USER_MAX: usize = 32;
/// The usual cap on all queues together.
pub const QUEUE_BYTES_SUM_MAX: usize = 1 << 30;
/// The usual rate of syncs.
pub const RESUMES_PER_SECOND: u32 = 1_000;

/// How a gateway is set up. [`Config::new`] has what an installation needs; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that hold sessions, 1 to 256. One per core.
    pub shards: usize,
    /// Origins whose web pages may connect.
    pub origins: Vec<String>,
    /// Where this gateway's Delivery listens; empty in the embedded composition.
    pub endpoint_address: String,
    /// Which driver.
    pub io: Io,
    /// With these, clients speak TLS; without, plaintext.
    pub tls: Option<Arc<Certificates>>,
    /// How long the lease lives without a renewal.
    pub lease_ttl_ms: u64,
    /// No call of the Registry is waited for longer, so that no handshake stalls.
    pub registry_timeout_ms: u64,
    /// How long a session's times are.
    pub timings: Timings,
    /// The hard limit of a session's queue; the soft one is a quarter of it.
    pub queue_bytes_hard: usize,
    /// The cap on the sum of all queues; above it the hard limit of each falls, in three steps, to nothing.
    pub queue_bytes_sum_max: usize,
    /// Deliveries that wait for a shard, in bytes; beyond, Delivery is told to come back.
    pub mailbox_bytes_max: usize,
    /// Connections at most; fewer where the process may not have so many descriptors.
    pub sessions_max: usize,
    /// Connections that are not live yet; beyond, no more are accepted. One address may have half of them.
    pub openings_max: usize,
    /// Connections accepted a second, and as many at once; beyond, they wait in the kernel's queue. One address may
    /// have half of them. 0: no limit.
    pub handshakes_per_second: u32,
    /// Connections of one IPv4 address or IPv6 network of 64 bits; beyond, they are refused. 0: addresses are not
    /// counted at all.
    pub connections_per_address_max: usize,
    /// Sessions of one user; beyond, the newest is refused. 0: users are not counted.
    pub sessions_per_user_max: usize,
    /// Sends of one session; beyond, they are answered `retry`.
    pub sends: Rate,
    /// Syncs, histories and refreshes of one session; beyond, they are answered `rate_limited`.
    pub requests: Rate,
    /// Syncs of all sessions a second; those of the next two seconds wait, the others are answered `busy`. 0: no limit.
    pub resumes_per_second: u32,
    /// Whose word about their clients' addresses is taken.
    pub proxies: Proxies,
    /// Connections of those proxies begin with a PROXY header (version 2), and are closed if they do not.
    pub proxy_protocol: bool,
    /// A shard that has something to do and does nothing for so long is said to be stalled.
    pub stall_ms: u64,
    /// Syncs and histories that run at once.
    pub requests_running_max: usize,
    /// Syncs and histories that wait; beyond, they are answered `busy`.
    pub requests_waiting_max: usize,
    /// A request that the Store has not answered by then is answered `unavailable`.
    pub request_timeout_ms: u64,
    /// Sessions that are told their heads anew, a second, after the log was out of range or the Registry lost them.
    pub resyncs_per_second: u32,
    /// Sessions that are registered again, a second, after the Registry lost writes.
    pub reregistrations_per_second: u32,
}

impl Config {
    /// The usual limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            shards: std::thread::available_parallelism().map_or(1, |cores| cores.get().min(256)),
            origins: Vec::new(),
            endpoint_address: String::new(),
            io: Io::Auto,
            tls: None,
            lease_ttl_ms: 10_000,
            registry_timeout_ms: 450,
            timings: Timings::default(),
            queue_bytes_hard: roost_protocol::limits::QUEUE_BYTES_HARD,
            queue_bytes_sum_max: QUEUE_BYTES_SUM_MAX,
            mailbox_bytes_max: 64 << 20,
            sessions_max: 4_000_000,
            openings_max: 8_192,
            handshakes_per_second: HANDSHAKES_PER_SECOND,
            connections_per_address_max: CONNECTIONS_PER_ADDRESS_MAX,
            sessions_per_user_max: SESSIONS_PER_USER_MAX,
            sends: Rate { per_second: limits::SENDS_PER_SECOND_MAX, burst: limits::SENDS_AT_ONCE_MAX },
            requests: Rate { per_second: limits::REQUESTS_PER_SECOND_MAX, burst: limits::REQUESTS_AT_ONCE_MAX },
            resumes_per_second: RESUMES_PER_SECOND,
            proxies: Proxies::default(),
            proxy_protocol: false,
            stall_ms: 5_000,
            requests_running_max: 64,
            requests_waiting_max: 8_192,
            request_timeout_ms: 5_000,
            resyncs_per_second: 500,
            reregistrations_per_second: 20_000,
        }
    }
}

/// What a gateway is given.
#[derive(Clone)]
pub struct Ports {
    /// Where sends go.
    pub log: Arc<dyn Log>,
    /// Where syncs and histories are answered from.
    pub store: Arc<dyn Store>,
    /// Where sessions are registered.
    pub registry: Arc<dyn Registry>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Who says whether a token is good.
    pub authenticate: Arc<dyn Authenticate>,
    /// Who gets connections that speak plain HTTP. Without one they are answered 404.
    pub http: Option<mpsc::Sender<HandedOver>>,
}

/// A connection that turned out to be plain HTTP.
#[derive(Debug)]
pub struct HandedOver {
    /// What it is now.
    pub stream: Stream,
    /// Whose it is.
    pub peer: SocketAddr,
    /// What was read already: the HTTP server is to read it first.
    pub head: Bytes,
    /// To be kept for as long as the connection is: until then it counts for its address.
    pub place: Place,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on, or a thread or poller cannot be made.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The system refuses what a shard needs.
    #[error("cannot start a shard: {0}")]
    Shard(#[source] std::io::Error),
    /// io_uring was asked for by name, and does not work here.
    #[cfg(target_os = "linux")]
    #[error("io_uring was asked for: {0}. Without asking for it the portable driver is used")]
    Io(#[from] crate::driver::uring::Refusal),
    /// io_uring was asked for by name, and this system has none.
    #[cfg(not(target_os = "linux"))]
    #[error("io_uring was asked for, and only Linux has it. Without asking for it the portable driver is used")]
    Io,
    /// The Store did not say which history this is.
    #[error("the store does not answer: {0}")]
    Store(#[from] roost_ports::store::StoreError),
    /// An entry of the list of origins is none.
    #[error(transparent)]
    Origin(#[from] InvalidOrigin),
    /// A number is out of range.
    #[error("{0}")]
    Config(&'static str),
}
