//! Running a program to its end, with its output, a time limit, and an error that says what failed.

use crate::cleanup;
use anyhow::{Context, Result, anyhow, bail};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program may still run when this process was told to stop.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a program left: how it ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

/// Runs `command` in a process group of its own (so that Ctrl-C in the terminal does not reach it) and waits
/// for it, at most `limit`.
///
/// # Errors
/// When it cannot start or is still running after `limit` (it is killed then). An exit code other than zero
/// is no error here.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let _making = cleanup::making();
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("\"{line}\" could not be started"))?;
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let started = Instant::now();
    let end = started + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cleanup::ending() && started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            bail!("\"{line}\" was ended, because this run was told to stop");
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            bail!(
                "\"{line}\" was still running after {} s and was ended",
                limit.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Finished {
        status,
        stdout: text(out),
        stderr: text(err),
    })
}

/// [`run`], and an exit code other than zero is an error that carries what the program said.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let finished = run(command, limit)?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let said = if finished.stderr.trim().is_empty() {
        &finished.stdout
    } else {
        &finished.stderr
    };
    Err(anyhow!(
        "\"{}\" failed ({}): {}",
        shown(command),
        finished.status,
        said.trim()
    ))
}

/// [`output`] of a program given as words, within 30 seconds.
pub fn words(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("No program was named")?;
    output(Command::new(program).args(args), Duration::from_secs(30))
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy().into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let mut line = quote(command.get_program());
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    line
}

fn reader(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut part = [0; 8192];
        let Some(mut from) = from else { return bytes };
        while let Ok(count @ 1..) = from.read(&mut part) {
            keep(&mut bytes, &part[..count]);
        }
        bytes
    })
}

/// The most that is kept of what a program writes, in bytes. The rest is read and forgotten.
const MOST: usize = 16 << 20;

/// Adds `more` to what is kept of a program's output.
pub fn keep(kept: &mut Vec<u8>, more: &[u8]) {
    let room = MOST.saturating_sub(kept.len()).min(more.len());
    kept.extend_from_slice(&more[..room]);
}

/// Asks `ready` again and again until it has an answer.
///
/// # Errors
/// After `limit`, with what `ready` said last.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ready() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() >= end => {
                return Err(e.context(format!(
                    "{what} did not happen within {} s",
                    limit.as_secs()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_says_why() {
        let error = words(&["sh", "-c", "echo broken axle >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("broken axle") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn a_program_past_its_limit_is_ended() {
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("still running"), "{error}");
    }
}
