//! The manager: everything that the agent asks for, safe to call from several threads.

mod allocate;
mod error;
mod partition;
mod release;
pub(crate) mod shared;
mod unmet;
mod view;

pub use error::Error;
pub use view::{Ownership, PfView, VfView};

use crate::allocation::{Allocation, Released, Request};
use crate::device::Device;
use crate::health::Event;
use crate::journal::CrashPoints;
use crate::kernel::Kernel;
pub use crate::life::Patience;
use crate::plan::{Disturbed, Plan, Refusal};
use crate::policy::{self, Policy, PolicyProblem};
use serde::{Deserialize, Serialize};
use shared::Shared;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// How a manager is opened. Start from [`Options::new`].
#[derive(Clone)]
pub struct Options {
    /// Folder of the journal: `/var/lib/ferrovia/sriov`. Made where it is missing.
    pub dir: PathBuf,
    /// The kernel, or a fake one.
    pub kernel: Arc<dyn Kernel>,
    /// Root of the file system in which second owners (NetworkManager, systemd-networkd, the operator) are
    /// looked for: `/`.
    pub root: PathBuf,
    /// How long to wait for what the kernel does in its own time.
    pub patience: Patience,
    /// Where a test lets the process die.
    pub crash: CrashPoints,
}

impl Options {
    /// The usual ones.
    pub fn new(dir: impl Into<PathBuf>, kernel: Arc<dyn Kernel>) -> Options {
        Options {
            dir: dir.into(),
            kernel,
            root: "/".into(),
            patience: Patience::default(),
            crash: CrashPoints::from_env(),
        }
    }
}

/// What a start found begun, and did about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// In sentences, for the log.
    pub done: Vec<String>,
    /// What could not be finished or undone; it is tried again by [`Manager::reconcile`].
    pub open: Vec<String>,
}

/// How far an application is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The PF.
    pub device: Device,
    /// The step, from 1.
    pub step: usize,
    /// Of how many.
    pub of: usize,
    /// What is done now: "Make 4 VFs".
    pub what: String,
}

/// What an application did, PF by PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// PFs that were changed and are as wanted now.
    pub done: Vec<PfDone>,
    /// PFs that were not changed, and why.
    pub refused: Vec<Refusal>,
    /// PFs that are not as wanted although it was tried: what happened, what was undone.
    pub failed: Vec<Refusal>,
    /// What policies select and this host does not have now; no failure.
    pub warnings: Vec<Refusal>,
}

impl Applied {
    /// Whether everything is as wanted.
    pub fn complete(&self) -> bool {
        self.refused.is_empty() && self.failed.is_empty()
    }
}

/// A PF that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfDone {
    /// Which.
    pub device: Device,
    /// What was done, in order.
    pub steps: Vec<String>,
    /// VFs it has now.
    pub num_vfs: u32,
    /// Whom it disturbed, with force.
    pub disturbed: Vec<Disturbed>,
    /// Owners whose VF is no more.
    pub lost: Vec<Disturbed>,
}

/// Partitions NICs and hands out VFs. Methods block for as long as the kernel does: from async code, call
/// them on a thread for blocking work.
#[derive(Clone)]
pub struct Manager(Arc<Shared>);

impl Manager {
    /// Takes the folder, reads the journal, and finishes or undoes what was begun.
    ///
    /// # Errors
    /// The journal is in use, damaged, or cannot be written; the kernel does not say which boot this is.
    pub fn open(options: Options) -> Result<(Manager, Recovered), Error> {
        let shared = Shared::open(options)?;
        let recovered = shared.recover()?;
        Ok((Manager(Arc::new(shared)), recovered))
    }

    /// Replaces the policies: the whole set, or none of it. Nothing is changed on the NICs before
    /// [`Manager::apply`].
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn set_policies(&self, policies: Vec<Policy>) -> Result<(), Vec<PolicyProblem>> {
        let states = self.0.pf_states().map_err(|error| {
            vec![PolicyProblem {
                policy: String::new(),
                why: format!("the NICs could not be read: {error}"),
            }]
        })?;
        let mut problems = policy::check(&policies, &states);
        let plain = self.0.kernel.without_sriov().unwrap_or_default();
        let named = policies.iter();
        let named = named.flat_map(|policy| policy::without_sriov(policy, &plain));
        problems.extend(named.map(|(_, problem)| problem));
        if !problems.is_empty() {
            return Err(problems);
        }
        self.0.replace_policies(policies);
        Ok(())
    }

