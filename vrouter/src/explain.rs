//! Saying in plain words how a verdict came about, for `flow trace`.
//!
//! The decision itself carries a [`Trace`]; there is no second implementation that could differ.

use crate::verdict::Verdict;

/// How a verdict came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// One sentence each, in the order of the decision.
    pub steps: Vec<String>,
    /// What [`first_packet`](crate::VRouter::first_packet) says about the same packet.
    pub verdict: Verdict,
}

/// Where a decision notes its steps; off in the data plane.
pub(crate) struct Trace(Option<Vec<String>>);

impl Trace {
    pub(crate) fn off() -> Trace {
        Trace(None)
    }

    pub(crate) fn on() -> Trace {
        Trace(Some(Vec::new()))
    }

    /// Notes a step. The text is made only where somebody reads it.
    pub(crate) fn note(&mut self, step: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(step());
        }
    }

    pub(crate) fn into_steps(self) -> Vec<String> {
        self.0.unwrap_or_default()
    }
}
