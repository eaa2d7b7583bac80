//! Token buckets in the GCRA form: one number each, and the time comes from outside.

/// How often something may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// So many a second in the long run; 0 means as often as anybody likes.
    pub per_second: u32,
    /// So many at once.
    pub burst: u32,
}

impl Rate {
    /// As often as anybody likes.
    pub const UNLIMITED: Rate = Rate { per_second: 0, burst: 0 };

    /// So many a second, and a second's worth of them at once.
    pub const fn per_second(per_second: u32) -> Self {
        Self { per_second, burst: per_second }
    }

    fn interval_us(self) -> u64 {
        (1_000_000 / u64::from(self.per_second.max(1))).max(1)
    }

    fn tolerance_us(self) -> u64 {
        self.interval_us() * u64::from(self.burst.saturating_sub(1))
    }
}

/// One bucket. Full when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// When it is full again, on the steady clock.
    full_at_us: u64,
}

impl Bucket {
    /// Takes a token, or says after how many milliseconds there will be one. What is refused costs nothing.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> Result<(), u64> {
        self.take_by(rate, now_ms, 0).map(|_| ())
    }

    /// Takes a token that will be there within `patience_ms`, and says how many milliseconds that is from now.
    ///
    /// # Errors
    ///
    /// How many milliseconds there are until such a token could be taken.
    pub fn take_by(&mut self, rate: Rate, now_ms: u64, patience_ms: u64) -> Result<u64, u64> {
        if rate.per_second == 0 {
            return Ok(0);
        }
        let now_us = now_ms * 1_000;
        let full_at_us = self.full_at_us.max(now_us);
        let wait_ms = (full_at_us - now_us).saturating_sub(rate.tolerance_us()).div_ceil(1_000);
        if wait_ms > patience_ms {
            return Err(wait_ms - patience_ms);
        }
        self.full_at_us = full_at_us + rate.interval_us();
        Ok(wait_ms)
    }

    /// Puts a token back that was taken for nothing.
    pub fn put_back(&mut self, rate: Rate) {
        if rate.per_second > 0 {
            self.full_at_us = self.full_at_us.saturating_sub(rate.interval_us());
        }
    }

    /// How many milliseconds there are until a token can be taken; 0: there is one.
    pub fn wait_ms(&self, rate: Rate, now_ms: u64) -> u64 {
        let mut copy = *self;
        copy.take(rate, now_ms).err().unwrap_or(0)
    }

    /// Whether it holds all it can hold: then it is as good as a new one.
    pub fn is_full(&self, now_ms: u64) -> bool {
        self.full_at_us <= now_ms * 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 100, burst: 5 };

    #[test]
    fn a_burst_and_then_one_by_one() {
        let mut bucket = Bucket::default();
        for _ in 0..5 {
            assert_eq!(bucket.take(RATE, 1_000), Ok(()));
        }
        assert_eq!(bucket.take(RATE, 1_000), Err(10));
        assert_eq!(bucket.take(RATE, 1_004), Err(6));
        assert_eq!((bucket.wait_ms(RATE, 1_009), bucket.wait_ms(RATE, 1_010)), (1, 0));
        assert_eq!(bucket.take(RATE, 1_010), Ok(()));
        assert!(bucket.take(RATE, 1_010).is_err());
        assert!(!bucket.is_full(1_059) && bucket.is_full(1_060));
    }

    #[test]
    fn no_more_than_the_burst_and_the_rate_over_any_time() {
        for rate in [RATE, Rate::per_second(3_000), Rate { per_second: 7, burst: 1 }] {
            let mut bucket = Bucket::default();
            let taken: u64 = (0..10_000u64).map(|now_ms| u64::from(bucket.take(rate, now_ms).is_ok())).sum();
            let allowed = u64::from(rate.burst) + u64::from(rate.per_second) * 10;
            assert!(taken <= allowed, "{taken} of {allowed}");
            assert!(taken * 3 >= u64::from(rate.per_second.min(1_000)) * 29, "{taken} of {allowed}");
        }
    }

    #[test]
    fn a_token_of_the_near_future_is_waited_for_and_one_of_the_far_is_not() {
        let mut bucket = Bucket::default();
        let rate = Rate { per_second: 10, burst: 1 };
        let waits: Vec<_> = (0..4).map(|_| bucket.take_by(rate, 0, 250)).collect();
        assert_eq!(waits, [Ok(0), Ok(100), Ok(200), Err(50)]);
        bucket.put_back(rate);
        assert_eq!(bucket.take_by(rate, 0, 250), Ok(200));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut bucket = Bucket::default();
        assert!((0..100_000).all(|_| bucket.take(Rate::UNLIMITED, 0).is_ok()));
    }
}
