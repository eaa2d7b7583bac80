//! Notices a shard that makes no progress: its thread hangs in a call, or has ended without a word.
//!
//! It looks a few times at what each shard last said. Looks are counted, not time: a process that stood still as a whole
//! has not stalled.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::shared::Shared;

/// So many looks in a row at the same beat are a stall.
const LOOKS: u32 = 5;

/// What a shard says about its progress. Alone in its cache line: it is written twice in every round.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Beat(AtomicU64);

impl Beat {
    /// A round begins. (Odd numbers stand for rounds.)
    pub(crate) fn begins(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) | 1).wrapping_add(2), Ordering::Relaxed);
    }

    /// The round is over: the shard waits for its driver.
    pub(crate) fn waits(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) & !1).wrapping_add(2), Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was seen of a shard.
#[derive(Clone, Copy, Default)]
struct Seen {
    beat: u64,
    looks: u32,
}

impl Seen {
    /// Whether the shard is stalled. Who waits and has no letters has nothing to do.
    fn look(&mut self, beat: u64, has_letters: bool) -> bool {
        let busy = beat % 2 == 1 || has_letters;
        self.looks = if busy && beat == self.beat { self.looks + 1 } else { 0 };
        self.beat = beat;
        self.looks >= LOOKS
    }
}

/// Runs until the gateway is gone.
pub(crate) async fn run(shared: Weak<Shared>) {
    let mut seen = Vec::new();
    let mut stalled_before = 0;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        seen.resize(shared.beats.len(), Seen::default());
        let mut stalled = 0;
        for (shard, seen) in seen.iter_mut().enumerate() {
            if seen.look(shared.beats[shard].read(), shared.mailboxes[shard].has_letters()) {
                stalled += 1;
                if seen.looks == LOOKS {
                    shared.metrics.stalls.add(1);
                    tracing::error!(
                        shard,
                        "the shard makes no progress: its sessions are stuck, and no new clients should come"
                    );
                }
            }
        }
        if stalled == 0 && stalled_before > 0 {
            tracing::info!("every shard makes progress again");
        }
        shared.admission.set_stalled(stalled);
        stalled_before = stalled;
        let pause = Duration::from_millis(shared.config.stall_ms / u64::from(LOOKS)).max(Duration::from_millis(1));
        drop(shared);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_is_stalled_and_who_has_nothing_to_do_is_not() {
        let (beat, mut seen) = (Beat::default(), Seen::default());
        let mut stalled =
            |beat: &Beat, has_letters, looks: u32| (0..looks).any(|_| seen.look(beat.read(), has_letters));
        assert!(!stalled(&beat, false, 100), "not begun");
        for _ in 0..100 {
            beat.begins();
            assert!(!stalled(&beat, false, LOOKS), "a round that takes its time");
            beat.waits();
            assert!(!stalled(&beat, true, LOOKS));
        }
        assert!(stalled(&beat, true, 1), "letters that nobody takes");
        assert!(!stalled(&beat, false, 100));
        beat.begins();
        assert!(stalled(&beat, false, LOOKS + 1), "a round that does not end");
        beat.waits();
        assert!(!stalled(&beat, false, 1));
    }
}
