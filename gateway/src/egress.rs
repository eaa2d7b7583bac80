//! The receiving end of Delivery: batches are split over the shards, and acknowledged once they are in the queues.

use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::DeliverySink;
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryFuture, DeliveryItem};
use roost_protocol::frames::{Form, Head, Heads, ServerBody, ServerFrame};
use roost_protocol::records::{DeliverRecord, RecordError};
use roost_protocol::{ConversationId, Incarnation, Seq};
use roost_session::machine::encode;
use tokio::sync::oneshot;

use crate::mail::{Delivery, Done, Encoded, Item, Mail, Recipients};
use crate::resync::Resync;
use crate::shared::Shared;

/// What an item costs beside its bytes.
const ITEM_BYTES: usize = 256;

/// What Delivery's adapters call.
pub(crate) struct Egress {
    pub(crate) shared: Arc<Shared>,
}

/// A batch as it is split.
struct Split {
    parts: Vec<(Vec<Item>, usize)>,
}

impl Split {
    fn put(&mut self, shard: usize, item: Item, bytes: usize) {
        if let Some((items, sum)) = self.parts.get_mut(shard) {
            items.push(item);
            *sum += bytes + ITEM_BYTES;
        }
    }

    /// Gives the item to every shard that may hold one of its recipients.
    fn put_for(&mut self, to: &Recipients, item: &Item, bytes: usize) {
        match to {
            Recipients::Users(_) => {
                for shard in 0..self.parts.len() {
                    self.put(shard, item.clone(), bytes);
                }
            }
            Recipients::Sessions(sessions) => {
                let mut concerned = [0u64; 4];
                for session in sessions.iter() {
                    concerned[usize::from(session.shard() / 64)] |= 1 << (session.shard() % 64);
                }
                for shard in 0..self.parts.len() {
                    if concerned[shard / 64] >> (shard % 64) & 1 == 1 {
                        self.put(shard, item.clone(), bytes);
                    }
                }
            }
        }
    }
}

impl Egress {
    fn split(&self, batch: DeliveryBatch) -> Result<Split, DeliveryError> {
        let mut split = Split { parts: vec![(Vec::new(), 0); self.shared.mailboxes.len()] };
        for item in batch.items {
            match item {
                DeliveryItem::Verdict(verdict) => match verdict.session {
                    Some(session) => split.put(usize::from(session.shard()), Item::Verdict(verdict), 0),
                    None => self.shared.metrics.suppressed.add(1),
                },
                DeliveryItem::Message { audience, record } => {
                    let bytes = record.len();
                    let message = match DeliverRecord::decode(record) {
                        Ok(record) => Arc::new(Encoded::new(record.message)),
                        // A newer build wrote it. Its heads still reach the sessions, which fetch it from the Store.
                        Err(RecordError::Newer(version)) => {
                            return Err(DeliveryError::Unavailable(format!("record format {version} is newer")));
                        }
                        Err(RecordError::Poison(problem)) => {
                            tracing::error!(problem, "a delivered record does not decode");
                            self.shared.metrics.undecodable.add(1);
                            continue;
                        }
                    };
                    let to = recipients(audience)?;
                    split.put_for(&to, &Item::Message { to: to.clone(), message }, bytes);
                }
                DeliveryItem::Heads { audience, conversation_id, last_seq } => {
                    let to = recipients(audience)?;
                    let frames = heads_frames(conversation_id, last_seq);
                    split.put_for(&to, &Item::Heads { to: to.clone(), frames }, 0);
                }
                DeliveryItem::SyncAll => {
                    if self.shared.resync.try_send(Resync::All).is_err() {
                        return Err(DeliveryError::Busy);
                    }
                }
            }
        }
        Ok(split)
    }

    /// Reserves room in all mailboxes or in none: a batch is never half delivered and then refused.
    fn reserve(&self, split: &Split) -> bool {
        for (shard, (items, bytes)) in split.parts.iter().enumerate() {
            if items.is_empty() || self.shared.mailboxes[shard].reserve(*bytes) {
                continue;
            }
            for (shard, (items, bytes)) in split.parts.iter().enumerate().take(shard) {
                if !items.is_empty() {
                    self.shared.mailboxes[shard].release(*bytes);
                }
            }
            return false;
        }
        true
    }

    fn put(&self, split: Split) -> oneshot::Receiver<()> {
        let (done, acknowledged) = oneshot::channel();
        let done = Arc::new(Done(Some(done)));
        for (shard, (items, bytes)) in split.parts.into_iter().enumerate() {
            if !items.is_empty() {
                self.shared.mailboxes[shard].put(Mail::Delivery(Delivery { items, bytes, done: Arc::clone(&done) }));
            }
        }
        acknowledged
    }
}

#[async_trait]
impl DeliverySink for Egress {
    fn incarnation(&self) -> Incarnation {
        self.shared.lease.incarnation()
    }

    fn deliver(&self, batch: DeliveryBatch) -> DeliveryFuture {
        // All of it happens in the call, so that batches stand in the mailboxes in the order of the calls.
        let acknowledged = self.split(batch).and_then(|split| match self.reserve(&split) {
            true => Ok(self.put(split)),
            false => {
                self.shared.metrics.deliveries_busy.add(1);
                Err(DeliveryError::Busy)
            }
        });
        Box::pin(async move {
            // A shard that has ended has closed its sessions, so letting go of a batch acknowledges it.
            let _ = acknowledged?.await;
            Ok(())
        })
    }
}

fn recipients(audience: Audience) -> Result<Recipients, DeliveryError> {
    match audience {
        Audience::Sessions(sessions) => Ok(Recipients::Sessions(sessions)),
        Audience::Users(users) => Ok(Recipients::Users(users)),
        Audience::Everyone => Err(DeliveryError::Unavailable("this gateway does not expand conversations".to_owned())),
    }
}

fn heads_frames(conversation_id: ConversationId, last_seq: Seq) -> [bytes::Bytes; 2] {
    let head = Head { conversation_id, first_seq: None, last_seq, read_seq: None, delivered_seq: None };
    let heads = Heads { conversations: vec![head], next: None, more: false, epoch: None };
    let frame = ServerFrame::unsolicited(ServerBody::Heads(heads));
    Form::ALL.map(|form| encode(&frame, form))
}
