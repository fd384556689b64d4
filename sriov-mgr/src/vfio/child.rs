//! The check in a process of its own with a deadline.
//!
//! A system call on a broken device may never return, and then its process cannot even be killed. So the agent
//! starts a child for each check, writes the request to its standard input and reads one JSON object a
//! line from its standard output: the verdict, each step as it is done, an end. What has not come by the
//! deadline becomes a failed step; a child that outlives its kill is left to the kernel.

use super::check::{
    CheckReport, CheckRequest, Step, StepName, StepResult, add_skipped, check_verdict, check_with,
};
use super::verdict::Verdict;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed child may take to be gone before it counts as stuck in the kernel.
const DYING: Duration = Duration::from_secs(2);
/// The longest line a child may write: a verdict on a group of many devices.
const LONGEST_LINE: u64 = 1 << 20;

/// A line of the child's.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Verdict(Verdict),
    Step(Step),
    End,
}

/// The check could not be made at all.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The child did not start.
    #[error("The process for the check could not be started")]
    Start(#[source] io::Error),
    /// It ended before it had said anything, or said what makes no sense.
    #[error("The process for the check failed: {0}")]
    Broken(String),
}

/// The child's side: reads one request from standard input, checks, and writes what happens to standard
/// output. The process is killed when the one that started it ends.
///
/// # Errors
/// When the request cannot be read, or nobody reads the answer any more.
pub fn serve_check() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    serve(&mut io::stdin().lock(), &mut io::stdout().lock())
}

fn serve(input: &mut dyn BufRead, output: &mut dyn Write) -> io::Result<()> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let request: CheckRequest = serde_json::from_str(&line)?;
    let (facts, verdict) = check_verdict(&request);
    say(output, &Said::Verdict(verdict.clone()))?;
    let mut written = Ok(());
    check_with(&facts, &verdict, &mut |step| {
        if written.is_ok() {
            written = say(output, &Said::Step(step));
        }
    });
    written?;
    say(output, &Said::End)
}

fn say(output: &mut dyn Write, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

/// Runs the check in the child that `command` starts, which calls [`serve_check`]. Returns by `deadline` (and the few seconds that a dying child gets), whatever the device does.
/// `progress` gets each step as it is done.
///
/// # Errors
/// [`ChildError`]. A device that hangs is no error: the report says so.
pub fn check_in_child(
    mut command: Command,
    request: &CheckRequest,
    deadline: Duration,
    progress: &mut dyn FnMut(&Step),
) -> Result<CheckReport, ChildError> {
    let until = Instant::now() + deadline;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(ChildError::Start)?;
    let told = tell(&mut child, request);
    let said = listen(child.stdout.take());
    let collected = collect(&said, until, progress);
    let stuck = !end(child);
    let Some(verdict) = collected.verdict else {
        let why = match (collected.over, told) {
            (false, Err(e)) => format!("it took no request: {e}"),
            (false, Ok(())) => "it ended without a word".to_owned(),
            (true, _) => format!(
                "it said nothing within {} s: reading the device's state hangs",
                deadline.as_secs()
            ),
        };
        return Err(ChildError::Broken(why));
    };
    let mut steps = collected.steps;
    if !collected.complete
        && let Some(name) = next_step(&steps)
    {
        let step = unfinished(name, collected.over, stuck, deadline);
        progress(&step);
        steps.push(step);
    }
    add_skipped(&mut steps, progress);
    Ok(CheckReport {
        address: request.function,
        verdict,
        steps,
    })
}

fn tell(child: &mut Child, request: &CheckRequest) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(&line),
        None => Ok(()),
    }
}

/// Reads the child's lines on a thread of its own, until its end.
fn listen(stdout: Option<ChildStdout>) -> Receiver<Said> {
    let (send, said) = channel();
    if let Some(stdout) = stdout {
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let limited = &mut io::Read::take(&mut lines, LONGEST_LINE);
                let read = limited.read_until(b'\n', &mut line);
                let (Ok(1..), Ok(said)) = (read, serde_json::from_slice(&line)) else {
                    return;
                };
                if send.send(said).is_err() {
                    return;
                }
            }
        });
    }
    said
}

#[derive(Default)]
struct Collected {
    verdict: Option<Verdict>,
    steps: Vec<Step>,
    /// Everything was said.
    complete: bool,
    /// The deadline passed.
    over: bool,
}

