//! `cargo xtask demo`: builds the programs and shows them at work on real guests.

use crate::steps::{self, Steps};
use crate::{deps, paths, sudo, workspace};
use anyhow::{Context, Result};
use std::process::ExitCode;

/// Options of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave everything running at the end, and say how to use it
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what `--keep` left
    #[arg(long)]
    clean: bool,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::new();
    if !steps.work(
        "dependencies",
        "Fix what it says and run `cargo xtask demo` again.",
        deps::ensure,
    ) || !build(&mut steps)
    {
        return Ok(ExitCode::FAILURE);
    }
    sudo::warm_up()?;
    let program = paths::target().join("debug/ferrovia-demo");
    let mut demo = sudo::as_root("env")?;
    for name in ["CI", "NO_COLOR", "TERM", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            let mut word = std::ffi::OsString::from(format!("{name}="));
            word.push(value);
            demo.arg(word);
        }
    }
    demo.arg(format!("FERROVIA_LAB_CACHE={}", paths::cache().display()));
    demo.arg(&program);
    for (on, word) in [(args.keep, "--keep"), (args.clean, "--clean")] {
        if on {
            demo.arg(word);
        }
    }
    run_undisturbed(&mut demo)
}

/// Builds the programs that the demo and the end-to-end tests run.
///
/// All of the workspace with all targets, as `test` does, so that nothing is compiled twice.
pub fn build(steps: &mut Steps) -> bool {
    let mut command = workspace::cargo(&["build", "--locked", "--workspace", "--bins"]);
    steps.run(
        "build",
        "The compiler's message says what is wrong.",
        &mut command,
        |_| String::new(),
    )
}

/// Runs a program that cleans up after itself: Ctrl-C is its own affair, we wait for it.
pub fn run_undisturbed(command: &mut std::process::Command) -> Result<ExitCode> {
    steps::ignore_interrupts()?;
    let status = command.status().with_context(|| {
        format!(
            "\"{}\" could not be started",
            command.get_program().to_string_lossy()
        )
    })?;
    let code = status.code().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
