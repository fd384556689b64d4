//! A host over ssh, as a target: the system's ssh program with one shared connection.
//!
//! A command that is past its limit is killed on the host by timeout(1) there; its exit code comes back on a
//! line of its own, so that ssh's 255 is not taken for the command's.

use super::link::{Done, Link, LinkError, quoted};
use super::local::finished;
use crate::command;
use crate::lab::inventory::Ssh;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a command's answer may be late.
const GRACE: Duration = Duration::from_secs(10);
/// Comes before the exit code, at the end of standard error.
const MARK: &str = "ferrovia-lab-ended:";

/// A connection.
#[derive(Debug)]
pub struct SshLink {
    spec: Ssh,
    /// The shared connection's socket.
    socket: PathBuf,
    /// Seconds that connecting may take.
    patience: u64,
}

impl SshLink {
    /// Connects. `dir` takes the connection's socket.
    ///
    /// # Errors
    /// With what ssh says, when the host cannot be reached or refuses.
    pub fn connect(spec: &Ssh, dir: &Path, limit: Duration) -> Result<SshLink, LinkError> {
        let link = SshLink {
            spec: spec.clone(),
            socket: dir.join("ssh"),
            patience: limit.as_secs().clamp(1, 30),
        };
        // The shared connection is a process of its own that must not hold our pipes: hence -f and -N apart.
        let mut command = link.ssh();
        command.args([
            "-o",
            "ControlMaster=yes",
            "-o",
            "ControlPersist=300",
            "-f",
            "-N",
        ]);
        command.arg("--").arg(link.destination());
        let done = finished(run_quiet(&mut command, dir, limit))?;
        if !done.ok() {
            link.close();
            return Err(LinkError::Broken(link.refused(&done)));
        }
        Ok(link)
    }

    fn refused(&self, done: &Done) -> String {
        let said = done
            .said()
            .lines()
            .last()
            .unwrap_or("it said nothing")
            .trim();
        format!(
            "{} port {} cannot be reached over ssh: {said}; check that `ssh -p {} {}` works without a password",
            self.destination(),
            self.spec.port,
            self.spec.port,
            self.destination()
        )
    }

    fn destination(&self) -> String {
        format!("{}@{}", self.spec.user, self.spec.address)
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        command.args(["-o", &format!("ConnectTimeout={}", self.patience)]);
        command.args(["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]);
        command.args(["-o", &format!("ControlPath={}", self.socket.display())]);
        command.args(["-p", &self.spec.port.to_string()]);
        if let Some(key) = &self.spec.key {
            command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
        }
        for option in &self.spec.options {
            command.args(["-o", option]);
        }
        command
    }

    /// An ssh that runs `argv` on the host as the account that commands use.
    fn remote(&self, argv: &[String], limit: Duration) -> Command {
        let mut words: Vec<String> = Vec::new();
        if self.spec.sudo {
            words.extend(["sudo", "-n", "--"].map(str::to_owned));
        }
        let seconds = format!("{:.3}", limit.as_secs_f32().max(0.1));
        words.extend(["timeout", "-s", "KILL", &seconds].map(str::to_owned));
        words.extend(argv.iter().cloned());
        let mut command = self.ssh();
        // Never a connection of its own: when the shared one is gone, the host is lost.
        command.args(["-o", "ControlMaster=no", "--"]);
        command.arg(self.destination());
        command.arg(format!(
            "{}; printf '\\n{MARK}%s\\n' $? >&2",
            quoted(&words)
        ));
        command
    }

    /// A file's way through standard input or output.
    fn transfer(&self, mut command: Command, limit: Duration) -> Result<(), LinkError> {
        let lost = |why: String| LinkError::Broken(why);
        let mut child = {
            let _making = crate::cleanup::making();
            command
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| lost(format!("ssh could not be started: {error}")))?
        };
        let end = std::time::Instant::now() + limit + GRACE;
        loop {
            match child.try_wait() {
                Ok(Some(_)) => break,
                Ok(None) if std::time::Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(lost(
                        "A file's transfer over ssh did not end in time".into(),
                    ));
                }
            }
        }
        let output = child
            .wait_with_output()
            .map_err(|error| lost(format!("ssh was lost: {error}")))?;
        let (code, said) = ended(&String::from_utf8_lossy(&output.stderr));
        match code {
            Some(0) => Ok(()),
            _ => Err(lost(format!(
                "A file cannot be copied over ssh: {}",
                said.trim()
            ))),
        }
    }
}

