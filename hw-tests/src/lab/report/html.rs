//! The page for people: one file without anything from elsewhere, for desktop and phone, light and dark.
//!
//! Whatever a target said is hostile: every text goes through [`text`]. The page forbids itself every script and
//! style but its own two, which it knows by their SHA-256.

use crate::lab::baseline::{Comparison, Difference};
use crate::lab::facts::Facts;
use crate::lab::inventory::Platform;
use crate::lab::results::{Counts, Report, Status, TargetResult, TestResult};
use base64::Engine;
use sha2::Digest;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The report as a page.
pub fn render(report: &Report) -> String {
    let counts = report.counts();
    let good =
        counts.failed + counts.errors == 0 && report.targets.iter().all(|t| t.error.is_none());
    let title = format!(
        "{} Ferrovia lab, {}",
        if good { "✓" } else { "✗" },
        text(&report.started)
    );
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src {}; script-src {}; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        source(STYLE),
        source(SCRIPT),
    );
    head(report, &counts, &mut page);
    page.push_str("<main>\n");
    if let Some(comparison) = &report.comparison {
        compared(comparison, &mut page);
    }
    bar(&counts, &mut page);
    matrix(report, &mut page);
    page.push_str("<h2>Targets</h2>\n<div class=\"cards\">\n");
    for target in &report.targets {
        card(target, &mut page);
    }
    page.push_str("</div>\n");
    for (at, target) in report.targets.iter().enumerate() {
        tests(at, target, &mut page);
    }
    let _ = write!(
        page,
        "<footer>{}, JSON schema {}. <code>results.json</code> beside this page holds everything on it.</footer>\n\
         </main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        text(&report.tool),
        report.schema_version
    );
    page
}

/// The only script or style that a page allows, for its policy.
fn source(content: &str) -> String {
    let digest = sha2::Sha256::digest(content.as_bytes());
    let digest = base64::engine::general_purpose::STANDARD.encode(digest);
    format!("'sha256-{digest}'")
}

/// Text as HTML, in an element or an attribute in double quotes. Control characters become visible.
fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len() + 16);
    for c in raw.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' => {}
            // Marks that turn the direction of text would let output pose as something else.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A test's name, which may break after each of its words.
fn name(raw: &str) -> String {
    text(raw).replace('_', "_<wbr>")
}

fn badge(platform: Option<Platform>) -> &'static str {
    match platform {
        Some(Platform::Emulated) => "<span class=\"badge emulated\">emulated</span>",
        Some(Platform::Physical) => "<span class=\"badge physical\">physical</span>",
        None => "<span class=\"badge\">not reached</span>",
    }
}

fn sign(status: Status) -> &'static str {
    match status {
        Status::Passed => "✓",
        Status::Skipped => "–",
        Status::Failed => "✗",
        Status::Error => "!",
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{s:.1} s"),
    }
}

fn head(report: &Report, counts: &Counts, page: &mut String) {
    let _ = write!(
        page,
        "<header><div>\n<h1>Ferrovia lab</h1>\n<p class=\"dim any\">{} · {} · inventory {} · suites {}</p>\n\
         <ul class=\"counts\">\n",
        text(&report.started.replace('T', " ").replace('Z', " UTC")),
        seconds(report.duration_s),
        text(&report.inventory),
        text(&report.suites.join(", ")),
    );
    for (count, word, class) in [
        (counts.failed, "failed", "failed"),
        (counts.errors, "errors", "error"),
        (counts.passed, "passed", "passed"),
        (counts.skipped, "skipped", "skipped"),
    ] {
        let class = if count == 0 { "skipped" } else { class };
        let _ = writeln!(page, "<li class=\"{class}\">{count} {word}</li>");
    }
    page.push_str("</ul>\n");
    if report.interrupted {
        page.push_str("<p class=\"note error\">The run was stopped before its end; tests that had not ended are missing.</p>\n");
    }
    page.push_str("</div></header>\n");
}

fn compared(comparison: &Comparison, page: &mut String) {
    let _ = writeln!(
        page,
        "<h2>Compared with the run of {}</h2>",
        text(&comparison.baseline)
    );
    let mut list = |what: &str, class: &str, all: &[Difference]| {
        if all.is_empty() {
            return;
        }
        let _ = write!(
            page,
            "<div class=\"note {class}\"><strong>{what}</strong><ul class=\"plain\">"
        );
        for difference in all {
            let _ = write!(page, "<li>{}</li>", text(&difference.to_string()));
        }
        page.push_str("</ul></div>\n");
    };
    list("Worse", "failed", &comparison.worse);
    list("Better", "passed", &comparison.better);
    if comparison.worse.is_empty() {
        page.push_str("<p>Nothing got worse.</p>\n");
    }
    if !comparison.new.is_empty() {
        let _ = writeln!(
            page,
            "<p class=\"dim any\">New: {}</p>",
            text(&comparison.new.join(", "))
        );
    }
}

