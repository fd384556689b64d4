//! What happens to PFs and VFs without our doing, and what is done about it.
//!
//! [`Shared::reconcile`] compares what there is with what the journal says there should be: VFs that have gone
//! (the PF was removed, rescanned or reset; the host was started anew) are made again as the policies want
//! them, and those that are handed out get their settings and drivers again. VFs that somebody else made in
//! the meantime are reported and left alone. Whatever would take a VF from somebody is left to
//! [`Manager::apply`](crate::Manager::apply).

use crate::allocation::{Allocation, Phase};
use crate::device::{Device, VfId};
use crate::journal::{Hold, PfEntry, Record, Target};
use crate::kernel::{KernelError, PfState, VfState};
use crate::life::wait_for;
use crate::manager::Error;
use crate::manager::shared::{Shared, lock};
use crate::plan::{Disturbed, Facts, before, plan_pf};
use crate::policy::label;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A PF that has VFs of ours, or is to have them, is not there.
    PfGone {
        /// Which.
        pf: Device,
    },
    /// It is there again.
    PfBack {
        /// Which.
        pf: Device,
    },
    /// It has no driver (for longer than a change of drivers takes).
    DriverGone {
        /// Which.
        pf: Device,
    },
    /// Nothing is written to it any more: an operation has not returned.
    PfWedged {
        /// Which.
        pf: Device,
        /// What hangs.
        why: String,
    },
    /// The operation that hung has returned.
    PfAnswers {
        /// Which.
        pf: Device,
    },
    /// A PF has counted PCI errors (AER), or its driver's health reporters say something new (devlink).
    Health {
        /// Which.
        pf: Device,
        /// What is new, and where to read more.
        what: String,
    },
    /// All VFs of a PF have gone.
    VfsGone {
        /// Which PF.
        pf: Device,
        /// How many it had.
        count: u32,
    },
    /// VFs were made, for the first time or again.
    VfsMade {
        /// Which PF.
        pf: Device,
        /// How many.
        count: u32,
    },
    /// Somebody else changed the number of VFs.
    Drift {
        /// Which PF.
        pf: Device,
        /// What is not as it was left, and what to do.
        why: String,
    },
    /// A VF in use had lost its settings or driver; it has them again.
    Restored {
        /// Which VF.
        vf: VfId,
        /// Whose.
        owner: String,
        /// What it had lost.
        what: String,
    },
    /// A VF was handed out.
    Allocated {
        /// Which VF.
        vf: VfId,
        /// To whom.
        owner: String,
    },
    /// A VF was given back and is clean.
    Freed {
        /// Which VF.
        vf: VfId,
        /// Whose it was.
        owner: String,
    },
    /// A VF in use is no more: its PF has fewer now.
    Lost {
        /// Which VF.
        vf: VfId,
        /// Whose it was.
        owner: String,
    },
    /// Something could not be done; it is tried again at the next reconciliation.
    Failed {
        /// The PF.
        pf: Device,
        /// What, and why.
        why: String,
    },
}

/// What was last said of a PF: each thing is said once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    gone: bool,
    wedged: bool,
    without_driver: bool,
    problem: Option<String>,
}

/// VFs that are no more, and what could not be restored.
type Restored = (Vec<Disturbed>, Vec<String>);

impl Shared {
    /// One round over all PFs that the journal or a policy is about.
    pub(crate) fn reconcile(&self) -> Result<Vec<Event>, Error> {
        let mut pfs: BTreeSet<Device> = self.store.read(|ledger| {
            let ours = ledger
                .pfs
                .iter()
                .filter(|(_, entry)| entry.hold != Hold::None || entry.operation.is_some());
            let used = ledger.allocations.values().map(|a| a.vf.pf.clone());
            ours.map(|(pf, _)| pf.clone()).chain(used).collect()
        });
        let matched = self.pf_states()?;
        let matched = matched.iter().filter(|state| self.wanted(state).is_some());
        pfs.extend(matched.map(|state| state.device.clone()));
        let mut events = Vec::new();
        for pf in pfs {
            let mut round = Round {
                shared: self,
                pf: &pf,
                events: &mut events,
            };
            match round.run() {
                Ok(()) => {}
                Err(Error::Journal(error)) => return Err(error.into()),
                Err(error) => round.problem(error.to_string()),
            }
        }
        self.look_at_errors(&mut events)?;
        Ok(events)
    }

