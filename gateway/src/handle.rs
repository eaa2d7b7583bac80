//! Starting a gateway, asking it how it is, draining and stopping it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use roost_ports::DeliverySink;
use roost_protocol::Incarnation;
use roost_protocol::records::Endpoint;
use roost_session::framing::handshake::OriginPolicy;
use roost_session::machine::Settings;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::admission::Admission;
use crate::config::{Config, Ports, StartError};
use crate::drivers::Drivers;
use crate::egress::Egress;
use crate::mail::Mail;
use crate::mailbox::Mailbox;
use crate::membership::{Membership, note_gateway};
use crate::metrics::Metrics;
use crate::resync;
use crate::shared::{Lease, QueueBytes, Shared};
use crate::watch::{self, Beat};
use crate::watchdog::{Watchdog, fail_points, pass};

const BACKLOG: i32 = 4_096;
/// A peer that takes none of our bytes for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(40);
/// Batches of changes and of resyncs that wait for their tasks.
const CHANNEL_LETTERS: usize = 1_024;
/// How long the Registry and the Store are waited for at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A gateway, about to be.
pub struct Gateway;

/// A running gateway. Dropping it stops it without a farewell; [`drain`](Self::drain) is the kind way.
pub struct GatewayHandle {
    shared: Arc<Shared>,
    address: SocketAddr,
    io: &'static str,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Starts a gateway: when this returns, clients can connect. Must be called in a tokio runtime, on which
    /// everything but the sessions runs.
    ///
    /// The Store must answer once; the Registry may be away.
    pub async fn start(config: Config, ports: Ports) -> Result<GatewayHandle, StartError> {
        // Before the port is taken: whoever connects is not to wait for the Store.
        ports.store.epoch().await?;
        let listener = listen(config.listen)?;
        Self::start_on(listener, config, ports).await
    }

    /// The same on a listener that is there already: one from [`listen`], or from a process that hands it over.
    pub async fn start_on(listener: TcpListener, config: Config, ports: Ports) -> Result<GatewayHandle, StartError> {
        if !(1..=256).contains(&config.shards) {
            return Err(StartError::Config("a gateway has 1 to 256 shards"));
        }
        let origins = OriginPolicy::new(&config.origins)?;
        let epoch = ports.store.epoch().await?;
        let address = listener.local_addr().map_err(StartError::Shard)?;
        let drivers = Drivers::new(&config, listener)?;
        let (membership, changes) = mpsc::channel(CHANNEL_LETTERS);
        let (resync, wanted) = mpsc::channel(CHANNEL_LETTERS);
        let shared = Arc::new(Shared {
            settings: settings(&config, origins),
            runtime: Handle::current(),
            mailboxes: (0..config.shards).map(|_| Mailbox::new(config.mailbox_bytes_max)).collect(),
            admission: Admission::new(&config, drivers.connections_max()),
            resumes: Mutex::default(),
            beats: (0..config.shards).map(|_| Beat::default()).collect(),
            started: Instant::now(),
            lease: Lease::new(Incarnation::new(), ports.clock.steady_ms() + config.lease_ttl_ms),
            membership,
            resync,
            epoch: RwLock::new(epoch),
            partitions: ports.log.partitions(),
            requests_running: Semaphore::new(config.requests_running_max),
            requests_waiting: Arc::new(Semaphore::new(config.requests_waiting_max)),
            queue_bytes: (0..config.shards).map(|_| QueueBytes::default()).collect(),
            metrics: Metrics::new(),
            config,
            ports,
        });
        let io = drivers.name();
        let threads = drivers.start(&shared).map_err(StartError::Shard)?;
        let tasks = vec![
            tokio::spawn(Membership::new(Arc::clone(&shared), changes).run()),
            tokio::spawn(note_gateway(Arc::clone(&shared))),
            tokio::spawn(resync::run(Arc::downgrade(&shared), wanted)),
            tokio::spawn(watch::run(Arc::downgrade(&shared))),
        ];
        tracing::info!(
            %address,
            shards = shared.config.shards,
            io,
            asked = ?shared.config.io,
            tls = shared.config.tls.is_some(),
            connections_max = shared.admission.connections_max(),
            incarnation = %shared.lease.incarnation(),
            "the gateway listens"
        );
        Ok(GatewayHandle { shared, address, io, threads: Mutex::new(threads), tasks })
    }
}

