//! Sees a future through without a task of its own: whoever wakes it polls it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use parking_lot::Mutex;

/// Polls the future now, and then on whatever thread wakes it, until it is done.
///
/// For what only waits for somebody else's answer and does next to nothing with it, such as the outcome of an append:
/// a task would cost a wake-up of the runtime for it. The future must not need a runtime and must not block.
pub fn follow(future: impl Future<Output = ()> + Send + 'static) {
    let followed = Arc::new(Followed { future: Mutex::new(Some(Box::pin(future))), state: AtomicU8::new(IDLE) });
    followed.wake();
}

struct Followed {
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    state: AtomicU8,
}

/// Nobody polls it.
const IDLE: u8 = 0;
/// Somebody polls it.
const POLLED: u8 = 1;
/// Somebody polls it, and has to once more: it was woken meanwhile.
const POLLED_AGAIN: u8 = 2;

impl Wake for Followed {
    fn wake(self: Arc<Self>) {
        let next = |state| Some(if state == IDLE { POLLED } else { POLLED_AGAIN });
        let before = self.state.try_update(Ordering::AcqRel, Ordering::Acquire, next);
        if before != Ok(IDLE) {
            return;
        }
        loop {
            self.poll();
            if self.state.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
            self.state.store(POLLED, Ordering::Release);
        }
    }
}

impl Followed {
    /// Called by one thread at a time.
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut held = self.future.lock();
        let done = held.as_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(&waker)));
        if done == Some(Poll::Ready(())) {
            *held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn it_is_polled_by_whoever_answers() {
        let (answer, answered) = oneshot::channel::<usize>();
        let seen = Arc::new(AtomicUsize::new(0));
        let result = Arc::clone(&seen);
        follow(async move { result.store(answered.await.unwrap_or(9), Ordering::SeqCst) });
        assert_eq!(seen.load(Ordering::SeqCst), 0);
        answer.send(7).expect("it is waited for");
        assert_eq!(seen.load(Ordering::SeqCst), 7, "on this very thread");
    }

    #[test]
    fn answers_from_many_threads_are_all_seen() {
        for _ in 0..200 {
            let (answers, answered): (Vec<_>, Vec<_>) = (0..4).map(|_| oneshot::channel::<usize>()).unzip();
            let (done, sum) = std::sync::mpsc::sync_channel(1);
            follow(async move {
                let all = futures::future::join_all(answered).await;
                let _ = done.send(all.into_iter().map(|answer| answer.unwrap_or(100)).sum::<usize>());
            });
            let threads: Vec<_> =
                answers.into_iter().map(|answer| std::thread::spawn(move || answer.send(1))).collect();
            assert_eq!(sum.recv().expect("it ends"), 4);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic").expect("it was waited for"));
        }
    }

    #[test]
    fn one_that_wakes_itself_goes_on() {
        let (done, seen) = std::sync::mpsc::sync_channel(1);
        follow(async move {
            let mut left = 3;
            std::future::poll_fn(|context| {
                left -= 1;
                context.waker().wake_by_ref();
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            let _ = done.send(());
        });
        seen.try_recv().expect("it is done before follow returns");
    }
}
