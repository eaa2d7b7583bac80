//! The roles: each wires its crates to the backends, says that it is ready, and stops in order on SIGTERM.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use roost_api::{Api, Probes, ReadinessCheck, Server};
use roost_gateway::{Gateway, GatewayHandle, HandedOver, Network, Rate, StoreKeys};
use roost_mesh::MeshServer;
use roost_ports::delivery::{DeliveryBatch, DeliveryError, DeliveryFuture};
use roost_ports::{Delivery, DeliverySink, Registry};
use roost_protocol::Incarnation;
use roost_protocol::records::Endpoint;
use roost_workers::{fanout, persist};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::cli::{
    AdmissionArgs, ApiRoleArgs, FanoutRoleArgs, GatewayArgs, GatewayRoleArgs, HealthArgs, Io, MeshArgs, MeshSecretArgs,
    MigrateArgs, PersistArgs, PersistRoleArgs, ServeArgs,
};
use crate::compose::{self, Backends, Problem};
use crate::stop::{StopLimit, stop_asked};
use crate::takeover::{self, Succession, Takeover};
use crate::tls;
use crate::workers::WorkersThread;

/// Plain HTTP connections that wait to be taken over from the gateway.
const HANDED_OVER_MAX: usize = 1_024;

/// `roost serve`: every role in this process.
pub async fn serve(args: &ServeArgs) -> Result<(), Problem> {
    let backends = Backends::open_beside_workers(&args.backend).await?;
    let registry = compose::registry(&args.registry.registry, &backends.clock)?;
    let delivery = compose::local_delivery();
    let stopping = Stopping::default();
    let api = make_api(&backends, &registry, String::new(), &args.gateway.proxies.trusted_proxies, &stopping).await?;
    delivery.attach(api.sink());
    let sender: Arc<dyn Delivery> = delivery.clone();
    let workers = WorkersThread::start().map_err(|error| Problem::Other(format!("no thread for workers: {error}")))?;
    let persist = workers.inside(|| start_persist(&backends, &sender, &args.persist, persist::Config::default().lanes));
    let fanout = workers.inside(|| start_fanout(&backends, &registry, &sender));
    let server = api.server();
    let gateway = start_gateway(&args.gateway, None, &backends, &registry, String::new(), &server).await?;
    delivery.attach(gateway.sink());
    stopping.listen_to(&gateway);
    println!("roost serve is ready: {}://{}", scheme(&args.gateway), gateway.address());
    stop_asked().await;
    stopping.asked.store(true, Ordering::Relaxed);
    let limit = StopLimit::start(args.gateway.grace_ms);
    gateway.drain(limit.left()).await;
    server.shut_down(limit.left() / 2).await;
    persist.stop().await;
    fanout.stop().await;
    Ok(())
}

/// `roost gateway`.
pub async fn gateway(args: &GatewayRoleArgs) -> Result<(), Problem> {
    let takeover = Takeover::wanted(args)?;
    let backends = Backends::open(&args.backend).await?;
    let registry = compose::registry(&args.registry.registry, &backends.clock)?;
    let door = MeshDoor::open(&args.mesh, &args.secret).await?;
    let stopping = Stopping::default();
    let server = operations(&backends, &stopping);
    let mut succession = match takeover {
        Some(takeover) => Some(takeover.begin(args.gateway.listen).await?),
        None => None,
    };
    let listener = succession.as_ref().map(Succession::listener).transpose()?;
    let gateway = start_gateway(&args.gateway, listener, &backends, &registry, door.address.clone(), &server).await?;
    door.lead_to(gateway.sink());
    stopping.listen_to(&gateway);
    let scheme = scheme(&args.gateway);
    if let Some(succession) = &mut succession {
        succession.ready().await?;
    }
    println!("roost gateway is ready: {scheme}://{} (deliveries at {})", gateway.address(), door.address);
    let handed_over = tokio::select! {
        () = stop_asked() => false,
        () = takeover::taken(succession.as_ref()) => true,
    };
    // Nobody holds the listener but the gateway, and whoever has taken over.
    drop(succession);
    stopping.asked.store(true, Ordering::Relaxed);
    let limit = StopLimit::start(args.gateway.grace_ms);
    if handed_over {
        gateway.stop_accepting(limit.left() / 10).await;
    }
    gateway.drain(limit.left()).await;
    door.close().await;
    server.shut_down(limit.left() / 2).await;
    Ok(())
}

