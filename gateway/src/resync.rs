//! Sessions that may have missed something are told where their conversations stand, through a token bucket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use roost_ports::registry::SessionEntry;
use roost_ports::store::StoreError;
use roost_protocol::frames::{Form, Head, Heads, ServerBody, ServerFrame};
use roost_protocol::limits;
use roost_session::machine::encode;
use roost_session::rate::Rate;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::mail::Mail;
use crate::shared::Shared;

/// Sessions that a shard lists at once.
const LIST_SESSIONS: usize = 256;
const RETRY: Duration = Duration::from_secs(1);

/// Who is to be told.
pub(crate) enum Resync {
    /// Every session of the gateway.
    All,
    /// These, for instance because the Registry did not know them for a while.
    Some(Vec<(SessionEntry, Form)>),
}

/// Runs until every sender is gone.
pub(crate) async fn run(shared: std::sync::Weak<Shared>, mut wanted: mpsc::Receiver<Resync>) {
    while let Some(resync) = wanted.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        let mut bucket = Bucket::new(shared.config.resyncs_per_second);
        match resync {
            Resync::Some(sessions) => tell(&shared, sessions.into(), &mut bucket).await,
            Resync::All => {
                tracing::info!("every session is told its heads");
                for shard in 0..shared.mailboxes.len() {
                    tell_shard(&shared, shard, &mut bucket).await;
                }
            }
        }
    }
}

async fn tell_shard(shared: &Arc<Shared>, shard: usize, bucket: &mut Bucket) {
    let mut from_slot = Some(0);
    while let Some(slot) = from_slot {
        let (reply, listed) = oneshot::channel();
        shared.mailboxes[shard].put(Mail::List { from_slot: slot, count: LIST_SESSIONS, reply });
        // A shard that has ended has no sessions to tell.
        let Ok(listed) = listed.await else { return };
        tell(shared, listed.sessions.into(), bucket).await;
        from_slot = listed.next_slot;
    }
}

/// Until all are told: a Store that is away delays it, and nothing forgets it but the end of the sessions' life.
async fn tell(shared: &Arc<Shared>, mut sessions: VecDeque<(SessionEntry, Form)>, bucket: &mut Bucket) {
    while let Some((entry, form)) = sessions.pop_front() {
        if entry.session_id.incarnation() != shared.lease.incarnation() {
            continue;
        }
        bucket.take().await;
        wait_for_turn(shared).await;
        match heads(shared, &entry).await {
            Ok(conversations) => {
                for conversations in conversations.chunks(limits::HEADS_MAX as usize) {
                    let heads = Heads { conversations: conversations.to_vec(), next: None, more: false, epoch: None };
                    let frame = encode(&ServerFrame::unsolicited(ServerBody::Heads(heads)), form);
                    let shard = usize::from(entry.session_id.shard());
                    shared.mailboxes[shard].put(Mail::Heads { session: entry.session_id, frame });
                }
            }
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(%error, "sessions wait to be told their heads");
                sessions.push_front((entry, form));
                tokio::time::sleep(RETRY).await;
            }
            // Asking again brings the same: the others must not wait for it.
            Err(error) => tracing::error!(%error, user = %entry.user_id, "a session cannot be told its heads"),
        }
    }
}

/// The clients' own syncs after a reconnect and these stand in one line.
async fn wait_for_turn(shared: &Shared) {
    let rate = Rate::per_second(shared.config.resumes_per_second);
    let taken = shared.resumes.lock().take_by(rate, shared.steady_ms(), u64::MAX);
    if let Ok(wait_ms @ 1..) = taken {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

async fn heads(shared: &Shared, entry: &SessionEntry) -> Result<Vec<Head>, StoreError> {
    let (mut all, mut since) = (Vec::new(), None);
    loop {
        let page = shared.ports.store.heads(entry.user_id, since.as_deref(), limits::HEADS_MAX).await?;
        all.extend(page.conversations.into_iter().map(|head| Head {
            first_seq: None,
            read_seq: None,
            delivered_seq: None,
            ..head
        }));
        if !page.more || page.next.is_none() || page.next == since {
            return Ok(all);
        }
        since = page.next;
    }
}

/// So many a second, without saving up.
struct Bucket {
    interval: Duration,
    next: Instant,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), next: Instant::now() }
    }

    async fn take(&mut self) {
        tokio::time::sleep_until(self.next).await;
        self.next = self.next.max(Instant::now() - Duration::from_millis(20)) + self.interval;
    }
}
