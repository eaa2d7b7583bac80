//! What an api process is told: who it is, what it limits, and the ports that it stands on.

use std::sync::Arc;

use futures::future::BoxFuture;
use roost_ports::registry::Rate;
use roost_ports::{Clock, Log, Registry, Store};
use roost_protocol::limits;
use roost_protocol::records::Endpoint;
use roost_session::framing::peer::Proxies;
use roost_session::token::Issuer;

/// How an api process behaves. [`Config::new`] gives every field its default.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `iss` of our own tokens.
    pub issuer: String,
    /// Their `aud`.
    pub audience: String,
    /// Whose tokens are accepted besides our own.
    pub other_issuers: Vec<Issuer>,
    /// Where verdicts for this process go: its Delivery address and this life of it.
    pub endpoint: Endpoint,
    /// How long a request waits for its verdict before it is answered 202.
    pub verdict_ms_max: u64,
    /// Requests that wait for a verdict at one time; beyond, `busy`.
    pub verdicts_waiting_max: usize,
    /// What a password's hash costs.
    pub password: PasswordCost,
    /// A new signing key is made when the newest one is this old.
    pub key_rotation_ms: u64,
    /// How often what may be done.
    pub rates: Rates,
    /// Only these peers' `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
    /// Connections at one time.
    pub connections_max: usize,
    /// Connections of one address at one time.
    pub connections_per_address_max: usize,
}

impl Config {
    /// The defaults, for this endpoint.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            issuer: "roost".to_owned(),
            audience: "roost".to_owned(),
            other_issuers: Vec::new(),
            endpoint,
            verdict_ms_max: 10_000,
            verdicts_waiting_max: 8_192,
            password: PasswordCost::default(),
            key_rotation_ms: 24 * 60 * 60 * 1000,
            rates: Rates::default(),
            trusted_proxies: Proxies::default(),
            connections_max: 8_192,
            connections_per_address_max: 1_024,
        }
    }
}

/// What hashing a password costs, and how many are hashed at once.
#[derive(Clone, Copy, Debug)]
pub struct PasswordCost {
    /// Memory of one hash.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Hashes at one time.
    pub parallel_max: usize,
    /// Requests that wait for their turn; beyond, `busy`.
    pub waiting_max: usize,
}

impl Default for PasswordCost {
    fn default() -> Self {
        // OWASP's recommendation for argon2id.
        let parallel_max = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4));
        Self { memory_kib: 19 * 1024, passes: 2, parallel_max, waiting_max: 16 * parallel_max }
    }
}

/// How often what may be done. Those by address and by name are shared by all processes, the last one is not.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Registrations from one address.
    pub register_per_address: Rate,
    /// Logins from one address.
    pub login_per_address: Rate,
    /// Logins to one name.
    pub login_per_name: Rate,
    /// Exchanges of refresh tokens from one address.
    pub refresh_per_address: Rate,
    /// Requests of one user to this process.
    pub requests_per_user: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            register_per_address: Rate { burst: 50, interval_ms: 2_000 },
            login_per_address: Rate { burst: 50, interval_ms: 500 },
            login_per_name: Rate { burst: 10, interval_ms: 5_000 },
            refresh_per_address: Rate { burst: 300, interval_ms: 50 },
            requests_per_user: Rate { burst: 200, interval_ms: 10 },
        }
    }
}

/// The ports that an api process stands on.
#[derive(Clone)]
pub struct Ports {
    /// Takes what asks for a number.
    pub log: Arc<dyn Log>,
    /// Holds accounts, keys and history.
    pub store: Arc<dyn Store>,
    /// Shares the rate limits.
    pub registry: Arc<dyn Registry>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
}

/// What the program adds for those who run it.
#[derive(Clone, Default)]
pub struct Probes {
    /// What `/readyz` asks, each with a name; none means always ready.
    pub readiness: Vec<(&'static str, ReadinessCheck)>,
    /// What `/metrics` answers, in Prometheus' text form; absent means 404.
    pub metrics: Option<MetricsText>,
}

/// Asks whether something works right now. The error is logged, not shown.
pub type ReadinessCheck = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Renders the metrics.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// Connections are kept open without a request for at most this long, and a head must be complete by then.
pub(crate) const HEAD_MS_MAX: u64 = limits::HANDSHAKE_MS_MAX;
/// A request that is not answered by then never is.
pub(crate) const REQUEST_MS_MAX: u64 = 30_000;
/// A connection is asked to end after this long, whatever it does.
pub(crate) const CONNECTION_MS_MAX: u64 = 10 * 60 * 1000;
