//! How a command gets to a target: what the kinds of targets have in common, and nothing more.

use std::path::Path;
use std::time::Duration;

/// A command's end on the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// True for exit code 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// What it said about a failure: standard error, or standard output when there is none.
    pub fn said(&self) -> &str {
        match self.stderr.trim() {
            "" => self.stdout.trim(),
            said => said,
        }
    }
}

/// The command has no end: the target, or the way to it, is to blame.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It was ended, here and on the target.
    #[error("`{command}` did not end within {} s and was killed", limit.as_secs_f32().ceil())]
    Hung {
        /// As one would type it.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// No answer, or none that makes sense.
    #[error("{0}")]
    Broken(String),
}

/// The way to a target. Commands may run at the same time.
pub trait Link: Send + Sync + std::fmt::Debug {
    /// Runs a command to its end, at most `limit`. An exit code other than 0 is no error.
    ///
    /// # Errors
    /// When it does not end in time, or the target does not answer.
    fn run(&self, argv: &[String], limit: Duration) -> Result<Done, LinkError>;

    /// Makes a file of this machine a file of the target.
    ///
    /// # Errors
    /// When either side refuses, or it takes longer than `limit`.
    fn put(&self, from: &Path, to: &str, limit: Duration) -> Result<(), LinkError>;

    /// Makes a file of the target a file of this machine.
    ///
    /// # Errors
    /// When either side refuses, or it takes longer than `limit`.
    fn get(&self, from: &str, to: &Path, limit: Duration) -> Result<(), LinkError>;

    /// What the target is made of, for reports.
    fn machine(&self) -> String {
        String::new()
    }

    /// What the target said by itself (a console), for the report of a loss.
    fn last_words(&self) -> String {
        String::new()
    }

    /// Ends it: connections are closed, a machine is ended.
    fn close(&self);
}

/// The words as a line that a POSIX shell reads back as the same words.
pub fn quoted<S: AsRef<str>>(argv: &[S]) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    argv.iter()
        .map(|word| quote(word.as_ref()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_shell_reads_back_the_same_words(words in proptest::collection::vec("[^\0]{0,12}", 1..4)) {
            let line = format!("for w in {}; do printf '%s\\0' \"$w\"; done", quoted(&words));
            let out = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            let said = String::from_utf8(out.stdout).unwrap();
            let back: Vec<&str> = said.split('\0').take(words.len()).collect();
            prop_assert_eq!(back, words.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}
