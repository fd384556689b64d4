//! One target from its start to its end: it is made or reached, the tests run one after the other, after each
//! the target is as it was before, and whatever goes wrong ends as a row of the report within its limit.

use super::context::{Context, Kept, cut};
use super::hold::Hold;
use super::inventory::{Kind, TargetSpec};
use super::progress::Progress;
use super::restore::restore;
use super::results::{Status, TargetResult, TestResult};
use super::snapshot::{Change, Snapshot};
use super::suite::{Measure, Stop, Suite, Test, Unit};
use super::target::{LinkError, Target};
use crate::cleanup;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The suite under which the tool reports about the target itself.
pub const LAB: &str = "lab";
/// How long the kernel may take until what a test removed is gone.
const SETTLE: Duration = Duration::from_secs(3);
/// How often a machine is made anew before its tests are given up.
const MOST_RENEWALS: u32 = 5;
/// The longest state in a report, in bytes.
const STATE: usize = 64 << 10;

/// A test that was chosen.
pub type Chosen = (&'static Suite, &'static Test);

/// Where a target's results grow, row by row.
pub type Slot = Arc<Mutex<TargetResult>>;

/// A slot without rows.
pub fn slot(spec: &TargetSpec) -> Slot {
    Arc::new(Mutex::new(TargetResult {
        name: spec.name.clone(),
        kind: spec.kind.word().to_owned(),
        platform: spec.platform,
        error: None,
        facts: None,
        duration_s: 0.0,
        tests: Vec::new(),
    }))
}

/// A target in use, and how it is put back and ended however this process ends.
struct Open {
    target: Arc<Target>,
    /// Its state before the first test.
    first: Snapshot,
    _undo: cleanup::Guard,
}

struct Runner<'a> {
    spec: &'a TargetSpec,
    slot: &'a Slot,
    progress: &'a Progress,
    dir: PathBuf,
    opened: u32,
    end: Instant,
}

/// Runs `tests` on the target that `spec` describes. `dir` is a folder of this machine for its files.
pub fn run(spec: &TargetSpec, tests: &[Chosen], slot: &Slot, dir: &Path, progress: &Progress) {
    let started = Instant::now();
    let mut runner = Runner {
        spec,
        slot,
        progress,
        dir: dir.to_owned(),
        opened: 0,
        end: started + spec.limits.target,
    };
    progress.doing(&spec.name, "getting ready");
    runner.all(tests);
    runner.results().duration_s = started.elapsed().as_secs_f64();
    progress.done(&spec.name);
}

