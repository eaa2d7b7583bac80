//! Sends on their way into the log: encoded straight from the receive buffer, appended in batches.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use roost_ports::follow;
use roost_ports::log::{AppendError, NewRecord, Position, Topic};
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
    ///
    /// Returns what was refused at once. That must be known before the shard reads on: a later send of the same
    /// conversation would else be in the log before the refused one comes again.
    pub(crate) fn flush(&mut self, shared: &Arc<Shared>, shard: usize) -> Vec<Failed> {
        if self.records.is_empty() {
            return Vec::new();
        }
        shared.metrics.sends.add(self.records.len() as u64);
        let owners = std::mem::take(&mut self.owners);
        let mut appended = shared.ports.log.append(Topic::Ingress, std::mem::take(&mut self.records));
        if let Poll::Ready(results) = appended.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return failed(owners, results);
        }
        let shared = Arc::clone(shared);
        // Nearly every append succeeds, and then there is nothing to do: no task is woken for that.
        follow(async move {
            let failed = failed(owners, appended.await);
            if !failed.is_empty() {
                shared.mailboxes[shard].put(Mail::AppendFailed(failed));
            }
        });
        Vec::new()
    }
}

/// A send that the log did not take, or did not say so: whose, its number, and why.
pub(crate) type Failed = (Key, u32, ErrorCode);

fn failed(owners: Vec<(Key, u32)>, results: Vec<Result<Position, AppendError>>) -> Vec<Failed> {
    let both = owners.into_iter().zip(results);
    both.filter_map(|((key, request), result)| Some((key, request, code_of(&result.err()?)))).collect()
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