fn bar(counts: &Counts, page: &mut String) {
    page.push_str("<div class=\"bar\" role=\"group\" aria-label=\"Which tests are shown\">\n");
    for (show, word, count, pressed) in [
        ("", "All", counts.all(), true),
        (
            "failed error",
            "Problems",
            counts.failed + counts.errors,
            false,
        ),
        ("skipped", "Skipped", counts.skipped, false),
        ("passed", "Passed", counts.passed, false),
    ] {
        let _ = writeln!(
            page,
            "<button type=\"button\" data-show=\"{show}\" aria-pressed=\"{pressed}\">{word} {count}</button>"
        );
    }
    page.push_str(
        "<input type=\"search\" placeholder=\"Filter by name\" aria-label=\"Filter by name\">\n</div>\n\
         <p id=\"none\" class=\"dim\" hidden>No test is like that.</p>\n",
    );
}

/// Tests down, targets across.
fn matrix(report: &Report, page: &mut String) {
    page.push_str("<h2>Results</h2>\n<div class=\"scroll\"><table class=\"matrix\">\n<thead><tr><th>Test</th>");
    for target in &report.targets {
        let _ = write!(
            page,
            "<th scope=\"col\">{} {}</th>",
            text(&target.name),
            badge(target.platform)
        );
    }
    page.push_str("</tr></thead>\n");
    let mut suites: Vec<(&str, Vec<&str>)> = Vec::new();
    for test in report.targets.iter().flat_map(|target| &target.tests) {
        let at = suites.iter().position(|(suite, _)| *suite == test.suite);
        let at = at.unwrap_or_else(|| {
            suites.push((&test.suite, Vec::new()));
            suites.len() - 1
        });
        if !suites[at].1.contains(&test.name.as_str()) {
            suites[at].1.push(&test.name);
        }
    }
    for (suite, names) in &suites {
        let _ = writeln!(
            page,
            "<tbody data-group><tr class=\"suite\"><th colspan=\"{}\">{}</th></tr>",
            report.targets.len() + 1,
            text(suite)
        );
        for name in names {
            matrix_row(report, suite, name, page);
        }
        page.push_str("</tbody>\n");
    }
    page.push_str("</table></div>\n");
}

fn matrix_row(report: &Report, suite: &str, named: &str, page: &mut String) {
    let find = |target: &TargetResult| {
        let same = |test: &TestResult| test.suite == suite && test.name == named;
        target.tests.iter().position(same)
    };
    let cells: Vec<Option<usize>> = report.targets.iter().map(find).collect();
    let status = |(at, test): (usize, &Option<usize>)| {
        test.map(|t| report.targets[at].tests[t].status.word())
    };
    let all: Vec<&str> = cells.iter().enumerate().filter_map(status).collect();
    let _ = write!(
        page,
        "<tr data-tests=\"{}\" data-words=\"{}\"><th scope=\"row\">{}</th>",
        all.join(" "),
        text(&format!("{suite}/{named}").to_lowercase()),
        name(named)
    );
    for (at, cell) in cells.iter().enumerate() {
        match cell {
            None => page.push_str("<td></td>"),
            Some(test) => {
                let status = report.targets[at].tests[*test].status;
                let word = status.word();
                let _ = write!(
                    page,
                    "<td><a class=\"cell {word}\" href=\"#t{at}-{test}\">{} {word}</a></td>",
                    sign(status)
                );
            }
        }
    }
    page.push_str("</tr>\n");
}

fn card(target: &TargetResult, page: &mut String) {
    let _ = writeln!(
        page,
        "<section class=\"card\"><header><h3>{}</h3>{}<span class=\"dim\">{} · {}</span></header>",
        text(&target.name),
        badge(target.platform),
        text(&target.kind),
        seconds(target.duration_s)
    );
    if let Some(error) = &target.error {
        let _ = writeln!(page, "<p class=\"note error any\">{}</p>", text(error));
    }
    let _ = writeln!(page, "<p class=\"dim\">{}</p>", Counts::of(&target.tests));
    if let Some(facts) = &target.facts {
        known(facts, page);
    }
    page.push_str("</section>\n");
}

