//! How long traffic was interrupted, from the output of a ping that ran meanwhile.
//!
//! A packet that waited in the guest's ring until the agent was back is answered late, and not lost. So what
//! counts is when answers came: the longest time without one, less the ping's own interval.

use anyhow::{Context, Result, bail};
use std::time::Duration;

/// What a ping's output shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// The longest time without an answer, beyond the interval.
    pub longest: Duration,
    /// Answers seen.
    pub answers: usize,
    /// Numbers of the sequence that were never answered, between the first and the last answer.
    pub lost: usize,
}

/// Reads the lines `64 bytes from 10.1.0.3: seq=5 ttl=64 time=1.234 ms` of busybox's ping.
pub fn measure(output: &str, interval: Duration) -> Result<Interruption> {
    let mut arrivals: Vec<(u32, f64)> = Vec::new();
    for line in output.lines() {
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name))
                .and_then(|v| v.parse::<f64>().ok())
        };
        if let (Some(sequence), Some(took)) = (field("seq="), field("time=")) {
            let sent = sequence * interval.as_secs_f64() * 1000.0;
            arrivals.push((sequence as u32, sent + took));
        }
    }
    if arrivals.len() < 2 {
        bail!(
            "The ping was answered {} times only: {}",
            arrivals.len(),
            output.trim()
        );
    }
    let mut numbers: Vec<u32> = arrivals.iter().map(|(n, _)| *n).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let (first, last) = numbers.first().zip(numbers.last()).context("No answers")?;
    let lost = (last - first) as usize + 1 - numbers.len();
    arrivals.sort_by(|a, b| a.1.total_cmp(&b.1));
    let widest = arrivals
        .windows(2)
        .map(|pair| pair[1].1 - pair[0].1)
        .fold(0.0, f64::max);
    let longest = Duration::from_secs_f64((widest / 1000.0 - interval.as_secs_f64()).max(0.0));
    Ok(Interruption {
        longest,
        answers: arrivals.len(),
        lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(answers: &[(u32, f64)]) -> String {
        answers
            .iter()
            .map(|(n, t)| format!("64 bytes from 10.1.0.3: seq={n} ttl=64 time={t} ms\n"))
            .collect()
    }

    #[test]
    fn lost_and_late_answers_both_count() {
        let interval = Duration::from_millis(100);
        let lost = measure(&lines(&[(0, 1.0), (1, 1.0), (7, 1.0), (8, 1.0)]), interval).unwrap();
        assert_eq!((lost.longest.as_millis(), lost.lost), (500, 5));
        let late = measure(
            &lines(&[(0, 1.0), (1, 601.0), (2, 501.0), (3, 401.0), (8, 1.0)]),
            interval,
        )
        .unwrap();
        assert_eq!(late.longest.as_millis(), 600);
        assert!(measure("nothing", interval).is_err());
    }
}
