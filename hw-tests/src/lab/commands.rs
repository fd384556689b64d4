//! What the commands of `ferrovia-lab` do.

use super::baseline::{self, Comparison};
use super::command_line::{Check, Compare, Format, List, Refusal, Run as RunArgs, Verdict};
use super::facts::Facts;
use super::inventory::{self, Inventory, TargetSpec};
use super::progress::{Progress, printable};
use super::results::{self, Report, Status};
use super::runner::{self, Began, Job};
use super::schedule::Room;
use super::suite::Suite;
use super::target::Target;
use super::{report, selection};
use crate::cleanup;
use crate::run::Run;
use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A folder of this machine for a run's files, gone afterwards.
enum Folder {
    /// Root's: also found and removed by a later run when this one is killed.
    Run(Run),
    Plain(tempfile::TempDir),
}

impl Folder {
    fn make() -> Result<Folder> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Folder::Run(Run::start()?));
        }
        let dir = tempfile::Builder::new().prefix("fvlab").tempdir();
        Ok(Folder::Plain(
            dir.context("A folder for the run could not be made")?,
        ))
    }

    fn path(&self) -> &Path {
        match self {
            Folder::Run(run) => run.dir(),
            Folder::Plain(dir) => dir.path(),
        }
    }
}

fn load(path: &Path) -> Result<Inventory, Refusal> {
    inventory::load(path).map_err(Refusal::usage)
}

/// `ferrovia-lab run`.
pub fn run(args: &RunArgs, all: &'static [Suite]) -> Result<Verdict, Refusal> {
    let inventory = load(&args.inventory)?;
    let suites = selection::suites(all, &args.suites).map_err(Refusal::usage)?;
    let tests = selection::tests(&suites, &args.tests).map_err(Refusal::usage)?;
    let targets = selection::targets(&inventory, &args.targets).map_err(Refusal::usage)?;
    let old = match &args.baseline {
        Some(path) => Some(results::load(path).map_err(Refusal::usage)?),
        None => None,
    };
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("The folder \"{}\" cannot be made", args.out.display()))?;
    cleanup::undo_on_signals()?;
    let names = suites.iter().map(|suite| suite.name.to_owned()).collect();
    let began = Began::now(&args.inventory, names);
    let jobs: Vec<Job> = targets
        .into_iter()
        .map(|spec| Job::new(spec, tests.clone()))
        .collect();
    let slots: Vec<_> = jobs.iter().map(|job| job.slot.clone()).collect();
    // Registered first, so undone last: a run that is told to stop still reports what had ended.
    let finished = Arc::new(AtomicBool::new(false));
    let _report = cleanup::on_exit({
        let (finished, began, slots, out) = (
            finished.clone(),
            began.clone(),
            slots.clone(),
            args.out.clone(),
        );
        move || {
            if !finished.load(Ordering::SeqCst) {
                let mut partial = began.report(&slots);
                partial.interrupted = true;
                let _ = report::write(&partial, &out);
            }
        }
    });
    let folder = Folder::make()?;
    let progress = Progress::new();
    progress.line(&format!(
        "{} tests, {} targets; reports go to \"{}\"",
        tests.len(),
        jobs.len(),
        args.out.display()
    ));
    let room = Room::here(args.jobs.map(usize::from));
    runner::run(&jobs, room, folder.path(), &progress);
    let mut whole = began.report(&slots);
    if let Some(old) = old {
        let all_tests = args.tests.is_empty();
        let comparison = baseline::compare(&old, &whole, args.threshold, all_tests);
        whole.comparison = Some(comparison);
    }
    // Told to stop, this thread goes no further; the report is left to the clean-up.
    let _making = cleanup::making();
    finished.store(true, Ordering::SeqCst);
    report::write(&whole, &args.out)?;
    summary(&whole, &args.out)?;
    Ok(verdict(&whole))
}