fn known(facts: &Facts, page: &mut String) {
    page.push_str("<dl>");
    let size = format!("{} processors, {} MiB", facts.cpus, facts.memory_mb);
    let iommu = match facts.iommu_groups {
        0 => "off".to_owned(),
        groups => format!("{groups} groups"),
    };
    for (name, value) in [
        ("Kernel", facts.kernel.as_str()),
        ("System", facts.os.as_str()),
        ("Machine", facts.machine.as_str()),
        ("Size", size.as_str()),
        ("IOMMU", iommu.as_str()),
    ] {
        if !value.is_empty() {
            let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", text(value));
        }
    }
    page.push_str("</dl>\n");
    if facts.nics.is_empty() {
        page.push_str("<p class=\"dim\">No PCI NIC that tests may use.</p>\n");
        return;
    }
    page.push_str("<ul class=\"nics\">\n");
    for nic in &facts.nics {
        let or = |value: &str| {
            if value.is_empty() {
                "none".to_owned()
            } else {
                text(value)
            }
        };
        let vfs = match nic.total_vfs {
            0 => "no SR-IOV".to_owned(),
            most => format!("up to {most} VFs"),
        };
        let _ = writeln!(
            page,
            "<li><span class=\"mono\">{}</span> {}<br><span class=\"dim\">driver {} {} · firmware {} · {} · {vfs}</span></li>",
            text(&nic.address),
            text(&nic.model),
            or(&nic.driver),
            text(&nic.driver_version),
            or(&nic.firmware),
            or(&nic.interface),
        );
    }
    page.push_str("</ul>\n");
}

fn tests(at: usize, target: &TargetResult, page: &mut String) {
    let _ = writeln!(
        page,
        "<section data-group><h2>Tests on {}</h2>",
        text(&target.name)
    );
    for (number, test) in target.tests.iter().enumerate() {
        one_test(&format!("t{at}-{number}"), test, page);
    }
    page.push_str("</section>\n");
}

fn one_test(id: &str, test: &TestResult, page: &mut String) {
    let word = test.status.word();
    let open = if matches!(test.status, Status::Failed | Status::Error)
        && !test.message.starts_with("Not run")
    {
        " open"
    } else {
        ""
    };
    let why = if test.message.is_empty() {
        &test.about
    } else {
        &test.message
    };
    let _ = write!(
        page,
        "<details class=\"test\" id=\"{id}\" data-tests=\"{word}\" data-words=\"{}\"{open}>\n\
         <summary><span class=\"cell {word}\">{} {word}</span><span class=\"name\">{}/<wbr>{}</span>\
         <span class=\"time\">{}</span><span class=\"why\">{}</span></summary>\n<div>\n<p class=\"dim\">{}</p>\n",
        text(&format!("{}/{}", test.suite, test.name).to_lowercase()),
        sign(test.status),
        text(&test.suite),
        name(&test.name),
        if test.duration_s > 0.0 {
            seconds(test.duration_s)
        } else {
            String::new()
        },
        text(why),
        text(&test.about),
    );
    if !test.message.is_empty() {
        let _ = writeln!(
            page,
            "<p class=\"note {word} any\">{}</p>",
            text(&test.message)
        );
    }
    if !test.measures.is_empty() {
        page.push_str("<table class=\"measures\">");
        for measure in &test.measures {
            let _ = write!(
                page,
                "<tr><th scope=\"row\">{}</th><td class=\"number\">{:.3}</td><td>{}</td></tr>",
                text(&measure.name),
                measure.value,
                measure.unit.word()
            );
        }
        page.push_str("</table>\n");
    }
    if !test.changes.is_empty() {
        page.push_str(
            "<p>What changed on the target, and was put back:</p><ul class=\"plain mono\">",
        );
        for change in &test.changes {
            let _ = write!(page, "<li>{}</li>", text(change));
        }
        page.push_str("</ul>\n");
    }
    for (title, content) in [
        ("Commands and their output", &test.log),
        ("The target's state", &test.state),
    ] {
        if !content.is_empty() {
            let _ = writeln!(
                page,
                "<details><summary>{title}</summary><pre>{}</pre></details>",
                text(content)
            );
        }
    }
    page.push_str("</div></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::examples;

    #[test]
    fn what_a_target_says_stays_text() {
        let tame = render(&examples::report("why"));
        let wild = render(&examples::report(examples::HOSTILE));
        for tag in ["<script", "</script", "<li", "<details", "<p ", "onerror"] {
            assert_eq!(
                wild.matches(tag).count(),
                tame.matches(tag).count(),
                "{tag}"
            );
        }
        assert!(!wild.contains("alert(1)</script>"));
        assert!(wild.contains("&lt;script&gt;alert(1)"));
        assert!(wild.chars().all(|c| !c.is_control() || "\n\t".contains(c)));
    }

    #[test]
    fn the_page_asks_nobody_for_anything() {
        let page = render(&examples::report("why"));
        for word in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}
