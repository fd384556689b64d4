//! PFs and VFs as the manager shows them: what the kernel says, beside what the journal and the policies say.

use super::Error;
use super::shared::Shared;
use crate::allocation::Allocation;
use crate::allocation::Phase;
use crate::device::VfId;
use crate::journal::Hold;
use crate::kernel::{KernelError, PfState, VfState};
use serde::{Deserialize, Serialize};

/// Who made the VFs of a PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// We did.
    Ours,
    /// Somebody else did, and we were told to take them over.
    Adopted,
    /// Somebody else does, and a policy says that we may hand them out.
    External,
    /// Somebody else did: not touched.
    Foreign,
    /// There are none.
    None,
}

/// A PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfView {
    /// What the kernel says.
    pub state: PfState,
    /// Who made its VFs.
    pub ownership: Ownership,
    /// The policies that match it, strongest first.
    pub policies: Vec<String>,
    /// The pools its VFs are in.
    pub pools: Vec<String>,
    /// VFs that are handed out.
    pub allocated: u32,
    /// Why nothing is written to it, where that is so.
    pub wedged: Option<String>,
    /// What is not well, in sentences; empty: it is well.
    pub problems: Vec<String>,
}

/// A VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfView {
    /// Which.
    pub id: VfId,
    /// What the kernel says.
    pub state: VfState,
    /// The pool it is in.
    pub pool: Option<String>,
    /// To whom it is handed out.
    pub owner: Option<String>,
    /// Where in its life it is, while it is handed out or on its way.
    pub phase: Option<Phase>,
    /// Who has it open, as the kernel says.
    pub holders: Vec<String>,
}

impl Shared {
    pub(crate) fn allocations(&self) -> Vec<Allocation> {
        self.store
            .read(|ledger| ledger.allocations.values().cloned().collect())
    }

    pub(crate) fn pf_views(&self) -> Result<Vec<PfView>, Error> {
        Ok(self
            .pf_states()?
            .into_iter()
            .map(|s| self.pf_view(s))
            .collect())
    }

    fn pf_view(&self, state: PfState) -> PfView {
        let pf = &state.device;
        let wanted = self.wanted(&state);
        let (entry, allocated) = self
            .store
            .read(|ledger| (ledger.pf(pf), ledger.on(pf).len() as u32));
        let external = wanted.as_ref().is_some_and(|wanted| wanted.external);
        let ownership = match entry.hold {
            _ if external => Ownership::External,
            _ if entry.operation.is_some() => Ownership::Ours,
            Hold::None if state.num_vfs == 0 => Ownership::None,
            Hold::Made if entry.ours(state.num_vfs) => Ownership::Ours,
            Hold::Adopted if entry.ours(state.num_vfs) => Ownership::Adopted,
            _ => Ownership::Foreign,
        };
        let wedged = self.kernel.wedged(pf);
        let mut problems: Vec<String> = wedged.iter().cloned().collect();
        if state.driver.is_none() {
            problems.push("It has no driver".into());
        }
        if entry.operation.is_some() {
            problems.push("A change of it is not finished".into());
        }
        if ownership == Ownership::Foreign && entry.hold != Hold::None {
            problems.push(format!(
                "It has {} VFs, and Ferrovia made {}: somebody else changed it",
                state.num_vfs, entry.num_vfs
            ));
        }
        if state.num_vfs > 0 && state.driver.is_some() && !state.up {
            problems.push("Its interface is down: its VFs have no carrier".into());
        }
        PfView {
            policies: wanted.as_ref().map_or(Vec::new(), |w| w.policies()),
            pools: wanted.as_ref().map_or(Vec::new(), |w| w.pools()),
            ownership,
            allocated,
            wedged,
            problems,
            state,
        }
    }

    pub(crate) fn vf_views(&self) -> Result<Vec<VfView>, Error> {
        let (mut views, mut failed) = (Vec::new(), None);
        for state in self.pf_states()? {
            let pf = &state.device;
            if state.num_vfs == 0 || self.kernel.wedged(pf).is_some() {
                continue;
            }
            let wanted = self.wanted(&state);
            let allocations = self.store.read(|ledger| ledger.on(pf));
            let found = self
                .vf_states(pf)
                .and_then(|vfs| Ok((vfs, self.kernel.all_holders(pf)?)));
            let (vfs, mut holders) = match found {
                Ok(found) => found,
                Err(KernelError::Gone { .. } | KernelError::Wedged { .. }) => continue,
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
            };
            for vf in vfs {
                let allocation = allocations.iter().find(|a| a.vf.index == vf.index);
                views.push(VfView {
                    id: VfId {
                        pf: pf.clone(),
                        index: vf.index,
                    },
                    pool: wanted.as_ref().and_then(|w| w.vf(vf.index).pool),
                    owner: allocation.map(|a| a.owner.clone()),
                    phase: allocation.map(|a| a.phase),
                    holders: holders.remove(&vf.index).unwrap_or_default(),
                    state: vf,
                });
            }
        }
        match failed {
            Some(error) if views.is_empty() => Err(error.into()),
            _ => Ok(views),
        }
    }
}
