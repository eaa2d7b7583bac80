//! One stream per sender and incarnation: a later one makes the earlier leave first, so that batches which a lost
//! connection still holds cannot arrive after newer ones.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use roost_protocol::Incarnation;
use tokio_util::sync::CancellationToken;

/// A sending process and whom it means.
pub(crate) type SeatKey = ([u8; 16], Incarnation);

/// Who sends to this server.
#[derive(Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<HashMap<SeatKey, Tokens>>>);

#[derive(Clone)]
struct Tokens {
    leave: CancellationToken,
    left: CancellationToken,
}

/// A stream's seat, until it is dropped.
pub(crate) struct Seat {
    seats: Seats,
    key: SeatKey,
    tokens: Tokens,
}

impl Seats {
    /// Takes the seat; waits until an earlier stream has left it.
    pub(crate) async fn take(&self, key: SeatKey) -> Seat {
        loop {
            let earlier = {
                let mut seats = self.0.lock();
                match seats.get(&key) {
                    Some(earlier) => earlier.clone(),
                    None => {
                        let tokens = Tokens { leave: CancellationToken::new(), left: CancellationToken::new() };
                        seats.insert(key, tokens.clone());
                        return Seat { seats: self.clone(), key, tokens };
                    }
                }
            };
            earlier.leave.cancel();
            earlier.left.cancelled().await;
        }
    }
}

impl Seat {
    /// Cancelled when a later stream wants the seat.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.tokens.leave.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.0.lock().remove(&self.key);
        self.tokens.left.cancel();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_later_stream_waits_until_the_earlier_has_left() {
        let (seats, key) = (Seats::default(), ([1; 16], Incarnation(1)));
        let first = seats.take(key).await;
        let other = seats.take(([1; 16], Incarnation(2))).await;
        let mut second = Box::pin(seats.take(key));
        assert!((&mut second).now_or_never().is_none());
        assert!(first.leave().is_cancelled() && !other.leave().is_cancelled());
        drop(first);
        assert!(!second.await.leave().is_cancelled());
        drop(other);
        assert!(seats.0.lock().is_empty());
    }
}
