//! The agent's side of a helper process: started when first needed, asked one thing at a time, given up when
//! it does not answer.

use super::{HelperCommand, Reply, Request};
use crate::kernel::KernelError;
use crate::kernel::real::act::Answer;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a killed helper gets to go. One that hangs in the kernel stays.
const KILLED_WITHIN: Duration = Duration::from_millis(500);

/// A helper process, or the place for one.
pub(crate) struct Lane {
    command: HelperCommand,
    deadline: Duration,
    running: Mutex<Option<Running>>,
    stuck: Mutex<Option<Stuck>>,
}

struct Running {
    child: Child,
    requests: Option<ChildStdin>,
    answers: ChildStdout,
    buffer: Vec<u8>,
}

/// A helper that was given up.
struct Stuck {
    child: Child,
    what: String,
    since: Instant,
}

/// Why no line came.
enum NoAnswer {
    Deadline,
    Died(String),
}

impl Lane {
    pub(crate) fn new(command: HelperCommand, deadline: Duration) -> Lane {
        Lane {
            command,
            deadline,
            running: Mutex::new(None),
            stuck: Mutex::new(None),
        }
    }

    /// What hangs, and since when; `None` once it has ended.
    pub(crate) fn stuck(&self) -> Option<(String, Duration)> {
        let mut stuck = lock(&self.stuck);
        let hangs = stuck.as_mut()?;
        // It was killed: it is gone as soon as the kernel lets go of it.
        if matches!(hangs.child.try_wait(), Ok(None)) {
            return Some((hangs.what.clone(), hangs.since.elapsed()));
        }
        *stuck = None;
        None
    }

