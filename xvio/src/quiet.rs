//! How much one port may write into the log. What a frontend does, and how often, is its own choice; a
//! log that takes so many lines of a program at a time would lose those about all others.

use std::time::{Duration, Instant};

/// Lines at a time, at most, and how long a time is.
const LINES: u32 = 20;
const TIME: Duration = Duration::from_secs(10);

/// Counts the lines about one port's frontends.
#[derive(Debug)]
pub(crate) struct Quiet {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Quiet {
    pub(crate) fn new(now: Instant) -> Self {
        Quiet {
            began: now,
            lines: 0,
            left_out: 0,
        }
    }

    /// Asks for a line; how many before it were left out, or `None` when this one is to be left out.
    pub(crate) fn line(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.began) >= TIME {
            (self.began, self.lines) = (now, 0);
        }
        if self.lines >= LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_count() {
        let start = Instant::now();
        let mut quiet = Quiet::new(start);
        let mut lines = Vec::new();
        for millis in 0..30_000 {
            lines.extend(quiet.line(start + Duration::from_millis(millis)));
        }
        let mut wanted = vec![0; 60];
        (wanted[20], wanted[40]) = (10_000 - 20, 10_000 - 20);
        assert_eq!(lines, wanted);
    }
}