    /// What the policies in force select and this host does not have now, in sentences.
    ///
    /// # Errors
    /// The NICs cannot be read.
    pub fn warnings(&self) -> Result<Vec<Refusal>, Error> {
        Ok(self.0.unmet()?.warnings)
    }

    /// What [`Manager::apply`] would do.
    ///
    /// # Errors
    /// The NICs cannot be read.
    pub fn plan(&self) -> Result<Plan, Error> {
        self.0.plan()
    }

    /// Makes the NICs as the policies want them. Without `force`, what would disturb somebody is refused.
    /// What is refused or fails on one PF does not keep it from the others: see [`Applied::complete`].
    ///
    /// # Errors
    /// The journal cannot be written, or the NICs not be listed.
    pub fn apply(&self, force: bool, progress: &dyn Fn(&Progress)) -> Result<Applied, Error> {
        self.0.apply(None, force, progress)
    }

    /// As [`Manager::apply`], for some PFs only: NICs that are new.
    ///
    /// # Errors
    /// As there.
    pub fn apply_to(
        &self,
        pfs: &BTreeSet<Device>,
        force: bool,
        progress: &dyn Fn(&Progress),
    ) -> Result<Applied, Error> {
        self.0.apply(Some(pfs), force, progress)
    }

    /// Hands out a VF. Asking again for the same owner gives the same VF.
    ///
    /// # Errors
    /// Each in a sentence: none is free (and who has them), the NIC cannot do what is asked for, the kernel
    /// did something else. Nothing is handed out then.
    pub fn allocate(&self, request: &Request) -> Result<Allocation, Error> {
        self.0.allocate(request)
    }

    /// Takes a VF back: it is clean when this returns. An owner without a VF is no error.
    ///
    /// # Errors
    /// [`Error::Disturbs`] while it is in use, without `force`; [`Error::Unclean`] when it could not be
    /// cleaned: it is kept back, and tried again by [`Manager::reconcile`] or by calling this again.
    pub fn release(&self, owner: &str, force: bool) -> Result<Released, Error> {
        self.0.release(owner, force)
    }

    /// Every VF that is handed out or on its way, by owner.
    pub fn allocations(&self) -> Vec<Allocation> {
        self.0.allocations()
    }

    /// Every PF.
    ///
    /// # Errors
    /// The NICs cannot be read.
    pub fn pfs(&self) -> Result<Vec<PfView>, Error> {
        self.0.pf_views()
    }

    /// Every VF. A PF that is wedged shows none.
    ///
    /// # Errors
    /// The NICs cannot be read.
    pub fn vfs(&self) -> Result<Vec<VfView>, Error> {
        self.0.vf_views()
    }

    /// Puts a PF back to how it was before it was partitioned, and gives it up.
    ///
    /// # Errors
    /// [`Error::NotOurs`], [`Error::Disturbs`] without `force`, [`Error::Partition`].
    pub fn reset(&self, pf: &Device, force: bool) -> Result<PfDone, Error> {
        self.0.reset(pf, force)
    }

    /// Takes over a PF whose VFs somebody else made. Nothing is changed on it.
    ///
    /// # Errors
    /// It has no VFs, or is not there.
    pub fn adopt(&self, pf: &Device) -> Result<(), Error> {
        self.0.adopt(pf)
    }

    /// Gives up a PF and leaves it as it is.
    ///
    /// # Errors
    /// [`Error::Disturbs`] while VFs of it are handed out; [`Error::NotFound`] when it is not ours.
    pub fn disown(&self, pf: &Device) -> Result<(), Error> {
        self.0.disown(pf)
    }

    /// Looks what is gone, back or changed, and makes again what was there. To be called at each event of
    /// the kernel about a NIC, and now and then.
    ///
    /// # Errors
    /// The journal cannot be written, or the NICs not be listed. What fails on one PF is an event.
    pub fn reconcile(&self) -> Result<Vec<Event>, Error> {
        self.0.reconcile()
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> Receiver<Event> {
        self.0.subscribe()
    }
}
