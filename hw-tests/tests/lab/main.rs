//! The lab's tool at work: a suite whose tests do everything wrong, on this machine, on a host over ssh, and on
//! an emulated machine. Whatever happens ends as a row of the report, in time, and the target is as before.

mod broken;
mod command_line;
mod emulated;
mod ssh;

use hw_tests::lab::inventory;
use hw_tests::lab::on_target::Chosen;
use hw_tests::lab::progress::Progress;
use hw_tests::lab::results::{Report, Status, TestResult};
use hw_tests::lab::runner::{self, Began, Job};
use hw_tests::lab::schedule::Room;
use hw_tests::lab::suite::Suite;
use std::path::Path;
use std::time::Duration;

/// Runs the tests of `suite` on the targets of this inventory.
fn run(inventory: &str, suite: &'static Suite) -> Report {
    let dir = tempfile::Builder::new().prefix("fvl").tempdir().unwrap();
    let inventory = inventory::parse(inventory, Path::new("lab.toml")).unwrap();
    let tests: Vec<Chosen> = suite.tests.iter().map(|test| (suite, test)).collect();
    let jobs: Vec<Job> = inventory
        .targets
        .into_iter()
        .map(|mut spec| {
            spec.limits.grace = Duration::from_secs(12);
            Job::new(spec, tests.clone())
        })
        .collect();
    let began = Began::now(Path::new("lab.toml"), vec![suite.name.to_owned()]);
    runner::run(&jobs, Room::here(None), dir.path(), &Progress::new());
    let slots: Vec<_> = jobs.iter().map(|job| job.slot.clone()).collect();
    began.report(&slots)
}

/// The row of a test on the first target.
fn row<'a>(report: &'a Report, test: &str) -> &'a TestResult {
    let rows = &report.targets[0].tests;
    rows.iter()
        .find(|row| row.name == test)
        .unwrap_or_else(|| panic!("There is no row {test} in {rows:#?}"))
}

/// Fails unless the row ended so, and its message has these words.
fn expect(report: &Report, test: &str, status: Status, words: &str) {
    let row = row(report, test);
    assert!(
        row.status == status && row.message.contains(words),
        "{test} must be {} with {words:?}: {row:#?}",
        status.word()
    );
}
