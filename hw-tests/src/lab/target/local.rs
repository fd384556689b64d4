//! This machine as a target.

use super::link::{Done, Link, LinkError, quoted};
use crate::command::{self, Finished};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Commands run here, through sudo where the inventory says so.
#[derive(Debug)]
pub struct LocalLink {
    sudo: bool,
}

impl LocalLink {
    /// No connection is needed.
    pub fn new(sudo: bool) -> LocalLink {
        LocalLink { sudo }
    }
}

impl Link for LocalLink {
    fn run(&self, argv: &[String], limit: Duration) -> Result<Done, LinkError> {
        // timeout(1) also ends what the command started: it leads a process group of its own.
        let seconds = format!("{:.3}", limit.as_secs_f32().max(0.1));
        let mut words = vec!["timeout", "-s", "KILL", &seconds];
        if self.sudo {
            words.splice(0..0, ["sudo", "-n", "--"]);
        }
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(argv);
        let started = Instant::now();
        let done = finished(command::run(&mut command, limit + Duration::from_secs(5)))?;
        if done.code == 137 && started.elapsed() + Duration::from_millis(20) >= limit {
            return Err(LinkError::Hung {
                command: quoted(argv),
                limit,
            });
        }
        Ok(done)
    }

    fn put(&self, from: &Path, to: &str, limit: Duration) -> Result<(), LinkError> {
        self.copy(&from.display().to_string(), to, limit)
    }

    fn get(&self, from: &str, to: &Path, limit: Duration) -> Result<(), LinkError> {
        self.copy(from, &to.display().to_string(), limit)
    }

    fn close(&self) {}
}

impl LocalLink {
    fn copy(&self, from: &str, to: &str, limit: Duration) -> Result<(), LinkError> {
        let argv = ["cp", "--", from, to].map(str::to_owned);
        let done = self.run(&argv, limit)?;
        if done.ok() {
            Ok(())
        } else {
            Err(LinkError::Broken(format!(
                "\"{from}\" cannot be copied: {}",
                done.said()
            )))
        }
    }
}

/// A program's end as a command's end on a target.
pub(super) fn finished(result: anyhow::Result<Finished>) -> Result<Done, LinkError> {
    let finished = result.map_err(|error| LinkError::Broken(format!("{error:#}")))?;
    let code = finished
        .status
        .code()
        .or(finished.status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1);
    Ok(Done {
        code,
        stdout: finished.stdout,
        stderr: finished.stderr,
    })
}
