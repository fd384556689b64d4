//! Programs that run beside the tests: started with a log file, ended when dropped.

use crate::run::Run;
use crate::{cleanup, command};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running program. Dropped, it is asked to end (SIGTERM) and killed when it does not.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    pid: u32,
    log: PathBuf,
    child: Arc<Mutex<Child>>,
    _undo: cleanup::Guard,
}

impl Daemon {
    /// Starts `command`; its output is appended to `<run>/logs/<name>.log`.
    pub fn start(run: &Run, name: &str, command: &mut Command) -> Result<Daemon> {
        let _making = cleanup::making();
        let log = run.subdir("logs")?.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("\"{}\" could not be started", command::shown(command)))?;
        let pid = child.id();
        run.note_process(pid);
        let child = Arc::new(Mutex::new(child));
        let undone = child.clone();
        let undo = cleanup::on_exit(move || end_child(&undone, Duration::from_secs(3)));
        Ok(Daemon {
            name: name.into(),
            pid,
            log,
            child,
            _undo: undo,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it without warning, as the kernel would, and waits until it is gone.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Fails when it is not running any more.
    pub fn check(&self) -> Result<()> {
        if let Some(status) = lock(&self.child).try_wait()? {
            bail!(
                "{} ended by itself ({status}); its last words:\n{}",
                self.name,
                self.log_tail(20)
            );
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Processor time that it used so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // Fields 14 and 15 (utime, stime) of proc(5); the name before may hold spaces, so count from its ')'.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse::<u64>().ok())
            .sum();
        Ok(Duration::from_millis(ticks * 10))
    }
}

fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn end_child(child: &Mutex<Child>, patience: Duration) {
    let mut child = lock(child);
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The last lines of a file, or a word on why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(e) => format!("(\"{}\" cannot be read: {e})", path.display()),
    }
}

/// A process's id and start time: together they name it for good, unlike the id alone.
pub fn identity(pid: u32) -> String {
    format!("{pid} {}", start_time(pid).unwrap_or(0))
}

/// True while the process that [`identity`] named is running.
pub fn identity_lives(identity: &str) -> bool {
    let mut words = identity.split_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(pid)), Some(Ok(start))) => start_time(pid as u32).is_some_and(|now| now == start),
        _ => false,
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    // Field 22 of proc(5); the state was field 3.
    fields.nth(18)?.parse().ok()
}

/// Ends a process that is not a child: SIGTERM, and SIGKILL after `patience`.
pub fn end(pid: u32, patience: Duration) {
    let target = Pid::from_raw(pid as i32);
    let _ = kill(target, Signal::SIGTERM);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if start_time(pid).is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = kill(target, Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_process_id_is_not_taken_for_the_old_process() {
        let me = std::process::id();
        assert!(identity_lives(&identity(me)));
        assert!(!identity_lives(&format!("{me} 1")));
    }
}