impl GatewayHandle {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The driver that was chosen: `io_uring` or `portable`.
    pub fn io(&self) -> &'static str {
        self.io
    }

    /// Where verdicts and deliveries are to be sent now. The incarnation changes when the lease is lost.
    pub fn endpoint(&self) -> Endpoint {
        self.shared.endpoint()
    }

    /// The receiving end for Delivery's adapters.
    pub fn sink(&self) -> Arc<dyn DeliverySink> {
        Arc::new(Egress { shared: Arc::clone(&self.shared) })
    }

    /// Whether new clients should be sent here.
    pub fn ready(&self) -> bool {
        is_ready(&self.shared)
    }

    /// The same question, for whoever outlives this handle. A gateway that is gone is not ready.
    pub fn readiness(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let shared = Arc::downgrade(&self.shared);
        Box::new(move || shared.upgrade().is_some_and(|shared| is_ready(&shared)))
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.shared.admission.live()
    }

    /// Connections, those in their handshake included.
    pub fn connections(&self) -> usize {
        self.shared.admission.connections()
    }

    /// Bytes that wait in the queues of all sessions.
    pub fn queued_bytes(&self) -> u64 {
        self.shared.queued_bytes()
    }

    /// What has been counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Stops accepting, because another process has the listener now. Returns once the connections that were accepted
    /// before are sessions, and after so long at the latest.
    pub async fn stop_accepting(&self, limit: Duration) {
        self.shared.tell_all_shards(|| Mail::StopAccepting);
        let until = tokio::time::Instant::now() + limit;
        // The letter itself takes a moment, in which more may come.
        loop {
            tokio::time::sleep(Duration::from_millis(50).min(limit)).await;
            if self.connections() <= self.sessions() || tokio::time::Instant::now() >= until {
                return;
            }
        }
    }

    /// Sends every client away within the grace period, lets sends in flight finish, leaves the Registry, and stops.
    pub async fn drain(self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX).max(1);
        tracing::info!(sessions = self.sessions(), grace_ms, "the gateway drains");
        let watchdog = Watchdog::start(&self.shared, grace);
        self.shared.admission.start_draining();
        pass(fail_points::BEFORE_WAVES);
        // From here on the shards keep to the grace period by themselves, whatever happens here.
        self.shared.tell_all_shards(|| Mail::Drain { grace_ms, late: false });
        drop(watchdog);
        // What is left of the grace period is for the Registry and the Store.
        let until = tokio::time::Instant::now() + grace * 9 / 10;
        while self.connections() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop().await;
    }

    /// Stops at once: connections break, and their clients resume elsewhere.
    pub async fn stop(self) {
        self.shared.admission.start_draining();
        self.shared.tell_all_shards(|| Mail::Stop);
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a shard panicked");
                }
            }
        });
        let _ = joined.await;
        for task in &self.tasks {
            task.abort();
        }
        // Only now that no session is left: whoever asks is to hear of nobody here.
        let endpoint = self.endpoint();
        let ports = &self.shared.ports;
        let released = tokio::time::timeout(FAREWELL, ports.registry.release(endpoint.incarnation)).await;
        let removed = tokio::time::timeout(FAREWELL, ports.store.remove_gateway(&endpoint)).await;
        if !matches!((released, removed), (Ok(Ok(())), Ok(Ok(())))) {
            tracing::warn!("the gateway's lease and note are left to run out");
        }
        tracing::info!("the gateway has stopped");
    }
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        self.shared.admission.start_draining();
        self.shared.tell_all_shards(|| Mail::Stop);
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn is_ready(shared: &Shared) -> bool {
    shared.admission.admits() && shared.admission.has_room() && !shared.lease.is_lapsed()
}

fn settings(config: &Config, origins: OriginPolicy) -> Settings {
    Settings {
        origins,
        timings: config.timings,
        queue_bytes_hard: config.queue_bytes_hard,
        queue_bytes_soft: config.queue_bytes_hard / 4,
        sends: config.sends,
        requests: config.requests,
        ..Settings::default()
    }
}

/// Where clients connect, with everything set that a gateway needs.
pub fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    bind(address).map_err(|source| StartError::Listen { address, source })
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these, which saves two calls for each.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
