//! JUnit XML, for CI systems: a `testsuite` for each target and suite, with what the target is as properties.

use crate::lab::results::{Report, Status, TargetResult, TestResult};
use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

/// The report as XML.
///
/// # Errors
/// When the XML cannot be written.
pub fn render(report: &Report) -> Result<String> {
    let mut xml = quick_junit::Report::new("ferrovia-lab");
    xml.set_time(seconds(report.duration_s));
    if let Ok(started) = chrono::DateTime::parse_from_rfc3339(&report.started) {
        xml.set_timestamp(started);
    }
    for target in &report.targets {
        let mut suites: Vec<&str> = Vec::new();
        for test in &target.tests {
            if !suites.contains(&test.suite.as_str()) {
                suites.push(&test.suite);
            }
        }
        for suite in suites {
            xml.add_test_suite(one_suite(target, suite));
        }
    }
    xml.to_string().context("The results are no XML")
}

fn one_suite(target: &TargetResult, name: &str) -> TestSuite {
    let mut suite = TestSuite::new(format!("{}.{name}", target.name));
    let tests = target.tests.iter().filter(|test| test.suite == name);
    suite.set_time(seconds(tests.clone().map(|test| test.duration_s).sum()));
    if let Some(platform) = target.platform {
        suite.add_property(("platform", platform.word()));
    }
    if let Some(facts) = &target.facts {
        suite.add_property(("kernel", facts.kernel.as_str()));
        suite.add_property(("machine", facts.machine.as_str()));
        for nic in &facts.nics {
            let about = format!(
                "{}, driver {} {}, firmware {}",
                nic.model, nic.driver, nic.driver_version, nic.firmware
            );
            suite.add_property((format!("nic {}", nic.address).as_str(), about.as_str()));
        }
    }
    for test in tests {
        suite.add_test_case(one_case(&target.name, test));
    }
    suite
}

fn one_case(target: &str, test: &TestResult) -> TestCase {
    let status = match test.status {
        Status::Passed => TestCaseStatus::success(),
        Status::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(test.message.as_str());
            status
        }
        Status::Failed | Status::Error => {
            let kind = if test.status == Status::Failed {
                NonSuccessKind::Failure
            } else {
                NonSuccessKind::Error
            };
            let mut status = TestCaseStatus::non_success(kind);
            let first = test.message.lines().next().unwrap_or_default();
            status.set_message(first).set_type(test.status.word());
            let mut description = test.message.clone();
            if !test.changes.is_empty() {
                description.push_str("\n\nWhat changed on the target:\n");
                description.push_str(&test.changes.join("\n"));
            }
            if !test.state.is_empty() {
                description.push_str("\n\nThe target's state:\n");
                description.push_str(&test.state);
            }
            status.set_description(description);
            status
        }
    };
    let mut case = TestCase::new(test.name.as_str(), status);
    case.set_classname(format!("{target}.{}", test.suite));
    case.set_time(seconds(test.duration_s));
    for measure in &test.measures {
        let value = format!("{} {}", measure.value, measure.unit.word());
        case.add_property((measure.name.as_str(), value.trim()));
    }
    if !test.log.is_empty() {
        case.set_system_out(test.log.as_str());
    }
    case
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::examples;

    #[test]
    fn what_a_target_says_cannot_break_the_xml() {
        let xml = render(&examples::report(examples::HOSTILE)).unwrap();
        assert!(!xml.contains("<script"), "{xml}");
        assert!(xml.chars().all(|c| !c.is_control() || "\n\r\t".contains(c)));
        let read = quick_junit::Report::deserialize_from_str(&xml).unwrap();
        let suite = &read.test_suites[0];
        assert_eq!((suite.tests, suite.failures, suite.errors), (4, 1, 1));
        assert_eq!(xml.matches("<skipped").count(), 1);
    }
}