fn collect(said: &Receiver<Said>, until: Instant, progress: &mut dyn FnMut(&Step)) -> Collected {
    let mut collected = Collected::default();
    loop {
        match said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Said::Verdict(verdict)) => collected.verdict = Some(verdict),
            Ok(Said::Step(step)) => {
                progress(&step);
                collected.steps.push(step);
            }
            Ok(Said::End) => {
                collected.complete = true;
                return collected;
            }
            Err(RecvTimeoutError::Disconnected) => return collected,
            Err(RecvTimeoutError::Timeout) => {
                collected.over = true;
                return collected;
            }
        }
    }
}

/// Kills the child; whether it is gone. One that is not is collected whenever it ends.
fn end(mut child: Child) -> bool {
    let _ = child.kill();
    let until = Instant::now() + DYING;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    thread::spawn(move || child.wait());
    false
}

fn next_step(done: &[Step]) -> Option<StepName> {
    StepName::ALL
        .into_iter()
        .find(|name| !done.iter().any(|step| step.name == *name))
}

fn unfinished(name: StepName, over: bool, stuck: bool, deadline: Duration) -> Step {
    let advice = if stuck {
        "its process cannot be killed either: take the NIC out of use until the host is started anew"
    } else {
        "look at the kernel's log (dmesg), and reset the PF before the VF is used"
    };
    let why = if over {
        format!("It has not returned within {} s", deadline.as_secs())
    } else {
        "The process for the check died in it".to_owned()
    };
    let result = StepResult::Failed {
        why,
        advice: advice.to_owned(),
    };
    Step::new(name, result, if over { deadline } else { Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CheckRequest {
        CheckRequest {
            function: "ffff:ff:1f.7".parse().unwrap(),
            force: Vec::new(),
        }
    }

    /// A child that reads its request and then does what `script` says.
    fn child(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read request; {script}")]);
        command
    }

    /// What `serve` says of a function that no host has.
    fn served() -> String {
        let request = format!("{}\n", serde_json::to_string(&request()).unwrap());
        let mut said = Vec::new();
        serve(&mut request.as_bytes(), &mut said).unwrap();
        String::from_utf8(said).unwrap()
    }

    fn run(command: Command, deadline: Duration) -> (Result<CheckReport, ChildError>, Vec<Step>) {
        let mut seen = Vec::new();
        let report = check_in_child(command, &request(), deadline, &mut |step| {
            seen.push(step.clone());
        });
        (report, seen)
    }

    #[test]
    fn what_the_child_says_becomes_the_report() {
        let script = format!("cat <<'END'\n{}END\n", served());
        let (report, seen) = run(child(&script), Duration::from_secs(30));
        let report = report.unwrap();
        assert!(!report.passed());
        assert_eq!(report.steps, seen);
        assert_eq!(report.steps.len(), StepName::ALL.len());
        assert!(report.to_string().contains("There is no PCI function"));
    }

    #[test]
    fn a_step_that_hangs_is_named_and_the_rest_is_skipped() {
        let passed = |name| {
            let result = StepResult::Passed {
                seen: String::new(),
            };
            let step = Said::Step(Step::new(name, result, Duration::ZERO));
            serde_json::to_string(&step).unwrap()
        };
        let served = served();
        let verdict = served.lines().next().unwrap();
        let script = format!(
            "cat <<'END'\n{verdict}\n{}\n{}\nEND\nexec sleep 1000",
            passed(StepName::Viability),
            passed(StepName::Container)
        );
        let (report, seen) = run(child(&script), Duration::from_secs(1));
        let report = report.unwrap();
        assert_eq!(report.steps, seen);
        let failed: Vec<StepName> = report
            .steps
            .iter()
            .filter(|step| step.failed())
            .map(|step| step.name)
            .collect();
        assert_eq!(failed, [StepName::Device]);
        assert!(report.to_string().contains("has not returned within 1 s"));
        assert!(!report.passed());
    }

    #[test]
    fn a_child_that_dies_in_a_step_is_told_from_one_that_hangs() {
        let served = served();
        let verdict = served.lines().next().unwrap();
        let script = format!("echo '{verdict}'; kill -9 $$");
        let (report, _) = run(child(&script), Duration::from_secs(30));
        let report = report.unwrap();
        assert_eq!(report.steps[0].name, StepName::Viability);
        assert!(report.steps[0].failed());
        assert!(report.to_string().contains("died in it"));
    }

    #[test]
    fn a_child_that_talks_nonsense_or_nothing_is_an_error() {
        for script in ["echo nonsense", "exit 1", "head -c 3000000 /dev/zero"] {
            let (report, _) = run(child(script), Duration::from_secs(30));
            assert!(matches!(report, Err(ChildError::Broken(_))), "{script}");
        }
        let missing = Command::new("/nonexistent/helper");
        assert!(matches!(
            run(missing, Duration::from_secs(30)).0,
            Err(ChildError::Start(_))
        ));
    }
}
