//! Whether connections are accepted and become sessions: counted over all shards, refused with the time to come back.
//!
//! Three doors, one behind the other:
//!
//! 1. **Accepting.** As many a second as the bucket of handshakes gives; beyond it connections wait in the kernel's
//!    queue, where a client without back-off can do no harm. The same where too many are in their handshake, or the
//!    process is out of descriptors.
//! 2. **The address**, as soon as it is known: so many connections and so large a share of the handshakes. Beyond it the
//!    handshake is answered 429; where even those answers would be too many, the connection is dropped.
//! 3. **The user**, once the token is verified: so many sessions.

mod addresses;
mod users;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use roost_protocol::UserId;
use roost_session::framing::handshake::HttpError;
use roost_session::framing::peer::Neighbour;
use roost_session::rate::{Bucket, Rate};

use crate::config::Config;
use crate::shared::Shared;
use addresses::Addresses;
use users::Users;

/// Connections over the limit that are let in to be told so.
const REFUSALS_MAX: usize = 256;
/// Accepting goes on once so many milliseconds' tokens have come together: waking up for each of them would cost more
/// than it is worth.
const BREATH_MS: u64 = 10;
/// A shard that does not accept looks again this often whether it may.
const RETRY_MS: u64 = 50;
/// Refused clients are asked to come back at different times within so many seconds.
const SPREAD_S: u32 = 10;

/// See the module.
pub(crate) struct Admission {
    connections: AtomicUsize,
    openings: AtomicUsize,
    /// Connections that are only there to be refused: they take nobody's room.
    refusing: AtomicUsize,
    live: AtomicUsize,
    draining: AtomicBool,
    /// Shards that make no progress.
    stalled: AtomicUsize,
    connections_max: usize,
    refusals_max: usize,
    openings_max: usize,
    handshakes: Mutex<Bucket>,
    handshake_rate: Rate,
    addresses: Addresses,
    users: Users,
    shards: Box<[Shard]>,
    refused: AtomicU32,
}

struct Shard {
    connections: AtomicUsize,
    /// What its driver can hold.
    capacity: AtomicUsize,
}

/// Why a connection does not become a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// The gateway holds as many connections as it may.
    Full,
    /// The gateway is being drained.
    Draining,
    /// The address has as many connections as it may.
    AddressConnections,
    /// The address begins too many.
    AddressRate,
}

/// What becomes of a connection, now that its address is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entrance {
    /// It may become a session.
    Open,
    /// Its request is answered with a refusal.
    Refused(Reason),
    /// It is closed at once: its address has had enough answers.
    Dropped,
}

/// Why no connections are accepted for a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pause {
    /// The bucket of handshakes is empty: so long.
    Pace {
        /// Milliseconds.
        wait_ms: u64,
    },
    /// There are too many already.
    Full {
        /// Milliseconds.
        wait_ms: u64,
    },
}

