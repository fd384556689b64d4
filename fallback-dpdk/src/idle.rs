//! When a worker that finds nothing to do goes to sleep.
//!
//! It polls on for a while after the last packet, because the next one is often close and waking costs
//! microseconds. How long adapts: sleeps that turn out short make the while longer, long sleeps make
//! it shorter. A wake-up that brought no packet does not restart it.

use crate::wake::Woken;

const SHORTEST_US: u64 = 30;
const LONGEST_US: u64 = 1000;
/// A sleep shorter than this was not worth it.
const SHORT_SLEEP_US: u64 = 100;
/// A sleep longer than this was.
const LONG_SLEEP_US: u64 = 5000;

/// The adaptive back-off of one worker, in TSC cycles.
#[derive(Debug)]
pub(crate) struct BackOff {
    us: u64,
    window: u64,
    /// Polling goes on until then.
    until: u64,
    /// How long the last sleep took, until the first packet after it.
    slept: Option<u64>,
}

impl BackOff {
    pub(crate) fn new(hz: u64, now: u64) -> Self {
        let us = (hz / 1_000_000).max(1);
        BackOff {
            us,
            window: SHORTEST_US * us,
            until: now,
            slept: None,
        }
    }

    /// This turn moved packets.
    pub(crate) fn worked(&mut self, now: u64) {
        if let Some(slept) = self.slept.take() {
            if slept < SHORT_SLEEP_US * self.us {
                self.window = (self.window * 2).min(LONGEST_US * self.us);
            } else if slept > LONG_SLEEP_US * self.us {
                self.window = (self.window / 2).max(SHORTEST_US * self.us);
            }
        }
        self.until = now + self.window;
    }

    /// This turn found nothing: sleep?
    pub(crate) fn tired(&self, now: u64) -> bool {
        now >= self.until
    }

    /// A sleep is over. After an event the worker looks around for the shortest window: the packet
    /// behind a doorbell may be a little later than the doorbell.
    pub(crate) fn woke(&mut self, why: Woken, slept: u64, now: u64) {
        self.slept = Some(slept);
        self.until = match why {
            Woken::Event => now + SHORTEST_US * self.us,
            Woken::Timeout => now,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000; // One tick a microsecond.

    #[test]
    fn short_sleeps_lengthen_the_polling_and_long_ones_shorten_it() {
        let mut back_off = BackOff::new(HZ, 0);
        for _ in 0..10 {
            back_off.woke(Woken::Event, 10, 0);
            back_off.worked(0);
        }
        assert!(!back_off.tired(LONGEST_US - 1));
        assert!(back_off.tired(LONGEST_US));
        for _ in 0..10 {
            back_off.woke(Woken::Event, 10_000, 0);
            back_off.worked(0);
        }
        assert!(back_off.tired(SHORTEST_US));
    }

    #[test]
    fn a_timeout_without_work_goes_straight_back_to_sleep() {
        let mut back_off = BackOff::new(HZ, 0);
        back_off.worked(0);
        back_off.woke(Woken::Timeout, 20_000, 100);
        assert!(back_off.tired(100));
        back_off.woke(Woken::Event, 20_000, 100);
        assert!(!back_off.tired(100));
    }
}
