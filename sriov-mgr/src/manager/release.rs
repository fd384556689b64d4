//! Taking a VF back: its user is gone → unbind → reset → defaults → read back → free. Until the last it is
//! nobody else's.

use super::Error;
use super::shared::Shared;
use crate::allocation::{Allocation, Phase, Released};
use crate::health::Event;
use crate::journal::{Ledger, Record};
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
        if !self.still(&allocation) {
            return Ok(released);
        }
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

    /// Whether an allocation that was looked up before a lock was had is still there: who had the PF to itself may
    /// have freed it, and the VF be another owner's by now.
    pub(crate) fn still(&self, allocation: &Allocation) -> bool {
        let now = |ledger: &Ledger| Some(ledger.allocations.get(&allocation.owner)?.serial);
        self.store.read(now) == Some(allocation.serial)
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
        // A VF that is not there has nothing to clean, and nothing to be written down. One that cannot be looked
        // at is on its way back from here on, so that it is tried again.
        let there = self.kernel.vf(&vf.pf, vf.index);
        if !matches!(there, Err(KernelError::Gone { .. })) {
            self.phase(allocation, Phase::Unbinding)?;
        }
        there?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::Request;
    use crate::kernel::fake::{FakeKernel, FakePf};
    use crate::manager::{Manager, Options};
    use crate::policy::Policy;
    use std::sync::Arc;
    use std::time::Duration;

    /// R5, where the VF changes hands while the release waits for the PF.
    #[test]
    fn what_was_freed_while_a_release_waited_is_not_touched() {
        let kernel = FakeKernel::builder()
            .pf(FakePf::igb("0000:01:00.0", "eth0"))
            .build();
        let dir = tempfile::tempdir().unwrap();
        let (manager, _) = Manager::open(Options {
            root: dir.path().into(),
            ..Options::new(dir.path(), kernel.clone())
        })
        .unwrap();
        let policy = Policy {
            name: "p".into(),
            num_vfs: Some(1),
            pool: Some("net".into()),
            ..Policy::default()
        };
        manager.set_policies(vec![policy]).unwrap();
        manager.apply(false, &|_| {}).unwrap();
        let request = |owner: &str| Request {
            owner: owner.into(),
            ..Request::default()
        };
        let had = manager.allocate(&request("a")).unwrap();
        let shared = Arc::clone(&manager.0);
        let lock = shared.pf_lock(&had.vf.pf);
        let alone = lock.write().unwrap();
        let late = std::thread::spawn(move || (manager.release("a", false), manager));
        // It has looked the allocation up, and waits.
        std::thread::sleep(Duration::from_millis(100));
        let next = Allocation {
            owner: "b".into(),
            serial: had.serial + 1,
            request: request("b"),
            ..had
        };
        shared.write(Record::Free { owner: "a".into() }).unwrap();
        let allocation = Box::new(next.clone());
        shared.write(Record::Allocate { allocation }).unwrap();
        kernel.forget_calls();
        drop(alone);
        let (released, manager) = late.join().unwrap();
        assert_eq!(released.unwrap().vf, None);
        assert_eq!(kernel.writes(), [""; 0]);
        assert_eq!(manager.allocations(), [next]);
    }
}
