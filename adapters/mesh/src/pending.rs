//! The batches of one stream that are sent and not yet acknowledged, by their numbers.

use std::collections::VecDeque;

use roost_ports::delivery::DeliveryError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// Who waits for a batch. Its room in the endpoint's budget is free again once this is dropped.
pub(crate) struct Waiting {
    pub(crate) answer: oneshot::Sender<Result<(), DeliveryError>>,
    pub(crate) room: OwnedSemaphorePermit,
    pub(crate) since: Instant,
}

impl Waiting {
    /// Says what became of the batch. Nobody may be listening any more.
    pub(crate) fn resolve(self, outcome: Result<(), DeliveryError>) {
        // Room first: who hears of one batch can send the next.
        drop(self.room);
        let _ = self.answer.send(outcome);
    }
}

/// Numbers 1, 2, 3 … in a window that moves with the oldest unacknowledged one.
pub(crate) struct Pending {
    first: u64,
    window: VecDeque<Option<Waiting>>,
}

impl Default for Pending {
    fn default() -> Self {
        Self { first: 1, window: VecDeque::new() }
    }
}

impl Pending {
    /// The number of the next batch.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    /// Enters a batch under the next number.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        self.window.push_back(Some(waiting));
    }

    /// Takes a batch out; none if there is none of this number, or no more.
    pub(crate) fn take(&mut self, number: u64) -> Option<Waiting> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let waiting = self.window.get_mut(index)?.take();
        while let Some(None) = self.window.front() {
            self.window.pop_front();
            self.first += 1;
        }
        waiting
    }

    /// Since when the oldest batch waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.window.front()?.as_ref().map(|waiting| waiting.since)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Ends the stream: everything is taken out in order, and the numbers start again.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        std::mem::take(self).window.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn acknowledgements_come_in_any_order_and_count_once() {
        let budget = Arc::new(Semaphore::new(3));
        let mut pending = Pending::default();
        for number in 1..=3 {
            assert_eq!(pending.next(), number);
            let room = budget.clone().try_acquire_owned().expect("room");
            pending.push(Waiting { answer: oneshot::channel().0, room, since: Instant::now() });
        }
        assert!(pending.take(2).is_some() && pending.take(2).is_none());
        assert_eq!(pending.first, 1);
        assert!(pending.take(1).is_some() && pending.take(1).is_none());
        assert_eq!((pending.first, pending.window.len()), (3, 1));
        assert!(pending.take(0).is_none() && pending.take(4).is_none() && pending.take(u64::MAX).is_none());
        assert_eq!(budget.available_permits(), 2);
        assert_eq!(pending.drain().count(), 1);
        assert_eq!((pending.next(), budget.available_permits(), pending.is_empty()), (1, 3, true));
    }
}
