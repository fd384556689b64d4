//! NIC inventory: which network functions this host has, what they are and what they can do.
//!
//! [`Inventory::read`] puts together three sources: sysfs (PCI functions, SR-IOV capability, IOMMU
//! groups, NUMA nodes), rtnetlink (interfaces: MAC, MTU, link state) and ethtool (firmware). Names
//! come from the system's `pci.ids`, or from the copy inside the `pci-ids` crate where there is none.
//!
//! Reading changes nothing and needs no privilege. What an unprivileged reader is not shown
//! (firmware, sometimes) is simply absent.

mod address;
mod allocation;
mod device;
mod ethtool;
mod health;
pub mod helper;
mod inventory;
mod journal;
pub mod kernel;
mod life;
pub mod manager;
mod netlink;
mod pci_names;
mod plan;
pub mod policy;
mod recipe;
mod recovery;
mod second_owner;
mod sysfs;
pub mod vfio;

pub use address::{ParsePciAddressError, PciAddress};
pub use allocation::{Allocation, Identity, Phase, Released, Request, Settings, VfChoice};
pub use device::{Device, ParseDeviceError, VfId};
pub use ethtool::DriverInfo;
pub use health::Event;
pub use inventory::{AerCounts, Error, Function, Interface, Inventory, Nic, NicId, Selector};
pub use journal::{CrashPoints, JournalError};
pub use kernel::real::devlink::Reporter;
pub use manager::{Manager, Options, Patience};
pub use netlink::LinkState;
pub use pci_names::PciNames;
pub use plan::{Disturbed, Plan, PlannedStep, Refusal, SecondOwner};
pub use recipe::Step;