impl Admission {
    /// The drivers together can have so many connections.
    pub(crate) fn new(config: &Config, drivers_max: usize) -> Self {
        let refusals_max = REFUSALS_MAX.min(drivers_max / 8);
        let connections_max = config.sessions_max.min(drivers_max - refusals_max);
        let handshake_rate = Rate::per_second(config.handshakes_per_second);
        let shard = || Shard { connections: AtomicUsize::new(0), capacity: AtomicUsize::new(usize::MAX) };
        Self {
            connections: AtomicUsize::new(0),
            openings: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stalled: AtomicUsize::new(0),
            connections_max,
            refusals_max,
            openings_max: config.openings_max,
            handshakes: Mutex::default(),
            handshake_rate,
            addresses: Addresses::new(config.connections_per_address_max, config.openings_max, handshake_rate),
            users: Users::new(config.sessions_per_user_max),
            shards: (0..config.shards).map(|_| shard()).collect(),
            refused: AtomicU32::new(0),
        }
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Whether there is one more than may become a session.
    pub(crate) fn is_over(&self) -> bool {
        self.connections() > self.connections_max + self.refusing.load(Ordering::Relaxed)
    }

    /// A shard's driver holds no more than so many connections.
    pub(crate) fn limit_shard(&self, shard: usize, capacity: usize) {
        self.shards[shard].capacity.store(capacity, Ordering::Relaxed);
    }

    /// A shard with room, beginning with this one.
    pub(crate) fn shard_with_room(&self, first: usize) -> Option<usize> {
        let count = self.shards.len();
        (0..count).map(|step| (first + step) % count).find(|&shard| {
            let Shard { connections, capacity } = &self.shards[shard];
            connections.load(Ordering::Relaxed) < capacity.load(Ordering::Relaxed)
        })
    }

    /// Whether new clients should be sent here.
    pub(crate) fn has_room(&self) -> bool {
        self.connections() < self.connections_max + self.refusing.load(Ordering::Relaxed)
            && self.openings.load(Ordering::Relaxed) < self.openings_max
            && self.stalled.load(Ordering::Relaxed) == 0
    }

    /// Whether another connection may be accepted now.
    pub(crate) fn may_accept(&self, now_ms: u64) -> Result<(), Pause> {
        let full = self.connections() >= self.connections_max + self.refusals_max
            || self.openings.load(Ordering::Relaxed) >= self.openings_max
            || self.shard_with_room(0).is_none();
        if full {
            return Err(Pause::Full { wait_ms: RETRY_MS });
        }
        match self.handshakes.lock().wait_ms(self.handshake_rate, now_ms) {
            0 => Ok(()),
            wait_ms => Err(Pause::Pace { wait_ms: wait_ms.max(BREATH_MS) }),
        }
    }

    /// Whether handshakes may become sessions.
    pub(crate) fn admits(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_stalled(&self, shards: usize) {
        self.stalled.store(shards, Ordering::Relaxed);
    }

    /// A connection was accepted for a shard.
    pub(crate) fn opened(&self, shard: usize, now_ms: u64) {
        // What the driver had accepted before it was told to pause comes all the same, and is paid for by waiting.
        let _ = self.handshakes.lock().take_by(self.handshake_rate, now_ms, u64::MAX);
        self.shards[shard].connections.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.openings.fetch_add(1, Ordering::Relaxed);
    }

    /// Judges a connection by its address. Whom it is counted for must be handed back to [`closed`](Self::closed).
    pub(crate) fn enter(&self, address: IpAddr, now_ms: u64) -> (Entrance, Option<Neighbour>) {
        let neighbour = Neighbour::of(address);
        let (entrance, counted) = self.addresses.enter(neighbour, now_ms);
        if entrance != Entrance::Open {
            // It costs little, and its share must not be taken from the others.
            self.handshakes.lock().put_back(self.handshake_rate);
        }
        (entrance, counted.then_some(neighbour))
    }

    /// A connection is to be refused. To be taken back once it is gone.
    pub(crate) fn refuses(&self) {
        self.refusing.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn has_refused(&self) {
        self.refusing.fetch_sub(1, Ordering::Relaxed);
    }

    /// What the client is told.
    pub(crate) fn refusal(&self, reason: Reason) -> HttpError {
        // Neighbours in time get different answers.
        let number = self.refused.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9);
        let after_s = 1 + ((u64::from(number) * u64::from(SPREAD_S)) >> 32) as u32;
        match reason {
            Reason::Full => HttpError::unavailable("As many sessions as are allowed: come back later.", after_s),
            Reason::Draining => HttpError::unavailable("No new sessions now: come back later.", 1),
            Reason::AddressConnections => {
                HttpError::too_many_requests("Too many connections from this address: come back later.", after_s)
            }
            Reason::AddressRate => {
                HttpError::too_many_requests("Too many new connections from this address: come back later.", after_s)
            }
        }
    }

    /// One more session of the user; false: there are as many as are allowed. Each true is answered by one
    /// [`user_leaves`](Self::user_leaves).
    pub(crate) fn user_enters(&self, user: UserId) -> bool {
        self.users.enter(user)
    }

    pub(crate) fn user_leaves(&self, user: UserId) {
        self.users.leave(user);
    }

    pub(crate) fn no_longer_opening(&self, neighbour: Option<Neighbour>) {
        self.openings.fetch_sub(1, Ordering::Relaxed);
        if let Some(neighbour) = neighbour {
            self.addresses.no_longer_opening(neighbour);
        }
    }

    pub(crate) fn became_live(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn no_longer_live(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection is no longer the shard's.
    pub(crate) fn closed(&self, shard: usize) {
        self.shards[shard].connections.fetch_sub(1, Ordering::Relaxed);
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection no longer counts for its address.
    pub(crate) fn left(&self, neighbour: Neighbour, now_ms: u64) {
        self.addresses.leave(neighbour, now_ms);
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// A connection whose address is known and has been judged.
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Whom it is counted for.
    pub(crate) neighbour: Option<Neighbour>,
    /// Why its request will be refused.
    pub(crate) refused: Option<Reason>,
}

impl Arrival {
    /// Judges a connection that was accepted for a shard. `None`: it is dropped, and no longer counts.
    pub(crate) fn judge(
        shared: &Shared,
        shard: usize,
        stream: TcpStream,
        peer: SocketAddr,
        now_ms: u64,
    ) -> Option<Self> {
        let admission = &shared.admission;
        // Whom a proxy speaks for stands in the request's head.
        let (entrance, neighbour) = match shared.config.proxies.trusts(peer.ip()) {
            true => (Entrance::Open, None),
            false => admission.enter(peer.ip(), now_ms),
        };
        let refused = match entrance {
            Entrance::Open if admission.is_over() => Some(Reason::Full),
            Entrance::Open => None,
            Entrance::Refused(reason) => Some(reason),
            Entrance::Dropped => {
                shared.metrics.dropped.add(1);
                admission.no_longer_opening(None);
                admission.closed(shard);
                return None;
            }
        };
        if refused.is_some() {
            admission.refuses();
        }
        Some(Self { stream, peer, neighbour, refused })
    }
}

/// The place that a connection has among those of its address, until this is dropped.
pub struct Place {
    shared: Arc<Shared>,
    neighbour: Option<Neighbour>,
}

impl Place {
    pub(crate) fn new(shared: &Arc<Shared>, neighbour: Option<Neighbour>) -> Self {
        Self { shared: Arc::clone(shared), neighbour }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Place({:?})", self.neighbour)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(neighbour) = self.neighbour.take() {
            self.shared.admission.left(neighbour, self.shared.steady_ms());
        }
    }
}
