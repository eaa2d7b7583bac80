//! What asks for a number goes into the Log like everybody's, and its verdict comes back here by Delivery.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use roost_ports::delivery::{DeliveryBatch, DeliveryFuture, DeliveryItem, DeliverySink, Verdict, VerdictOutcome};
use roost_ports::log::{AppendError, NewRecord, Topic};
use roost_ports::{Log, Store};
use roost_protocol::frames::HistoryRange;
use roost_protocol::records::{Action, Endpoint, IngressRecord, Origin};
use roost_protocol::{ClientMsgId, ErrorCode, Incarnation, TimeMs, partition};
use roost_session::token::Claims;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::problem::Problem;

/// How long the Store may take to say what became of a request whose verdict did not come.
const OUTCOME_MS_MAX: u64 = 2_000;

/// Appends records and waits for their verdicts.
pub(crate) struct Ingress {
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    endpoint: Endpoint,
    verdict_ms_max: u64,
    waiting: Arc<Waiting>,
}

impl Ingress {
    pub(crate) fn new(
        log: Arc<dyn Log>,
        store: Arc<dyn Store>,
        endpoint: Endpoint,
        verdict_ms_max: u64,
        waiting_max: usize,
    ) -> Self {
        let waiting = Arc::new(Waiting { next: AtomicU64::new(1), max: waiting_max, requests: Mutex::default() });
        Self { log, store, endpoint, verdict_ms_max, waiting }
    }

    /// The receiving end of verdicts.
    pub(crate) fn sink(&self) -> Arc<dyn DeliverySink> {
        Arc::new(Sink { incarnation: self.endpoint.incarnation, waiting: Arc::clone(&self.waiting) })
    }

    /// Asks for a number; `None` where the verdict is not known in time: it may have been applied or not, and the same
    /// request under the same client_msg_id will tell.
    pub(crate) async fn submit(
        &self,
        caller: &Claims,
        client_msg_id: ClientMsgId,
        action: Action<'_>,
        now_ms: TimeMs,
    ) -> Result<Option<VerdictOutcome>, Problem> {
        let deadline = Instant::now() + Duration::from_millis(self.verdict_ms_max);
        let mut pending = self.waiting.enter(client_msg_id)?;
        let record = IngressRecord {
            actor: caller.user_id,
            device: caller.device_id,
            client_msg_id,
            time: now_ms,
            origin: Some(Origin { endpoint: self.endpoint.clone(), session: None, request: pending.request }),
            if_last_seq: None,
            action,
        };
        let conversation_id = record.conversation_id();
        let partition = partition::of(conversation_id, self.log.partitions());
        let append = self.log.append(Topic::Ingress, vec![NewRecord { partition, payload: record.encode() }]);
        // The verdict may be here before the append says that it is durable: the worker saw it first.
        tokio::select! {
            biased;
            verdict = &mut pending.verdict => return Ok(verdict.ok()),
            appended = append => check_appended(appended.into_iter().next())?,
            () = tokio::time::sleep_until(deadline) => {}
        }
        if let Ok(Ok(verdict)) = timeout_at(deadline, &mut pending.verdict).await {
            return Ok(Some(verdict));
        }
        metrics::counter!("roost_api_verdicts_missed_total").increment(1);
        Ok(self.look_up(&record).await)
    }

    /// What the Store says of a request whose verdict was lost.
    async fn look_up(&self, record: &IngressRecord<'_>) -> Option<VerdictOutcome> {
        let until = Instant::now() + Duration::from_millis(OUTCOME_MS_MAX);
        let outcome = self.store.outcome(record.conversation_id(), record.actor, record.client_msg_id);
        let outcome = timeout_at(until, outcome).await.ok()?.ok()??;
        let VerdictOutcome::Committed { seq, .. } = outcome else { return Some(outcome) };
        let Action::Send { conversation_id, content_type, body } = &record.action else { return Some(outcome) };
        // The row is that of the first request under this id: was it this one?
        let range = HistoryRange::After(seq.saturating_sub(1));
        let page = self.store.history(record.actor, *conversation_id, range, 1);
        let page = timeout_at(until, page).await.ok()?.ok()?;
        let first = page.messages.first().filter(|message| message.seq == seq)?;
        if first.content_type == *content_type && first.body == **body {
            return Some(outcome);
        }
        let code = ErrorCode::IdempotencyMismatch;
        Some(VerdictOutcome::Rejected { code, message: code.help().to_owned() })
    }
}

fn check_appended(result: Option<Result<roost_ports::log::Position, AppendError>>) -> Result<(), Problem> {
    match result {
        // Not acknowledged may still be there: the verdict or the deadline will say.
        Some(Ok(_) | Err(AppendError::Unknown(_))) | None => Ok(()),
        Some(Err(AppendError::Full)) => Err(Problem::new(ErrorCode::Busy, "The log's queue is full.")),
        Some(Err(AppendError::TooLarge)) => Err(Problem::new(ErrorCode::BodyTooLarge, "The request is too large.")),
    }
}

/// The requests that wait for their verdict.
struct Waiting {
    next: AtomicU64,
    max: usize,
    requests: Mutex<HashMap<u64, (ClientMsgId, oneshot::Sender<VerdictOutcome>)>>,
}

impl Waiting {
    fn enter(self: &Arc<Self>, client_msg_id: ClientMsgId) -> Result<Pending, Problem> {
        let (sender, verdict) = oneshot::channel();
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let mut requests = self.requests.lock();
        if requests.len() >= self.max {
            return Err(Problem::new(ErrorCode::Busy, "Too many requests wait for their verdict."));
        }
        requests.insert(request, (client_msg_id, sender));
        Ok(Pending { request, verdict, waiting: Arc::clone(self) })
    }

    fn leave(&self, request: u64) {
        self.requests.lock().remove(&request);
    }

    fn answer(&self, verdict: Verdict) {
        let mut requests = self.requests.lock();
        // A verdict for nobody, or for another request under this number, is late or not ours.
        let waits = requests.get(&verdict.request).is_some_and(|(waiting, _)| *waiting == verdict.client_msg_id);
        if waits && let Some((_, sender)) = requests.remove(&verdict.request) {
            let _ = sender.send(verdict.outcome);
        }
    }
}

/// A request's place among the waiting; given up when dropped.
struct Pending {
    request: u64,
    verdict: oneshot::Receiver<VerdictOutcome>,
    waiting: Arc<Waiting>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.waiting.leave(self.request);
    }
}

struct Sink {
    incarnation: Incarnation,
    waiting: Arc<Waiting>,
}

impl DeliverySink for Sink {
    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture {
        for item in batch.items {
            match item {
                DeliveryItem::Verdict(verdict) => self.waiting.answer(verdict),
                // No sessions live here: whatever is for them has been served.
                DeliveryItem::Message { .. } | DeliveryItem::Heads { .. } | DeliveryItem::SyncAll => {}
            }
        }
        async { Ok(()) }.boxed()
    }
}