impl Runner<'_> {
    fn results(&self) -> MutexGuard<'_, TargetResult> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, row: TestResult) {
        // A run that was told to stop says nothing about what its end did to the targets: this thread stops here.
        drop(cleanup::making());
        self.progress.ended(&self.spec.name, &row);
        self.results().tests.push(row);
    }

    fn all(&mut self, tests: &[Chosen]) {
        let mut open = match self.first_open() {
            Some(open) => open,
            None => return self.not_run(tests, "the target could not be used"),
        };
        for (at, (suite, test)) in tests.iter().enumerate() {
            if Instant::now() >= self.end {
                let limit = self.spec.limits.target.as_secs();
                self.give_up(format!("The target's time limit of {limit} s is used up"));
                self.not_run(&tests[at..], "the target's time is used up");
                break;
            }
            let missing = test
                .all_needs()
                .find_map(|need| need.missing(open.target.facts()));
            if let Some(reason) = missing {
                self.row(row(suite, test, Status::Skipped, reason));
                continue;
            }
            self.progress
                .doing(&self.spec.name, &format!("{}/{}", suite.name, test.name));
            let (row, trouble) = self.one(&open, suite, test);
            self.row(row);
            if let Some(trouble) = trouble {
                let more = &tests[at + 1..];
                match self.renew(open, &trouble, more.is_empty()) {
                    Some(renewed) => open = renewed,
                    None => return self.not_run(more, "the target was given up"),
                }
            }
        }
        self.progress.doing(&self.spec.name, "cleaning up");
    }

    /// Opens the target, and reports how that went as a row of its own.
    fn first_open(&mut self) -> Option<Open> {
        let started = Instant::now();
        let about =
            "the target is ready: it booted or was reached, and has the NICs of the inventory";
        let mut row = TestResult {
            suite: LAB.into(),
            name: "ready".into(),
            about: about.into(),
            status: Status::Passed,
            message: String::new(),
            duration_s: 0.0,
            measures: Vec::new(),
            changes: Vec::new(),
            log: String::new(),
            state: String::new(),
        };
        let open = self.open();
        row.duration_s = started.elapsed().as_secs_f64();
        match open {
            Ok(open) => {
                let ready = open.target.ready().as_secs_f64() * 1000.0;
                row.measures.push(Measure {
                    name: "ready_ms".into(),
                    value: ready,
                    unit: Unit::Milliseconds,
                });
                let facts = open.target.facts().clone();
                self.results().platform = Some(facts.platform);
                self.results().facts = Some(facts);
                self.row(row);
                Some(open)
            }
            Err(error) => {
                row.status = Status::Error;
                row.message = format!("{error:#}");
                self.give_up(row.message.clone());
                self.row(row);
                None
            }
        }
    }

    fn open(&mut self) -> anyhow::Result<Open> {
        self.opened += 1;
        let dir = self.dir.join(self.opened.to_string());
        std::fs::create_dir_all(&dir)?;
        let target = Target::open(self.spec, &dir)?;
        let limits = &self.spec.limits;
        let left = self.end.saturating_duration_since(Instant::now());
        let hold = match Hold::take(&target, limits.target, limits.ready.min(left)) {
            Ok(hold) => hold,
            Err(error) => {
                target.close();
                return Err(error.into());
            }
        };
        let first = match Snapshot::take(&target) {
            Ok(first) => first,
            Err(error) => {
                hold.release();
                target.close();
                return Err(error.into());
            }
        };
        // A machine of our own is thrown away as it is.
        let thrown_away = matches!(self.spec.kind, Kind::Emulated(_));
        let (undone, state) = (target.clone(), first.clone());
        let undo = cleanup::on_exit(move || {
            if !thrown_away {
                let _ = restore(&undone, &state);
            }
            hold.release();
            undone.close();
        });
        Ok(Open {
            target,
            first,
            _undo: undo,
        })
    }

    /// After trouble: the same target when it answers and could be put back, a new one where that is possible.
    fn renew(&mut self, open: Open, trouble: &Trouble, last: bool) -> Option<Open> {
        if matches!(trouble, Trouble::Hung) && open.target.answers() {
            return Some(open);
        }
        let said = open.target.last_words();
        open.target.give_up();
        drop(open);
        if last {
            return None;
        }
        let why = match trouble {
            Trouble::Changed(left) => format!(
                "The target could not be put back as it was: {}",
                sentence(left)
            ),
            _ => format!("The target does not answer any more. {said}"),
        };
        let emulated = matches!(self.spec.kind, Kind::Emulated(_));
        if !emulated || self.opened > MOST_RENEWALS {
            self.give_up(why);
            return None;
        }
        self.progress.doing(&self.spec.name, "booting anew");
        self.progress.line(&format!(
            "        {}: the machine is booted anew: {}",
            self.spec.name,
            super::progress::printable(why.trim())
        ));
        match self.open() {
            Ok(open) => Some(open),
            Err(error) => {
                self.give_up(format!("{why} It could not be booted anew: {error:#}"));
                None
            }
        }
    }

    fn give_up(&self, why: String) {
        self.results().error = Some(why);
    }

    fn not_run(&self, tests: &[Chosen], why: &str) {
        for (suite, test) in tests {
            self.row(row(suite, test, Status::Error, format!("Not run: {why}")));
        }
    }

    /// Runs one test and puts the target back. Says when the target must not be used further.
    fn one(
        &self,
        open: &Open,
        suite: &Suite,
        test: &'static Test,
    ) -> (TestResult, Option<Trouble>) {
        let started = Instant::now();
        let kept = Arc::new(Kept::default());
        let left = self.end.saturating_duration_since(Instant::now());
        let limit = test.limit.min(self.spec.limits.test).min(left);
        let ended = body(test, open, limit, self.spec.limits.grace, &kept);
        let took = started.elapsed();
        let (status, message) = match &ended {
            Ended::Outcome(Ok(())) => (Status::Passed, String::new()),
            Ended::Outcome(Err(Stop::Fail(found))) => (Status::Failed, found.clone()),
            Ended::Outcome(Err(Stop::Skip(reason))) => (Status::Skipped, reason.clone()),
            Ended::Outcome(Err(Stop::Error(error))) => (Status::Error, format!("{error:#}")),
            Ended::Panicked(said) => (Status::Failed, format!("The test panicked: {said}")),
            Ended::Late => (
                Status::Error,
                format!(
                    "The test did not end within {} s and was left",
                    limit.as_secs()
                ),
            ),
        };
        let mut row = TestResult {
            duration_s: took.as_secs_f64(),
            measures: kept.measures(),
            log: kept.log(),
            ..row(suite, test, status, message)
        };
        if matches!(ended, Ended::Late) {
            return (row, Some(Trouble::Lost));
        }
        let trouble = put_back(open, &mut row);
        let trouble = trouble.or(kept.lost().then_some(Trouble::Hung));
        (row, trouble)
    }
}

/// Why a target must be looked at after a test.
enum Trouble {
    /// A command did not end.
    Hung,
    /// It does not answer.
    Lost,
    /// It is not as it was.
    Changed(Vec<Change>),
}

