//! What a start does about what the last run had begun: changes of PFs are finished (or undone, when the kernel
//! refuses now), VFs that nobody has been told of yet are made free again, and releases go on.

use crate::allocation::Allocation;
use crate::device::Device;
use crate::journal::{Operation, Record};
use crate::manager::shared::Shared;
use crate::manager::{Error, Recovered};
use std::sync::PoisonError;

impl Shared {
    /// Nobody else uses the manager yet.
    pub(crate) fn recover(&self) -> Result<Recovered, Error> {
        let mut recovered = Recovered::default();
        self.new_boot(&mut recovered)?;
        let begun: Vec<(Device, Operation)> = self.store.read(|ledger| {
            let pfs = ledger.pfs.iter();
            pfs.filter_map(|(pf, entry)| Some((pf.clone(), entry.operation.clone()?)))
                .collect()
        });
        for (pf, operation) in begun {
            self.recover_pf(&pf, operation, &mut recovered)?;
        }
        for allocation in self.allocations() {
            self.recover_vf(&allocation, &mut recovered)?;
        }
        self.clear_traces(&mut recovered);
        Ok(recovered)
    }

    /// After a start of the host no VF of before is there, and what was begun on them has ended.
    fn new_boot(&self, recovered: &mut Recovered) -> Result<(), Error> {
        let boot = self.kernel.boot_id()?;
        let (last, begun) = self.store.read(|ledger| {
            let pfs = ledger.pfs.iter();
            let begun: Vec<(Device, Operation)> = pfs
                .filter_map(|(pf, entry)| Some((pf.clone(), entry.operation.clone()?)))
                .collect();
            (ledger.boot.clone(), begun)
        });
        if last == boot {
            return Ok(());
        }
        if !last.is_empty() {
            for (pf, operation) in begun {
                self.write(Record::End {
                    pf,
                    num_vfs: operation.target.num_vfs,
                    hold: operation.then,
                })?;
            }
            let text = "The host was started anew: VFs are made again by the next reconciliation";
            recovered.done.push(text.into());
        }
        Ok(self.write(Record::Boot { boot })?)
    }

    fn recover_pf(
        &self,
        pf: &Device,
        operation: Operation,
        recovered: &mut Recovered,
    ) -> Result<(), Error> {
        let lock = self.pf_lock(pf);
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = self.kernel.wedged(pf) {
            recovered.open.push(why);
            return Ok(());
        }
        let (target, from) = (operation.target, operation.from);
        match self.operate(pf, target, from, operation.then, &|_| {}) {
            Ok(done) => recovered.done.push(format!(
                "The change of {pf} that was cut off is finished: it has {} VFs",
                done.num_vfs
            )),
            Err(Error::Journal(error)) => return Err(error.into()),
            Err(error) => recovered.open.push(error.to_string()),
        }
        Ok(())
    }

    fn recover_vf(&self, allocation: &Allocation, recovered: &mut Recovered) -> Result<(), Error> {
        let (vf, owner) = (&allocation.vf, &allocation.owner);
        if allocation.phase == crate::allocation::Phase::InUse {
            return Ok(());
        }
        let held = self.holders_left(allocation);
        match held {
            Ok(held) if held.is_empty() => {}
            Ok(held) => {
                recovered.open.push(format!(
                    "{vf}, which {owner} was being given or giving back, is in use by {}; it is kept back until \
                     that has ended",
                    held.join(", ")
                ));
                return Ok(());
            }
            Err(error) => {
                recovered.open.push(error.to_string());
                return Ok(());
            }
        }
        match self.take_back(allocation) {
            Ok(_) if allocation.phase.releasing() => recovered
                .done
                .push(format!("The release of {vf} by {owner} is finished")),
            Ok(_) => recovered.done.push(format!(
                "{vf} is free again: {owner} had not been told that it has it"
            )),
            Err(Error::Journal(error)) => return Err(error.into()),
            Err(error) => recovered.open.push(error.to_string()),
        }
        Ok(())
    }

    /// A change of drivers that was cut off leaves a driver_override on a VF without a driver (R12). Only on
    /// free VFs of PFs that are ours.
    fn clear_traces(&self, recovered: &mut Recovered) {
        // NICs come and go, also now: what cannot be read is no reason not to manage the others.
        let states = self.pf_states().unwrap_or_else(|error| {
            recovered.open.push(error.to_string());
            Vec::new()
        });
        for state in states {
            let pf = &state.device;
            let ours = self.store.read(|ledger| ledger.pf(pf).ours(state.num_vfs));
            if !ours || state.num_vfs == 0 || self.kernel.wedged(pf).is_some() {
                continue;
            }
            let allocations = self.store.read(|ledger| ledger.on(pf));
            let vfs = self.vf_states(pf).unwrap_or_else(|error| {
                recovered.open.push(error.to_string());
                Vec::new()
            });
            for vf in vfs {
                let free = allocations.iter().all(|a| a.vf.index != vf.index);
                let (Some(address), Some(driver)) = (vf.address, &vf.driver_override) else {
                    continue;
                };
                if !free || vf.driver.is_some() {
                    continue;
                }
                match self.kernel.set_driver_override(address, None) {
                    Ok(()) => recovered.done.push(format!(
                        "{pf}#{} ({address}) may be bound to any driver again, not only {driver}",
                        vf.index
                    )),
                    Err(error) => recovered.open.push(error.to_string()),
                }
            }
        }
    }
}
