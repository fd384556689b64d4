//! `cargo xtask fuzz`: builds the fuzz targets with coverage on the stable compiler, and runs each for a while.

use crate::steps::{self, Steps};
use crate::{deps, paths};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The same instrumentation as cargo-fuzz asks for, without a nightly compiler.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Every target gets at least so many inputs, however slow the machine is: the time is the least, not the limit.
const LEAST_RUNS: u64 = 100_000;

/// A target that needs more than so many times its seconds for the least number of inputs does not do its work.
const PATIENCE: u32 = 10;

/// Options of `fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these targets [default: all]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::new();
    if steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) {
        run(&mut steps, &args.targets, args.seconds);
    }
    Ok(steps.summary("fuzz"))
}

/// The fuzz targets there are.
pub fn targets() -> Result<Vec<String>> {
    let dir = paths::root().join("fuzz/targets");
    let mut names: Vec<String> = fs::read_dir(&dir)
        .with_context(|| format!("\"{}\" cannot be read", dir.display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds and runs the targets; all when none is named. Two at a time, since each uses one core.
pub fn run(steps: &mut Steps, only: &[String], seconds: u32) -> bool {
    let host = match host_triple() {
        Ok(host) => host,
        Err(e) => return steps.work("fuzz build", "Is rustc installed?", || Err(e)),
    };
    let target_dir = paths::target().join("fuzz");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .current_dir(paths::root().join("fuzz"))
        .args(["build", "--locked", "--release", "--target", &host])
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &target_dir);
    if !steps.run(
        "fuzz build",
        "The compiler's message says what is wrong.",
        &mut build,
        |_| String::new(),
    ) {
        return false;
    }
    let hint =
        "Run the target on the artifact that is named above to see it again, and add it as a test.";
    let binaries = target_dir.join(&host).join("release");
    steps.work("fuzz", hint, || {
        let names = if only.is_empty() {
            targets()?
        } else {
            only.to_vec()
        };
        let spinner =
            steps::interactive().then(|| steps::spin(&format!("fuzz {}", names.join(", "))));
        let result = run_all(&names, &binaries, &target_dir, seconds);
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        result
    })
}

fn run_all(names: &[String], binaries: &Path, dir: &Path, seconds: u32) -> Result<String> {
    let mut notes = Vec::new();
    for pair in names.chunks(2) {
        let running: Vec<_> = pair
            .iter()
            .map(|name| {
                let time = format!("-max_total_time={seconds}");
                start(name, binaries, dir, &[time])
            })
            .collect::<Result<_>>()?;
        let mut runs = Vec::new();
        for (mut child, log) in running {
            runs.push((child.wait()?.code(), log));
        }
        for (name, (code, log)) in pair.iter().zip(runs) {
            let done = judge(name, code, &log)?;
            let all = done + the_rest(name, binaries, dir, seconds, done)?;
            notes.push(format!("{name} {all} inputs"));
        }
    }
    Ok(notes.join(", "))
}

/// Runs what is left of [`LEAST_RUNS`] after `done` inputs. Returns how many more there were.
fn the_rest(name: &str, binaries: &Path, dir: &Path, seconds: u32, done: u64) -> Result<u64> {
    if done >= LEAST_RUNS {
        return Ok(0);
    }
    let left = LEAST_RUNS - done;
    let limit = seconds.saturating_mul(PATIENCE);
    let bounds = [format!("-runs={left}"), format!("-max_total_time={limit}")];
    let (mut child, log) = start(name, binaries, dir, &bounds)?;
    let more = judge(name, child.wait()?.code(), &log)?;
    if more < left {
        bail!(
            "The fuzz target \"{name}\" ran only {} inputs in {} s, fewer than {LEAST_RUNS}: it hangs, or the machine does.",
            done + more,
            seconds + limit
        );
    }
    Ok(more)
}

fn start(
    name: &str,
    binaries: &Path,
    dir: &Path,
    bounds: &[String],
) -> Result<(std::process::Child, PathBuf)> {
    let corpus = dir.join("corpus").join(name);
    let artifacts = dir.join("artifacts").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let log = paths::logs()?.join(format!("fuzz-{name}.log"));
    let mut command = Command::new(binaries.join(name));
    command
        .arg(&corpus)
        .args(bounds)
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    let dictionary = paths::root().join("fuzz/packet.dict");
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command
        .args(["-max_len=2048", "-print_final_stats=1"])
        .stdout(File::create(log.with_extension("out"))?);
    let child = command
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("The fuzz target \"{name}\" could not be started"))?;
    Ok((child, log))
}

/// How many inputs a target that ended had; an error with the artifact when it found something.
fn judge(name: &str, code: Option<i32>, log: &Path) -> Result<u64> {
    let text = fs::read_to_string(log).unwrap_or_default();
    if code != Some(0) {
        let artifact = text
            .lines()
            .find(|l| l.contains("Test unit written to"))
            .unwrap_or("no artifact was written");
        let tail: Vec<&str> = text.lines().rev().take(25).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!(
            "The fuzz target \"{name}\" found something (exit code {code:?}): {artifact}\n{}",
            tail.join("\n")
        );
    }
    let runs = text
        .lines()
        .find_map(|l| l.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|n| n.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Ok(runs)
}

fn host_triple() -> Result<String> {
    let text = deps::output(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|l| l.strip_prefix("host: "));
    Ok(host
        .context("`rustc -vV` does not name the host")?
        .to_owned())
}