enum Ended {
    Outcome(super::suite::Outcome),
    Panicked(String),
    Late,
}

/// Runs the test's function on a thread of its own, since nobody can be sure that it ends.
fn body(
    test: &'static Test,
    open: &Open,
    limit: Duration,
    grace: Duration,
    kept: &Arc<Kept>,
) -> Ended {
    let (send, outcome) = mpsc::channel();
    let target = open.target.clone();
    let kept = kept.clone();
    let thread = std::thread::Builder::new()
        .name(test.name.into())
        .spawn(move || {
            let folder = format!("{}/test", target.scratch());
            let made = target.quiet(&format!("rm -rf {folder} && mkdir {folder}"), limit);
            let outcome = match made {
                Ok(_) => {
                    let context = Context::new(target, limit, kept);
                    let run = std::panic::AssertUnwindSafe(|| (test.body)(&context));
                    std::panic::catch_unwind(run)
                }
                Err(error) => Ok(Err(Stop::from(error))),
            };
            let _ = send.send(outcome);
        });
    if let Err(error) = thread {
        let error = anyhow::Error::new(error).context("The test's thread could not be started");
        return Ended::Outcome(Err(Stop::Error(error)));
    }
    match outcome.recv_timeout(limit + grace) {
        Ok(Ok(outcome)) => Ended::Outcome(outcome),
        Ok(Err(panic)) => Ended::Panicked(said(panic.as_ref())),
        Err(RecvTimeoutError::Timeout) => Ended::Late,
        Err(RecvTimeoutError::Disconnected) => Ended::Panicked("it ended without a word".into()),
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it said nothing".into())
}

/// Compares the target with its first state, puts it back, and adds to the row what was left behind.
fn put_back(open: &Open, row: &mut TestResult) -> Option<Trouble> {
    let lost = |row: &mut TestResult, error: LinkError| {
        if row.status != Status::Error {
            row.message = format!(
                "After the test the target does not answer: {error}. {}",
                row.message
            );
            row.status = Status::Error;
        }
        Some(Trouble::Lost)
    };
    let changes = match settled(open) {
        Ok(changes) => changes,
        Err(error) => return lost(row, error),
    };
    row.changes = changes.iter().map(ToString::to_string).collect();
    if !changes.is_empty() && matches!(row.status, Status::Passed | Status::Skipped) {
        row.status = Status::Failed;
        row.message = format!("It left the target changed: {}", sentence(&changes));
    }
    if matches!(row.status, Status::Failed | Status::Error) {
        row.state = state(&open.target);
    }
    if changes.is_empty() {
        return None;
    }
    match restore(&open.target, &open.first) {
        Ok(left) if left.is_empty() => None,
        Ok(left) => Some(Trouble::Changed(left)),
        Err(error) => lost(row, error),
    }
}

/// What is different from the first state, after the kernel had its time.
fn settled(open: &Open) -> Result<Vec<Change>, LinkError> {
    let end = Instant::now() + SETTLE;
    loop {
        let changes = open.first.changes(&Snapshot::take(&open.target)?);
        if changes.is_empty() || Instant::now() >= end {
            return Ok(changes);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn sentence(changes: &[Change]) -> String {
    let mut said: Vec<String> = changes.iter().take(6).map(ToString::to_string).collect();
    if changes.len() > said.len() {
        said.push(format!("and {} more", changes.len() - said.len()));
    }
    said.join("; ")
}

/// The state of a target for the report of a failure.
fn state(target: &Target) -> String {
    match target.quiet(STATE_SCRIPT, Duration::from_secs(60)) {
        Ok(done) => cut(&done.stdout, STATE).to_owned(),
        Err(error) => error.to_string(),
    }
}

const STATE_SCRIPT: &str = r#"
show() { echo "\$ $*"; timeout 10 "$@" 2>&1 | head -c 16384; echo; }
show ip -details link show
show ip netns list
show ip -brief address
for d in /sys/bus/pci/devices/*; do
  case $(cat $d/class 2>/dev/null) in 0x02*) echo "${d##*/}: driver $(basename "$(readlink $d/driver)"), numvfs $(timeout 5 cat $d/sriov_numvfs 2>/dev/null), override $(cat $d/driver_override)";; esac
done
echo; show devlink dev show
show ps -eo pid,ppid,stat,wchan:20,args --sort=pid
echo '$ dmesg | tail -n 40'; dmesg 2>&1 | tail -n 40
"#;

fn row(suite: &Suite, test: &Test, status: Status, message: String) -> TestResult {
    TestResult {
        suite: suite.name.into(),
        name: test.name.into(),
        about: test.about.into(),
        status,
        message,
        duration_s: 0.0,
        measures: Vec::new(),
        changes: Vec::new(),
        log: String::new(),
        state: String::new(),
    }
}