/// `roost persist`.
pub async fn persist(args: &PersistRoleArgs) -> Result<(), Problem> {
    let backends = Backends::open(&args.backend).await?;
    let delivery = compose::mesh_delivery(&compose::mesh_config(args.secret.mesh_secret_file.as_deref())?);
    let worker = start_persist(&backends, &delivery, &args.persist, lanes_alone());
    let _health = serve_health(&args.health, &backends).await?;
    println!("roost persist is ready");
    stop_asked().await;
    worker.stop().await;
    Ok(())
}

/// `roost fanout`.
pub async fn fanout(args: &FanoutRoleArgs) -> Result<(), Problem> {
    let backends = Backends::open(&args.backend).await?;
    let registry = compose::registry(&args.registry.registry, &backends.clock)?;
    let delivery = compose::mesh_delivery(&compose::mesh_config(args.secret.mesh_secret_file.as_deref())?);
    let worker = start_fanout(&backends, &registry, &delivery);
    let _health = serve_health(&args.health, &backends).await?;
    println!("roost fanout is ready");
    stop_asked().await;
    worker.stop().await;
    Ok(())
}

/// `roost api`.
pub async fn api(args: &ApiRoleArgs) -> Result<(), Problem> {
    let backends = Backends::open(&args.backend).await?;
    let registry = compose::registry(&args.registry.registry, &backends.clock)?;
    let door = MeshDoor::open(&args.mesh, &args.secret).await?;
    let stopping = Stopping::default();
    let api = make_api(&backends, &registry, door.address.clone(), &args.trusted_proxies, &stopping).await?;
    door.lead_to(api.sink());
    let server = api.server();
    let listener = listen(args.listen).await?;
    let address = listener.local_addr().map_err(|error| Problem::Other(error.to_string()))?;
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener).await }
    });
    println!("roost api is ready: http://{address} (deliveries at {})", door.address);
    stop_asked().await;
    stopping.asked.store(true, Ordering::Relaxed);
    let limit = StopLimit::start(args.grace_ms);
    server.shut_down(limit.left() * 9 / 10).await;
    serving.abort();
    door.close().await;
    Ok(())
}

/// `roost migrate`.
pub async fn migrate(args: &MigrateArgs) -> Result<(), Problem> {
    Backends::migrate(&args.backend).await?;
    println!("the store's schema and the log's topics are there");
    Ok(())
}

/// The pages that this server itself would serve, under the addresses that it knows itself by.
fn own_origins(args: &GatewayArgs) -> Vec<String> {
    let (listen, scheme) = (args.listen, scheme(args));
    let port = listen.port();
    let mut origins = Vec::new();
    // Port 0 takes a free one, which nobody's page can name beforehand.
    if port == 0 {
        return origins;
    }
    if !listen.ip().is_unspecified() {
        origins.push(format!("{scheme}://{listen}"));
    }
    if listen.ip().is_unspecified() || listen.ip().is_loopback() {
        origins.push(format!("{scheme}://localhost:{port}"));
    }
    origins
}

fn scheme(args: &GatewayArgs) -> &'static str {
    if args.tls.tls_certificate.is_some() { "https" } else { "http" }
}

