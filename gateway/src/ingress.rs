//! Sends on their way into the log: encoded straight from the receive buffer, appended in batches.

use std::borrow::Cow;
use std::sync::Arc;

use roost_ports::log::{AppendError, NewRecord, Topic};
use roost_protocol::frames::Send;
use roost_protocol::records::{Action, Endpoint, IngressRecord, Origin};
use roost_protocol::{DeviceId, ErrorCode, SessionId, TimeMs, UserId, partition};

use crate::mail::Mail;
use crate::shared::Shared;
use crate::slab::Key;

/// The sends of one round of a shard.
pub(crate) struct Ingress {
    endpoint: Endpoint,
    partitions: u32,
    records: Vec<NewRecord>,
    /// Whose each record is.
    owners: Vec<(Key, u32)>,
}

/// Who sends. The server's values; nothing of it comes from the client's frame.
pub(crate) struct Sender {
    pub(crate) key: Key,
    pub(crate) session: SessionId,
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    pub(crate) now_ms: TimeMs,
}

impl Ingress {
    pub(crate) fn new(endpoint: Endpoint, partitions: u32) -> Self {
        Self { endpoint, partitions, records: Vec::new(), owners: Vec::new() }
    }

    /// Another life of the gateway: verdicts on what was sent in the old one are for nobody.
    pub(crate) fn begin_life(&mut self, endpoint: Endpoint) {
        self.endpoint = endpoint;
        self.records.clear();
        self.owners.clear();
    }

    /// Encodes a send. This is the one copy of its body.
    pub(crate) fn add(&mut self, sender: &Sender, request: u32, send: &Send<'_>) {
        let record = IngressRecord {
            actor: sender.user,
            device: sender.device,
            client_msg_id: send.client_msg_id,
            time: sender.now_ms,
            origin: Some(Origin {
                endpoint: self.endpoint.clone(),
                session: Some(sender.session),
                request: u64::from(request),
            }),
            if_last_seq: None,
            action: Action::Send {
                conversation_id: send.conversation_id,
                content_type: Cow::Borrowed(&send.content_type),
                body: Cow::Borrowed(&send.body),
            },
        };
        let partition = partition::of(send.conversation_id, self.partitions);
        self.records.push(NewRecord { partition, payload: record.encode() });
        self.owners.push((sender.key, request));
    }

    /// Puts what has come in line. The *call* of `append` is what orders the records, so it is made here, on the
    /// shard's thread; only its outcome is waited for elsewhere.
    pub(crate) fn flush(&mut self, shared: &Arc<Shared>, shard: usize) {
        if self.records.is_empty() {
            return;
        }
        shared.metrics.sends.add(self.records.len() as u64);
        let owners = std::mem::take(&mut self.owners);
        let appended = shared.ports.log.append(Topic::Ingress, std::mem::take(&mut self.records));
        let shared = Arc::clone(shared);
        let runtime = shared.runtime.clone();
        runtime.spawn(async move {
            let results = appended.await;
            let failed: Vec<_> = owners
                .into_iter()
                .zip(results)
                .filter_map(|((key, request), result)| Some((key, request, code_of(&result.err()?))))
                .collect();
            if !failed.is_empty() {
                shared.mailboxes[shard].put(Mail::AppendFailed(failed));
            }
        });
    }
}

fn code_of(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::Full => ErrorCode::Busy,
        AppendError::Unknown(_) => ErrorCode::Unavailable,
        AppendError::TooLarge => {
            tracing::error!("the log refuses a record that is within our limits");
            ErrorCode::Internal
        }
    }
}
