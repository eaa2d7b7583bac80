//! A hierarchical timing wheel: one deadline per slot, sixteen bytes each, no allocation per timer.

use crate::slab::Table;

/// Deadlines are kept to this many milliseconds, rounded up.
pub const TICK_MS: u64 = 16;
const LEVELS: usize = 4;
const BUCKET_BITS: u32 = 6;
const BUCKETS: usize = 1 << BUCKET_BITS;
const NONE: u32 = u32::MAX;

/// Deadlines of slots. Level 0 holds the next second, level 1 the next minute, and so on; a bucket of a higher level
/// is dealt out to the lower ones when its time begins.
pub struct Wheel {
    links: Table<Link>,
    /// The first slot of each bucket.
    heads: Box<[[u32; BUCKETS]; LEVELS]>,
    /// Which buckets have any.
    occupied: [u64; LEVELS],
    /// The tick up to which everything has been taken out.
    now: u64,
    armed: usize,
}

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    tick: u32,
    /// Level and bucket; `NOT_ARMED` where there is no deadline.
    place: u32,
}

const NOT_ARMED: u32 = u32::MAX;

impl Default for Link {
    fn default() -> Self {
        Self { previous: NONE, next: NONE, tick: 0, place: NOT_ARMED }
    }
}

impl Wheel {
    /// A wheel whose time is `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        let heads = Box::new([[NONE; BUCKETS]; LEVELS]);
        Self { links: Table::new(), heads, occupied: [0; LEVELS], now: now_ms / TICK_MS, armed: 0 }
    }

    /// Makes sure that the slot is taken out at `at_ms` or before. A deadline that is earlier already stays: moving
    /// one ahead with every byte received would cost more than the one early call.
    pub fn arm(&mut self, slot: u32, at_ms: u64) {
        let tick = at_ms.div_ceil(TICK_MS).clamp(self.now + 1, self.now + (1 << (BUCKET_BITS * LEVELS as u32)) - 1);
        let link = *self.links.at(slot);
        if link.place != NOT_ARMED {
            if u64::from(link.tick) <= tick {
                return;
            }
            self.unlink(slot);
        }
        self.link(slot, tick);
    }

    /// Forgets the slot's deadline.
    pub fn disarm(&mut self, slot: u32) {
        if self.links.at(slot).place != NOT_ARMED {
            self.unlink(slot);
        }
    }

    /// When to call `advance` next: at or before the earliest deadline.
    pub fn next_ms(&self) -> Option<u64> {
        (0..LEVELS)
            .filter(|&level| self.occupied[level] != 0)
            .map(|level| {
                let shift = BUCKET_BITS * level as u32;
                let position = self.now >> shift;
                let index = (position as u32 + 1) % BUCKETS as u32;
                let distance = u64::from(self.occupied[level].rotate_right(index).trailing_zeros()) + 1;
                (position + distance) << shift
            })
            .min()
            .map(|tick| tick * TICK_MS)
    }

    /// Moves on to `now_ms` and takes out every slot whose deadline has come.
    pub fn advance(&mut self, now_ms: u64, due: &mut Vec<u32>) {
        let target = now_ms / TICK_MS;
        if self.armed == 0 {
            self.now = self.now.max(target);
            return;
        }
        while self.now < target {
            self.now += 1;
            for level in (1..LEVELS).rev() {
                let shift = BUCKET_BITS * level as u32;
                if self.now.trailing_zeros() >= shift {
                    self.deal_out(level, (self.now >> shift) as usize % BUCKETS);
                }
            }
            let bucket = self.now as usize % BUCKETS;
            while self.heads[0][bucket] != NONE {
                let slot = self.heads[0][bucket];
                self.unlink(slot);
                due.push(slot);
            }
        }
    }

    fn deal_out(&mut self, level: usize, bucket: usize) {
        let mut slot = self.heads[level][bucket];
        while slot != NONE {
            let Link { next, tick, .. } = *self.links.at(slot);
            self.unlink(slot);
            self.link(slot, u64::from(tick));
            slot = next;
        }
    }

    fn link(&mut self, slot: u32, tick: u64) {
        let distance = tick.saturating_sub(self.now);
        let level =
            (0..LEVELS - 1).find(|&level| distance < 1 << (BUCKET_BITS * (level as u32 + 1))).unwrap_or(LEVELS - 1);
        let bucket = (tick >> (BUCKET_BITS * level as u32)) as usize % BUCKETS;
        let next = std::mem::replace(&mut self.heads[level][bucket], slot);
        if next != NONE {
            self.links.at(next).previous = slot;
        }
        let place = (level * BUCKETS + bucket) as u32;
        *self.links.at(slot) = Link { previous: NONE, next, tick: tick as u32, place };
        self.occupied[level] |= 1 << bucket;
        self.armed += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Link { previous, next, place, .. } = std::mem::take(self.links.at(slot));
        let (level, bucket) = (place as usize / BUCKETS, place as usize % BUCKETS);
        match previous {
            NONE => self.heads[level][bucket] = next,
            previous => self.links.at(previous).next = next,
        }
        if next != NONE {
            self.links.at(next).previous = previous;
        }
        if self.heads[level][bucket] == NONE {
            self.occupied[level] &= !(1 << bucket);
        }
        self.armed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn every_slot_comes_out_at_its_time_and_never_sooner() {
        for seed in 0..20 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut now_ms = random.random_range(0..1_000_000);
            let (mut wheel, mut expected) = (Wheel::new(now_ms), BTreeMap::<u32, u64>::new());
            for _ in 0..3000 {
                let slot = random.random_range(0..500);
                match random.random_range(0..4) {
                    0 => {
                        wheel.disarm(slot);
                        expected.remove(&slot);
                    }
                    1 | 2 => {
                        let reach = [100, 2_000, 70_000, 5_000_000][random.random_range(0..4)];
                        let at_ms = now_ms + random.random_range(0..reach);
                        wheel.arm(slot, at_ms);
                        let known = expected.entry(slot).or_insert(at_ms);
                        *known = (*known).min(at_ms);
                    }
                    _ => {
                        now_ms += [1, 15, 300, 66_000][random.random_range(0..4)];
                        let earliest = expected.values().min().copied();
                        if let (Some(next), Some(earliest)) = (wheel.next_ms(), earliest) {
                            assert!(next < earliest + 2 * TICK_MS, "next {next} is after {earliest}");
                        }
                        let mut due = Vec::new();
                        wheel.advance(now_ms, &mut due);
                        for slot in due {
                            let at_ms = expected.remove(&slot).expect("it was armed");
                            assert!(at_ms <= now_ms, "{slot} came at {now_ms} instead of {at_ms}");
                        }
                        assert!(expected.values().all(|&at_ms| at_ms + 2 * TICK_MS > now_ms), "one is late");
                    }
                }
            }
        }
    }

    #[test]
    fn following_next_ms_reaches_every_deadline() {
        let mut wheel = Wheel::new(5);
        wheel.arm(7, 4_000_000);
        let (mut due, mut calls) = (Vec::new(), 0);
        while let Some(next) = wheel.next_ms() {
            wheel.advance(next, &mut due);
            calls += 1;
        }
        assert_eq!(due, [7]);
        assert!(calls <= LEVELS, "{calls} calls");
    }
}
