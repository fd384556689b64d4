//! The running host's kernel: sysfs, rtnetlink VF attributes and devlink, each operation in a helper process
//! with a deadline.
//!
//! [`RealKernel`] is the agent's side. What the operations do is in [`act`], what they read in `look`; both run
//! in the helper.

pub(crate) mod act;
pub(crate) mod devlink;
pub(crate) mod holders;
pub(crate) mod links;
pub(crate) mod look;
pub(crate) mod namespaces;
#[cfg(test)]
pub(crate) mod testtree;
pub(crate) mod tree;
pub(crate) mod vf_attributes;
pub(crate) mod wire;

use super::{EswitchMode, Kernel, KernelError, PfHealth, PfState, VfChange, VfState};
use crate::address::PciAddress;
use crate::device::Device;
use crate::helper::{HelperCommand, Lane, Request};
use crate::vfio::Force;
use act::{Action, Answer};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tree::Tree;

/// The kernel of this host.
pub struct RealKernel {
    command: HelperCommand,
    deadline: Duration,
    /// Dangers of VFIO that the operator accepts by name.
    accepted: Vec<Force>,
    tree: Tree,
    /// Two helpers a PF: reads go on while a change is made.
    lanes: Mutex<HashMap<(Device, bool), Arc<Lane>>>,
}

impl RealKernel {
    /// With helpers started by `command`, which are given up when they have not answered within `deadline`.
    pub fn new(command: HelperCommand, deadline: Duration) -> RealKernel {
        RealKernel {
            command,
            deadline,
            accepted: Vec::new(),
            tree: Tree(PathBuf::from("/")),
            lanes: Mutex::new(HashMap::new()),
        }
    }

    /// Gives functions to vfio-pci in spite of these dangers.
    pub fn accepting(mut self, dangers: Vec<Force>) -> RealKernel {
        self.accepted = dangers;
        self
    }

    fn lane(&self, pf: &Device, reads: bool) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry((pf.clone(), reads));
        Arc::clone(lane.or_insert_with(|| Arc::new(Lane::new(self.command.clone(), self.deadline))))
    }

    fn ask(&self, pf: &Device, action: Action) -> Result<Answer, KernelError> {
        let reads = action.reads();
        // A device that is not there gets no helpers, or anybody who asks could start any number of them.
        look::present(&self.tree, pf)?;
        if let (false, Some((what, after))) = (reads, self.hangs(pf)) {
            return Err(KernelError::Wedged {
                device: pf.to_string(),
                what,
                after,
            });
        }
        self.lane(pf, reads).ask(&Request {
            device: pf.clone(),
            action,
            // It must answer before we give it up.
            patience: self.deadline / 2,
        })
    }

    fn change(&self, pf: &Device, action: Action) -> Result<(), KernelError> {
        match self.ask(pf, action)? {
            Answer::Done => Ok(()),
            other => Err(senseless(pf, &other)),
        }
    }

    /// A change to a PCI function goes through the helper of its PF.
    fn change_function(&self, function: PciAddress, action: Action) -> Result<(), KernelError> {
        self.change(&self.pf_of(function)?, action)
    }

    /// The PF of a function; itself where it is no VF.
    fn pf_of(&self, function: PciAddress) -> Result<Device, KernelError> {
        let dir = look::present(&self.tree, &Device::Pci(function))?;
        let pf = dir.link_name("physfn").and_then(|name| name.parse().ok());
        Ok(Device::Pci(pf.unwrap_or(function)))
    }

    /// The change to `pf` that hangs.
    fn hangs(&self, pf: &Device) -> Option<(String, Duration)> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.get(&(pf.clone(), false)).cloned();
        drop(lanes);
        lane?.stuck()
    }
}

fn senseless(pf: &Device, answer: &Answer) -> KernelError {
    KernelError::Failed {
        device: pf.to_string(),
        what: "Asking the helper process".into(),
        why: format!("it answered something else: {answer:?}")
            .chars()
            .take(200)
            .collect(),
    }
}

impl Kernel for RealKernel {
    fn boot_id(&self) -> Result<String, KernelError> {
        let file = self.tree.0.join("proc/sys/kernel/random/boot_id");
        let id = std::fs::read_to_string(&file).map_err(|error| KernelError::Failed {
            device: "this host".into(),
            what: "Reading the boot's id".into(),
            why: format!("{}: {error}", file.display()),
        })?;
        Ok(id.trim().to_owned())
    }

    fn pfs(&self) -> Result<Vec<Device>, KernelError> {
        Ok(self.tree.pfs())
    }

    fn without_sriov(&self) -> Result<Vec<PfState>, KernelError> {
        Ok(look::without_sriov(&self.tree))
    }

    fn pf(&self, pf: &Device) -> Result<PfState, KernelError> {
        // Reading sriov_numvfs waits for the one that writes it.
        let cautious = self.hangs(pf).is_some();
        match self.ask(pf, Action::Pf { cautious })? {
            Answer::Pf(state) => Ok(state),
            other => Err(senseless(pf, &other)),
        }
    }

    fn health(&self, pf: &Device) -> Result<PfHealth, KernelError> {
        self.not_hanging(pf)?;
        match self.ask(pf, Action::Health)? {
            Answer::Health(health) => Ok(health),
            other => Err(senseless(pf, &other)),
        }
    }

    fn vfs(&self, pf: &Device) -> Result<Vec<VfState>, KernelError> {
        self.not_hanging(pf)?;
        match self.ask(pf, Action::Vfs)? {
            Answer::Vfs(vfs) => Ok(vfs),
            other => Err(senseless(pf, &other)),
        }
    }

