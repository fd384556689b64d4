//! What would be done to make the NICs as the policies want them, and whom it would disturb.

use crate::allocation::Allocation;
use crate::device::{Device, VfId};
use crate::journal::{Before, Hold, PfEntry, Target};
use crate::kernel::{EswitchMode, PfState, VfChange, VfState};
use crate::policy::{Wanted, label};
use crate::recipe::{self, Step};
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
    /// What policies select and this host does not have now.
    pub warnings: Vec<Refusal>,
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for step in &self.steps {
            if last != Some(&step.device) {
                writeln!(f, "{}:", step.device)?;
                last = Some(&step.device);
            }
            writeln!(f, "  {}", step.what)?;
            for disturbed in &step.disturbs {
                writeln!(f, "    disturbs {disturbed}")?;
            }
        }
        for refusal in &self.refused {
            writeln!(f, "Refused: {}", refusal.why)?;
        }
        for (what, list) in [("Note", &self.notes), ("Warning", &self.warnings)] {
            for one in list {
                writeln!(f, "{what}: {}", one.why)?;
            }
        }
        for owner in &self.foreign {
            writeln!(f, "Second owner of {}: {}", owner.device, owner.why)?;
        }
        if self.steps.is_empty() && self.refused.is_empty() && self.warnings.is_empty() {
            writeln!(f, "All is as the policies want it.")?;
        }
        Ok(())
    }
}

/// What is known of a PF when its change is planned.
pub(crate) struct Facts<'a> {
    pub(crate) state: &'a PfState,
    pub(crate) vfs: &'a [VfState],
    pub(crate) wanted: &'a Wanted,
    pub(crate) entry: &'a PfEntry,
    pub(crate) wedged: Option<String>,
}

/// What is to be done about a PF.
pub(crate) struct PfPlan {
    /// The change; absent: nothing is to be done.
    pub(crate) change: Option<Change>,
    /// What is not as the policies say, and right so.
    pub(crate) notes: Vec<String>,
}

/// A change of a PF.
pub(crate) struct Change {
    pub(crate) target: Target,
    pub(crate) from: Before,
    pub(crate) steps: Vec<Step>,
}

/// Plans the change of one PF. `Err`: it is not to be changed, and why.
pub(crate) fn plan_pf(facts: &Facts<'_>) -> Result<PfPlan, String> {
    let Facts {
        state,
        wanted,
        entry,
        ..
    } = facts;
    let mut plan = PfPlan {
        change: None,
        notes: Vec::new(),
    };
    if wanted.external {
        return Ok(plan);
    }
    let label = label(state);
    if let Some(why) = &facts.wedged {
        return Err(why.clone());
    }
    if state.driver.is_none() {
        return Err(format!(
            "{label} has no driver, and without one no VFs; bind it to its driver"
        ));
    }
    if let Some(problem) = wanted.problems(state).first() {
        return Err(problem.to_string());
    }
    if state.num_vfs > 0 && !entry.ours(state.num_vfs) {
        return Err(format!(
            "{label} has {} VFs that Ferrovia did not make; adopt it (`ferrovia nic adopt {}`), call it external in \
             a policy, or remove the VFs",
            state.num_vfs, state.device
        ));
    }
    let target = target(facts, &mut plan.notes);
    let from = match &entry.operation {
        Some(operation) => operation.from.clone(),
        None => before(state),
    };
    let resuming = entry.operation.is_some();
    let steps = recipe::steps(state, facts.vfs, &target, &from, resuming);
    if !steps.is_empty() || resuming {
        plan.change = Some(Change {
            target,
            from,
            steps,
        });
    }
    Ok(plan)
}

fn target(facts: &Facts<'_>, notes: &mut Vec<String>) -> Target {
    let Facts {
        state,
        wanted,
        entry,
        ..
    } = facts;
    // VFs that have gone without our doing are still wanted.
    let kept = if entry.gone && entry.hold != Hold::None && state.num_vfs == 0 {
        entry.num_vfs
    } else {
        state.num_vfs
    };
    let count = wanted.num_vfs.as_ref().map_or(kept, |(n, _)| *n);
    let mtu = match (&wanted.mtu, state.mtu) {
        (Some((mtu, policy)), Some(now)) if *mtu < now => {
            // To lower it would be undone by the next who needs more, and done again, for ever (R19).
            notes.push(format!(
                "{} keeps MTU {now}, which carries the {mtu} of policy \"{policy}\" too",
                label(state)
            ));
            None
        }
        (wanted, _) => wanted.as_ref().map(|(mtu, _)| *mtu),
    };
    let mut target = Target {
        num_vfs: count,
        eswitch: wanted.eswitch.as_ref().map(|(mode, _)| *mode),
        mtu,
        up: count > 0,
        ..Target::default()
    };
    for index in 0..count {
        let vf = wanted.vf(index);
        let change = vf.defaults.change();
        if vf.pool.is_some() {
            target.pooled.push(index);
        } else if change != VfChange::default() {
            target.settings.push((index, change));
        }
    }
    target
}

/// How a PF is now, to go back to.
pub(crate) fn before(state: &PfState) -> Before {
    Before {
        model: Some((state.vendor, state.device_id)),
        num_vfs: state.num_vfs,
        autoprobe: state.autoprobe,
        eswitch: state.eswitch,
        mtu: state.mtu,
    }
}

/// The target that is how a PF was.
pub(crate) fn back_to(before: &Before) -> Target {
    Target {
        num_vfs: before.num_vfs,
        eswitch: before.eswitch,
        mtu: before.mtu,
        ..Target::default()
    }
}

/// Whom a change disturbs that takes VFs away. `holders` are the kernel's, by VF.
pub(crate) fn disturbed(
    state: &PfState,
    vfs: &[VfState],
    target: &Target,
    allocations: &[Allocation],
    holders: &[(u32, Vec<String>)],
) -> Vec<Disturbed> {
    let vf = |index| VfId {
        pf: state.device.clone(),
        index,
    };
    let mut found: Vec<Disturbed> = allocations
        .iter()
        .filter(|a| a.vf.pf == state.device)
        .map(|a| Disturbed {
            vf: a.vf.clone(),
            holder: a.owner.clone(),
        })
        .collect();
    for (index, names) in holders {
        found.extend(names.iter().map(|name| Disturbed {
            vf: vf(*index),
            holder: name.clone(),
        }));
    }
    // R21: the kernel removes representors and the rules on them, and says nothing.
    let to_legacy = state.eswitch == Some(EswitchMode::Switchdev)
        && target.eswitch == Some(EswitchMode::Legacy);
    if to_legacy {
        found.extend(vfs.iter().filter_map(|state| {
            let representor = state.representor.as_ref()?;
            Some(Disturbed {
                vf: vf(state.index),
                holder: format!("representor {representor} with its offload rules"),
            })
        }));
    }
    found.sort();
    found.dedup();
    found
}
