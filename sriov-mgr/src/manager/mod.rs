//! The manager: everything that the agent asks for, safe to call from several threads.

mod error;
mod view;

pub use error::Error;
pub use view::{Ownership, PfView, VfView};

use crate::allocation::{Allocation, Released, Request};
use crate::device::Device;
use crate::health::Event;
use crate::kernel::Kernel;
use crate::plan::{Disturbed, Plan, Refusal};
use crate::policy::{Policy, PolicyProblem};
use serde::{Deserialize, Serialize};
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
}

impl Options {
    /// The usual ones.
    pub fn new(dir: impl Into<PathBuf>, kernel: Arc<dyn Kernel>) -> Options {
        Options {
            dir: dir.into(),
            kernel,
            root: "/".into(),
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

struct Shared;

impl Manager {
    /// Takes the folder, reads the journal, and finishes or undoes what was begun.
    pub fn open(options: Options) -> Result<(Manager, Recovered), Error> {
        drop(options);
        Err(Error::Unavailable("The manager"))
    }

    /// Replaces the policies: the whole set, or none of it. Nothing is changed on the NICs before
    /// [`Manager::apply`].
    pub fn set_policies(&self, policies: Vec<Policy>) -> Result<(), Vec<PolicyProblem>> {
        let _ = (&self.0, policies);
        Ok(())
    }

    /// What [`Manager::apply`] would do.
    pub fn plan(&self) -> Result<Plan, Error> {
        Err(Error::Unavailable("Planning"))
    }

    /// Makes the NICs as the policies want them. Without `force`, what would disturb somebody is refused.
    pub fn apply(&self, force: bool, progress: &dyn Fn(&Progress)) -> Result<Applied, Error> {
        let _ = (force, progress);
        Err(Error::Unavailable("Partitioning"))
    }

    /// Hands out a VF. Asking again for the same owner gives the same VF.
    pub fn allocate(&self, request: &Request) -> Result<Allocation, Error> {
        let _ = request;
        Err(Error::Unavailable("Allocation"))
    }

    /// Takes a VF back: it is clean when this returns. An owner without a VF is no error.
    pub fn release(&self, owner: &str, force: bool) -> Result<Released, Error> {
        let _ = (owner, force);
        Err(Error::Unavailable("Release"))
    }

    /// Every VF that is handed out or on its way, by owner.
    pub fn allocations(&self) -> Vec<Allocation> {
        Vec::new()
    }

    /// Every PF.
    pub fn pfs(&self) -> Result<Vec<PfView>, Error> {
        Err(Error::Unavailable("The list of PFs"))
    }

    /// Every VF.
    pub fn vfs(&self) -> Result<Vec<VfView>, Error> {
        Err(Error::Unavailable("The list of VFs"))
    }

    /// Puts a PF back to how it was before it was partitioned, and gives it up.
    pub fn reset(&self, pf: &Device, force: bool) -> Result<PfDone, Error> {
        let _ = (pf, force);
        Err(Error::Unavailable("Reset"))
    }

    /// Takes over a PF whose VFs somebody else made. Nothing is changed on it.
    pub fn adopt(&self, pf: &Device) -> Result<(), Error> {
        let _ = pf;
        Err(Error::Unavailable("Adoption"))
    }

    /// Gives up a PF and leaves it as it is. Refused while VFs of it are handed out.
    pub fn disown(&self, pf: &Device) -> Result<(), Error> {
        let _ = pf;
        Err(Error::Unavailable("Disowning"))
    }

    /// Looks what is gone, back or changed, and makes again what was there. To be called at each event of
    /// the kernel about a NIC, and now and then.
    pub fn reconcile(&self) -> Result<Vec<Event>, Error> {
        Err(Error::Unavailable("Reconciliation"))
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> Receiver<Event> {
        std::sync::mpsc::channel().1
    }
}
