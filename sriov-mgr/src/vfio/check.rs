//! `ferrovia vf check`: what is asked, what comes out, and the order of the steps.

use super::facts::Facts;
use super::obstacle::Force;
use super::self_test;
use super::verdict::{Purpose, Verdict};
use crate::address::PciAddress;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// What is to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The function: a VF bound to vfio-pci.
    pub function: PciAddress,
    /// Dangers accepted by name.
    #[serde(default)]
    pub force: Vec<Force>,
}

/// The steps of the self-test, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepName {
    /// The verdict on group, driver and host.
    Viability,
    /// `/dev/vfio/vfio` opens and speaks our version.
    Container,
    /// The group opens, joins the container, the IOMMU takes it, the device opens.
    Device,
    /// A page can be mapped for DMA and unmapped again.
    DmaMap,
    /// A mapping over another one, and one that is no whole page, are refused.
    DmaLimits,
    /// Configuration space reads as the device that sysfs shows.
    Config,
    /// The device can be reset, and answers afterwards.
    Reset,
    /// An interrupt can be set up, raised from software, and arrives.
    Interrupt,
    /// The device and its group can be given back.
    Close,
}

impl StepName {
    /// Every step, in order.
    pub const ALL: [StepName; 9] = [
        StepName::Viability,
        StepName::Container,
        StepName::Device,
        StepName::DmaMap,
        StepName::DmaLimits,
        StepName::Config,
        StepName::Reset,
        StepName::Interrupt,
        StepName::Close,
    ];

    /// As it is written in reports.
    pub fn name(self) -> &'static str {
        match self {
            StepName::Viability => "viability",
            StepName::Container => "container",
            StepName::Device => "device",
            StepName::DmaMap => "dma-map",
            StepName::DmaLimits => "dma-limits",
            StepName::Config => "config",
            StepName::Reset => "reset",
            StepName::Interrupt => "interrupt",
            StepName::Close => "close",
        }
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum StepResult {
    /// It works.
    Passed {
        /// What was seen.
        seen: String,
    },
    /// It does not.
    Failed {
        /// What happened.
        why: String,
        /// What to do about it.
        advice: String,
    },
    /// It was not tried.
    Skipped {
        /// Why not.
        why: String,
    },
}

/// One step of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub name: StepName,
    /// How it ended.
    #[serde(flatten)]
    pub result: StepResult,
    /// How long it took, µs.
    pub micros: u64,
}

impl Step {
    /// A step that took `time`.
    pub fn new(name: StepName, result: StepResult, time: Duration) -> Step {
        Step {
            name,
            result,
            micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Whether it failed.
    pub fn failed(&self) -> bool {
        matches!(self.result, StepResult::Failed { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.micros as f64 / 1000.0;
        match &self.result {
            StepResult::Passed { seen } => {
                write!(f, "{:<10} ok      {millis:>8.1} ms  {seen}", self.name)
            }
            StepResult::Failed { why, advice } => write!(
                f,
                "{:<10} FAILED  {millis:>8.1} ms  {why}; {advice}",
                self.name
            ),
            StepResult::Skipped { why } => {
                write!(f, "{:<10} skipped              {why}", self.name)
            }
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The function.
    pub address: PciAddress,
    /// The verdict before anything was opened.
    pub verdict: Verdict,
    /// Every step, in order.
    pub steps: Vec<Step>,
}

impl CheckReport {
    /// Whether the function can be used: no step failed and the device itself was tried.
    pub fn passed(&self) -> bool {
        let opened = |step: &Step| {
            step.name == StepName::Device && matches!(step.result, StepResult::Passed { .. })
        };
        self.steps.iter().any(opened) && !self.steps.iter().any(Step::failed)
    }
}

/// One line for each step and each note.
impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.passed() {
            "works with VFIO"
        } else {
            "does not work with VFIO"
        };
        write!(f, "{} {result}", self.verdict.function)?;
        for step in &self.steps {
            write!(f, "\n  {step}")?;
        }
        for accepted in &self.verdict.accepted {
            write!(f, "\n  accepted: {accepted}")?;
        }
        for note in &self.verdict.notes {
            write!(f, "\n  note: {note}")?;
        }
        Ok(())
    }
}

/// Checks a function, and calls `progress` with each step as it is done. Opens and resets the device: it
/// must not be in use, which the first step finds out.
///
/// May block for ever on a broken device: to be called in a process that can be given up.
pub fn check(request: &CheckRequest, progress: &mut dyn FnMut(&Step)) -> CheckReport {
    let (facts, verdict) = check_verdict(request);
    let mut steps = Vec::new();
    check_with(&facts, &verdict, &mut |step| {
        progress(&step);
        steps.push(step);
    });
    add_skipped(&mut steps, progress);
    CheckReport {
        address: request.function,
        verdict,
        steps,
    }
}

/// What there is to know without opening anything.
pub(super) fn check_verdict(request: &CheckRequest) -> (Facts, Verdict) {
    let facts = Facts::read(Path::new("/"), request.function);
    let verdict = Verdict::of(&facts, Purpose::Open, &request.force);
    (facts, verdict)
}

/// Every step that can be made, handed on as it is done.
pub(super) fn check_with(facts: &Facts, verdict: &Verdict, done: &mut dyn FnMut(Step)) {
    let result = viability(facts, verdict);
    done(Step::new(StepName::Viability, result, Duration::ZERO));
    if verdict.viable() {
        self_test::run(facts, done);
    }
}

/// Adds the steps that were not made.
pub(super) fn add_skipped(steps: &mut Vec<Step>, progress: &mut dyn FnMut(&Step)) {
    for name in StepName::ALL {
        if !steps.iter().any(|step| step.name == name) {
            let why = "a step before it did not pass".to_owned();
            let step = Step::new(name, StepResult::Skipped { why }, Duration::ZERO);
            progress(&step);
            steps.push(step);
        }
    }
}

fn viability(facts: &Facts, verdict: &Verdict) -> StepResult {
    if !verdict.viable() {
        let why: Vec<String> = verdict.obstacles.iter().map(|o| o.to_string()).collect();
        return StepResult::Failed {
            why: why.join("; "),
            advice: "nothing was opened".to_owned(),
        };
    }
    let seen = facts.group.as_ref().map_or_else(
        || "no IOMMU group".to_owned(),
        |group| match group.peers.len() {
            0 => format!("alone in IOMMU group {}", group.number),
            others => format!("in IOMMU group {} with {others} others", group.number),
        },
    );
    StepResult::Passed { seen }
}
