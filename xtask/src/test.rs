//! `cargo xtask test`: the tests in the order from quick to slow. This is what CI runs; `--only lab` is the longer
//! run on emulated NICs.

use crate::steps::Steps;
use crate::workspace::{self, Target};
use crate::{demo, deps, fuzz, lint, paths, sudo};
use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};

/// The package whose integration tests need root, libvirt and guests.
const E2E: &str = "hw-tests";

/// Its test programs that take minutes on a machine without KVM: part of the step `lab`.
const LONG: [&str; 4] = ["machine", "lab", "linux_guest", "migration"];

/// The packages with models of what threads share, and which of their tests those are. They are built with
/// `--cfg loom`, for which the other tests are not made.
const LOOM: [(&str, &[&str]); 2] = [
    ("xvio", &["--test", "loom_gate"]),
    ("fallback-dpdk", &["--lib", "loom_model"]),
];

const DURATION_HINT: &str = "The failing test's output above says what is wrong; `cargo xtask test --only STEP` repeats one step.";

/// Options of `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these steps
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
    /// Seconds for each fuzz target
    #[arg(long, default_value_t = 60)]
    fuzz_seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Format, lints, licences, house rules
    Lint,
    /// Unit and property tests of the workspace
    Unit,
    /// Model checking of what threads share
    Loom,
    /// Fuzz targets
    Fuzz,
    /// Real guests, and the lab's suite `smoke` on emulated NICs
    E2e,
    /// All of the lab's suites, live migration, a Linux guest under load: a longer run, only when named
    Lab,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let wants = |step: Step| match args.only.as_slice() {
        [] => step != Step::Lab,
        only => only.contains(&step),
    };
    let mut steps = Steps::new();
    if !steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) {
        return Ok(steps.summary("cargo xtask test"));
    }
    if wants(Step::E2e) || wants(Step::Lab) {
        sudo::warm_up()?;
    }
    let targets = workspace::targets()?;
    let _ = (wants(Step::Lint) && !lint::run(&mut steps)) || all(&mut steps, args, &targets, wants);
    Ok(steps.summary("cargo xtask test"))
}

/// The steps that need a build. A step that fails does not keep the others from running.
fn all(steps: &mut Steps, args: &Args, targets: &[Target], wants: impl Fn(Step) -> bool) -> bool {
    if !demo::build(steps) {
        return false;
    }
    if wants(Step::Unit) {
        let mut unit = workspace::cargo(&[
            "test",
            "--locked",
            "--workspace",
            "--no-fail-fast",
            "--lib",
            "--bins",
        ]);
        for test in targets
            .iter()
            .filter(|t| t.kind == "test" && t.package != E2E && !is_loom(t))
        {
            unit.args(["--test", &test.name]);
        }
        steps.run(
            "unit and property tests",
            DURATION_HINT,
            &mut unit,
            count_tests,
        );
        let mut doc = workspace::cargo(&["test", "--locked", "--workspace", "--doc"]);
        steps.run("examples in the docs", DURATION_HINT, &mut doc, count_tests);
    }
    if wants(Step::Loom) {
        for (package, which) in LOOM {
            let mut loom = workspace::cargo(&["test", "--locked", "--release", "-p", package]);
            loom.args(which)
                .env("RUSTFLAGS", "--cfg loom")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env("CARGO_TARGET_DIR", paths::target().join("loom"));
            steps.run(
                &format!("loom: {package}"),
                DURATION_HINT,
                &mut loom,
                count_tests,
            );
        }
    }
    if wants(Step::Fuzz) {
        fuzz::run(steps, &[], args.fuzz_seconds);
    }
    if wants(Step::E2e) || wants(Step::Lab) {
        for test in targets
            .iter()
            .filter(|t| t.kind == "test" && t.package == E2E)
            .filter(|t| {
                let long = LONG.contains(&t.name.as_str());
                wants(if long { Step::Lab } else { Step::E2e })
            })
        {
            match e2e(test) {
                Ok(mut command) => {
                    steps.run(
                        &format!("end to end: {}", test.name),
                        DURATION_HINT,
                        &mut command,
                        count_tests,
                    );
                }
                Err(e) => {
                    steps.work(
                        &format!("end to end: {}", test.name),
                        "Run it as root.",
                        || Err(e),
                    );
                }
            }
        }
    }
    if wants(Step::Lab) {
        lab_suites(steps, &["smoke", "sriov"]);
    } else if wants(Step::E2e) {
        lab_suites(steps, &["smoke"]);
    }
    true
}

