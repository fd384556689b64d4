//! What decides whether a function can be used through VFIO, as plain data.

use crate::address::PciAddress;
use serde::{Deserialize, Serialize};

/// PCI base class of bridges (PCI Code and ID Assignment, section 1.7).
const CLASS_BRIDGE: u8 = 0x06;

/// Everything that [`super::Verdict::of`] judges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The function meant.
    pub function: PciAddress,
    /// What the host as a whole allows.
    pub host: Host,
    /// The function itself; absent: there is none at this address.
    pub own: Option<Member>,
    /// Its PF, where it is a VF.
    pub pf: Option<Member>,
    /// Its IOMMU group, where it is in one.
    pub group: Option<Group>,
}

/// The state of VFIO on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Driver `vfio-pci` is there (`/sys/bus/pci/drivers/vfio-pci`).
    pub vfio_pci: bool,
    /// The container device is there (`/dev/vfio/vfio`).
    pub container: bool,
    /// The IOMMU back end is there (`/sys/module/vfio_iommu_type1`).
    pub type1: bool,
    /// `allow_unsafe_interrupts` of `vfio_iommu_type1` is on.
    pub unsafe_interrupts: bool,
    /// `enable_unsafe_noiommu_mode` of `vfio` is on.
    pub no_iommu: bool,
    /// Whether interrupts are remapped, so that a device cannot forge another's; absent where it cannot
    /// be told (then the kernel decides when the group is opened).
    pub interrupt_remapping: Option<bool>,
}

/// An IOMMU group: the devices that the IOMMU cannot keep apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its number in this boot: never to be stored.
    pub number: u32,
    /// It exists by no-IOMMU mode only: nothing keeps its devices from any memory.
    pub no_iommu: bool,
    /// How DMA is translated while the kernel has the devices.
    pub kind: GroupType,
    /// Address ranges that cannot be mapped.
    pub reserved: Vec<ReservedRegion>,
    /// Its other devices, in order.
    pub peers: Vec<Member>,
    /// Who has the group open ("testpmd (pid 4711)").
    pub holders: Vec<String>,
}

/// The type of a group's domain (`/sys/kernel/iommu_groups/N/type`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupType {
    /// Translated (`DMA`, `DMA-FQ`).
    Translated,
    /// Passed through (`identity`): the kernel's default with `iommu=pt`. VFIO puts a domain of its own
    /// in its place.
    Identity,
    /// Nothing passes (`blocked`).
    Blocked,
    /// A user of VFIO has it (`unmanaged`).
    Unmanaged,
    /// The kernel does not say, or says something that we do not know.
    Other(String),
}

impl GroupType {
    /// From the attribute's text.
    pub fn from_text(text: &str) -> GroupType {
        match text {
            "DMA" | "DMA-FQ" => GroupType::Translated,
            "identity" => GroupType::Identity,
            "blocked" => GroupType::Blocked,
            "unmanaged" => GroupType::Unmanaged,
            other => GroupType::Other(other.chars().take(32).collect()),
        }
    }
}

/// An address range of a group that has a meaning of its own
/// (`/sys/kernel/iommu_groups/N/reserved_regions`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedRegion {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// What it is: `direct` (the firmware's own use goes on, RMRR), `direct-relaxable`, `msi`, `reserved`.
    pub kind: String,
}

impl ReservedRegion {
    /// Whether the kernel refuses the whole group to VFIO for it: the firmware wants this memory mapped
    /// one to one whoever has the device.
    pub fn is_firmware_mapping(&self) -> bool {
        self.kind == "direct"
    }
}

/// A PCI function as far as VFIO cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where.
    pub address: PciAddress,
    /// PCI base class (0x02 network, 0x06 bridge).
    pub class: u8,
    /// Vendor.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// VFs it can have; 0: it is no PF.
    pub total_vfs: u32,
    /// Ways to reset it, in the kernel's order (`reset_method`).
    pub reset_methods: Vec<String>,
}

impl Member {
    /// Whether its driver lets VFIO have the group (kernel: `driver_managed_dma` in `struct pci_driver`):
    /// none, vfio-pci and its variants (`mlx5_vfio_pci`), pci-stub, and the port driver of bridges.
    pub fn allows_vfio(&self) -> bool {
        match self.driver.as_deref() {
            None | Some("pci-stub" | "pcieport") => true,
            Some(driver) => is_vfio_driver(driver),
        }
    }

    /// Whether it is a bridge: it does no DMA of its own.
    pub fn is_bridge(&self) -> bool {
        self.class == CLASS_BRIDGE
    }
}

/// Whether `driver` is vfio-pci or one of its variants for a device family.
pub(super) fn is_vfio_driver(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("_vfio_pci") || driver.ends_with("-vfio-pci")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(class: u8, driver: Option<&str>) -> Member {
        Member {
            address: "0000:3b:00.2".parse().unwrap(),
            class,
            vendor: 0x8086,
            device: 0x10ca,
            driver: driver.map(str::to_owned),
            total_vfs: 0,
            reset_methods: Vec::new(),
        }
    }

    #[test]
    fn only_drivers_that_leave_dma_alone_allow_vfio() {
        for (class, driver, allows) in [
            (2, None, true),
            (2, Some("vfio-pci"), true),
            (2, Some("mlx5_vfio_pci"), true),
            (2, Some("pci-stub"), true),
            (6, Some("pcieport"), true),
            (6, Some("shpchp"), false),
            (2, Some("iavf"), false),
            (2, Some("not_vfio_pci_at_all"), false),
        ] {
            assert_eq!(member(class, driver).allows_vfio(), allows, "{driver:?}");
        }
    }
}
