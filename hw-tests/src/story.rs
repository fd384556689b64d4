//! What a run tells: the demo as it goes, with commands and their output; the tests one line for each check.
//!
//! A check is told the same way to both: its name says what must hold, its work returns a word on how it did.
//! A check that fails does not end the run, so that one look shows all that is wrong.

use anyhow::Result;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// A person who watches the demo.
    Person,
    /// A test run: one line for each check, as cargo's own test programs print them.
    Tests,
}

#[derive(Debug)]
struct Row {
    part: String,
    check: String,
    detail: String,
    took: Duration,
    failed: bool,
}

/// The telling of a run, and its outcome.
#[derive(Debug)]
pub struct Story {
    audience: Audience,
    colour: bool,
    started: Instant,
    part: Mutex<String>,
    rows: Mutex<Vec<Row>>,
}

impl Story {
    /// A story for this audience.
    pub fn new(audience: Audience) -> Story {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Story {
            audience,
            colour,
            started: Instant::now(),
            part: Mutex::default(),
            rows: Mutex::default(),
        }
    }

    /// A part begins.
    pub fn part(&self, title: &str) {
        *lock(&self.part) = title.to_owned();
        if self.audience == Audience::Person {
            println!("\n{}", self.paint("1", &format!("── {title} ")));
        }
    }

    /// Something worth knowing.
    pub fn say(&self, text: &str) {
        if self.audience == Audience::Person {
            for line in text.lines() {
                println!("     {line}");
            }
        }
    }

    /// A command that an operator would type, and what it printed.
    pub fn command(&self, place: &str, line: &str, output: &str) {
        if self.audience == Audience::Person {
            println!("  {} {line}", self.paint("36", &format!("{place}$")));
            for line in output.trim_end().lines() {
                println!("     {}", self.paint("2", line));
            }
        }
    }

    /// Checks that something holds. `None` when it does not.
    pub fn check<T>(&self, name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Option<T> {
        let start = Instant::now();
        let result = work();
        // When the run is told to stop, what fails because of that is not told.
        drop(crate::cleanup::making());
        let took = start.elapsed();
        let (value, detail, failed) = match result {
            Ok((value, detail)) => (Some(value), detail, false),
            Err(e) => (None, format!("{e:#}"), true),
        };
        let part = lock(&self.part).clone();
        match (self.audience, failed) {
            (Audience::Person, false) => {
                println!(
                    "  {} {name}: {detail}  ({:.1} s)",
                    self.paint("32", "ok"),
                    took.as_secs_f32()
                );
            }
            (Audience::Person, true) => {
                println!("  {} {name}: {detail}", self.paint("31", "FAILED"))
            }
            (Audience::Tests, false) => {
                println!(
                    "test {part}: {name} ... ok ({:.1} s; {detail})",
                    took.as_secs_f32()
                );
            }
            (Audience::Tests, true) => println!("test {part}: {name} ... FAILED\n---- {detail}"),
        }
        lock(&self.rows).push(Row {
            part,
            check: name.to_owned(),
            detail,
            took,
            failed,
        });
        value
    }

    /// [`check`](Self::check) for work that only has a word to say.
    pub fn holds(&self, name: &str, work: impl FnOnce() -> Result<String>) -> bool {
        self.check(name, || Ok(((), work()?))).is_some()
    }

    /// True when no check failed.
    pub fn all_good(&self) -> bool {
        lock(&self.rows).iter().all(|row| !row.failed)
    }

    /// Prints the summary; the exit code is 0 only if every check held.
    pub fn end(&self) -> ExitCode {
        drop(crate::cleanup::making());
        let rows = lock(&self.rows);
        let failed = rows.iter().filter(|row| row.failed).count();
        let good = failed == 0 && !rows.is_empty();
        match self.audience {
            Audience::Person => {
                println!("\n{}", self.paint("1", "── Summary "));
                let width = rows
                    .iter()
                    .map(|row| row.check.chars().count())
                    .max()
                    .unwrap_or(0);
                let mut part = "";
                for row in rows.iter() {
                    if row.part != part {
                        part = &row.part;
                        println!("  {part}");
                    }
                    let word = if row.failed {
                        self.paint("31", "FAILED")
                    } else {
                        self.paint("32", "ok    ")
                    };
                    let detail = row.detail.lines().next().unwrap_or("");
                    println!(
                        "    {word} {:<width$} {:>6.1} s  {detail}",
                        row.check,
                        row.took.as_secs_f32()
                    );
                }
                let all = self.started.elapsed().as_secs();
                let held = rows.len() - failed;
                println!(
                    "\n  {held} of {} checks held, in {} min {:02} s",
                    rows.len(),
                    all / 60,
                    all % 60
                );
            }
            Audience::Tests => {
                println!(
                    "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
                    if good { "ok" } else { "FAILED" },
                    rows.len() - failed,
                    self.started.elapsed().as_secs_f32()
                );
            }
        }
        if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_run_and_none_is_no_success() {
        let story = Story::new(Audience::Tests);
        assert_eq!(
            format!("{:?}", story.end()),
            format!("{:?}", ExitCode::FAILURE)
        );
        assert!(story.holds("this", || Ok("fine".into())));
        assert_eq!(
            format!("{:?}", story.end()),
            format!("{:?}", ExitCode::SUCCESS)
        );
        assert!(!story.holds("that", || anyhow::bail!("no")));
        assert!(!story.all_good());
        assert_eq!(
            format!("{:?}", story.end()),
            format!("{:?}", ExitCode::FAILURE)
        );
    }
}
