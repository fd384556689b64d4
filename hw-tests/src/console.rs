//! The shell on a guest's second serial line: a command goes in, its output and exit code come out.
//!
//! Each command runs in the guest under `timeout`, and is followed by a marker line with a number of its own,
//! so an answer that comes too late is not taken for the next one's.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A command's end in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 137 or 143 when its time ran out.
    pub code: i32,
    /// What it wrote to standard output and standard error.
    pub text: String,
}

impl Output {
    /// True for exit code 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}: {}", self.code, self.text.trim())
    }
}

/// A connection to the guest's shell.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    pending: Vec<u8>,
    next: u32,
}

impl Console {
    /// Connects, right after the guest was started: the shell says once that it is there.
    pub fn connect(path: &Path) -> Result<Console> {
        let stream = UnixStream::connect(path).with_context(|| {
            format!(
                "The guest's serial line \"{}\" does not answer",
                path.display()
            )
        })?;
        Ok(Console {
            stream,
            pending: Vec::new(),
            next: 1,
        })
    }

    /// The same shell at another place, after the guest was moved there.
    pub fn moved(self, path: &Path) -> Result<Console> {
        Ok(Console {
            next: self.next,
            ..Self::connect(path)?
        })
    }

    /// Waits for the shell, at most `limit`.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        if self.read_until(b"@@fv ready@@", limit)?.is_none() {
            bail!(
                "The guest's shell was not there after {} s",
                limit.as_secs()
            );
        }
        self.sync(Duration::from_secs(20))
    }

    /// Runs a shell command, at most `limit`.
    ///
    /// # Errors
    /// When the guest does not answer. A command that fails is no error: see [`Output::code`].
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let number = self.next;
        self.next += 1;
        let seconds = limit.as_secs().max(1);
        let quoted = command.replace('\'', r"'\''");
        let line = format!(
            "timeout -s KILL {seconds} sh -c '{quoted}' </dev/null 2>&1; c=$?; echo; echo \"@@\"\"fv {number} $c@@\"\n"
        );
        self.stream
            .write_all(line.as_bytes())
            .context("The guest's serial line broke")?;
        let marker = format!("@@fv {number} ");
        // The guest ends the command after `limit`; the rest is for a slow serial line.
        let wait = limit + Duration::from_secs(15);
        let Some(before) = self.read_until(marker.as_bytes(), wait)? else {
            bail!(
                "The guest did not answer within {} s after \"{command}\"",
                wait.as_secs()
            );
        };
        let code = self
            .read_until(b"@@", Duration::from_secs(5))?
            .context("The guest's answer was cut off")?;
        let mut text = String::from_utf8_lossy(&before).replace('\r', "");
        if text.ends_with('\n') {
            text.pop();
        }
        let text = text.strip_prefix('\n').unwrap_or(&text).to_owned();
        let code = String::from_utf8_lossy(&code)
            .trim()
            .parse()
            .context("The guest's exit code is no number")?;
        Ok(Output { code, text })
    }

    fn sync(&mut self, limit: Duration) -> Result<()> {
        let word = format!("@@fv sync {}@@", std::process::id());
        self.stream
            .write_all(format!("echo \"@@\"\"fv sync {}@@\"\n", std::process::id()).as_bytes())?;
        self.read_until(word.as_bytes(), limit)?
            .context("The guest's shell does not keep up")?;
        Ok(())
    }

    /// What came before `marker`; both are consumed. `None` when it did not come in time.
    fn read_until(&mut self, marker: &[u8], limit: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.pending.windows(marker.len()).position(|w| w == marker) {
                let rest = self.pending.split_off(at + marker.len());
                let mut before = std::mem::replace(&mut self.pending, rest);
                before.truncate(at);
                return Ok(Some(before));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("The guest closed its serial line: it is gone"),
                Ok(n) => self.pending.extend_from_slice(&buffer[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("The guest's serial line broke"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::process::{Command, Stdio};

    /// A shell of this machine stands in for the guest's: the protocol is the same.
    fn with_shell(test: impl FnOnce(&mut Console)) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut shell = Command::new("sh")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(
                theirs.try_clone().unwrap(),
            )))
            .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut console = Console {
            stream: ours,
            pending: Vec::new(),
            next: 1,
        };
        console.sync(Duration::from_secs(5)).unwrap();
        test(&mut console);
        drop(console);
        let _ = shell.wait();
    }

    #[test]
    fn output_and_exit_code_come_back() {
        with_shell(|console| {
            let out = console
                .run(
                    "echo \"it's\"; echo two >&2; exit 7",
                    Duration::from_secs(5),
                )
                .unwrap();
            assert_eq!(
                out,
                Output {
                    code: 7,
                    text: "it's\ntwo\n".into()
                }
            );
            let out = console.run("cat", Duration::from_secs(5)).unwrap();
            assert_eq!(
                out,
                Output {
                    code: 0,
                    text: String::new()
                }
            );
        });
    }

    #[test]
    fn a_command_that_hangs_is_ended_and_the_next_one_works() {
        with_shell(|console| {
            let out = console.run("sleep 100", Duration::from_secs(1)).unwrap();
            assert_ne!(out.code, 0);
            assert_eq!(
                console.run("echo on", Duration::from_secs(5)).unwrap().text,
                "on\n"
            );
        });
    }

    #[test]
    fn a_guest_that_is_gone_is_said_to_be() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut console = Console {
            stream: ours,
            pending: Vec::new(),
            next: 1,
        };
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            let _ = std::io::BufReader::new(theirs).read_line(&mut line);
        });
        let error = console.run("true", Duration::from_secs(1)).unwrap_err();
        assert!(format!("{error:#}").contains("serial line"), "{error:#}");
        reader.join().unwrap();
    }
}
