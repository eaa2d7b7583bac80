//! The gateway among the others: its lease, and its sessions in the Registry.
//!
//! One task makes every write, one after the other, so that the Registry's counter can be compared with our own.

mod lease;
mod note;
mod sweep;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use roost_ports::registry::{RegistryError, RegistryIncarnation, SessionEntry};
use roost_protocol::frames::Form;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::mail::Mail;
use crate::resync::Resync;
use crate::shared::Shared;
use sweep::Sweep;

pub(crate) use note::note_gateway;

/// Entries in one call of the Registry.
const BATCH_ENTRIES: usize = 500;
/// Removals that wait for a Registry that is away. Beyond, they are left to the lease's end.
const REMOVALS_WAITING_MAX: usize = 200_000;
/// How often entries are made up for.
const CATCH_UP_EVERY: Duration = Duration::from_millis(50);

/// A change of what the gateway holds, in the order of a shard's telling.
pub(crate) enum Change {
    /// A session waits to be registered.
    Register(SessionEntry, Form),
    /// A session is gone.
    Unregister(SessionEntry),
}

/// The task.
pub(crate) struct Membership {
    shared: Arc<Shared>,
    changes: mpsc::Receiver<Vec<Change>>,
    /// The life of the Registry that we know; none before the lease is acquired.
    registry: Option<RegistryIncarnation>,
    /// How many of our writes the Registry has counted.
    writes: u64,
    /// It did not answer last time: nobody waits for it until it does.
    away: bool,
    /// It did not know our lease: the next renewal tells whether it has forgotten all, or us.
    renews_now: bool,
    /// `complete` was said under this life of the Registry.
    complete: bool,
    /// Live sessions that are not registered yet.
    late: VecDeque<(SessionEntry, Form)>,
    /// Sessions that are gone and perhaps still registered.
    removals: VecDeque<SessionEntry>,
    sweep: Option<Sweep>,
}

