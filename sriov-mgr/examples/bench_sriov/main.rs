//! What the manager costs beside the kernel's own work: making, removing and listing VFs through [`sriov_mgr`] and
//! with plain writes to sysfs and `ip link`, in turns, in the same run, in the emulated NIC machine.
//!
//! ```sh
//! cargo xtask bench sriov
//! cargo xtask bench sriov -- --rounds 11
//! ```
//!
//! It boots the machine with igb and then with netdevsim, runs itself inside (`inside.rs`), prints a table and
//! writes `target/bench/sriov.json`. `cargo xtask bench` says by `FERROVIA_MACHINE` which program boots the machine.

mod inside;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The version of the file: raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;
/// What the line with the result begins with.
const RESULT: &str = "bench-sriov-result ";
/// Turns of each side, where the command line does not say.
const ROUNDS: usize = 7;
/// Fewest that a median is taken of.
const FEWEST: usize = 5;

/// One operation, measured on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    /// The driver.
    nic: String,
    /// create, destroy, list.
    operation: String,
    /// How many VFs it is about.
    vfs: u32,
    /// With plain kernel operations.
    raw: Times,
    /// Through the manager.
    ours: Times,
}

/// How long the rounds took, milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Times {
    median_ms: f64,
    least_ms: f64,
    most_ms: f64,
    all_ms: Vec<f64>,
}

impl Times {
    fn of(all_ms: Vec<f64>) -> Times {
        let mut sorted = all_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        Times {
            median_ms: at(sorted.len() / 2),
            least_ms: at(0),
            most_ms: at(sorted.len().saturating_sub(1)),
            all_ms,
        }
    }
}

impl Case {
    fn overhead_percent(&self) -> f64 {
        (self.ours.median_ms - self.raw.median_ms) / self.raw.median_ms * 100.0
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["helper"] => sriov_mgr::helper::serve(std::io::stdin().lock(), std::io::stdout().lock())
            .map_err(|error| error.to_string()),
        ["inside", nic, rounds] => {
            inside::run(nic, rounds.parse().unwrap_or(ROUNDS)).map(|cases| {
                println!(
                    "{RESULT}{}",
                    serde_json::to_string(&cases).unwrap_or_default()
                );
            })
        }
        [] => outside(ROUNDS),
        ["--rounds", rounds] => match rounds.parse() {
            Ok(rounds) if rounds >= FEWEST => outside(rounds),
            _ => Err(format!("--rounds is a number from {FEWEST}")),
        },
        _ => Err("The one option is --rounds NUMBER".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench_sriov: {why}");
            ExitCode::FAILURE
        }
    }
}

fn outside(rounds: usize) -> Result<(), String> {
    let machine = std::env::var_os("FERROVIA_MACHINE").map(PathBuf::from);
    let machine = machine
        .ok_or("Run it by `cargo xtask bench sriov`, which knows how to boot the machine")?;
    let mut cases = Vec::new();
    let mut booted = Vec::new();
    for nic in ["igb", "netdevsim"] {
        let (about, measured) = measure(&machine, nic, rounds)?;
        booted.push(about);
        cases.extend(measured);
    }
    println!(
        "{:<10} {:<8} {:>5}  {:>32}  {:>32}  {:>8}",
        "NIC", "", "VFs", "kernel alone, ms (least … most)", "Ferrovia, ms (least … most)", "more"
    );
    for case in &cases {
        let shown = |times: &Times| {
            format!(
                "{:.1} ({:.1} … {:.1})",
                times.median_ms, times.least_ms, times.most_ms
            )
        };
        println!(
            "{:<10} {:<8} {:>5}  {:>32}  {:>32}  {:>6.1} %",
            case.nic,
            case.operation,
            case.vfs,
            shown(&case.raw),
            shown(&case.ours),
            case.overhead_percent()
        );
    }
    let file = write(rounds, &booted, &cases)?;
    println!(
        "Medians of {rounds} rounds; all of them are in {}",
        file.display()
    );
    Ok(())
}

/// Boots the machine and measures inside. The machine's own line says what runs it.
fn measure(machine: &Path, nic: &str, rounds: usize) -> Result<(String, Vec<Case>), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(machine)
        .args(["run", "--flavour", nic, "--pfs", "1", "--"])
        .arg(&own)
        .args(["inside", nic, &rounds.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", machine.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let about = said
        .lines()
        .chain(printed.lines())
        .find(|line| line.starts_with("Linux "));
    let about = about.unwrap_or_default().to_owned();
    println!("{about}");
    let result = printed.lines().find_map(|line| line.strip_prefix(RESULT));
    let result = result.ok_or_else(|| format!("There is no result: {}", said.trim()))?;
    let cases = serde_json::from_str(result).map_err(|error| error.to_string())?;
    Ok((about, cases))
}

fn write(rounds: usize, machines: &[String], cases: &[Case]) -> Result<PathBuf, String> {
    // target/release/examples/bench_sriov
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = own.ancestors().nth(3).unwrap_or(Path::new("."));
    let dir = target.join("bench");
    let file = dir.join("sriov.json");
    let rows: Vec<serde_json::Value> = cases
        .iter()
        .map(|case| {
            let mut row = serde_json::to_value(case).unwrap_or_default();
            row["overhead_percent"] = case.overhead_percent().into();
            row
        })
        .collect();
    let whole = serde_json::json!({
        "schema": SCHEMA,
        "benchmark": "sriov",
        "rounds": rounds,
        "machines": machines,
        "cases": rows,
    });
    let text = serde_json::to_string_pretty(&whole).map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&dir)
        .and_then(|()| std::fs::write(&file, text + "\n"))
        .map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    Ok(file)
}
