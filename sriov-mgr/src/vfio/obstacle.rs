//! What can stand between a function and VFIO, in the operator's words.

use crate::address::PciAddress;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A danger that is accepted by its name, and only so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Force {
    /// Interrupts are not remapped: who has the device can forge interrupts of the host.
    UnsafeInterrupts,
    /// No IOMMU: who has the device can read and write all memory.
    NoIommu,
}

impl Force {
    /// The name by which it is accepted.
    pub fn name(self) -> &'static str {
        match self {
            Force::UnsafeInterrupts => "unsafe-interrupts",
            Force::NoIommu => "no-iommu",
        }
    }
}

impl fmt::Display for Force {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Force {
    type Err = String;

    fn from_str(text: &str) -> Result<Force, String> {
        [Force::UnsafeInterrupts, Force::NoIommu]
            .into_iter()
            .find(|force| force.name() == text)
            .ok_or_else(|| {
                let text: String = text.chars().take(64).collect();
                format!("\"{text}\" is nothing that can be forced; there are unsafe-interrupts and no-iommu")
            })
    }
}

/// Why a function cannot, or must not, be used through VFIO. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Obstacle {
    /// Nothing is there.
    #[error("There is no PCI function {address} on this host")]
    NoFunction {
        /// Where it was looked for.
        address: PciAddress,
    },
    /// `vfio-pci` is not loaded.
    #[error("The kernel's driver vfio-pci is not loaded; run \"modprobe vfio-pci\"")]
    NoVfioPci,
    /// The container device or its IOMMU back end is missing.
    #[error("{missing} is not there; run \"modprobe {module}\"")]
    NoContainer {
        /// What is missing.
        missing: String,
        /// The module that brings it.
        module: String,
    },
    /// The function is in no group.
    #[error(
        "{function} is in no IOMMU group, so nothing keeps its DMA in bounds; turn VT-d or AMD-Vi on in the firmware, and on Intel boot with intel_iommu=on"
    )]
    NoGroup {
        /// The function, as the operator knows it.
        function: String,
    },
    /// The group is one of no-IOMMU mode.
    #[error(
        "{function} has no IOMMU behind it, only no-IOMMU mode: its user could read and write all memory; turn the IOMMU on; a check accepts it with --force no-iommu, and vfio_force of [nic] in agent.toml accepts it for all VFs of this host"
    )]
    NoIommu {
        /// The function.
        function: String,
    },
    /// Interrupts are not remapped.
    #[error("{}", unsafe_interrupts(function, *kernel_allows))]
    UnsafeInterrupts {
        /// The function.
        function: String,
        /// Whether the kernel would let it pass (`allow_unsafe_interrupts`).
        kernel_allows: bool,
    },
    /// Another device of the group belongs to the kernel.
    #[error("{function} is in IOMMU group {group} with {peer}, which is still bound to {driver}; {}", peer_way_out(*bridge))]
    PeerBound {
        /// The function.
        function: String,
        /// Number of the group in this boot.
        group: u32,
        /// The other device.
        peer: PciAddress,
        /// Its driver.
        driver: String,
        /// Whether the other device is a bridge.
        bridge: bool,
    },
    /// The function itself is not bound to VFIO.
    #[error("{function} is bound to {}, not to vfio-pci; bind it first", driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// The function.
        function: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Somebody has the group open, and it can be open once.
    #[error("IOMMU group {group} of {function} is in use by {}; end that first", holders.join(", "))]
    Held {
        /// The function.
        function: String,
        /// Number of the group in this boot.
        group: u32,
        /// Who.
        holders: Vec<String>,
    },
    /// The firmware wants memory mapped one to one for a device of the group.
    #[error(
        "The firmware keeps memory {first:#x} to {last:#x} mapped for a device of IOMMU group {group} (RMRR), and the kernel refuses such a group to VFIO; turn the firmware's use of {function} off (often \"shared memory\" or \"legacy USB\"), or ask the platform's vendor"
    )]
    FirmwareMapping {
        /// The function.
        function: String,
        /// Number of the group in this boot.
        group: u32,
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
    },
    /// The function is a PF with VFs to give.
    #[error(
        "{function} is a PF: on vfio-pci its VFs can only be opened with a VF token that both sides share; give VFs away and leave the PF to its driver"
    )]
    IsPf {
        /// The function.
        function: String,
    },
    /// The VF's PF is on vfio-pci.
    #[error(
        "PF {pf} of {function} is bound to {driver}: opening the VF needs the VF token of the PF's user; bind the PF to its own driver"
    )]
    PfOnVfio {
        /// The function.
        function: String,
        /// The PF.
        pf: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The function cannot be reset: what its last owner left would stay.
    #[error(
        "{function} cannot be reset (its reset_method is empty): the next owner would get what the last one left in its queues; allow a method in /sys/bus/pci/devices/{address}/reset_method"
    )]
    NoReset {
        /// The function.
        function: String,
        /// Where it is.
        address: PciAddress,
    },
}

fn peer_way_out(bridge: bool) -> &'static str {
    if bridge {
        "leave the bridge to pcieport or to no driver"
    } else {
        "unbind it or enable ACS"
    }
}

fn unsafe_interrupts(function: &str, kernel_allows: bool) -> String {
    let way_out = if kernel_allows {
        "accept it for a check with --force unsafe-interrupts, or for all VFs of this host with vfio_force of [nic] in agent.toml"
    } else {
        "after setting allow_unsafe_interrupts of vfio_iommu_type1, accept it for a check with --force unsafe-interrupts, or for all VFs of this host with vfio_force of [nic] in agent.toml"
    };
    format!(
        "Interrupts of {function} are not remapped: its user could forge interrupts of the host; turn interrupt remapping on (firmware, and no nointremap at boot), or {way_out}"
    )
}

impl Obstacle {
    /// The danger to accept where accepting is possible.
    pub fn accepted_by(&self) -> Option<Force> {
        match self {
            Obstacle::NoIommu { .. } => Some(Force::NoIommu),
            Obstacle::UnsafeInterrupts {
                kernel_allows: true,
                ..
            } => Some(Force::UnsafeInterrupts),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_forces_round_trip() {
        for force in [Force::UnsafeInterrupts, Force::NoIommu] {
            assert_eq!(force.name().parse(), Ok(force));
        }
        assert!("yes".parse::<Force>().is_err());
    }
}
