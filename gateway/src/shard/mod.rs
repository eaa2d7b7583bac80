//! A shard: one thread with one driver, one slab of sessions and one timing wheel.
//!
//! No session has a task, a timer, a buffer or a lock of its own. In each round the shard looks at its lease, takes the
//! driver's completions and its mail, wakes the sessions that are due, and then polls every session that was touched, in
//! the order that [`Session`](roost_session::machine::Session) asks for.

mod door;
mod drain;
mod entry;
mod io;
mod letters;
mod settle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_protocol::{CloseCode, Incarnation, SessionId};
use roost_session::framing::handshake::PlainHttp;
use roost_session::machine::{Context, Event, Now, Pressure, Purpose, Session};

use crate::driver::{Driver, Submission};
use crate::ingress::{Ingress, Sender};
use crate::mail::Mail;
use crate::membership::Change;
use crate::shared::Shared;
use crate::slab::{Key, Slab};
use crate::wheel::Wheel;
use door::Door;
use drain::Drain;
use entry::{Entry, Users};

/// The lease is looked at this often, and always after a longer sleep: reading its clock costs a system call.
const LEASE_CHECK_MS: u64 = 250;
/// Want of descriptors or memory does not pass at once.
const ACCEPT_FAILED_MS: u64 = 500;
/// A pause that goes on is said again this often.
const ACCEPT_WARN_MS: u64 = 10_000;

/// See the module.
pub(crate) struct Shard<D> {
    shared: Arc<Shared>,
    index: usize,
    driver: D,
    sessions: Slab<Entry>,
    users: Users,
    wheel: Wheel,
    ingress: Ingress,
    /// Sessions to be polled at the end of the round.
    touched: Vec<Key>,
    /// What sessions have asked for in this round.
    wants: Vec<(Key, Want)>,
    /// What the Registry is to be told.
    changes: Vec<Change>,
    letters: Vec<Mail>,
    due: Vec<u32>,
    found: Vec<Key>,
    started: Instant,
    now: Now,
    incarnation: Incarnation,
    /// The lease has passed: nothing is served until the next life begins.
    suspended: bool,
    lease_checked: Now,
    /// Somebody has more to send than is being sent, or something to do when it is sent.
    awaits_sent: bool,
    /// The sum of this shard's queues.
    queue_bytes: u64,
    /// How far the sum of all shards' queues is over its cap.
    pressure: Pressure,
    /// The accepting shard only.
    accepting: Accepting,
    accept_warns_ms: u64,
    next_shard: usize,
    drain: Option<Drain>,
    stopping: bool,
    tally: Tally,
}

/// Counts of one delivery, given to the shared counters at once: one by one they would be the shards' only contention.
#[derive(Default)]
struct Tally {
    delivered: u64,
    settled: u64,
    suppressed: u64,
    heads: u64,
}

/// Whether the listener is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// Paused until then.
    PausedUntil(u64),
    /// Another shard has the listener.
    Never,
}

/// What a session has asked for.
enum Want {
    Http(Box<PlainHttp>),
    /// The token. Not to be logged.
    Authenticate(String, Purpose),
    Register,
}

