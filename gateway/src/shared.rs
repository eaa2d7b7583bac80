//! What the shards and the tasks of one gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use roost_protocol::records::Endpoint;
use roost_protocol::{Epoch, Incarnation};
use roost_session::machine::{Pressure, Settings};
use roost_session::rate::Bucket;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::admission::Admission;
use crate::config::{Config, Ports};
use crate::mail::Mail;
use crate::mailbox::Mailbox;
use crate::membership::Change;
use crate::metrics::Metrics;
use crate::resync::Resync;
use crate::watch::Beat;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) ports: Ports,
    pub(crate) runtime: Handle,
    pub(crate) mailboxes: Box<[Mailbox<Mail>]>,
    pub(crate) admission: Admission,
    /// Syncs of all sessions.
    pub(crate) resumes: Mutex<Bucket>,
    pub(crate) beats: Box<[Beat]>,
    /// Where the shards' steady clock begins.
    pub(crate) started: Instant,
    pub(crate) lease: Lease,
    pub(crate) membership: mpsc::Sender<Vec<Change>>,
    pub(crate) resync: mpsc::Sender<Resync>,
    pub(crate) epoch: RwLock<Epoch>,
    pub(crate) partitions: u32,
    pub(crate) requests_running: Semaphore,
    pub(crate) requests_waiting: Arc<Semaphore>,
    /// The sum of all session queues, as the shards last told it.
    pub(crate) queue_bytes: Box<[QueueBytes]>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// How far the sum of all session queues is over its cap.
    pub(crate) fn pressure(&self) -> Pressure {
        Pressure::of(self.queued_bytes(), self.config.queue_bytes_sum_max as u64)
    }

    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queue_bytes.iter().map(QueueBytes::get).sum()
    }

    /// The shards' steady clock, for those who are no shard.
    pub(crate) fn steady_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(crate) fn tell_all_shards(&self, letter: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            mailbox.put(letter());
        }
    }

    /// This gateway in its present life.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { address: self.config.endpoint_address.clone(), incarnation: self.lease.incarnation() }
    }
}

/// The sum of one shard's queues. Alone in its cache line: it is written in most rounds.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct QueueBytes(AtomicU64);

impl QueueBytes {
    pub(crate) fn tell(&self, bytes: u64) {
        if self.get() != bytes {
            self.0.store(bytes, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the shards must know of the lease before they serve anything.
pub(crate) struct Lease {
    incarnation: AtomicU64,
    /// On the steady clock.
    valid_until_ms: AtomicU64,
    /// A shard has seen the lease pass.
    lapsed: AtomicBool,
    pub(crate) lapse: Notify,
}

impl Lease {
    pub(crate) fn new(incarnation: Incarnation, valid_until_ms: u64) -> Self {
        Self {
            incarnation: AtomicU64::new(incarnation.0),
            valid_until_ms: AtomicU64::new(valid_until_ms),
            lapsed: AtomicBool::new(false),
            lapse: Notify::new(),
        }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    pub(crate) fn has_passed(&self, steady_ms: u64) -> bool {
        steady_ms >= self.valid_until_ms.load(Ordering::Acquire)
    }

    pub(crate) fn is_lapsed(&self) -> bool {
        self.lapsed.load(Ordering::Acquire)
    }

    /// A shard says that the lease has passed: a renewal that is still under way comes too late.
    pub(crate) fn note_lapse(&self) {
        self.lapsed.store(true, Ordering::Release);
        self.lapse.notify_one();
    }

    pub(crate) fn extend(&self, valid_until_ms: u64) {
        self.valid_until_ms.fetch_max(valid_until_ms, Ordering::AcqRel);
    }

    pub(crate) fn begin_life(&self, incarnation: Incarnation, valid_until_ms: u64) {
        self.valid_until_ms.store(valid_until_ms, Ordering::Release);
        self.incarnation.store(incarnation.0, Ordering::Release);
        self.lapsed.store(false, Ordering::Release);
    }
}
