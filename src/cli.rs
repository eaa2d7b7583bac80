//! The command line: commands, and every setting once. Each setting is a flag, an environment variable and a key of the
//! configuration file; a flag beats the environment, which beats the file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use roost_gateway::Network;

/// A real-time chat platform: one program, embedded or as separate roles.
#[derive(Debug, Parser)]
#[command(name = "roost", version, about, max_term_width = 110)]
#[command(after_help = "Without a command it serves everything in this process: `roost` is `roost serve`.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Settings of every command.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// A file with settings: `key = value` in TOML, the keys being the long flags without their dashes.
    #[arg(long, env = "ROOST_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, env = "ROOST_LOG_FORMAT", global = true, default_value = "text", value_enum)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,roost_gateway=debug`.
    #[arg(long, env = "ROOST_LOG_LEVEL", global = true, default_value = "info")]
    pub log_level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve everything in one process; by default on embedded parts, with nothing else installed.
    Serve(Box<ServeArgs>),
    /// Only hold sessions: WebSocket in, log out, deliveries in.
    Gateway(Box<GatewayRoleArgs>),
    /// Only number messages: from the log into the store.
    Persist(Box<PersistRoleArgs>),
    /// Only fan out: from the log to the gateways.
    Fanout(Box<FanoutRoleArgs>),
    /// Only the REST interface.
    Api(Box<ApiRoleArgs>),
    /// Make or upgrade the store's schema and the log's topics. Safe to run again.
    Migrate(Box<MigrateArgs>),
    /// Check each server that the settings name, and say in words what is wrong and what to type.
    Doctor(Box<DoctorArgs>),
    /// Chat in the terminal.
    Chat(Box<crate::chat::ChatArgs>),
}

/// Where messages and their numbers live.
#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    /// The folder of the embedded parts.
    #[arg(long, env = "ROOST_DATA", default_value = "./data", value_name = "FOLDER")]
    pub data: PathBuf,
    /// The log: `embedded:` or `kafka://host:port[,host:port]/prefix`.
    #[arg(long, env = "ROOST_LOG", default_value = "embedded:", value_name = "URL")]
    pub log: String,
    /// The store: `embedded:` or `postgres://user:password@host:port/database`.
    #[arg(long, env = "ROOST_STORE", default_value = "embedded:", value_name = "URL", hide_env_values = true)]
    pub store: String,
    /// Partitions of the log's topics; fixed by the first migration. Without it a new log has 48, and in Kafka 12.
    #[arg(long, env = "ROOST_PARTITIONS")]
    pub partitions: Option<u32>,
}

/// Where sessions are registered.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// The registry: `embedded:` or `redis://host:port`.
    #[arg(long, env = "ROOST_REGISTRY", default_value = "embedded:", value_name = "URL", hide_env_values = true)]
    pub registry: String,
}

/// How processes reach one another.
#[derive(Debug, Clone, Args)]
pub struct MeshArgs {
    /// Where this process listens for deliveries from workers.
    #[arg(long, env = "ROOST_MESH_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub mesh_listen: SocketAddr,
    /// The address that workers use for it, where it differs from the one it listens on.
    #[arg(long, env = "ROOST_MESH_ADVERTISE", value_name = "URL")]
    pub mesh_advertise: Option<String>,
}

/// The secret of the mesh.
#[derive(Debug, Clone, Args)]
pub struct MeshSecretArgs {
    /// A file with the secret that gateways, api and workers share; without it the mesh stays on loopback.
    #[arg(long, env = "ROOST_MESH_SECRET_FILE", value_name = "FILE")]
    pub mesh_secret_file: Option<PathBuf>,
}

/// How connections are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Io {
    /// io_uring where it works, else epoll or kqueue.
    Auto,
    /// io_uring.
    Uring,
    /// epoll or kqueue.
    Portable,
}

/// How TLS is spoken where clients connect.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// A file with the certificate (PEM, with its chain): clients then speak TLS, `https://` and `wss://`. Looked at again
    /// every few seconds and on SIGHUP; sessions live on.
    #[arg(long, env = "ROOST_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// A file with the certificate's private key (PEM, unencrypted).
    #[arg(long, env = "ROOST_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// What holds sessions.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Where clients connect.
    #[arg(long, env = "ROOST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// How connections are served. `uring` refuses to start where the kernel or a container does not allow it, `auto`
    /// then says why and uses the portable driver.
    #[arg(long, env = "ROOST_IO", default_value = "auto", value_enum)]
    pub io: Io,
    /// Threads that hold sessions; 0 means one per core. With io_uring each holds at most as many sessions as the process
    /// may have descriptors.
    #[arg(long, env = "ROOST_SHARDS", default_value_t = 0)]
    pub shards: usize,
    /// Pages that browsers may connect from, as `https://host[:port]`, besides this server's own. Comma-separated.
    #[arg(long, env = "ROOST_ORIGINS", value_delimiter = ',', value_name = "ORIGIN")]
    pub origins: Vec<String>,
    /// Sessions at most; more are refused with the time to come back.
    #[arg(long, env = "ROOST_SESSIONS_MAX", default_value_t = 1_000_000)]
    pub sessions_max: usize,
    /// How long the registry remembers a gateway that has gone silent; 1,000 to 30,000.
    #[arg(long, env = "ROOST_LEASE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=30_000))]
    pub lease_ms: u64,
    /// How long a stop may take: sessions are told to reconnect and what is in flight is finished.
    #[arg(long, env = "ROOST_GRACE_MS", default_value_t = 10_000)]
    pub grace_ms: u64,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub admission: AdmissionArgs,
    #[command(flatten)]
    pub proxies: ProxiesArgs,
}