/// `ferrovia-lab run` on the shipped inventory. The suite `smoke` takes a minute; `sriov` starts an agent for each
/// test inside an emulated machine, which is for a longer run. The reports stay in the build folder.
fn lab_suites(steps: &mut Steps, suites: &[&str]) -> bool {
    let out = paths::target().join("lab-results");
    let hint = format!(
        "\"{}\" shows every test with what it found; `cargo xtask test --only lab` repeats the step.",
        out.join("index.html").display()
    );
    let made = std::fs::create_dir_all(&out).context("The folder of the reports cannot be made");
    let command = made.and_then(|()| {
        let mut command = sudo::as_root("env")?;
        command.arg(format!("FERROVIA_LAB_CACHE={}", paths::cache().display()));
        command.arg(paths::target().join("debug/ferrovia-lab"));
        command.arg("run").arg("--inventory");
        command.arg(paths::root().join("hw-tests/lab.toml"));
        command.arg("--suite").arg(suites.join(","));
        command.arg("--out").arg(&out);
        Ok(command)
    });
    let name = format!("lab: {}", suites.join(", "));
    match command {
        Ok(mut command) => steps.run(&name, &hint, &mut command, last_counts),
        Err(e) => steps.work(&name, &hint, || Err(e)),
    }
}

/// The counts on the last line of what `ferrovia-lab run` printed.
fn last_counts(output: &str) -> String {
    let last = output.lines().rev().find(|line| line.contains(" passed, "));
    last.and_then(|line| line.split(" in ").next())
        .unwrap_or_default()
        .to_owned()
}

fn is_loom(target: &Target) -> bool {
    target.kind == "test" && target.name.starts_with("loom")
}

/// A command that runs one end-to-end test program as root. `--workspace` as everywhere, so that the same
/// features are chosen and nothing is compiled again.
fn e2e(test: &Target) -> Result<Command> {
    let mut command = workspace::cargo(&[
        "test",
        "--locked",
        "--workspace",
        "--test",
        &test.name,
        "--",
    ]);
    command.args(["--test-threads", "1"]);
    command.env("FERROVIA_LAB_CACHE", paths::cache());
    if !sudo::is_root() {
        sudo::check()?;
        let host = host_variable()?;
        command.env(host, "sudo -n -E --");
    }
    Ok(command)
}

/// The name of the variable that says what runs the programs that cargo built.
fn host_variable() -> Result<String> {
    let text = deps::output(Command::new("rustc").arg("-vV"))?;
    let host = text
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .context("`rustc -vV` does not name the host")?;
    if host.is_empty() {
        bail!("`rustc -vV` names no host");
    }
    Ok(format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace('-', "_")
    ))
}

/// Adds up cargo's "test result" lines.
fn count_tests(output: &str) -> String {
    let number = |line: &str, word: &str| {
        line.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let lines = output.lines().filter(|l| l.starts_with("test result:"));
    let (passed, failed) = lines.fold((0, 0), |(p, f), line| {
        (p + number(line, "passed"), f + number(line, "failed"))
    });
    if failed == 0 {
        format!("{passed} tests passed")
    } else {
        format!("{passed} passed, {failed} failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_s_counts_are_those_of_the_whole_run() {
        let output = "igb (emulated): 2 passed, 1 failed, 0 errors, 0 skipped\n\
            4 passed, 1 failed, 0 errors, 3 skipped in 40 s; \"x/index.html\" is the page\n";
        assert_eq!(
            last_counts(output),
            "4 passed, 1 failed, 0 errors, 3 skipped"
        );
    }

    #[test]
    fn results_of_several_programs_are_added_up() {
        let output = "test result: ok. 3 passed; 0 failed; 0 ignored\nnoise\ntest result: FAILED. 4 passed; 2 failed; 0 ignored\n";
        assert_eq!(count_tests(output), "7 passed, 2 failed");
    }
}