    /// Gives every VF of `pf` that is handed out what it has lost; the caller has the PF to itself. Those
    /// from `beyond` on are no more.
    pub(crate) fn restore_all(&self, pf: &Device, beyond: Option<u32>) -> Result<Restored, Error> {
        let (mut lost, mut failed) = (Vec::new(), Vec::new());
        let count = self.kernel.pf(pf)?.num_vfs;
        for allocation in self.store.read(|ledger| ledger.on(pf)) {
            let vf = &allocation.vf;
            if beyond.is_some_and(|first| vf.index >= first) {
                self.write(Record::Free {
                    owner: allocation.owner.clone(),
                })?;
                self.tell(&Event::Lost {
                    vf: vf.clone(),
                    owner: allocation.owner.clone(),
                });
                lost.push(Disturbed {
                    vf: vf.clone(),
                    holder: allocation.owner,
                });
                continue;
            }
            if allocation.phase != Phase::InUse || vf.index >= count {
                continue;
            }
            match self.restore(&allocation) {
                Ok(None) => {}
                Ok(Some(what)) => self.tell(&Event::Restored {
                    vf: vf.clone(),
                    owner: allocation.owner,
                    what,
                }),
                Err(Error::Journal(error)) => return Err(error.into()),
                Err(error) => failed.push(format!(
                    "{vf} of {} could not be given its settings again: {error}",
                    allocation.owner
                )),
            }
        }
        Ok((lost, failed))
    }

    /// Gives a VF what it has lost (R13, R14); `None`: nothing.
    fn restore(&self, allocation: &Allocation) -> Result<Option<String>, Error> {
        let (vf, life) = (&allocation.vf, self.life());
        let identity = self.store.read(|ledger| ledger.identity(&vf.pf));
        let anew = identity != allocation.identity;
        let mut state = self.kernel.vf(&vf.pf, vf.index)?;
        let driver_lost = |state: &VfState| {
            let bound = state.driver.as_deref();
            let wanted = allocation.driver.filter(|_| state.address.is_some());
            wanted.is_some_and(|driver| !driver.is_that(bound))
        };
        if driver_lost(&state) && !anew {
            // Away for a moment is not lost (R4).
            let back = wait_for(self.patience.driver, || {
                let state = self.kernel.vf(&vf.pf, vf.index)?;
                Ok((!driver_lost(&state)).then_some(state))
            })?;
            state = match back {
                Some(state) => state,
                None => self.kernel.vf(&vf.pf, vf.index)?,
            };
        }
        let driver_lost = driver_lost(&state);
        let lacking = allocation.settings.lacking(&state.settings);
        if !anew && !driver_lost && lacking.is_none() {
            return Ok(None);
        }
        let mut what: Vec<String> = lacking.into_iter().collect();
        let holders = self.kernel.holders(&vf.pf, vf.index)?;
        let again = (anew || driver_lost) && holders.is_empty();
        if again {
            life.unbind(vf)?;
        }
        life.configure(vf, &allocation.settings)?;
        if again {
            life.bind(vf, allocation.driver)?;
            what.extend(allocation.driver.map(|_| "its driver".to_owned()));
        } else if driver_lost {
            return Err(Error::Unsupported(format!(
                "it has another driver ({}) than {} asked for, and is in use by {}; end that",
                state.driver.as_deref().unwrap_or("none"),
                allocation.owner,
                holders.join(", ")
            )));
        }
        self.write(Record::Renew {
            owner: allocation.owner.clone(),
            identity,
            address: self.kernel.vf(&vf.pf, vf.index)?.address,
        })?;
        if what.is_empty() {
            what.push("nothing, though it was made anew".into());
        }
        Ok(Some(what.join(", ")))
    }
}

