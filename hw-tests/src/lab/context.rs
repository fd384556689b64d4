//! What a test gets: the target, and ways to run commands on it that are kept for the report.
//!
//! Every command counts against the test's time limit, and stands in the report with its output. A command that
//! does not end, or a target that is lost, ends the test as an error; a command that must succeed and does
//! not, as a failure.

use super::facts::{Facts, Nic};
use super::snapshot::PREFIX;
use super::suite::{Measure, Stop, Unit};
use super::target::{Done, LinkError, Spawned, Target, quoted};
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest log of a test, in bytes; more is cut.
const LOG: usize = 256 << 10;
/// The longest output of one command in the log, in bytes.
const OUTPUT: usize = 16 << 10;

/// A running test's hold on its target. It may be shared between threads.
#[derive(Debug)]
pub struct Context {
    target: Arc<Target>,
    deadline: Instant,
    scratch: String,
    kept: Arc<Kept>,
}

/// What the test left for the report.
#[derive(Debug, Default)]
pub struct Kept {
    log: Mutex<String>,
    measures: Mutex<Vec<Measure>>,
    hung: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// The commands with their output, and the notes.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// In the order in which they were measured.
    pub fn measures(&self) -> Vec<Measure> {
        lock(&self.measures).clone()
    }

    /// A command did not end, or the target was lost.
    pub fn lost(&self) -> bool {
        self.hung.load(Ordering::SeqCst)
    }

    fn add(&self, text: &str) {
        let mut log = lock(&self.log);
        if log.len() < LOG {
            log.push_str(text);
            if log.len() >= LOG {
                log.push_str("\n… the rest of the log was left out\n");
            }
        }
    }
}

impl Context {
    pub(super) fn new(target: Arc<Target>, limit: Duration, kept: Arc<Kept>) -> Context {
        let scratch = format!("{}/test", target.scratch());
        Context {
            target,
            deadline: Instant::now() + limit,
            scratch,
            kept,
        }
    }

    /// The target itself. What runs through it is not in the log.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// What the target is.
    pub fn facts(&self) -> &Facts {
        self.target.facts()
    }

    /// The first NIC with SR-IOV. The test says [`Need::PciPfs`](super::needs::Need), so there is one.
    ///
    /// # Errors
    /// A skip, when there is none.
    pub fn pf(&self) -> Result<&Nic, Stop> {
        self.facts()
            .pfs()
            .next()
            .ok_or_else(|| Stop::skip("The target has no SR-IOV NIC for tests to use"))
    }

    /// An empty folder on the target, gone after the test.
    pub fn scratch(&self) -> &str {
        &self.scratch
    }

    /// A name for a namespace or a link (at most 9 characters are given), by which the clean-up knows it on a
    /// host that also has others.
    pub fn named(&self, thing: &str) -> String {
        format!("{PREFIX}{}", cut(thing, 9))
    }

    /// How long the test may still take.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Puts a sentence into the report.
    pub fn note(&self, text: impl AsRef<str>) {
        self.kept.add(&format!("{}\n", text.as_ref()));
    }

    /// Puts a named number into the report, for trends. Names are stable: baselines know them.
    pub fn measure(&self, name: &str, value: f64, unit: Unit) {
        lock(&self.kept.measures).push(Measure {
            name: name.to_owned(),
            value,
            unit,
        });
    }

    /// Runs a command to its end. An exit code other than 0 is no failure.
    ///
    /// # Errors
    /// When it does not end within the test's time, or the target is lost.
    pub fn exec<S: AsRef<str>>(&self, argv: &[S]) -> Result<Done, Stop> {
        self.exec_within(argv, self.left())
    }

    /// [`exec`](Context::exec) with a limit of its own.
    ///
    /// # Errors
    /// When it does not end in time, or the target is lost.
    pub fn exec_within<S: AsRef<str>>(&self, argv: &[S], limit: Duration) -> Result<Done, Stop> {
        let started = Instant::now();
        let result = self.target.exec(argv, limit.min(self.left()));
        self.logged(&quoted(argv), started, &result);
        Ok(result?)
    }

    /// Runs a script of `sh`, as [`exec`](Context::exec).
    ///
    /// # Errors
    /// When it does not end within the test's time, or the target is lost.
    pub fn shell(&self, script: &str) -> Result<Done, Stop> {
        let started = Instant::now();
        let result = self.target.shell(script, self.left());
        self.logged(script.trim(), started, &result);
        Ok(result?)
    }

    /// Runs a command that must succeed, and gives its standard output.
    ///
    /// # Errors
    /// A failure, when its exit code is not 0.
    pub fn ok<S: AsRef<str>>(&self, argv: &[S]) -> Result<String, Stop> {
        good(&quoted(argv), self.exec(argv)?)
    }