async fn start_gateway(
    args: &GatewayArgs,
    listener: Option<std::net::TcpListener>,
    backends: &Backends,
    registry: &Arc<dyn Registry>,
    endpoint_address: String,
    http: &Server,
) -> Result<GatewayHandle, Problem> {
    let (sender, handed_over) = mpsc::channel(HANDED_OVER_MAX);
    tokio::spawn(serve_handed_over(handed_over, http.clone()));
    let names = nobody();
    let keys = StoreKeys::new(Arc::clone(&backends.store), Arc::clone(&backends.clock), &names.issuer, &names.audience);
    let mut config = roost_gateway::Config::new(args.listen);
    config.io = match args.io {
        Io::Auto => roost_gateway::Io::Auto,
        Io::Uring => roost_gateway::Io::Uring,
        Io::Portable => roost_gateway::Io::Portable,
    };
    if args.shards > 0 {
        config.shards = args.shards;
    }
    config.origins.clone_from(&args.origins);
    config.tls = tls::open(&args.tls)?;
    config.origins.extend(own_origins(args));
    config.endpoint_address = endpoint_address;
    config.sessions_max = args.sessions_max;
    config.lease_ttl_ms = args.lease_ms;
    admit(&mut config, &args.admission);
    config.proxies = args.proxies.trusted_proxies.iter().copied().collect();
    config.proxy_protocol = args.proxies.proxy_protocol;
    let ports = roost_gateway::Ports {
        log: Arc::clone(&backends.log),
        store: Arc::clone(&backends.store),
        registry: Arc::clone(registry),
        clock: Arc::clone(&backends.clock),
        authenticate: Arc::new(keys),
        http: Some(sender),
    };
    let started = match listener {
        Some(listener) => Gateway::start_on(listener, config, ports).await,
        None => Gateway::start(config, ports).await,
    };
    started.map_err(|error| Problem::Other(error.to_string()))
}

fn admit(config: &mut roost_gateway::Config, args: &AdmissionArgs) {
    let tenfold = |per_second: u32| Rate { per_second, burst: per_second.saturating_mul(10) };
    config.handshakes_per_second = args.handshakes_per_second;
    config.connections_per_address_max = args.connections_per_address_max;
    config.sessions_per_user_max = args.sessions_per_user_max;
    config.resumes_per_second = args.resumes_per_second;
    config.sends = tenfold(args.sends_per_second);
    config.requests = tenfold(args.requests_per_second);
    config.queue_bytes_sum_max = args.queues_bytes_max;
}

/// Connections of the gateway's port that turned out to be plain HTTP.
async fn serve_handed_over(mut connections: mpsc::Receiver<HandedOver>, server: Server) {
    while let Some(connection) = connections.recv().await {
        let server = server.clone();
        match connection.stream.into_async() {
            Ok(stream) => {
                tokio::spawn(async move {
                    let _place = connection.place;
                    server.serve_connection(stream, connection.head, connection.peer).await;
                });
            }
            Err(error) => tracing::warn!(%error, "a plain HTTP connection could not be taken over"),
        }
    }
}

/// Lanes of the role alone: on few cores a second one only makes more transactions of fewer messages each.
fn lanes_alone() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores <= 2 { 1 } else { persist::Config::default().lanes }
}

fn start_persist(
    backends: &Backends,
    delivery: &Arc<dyn Delivery>,
    args: &PersistArgs,
    lanes: usize,
) -> persist::Handle {
    let lanes = args.lanes.unwrap_or(lanes).max(1);
    let config = persist::Config { lanes, ..persist::Config::default() };
    let ports = persist::Ports {
        log: Arc::clone(&backends.log),
        store: Arc::clone(&backends.store),
        delivery: Arc::clone(delivery),
    };
    persist::Worker::start(config, ports)
}

fn start_fanout(backends: &Backends, registry: &Arc<dyn Registry>, delivery: &Arc<dyn Delivery>) -> fanout::Handle {
    let ports = fanout::Ports {
        log: Arc::clone(&backends.log),
        store: Arc::clone(&backends.store),
        registry: Arc::clone(registry),
        delivery: Arc::clone(delivery),
        clock: Arc::clone(&backends.clock),
    };
    fanout::Worker::start(fanout::Config::default(), ports)
}

/// The REST services, with a key to sign tokens with.
async fn make_api(
    backends: &Backends,
    registry: &Arc<dyn Registry>,
    address: String,
    trusted_proxies: &[Network],
    stopping: &Stopping,
) -> Result<Arc<Api>, Problem> {
    let endpoint = Endpoint { address, incarnation: Incarnation::new() };
    let ports = roost_api::Ports {
        log: Arc::clone(&backends.log),
        store: Arc::clone(&backends.store),
        registry: Arc::clone(registry),
        clock: Arc::clone(&backends.clock),
    };
    let mut config = roost_api::Config::new(endpoint);
    config.trusted_proxies = trusted_proxies.iter().copied().collect();
    let api = Api::new(config, ports, probes(backends, stopping));
    compose::patiently("store", async || api.prepare().await, compose::store_is_away).await?;
    Ok(api)
}

