//! Steps with their progress: what is being done, how long it took, and what to do when it failed.
//!
//! On a terminal a step is one line with a spinner and the last line of its output; everything else (CI, a
//! pipe) gets the output itself. Either way it is kept in a log file for each step.

use crate::paths;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// True on a terminal that is not CI's.
pub fn interactive() -> bool {
    std::io::stderr().is_terminal()
        && std::env::var_os("CI").is_none_or(|ci| ci.is_empty() || ci == "false")
}

struct Done {
    name: String,
    note: String,
    took: Duration,
    failed: Option<String>,
}

/// A row of steps, and what became of each.
#[derive(Default)]
pub struct Steps {
    done: Vec<Done>,
    started: Option<Instant>,
}

impl Steps {
    /// No steps yet.
    pub fn new() -> Steps {
        Steps {
            done: Vec::new(),
            started: Some(Instant::now()),
        }
    }

    /// Runs a piece of work that reports by itself. Its value is a note for the summary.
    pub fn work(&mut self, name: &str, hint: &str, work: impl FnOnce() -> Result<String>) -> bool {
        announce(name);
        let start = Instant::now();
        let result = work();
        self.finish(name, start, result.map_err(|e| format!("{e:#}")), hint)
    }

    /// Runs a program. `note` makes the summary's note of its output.
    pub fn run(
        &mut self,
        name: &str,
        hint: &str,
        command: &mut Command,
        note: fn(&str) -> String,
    ) -> bool {
        announce(name);
        let start = Instant::now();
        let result = run_logged(name, command);
        let result = match result {
            Ok(Logged { code: Some(0), log }) => {
                Ok(note(&std::fs::read_to_string(&log).unwrap_or_default()))
            }
            Ok(Logged { code, log }) => {
                if interactive() {
                    eprintln!("{}", tail(&log, 60));
                }
                let code = code.map_or("a signal".to_owned(), |c| format!("exit code {c}"));
                Err(format!(
                    "It ended with {code}; all of its output is in \"{}\"",
                    log.display()
                ))
            }
            Err(e) => Err(format!("{e:#}")),
        };
        self.finish(name, start, result, hint)
    }

    fn finish(
        &mut self,
        name: &str,
        start: Instant,
        result: Result<String, String>,
        hint: &str,
    ) -> bool {
        let took = start.elapsed();
        let (note, failed) = match result {
            Ok(note) => (note, None),
            Err(why) => (String::new(), Some(why)),
        };
        match &failed {
            None => eprintln!("  ok    {name}  ({})", time(took)),
            Some(why) => eprintln!(
                "  FAIL  {name}  ({})\n        {why}\n        {hint}",
                time(took)
            ),
        }
        let good = failed.is_none();
        self.done.push(Done {
            name: name.to_owned(),
            note,
            took,
            failed,
        });
        good
    }

    /// Prints the summary; the exit code says whether every step was good.
    pub fn summary(&self, title: &str) -> ExitCode {
        let width = self
            .done
            .iter()
            .map(|d| d.name.chars().count())
            .max()
            .unwrap_or(0);
        println!("\n{title}");
        for step in &self.done {
            let word = if step.failed.is_some() { "FAIL" } else { "ok" };
            println!(
                "  {word:<5} {:<width$}  {:>8}  {}",
                step.name,
                time(step.took),
                step.note
            );
        }
        let bad = self.done.iter().filter(|d| d.failed.is_some()).count();
        let all = self.started.map_or(Duration::ZERO, |s| s.elapsed());
        if bad == 0 {
            println!(
                "  all {} steps are good, {} in all",
                self.done.len(),
                time(all)
            );
            ExitCode::SUCCESS
        } else {
            println!(
                "  {bad} of {} steps failed, {} in all",
                self.done.len(),
                time(all)
            );
            ExitCode::FAILURE
        }
    }
}

fn announce(name: &str) {
    if !interactive() {
        eprintln!("\n== {name}");
    }
}

struct Logged {
    code: Option<i32>,
    log: PathBuf,
}

/// Runs `command`; its output goes to a log file, and to the terminal's one line or to our own output.
fn run_logged(name: &str, command: &mut Command) -> Result<Logged> {
    let file: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let log = paths::logs()?.join(format!("{file}.log"));
    let mut out = File::create(&log)
        .with_context(|| format!("The log \"{}\" could not be made", log.display()))?;
    let quiet = interactive();
    let spinner = quiet.then(|| spin(name));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "\"{}\" could not be started",
                command.get_program().to_string_lossy()
            )
        })?;
    let (send, lines) = mpsc::channel();
    let readers = [
        reader(child.stdout.take(), false, send.clone()),
        reader(child.stderr.take(), true, send),
    ];
    for (is_error, line) in lines {
        out.write_all(&line)?;
        if let Some(spinner) = &spinner {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if !text.is_empty() {
                spinner.set_message(text.chars().take(70).collect::<String>());
            }
        } else if is_error {
            std::io::stderr().write_all(&line)?;
        } else {
            std::io::stdout().write_all(&line)?;
        }
    }
    for reader in readers {
        let _ = reader.join();
    }
    let status = child.wait()?;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    Ok(Logged {
        code: status.code(),
        log,
    })
}

fn reader(
    from: Option<impl Read + Send + 'static>,
    is_error: bool,
    to: mpsc::Sender<(bool, Vec<u8>)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let Some(from) = from else { return };
        let mut from = BufReader::new(from);
        loop {
            let mut line = Vec::new();
            match from.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if to.send((is_error, line)).is_err() => return,
                Ok(_) => {}
            }
        }
    })
}

/// A spinner that shows for how long.
pub fn spin(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix}  {elapsed}  {msg:.dim}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `1 m 05 s` or `3.2 s`.
pub fn time(took: Duration) -> String {
    let seconds = took.as_secs();
    if seconds >= 60 {
        format!("{} m {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1} s", took.as_secs_f32())
    }
}

/// From now on Ctrl-C is left to the program that runs in front of us, which cleans up and ends.
pub fn ignore_interrupts() -> Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    extern "C" fn nothing(_: i32) {}
    // A handler, not SIG_IGN: children would inherit that, and handlers are reset by exec(2).
    // SAFETY: the handler does nothing, so it is safe at any point of the program.
    unsafe { signal(Signal::SIGINT, SigHandler::Handler(nothing)) }
        .context("Ctrl-C could not be left to the program")?;
    Ok(())
}
