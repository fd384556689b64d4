//! KTAP, version 1: the kernel's test output, with targets, suites and tests as nested subtests.
//!
//! The format: <https://docs.kernel.org/dev-tools/ktap.html>.

use crate::lab::results::{Report, Status, TargetResult, TestResult};
use std::fmt::Write;

/// The report as KTAP.
pub fn render(report: &Report) -> String {
    let mut out = String::from("KTAP version 1\n");
    let _ = writeln!(out, "1..{}", report.targets.len());
    for (number, target) in report.targets.iter().enumerate() {
        let mut bad = target.error.is_some();
        out.push_str("  KTAP version 1\n");
        let _ = writeln!(out, "  # Subtest: {}", name(&target.name));
        about(target, &mut out);
        let suites = suites(target);
        let _ = writeln!(out, "  1..{}", suites.len());
        for (number, suite) in suites.iter().enumerate() {
            let failed = one_suite(target, suite, &mut out);
            bad |= failed;
            let _ = writeln!(out, "  {} {} {}", word(failed), number + 1, name(suite));
        }
        let _ = writeln!(out, "{} {} {}", word(bad), number + 1, name(&target.name));
    }
    out
}

fn suites(target: &TargetResult) -> Vec<&str> {
    let mut suites: Vec<&str> = Vec::new();
    for test in &target.tests {
        if !suites.contains(&test.suite.as_str()) {
            suites.push(&test.suite);
        }
    }
    suites
}

fn about(target: &TargetResult, out: &mut String) {
    let platform = target
        .platform
        .map_or("unknown", |platform| platform.word());
    let _ = writeln!(out, "  # platform: {platform}");
    if let Some(facts) = &target.facts {
        let _ = writeln!(out, "  # kernel: {}", plain(&facts.kernel));
        for nic in &facts.nics {
            let _ = writeln!(
                out,
                "  # nic: {} {}, driver {}, firmware {}",
                plain(&nic.address),
                plain(&nic.model),
                plain(&nic.driver),
                plain(&nic.firmware)
            );
        }
    }
    if let Some(error) = &target.error {
        diagnostics("  ", error, out);
    }
}

/// True when a test of the suite failed.
fn one_suite(target: &TargetResult, suite: &str, out: &mut String) -> bool {
    let tests: Vec<&TestResult> = target.tests.iter().filter(|t| t.suite == suite).collect();
    let _ = writeln!(out, "    KTAP version 1\n    # Subtest: {}", name(suite));
    let _ = writeln!(out, "    1..{}", tests.len());
    let mut bad = false;
    for (number, test) in tests.iter().enumerate() {
        let failed = matches!(test.status, Status::Failed | Status::Error);
        bad |= failed;
        for measure in &test.measures {
            let (value, unit) = (measure.value, measure.unit.word());
            let _ = writeln!(out, "    # {}: {value} {unit}", name(&measure.name));
        }
        if failed {
            diagnostics("    ", &test.message, out);
            for change in &test.changes {
                diagnostics("    ", change, out);
            }
        }
        let _ = write!(
            out,
            "    {} {} {}",
            word(failed),
            number + 1,
            name(&test.name)
        );
        if test.status == Status::Skipped {
            let _ = write!(out, " # SKIP {}", plain(&test.message));
        }
        out.push('\n');
    }
    bad
}

fn word(bad: bool) -> &'static str {
    if bad { "not ok" } else { "ok" }
}

/// One line, without control characters.
fn plain(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

/// A name: it ends where a directive begins, so it has no `#`.
fn name(text: &str) -> String {
    plain(text).replace('#', "_")
}

fn diagnostics(indent: &str, text: &str, out: &mut String) {
    for line in text.lines() {
        let _ = writeln!(out, "{indent}# {}", plain(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::examples;

    #[test]
    fn results_are_numbered_and_nested() {
        let text = render(&examples::report("why"));
        for line in [
            "KTAP version 1",
            "1..1",
            "  # Subtest: igb",
            "    1..4",
            "    # create_ms: 12.5 ms",
            "    ok 1 passes",
            "    ok 2 skips # SKIP why",
            "    not ok 3 fails",
            "    not ok 4 breaks",
            "  not ok 1 smoke",
            "not ok 1 igb",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line:?} is not in\n{text}"
            );
        }
    }

    #[test]
    fn what_a_target_says_is_no_result() {
        let text = render(&examples::report(examples::HOSTILE));
        let results = |line: &&str| {
            line.trim_start().starts_with("ok") || line.trim_start().starts_with("not ok")
        };
        assert_eq!(text.lines().filter(results).count(), 6, "{text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
    }
}