impl<D: Driver> Shard<D> {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, driver: D, accepts: bool) -> Self {
        let now = Now { steady_ms: 0, wall_ms: shared.ports.clock.now_ms() };
        let incarnation = shared.lease.incarnation();
        shared.mailboxes[index].connect(driver.wake());
        shared.admission.limit_shard(index, driver.connections_max());
        Self {
            index,
            driver,
            sessions: Slab::new(),
            users: Users::default(),
            wheel: Wheel::new(0),
            ingress: Ingress::new(shared.endpoint(), shared.partitions),
            touched: Vec::new(),
            wants: Vec::new(),
            changes: Vec::new(),
            letters: Vec::new(),
            due: Vec::new(),
            found: Vec::new(),
            started: shared.started,
            now,
            incarnation,
            suspended: false,
            lease_checked: now,
            awaits_sent: false,
            queue_bytes: 0,
            pressure: Pressure::None,
            accepting: if accepts { Accepting::Yes } else { Accepting::Never },
            accept_warns_ms: 0,
            next_shard: 0,
            drain: None,
            stopping: false,
            tally: Tally::default(),
            shared,
        }
    }

    /// The thread's work, until it is told to stop.
    pub(crate) fn run(mut self) {
        // Adapters may spawn when the log is called from here.
        let runtime = self.shared.runtime.clone();
        let _entered = runtime.enter();
        while !self.stopping {
            let timeout = self.timeout();
            self.shared.beats[self.index].waits();
            if let Err(error) = self.driver.wait(timeout) {
                tracing::error!(%error, shard = self.index, "the driver does not wait: the shard ends");
                break;
            }
            self.shared.beats[self.index].begins();
            self.round();
        }
        self.end();
        self.shared.beats[self.index].waits();
    }

    fn round(&mut self) {
        self.read_clocks();
        self.check_lease();
        // What was sent is known before anybody is given more: who reads is not to look like who does not.
        self.take_completions();
        self.take_mail();
        self.wake_due();
        self.step_drain();
        let refused = self.ingress.flush(&self.shared, self.index);
        self.sends_failed(refused);
        while !self.wants.is_empty() || !self.touched.is_empty() {
            self.serve_wants();
            self.settle_touched();
        }
        self.tell_membership();
        self.decide_accepting();
    }

    fn timeout(&mut self) -> Option<Duration> {
        if std::mem::take(&mut self.awaits_sent) {
            return Some(Duration::ZERO);
        }
        let mut next_ms = self.wheel.next_ms();
        let mut sooner = |at_ms: u64| next_ms = Some(next_ms.map_or(at_ms, |next_ms| next_ms.min(at_ms)));
        if let Accepting::PausedUntil(at_ms) = self.accepting {
            sooner(at_ms);
        }
        if self.drain.is_some() {
            sooner(self.now.steady_ms + drain::STEP_MS);
        }
        if !self.changes.is_empty() {
            sooner(self.now.steady_ms + 5);
        }
        // From when the round began: its clock has been read, and is rounded down, so that no millisecond is spent spinning.
        next_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(self.now.steady_ms)))
    }

    fn read_clocks(&mut self) {
        self.now =
            Now { steady_ms: self.started.elapsed().as_millis() as u64, wall_ms: self.shared.ports.clock.now_ms() };
        self.pressure = self.shared.pressure();
    }

    /// Before anything else: did the lease pass while we stood still? The wall clock tells of a sleeping machine, where
    /// the steady one of this thread stands still too.
    fn check_lease(&mut self) {
        let since = |now: u64, then: u64| now.checked_sub(then).is_none_or(|passed| passed >= LEASE_CHECK_MS);
        let looks = since(self.now.steady_ms, self.lease_checked.steady_ms)
            || since(self.now.wall_ms, self.lease_checked.wall_ms);
        if !looks {
            return;
        }
        self.lease_checked = self.now;
        let lease = &self.shared.lease;
        if !self.suspended
            && lease.incarnation() == self.incarnation
            && lease.has_passed(self.shared.ports.clock.steady_ms())
        {
            lease.note_lapse();
            self.suspended = true;
            self.close_all_registered();
        }
    }

    fn begin_life(&mut self, incarnation: Incarnation) {
        self.close_all_registered();
        self.incarnation = incarnation;
        self.suspended = false;
        self.changes.clear();
        self.ingress.begin_life(self.shared.endpoint());
    }

    /// Whoever has a session id of this life, or is about to get one. Nobody finds them from here on, and the lease's
    /// end has taken them out of the Registry.
    fn close_all_registered(&mut self) {
        for slot in 0..self.sessions.slots() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(entry) = self.sessions.get_mut(key).filter(|entry| entry.registered) else { continue };
            entry.registered = false;
            let user = entry.session.identity().0;
            self.users.remove(user, key, &mut self.sessions);
            self.shared.admission.user_leaves(user);
            self.with_session(key, |session, context| session.close(CloseCode::LeaseLost, context));
        }
    }

    fn session_id(&self, key: Key) -> SessionId {
        SessionId::new(self.incarnation, self.index as u8, key.slot, key.generation)
    }

    /// The key of a session of this life and shard.
    fn key_of(&self, session: SessionId) -> Option<Key> {
        let here = session.incarnation() == self.incarnation && usize::from(session.shard()) == self.index;
        here.then_some(Key { slot: session.slot(), generation: session.generation() })
    }

    /// Calls a session and marks it to be polled. `None`: it is gone.
    fn with_session<T>(&mut self, key: Key, call: impl FnOnce(&mut Session, &Context<'_>) -> T) -> Option<T> {
        let entry = self.sessions.get_mut(key).filter(|entry| !entry.leaving)?;
        let result = call(&mut entry.session, &context(&self.shared, self.now, self.pressure));
        if !entry.touched {
            entry.touched = true;
            self.touched.push(key);
        }
        Some(result)
    }

    /// Calls a session that may tell events.
    fn with_events(
        &mut self,
        key: Key,
        call: impl FnOnce(&mut Session, &Context<'_>, &mut dyn FnMut(Event<'_>)),
    ) -> Option<()> {
        let session_id = self.session_id(key);
        let context = context(&self.shared, self.now, self.pressure);
        let entry = self.sessions.get_mut(key).filter(|entry| !entry.leaving)?;
        let door = Door::of(&self.shared, self.now.steady_ms, &mut entry.opening, &mut entry.neighbour);
        let (ingress, wants) = (&mut self.ingress, &mut self.wants);
        let hearer = Hearer { key, session_id, now_ms: self.now.wall_ms, ingress, wants, door };
        hearer.hear(&mut entry.session, |session, tell| call(session, &context, tell));
        if !entry.touched {
            entry.touched = true;
            self.touched.push(key);
        }
        Some(())
    }

    /// Closes what is left, without a word: the process ends.
    fn end(&mut self) {
        self.shared.mailboxes[self.index].close();
        for slot in 0..self.sessions.slots() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            self.driver.submit(Submission::Close { key });
            self.forget(key);
        }
        self.driver.submit(Submission::Accept(false));
    }
}

/// Free-standing, so that sessions may be borrowed beside it.
fn context(shared: &Shared, now: Now, pressure: Pressure) -> Context<'_> {
    Context { settings: &shared.settings, now, pressure }
}

/// Takes the events of one session while it is called.
struct Hearer<'s> {
    key: Key,
    session_id: SessionId,
    now_ms: roost_protocol::TimeMs,
    ingress: &'s mut Ingress,
    wants: &'s mut Vec<(Key, Want)>,
    door: Door<'s>,
}

impl Hearer<'_> {
    fn hear(self, session: &mut Session, call: impl FnOnce(&mut Session, &mut dyn FnMut(Event<'_>))) {
        let Hearer { key, session_id, now_ms, ingress, wants, mut door } = self;
        let (user, device) = session.identity();
        let sender = Sender { key, session: session_id, user, device, now_ms };
        call(session, &mut |event| match event {
            Event::Send { request, send } => ingress.add(&sender, request, send),
            Event::Upgrade { head, refusal } => *refusal = door.refusal(head),
            Event::Register => wants.push((key, Want::Register)),
            Event::Http(request) => wants.push((key, Want::Http(request))),
            Event::Authenticate { token, purpose } => {
                wants.push((key, Want::Authenticate(token.to_owned(), purpose)));
            }
        });
    }
}
