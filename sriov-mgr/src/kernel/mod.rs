//! What the manager asks of the kernel: one trait, so that the life cycle is the same code on the real
//! kernel and on a fake one that fails where a test wants it to.
//!
//! Every operation is one thing the kernel does. What must be done in which order, what is retried and
//! what is written down first is the manager's business, not this module's.

pub mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod real;
mod state;

pub use state::{
    EswitchMode, PfHealth, PfState, Rate, VfChange, VfLinkState, VfSettings, VfState, Vlan,
    VlanProtocol,
};

use crate::address::PciAddress;
use crate::device::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The kernel's part in partitioning NICs.
///
/// Calls may come from several threads. A write to a PF that does not answer within its deadline gives
/// [`KernelError::Wedged`], at once also for every later write to that PF until
/// [`Kernel::wedged`] says otherwise; reads of other PFs go on.
pub trait Kernel: Send + Sync {
    /// What names this boot (`/proc/sys/kernel/random/boot_id`): VFs, IOMMU group numbers and driver
    /// overrides of another boot are gone.
    fn boot_id(&self) -> Result<String, KernelError>;

    /// Every device that can have VFs, in order.
    fn pfs(&self) -> Result<Vec<Device>, KernelError>;

    /// NICs that cannot have VFs, as PFs whose most is 0: a policy that names one is told so. VFs are none of
    /// them. Reads nothing that can block.
    fn without_sriov(&self) -> Result<Vec<PfState>, KernelError>;

    /// One PF as it is now, without its VFs' settings.
    fn pf(&self, pf: &Device) -> Result<PfState, KernelError>;

    /// Errors that the PF counts and its driver reports.
    fn health(&self, pf: &Device) -> Result<PfHealth, KernelError>;

    /// Every VF of `pf` with its settings, in the order of their numbers (`IFLA_VFINFO_LIST`; where the
    /// answer does not fit a message, VF by VF).
    fn vfs(&self, pf: &Device) -> Result<Vec<VfState>, KernelError>;

    /// One VF.
    fn vf(&self, pf: &Device, index: u32) -> Result<VfState, KernelError>;

    /// Whether new VFs are bound to their driver by themselves (`sriov_drivers_autoprobe`).
    fn set_autoprobe(&self, pf: &Device, on: bool) -> Result<(), KernelError>;

    /// Makes or removes VFs (`sriov_numvfs`). The kernel refuses a change between two counts that are
    /// both not zero. It may make fewer and say nothing: read back. May block for as long as somebody
    /// holds a VF open.
    fn set_num_vfs(&self, pf: &Device, count: u32) -> Result<(), KernelError>;

    /// Switches the eswitch's mode (devlink).
    fn set_eswitch(&self, pf: &Device, mode: EswitchMode) -> Result<(), KernelError>;

    /// Sets the MTU of the PF's interface, bytes.
    fn set_mtu(&self, pf: &Device, mtu: u32) -> Result<(), KernelError>;

    /// Takes the PF's interface up or down.
    fn set_up(&self, pf: &Device, up: bool) -> Result<(), KernelError>;

    /// Changes settings of a VF through its PF (`RTM_SETLINK`, `IFLA_VF_INFO`); what is `None` stays.
    fn set_vf(&self, pf: &Device, index: u32, change: &VfChange) -> Result<(), KernelError>;

    /// Unbinds `function` from its driver; nothing where it has none.
    fn unbind(&self, function: PciAddress) -> Result<(), KernelError>;

    /// Sets `driver_override`; `None` removes it.
    fn set_driver_override(
        &self,
        function: PciAddress,
        driver: Option<&str>,
    ) -> Result<(), KernelError>;

    /// Lets the kernel look for `function`'s driver (`drivers_probe`). That it found one is to be read
    /// back.
    fn probe(&self, function: PciAddress) -> Result<(), KernelError>;

    /// Resets a function (`reset`). Its driver must be unbound: with the driver bound and the link down
    /// some drivers hang the caller.
    fn reset(&self, function: PciAddress) -> Result<(), KernelError>;

    /// What stands against giving `function` to vfio-pci, each in a sentence with its way out; empty: nothing.
    /// Its own driver is no obstacle: it is unbound before. Looks, and changes nothing.
    fn vfio_obstacles(&self, function: PciAddress) -> Result<Vec<String>, KernelError>;

    /// Who has the VF in use now, in words for the operator ("QEMU (pid 4711, guest=web-1)",
    /// "interface eth3 in network namespace blue"); empty: nobody. Looks, and changes nothing.
    fn holders(&self, pf: &Device, index: u32) -> Result<Vec<String>, KernelError>;

    /// [`Kernel::holders`] of every VF of `pf`, by number, looked up together: every process of the host is
    /// looked at once instead of once for each VF. VFs that nobody has are left out.
    fn all_holders(&self, pf: &Device) -> Result<BTreeMap<u32, Vec<String>>, KernelError> {
        let mut all = BTreeMap::new();
        for index in 0..self.pf(pf)?.num_vfs {
            match self.holders(pf, index) {
                Ok(holders) if holders.is_empty() => {}
                Err(KernelError::Gone { .. }) => {}
                other => {
                    all.insert(index, other?);
                }
            }
        }
        Ok(all)
    }

    /// Why nothing is written to `pf` any more, where that is so. Looks whether the operation that hung
    /// has ended meanwhile.
    fn wedged(&self, pf: &Device) -> Option<String>;
}

/// The kernel did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelError {
    /// It refused.
    #[error("{what} on {device} was refused: {}{}", errno_text(*errno), hint.as_deref().map(|h| format!("; {h}")).unwrap_or_default())]
    Refused {
        /// The device, as the operator knows it.
        device: String,
        /// What was asked, such as "Setting VLAN 42 of VF 3".
        what: String,
        /// The error number (errno.h).
        errno: i32,
        /// What the kernel or we can say beyond it (netlink's extended acknowledgement, a known meaning).
        hint: Option<String>,
    },
    /// The device or an attribute of it is not there.
    #[error("{device} is not there (any more): {what}")]
    Gone {
        /// The device.
        device: String,
        /// What was looked for.
        what: String,
    },
    /// It has not answered.
    #[error("{device} is wedged: {what} has not returned after {} s; nothing more is written to it", after.as_secs())]
    Wedged {
        /// The device.
        device: String,
        /// What hangs.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// Something around it failed: no permission, the helper process died, an answer that makes no sense.
    #[error("{what} on {device} failed: {why}")]
    Failed {
        /// The device.
        device: String,
        /// What was asked.
        what: String,
        /// Why.
        why: String,
    },
}

/// The system's words for an error number, without the number.
fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

impl KernelError {
    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            KernelError::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}
