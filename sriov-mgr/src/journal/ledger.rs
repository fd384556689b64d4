//! The state that the records make: which PFs are ours, what was begun on them, who has which VF.

use super::record::{Before, Hold, Operation, Record};
use crate::allocation::{Allocation, Identity};
use crate::device::{Device, VfId};
use crate::recipe::Step;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that must not be forgotten. No number of an IOMMU group is in it (R11).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// The boot that it is about.
    pub(crate) boot: String,
    /// The last serial number given to an allocation.
    pub(crate) serial: u64,
    /// What we know of PFs.
    pub(crate) pfs: BTreeMap<Device, PfEntry>,
    /// Who has which VF, by owner.
    pub(crate) allocations: BTreeMap<String, Allocation>,
}

/// What we know of a PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PfEntry {
    /// Whose it is.
    pub(crate) hold: Hold,
    /// How often its VFs were made, as far as we know.
    pub(crate) creation: u64,
    /// VFs it had when we last changed it.
    pub(crate) num_vfs: u32,
    /// They have gone since, without our doing. VFs that are there now are not ours.
    pub(crate) gone: bool,
    /// How it was before we first changed it.
    pub(crate) before: Before,
    /// What is under way.
    pub(crate) operation: Option<Operation>,
}

impl Ledger {
    /// Takes in what has happened. A record about something unknown changes nothing.
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Whole { ledger } => *self = (**ledger).clone(),
            Record::Boot { boot } => {
                self.boot.clone_from(boot);
                self.pfs.values_mut().for_each(PfEntry::lose_vfs);
            }
            Record::Begin { pf, operation } => {
                let entry = self.pfs.entry(pf.clone()).or_default();
                if entry.hold == Hold::None {
                    entry.before = operation.from.clone();
                }
                entry.operation = Some(operation.clone());
                entry.step_begins();
            }
            Record::Step { pf, at } => {
                if let Some(entry) = self.pfs.get_mut(pf)
                    && let Some(operation) = &mut entry.operation
                {
                    operation.at = *at;
                    entry.step_begins();
                }
            }
            Record::End { pf, num_vfs, hold } => {
                if let Some(entry) = self.pfs.get_mut(pf) {
                    entry.operation = None;
                    entry.num_vfs = *num_vfs;
                    entry.hold = *hold;
                    entry.gone = false;
                }
            }
            Record::Adopt {
                pf,
                num_vfs,
                before,
            } => {
                let entry = self.pfs.entry(pf.clone()).or_default();
                entry.hold = Hold::Adopted;
                entry.num_vfs = *num_vfs;
                entry.before = before.clone();
                entry.gone = false;
            }
            Record::Disown { pf } => {
                if let Some(entry) = self.pfs.get_mut(pf) {
                    // The count stays: a number once given to VFs is not given again.
                    *entry = PfEntry {
                        creation: entry.creation,
                        ..PfEntry::default()
                    };
                }
            }
            Record::Gone { pf } => self.pfs.entry(pf.clone()).or_default().lose_vfs(),
            Record::Allocate { .. }
            | Record::Phase { .. }
            | Record::Renew { .. }
            | Record::Free { .. } => self.apply_allocation(record),
        }
    }

    fn apply_allocation(&mut self, record: &Record) {
        match record {
            Record::Allocate { allocation } => {
                self.serial = self.serial.max(allocation.serial);
                let owner = allocation.owner.clone();
                self.allocations.insert(owner, (**allocation).clone());
            }
            Record::Phase { owner, phase } => {
                if let Some(allocation) = self.allocations.get_mut(owner) {
                    allocation.phase = *phase;
                }
            }
            Record::Renew {
                owner,
                identity,
                address,
            } => {
                if let Some(allocation) = self.allocations.get_mut(owner) {
                    allocation.identity = identity.clone();
                    allocation.address = *address;
                }
            }
            Record::Free { owner } => {
                self.allocations.remove(owner);
            }
            _ => {}
        }
    }

    /// Who has `vf`.
    pub(crate) fn owner_of(&self, vf: &VfId) -> Option<&Allocation> {
        self.allocations.values().find(|a| a.vf == *vf)
    }

    /// Allocations on `pf`, by VF.
    pub(crate) fn on(&self, pf: &Device) -> Vec<Allocation> {
        let on_pf = self.allocations.values().filter(|a| a.vf.pf == *pf);
        let mut found: Vec<Allocation> = on_pf.cloned().collect();
        found.sort_by_key(|a| a.vf.index);
        found
    }

    /// What is known of `pf`.
    pub(crate) fn pf(&self, pf: &Device) -> PfEntry {
        self.pfs.get(pf).cloned().unwrap_or_default()
    }

    /// Which VFs `pf` has now, as we know them.
    pub(crate) fn identity(&self, pf: &Device) -> Identity {
        Identity {
            boot: self.boot.clone(),
            creation: self.pfs.get(pf).map_or(0, |entry| entry.creation),
        }
    }
}

impl PfEntry {
    fn lose_vfs(&mut self) {
        self.creation += 1;
        self.gone = true;
    }

    /// Whether a PF that shows `num_vfs` VFs is ours to change: we made these, or it has none.
    pub(crate) fn ours(&self, num_vfs: u32) -> bool {
        let same = num_vfs == self.num_vfs && (!self.gone || self.hold == Hold::Adopted);
        self.operation.is_some() || self.hold != Hold::None && (same || num_vfs == 0)
    }

    /// VFs that are made are other VFs than those before, also when it does not come to that.
    fn step_begins(&mut self) {
        let step = self.operation.as_ref().and_then(|o| o.steps.get(o.at));
        if matches!(step, Some(Step::MakeVfs(_))) {
            self.creation += 1;
        }
    }
}