impl Membership {
    pub(crate) fn new(shared: Arc<Shared>, changes: mpsc::Receiver<Vec<Change>>) -> Self {
        Self {
            shared,
            changes,
            registry: None,
            writes: 0,
            away: true,
            renews_now: false,
            complete: false,
            late: VecDeque::new(),
            removals: VecDeque::new(),
            sweep: None,
        }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut renewal = tokio::time::interval(Duration::from_millis((self.shared.config.lease_ttl_ms / 3).max(1)));
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut catch_up = tokio::time::interval(CATCH_UP_EVERY);
        catch_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                biased;
                () = shared.lease.lapse.notified() => {}
                _ = renewal.tick() => {
                    self.keep_lease().await;
                    // Counted from the end: a Registry that never answers must not take all our time.
                    renewal.reset();
                }
                Some(changes) = self.changes.recv() => self.take_changes(changes).await,
                _ = catch_up.tick(), if self.has_to_catch_up() => self.catch_up().await,
            }
            if std::mem::take(&mut self.renews_now) {
                self.keep_lease().await;
            }
            if self.shared.lease.is_lapsed() {
                self.lose_lease("it passed while the process stood still").await;
            }
        }
    }

    fn has_to_catch_up(&self) -> bool {
        let behind = !self.late.is_empty() || !self.removals.is_empty() || self.sweep.is_some() || !self.complete;
        !self.away && behind
    }

    async fn take_changes(&mut self, first: Vec<Change>) {
        let mut changes = first;
        while changes.len() < BATCH_ENTRIES
            && let Ok(more) = self.changes.try_recv()
        {
            changes.extend(more);
        }
        let (mut register, mut removals) = (Vec::new(), Vec::new());
        let incarnation = self.shared.lease.incarnation();
        for change in changes {
            match change {
                // What belongs to a life that is over is gone with its lease.
                Change::Register(entry, form) if entry.session_id.incarnation() == incarnation => {
                    register.push((entry, form));
                }
                Change::Unregister(entry) if entry.session_id.incarnation() == incarnation => removals.push(entry),
                Change::Register(..) | Change::Unregister(_) => {}
            }
        }
        self.register_new(register).await;
        self.removals.extend(removals);
        self.remove_gone().await;
    }

    /// Registers sessions that wait for it, or lets them go on where the Registry is away.
    async fn register_new(&mut self, sessions: Vec<(SessionEntry, Form)>) {
        for batch in sessions.chunks(BATCH_ENTRIES) {
            let registered = !self.away && self.register(batch).await;
            if !registered {
                self.shared.metrics.registered_late.add(batch.len() as u64);
                self.late.extend(batch.iter().copied());
            }
            self.tell_registered(batch);
        }
    }

    fn tell_registered(&self, batch: &[(SessionEntry, Form)]) {
        let mut by_shard = vec![Vec::new(); self.shared.mailboxes.len()];
        for (entry, _) in batch {
            by_shard[usize::from(entry.session_id.shard())].push(entry.session_id);
        }
        for (shard, sessions) in by_shard.into_iter().enumerate() {
            if !sessions.is_empty() {
                self.shared.mailboxes[shard].put(Mail::Registered(sessions));
            }
        }
    }

    async fn register(&mut self, batch: &[(SessionEntry, Form)]) -> bool {
        let entries: Vec<SessionEntry> = batch.iter().map(|(entry, _)| *entry).collect();
        let incarnation = self.shared.lease.incarnation();
        let shared = Arc::clone(&self.shared);
        let call = shared.ports.registry.register(incarnation, &entries);
        let counted = self.within_limit(call).await;
        self.note_writes(counted)
    }

    async fn remove_gone(&mut self) {
        while !self.away && !self.removals.is_empty() {
            let count = self.removals.len().min(BATCH_ENTRIES);
            let entries: Vec<SessionEntry> = self.removals.iter().take(count).copied().collect();
            let incarnation = self.shared.lease.incarnation();
            let shared = Arc::clone(&self.shared);
            let counted = self.within_limit(shared.ports.registry.unregister(incarnation, &entries)).await;
            if self.note_writes(counted) {
                self.removals.drain(..count);
            }
        }
        if self.removals.len() > REMOVALS_WAITING_MAX {
            self.removals.drain(..self.removals.len() - REMOVALS_WAITING_MAX);
        }
    }

    /// Says whether the write was counted; else the Registry is away, or the lease is lost.
    fn note_writes(&mut self, counted: Result<u64, RegistryError>) -> bool {
        match counted {
            Ok(writes) => {
                // This write counted too: a counter that has not risen had fallen back, and the next renewal would find
                // it caught up.
                if writes <= self.writes {
                    self.register_all_again(writes, false);
                }
                self.writes = writes;
                true
            }
            Err(RegistryError::LeaseLost) => {
                self.doubt_lease();
                false
            }
            Err(RegistryError::Unavailable(problem)) => {
                self.note_away(&problem);
                false
            }
        }
    }

    /// A Registry that came back empty knows no lease at all, and that is no loss of ours: the renewal decides.
    fn doubt_lease(&mut self) {
        self.away = true;
        self.renews_now = true;
    }

    fn note_away(&mut self, problem: &str) {
        if !self.away {
            tracing::warn!(problem, "the registry is away: sessions go on without it");
        }
        self.away = true;
    }

    async fn within_limit<T>(&self, call: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let limit = Duration::from_millis(self.shared.config.registry_timeout_ms);
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or_else(|_| Err(RegistryError::Unavailable("no answer in time".to_owned())))
    }

    /// Makes up for what the Registry has missed, at a bounded rate; says `complete` when nothing is left.
    async fn catch_up(&mut self) {
        let rate = self.shared.config.reregistrations_per_second as usize;
        let count = (rate * CATCH_UP_EVERY.as_millis() as usize / 1000).clamp(1, BATCH_ENTRIES);
        self.remove_gone().await;
        if let Some(batch) = self.next_late(count) {
            if self.register(&batch).await {
                // While it was unknown, messages passed it by: it learns the newest seqs from the Store.
                if self.shared.resync.try_send(Resync::Some(batch.clone())).is_err() {
                    self.put_back(batch);
                }
            } else {
                self.put_back(batch);
            }
            return;
        }
        if let Some(sweep) = &mut self.sweep {
            match sweep.next(&self.shared, count).await {
                Some(batch) => {
                    let registered = self.register(&batch).await;
                    if let (false, Some(sweep)) = (registered, &mut self.sweep) {
                        sweep.start_again();
                    }
                }
                // Meanwhile messages may have passed them by.
                None if self.shared.resync.try_send(Resync::All).is_ok() => self.sweep = None,
                None => {}
            }
            return;
        }
        self.say_complete().await;
    }

    fn next_late(&mut self, count: usize) -> Option<Vec<(SessionEntry, Form)>> {
        let count = count.min(self.late.len());
        (count > 0).then(|| self.late.drain(..count).collect())
    }

    fn put_back(&mut self, batch: Vec<(SessionEntry, Form)>) {
        for late in batch.into_iter().rev() {
            self.late.push_front(late);
        }
    }

    async fn say_complete(&mut self) {
        let Some(registry) = self.registry.filter(|_| !self.complete) else { return };
        let incarnation = self.shared.lease.incarnation();
        let shared = Arc::clone(&self.shared);
        let began = Instant::now();
        match self.within_limit(shared.ports.registry.complete(incarnation, registry)).await {
            Ok(()) => {
                self.complete = true;
                tracing::debug!(elapsed_ms = began.elapsed().as_millis() as u64, "the registry knows every session");
            }
            Err(RegistryError::LeaseLost) => self.doubt_lease(),
            Err(RegistryError::Unavailable(problem)) => self.note_away(&problem),
        }
    }
}
