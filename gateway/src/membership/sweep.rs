//! Everything that the gateway holds, listed shard by shard, to be registered again.

use roost_ports::registry::SessionEntry;
use roost_protocol::frames::Form;
use tokio::sync::oneshot;

use crate::mail::Mail;
use crate::shared::Shared;

/// How far the listing has come.
pub(super) struct Sweep {
    shard: usize,
    slot: u32,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Self { shard: 0, slot: 0 }
    }

    pub(super) fn start_again(&mut self) {
        *self = Self::new();
    }

    /// The next live sessions; none at the end.
    pub(super) async fn next(&mut self, shared: &Shared, count: usize) -> Option<Vec<(SessionEntry, Form)>> {
        while self.shard < shared.mailboxes.len() {
            let (reply, listed) = oneshot::channel();
            shared.mailboxes[self.shard].put(Mail::List { from_slot: self.slot, count, reply });
            let listed = listed.await.ok()?;
            match listed.next_slot {
                Some(slot) => self.slot = slot,
                None => (self.shard, self.slot) = (self.shard + 1, 0),
            }
            if !listed.sessions.is_empty() {
                return Some(listed.sessions);
            }
        }
        None
    }
}