fn verdict(report: &Report) -> Verdict {
    let counts = report.counts();
    let lost = report.targets.iter().any(|target| target.error.is_some());
    let worse = report
        .comparison
        .as_ref()
        .is_some_and(|c| !c.worse.is_empty());
    match () {
        () if counts.errors > 0 || lost => Verdict::Broken,
        () if counts.failed > 0 || worse => Verdict::Failed,
        () => Verdict::Good,
    }
}

fn summary(report: &Report, out: &Path) -> Result<()> {
    let mut text = String::from("\n");
    for target in &report.targets {
        let counts = results::Counts::of(&target.tests);
        let platform = target
            .platform
            .map_or("not reached", |platform| platform.word());
        text.push_str(&format!("{} ({platform}): {counts}\n", target.name));
        let bad = |status| matches!(status, Status::Failed | Status::Error);
        for test in target.tests.iter().filter(|test| bad(test.status)) {
            let why = test.message.lines().next().unwrap_or_default();
            let (suite, name, word) = (&test.suite, &test.name, test.status.word());
            text.push_str(&format!("  {word}: {suite}/{name}: {}\n", printable(why)));
        }
    }
    if let Some(comparison) = &report.comparison {
        text.push_str(&compared(comparison));
    }
    text.push_str(&format!(
        "{} in {:.0} s; \"{}\" is the page\n",
        report.counts(),
        report.duration_s,
        out.join(report::PAGE).display()
    ));
    print(&text)
}

fn compared(comparison: &Comparison) -> String {
    let mut text = format!(
        "Compared with the run of {}:\n",
        printable(&comparison.baseline)
    );
    for difference in &comparison.worse {
        text.push_str(&format!(
            "  worse:  {}\n",
            printable(&difference.to_string())
        ));
    }
    for difference in &comparison.better {
        text.push_str(&format!(
            "  better: {}\n",
            printable(&difference.to_string())
        ));
    }
    for name in &comparison.new {
        text.push_str(&format!("  new:    {}\n", printable(name)));
    }
    if comparison.worse.is_empty() {
        text.push_str("  nothing got worse\n");
    }
    text
}

/// `ferrovia-lab compare`.
pub fn compare(args: &Compare) -> Result<Verdict, Refusal> {
    let old = results::load(&args.old).map_err(Refusal::usage)?;
    let new = results::load(&args.new).map_err(Refusal::usage)?;
    let comparison = baseline::compare(&old, &new, args.threshold, true);
    match args.print.output {
        Format::Json => json(&comparison)?,
        Format::Table => print(&compared(&comparison))?,
    }
    Ok(if comparison.worse.is_empty() {
        Verdict::Good
    } else {
        Verdict::Failed
    })
}

#[derive(Serialize)]
struct ListedTest {
    suite: &'static str,
    name: &'static str,
    about: &'static str,
    needs: Vec<String>,
    limit_s: u64,
    /// Target, and why the test would be skipped there; null: it fits; absent: known when the target is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<Fit>,
}

