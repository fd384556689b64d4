//! NIC inventory: which network functions this host has, what they are and what they can do.
//!
//! [`Inventory::read`] puts together three sources: sysfs (PCI functions, SR-IOV capability, IOMMU
//! groups, NUMA nodes), rtnetlink (interfaces: MAC, MTU, link state) and ethtool (firmware). Names
//! come from the system's `pci.ids`, or from the copy inside the `pci-ids` crate where there is none.
//!
//! Reading changes nothing and needs no privilege. What an unprivileged reader is not shown
//! (firmware, sometimes) is simply absent.

mod address;
mod device;
mod ethtool;
mod inventory;
pub mod kernel;
mod netlink;
mod pci_names;
mod sysfs;

pub use address::{ParsePciAddressError, PciAddress};
pub use device::{Device, ParseDeviceError, VfId};
pub use ethtool::DriverInfo;
pub use inventory::{Error, Function, Interface, Inventory, Nic, NicId, Selector};
pub use netlink::LinkState;
pub use pci_names::PciNames;
