//! The command line of `ferrovia-lab`: what can be typed, and the exit codes.

use super::commands;
use crate::suites;
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0    every test passed or was skipped with a reason, and nothing got worse
  1    a test failed, or got worse than the baseline
  2    the command line, the inventory or the baseline is wrong; nothing was run
  3    a target or a test could not be run to its end, or a report could not be written
  130  stopped by Ctrl-C (143: SIGTERM); the targets are clean, the reports say what had ended";

const EXAMPLES: &str = "\
Examples:
  ferrovia-lab list
  ferrovia-lab run --inventory lab.toml --suite sriov --out results/
  ferrovia-lab run --inventory lab.toml --suite smoke --target rack1 --test 'vf_*'
  ferrovia-lab run --inventory lab.toml --out today/ --baseline yesterday/results.json
  ferrovia-lab check --inventory lab.toml --probe
  ferrovia-lab compare yesterday/results.json today/results.json";

/// Tests NICs, emulated and real, and reports for machines and people.
#[derive(Parser, Debug)]
#[command(name = "ferrovia-lab", version, propagate_version = true, max_term_width = 100,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run suites on targets, and write the reports.
    #[command(after_help = format!("\
Reports in the folder given with --out:
  index.html     a page for people, complete in itself
  results.json   everything, for programs; the --baseline of a later run
  junit.xml      for CI systems
  results.ktap   the kernel's test format

{EXIT_CODES}"))]
    Run(Run),
    /// Show suites, tests and targets, and which test fits which target.
    #[command(after_help = "Example:\n  ferrovia-lab list --inventory lab.toml -o json")]
    List(List),
    /// Check an inventory, and with --probe whether its targets can be used.
    #[command(after_help = "Example:\n  ferrovia-lab check --inventory lab.toml --probe")]
    Check(Check),
    /// Say what got worse and better between two JSON reports.
    #[command(
        after_help = "Example:\n  ferrovia-lab compare yesterday/results.json today/results.json"
    )]
    Compare(Compare),
    /// Shell completion, to be sourced by your shell.
    #[command(
        after_help = "Example:\n  ferrovia-lab completion bash > /etc/bash_completion.d/ferrovia-lab"
    )]
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `run`.
#[derive(clap::Args, Debug)]
pub(super) struct Run {
    /// The file that describes the targets.
    #[arg(
        short,
        long,
        env = "FERROVIA_LAB_INVENTORY",
        default_value = "lab.toml",
        value_name = "FILE"
    )]
    pub inventory: PathBuf,
    /// Only this suite; may be given several times [default: all].
    #[arg(short, long = "suite", value_name = "NAME", value_delimiter = ',')]
    pub suites: Vec<String>,
    /// Only tests whose name, or suite/name, matches this pattern; may be given several times.
    #[arg(short, long = "test", value_name = "GLOB")]
    pub tests: Vec<String>,
    /// Only this target; may be given several times [default: all].
    #[arg(long = "target", value_name = "NAME", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Folder for the reports; made when it is not there.
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub out: PathBuf,
    /// A JSON report of an earlier run: says what got worse, and fails when anything did.
    #[arg(short, long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Percent by which a measure may be worse than in the baseline.
    #[arg(long, default_value_t = 25.0, value_name = "PERCENT", value_parser = percent)]
    pub threshold: f64,
    /// Targets at the same time [default: as many as memory and processors allow].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub jobs: Option<u16>,
}

/// Options of `list`.
#[derive(clap::Args, Debug)]
pub(super) struct List {
    /// Also show its targets and what fits them.
    #[arg(short, long, env = "FERROVIA_LAB_INVENTORY", value_name = "FILE")]
    pub inventory: Option<PathBuf>,
    /// Only this suite; may be given several times.
    #[arg(short, long = "suite", value_name = "NAME", value_delimiter = ',')]
    pub suites: Vec<String>,
    #[command(flatten)]
    pub print: Print,
}

/// Options of `check`.
#[derive(clap::Args, Debug)]
pub(super) struct Check {
    /// The file that describes the targets.
    #[arg(
        short,
        long,
        env = "FERROVIA_LAB_INVENTORY",
        default_value = "lab.toml",
        value_name = "FILE"
    )]
    pub inventory: PathBuf,
    /// Boot or reach each target, and show its NICs.
    #[arg(long)]
    pub probe: bool,
    #[command(flatten)]
    pub print: Print,
}

/// Options of `compare`.
#[derive(clap::Args, Debug)]
pub(super) struct Compare {
    /// The earlier JSON report.
    pub old: PathBuf,
    /// The later one.
    pub new: PathBuf,
    /// Percent by which a measure may be worse.
    #[arg(long, default_value_t = 25.0, value_name = "PERCENT", value_parser = percent)]
    pub threshold: f64,
    #[command(flatten)]
    pub print: Print,
}

/// How the answer is printed.
#[derive(clap::Args, Debug)]
pub(super) struct Print {
    /// How it is printed.
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// JSON for scripts: field names and meanings are stable.
    Json,
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.0..=10_000.0).contains(&value) {
        Ok(value)
    } else {
        Err("it is not within 0 to 10000".into())
    }
}

/// How a command ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything is as it must be.
    Good = 0,
    /// A test failed, or got worse.
    Failed = 1,
    /// What was asked for makes no sense.
    Usage = 2,
    /// Something could not be carried out.
    Broken = 3,
}

/// What kept a command from being carried out.
#[derive(Debug)]
pub(super) struct Refusal(pub Verdict, pub anyhow::Error);

impl Refusal {
    /// Command line, inventory or baseline are wrong.
    pub fn usage(error: impl Into<anyhow::Error>) -> Refusal {
        Refusal(Verdict::Usage, error.into())
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Refusal {
        Refusal(Verdict::Broken, error)
    }
}

/// Reads the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(args) => commands::run(&args, suites::ALL),
        Command::List(args) => commands::list(&args, suites::ALL),
        Command::Check(args) => commands::check(&args),
        Command::Compare(args) => commands::compare(&args),
        Command::Completion { shell } => {
            let mut command = <Args as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "ferrovia-lab", &mut std::io::stdout());
            Ok(Verdict::Good)
        }
    };
    match done {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(Refusal(verdict, error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(verdict as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
        assert!(percent("25").is_ok() && percent("-1").is_err() && percent("NaN").is_err());
    }
}
