//! What got worse, and what better, between two reports.

use super::results::{Report, Status, TestResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The difference between two reports, in the JSON report and on the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// When the baseline's run began.
    pub baseline: String,
    /// How many percent a measure may be worse before it counts.
    pub threshold_percent: f64,
    /// What got worse.
    pub worse: Vec<Difference>,
    /// What got better.
    pub better: Vec<Difference>,
    /// Tests that the baseline does not have, as `target/suite/test`.
    pub new: Vec<String>,
}

/// One test that got worse or better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The target.
    pub target: String,
    /// The suite.
    pub suite: String,
    /// The test.
    pub test: String,
    /// A sentence on what changed.
    pub what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference {
            target,
            suite,
            test,
            what,
        } = self;
        write!(f, "{target}/{suite}/{test}: {what}")
    }
}

type Key<'a> = (&'a str, &'a str, &'a str);

/// Compares `new` with `old`. Measures count when they are worse by more than `threshold` percent.
///
/// Only what `new` ran is judged: a target or suite that was not asked for is no loss. A test that is not in a
/// suite any more, on a target where others of the suite are, is one when `whole` says that `new` ran all.
pub fn compare(old: &Report, new: &Report, threshold: f64, whole: bool) -> Comparison {
    let before = rows(old);
    let after = rows(new);
    let mut comparison = Comparison {
        baseline: old.started.clone(),
        threshold_percent: threshold,
        ..Comparison::default()
    };
    for (key, test) in &after {
        match before.get(key) {
            Some(was) => judge(*key, was, test, threshold, &mut comparison),
            None => comparison
                .new
                .push(format!("{}/{}/{}", key.0, key.1, key.2)),
        }
    }
    for (key, was) in &before {
        let ran = after
            .keys()
            .any(|(target, suite, _)| (*target, *suite) == (key.0, key.1));
        if whole && ran && !after.contains_key(key) && was.status == Status::Passed {
            comparison.worse.push(difference(
                *key,
                "passed before, and is not there any more".into(),
            ));
        }
    }
    comparison
}

fn rows(report: &Report) -> BTreeMap<Key<'_>, &TestResult> {
    report
        .targets
        .iter()
        .flat_map(|target| {
            target.tests.iter().map(|test| {
                let key = (
                    target.name.as_str(),
                    test.suite.as_str(),
                    test.name.as_str(),
                );
                (key, test)
            })
        })
        .collect()
}

fn difference(key: Key<'_>, what: String) -> Difference {
    Difference {
        target: key.0.to_owned(),
        suite: key.1.to_owned(),
        test: key.2.to_owned(),
        what,
    }
}

fn judge(key: Key<'_>, was: &TestResult, is: &TestResult, threshold: f64, into: &mut Comparison) {
    if was.status != is.status {
        let (from, to) = (was.status.word(), is.status.word());
        let why = match is.message.lines().next() {
            Some(why) => format!(": {why}"),
            None => String::new(),
        };
        // The order of `Status` is from good to bad.
        if is.status > was.status {
            into.worse
                .push(difference(key, format!("{from} before, now {to}{why}")));
        } else {
            into.better
                .push(difference(key, format!("{from} before, now {to}{why}")));
        }
        return;
    }
    for measure in &is.measures {
        let old = was
            .measures
            .iter()
            .find(|m| m.name == measure.name && m.unit == measure.unit);
        let Some(old) = old else { continue };
        let Some(percent) = measure.unit.worse_by(old.value, measure.value) else {
            continue;
        };
        let unit = measure.unit.word();
        let change = format!(
            "{} was {:.3} {unit}, is {:.3} {unit} ({:+.0} %)",
            measure.name,
            old.value,
            measure.value,
            (measure.value - old.value) / old.value * 100.0
        );
        if percent > threshold {
            into.worse.push(difference(key, change));
        } else if percent < -threshold {
            into.better.push(difference(key, change));
        }
    }
}