/// One round over one PF.
struct Round<'a> {
    shared: &'a Shared,
    pf: &'a Device,
    events: &'a mut Vec<Event>,
}

impl Round<'_> {
    fn say(&mut self, event: Event) {
        self.shared.tell(&event);
        self.events.push(event);
    }

    /// Says something once, until it is another thing.
    fn problem(&mut self, why: String) {
        let new = {
            let mut seen = lock(&self.shared.seen);
            let seen = seen.entry(self.pf.clone()).or_default();
            let new = seen.problem.as_ref() != Some(&why);
            seen.problem = Some(why.clone());
            new
        };
        if new {
            let pf = self.pf.clone();
            self.say(Event::Failed { pf, why });
        }
    }

    /// Notes a state of the PF; whether it is another than before.
    fn changed(&self, which: fn(&mut Seen) -> &mut bool, now: bool) -> bool {
        let mut seen = lock(&self.shared.seen);
        let flag = which(seen.entry(self.pf.clone()).or_default());
        std::mem::replace(flag, now) != now
    }

    fn run(&mut self) -> Result<(), Error> {
        let pf = self.pf.clone();
        match self.shared.kernel.pf(&pf) {
            Ok(_) => {
                if self.changed(|seen| &mut seen.gone, false) {
                    self.say(Event::PfBack { pf: pf.clone() });
                }
            }
            Err(KernelError::Gone { .. }) => {
                if self.changed(|seen| &mut seen.gone, true) {
                    self.say(Event::PfGone { pf });
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(why) = self.shared.kernel.wedged(&pf) {
            if self.changed(|seen| &mut seen.wedged, true) {
                self.say(Event::PfWedged { pf, why });
            }
            return Ok(());
        }
        if self.changed(|seen| &mut seen.wedged, false) {
            self.say(Event::PfAnswers { pf: pf.clone() });
        }
        let state = self.shared.settled(&pf)?;
        if state.driver.is_none() {
            if self.changed(|seen| &mut seen.without_driver, true) {
                self.say(Event::DriverGone { pf });
            }
            return Ok(());
        }
        self.changed(|seen| &mut seen.without_driver, false);
        let lock = self.shared.pf_lock(&pf);
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        self.alone()
    }

    /// What is done with the PF to itself.
    fn alone(&mut self) -> Result<(), Error> {
        let entry = self.shared.store.read(|ledger| ledger.pf(self.pf));
        if let Some(operation) = entry.operation {
            let (target, from) = (operation.target, operation.from);
            self.shared
                .operate(self.pf, target, from, operation.then, &|_| {})?;
        }
        self.made_again()?;
        self.finish_releases()?;
        let beyond = self.never_again()?;
        let (_, failed) = self.shared.restore_all(self.pf, beyond)?;
        if failed.is_empty() {
            self.well();
        }
        for why in failed {
            self.problem(why);
        }
        Ok(())
    }

    /// From which number on VFs will not be there again: the PF has as many as the policies want.
    fn never_again(&self) -> Result<Option<u32>, Error> {
        let state = self.shared.kernel.pf(self.pf)?;
        let wanted = self.shared.wanted(&state).filter(|w| !w.external);
        let count = wanted.and_then(|wanted| wanted.num_vfs);
        Ok(count
            .map(|(count, _)| count)
            .filter(|n| *n == state.num_vfs))
    }

    fn well(&self) {
        if let Some(seen) = lock(&self.shared.seen).get_mut(self.pf) {
            seen.problem = None;
        }
    }

    /// Makes VFs again that have gone without our doing; says so when somebody else made others.
    fn made_again(&mut self) -> Result<(), Error> {
        let state = self.shared.kernel.pf(self.pf)?;
        let entry = self.shared.store.read(|ledger| ledger.pf(self.pf));
        if entry.hold == Hold::None || entry.num_vfs == 0 {
            return Ok(());
        }
        let pf = self.pf.clone();
        if !entry.ours(state.num_vfs) {
            let drift = format!(
                "{pf} has {} VFs, and Ferrovia made {}: somebody else changed it. Adopt it (`ferrovia nic adopt {pf}`), \
                 or remove the VFs",
                state.num_vfs, entry.num_vfs
            );
            let new = {
                let mut seen = lock(&self.shared.seen);
                let seen = seen.entry(pf.clone()).or_default();
                seen.problem.replace(drift.clone()) != Some(drift.clone())
            };
            if new {
                self.say(Event::Drift { pf, why: drift });
            }
            return Ok(());
        }
        if state.num_vfs > 0 {
            return Ok(());
        }
        if !entry.gone {
            let count = entry.num_vfs;
            self.shared.write(Record::Gone { pf: pf.clone() })?;
            self.say(Event::VfsGone { pf, count });
        }
        self.make(&state)
    }

    fn make(&mut self, state: &PfState) -> Result<(), Error> {
        let entry = self.shared.store.read(|ledger| ledger.pf(self.pf));
        let target = match self.target(state, &entry) {
            Ok(Some(target)) if target.num_vfs > 0 => target,
            Ok(_) => return Ok(()),
            Err(why) => {
                self.problem(why);
                return Ok(());
            }
        };
        let done = self
            .shared
            .operate(self.pf, target, before(state), entry.hold, &|_| {})?;
        self.events.push(Event::VfsMade {
            pf: self.pf.clone(),
            count: done.num_vfs,
        });
        Ok(())
    }

    /// What the policies want; without any, what there was.
    fn target(&self, state: &PfState, entry: &PfEntry) -> Result<Option<Target>, String> {
        let Some(wanted) = self.shared.wanted(state) else {
            // Cards are moved, and then addresses change at the next start.
            let model = entry.before.model;
            if model.is_some_and(|model| model != (state.vendor, state.device_id)) {
                return Err(format!(
                    "{} is another NIC than the one that had {} VFs at this address, and no policy selects it; select \
                     it in a policy, or give the address up (`ferrovia nic disown {}`)",
                    label(state),
                    entry.num_vfs,
                    state.device
                ));
            }
            return Ok(Some(Target {
                num_vfs: entry.num_vfs,
                up: true,
                ..Target::default()
            }));
        };
        let facts = Facts {
            state,
            vfs: &[],
            wanted: &wanted,
            entry,
            wedged: None,
        };
        Ok(plan_pf(&facts)?.change.map(|change| change.target))
    }

    /// VFs that were kept back because they could not be cleaned, or not be made ready and not be undone.
    fn finish_releases(&mut self) -> Result<(), Error> {
        let stuck = self.shared.store.read(|ledger| ledger.on(self.pf));
        for allocation in stuck.iter().filter(|a| a.phase != Phase::InUse) {
            // Whoever has the PF to itself has no other call about its VFs beside it.
            let held = self.shared.holders_left(allocation)?;
            if !held.is_empty() {
                self.problem(format!(
                    "{} of {} is to be released, and {} still uses it",
                    allocation.vf,
                    allocation.owner,
                    held.join(", ")
                ));
                continue;
            }
            match self.shared.take_back(allocation) {
                Ok(_) => self.events.push(Event::Freed {
                    vf: allocation.vf.clone(),
                    owner: allocation.owner.clone(),
                }),
                Err(Error::Journal(error)) => return Err(error.into()),
                Err(error) => self.problem(error.to_string()),
            }
        }
        Ok(())
    }
}