/// Who is let in, and how often what may be done.
#[derive(Debug, Clone, Args)]
pub struct AdmissionArgs {
    /// Connections accepted a second by this gateway; more wait in the kernel's queue. One address has at most half of
    /// them. 0 means no limit.
    #[arg(long, env = "ROOST_HANDSHAKES_PER_SECOND", default_value_t = roost_gateway::HANDSHAKES_PER_SECOND)]
    pub handshakes_per_second: u32,
    /// Connections of one address (IPv6: of one /64); more are refused with the time to come back. 0 means no limit.
    #[arg(long, env = "ROOST_CONNECTIONS_PER_ADDRESS_MAX", default_value_t = roost_gateway::CONNECTIONS_PER_ADDRESS_MAX)]
    pub connections_per_address_max: usize,
    /// Sessions of one user on this gateway; the newest is refused. 0 means no limit.
    #[arg(long, env = "ROOST_SESSIONS_PER_USER_MAX", default_value_t = roost_gateway::SESSIONS_PER_USER_MAX)]
    pub sessions_per_user_max: usize,
    /// Syncs a second of all sessions of this gateway; more wait, then are told when to come back. 0 means no limit.
    #[arg(long, env = "ROOST_RESUMES_PER_SECOND", default_value_t = roost_gateway::RESUMES_PER_SECOND)]
    pub resumes_per_second: u32,
    /// Messages a second that one session may send in the long run; ten times as many at once. 0 means no limit.
    #[arg(long, env = "ROOST_SENDS_PER_SECOND", default_value_t = roost_protocol::limits::SENDS_PER_SECOND_MAX)]
    pub sends_per_second: u32,
    /// Syncs, histories and refreshes a second of one session in the long run; ten times as many at once. 0 means no
    /// limit.
    #[arg(long, env = "ROOST_REQUESTS_PER_SECOND", default_value_t = roost_protocol::limits::REQUESTS_PER_SECOND_MAX)]
    pub requests_per_second: u32,
    /// Bytes that may wait for all sessions together; beyond, the slowest readers are closed sooner.
    #[arg(long, env = "ROOST_QUEUES_BYTES_MAX", default_value_t = roost_gateway::QUEUE_BYTES_SUM_MAX)]
    pub queues_bytes_max: usize,
}

/// Who is believed about the addresses of others.
#[derive(Debug, Clone, Args)]
pub struct ProxiesArgs {
    /// Proxies in front of this server, as addresses or networks (10.0.0.0/8): what they say of their clients' addresses
    /// counts. Comma-separated.
    #[arg(long, env = "ROOST_TRUSTED_PROXIES", value_delimiter = ',', value_name = "NETWORK")]
    pub trusted_proxies: Vec<Network>,
    /// Connections of trusted proxies begin with a PROXY header, version 2.
    #[arg(long, env = "ROOST_PROXY_PROTOCOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub proxy_protocol: bool,
}

/// What numbers messages.
#[derive(Debug, Clone, Args)]
pub struct PersistArgs {
    /// Transactions at one time; partitions are shared between the lanes. Without it two, and for the role alone one
    /// where it has one or two cores.
    #[arg(long, env = "ROOST_LANES")]
    pub lanes: Option<usize>,
}

/// Where a worker says that it is well.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Where /healthz and /readyz are answered; absent means nowhere.
    #[arg(long, env = "ROOST_HEALTH_LISTEN", value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
}

/// `roost serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub persist: PersistArgs,
}

/// `roost gateway`.
#[derive(Debug, Clone, Args)]
pub struct GatewayRoleArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub secret: MeshSecretArgs,
    /// Upgrade without a pause: a unix socket on which this gateway takes over the listener of the one that runs with
    /// the same path, which then drains and ends, and on which it waits to be taken over itself.
    #[arg(long, env = "ROOST_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,
}

/// `roost persist`.
#[derive(Debug, Clone, Args)]
pub struct PersistRoleArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub persist: PersistArgs,
    #[command(flatten)]
    pub secret: MeshSecretArgs,
    #[command(flatten)]
    pub health: HealthArgs,
}

/// `roost fanout`.
#[derive(Debug, Clone, Args)]
pub struct FanoutRoleArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub secret: MeshSecretArgs,
    #[command(flatten)]
    pub health: HealthArgs,
}

/// `roost api`.
#[derive(Debug, Clone, Args)]
pub struct ApiRoleArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub secret: MeshSecretArgs,
    /// Where requests are answered.
    #[arg(long, env = "ROOST_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// How long a stop may take.
    #[arg(long, env = "ROOST_GRACE_MS", default_value_t = 10_000)]
    pub grace_ms: u64,
    /// Proxies in front of this server, as addresses or networks (10.0.0.0/8): what they say of their clients' addresses
    /// counts. Comma-separated.
    #[arg(long, env = "ROOST_TRUSTED_PROXIES", value_delimiter = ',', value_name = "NETWORK")]
    pub trusted_proxies: Vec<Network>,
}

/// `roost migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// `roost doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub backend: BackendArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}
