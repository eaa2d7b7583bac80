//! Tokens, syncs and histories: answered on the runtime, so many at a time, from the Store.

use std::sync::Arc;
use std::time::Duration;

use roost_ports::store::StoreError;
use roost_protocol::frames::{Form, Page, ServerBody, ServerFrame};
use roost_protocol::{ErrorCode, UserId, limits};
use roost_session::machine::{Refusal, Request, RequestKind, Settled, content_of, encode};
use roost_session::rate::Rate;

use crate::mail::Mail;
use crate::shared::Shared;
use crate::slab::Key;

/// A sync waits this long for its turn; beyond, its client is told when to come back.
const RESUME_PATIENCE_MS: u64 = 2_000;

/// Whose request, and in which form the answer goes.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) shard: usize,
    pub(crate) key: Key,
    pub(crate) user: UserId,
    pub(crate) form: Form,
}

/// Has a token verified; the answer comes by mail.
pub(crate) fn authenticate(shared: &Arc<Shared>, shard: usize, key: Key, token: String) {
    let shared = Arc::clone(shared);
    let runtime = shared.runtime.clone();
    runtime.spawn(async move {
        let limit = Duration::from_millis(shared.config.request_timeout_ms);
        let now_ms = shared.ports.clock.now_ms();
        let verified = tokio::time::timeout(limit, shared.ports.authenticate.authenticate(&token, now_ms)).await;
        let result = verified.unwrap_or(Err(Refusal::Unavailable));
        shared.mailboxes[shard].put(Mail::Authenticated { key, result });
    });
}

/// Has a request answered; the answer comes by mail, at once where too many wait.
pub(crate) fn answer(shared: &Arc<Shared>, asker: Asker, request: Request) {
    let Ok(waiting) = Arc::clone(&shared.requests_waiting).try_acquire_owned() else {
        let frame = error_frame(shared, asker.form, request.id, ErrorCode::Busy);
        shared.mailboxes[asker.shard].put(Mail::Answer { key: asker.key, frame, settled: Vec::new() });
        return;
    };
    let wait = match resume_wait(shared, &request.kind) {
        Ok(wait) => wait,
        Err(retry_after_ms) => {
            let frame = busy_frame(asker.form, request.id, retry_after_ms);
            shared.mailboxes[asker.shard].put(Mail::Answer { key: asker.key, frame, settled: Vec::new() });
            return;
        }
    };
    let shared = Arc::clone(shared);
    let runtime = shared.runtime.clone();
    runtime.spawn(async move {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let limit = Duration::from_millis(shared.config.request_timeout_ms);
        let answered = tokio::time::timeout(limit, from_store(&shared, asker.user, &request.kind)).await;
        let timed_out = || Err(StoreError::Unavailable("no answer in time".to_owned()));
        let (frame, settled) = match answered.unwrap_or_else(|_| timed_out()) {
            Ok((body, settled)) => (encode(&ServerFrame::answer(request.id, body), asker.form), settled),
            Err(error) => (error_frame(&shared, asker.form, request.id, code_of(&error)), Vec::new()),
        };
        drop(waiting);
        shared.mailboxes[asker.shard].put(Mail::Answer { key: asker.key, frame, settled });
    });
}

/// How long a sync waits for its token, or when it is to come back. After a storm of reconnects the Store gets no more
/// syncs at a time than it can answer beside everything else.
fn resume_wait(shared: &Shared, kind: &RequestKind) -> Result<Duration, u64> {
    if !matches!(kind, RequestKind::Sync { .. }) {
        return Ok(Duration::ZERO);
    }
    let rate = Rate::per_second(shared.config.resumes_per_second);
    let taken = shared.resumes.lock().take_by(rate, shared.steady_ms(), RESUME_PATIENCE_MS);
    match taken {
        Ok(0) => Ok(Duration::ZERO),
        Ok(wait_ms) => {
            shared.metrics.resumes_delayed.add(1);
            Ok(Duration::from_millis(wait_ms))
        }
        Err(retry_after_ms) => {
            shared.metrics.resumes_refused.add(1);
            Err(retry_after_ms.max(shared.settings.retry_after_ms))
        }
    }
}

async fn from_store(
    shared: &Shared,
    user: UserId,
    kind: &RequestKind,
) -> Result<(ServerBody, Vec<Settled>), StoreError> {
    let _running = shared
        .requests_running
        .acquire()
        .await
        .map_err(|_| StoreError::Unavailable("the gateway is stopping".to_owned()))?;
    let store = &shared.ports.store;
    match kind {
        RequestKind::Sync { since } => {
            let heads = store.heads(user, since.as_deref(), limits::HEADS_MAX).await?;
            Ok((ServerBody::Heads(heads), Vec::new()))
        }
        RequestKind::History { conversation_id, range, limit } => {
            let limit = limit.unwrap_or(limits::PAGE_MESSAGES_MAX).clamp(1, limits::PAGE_MESSAGES_MAX);
            let page = store.history(user, *conversation_id, *range, limit).await?;
            let settled = own_messages(&page, user);
            Ok((ServerBody::Page(page), settled))
        }
    }
}

/// A page that shows a sender its own message is an answer to the send.
fn own_messages(page: &Page, user: UserId) -> Vec<Settled> {
    let own = page.messages.iter().filter(|message| message.sender_id == user);
    own.map(|message| Settled {
        conversation_id: message.conversation_id,
        client_msg_id: message.client_msg_id,
        seq: message.seq,
        time: message.time,
        content: Some(content_of(&message.content_type, &message.body)),
    })
    .collect()
}

fn code_of(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::NotFound => ErrorCode::NotFound,
        StoreError::InvalidCursor => ErrorCode::InvalidCursor,
        StoreError::AlreadyExists => ErrorCode::AlreadyExists,
        StoreError::Unavailable(problem) | StoreError::Refused(problem) => {
            tracing::warn!(problem, "the store did not answer a client's request");
            ErrorCode::Unavailable
        }
    }
}

fn busy_frame(form: Form, id: Option<u32>, retry_after_ms: u64) -> bytes::Bytes {
    let (code, retry_after_ms) = (ErrorCode::Busy, Some(retry_after_ms));
    let body = ServerBody::Error { code, message: code.help().to_owned(), retry_after_ms, fatal: false };
    encode(&ServerFrame::answer(id, body), form)
}

fn error_frame(shared: &Shared, form: Form, id: Option<u32>, code: ErrorCode) -> bytes::Bytes {
    let retry_after_ms = code.retryable().then_some(shared.settings.retry_after_ms);
    let body = ServerBody::Error { code, message: code.help().to_owned(), retry_after_ms, fatal: false };
    encode(&ServerFrame::answer(id, body), form)
}
