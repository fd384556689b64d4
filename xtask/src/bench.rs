//! `cargo xtask bench`: the benchmarks there are. A benchmark is an example whose name starts with `bench`.

use crate::steps::Steps;
use crate::workspace::{self, Target};
use crate::{deps, paths, sudo};
use anyhow::{Result, bail};
use std::process::ExitCode;

/// Benchmarks that boot the emulated NIC machine: they are run as root, and told by which program.
const IN_MACHINE: [&str; 1] = ["bench_sriov"];

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Which one; without it they are listed
    name: Option<String>,
    /// What is handed to it
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let all: Vec<Target> = workspace::targets()?
        .into_iter()
        .filter(|t| t.kind == "example" && t.name.starts_with("bench"))
        .collect();
    let Some(name) = &args.name else {
        if all.is_empty() {
            println!(
                "There are no benchmarks yet: an example of a crate whose name starts with \"bench\" is one."
            );
        }
        for bench in &all {
            println!("{:<24} in {}", short(bench), bench.package);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(bench) = all.iter().find(|t| short(t) == name || t.name == *name) else {
        bail!("There is no benchmark \"{name}\"; `cargo xtask bench` lists them");
    };
    let mut steps = Steps::new();
    let mut build = workspace::cargo(&[
        "build",
        "--locked",
        "--release",
        "-p",
        &bench.package,
        "--example",
        &bench.name,
    ]);
    if !steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) || !steps.run(
        "build",
        "The compiler's message says what is wrong.",
        &mut build,
        |_| String::new(),
    ) {
        return Ok(ExitCode::FAILURE);
    }
    let program = paths::target().join("release/examples").join(&bench.name);
    if !IN_MACHINE.contains(&bench.name.as_str()) {
        let mut run = std::process::Command::new(program);
        return crate::demo::run_undisturbed(run.args(&args.args));
    }
    if !crate::demo::build(&mut steps) {
        return Ok(ExitCode::FAILURE);
    }
    sudo::warm_up()?;
    let machine = paths::target().join("debug/ferrovia-machine");
    let mut run = sudo::as_root("env")?;
    run.arg(format!("FERROVIA_LAB_CACHE={}", paths::cache().display()))
        .arg(format!("FERROVIA_MACHINE={}", machine.display()))
        .arg(program);
    crate::demo::run_undisturbed(run.args(&args.args))
}

fn short(target: &Target) -> &str {
    target
        .name
        .trim_start_matches("bench")
        .trim_start_matches(['_', '-'])
}