    /// Looks at something while the helper is asked nothing; `None`: it is being asked something now.
    pub(crate) fn while_idle<T>(&self, look: impl FnOnce() -> T) -> Option<T> {
        let _idle = match self.running.try_lock() {
            Ok(idle) => idle,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(look())
    }

    /// Asks the helper and waits for its answer, up to the deadline.
    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, KernelError> {
        let mut running = lock(&self.running);
        // Looked at only now: the one before us may have got it stuck.
        if let Some((what, after)) = self.stuck() {
            return Err(wedged(request, what, after));
        }
        if let Some(helper) = running.as_mut()
            && !matches!(helper.child.try_wait(), Ok(None))
        {
            *running = None;
        }
        let helper = match running.as_mut() {
            Some(helper) => helper,
            None => running.insert(self.start(request)?),
        };
        let began = Instant::now();
        let error = match helper.exchange(request, began + self.deadline) {
            Ok(line) => match serde_json::from_slice::<Reply>(&line) {
                Ok(reply) => return reply,
                Err(error) => failed(
                    request,
                    format!("the helper's answer makes no sense: {error}"),
                ),
            },
            Err(NoAnswer::Died(why)) => failed(request, why),
            Err(NoAnswer::Deadline) => wedged(request, request.action.words(), began.elapsed()),
        };
        if let Some(helper) = running.take() {
            self.give_up(helper, request, began);
        }
        Err(error)
    }

    fn start(&self, request: &Request) -> Result<Running, KernelError> {
        let program = self.command.program.display();
        let cannot = |error: io::Error| {
            failed(
                request,
                format!("the helper {program} cannot be started: {error}"),
            )
        };
        let mut child = Command::new(&self.command.program)
            .args(&self.command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal ends the agent, not an operation under way.
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = answers.ok_or_else(|| cannot(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Running {
            child,
            requests,
            answers,
            buffer: Vec::new(),
        })
    }

    /// Ends the helper; where it cannot be ended, keeps it as stuck.
    fn give_up(&self, mut helper: Running, request: &Request, since: Instant) {
        let _it_may_be_gone = helper.child.kill();
        let killed = Instant::now();
        while killed.elapsed() < KILLED_WITHIN {
            if !matches!(helper.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        *lock(&self.stuck) = Some(Stuck {
            child: helper.child,
            what: request.action.words(),
            since,
        });
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Its input ends, so it ends; an operation under way is finished first, without us.
        let running = self
            .running
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(mut helper) = running.take() {
            helper.requests = None;
            let dropped = Instant::now();
            while dropped.elapsed() < KILLED_WITHIN && matches!(helper.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Running {
    /// Sends a request and reads one line.
    fn exchange(&mut self, request: &Request, until: Instant) -> Result<Vec<u8>, NoAnswer> {
        let died =
            |error: io::Error| NoAnswer::Died(format!("the helper process is gone: {error}"));
        let mut line = serde_json::to_vec(request).map_err(|e| NoAnswer::Died(e.to_string()))?;
        line.push(b'\n');
        let requests = self
            .requests
            .as_mut()
            .ok_or_else(|| died(io::ErrorKind::BrokenPipe.into()))?;
        requests.write_all(&line).map_err(died)?;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoAnswer::Deadline);
            }
            // Rounded up, so that it does not spin through the last millisecond.
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(died(errno.into())),
            }
            let mut chunk = [0; 64 * 1024];
            match self.answers.read(&mut chunk) {
                Ok(0) => return Err(died(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(died(error)),
            }
        }
    }
}

fn wedged(request: &Request, what: String, after: Duration) -> KernelError {
    KernelError::Wedged {
        device: request.device.to_string(),
        what,
        after,
    }
}

fn failed(request: &Request, why: String) -> KernelError {
    KernelError::Failed {
        device: request.device.to_string(),
        what: request.action.words(),
        why,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::real::act::Action;

    fn lane(script: &str, deadline: Duration) -> Lane {
        let command = HelperCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
        };
        Lane::new(command, deadline)
    }

    fn request() -> Request {
        Request {
            device: "0000:01:00.0".parse().unwrap(),
            action: Action::NumVfs(0),
            patience: Duration::ZERO,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_helper_answers_many_requests() {
        let lane = lane(
            r#"n=0; while read -r line; do n=$((n+1)); echo "{\"Ok\":{\"holders\":[\"$n\"]}}"; done"#,
            LONG,
        );
        for n in ["1", "2", "3"] {
            assert_eq!(lane.ask(&request()), Ok(Answer::Holders(vec![n.into()])));
        }
        assert_eq!(lane.stuck(), None);
    }

    #[test]
    fn an_answer_longer_than_a_pipe_comes_whole() {
        let lane = lane(
            r#"read -r line; printf '{"Ok":{"holders":["'; head -c 300000 /dev/zero | tr '\0' x; echo '"]}}'; read -r line"#,
            LONG,
        );
        let Ok(Answer::Holders(holders)) = lane.ask(&request()) else {
            panic!("no answer")
        };
        assert_eq!(holders[0].len(), 300_000);
    }

    #[test]
    fn a_helper_that_does_not_answer_is_killed_and_the_next_request_gets_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            r#"if mkdir {0}/first 2>/dev/null; then exec sleep 1000; fi; while read -r line; do echo '{{"Ok":"done"}}'; done"#,
            dir.path().display()
        );
        let mut lane = lane(&script, Duration::from_millis(500));
        let error = lane.ask(&request()).unwrap_err();
        assert!(matches!(error, KernelError::Wedged { .. }), "{error}");
        assert!(error.to_string().contains("sriov_numvfs=0"), "{error}");
        assert_eq!(lane.stuck(), None, "it could be killed");
        // A loaded machine may need longer than half a second to start a shell.
        lane.deadline = LONG;
        assert_eq!(lane.ask(&request()), Ok(Answer::Done));
    }

    #[test]
    fn a_helper_that_dies_or_lies_is_an_error_and_replaced() {
        let lane = lane("read -r line; echo gibberish; read -r line", LONG);
        let error = lane.ask(&request()).unwrap_err();
        assert!(error.to_string().contains("makes no sense"), "{error}");
        let lane = self::lane("exit 3", LONG);
        for _ in 0..2 {
            let error = lane.ask(&request()).unwrap_err();
            assert!(matches!(error, KernelError::Failed { .. }), "{error}");
        }
        let nowhere = HelperCommand {
            program: "/nonexistent".into(),
            args: Vec::new(),
        };
        let error = Lane::new(nowhere, LONG).ask(&request()).unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
    }
}