/// The exit code at the end of standard error, and the rest of it.
fn ended(stderr: &str) -> (Option<i32>, String) {
    let Some((said, code)) = stderr.rsplit_once(MARK) else {
        return (None, stderr.to_owned());
    };
    let said = said.strip_suffix('\n').unwrap_or(said);
    (code.trim().parse().ok(), said.to_owned())
}

/// Like [`command::run`], with the output in a file: the process that stays behind would hold a pipe open.
fn run_quiet(
    command: &mut Command,
    dir: &Path,
    limit: Duration,
) -> anyhow::Result<command::Finished> {
    use anyhow::Context;
    use std::os::unix::process::CommandExt;
    let path = dir.join("ssh.log");
    let log =
        File::create(&path).with_context(|| format!("\"{}\" cannot be made", path.display()))?;
    let _making = crate::cleanup::making();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("ssh could not be started; is openssh-client installed?")?;
    let end = std::time::Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if std::time::Instant::now() >= end || crate::cleanup::ending() {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("ssh was not connected within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(command::Finished {
        status,
        stdout: String::new(),
        stderr: std::fs::read_to_string(&path).unwrap_or_default(),
    })
}

impl Link for SshLink {
    fn run(&self, argv: &[String], limit: Duration) -> Result<Done, LinkError> {
        let done = finished(command::run(&mut self.remote(argv, limit), limit + GRACE))?;
        let (code, stderr) = ended(&done.stderr);
        match code {
            Some(137) if stderr.trim().is_empty() || stderr.contains("Killed") => {
                Err(LinkError::Hung {
                    command: quoted(argv),
                    limit,
                })
            }
            Some(code) => Ok(Done {
                code,
                stdout: done.stdout,
                stderr,
            }),
            None => Err(LinkError::Broken(format!(
                "The connection to {} was lost: {}",
                self.destination(),
                done.said()
            ))),
        }
    }

    fn put(&self, from: &Path, to: &str, limit: Duration) -> Result<(), LinkError> {
        let file = File::open(from).map_err(|error| {
            LinkError::Broken(format!("\"{}\" cannot be opened: {error}", from.display()))
        })?;
        let argv = ["sh", "-c", "cat > \"$1\"", "sh", to].map(str::to_owned);
        let mut command = self.remote(&argv, limit);
        command.stdin(file).stdout(Stdio::null());
        self.transfer(command, limit)
    }

    fn get(&self, from: &str, to: &Path, limit: Duration) -> Result<(), LinkError> {
        let file = File::create(to).map_err(|error| {
            LinkError::Broken(format!("\"{}\" cannot be made: {error}", to.display()))
        })?;
        let argv = ["cat", "--", from].map(str::to_owned);
        let mut command = self.remote(&argv, limit);
        command.stdin(Stdio::null()).stdout(file);
        self.transfer(command, limit)
    }

    fn close(&self) {
        let mut command = self.ssh();
        command.args(["-O", "exit", "--"]).arg(self.destination());
        let _ = command::run(&mut command, Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands_and_not_ssh_s() {
        assert_eq!(
            ended("a warning\nferrovia-lab-ended:255\n"),
            (Some(255), "a warning".into())
        );
        assert_eq!(ended("\nferrovia-lab-ended:0\n"), (Some(0), String::new()));
        assert_eq!(ended("Connection reset").0, None);
    }
}
