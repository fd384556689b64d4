//! The results of a run, as data. This is the JSON report, field by field; everything else is made of it.
//!
//! `schema_version` rises when a field changes its meaning or goes; a new field does not change it. A reader
//! refuses a version that it does not know ([`load`]).

use super::facts::Facts;
use super::inventory::Platform;
use super::suite::Measure;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the JSON report that this program writes and reads.
pub const SCHEMA_VERSION: u32 = 1;
/// The longest report that is read, in bytes.
const LONGEST: u64 = 256 << 20;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `ferrovia-lab` and its version.
    pub tool: String,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// How long it took, seconds.
    pub duration_s: f64,
    /// The inventory's file name.
    pub inventory: String,
    /// The suites that were asked for.
    pub suites: Vec<String>,
    /// The run was told to stop before its end.
    #[serde(default)]
    pub interrupted: bool,
    /// In the order of the inventory.
    pub targets: Vec<TargetResult>,
    /// What got worse and better since the baseline, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<super::baseline::Comparison>,
}

/// One target and its tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetResult {
    /// Its name in the inventory.
    pub name: String,
    /// `emulated`, `ssh` or `local`.
    pub kind: String,
    /// Whether its NICs are hardware; absent when it was never reached and the inventory does not say.
    pub platform: Option<Platform>,
    /// Why it could not be used, or not to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it is; absent when it was never reached.
    pub facts: Option<Facts>,
    /// How long it took, seconds.
    pub duration_s: f64,
    /// In the order in which they ran.
    pub tests: Vec<TestResult>,
}

/// One test on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// The suite's name.
    pub suite: String,
    /// The test's name.
    pub name: String,
    /// What must hold.
    pub about: String,
    /// How it ended.
    pub status: Status,
    /// Why it did not pass, in a sentence; empty when it passed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How long it took, seconds.
    pub duration_s: f64,
    /// Named numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
    /// What changed on the target during a test that did not pass, or that was left behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// The commands with their output.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// The target's state after a test that failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// What must hold holds.
    Passed,
    /// The target cannot show it.
    Skipped,
    /// What must hold does not.
    Failed,
    /// It could not be carried out to its end.
    Error,
}

impl Status {
    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Status::Passed => "passed",
            Status::Skipped => "skipped",
            Status::Failed => "failed",
            Status::Error => "error",
        }
    }
}

/// How many tests ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Skipped.
    pub skipped: usize,
    /// Failed.
    pub failed: usize,
    /// Not carried out.
    pub errors: usize,
}

impl Counts {
    /// Counts tests.
    pub fn of<'a>(tests: impl IntoIterator<Item = &'a TestResult>) -> Counts {
        let mut counts = Counts::default();
        for test in tests {
            match test.status {
                Status::Passed => counts.passed += 1,
                Status::Skipped => counts.skipped += 1,
                Status::Failed => counts.failed += 1,
                Status::Error => counts.errors += 1,
            }
        }
        counts
    }

    /// All of them.
    pub fn all(&self) -> usize {
        self.passed + self.skipped + self.failed + self.errors
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            passed,
            skipped,
            failed,
            errors,
        } = self;
        write!(
            f,
            "{passed} passed, {failed} failed, {errors} errors, {skipped} skipped"
        )
    }
}

impl Report {
    /// Counts every test.
    pub fn counts(&self) -> Counts {
        Counts::of(self.targets.iter().flat_map(|target| &target.tests))
    }
}

/// Reads a JSON report.
///
/// # Errors
/// When it cannot be read, is no report, or of a version that this program does not know.
pub fn load(path: &Path) -> Result<Report> {
    let shown = path.display();
    let size = std::fs::metadata(path)
        .with_context(|| format!("The report \"{shown}\" cannot be read"))?
        .len();
    if size > LONGEST {
        bail!(
            "\"{shown}\" is over {} MiB, so it is no report",
            LONGEST >> 20
        );
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("The report \"{shown}\" cannot be read"))?;
    parse(&text).with_context(|| format!("\"{shown}\" is no JSON report of ferrovia-lab"))
}

/// Reads the text of a JSON report.
///
/// # Errors
/// When it is no report, or of a version that this program does not know.
pub fn parse(text: &str) -> Result<Report> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let version: Version = serde_json::from_str(text)?;
    if version.schema_version != SCHEMA_VERSION {
        bail!(
            "It has schema_version {}, and this program knows {SCHEMA_VERSION}",
            version.schema_version
        );
    }
    Ok(serde_json::from_str(text)?)
}
