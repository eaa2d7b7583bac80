//! The sending end: batches are put in line for their endpoint, and a task per endpoint sends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use roost_ports::Delivery;
use roost_ports::delivery::{DeliveryBatch, DeliveryError, DeliveryFuture, DeliverySink};
use roost_protocol::Incarnation;
use roost_protocol::records::Endpoint;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::MeshConfig;
use crate::limits::{ENDPOINTS_MAX, OUTSTANDING_BATCHES_MAX, OUTSTANDING_BYTES_MAX};
use crate::peer::{Job, Peer};
use crate::pending::Waiting;
use crate::proof;
use crate::wire::outstanding_bytes;

/// Delivery to other processes, and to the sinks of this one that are attached.
///
/// An endpoint's stream is opened by its first batch, and closed and forgotten when it has been idle. Dropping the
/// `MeshDelivery` lets what is in line finish.
pub struct MeshDelivery {
    shared: Arc<Shared>,
    runtime: Handle,
    locals: RwLock<Vec<Local>>,
}

/// What the tasks of all endpoints share.
pub(crate) struct Shared {
    pub(crate) config: MeshConfig,
    /// This process, as receivers know it.
    pub(crate) sender: [u8; 16],
    lines: Mutex<HashMap<Endpoint, Line>>,
}

/// The line of batches for one endpoint; its other end is a task.
struct Line {
    jobs: mpsc::Sender<Job>,
    budget: Arc<Semaphore>,
    gone: Arc<AtomicBool>,
}

/// A sink in this process.
#[derive(Clone)]
struct Local {
    sink: Arc<dyn DeliverySink>,
    budget: Arc<Semaphore>,
}

impl MeshDelivery {
    /// Sends from the tokio runtime that it is called in.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(mut config: MeshConfig) -> Self {
        config.outstanding_bytes_max = config.outstanding_bytes_max.min(OUTSTANDING_BYTES_MAX);
        let shared = Shared { config, sender: proof::nonce(), lines: Mutex::default() };
        Self { shared: Arc::new(shared), runtime: Handle::current(), locals: RwLock::default() }
    }

    /// Batches for this sink's incarnation are from now on delivered in process, whatever the endpoint's address.
    /// One for the empty address and no attached incarnation is `Gone`.
    pub fn attach_local(&self, sink: Arc<dyn DeliverySink>) {
        let budget = Arc::new(Semaphore::new(self.shared.config.outstanding_bytes_max));
        self.locals.write().push(Local { sink, budget });
    }

    /// Batches for this incarnation are delivered in process no longer.
    pub fn detach_local(&self, incarnation: Incarnation) {
        self.locals.write().retain(|local| local.sink.incarnation() != incarnation);
    }

    /// How many endpoints have a stream, wait for one, or are remembered as gone.
    pub fn endpoints(&self) -> usize {
        self.shared.lines.lock().len()
    }

    fn local(&self, to: &Endpoint) -> Option<Local> {
        self.locals.read().iter().find(|local| local.sink.incarnation() == to.incarnation).cloned()
    }

    fn send_local(&self, local: &Local, batch: DeliveryBatch) -> DeliveryFuture {
        let Some(room) = room(&local.budget, &batch) else { return refused(DeliveryError::Busy) };
        let mut delivered = local.sink.deliver(batch);
        if let Some(outcome) = (&mut delivered).now_or_never() {
            return futures::future::ready(outcome).boxed();
        }
        // A task of its own: the batch is in line even if nobody waits for it.
        let task = self.runtime.spawn(async move {
            let outcome = delivered.await;
            drop(room);
            outcome
        });
        async { task.await.unwrap_or_else(|_| Err(DeliveryError::Unavailable("the sink failed".into()))) }.boxed()
    }

    fn send_remote(&self, to: &Endpoint, batch: DeliveryBatch) -> Result<DeliveryFuture, DeliveryError> {
        let mut lines = self.shared.lines.lock();
        // A line whose task is no more (a runtime that shuts down, a panic) is replaced.
        if lines.get(to).is_none_or(|line| line.jobs.is_closed()) {
            if lines.len() >= ENDPOINTS_MAX {
                return Err(DeliveryError::Busy);
            }
            lines.insert(to.clone(), self.open(to));
        }
        let line = &lines[to];
        if line.gone.load(Ordering::Relaxed) {
            return Err(DeliveryError::Gone);
        }
        let room = room(&line.budget, &batch).ok_or(DeliveryError::Busy)?;
        let (answer, answered) = oneshot::channel();
        let job = Job { batch, waiting: Waiting { answer, room, since: Instant::now() } };
        // Under the lock, so that no line is forgotten with a batch in it.
        line.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => DeliveryError::Busy,
            TrySendError::Closed(_) => DeliveryError::Unavailable("this process stops".into()),
        })?;
        let lost = |_| Err(DeliveryError::Unavailable("this process stops".into()));
        Ok(async move { answered.await.unwrap_or_else(lost) }.boxed())
    }

    fn open(&self, to: &Endpoint) -> Line {
        let (jobs, taken) = mpsc::channel(OUTSTANDING_BATCHES_MAX);
        let gone = Arc::new(AtomicBool::new(false));
        let peer = Peer::new(to.clone(), taken, gone.clone(), &self.shared);
        self.runtime.spawn(peer.run());
        Line { jobs, budget: Arc::new(Semaphore::new(self.shared.config.outstanding_bytes_max)), gone }
    }
}

impl Delivery for MeshDelivery {
    fn send(&self, to: &Endpoint, batch: DeliveryBatch) -> DeliveryFuture {
        if let Some(local) = self.local(to) {
            return self.send_local(&local, batch);
        }
        if to.address.is_empty() {
            return refused(DeliveryError::Gone);
        }
        self.send_remote(to, batch).unwrap_or_else(refused)
    }
}

impl Shared {
    /// Forgets the endpoint if `empty` still says, under the lock, that nothing is in its line.
    pub(crate) fn forget(&self, endpoint: &Endpoint, empty: impl FnOnce() -> bool) -> bool {
        let mut lines = self.lines.lock();
        let forgotten = empty();
        if forgotten {
            lines.remove(endpoint);
        }
        forgotten
    }
}

fn refused(error: DeliveryError) -> DeliveryFuture {
    futures::future::ready(Err(error)).boxed()
}

fn room(budget: &Arc<Semaphore>, batch: &DeliveryBatch) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(outstanding_bytes(batch)).ok()?;
    budget.clone().try_acquire_many_owned(bytes).ok()
}
