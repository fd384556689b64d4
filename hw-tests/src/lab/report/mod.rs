//! The four reports of a run, each made of the same results: JSON, JUnit XML, KTAP, and a page for people.

mod html;
mod junit;
mod ktap;

use super::results::Report;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The JSON report's file name; the baseline of a later run.
pub const JSON: &str = "results.json";
/// The JUnit report's.
pub const JUNIT: &str = "junit.xml";
/// The KTAP report's.
pub const KTAP: &str = "results.ktap";
/// The page's.
pub const PAGE: &str = "index.html";

/// Writes all four into `dir`, which is made when it is not there.
///
/// # Errors
/// When a file cannot be written; names it.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)
        .with_context(|| format!("The folder \"{}\" cannot be made", dir.display()))?;
    let json = serde_json::to_string_pretty(report).context("The results are no JSON")?;
    for (name, text) in [
        (JSON, json),
        (JUNIT, junit::render(report)?),
        (KTAP, ktap::render(report)),
        (PAGE, html::render(report)),
    ] {
        let path = dir.join(name);
        // A reader never sees half a file.
        let new = dir.join(format!(".{name}.new"));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("The report \"{}\" cannot be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod examples {
    //! Results whose every text is hostile.

    use crate::lab::facts::{Facts, Nic};
    use crate::lab::results::{Report, SCHEMA_VERSION, Status, TargetResult, TestResult};
    use crate::lab::suite::{Measure, Unit};

    /// Markup, control characters, and what ends an element or a line early.
    pub const HOSTILE: &str =
        "</script><script>alert(1)</script>]]>\u{0}\u{1b}[31m\u{ffff}\"'&\r\nok 1 forged # SKIP";

    /// A test that ended so.
    pub fn test(name: &str, status: Status, text: &str) -> TestResult {
        TestResult {
            suite: "smoke".into(),
            name: name.into(),
            about: format!("about {text}"),
            status,
            message: if status == Status::Passed {
                String::new()
            } else {
                text.to_owned()
            },
            duration_s: 1.25,
            measures: vec![Measure {
                name: "create_ms".into(),
                value: 12.5,
                unit: Unit::Milliseconds,
            }],
            changes: vec![text.to_owned()],
            log: text.to_owned(),
            state: text.to_owned(),
        }
    }

    /// A report of one target, with a test of each status.
    pub fn report(text: &str) -> Report {
        let nic = Nic {
            address: "0000:01:00.0".into(),
            model: text.into(),
            firmware: text.into(),
            ..Nic::default()
        };
        Report {
            schema_version: SCHEMA_VERSION,
            tool: "ferrovia-lab 0".into(),
            started: "2026-01-02T03:04:05Z".into(),
            duration_s: 9.0,
            inventory: text.into(),
            suites: vec!["smoke".into()],
            interrupted: false,
            targets: vec![TargetResult {
                name: "igb".into(),
                kind: "emulated".into(),
                platform: None,
                error: Some(text.into()),
                facts: Some(Facts {
                    kernel: text.into(),
                    nics: vec![nic],
                    ..Facts::default()
                }),
                duration_s: 8.0,
                tests: vec![
                    test("passes", Status::Passed, text),
                    test("skips", Status::Skipped, text),
                    test("fails", Status::Failed, text),
                    test("breaks", Status::Error, text),
                ],
            }],
            comparison: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::results;

    #[test]
    fn json_is_read_back_as_it_was_written() {
        let report = examples::report(examples::HOSTILE);
        let dir = tempfile::tempdir().unwrap();
        write(&report, dir.path()).unwrap();
        assert_eq!(results::load(&dir.path().join(JSON)).unwrap(), report);
        for name in [JUNIT, KTAP, PAGE] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn another_version_of_the_schema_is_refused() {
        let error = results::parse("{\"schema_version\": 2}")
            .unwrap_err()
            .to_string();
        assert!(error.contains("schema_version 2"), "{error}");
    }
}
