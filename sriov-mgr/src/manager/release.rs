//! Taking a VF back: its user is gone → unbind → reset → defaults → read back → free. Until the last it is
//! nobody else's.

use super::Error;
use super::shared::Shared;
use crate::allocation::{Allocation, Phase, Released};
use crate::health::Event;
use crate::journal::Record;
use crate::kernel::KernelError;
use crate::life::wait_for;
use crate::plan::Disturbed;
use crate::policy::VfDriver;
use std::sync::PoisonError;

impl Shared {
    pub(crate) fn release(&self, owner: &str, force: bool) -> Result<Released, Error> {
        let _turn = self.turn(owner);
        let mut released = Released {
            owner: owner.to_owned(),
            vf: None,
            notes: Vec::new(),
        };
        // Found by owner: a late call cannot hit a VF that has another owner by now (R5).
        let found = self
            .store
            .read(|ledger| ledger.allocations.get(owner).cloned());
        let Some(allocation) = found else {
            return Ok(released);
        };
        let lock = self.pf_lock(&allocation.vf.pf);
        let _reading = lock.read().unwrap_or_else(PoisonError::into_inner);
        let holders = self.holders_left(&allocation)?;
        if !holders.is_empty() && !force {
            let disturbed = |holder| Disturbed {
                vf: allocation.vf.clone(),
                holder,
            };
            return Err(Error::Disturbs {
                what: format!("Releasing {} of {owner}", allocation.vf),
                disturbs: holders.into_iter().map(disturbed).collect(),
            });
        }
        released.notes.extend(
            holders
                .iter()
                .map(|holder| format!("{holder} still used it")),
        );
        released.notes.extend(self.take_back(&allocation)?);
        released.vf = Some(allocation.vf);
        Ok(released)
    }

    /// Who still uses a VF after it was given time to be let go.
    pub(crate) fn holders_left(&self, allocation: &Allocation) -> Result<Vec<String>, Error> {
        let vf = &allocation.vf;
        let mut left = Vec::new();
        let gone = wait_for(self.patience.holders, || {
            left = match self.kernel.holders(&vf.pf, vf.index) {
                Err(KernelError::Gone { .. }) => Vec::new(),
                other => other?,
            };
            Ok(left.is_empty().then_some(()))
        })?;
        Ok(if gone.is_some() { Vec::new() } else { left })
    }

    /// Makes an allocated VF free: each part is written down before it is done, and can be done again.
    /// The caller has the owner's turn and the PF's lock, or nobody else is there yet.
    pub(crate) fn take_back(&self, allocation: &Allocation) -> Result<Vec<String>, Error> {
        let vf = &allocation.vf;
        let notes = match self.clean_steps(allocation) {
            Ok(notes) => notes,
            Err(Error::Journal(error)) => return Err(error.into()),
            Err(error) => match self.kernel.vf(&vf.pf, vf.index) {
                Err(KernelError::Gone { .. }) => vec![format!("{vf} is not there any more")],
                _ => {
                    return Err(Error::Unclean {
                        vf: vf.clone(),
                        why: error.to_string(),
                    });
                }
            },
        };
        self.write(Record::Free {
            owner: allocation.owner.clone(),
        })?;
        self.tell(&Event::Freed {
            vf: vf.clone(),
            owner: allocation.owner.clone(),
        });
        Ok(notes)
    }

    fn clean_steps(&self, allocation: &Allocation) -> Result<Vec<String>, Error> {
        let (life, vf) = (self.life(), &allocation.vf);
        let mut notes = Vec::new();
        // A VF that is not there has nothing to clean, and nothing to be written down.
        self.kernel.vf(&vf.pf, vf.index)?;
        self.phase(allocation, Phase::Unbinding)?;
        life.unbind(vf)?;
        self.phase(allocation, Phase::Resetting)?;
        match life.reset(vf) {
            Ok(()) => {}
            Err(error) if matches!(error.errno(), Some(libc::ENOTTY | libc::EOPNOTSUPP)) => {
                notes.push(format!("{vf} has no way to be reset ({error})"));
            }
            Err(error) => return Err(error.into()),
        }
        self.phase(allocation, Phase::Cleaning)?;
        life.clean(vf, &allocation.settings)?;
        if allocation.was_bound
            && let Err(error) = life.bind(vf, Some(VfDriver::Kernel))
        {
            notes.push(error.to_string());
        }
        Ok(notes)
    }
}
