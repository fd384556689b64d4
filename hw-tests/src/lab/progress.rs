//! How a run shows where it is: a line for each running target on a terminal, plain lines otherwise.

use super::results::{Status, TestResult};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Says what happens.
#[derive(Debug)]
pub struct Progress {
    /// None: plain lines.
    bars: Option<MultiProgress>,
    running: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Progress {
    /// Bars on a terminal that is not CI's.
    pub fn new() -> Progress {
        let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
        let terminal = std::io::stderr().is_terminal() && !ci;
        Progress {
            bars: terminal.then(MultiProgress::new),
            running: Mutex::default(),
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => eprintln!("{text}"),
        }
    }

    /// What a target is doing now.
    pub fn doing(&self, target: &str, what: &str) {
        let Some(bars) = &self.bars else { return };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = running.entry(target.to_owned()).or_insert_with(|| {
            let bar = bars
                .add(ProgressBar::new_spinner())
                .with_prefix(target.to_owned());
            let style = ProgressStyle::with_template("  {spinner} {prefix}  {elapsed}  {msg:.dim}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(150));
            bar
        });
        bar.reset_elapsed();
        bar.set_message(what.to_owned());
    }

    /// A test has ended.
    pub fn ended(&self, target: &str, test: &TestResult) {
        let word = match test.status {
            Status::Passed => "ok   ",
            Status::Skipped => "skip ",
            Status::Failed => "FAIL ",
            Status::Error => "ERROR",
        };
        let mut line = format!(
            "  {word} {target}/{}/{}  ({:.1} s)",
            test.suite, test.name, test.duration_s
        );
        if let Some(why) = test.message.lines().next() {
            line.push_str(&format!("\n        {}", printable(why)));
        }
        self.line(&line);
    }

    /// A target is done with.
    pub fn done(&self, target: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = running.remove(target) {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

/// Text from a target, without what would move a terminal's cursor or change its colours.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}
