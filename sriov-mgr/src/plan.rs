//! What would be done to make the NICs as the policies want them, and whom it would disturb.

use crate::device::{Device, VfId};
use crate::recipe::Step;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What would be done. Nothing in it: all is as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, PF by PF, in order.
    pub steps: Vec<PlannedStep>,
    /// What is wanted and will not be done, and why.
    pub refused: Vec<Refusal>,
    /// What differs from a policy and is right so.
    pub notes: Vec<Refusal>,
    /// Who else may change these PFs.
    pub foreign: Vec<SecondOwner>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The PF.
    pub device: Device,
    /// What, for people: "Remove 4 VFs".
    pub what: String,
    /// What, exactly.
    pub step: Step,
    /// Whom it disturbs.
    pub disturbs: Vec<Disturbed>,
}

/// Somebody who loses a VF or their connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Disturbed {
    /// The VF.
    pub vf: VfId,
    /// Who: our owner ("port/4711"), or who the kernel says has it open.
    pub holder: String,
}

impl fmt::Display for Disturbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.holder, self.vf)
    }
}

/// Something about a PF that is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The PF; absent where it is about none.
    pub device: Option<Device>,
    /// Why, and what to do.
    pub why: String,
}

/// Another program that is set up to change a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondOwner {
    /// The PF.
    pub device: Device,
    /// The program: "NetworkManager", "systemd-networkd", "sriov-network-operator".
    pub program: String,
    /// Where it says so, and what to do.
    pub why: String,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Everybody whom the plan disturbs, once each.
    pub fn disturbs(&self) -> Vec<Disturbed> {
        let mut all: Vec<Disturbed> = self
            .steps
            .iter()
            .flat_map(|step| step.disturbs.clone())
            .collect();
        all.sort();
        all.dedup();
        all
    }
}