/// Health and readiness, for processes without REST.
fn operations(backends: &Backends, stopping: &Stopping) -> Server {
    Api::operations_server(&nobody(), probes(backends, stopping))
}

async fn serve_health(
    args: &HealthArgs,
    backends: &Backends,
) -> Result<Option<tokio::task::JoinHandle<std::io::Result<()>>>, Problem> {
    let Some(address) = args.health_listen else { return Ok(None) };
    let server = operations(backends, &Stopping::default());
    let listener = listen(address).await?;
    Ok(Some(tokio::spawn(async move { server.serve(listener).await })))
}

/// The names and limits of a process that takes no verdicts.
fn nobody() -> roost_api::Config {
    roost_api::Config::new(Endpoint { address: String::new(), incarnation: Incarnation::new() })
}

/// What readiness asks. Not the registry: without it everything goes on by asking all gateways.
fn probes(backends: &Backends, stopping: &Stopping) -> Probes {
    let (log, store, stopping) = (Arc::clone(&backends.log), Arc::clone(&backends.store), stopping.clone());
    let check_log: ReadinessCheck = Arc::new(move || {
        let log = Arc::clone(&log);
        async move { log.check().await.map_err(|error| error.to_string()) }.boxed()
    });
    let check_store: ReadinessCheck = Arc::new(move || {
        let store = Arc::clone(&store);
        async move { store.check().await.map_err(|error| error.to_string()) }.boxed()
    });
    let goes_on: ReadinessCheck = Arc::new(move || {
        let outcome = match stopping.gateway.get() {
            _ if stopping.asked.load(Ordering::Relaxed) => Err("it is being stopped".to_owned()),
            Some(is_ready) if !is_ready() => {
                Err("the gateway has no room, or one of its shards has stalled".to_owned())
            }
            _ => Ok(()),
        };
        std::future::ready(outcome).boxed()
    });
    Probes { readiness: vec![("process", goes_on), ("log", check_log), ("store", check_store)], metrics: None }
}

/// Why no new clients should be sent here.
#[derive(Clone, Default)]
struct Stopping {
    /// A stop was asked for.
    asked: Arc<AtomicBool>,
    /// Asks the gateway, where there is one, once it has started.
    gateway: Arc<OnceLock<Box<dyn Fn() -> bool + Send + Sync>>>,
}

impl Stopping {
    fn listen_to(&self, gateway: &GatewayHandle) {
        // Set once, right after the start.
        let _ = self.gateway.set(gateway.readiness());
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        Problem::Setting(format!("cannot listen on {address}: {error}; is another process using the port?"))
    })
}

/// Where deliveries come in. It is open before what takes them exists, because that needs to know the address.
struct MeshDoor {
    /// The address for workers.
    address: String,
    sink: Arc<LateSink>,
    server: MeshServer,
}

impl MeshDoor {
    async fn open(args: &MeshArgs, secret: &MeshSecretArgs) -> Result<Self, Problem> {
        let config = compose::mesh_config(secret.mesh_secret_file.as_deref())?;
        let sink = Arc::new(LateSink::default());
        let server = MeshServer::bind(args.mesh_listen, sink.clone(), config)
            .await
            .map_err(|error| Problem::Setting(format!("mesh-listen: {error}")))?;
        let address = args.mesh_advertise.clone().unwrap_or_else(|| format!("http://{}", server.local_addr()));
        Ok(Self { address, sink, server })
    }

    fn lead_to(&self, sink: Arc<dyn DeliverySink>) {
        // Set once, right after the start.
        let _ = self.sink.0.set(sink);
    }

    async fn close(self) {
        self.server.stop().await;
    }
}

/// A sink that is given later. Until then it is nobody's incarnation.
#[derive(Default)]
struct LateSink(OnceLock<Arc<dyn DeliverySink>>);

impl DeliverySink for LateSink {
    fn incarnation(&self) -> Incarnation {
        self.0.get().map_or(Incarnation(0), |sink| sink.incarnation())
    }

    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture {
        match self.0.get() {
            Some(sink) => sink.deliver(batch),
            None => std::future::ready(Err(DeliveryError::Gone)).boxed(),
        }
    }
}