    /// Runs a script that must succeed, and gives its standard output.
    ///
    /// # Errors
    /// A failure, when its exit code is not 0.
    pub fn shell_ok(&self, script: &str) -> Result<String, Stop> {
        good(script.trim(), self.shell(script)?)
    }

    /// Runs a command that must be refused, and gives what it said.
    ///
    /// # Errors
    /// A failure, when its exit code is 0.
    pub fn refused<S: AsRef<str>>(&self, argv: &[S]) -> Result<String, Stop> {
        let done = self.exec(argv)?;
        if done.ok() {
            return Err(Stop::fail(format!(
                "`{}` succeeded, and must be refused",
                quoted(argv)
            )));
        }
        Ok(done.said().to_owned())
    }

    /// A file's text, without blanks around it.
    ///
    /// # Errors
    /// A failure, when it cannot be read.
    pub fn read(&self, path: &str) -> Result<String, Stop> {
        Ok(self.ok(&["cat", "--", path])?.trim().to_owned())
    }

    /// Writes a line to a file, as `echo` does; what the kernel answers is in [`Done`].
    ///
    /// # Errors
    /// When the write does not end within the test's time, or the target is lost.
    pub fn write(&self, path: &str, line: &str) -> Result<Done, Stop> {
        // Not the shell's own echo, which does not say what the kernel answered.
        let (line, path) = (quoted(&[line]), quoted(&[path]));
        self.shell(&format!("env printf '%s\\n' {line} > {path}"))
    }

    /// Runs a script that must succeed, and says how many milliseconds it took on the target itself.
    ///
    /// # Errors
    /// A failure, when its exit code is not 0.
    pub fn timed(&self, script: &str) -> Result<f64, Stop> {
        let timed = format!(
            "began=$(date +%s%N)\n{script}\ncode=$?\necho took $(( $(date +%s%N) - began ))\nexit $code"
        );
        let said = self.shell_ok(&timed)?;
        let took = said.lines().last().and_then(|l| l.strip_prefix("took "));
        let nanoseconds: Option<f64> = took.and_then(|n| n.trim().parse().ok());
        nanoseconds
            .map(|ns| ns / 1e6)
            .ok_or_else(|| Stop::Error(anyhow::anyhow!("The target's clock cannot be read")))
    }

    /// Starts a command that goes on, such as an agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(&self, name: &str, argv: &[S]) -> Result<Spawned, Stop> {
        let spawned = self.target.spawn(name, argv)?;
        self.note(format!("$ {} &  (process {})", quoted(argv), spawned.pid()));
        Ok(spawned)
    }

    /// Makes a file of this machine a file of the target.
    ///
    /// # Errors
    /// When either side refuses.
    pub fn put(&self, from: &Path, to: &str) -> Result<(), Stop> {
        Ok(self.target.put_file(from, to, self.left())?)
    }

    /// Asks again and again until `ready` has an answer.
    ///
    /// # Errors
    /// A failure after `limit`; what `ready` fails with, at once.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>, Stop>,
    ) -> Result<T, Stop> {
        let end = Instant::now() + limit.min(self.left());
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            if Instant::now() >= end {
                return Err(Stop::fail(format!(
                    "{what} did not happen within {} s",
                    limit.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logged(&self, line: &str, started: Instant, result: &Result<Done, LinkError>) {
        let took = started.elapsed().as_millis();
        let mut text = format!("$ {}\n", line.replace('\n', "\n> "));
        match result {
            Ok(done) => {
                for part in [&done.stdout, &done.stderr] {
                    if !part.trim().is_empty() {
                        text.push_str(cut(part.trim_end(), OUTPUT));
                        text.push('\n');
                    }
                }
                let _ = writeln!(text, "  → exit code {} after {took} ms", done.code);
            }
            Err(error) => {
                self.kept.hung.store(true, Ordering::SeqCst);
                let _ = writeln!(text, "  → {error}");
            }
        }
        self.kept.add(&text);
    }
}

fn good(line: &str, done: Done) -> Result<String, Stop> {
    if done.ok() {
        return Ok(done.stdout);
    }
    // The first line is what the progress and the summary show; the whole command is in the test's log.
    let first = line.lines().next().unwrap_or_default();
    let short = cut(first, 160);
    let more = if short.len() < line.len() { "…" } else { "" };
    Err(Stop::fail(format!(
        "`{short}{more}` ended with exit code {}: {}",
        done.code,
        cut(done.said(), 2000)
    )))
}

/// The first bytes of a text, at a character's end.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
