//! What a test is: a function that gets the target, what it needs of it, and how it may end.

use super::needs::Need;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Tests that belong together.
#[derive(Debug)]
pub struct Suite {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub about: &'static str,
    /// In the order in which they run.
    pub tests: &'static [Test],
}

/// A test: see [`Test::new`].
#[derive(Debug)]
pub struct Test {
    /// Its name; unique in its suite and stable, since baselines know it by it.
    pub name: &'static str,
    /// What must hold, in a sentence.
    pub about: &'static str,
    /// What the target must have; where it has not, the test is skipped with the reason. See [`Test::all_needs`].
    needs: &'static [Need],
    /// What it must have besides.
    also: &'static [Need],
    /// The longest it may take.
    pub limit: Duration,
    /// The test.
    pub body: Body,
}

/// The function that is the test.
pub type Body = fn(&super::Context) -> Outcome;

/// How a test ends: `Ok(())` is a pass.
pub type Outcome = Result<(), Stop>;

/// Why a test did not pass. `?` on an [`anyhow::Error`] makes it an error.
#[derive(Debug)]
pub enum Stop {
    /// What must hold does not; the sentence says what was found instead.
    Fail(String),
    /// The target cannot show it; the reason.
    Skip(String),
    /// The test could not be carried out: the target was lost, a command did not end.
    Error(anyhow::Error),
}

impl Stop {
    /// A failure.
    pub fn fail(found: impl Into<String>) -> Stop {
        Stop::Fail(found.into())
    }

    /// A skip.
    pub fn skip(reason: impl Into<String>) -> Stop {
        Stop::Skip(reason.into())
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Stop {
        Stop::Error(error)
    }
}

impl From<super::target::LinkError> for Stop {
    fn from(error: super::target::LinkError) -> Stop {
        Stop::Error(error.into())
    }
}

/// Fails the test unless `holds`; `found` says what was found.
pub fn check(holds: bool, found: impl Into<String>) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Stop::fail(found))
    }
}

/// Fails the test unless `got` is `wanted`; `what` names it.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted {
        Ok(())
    } else {
        Err(Stop::fail(format!(
            "{what} is {got:?}, and must be {wanted:?}"
        )))
    }
}

impl Test {
    /// A test without needs and with a limit of a minute.
    pub const fn new(name: &'static str, about: &'static str, body: Body) -> Test {
        Test {
            name,
            about,
            needs: &[],
            also: &[],
            limit: Duration::from_secs(60),
            body,
        }
    }

    /// With what the target must have.
    pub const fn needs(mut self, needs: &'static [Need]) -> Test {
        self.needs = needs;
        self
    }

    /// With what it must have besides: `needs` may then be a list that several tests share.
    pub const fn also(mut self, also: &'static [Need]) -> Test {
        self.also = also;
        self
    }

    /// All that the target must have.
    pub fn all_needs(&self) -> impl Iterator<Item = &'static Need> {
        self.needs.iter().chain(self.also)
    }

    /// With another limit, in seconds.
    pub const fn limit(mut self, seconds: u64) -> Test {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// A named number that a test measured, for trends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Unique in its test, such as `vf_create_ms`.
    pub name: String,
    /// The number.
    pub value: f64,
    /// What it counts; also says which way is better.
    pub unit: Unit,
}

/// What a [`Measure`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds; less is better.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds; less is better.
    #[serde(rename = "us")]
    Microseconds,
    /// Packets a second; more is better.
    #[serde(rename = "pps")]
    PacketsPerSecond,
    /// Bits a second; more is better.
    #[serde(rename = "bit/s")]
    BitsPerSecond,
    /// Operations a second; more is better.
    #[serde(rename = "op/s")]
    OperationsPerSecond,
    /// Percent; less is better (loss, overhead).
    #[serde(rename = "%")]
    Percent,
    /// A plain count; neither way is better.
    #[serde(rename = "count")]
    Count,
}

impl Unit {
    /// As it is written behind the number.
    pub fn word(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Microseconds => "us",
            Unit::PacketsPerSecond => "pps",
            Unit::BitsPerSecond => "bit/s",
            Unit::OperationsPerSecond => "op/s",
            Unit::Percent => "%",
            Unit::Count => "",
        }
    }

    /// How many percent worse `new` is than `old`; negative when it is better, `None` where neither way is.
    pub fn worse_by(self, old: f64, new: f64) -> Option<f64> {
        let less_is_better = match self {
            Unit::Milliseconds | Unit::Microseconds | Unit::Percent => true,
            Unit::PacketsPerSecond | Unit::BitsPerSecond | Unit::OperationsPerSecond => false,
            Unit::Count => return None,
        };
        let usable = old.is_finite() && new.is_finite() && old > 0.0;
        let change = (new - old) / old * 100.0;
        usable.then_some(if less_is_better { change } else { -change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_follows_the_unit() {
        assert_eq!(Unit::Milliseconds.worse_by(10.0, 15.0), Some(50.0));
        assert_eq!(Unit::PacketsPerSecond.worse_by(10.0, 15.0), Some(-50.0));
        assert_eq!(Unit::Count.worse_by(10.0, 15.0), None);
        assert_eq!(Unit::Milliseconds.worse_by(0.0, 15.0), None);
    }
}
