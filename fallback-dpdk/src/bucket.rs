//! The token bucket that bounds what one port may ask of the slow path.
//!
//! Time is in ticks of whatever clock the caller has (the TSC in the worker, integers in tests).

/// Allows `rate` events a second on average and `burst` at once.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    /// Ticks that earn one token.
    price: u64,
    /// The most ticks that may be saved up.
    limit: u64,
    saved: u64,
    last: u64,
}

impl TokenBucket {
    /// A full bucket. `rate` is a second, `hz` the ticks of a second; both at least one.
    pub(crate) fn new(rate: u32, burst: u32, hz: u64, now: u64) -> Self {
        let price = (hz / u64::from(rate.max(1))).max(1);
        let limit = price.saturating_mul(u64::from(burst.max(1)));
        TokenBucket {
            price,
            limit,
            saved: limit,
            last: now,
        }
    }

    /// Takes a token, if there is one. A clock that goes backwards earns nothing.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        self.saved = self
            .saved
            .saturating_add(now.saturating_sub(self.last))
            .min(self.limit);
        self.last = now;
        match self.saved.checked_sub(self.price) {
            Some(rest) => {
                self.saved = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 5, 1000, 0);
        assert_eq!((0..20).filter(|_| bucket.take(0)).count(), 5);
        assert!(!bucket.take(99));
        assert!(bucket.take(100));
        assert!(!bucket.take(150));
        let allowed = (100..10_100).filter(|now| bucket.take(*now)).count();
        assert!(
            (99..=101).contains(&allowed),
            "{allowed} in ten seconds at ten a second"
        );
    }

    #[test]
    fn a_long_pause_saves_no_more_than_the_burst() {
        let mut bucket = TokenBucket::new(10, 5, 1000, 0);
        while bucket.take(0) {}
        assert_eq!((0..20).filter(|_| bucket.take(1_000_000)).count(), 5);
    }

    #[test]
    fn a_clock_that_steps_back_does_not_panic_or_pay() {
        let mut bucket = TokenBucket::new(10, 1, 1000, 500);
        assert!(bucket.take(500));
        assert!(!bucket.take(0));
    }
}