    fn vf(&self, pf: &Device, index: u32) -> Result<VfState, KernelError> {
        self.not_hanging(pf)?;
        match self.ask(pf, Action::Vf(index))? {
            Answer::Vfs(mut vfs) if vfs.len() == 1 => Ok(vfs.remove(0)),
            other => Err(senseless(pf, &other)),
        }
    }

    fn set_autoprobe(&self, pf: &Device, on: bool) -> Result<(), KernelError> {
        self.change(pf, Action::Autoprobe(on))
    }

    fn set_num_vfs(&self, pf: &Device, count: u32) -> Result<(), KernelError> {
        self.change(pf, Action::NumVfs(count))
    }

    fn set_eswitch(&self, pf: &Device, mode: EswitchMode) -> Result<(), KernelError> {
        self.change(pf, Action::Eswitch(mode))
    }

    fn set_mtu(&self, pf: &Device, mtu: u32) -> Result<(), KernelError> {
        self.change(pf, Action::Mtu(mtu))
    }

    fn set_up(&self, pf: &Device, up: bool) -> Result<(), KernelError> {
        self.change(pf, Action::Up(up))
    }

    fn set_vf(&self, pf: &Device, index: u32, change: &VfChange) -> Result<(), KernelError> {
        self.change(pf, Action::SetVf(index, change.clone()))
    }

    fn unbind(&self, function: PciAddress) -> Result<(), KernelError> {
        self.change_function(function, Action::Unbind(function))
    }

    fn set_driver_override(
        &self,
        function: PciAddress,
        driver: Option<&str>,
    ) -> Result<(), KernelError> {
        let driver = driver.map(str::to_owned);
        self.change_function(function, Action::DriverOverride(function, driver))
    }

    fn probe(&self, function: PciAddress) -> Result<(), KernelError> {
        self.change_function(function, Action::Probe(function))
    }

    fn reset(&self, function: PciAddress) -> Result<(), KernelError> {
        self.change_function(function, Action::Reset(function))
    }

    fn vfio_obstacles(&self, function: PciAddress) -> Result<Vec<String>, KernelError> {
        let pf = self.pf_of(function)?;
        let accepted = self.accepted.clone();
        match self.ask(&pf, Action::VfioObstacles { function, accepted })? {
            Answer::VfioObstacles(obstacles) => Ok(obstacles),
            other => Err(senseless(&pf, &other)),
        }
    }

    fn holders(&self, pf: &Device, index: u32) -> Result<Vec<String>, KernelError> {
        match self.ask(pf, Action::Holders(index))? {
            Answer::Holders(holders) => Ok(holders),
            other => Err(senseless(pf, &other)),
        }
    }

    fn all_holders(&self, pf: &Device) -> Result<BTreeMap<u32, Vec<String>>, KernelError> {
        match self.ask(pf, Action::AllHolders)? {
            Answer::AllHolders(holders) => Ok(holders),
            other => Err(senseless(pf, &other)),
        }
    }

    fn wedged(&self, pf: &Device) -> Option<String> {
        let (what, after) = self.hangs(pf).or_else(|| self.changed_by_another(pf))?;
        let device = pf.to_string();
        Some(
            KernelError::Wedged {
                device,
                what,
                after,
            }
            .to_string(),
        )
    }
}

impl RealKernel {
    /// Reading the VFs takes locks that an operation which hangs may hold.
    fn not_hanging(&self, pf: &Device) -> Result<(), KernelError> {
        match self.hangs(pf) {
            Some((what, after)) => Err(KernelError::Wedged {
                device: pf.to_string(),
                what,
                after,
            }),
            None => Ok(()),
        }
    }

    /// A change that the helper of an earlier agent has not ended.
    fn changed_by_another(&self, pf: &Device) -> Option<(String, Duration)> {
        // Our own helper has the lock while it works: it is looked at while none of ours does.
        let changed = || act::is_being_changed(&self.tree, pf);
        let there = look::present(&self.tree, pf).is_ok();
        let changed = there && self.lane(pf, false).while_idle(changed).unwrap_or(false);
        changed.then(|| (act::BUSY_ELSEWHERE.to_owned(), Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Many ports get their VFs at the same time, and each call looks whether the PF is free to change.
    #[test]
    fn those_who_look_at_a_pf_together_do_not_take_each_other_for_a_change() {
        let root = testtree::igb(1);
        // A helper that has the lock on the device for a moment, as each change has.
        let pf_dir = root.path().join("sys/bus/pci/devices/0000:01:00.0");
        let script = format!(
            r#"while read -r line; do flock {0} sleep 0.02; echo '{{"Ok":"done"}}'; done"#,
            pf_dir.display()
        );
        let command = HelperCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
        };
        let mut kernel = RealKernel::new(command, Duration::from_secs(60));
        kernel.tree = Tree(root.path().to_owned());
        let pf: Device = "0000:01:00.0".parse().unwrap();
        let ended = AtomicBool::new(false);
        let seen: Vec<String> = std::thread::scope(|scope| {
            let look = || {
                let mut seen = None;
                while !ended.load(Ordering::Relaxed) {
                    seen = seen.or_else(|| kernel.wedged(&pf));
                }
                seen
            };
            let looking = [scope.spawn(look), scope.spawn(look)];
            for _ in 0..20 {
                kernel.set_autoprobe(&pf, false).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
            let seen = looking.into_iter().map(|one| one.join().unwrap());
            seen.flatten().collect()
        });
        assert_eq!(seen, [""; 0]);
        // What somebody else does is seen all the same.
        let dir = std::fs::File::open(&pf_dir).unwrap();
        let lock = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusive).unwrap();
        assert!(kernel.wedged(&pf).is_some());
        drop(lock);
        assert_eq!(kernel.wedged(&pf), None);
    }
}
