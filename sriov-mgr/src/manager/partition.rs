//! Changing PFs: planning, doing it step by step, going back when it does not work.

use super::shared::Shared;
use super::{Applied, Error, PfDone, Progress};
use crate::device::Device;
use crate::health::Event;
use crate::journal::{Before, Hold, Operation, Record, Target};
use crate::kernel::{KernelError, PfState, VfState};
use crate::life::{retry_busy, wait_for};
use crate::plan::{
    Change, Disturbed, Facts, Plan, PlannedStep, Refusal, back_to, before, disturbed, plan_pf,
};
use crate::policy::label;
use crate::recipe::{self, Step};
use crate::second_owner;
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// Hears how far a change is.
pub(crate) type Listener<'a> = &'a dyn Fn(&Progress);

/// A change that was looked at closely: whom it disturbs.
struct Judged {
    state: PfState,
    change: Option<Change>,
    notes: Vec<String>,
    disturbs: Vec<Disturbed>,
}

impl Shared {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        for device in self.kernel.pfs()? {
            let refusal = |why| Refusal {
                device: Some(device.clone()),
                why,
            };
            match self.judge(&device) {
                Ok(Ok(Some(judged))) => {
                    plan.notes.extend(judged.notes.into_iter().map(refusal));
                    let steps = judged.change.map(|change| change.steps).unwrap_or_default();
                    plan.steps.extend(steps.into_iter().map(|step| PlannedStep {
                        device: device.clone(),
                        what: step.to_string(),
                        disturbs: if step.disturbs() {
                            judged.disturbs.clone()
                        } else {
                            Vec::new()
                        },
                        step,
                    }));
                }
                Ok(Ok(None)) => {}
                Ok(Err(why)) => plan.refused.push(refusal(why)),
                // It went while it was looked at, or fails: the plan for the others stands.
                Err(error) => plan.refused.push(refusal(error.to_string())),
            }
        }
        let matched: Vec<PfState> = self
            .pf_states()?
            .into_iter()
            .filter(|state| self.wanted(state).is_some_and(|wanted| !wanted.external))
            .collect();
        plan.foreign = second_owner::find(&self.root, &matched);
        let unmet = self.unmet()?;
        plan.refused.extend(unmet.refused);
        plan.warnings = unmet.warnings;
        Ok(plan)
    }

    pub(crate) fn apply(
        &self,
        only: Option<&BTreeSet<Device>>,
        force: bool,
        progress: Listener<'_>,
    ) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut pfs = self.kernel.pfs()?;
        match only {
            Some(only) => pfs.retain(|pf| only.contains(pf)),
            None => {
                let unmet = self.unmet()?;
                (applied.refused, applied.warnings) = (unmet.refused, unmet.warnings);
            }
        }
        for pf in pfs {
            let refusal = |why| Refusal {
                device: Some(pf.clone()),
                why,
            };
            let lock = self.pf_lock(&pf);
            let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
            let judged = match self.judge(&pf) {
                Ok(Ok(Some(judged))) => judged,
                Ok(Ok(None)) => continue,
                Ok(Err(why)) => {
                    applied.refused.push(refusal(why));
                    continue;
                }
                Err(Error::Journal(error)) => return Err(error.into()),
                Err(error) => {
                    applied.failed.push(refusal(error.to_string()));
                    continue;
                }
            };
            let Some(change) = judged.change else {
                continue;
            };
            if !judged.disturbs.is_empty() && !force {
                let what = format!("Changing {}", label(&judged.state));
                let disturbs = judged.disturbs;
                let error = Error::Disturbs { what, disturbs };
                applied.refused.push(refusal(error.to_string()));
                continue;
            }
            match self.operate(&pf, change.target, change.from, Hold::Made, progress) {
                Ok(mut done) => {
                    done.disturbed = judged.disturbs;
                    applied.done.push(done);
                }
                Err(Error::Journal(error)) => return Err(error.into()),
                Err(error) => applied.failed.push(refusal(error.to_string())),
            }
        }
        Ok(applied)
    }

    /// What is to be done about `pf` and whom it disturbs; `None`: no policy is about it.
    fn judge(&self, pf: &Device) -> Result<Result<Option<Judged>, String>, Error> {
        let state = self.settled(pf)?;
        let Some(wanted) = self.wanted(&state) else {
            return Ok(Ok(None));
        };
        let wedged = self.kernel.wedged(pf);
        let vfs = match wedged {
            None if state.num_vfs > 0 && !wanted.external => self.vf_states(pf)?,
            _ => Vec::new(),
        };
        let entry = self.store.read(|ledger| ledger.pf(pf));
        let facts = Facts {
            state: &state,
            vfs: &vfs,
            wanted: &wanted,
            entry: &entry,
            wedged,
        };
        let planned = match plan_pf(&facts) {
            Ok(planned) => planned,
            Err(why) => return Ok(Err(why)),
        };
        let disturbs = match &planned.change {
            Some(change) => self.whom(&state, &vfs, &change.target, &change.steps)?,
            None => Vec::new(),
        };
        Ok(Ok(Some(Judged {
            state,
            change: planned.change,
            notes: planned.notes,
            disturbs,
        })))
    }

    fn whom(
        &self,
        state: &PfState,
        vfs: &[VfState],
        target: &Target,
        steps: &[Step],
    ) -> Result<Vec<Disturbed>, Error> {
        if vfs.is_empty() || !steps.iter().any(Step::disturbs) {
            return Ok(Vec::new());
        }
        let all = self.kernel.all_holders(&state.device)?;
        let holders: Vec<(u32, Vec<String>)> = all.into_iter().collect();
        let allocations = self.store.read(|ledger| ledger.on(&state.device));
        Ok(disturbed(state, vfs, target, &allocations, &holders))
    }

    /// The PF's state; a driver that is away for a moment is waited for (R4).
    pub(crate) fn settled(&self, pf: &Device) -> Result<PfState, Error> {
        let settled = wait_for(self.patience.driver, || {
            let state = self.kernel.pf(pf)?;
            Ok(state.driver.is_some().then_some(state))
        })?;
        match settled {
            Some(state) => Ok(state),
            None => Ok(self.kernel.pf(pf)?),
        }
    }

    /// Puts a PF back to how it was before we first changed it, and gives it up.
    pub(crate) fn reset(&self, pf: &Device, force: bool) -> Result<PfDone, Error> {
        let lock = self.pf_lock(pf);
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        let state = self.kernel.pf(pf)?;
        let entry = self.store.read(|ledger| ledger.pf(pf));
        if !entry.ours(state.num_vfs) {
            return Err(Error::NotOurs {
                device: pf.clone(),
                why: "Ferrovia has not partitioned it, and so does not reset it".into(),
            });
        }
        let target = back_to(&entry.before);
        let vfs = self.vf_states(pf)?;
        let steps = recipe::steps(&state, &vfs, &target, &entry.before, false);
        let disturbs = self.whom(&state, &vfs, &target, &steps)?;
        if !disturbs.is_empty() && !force {
            let what = format!("Resetting {}", label(&state));
            return Err(Error::Disturbs { what, disturbs });
        }
        let mut done = self.operate(pf, target, entry.before, Hold::None, &|_| {})?;
        done.disturbed = disturbs;
        Ok(done)
    }

    /// Makes `pf` what `target` says. The caller has the PF to itself and has asked whoever is disturbed.
    /// A change that was cut off is gone on with by calling this with what its record says.
    pub(crate) fn operate(
        &self,
        pf: &Device,
        target: Target,
        from: Before,
        then: Hold,
        progress: Listener<'_>,
    ) -> Result<PfDone, Error> {
        let entry = self.store.read(|ledger| ledger.pf(pf));
        let resuming = entry.operation.is_some();
        let failed = match self.operate_once(pf, &target, &from, then, resuming, progress) {
            Ok(done) => return Ok(done),
            Err(Stopped::Open(error)) => return Err(error),
            Err(Stopped::Failed { step, error }) => (step, error),
        };
        let (step, error) = failed;
        // Somebody else made VFs in between: these are not ours to remove (R2).
        let state = self.kernel.pf(pf)?;
        let making = matches!(step, Step::MakeVfs(_));
        if making && error.errno() == Some(libc::EBUSY) && state.num_vfs > 0 {
            // What is ours to put back: whoever made them counts on their drivers.
            if state.autoprobe != from.autoprobe {
                self.kernel.set_autoprobe(pf, from.autoprobe)?;
            }
            let num_vfs = 0;
            self.write(Record::End {
                pf: pf.clone(),
                num_vfs,
                hold: Hold::None,
            })?;
            return Err(partition(
                pf,
                format!(
                    "{error}; somebody else made {} VFs at the same time, which are left alone; find out who, then \
                     apply again or adopt it",
                    state.num_vfs
                ),
            ));
        }
        let back = self.back(&state, &target, &from);
        let why = match self.operate_once(pf, &back, &from, entry.hold, true, progress) {
            Ok(_) => format!("{error}; it is as it was before"),
            Err(Stopped::Open(undo)) => return Err(undo),
            Err(Stopped::Failed { error: undo, .. }) => {
                let state = self.kernel.pf(pf)?;
                self.write(Record::End {
                    pf: pf.clone(),
                    num_vfs: state.num_vfs,
                    hold: then,
                })?;
                format!(
                    "{error}; going back to how it was failed too ({undo}): it has {} VFs now",
                    state.num_vfs
                )
            }
        };
        self.restore_all(pf, None)?;
        Err(partition(pf, why))
    }

    /// How the PF was, with the VFs of pools without a driver as they were then.
    fn back(&self, state: &PfState, target: &Target, from: &Before) -> Target {
        let wanted = self.wanted(state);
        let in_pool = |index: &u32| {
            let pool = wanted.as_ref().and_then(|wanted| wanted.vf(*index).pool);
            pool.is_some() || target.pooled.contains(index)
        };
        Target {
            pooled: (0..from.num_vfs).filter(in_pool).collect(),
            settings: target.settings.clone(),
            ..back_to(from)
        }
    }

    fn operate_once(
        &self,
        pf: &Device,
        target: &Target,
        from: &Before,
        then: Hold,
        resuming: bool,
        progress: Listener<'_>,
    ) -> Result<PfDone, Stopped> {
        let state = self.kernel.pf(pf).map_err(|e| Stopped::Open(e.into()))?;
        let vfs = self.vf_states(pf).map_err(|e| Stopped::Open(e.into()))?;
        let steps = recipe::steps(&state, &vfs, target, from, resuming);
        self.journal(Record::Begin {
            pf: pf.clone(),
            operation: Operation {
                target: target.clone(),
                from: from.clone(),
                steps: steps.clone(),
                at: 0,
                then,
            },
        })?;
        for (at, step) in steps.iter().enumerate() {
            if at > 0 {
                self.journal(Record::Step { pf: pf.clone(), at })?;
            }
            progress(&Progress {
                device: pf.clone(),
                step: at + 1,
                of: steps.len(),
                what: step.to_string(),
            });
            self.step(pf, step).map_err(|error| match error {
                // What hangs may still happen; what is not there cannot be put back. Both are gone on
                // with when the PF answers again.
                KernelError::Wedged { .. } | KernelError::Gone { .. } => Stopped::Open(partition(
                    pf,
                    format!("{error}. The change is finished when the PF answers again"),
                )),
                error => Stopped::Failed {
                    step: step.clone(),
                    error,
                },
            })?;
        }
        self.finish(pf, target, then, &steps)
    }

    /// Compares what there is with what was asked for (partial success is no success), and gives VFs that
    /// are handed out their settings again.
    fn finish(
        &self,
        pf: &Device,
        target: &Target,
        then: Hold,
        steps: &[Step],
    ) -> Result<PfDone, Stopped> {
        let state = self.kernel.pf(pf).map_err(|e| Stopped::Open(e.into()))?;
        if steps.iter().any(|step| matches!(step, Step::MakeVfs(_))) {
            self.tell(&Event::VfsMade {
                pf: pf.clone(),
                count: state.num_vfs,
            });
        }
        let (lost, failed) = self
            .restore_all(pf, Some(target.num_vfs))
            .map_err(Stopped::Open)?;
        // Not before: a start after a crash in between gives them their settings.
        self.journal(Record::End {
            pf: pf.clone(),
            num_vfs: state.num_vfs,
            hold: then,
        })?;
        let mut short = failed;
        if state.num_vfs != target.num_vfs {
            short.push(format!(
                "{} VFs were asked for, and the kernel made {} without an error (driver {})",
                target.num_vfs,
                state.num_vfs,
                state.driver.as_deref().unwrap_or("none")
            ));
        }
        if let Some(mode) = target.eswitch.filter(|mode| Some(*mode) != state.eswitch) {
            short.push(format!("The eswitch is not in {mode:?} mode").to_lowercase());
        }
        if let Some(mtu) = target.mtu.filter(|mtu| Some(*mtu) != state.mtu) {
            short.push(format!("MTU {mtu} was asked for, {:?} is there", state.mtu));
        }
        if !short.is_empty() {
            return Err(Stopped::Open(partition(pf, short.join("; "))));
        }
        Ok(PfDone {
            device: pf.clone(),
            steps: steps.iter().map(Step::to_string).collect(),
            num_vfs: state.num_vfs,
            disturbed: Vec::new(),
            lost,
        })
    }

    fn journal(&self, record: Record) -> Result<(), Stopped> {
        self.write(record)
            .map_err(|error| Stopped::Open(error.into()))
    }

    /// One step of a recipe.
    fn step(&self, pf: &Device, step: &Step) -> Result<(), KernelError> {
        let kernel = &self.kernel;
        let busy = self.patience.busy;
        match step {
            Step::Mtu(mtu) => retry_busy(busy, || kernel.set_mtu(pf, *mtu)),
            Step::Up => retry_busy(busy, || kernel.set_up(pf, true)),
            Step::Autoprobe(on) => kernel.set_autoprobe(pf, *on),
            Step::RemoveVfs(_) => retry_busy(busy, || kernel.set_num_vfs(pf, 0)),
            Step::MakeVfs(count) => self.make_vfs(pf, *count),
            Step::AwaitVfs(_) => self.await_vfs(pf),
            Step::UnbindVfs => {
                for vf in self.vf_states(pf)? {
                    if let (Some(address), Some(_)) = (vf.address, vf.driver) {
                        kernel.unbind(address)?;
                    }
                }
                Ok(())
            }
            Step::Eswitch(mode) => retry_busy(busy, || kernel.set_eswitch(pf, *mode)),
            Step::BindVfs(vfs) => {
                for index in vfs {
                    if let Some(address) = kernel.vf(pf, *index)?.address {
                        kernel.probe(address)?;
                    }
                }
                Ok(())
            }
            Step::Settings { index, change } => {
                retry_busy(busy, || kernel.set_vf(pf, *index, change))
            }
        }
    }

    /// EBUSY while there are VFs is somebody else's doing and does not end by waiting.
    fn make_vfs(&self, pf: &Device, count: u32) -> Result<(), KernelError> {
        let mut taken = None;
        retry_busy(self.patience.busy, || {
            match self.kernel.set_num_vfs(pf, count) {
                Err(error)
                    if error.errno() == Some(libc::EBUSY) && self.kernel.pf(pf)?.num_vfs > 0 =>
                {
                    taken = Some(error);
                    Ok(())
                }
                other => other,
            }
        })?;
        taken.map_or(Ok(()), Err)
    }

    /// Waits until every VF that the kernel says it made is a function in sysfs (R3).
    fn await_vfs(&self, pf: &Device) -> Result<(), KernelError> {
        let shown = wait_for(self.patience.links, || {
            let count = self.kernel.pf(pf)?.num_vfs as usize;
            let vfs = self.vf_states(pf)?;
            let functions = vfs.iter().filter(|vf| vf.address.is_some()).count();
            let enough = pf.pci().is_none() || functions == count;
            Ok((vfs.len() == count && enough).then_some(()))
        })?;
        shown.ok_or_else(|| KernelError::Failed {
            device: pf.to_string(),
            what: "Waiting for its VFs".into(),
            why: format!(
                "sysfs does not show them {} s after they were made",
                self.patience.links.as_secs()
            ),
        })
    }

    pub(crate) fn adopt(&self, pf: &Device) -> Result<(), Error> {
        let lock = self.pf_lock(pf);
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        let state = self.kernel.pf(pf)?;
        if state.num_vfs == 0 {
            return Err(Error::Invalid(format!(
                "{} has no VFs to adopt; partition it with a policy",
                label(&state)
            )));
        }
        let entry = self.store.read(|ledger| ledger.pf(pf));
        if entry.ours(state.num_vfs) && !entry.gone {
            return Ok(());
        }
        Ok(self.write(Record::Adopt {
            pf: pf.clone(),
            num_vfs: state.num_vfs,
            before: before(&state),
        })?)
    }

    pub(crate) fn disown(&self, pf: &Device) -> Result<(), Error> {
        let lock = self.pf_lock(pf);
        let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
        self.store.decide(|ledger| {
            if !ledger.pfs.contains_key(pf) {
                return Err(Error::NotFound(format!("{pf} is not Ferrovia's")));
            }
            let disturbs: Vec<Disturbed> = ledger
                .on(pf)
                .into_iter()
                .map(|a| Disturbed {
                    vf: a.vf,
                    holder: a.owner,
                })
                .collect();
            if disturbs.is_empty() {
                return Ok((Some(Record::Disown { pf: pf.clone() }), ()));
            }
            let what = format!("Giving up {pf}");
            Err(Error::Disturbs { what, disturbs })
        })
    }
}

/// Why a change did not get to its end.
enum Stopped {
    /// The kernel refused: it is undone.
    Failed { step: Step, error: KernelError },
    /// It stays as it is, for now or for good.
    Open(Error),
}

fn partition(pf: &Device, why: String) -> Error {
    Error::Partition {
        device: pf.clone(),
        why,
    }
}
