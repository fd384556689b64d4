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

/// What one port may ask of the slow path: never more than its ceiling, and of that its share always,
/// whatever the other ports of the worker do, and the rest while the worker has some to spare.
#[derive(Clone, Debug)]
pub(crate) struct Allowance {
    ceiling: TokenBucket,
    share: TokenBucket,
}

impl Allowance {
    /// Up to `ceiling` a second, of which `share` are certain.
    pub(crate) fn new(ceiling: u32, share: u32, hz: u64, now: u64) -> Self {
        let bucket = |rate: u32| TokenBucket::new(rate, (rate / 16).max(64), hz, now);
        Allowance {
            ceiling: bucket(ceiling),
            share: bucket(share.min(ceiling)),
        }
    }

    /// Another number of ports has another share each.
    pub(crate) fn set_share(&mut self, share: u32, hz: u64, now: u64) {
        let empty = TokenBucket {
            saved: 0,
            ..TokenBucket::new(share, (share / 16).max(64), hz, now)
        };
        self.share = empty;
    }

    /// Takes a token, if there is one; `spare` is common to all ports of the worker.
    pub(crate) fn take(&mut self, spare: &mut TokenBucket, now: u64) -> bool {
        self.ceiling.take(now) && (self.share.take(now) || spare.take(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scanning_ports_take_what_is_spare_and_never_a_quiet_ones_share() {
        const HZ: u64 = 1_000_000;
        let mut spare = TokenBucket::new(2000, 125, HZ, 0);
        let mut ports: Vec<_> = (0..50)
            .map(|_| Allowance::new(1000, 2000 / 50, HZ, 0))
            .collect();
        let (mut scanned, mut quiet) = (0, 0);
        for millisecond in 0..10_000 {
            let now = millisecond * HZ / 1000;
            for port in &mut ports[1..] {
                scanned += (0..20).filter(|_| port.take(&mut spare, now)).count();
            }
            if millisecond % 30 == 0 {
                quiet += usize::from(ports[0].take(&mut spare, now));
            }
        }
        assert_eq!(quiet, 334, "33 a second are below its share of 40");
        assert!(scanned < 10 * 4000 + 50 * 64 + 125, "{scanned} in 10 s");
        let mut alone = Allowance::new(1000, 1000, HZ, 0);
        let many = (0..HZ * 10).filter(|now| alone.take(&mut spare, *now));
        assert!(many.count() >= 10_000, "alone it has its ceiling");
    }

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
