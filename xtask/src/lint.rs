//! `cargo xtask lint`: format, compiler and clippy warnings, licences, and the house rules.

use crate::steps::Steps;
use crate::{deps, licences, rules, workspace};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the command.
pub fn command() -> Result<ExitCode> {
    let mut steps = Steps::new();
    if steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) {
        run(&mut steps);
    }
    Ok(steps.summary("cargo xtask lint"))
}

/// All checks; true when each is good.
pub fn run(steps: &mut Steps) -> bool {
    let none = |_: &str| String::new();
    let mut format = workspace::cargo(&["fmt", "--all", "--check"]);
    let mut good = steps.run("format", "`cargo fmt --all` mends it.", &mut format, none);
    good &= steps.work(
        "licences",
        "Use another crate, or argue for the licence in xtask/src/licences.rs.",
        licences::check,
    );
    good &= steps.work(
        "house rules",
        "CONTRIBUTING.md has the reasons.",
        rules::check,
    );
    let mut clippy = workspace::cargo(&[
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    good &= steps.run(
        "clippy",
        "The message names file and line.",
        &mut clippy,
        none,
    );
    good
}