#[derive(Serialize)]
struct Fit {
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `ferrovia-lab list`.
pub fn list(args: &List, all: &'static [Suite]) -> Result<Verdict, Refusal> {
    let suites = selection::suites(all, &args.suites).map_err(Refusal::usage)?;
    let tests = selection::tests(&suites, &[]).map_err(Refusal::usage)?;
    let targets = match &args.inventory {
        Some(path) => load(path)?.targets,
        None => Vec::new(),
    };
    let rows: Vec<ListedTest> = tests
        .iter()
        .map(|(suite, test)| ListedTest {
            suite: suite.name,
            name: test.name,
            about: test.about,
            needs: test.all_needs().map(|need| need.word()).collect(),
            limit_s: test.limit.as_secs(),
            targets: targets.iter().map(|target| fit(target, test)).collect(),
        })
        .collect();
    if args.print.output == Format::Json {
        json(&rows)?;
        return Ok(Verdict::Good);
    }
    let mut titles = vec!["SUITE".to_owned(), "TEST".into(), "NEEDS".into()];
    titles.extend(targets.iter().map(|target| target.name.to_uppercase()));
    titles.push("WHAT MUST HOLD".into());
    let cells = rows.iter().map(|row| {
        let mut cells = vec![row.suite.to_owned(), row.name.into(), row.needs.join(", ")];
        cells.extend(row.targets.iter().map(|fit| {
            let word = match fit.fits {
                Some(true) => "fits",
                Some(false) => "skips",
                None => "?",
            };
            word.to_owned()
        }));
        cells.push(row.about.into());
        cells
    });
    table(titles, cells)?;
    if rows
        .iter()
        .flat_map(|row| &row.targets)
        .any(|fit| fit.fits.is_none())
    {
        print(
            "\n?: known when the host is reached; `ferrovia-lab check --probe` shows what it has\n",
        )?;
    }
    Ok(Verdict::Good)
}

fn fit(target: &TargetSpec, test: &super::suite::Test) -> Fit {
    let facts = Facts::expected(target);
    let reason = facts
        .as_ref()
        .and_then(|facts| test.all_needs().find_map(|need| need.missing(facts)));
    Fit {
        target: target.name.clone(),
        fits: facts.map(|_| reason.is_none()),
        reason,
    }
}

#[derive(Serialize)]
struct Checked {
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<Facts>,
}

/// `ferrovia-lab check`.
pub fn check(args: &Check) -> Result<Verdict, Refusal> {
    let inventory = load(&args.inventory)?;
    let mut rows: Vec<Checked> = inventory
        .targets
        .iter()
        .map(|spec| Checked {
            name: spec.name.clone(),
            kind: spec.kind.word(),
            error: None,
            facts: None,
        })
        .collect();
    if args.probe {
        cleanup::undo_on_signals()?;
        let folder = Folder::make()?;
        for (row, spec) in rows.iter_mut().zip(&inventory.targets) {
            eprintln!("{}: getting ready", spec.name);
            match probe(spec, &folder.path().join(&spec.name)) {
                Ok(facts) => row.facts = Some(facts),
                Err(error) => row.error = Some(format!("{error:#}")),
            }
        }
    }
    let broken = rows.iter().any(|row| row.error.is_some());
    match args.print.output {
        Format::Json => json(&rows)?,
        Format::Table => {
            let titles = ["TARGET", "KIND", "STATE", "KERNEL", "NICS"].map(str::to_owned);
            table(titles.to_vec(), rows.iter().map(checked_cells))?;
        }
    }
    Ok(if broken {
        Verdict::Broken
    } else {
        Verdict::Good
    })
}

fn probe(spec: &TargetSpec, dir: &Path) -> Result<Facts> {
    std::fs::create_dir_all(dir)?;
    let target = Target::open(spec, dir)?;
    let closed = target.clone();
    let _undo = cleanup::on_exit(move || closed.close());
    Ok(target.facts().clone())
}

fn checked_cells(row: &Checked) -> Vec<String> {
    let state = match (&row.error, &row.facts) {
        (Some(error), _) => format!("ERROR {error}"),
        (None, Some(facts)) => format!("ready, {}", facts.platform.word()),
        (None, None) => "not tried; --probe does".into(),
    };
    let facts = row.facts.as_ref();
    let nics = facts.map_or_else(Vec::new, |facts| {
        let nic = |nic: &super::facts::Nic| {
            format!("{} {} ({} VFs)", nic.address, nic.driver, nic.total_vfs)
        };
        facts.nics.iter().map(nic).collect()
    });
    let kernel = facts.map_or_else(String::new, |facts| facts.kernel.clone());
    [
        row.name.clone(),
        row.kind.into(),
        state,
        kernel,
        nics.join(", "),
    ]
    .map(|cell| printable(&cell))
    .to_vec()
}

fn table(titles: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let arrangement = if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    table.set_header(titles);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    print(&format!("{}\n", table.trim_fmt()))
}

fn json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints; a closed pipe (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
