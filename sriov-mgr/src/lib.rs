//! NICs of a host: which there are, partitioning them into VFs, and handing VFs out and taking them back so
//! that no crash, and nobody else, leaves one lost, dirty, or with two owners.
//!
//! | part | is |
//! |---|---|
//! | [`Inventory`] | what there is: sysfs, rtnetlink, ethtool, `pci.ids`. Reading changes nothing and needs no privilege |
//! | [`policy`] | what the operator wants: selectors, counts, pools, defaults, priorities |
//! | [`Plan`] | what would be done about it, and whom it would disturb. Pure |
//! | `recipe` | the order of steps that each driver wants, as data |
//! | `journal` | what was begun and who has what, on disk before it happens |
//! | `life` | what is done to one VF between free and free again |
//! | `recovery`, `health` | finishing or undoing after a crash; VFs and PFs that go and come back |
//! | `errors` | PCI errors and health reporters of PFs: what is new since the last look |
//! | [`manager`] | all of it together, safe for many threads |
//! | [`kernel`] | the one door to the kernel: [`kernel::real`], and a fake one that fails where a test wants it to |
//! | [`vfio`] | whether a VF can be given to user space, and whether it works |
//!
//! # A VF's life
//!
//! ```text
//!            allocate: chosen by pool, NUMA node, PFs to avoid
//!   free ──────────────────────────────▶ configuring ──▶ binding ──▶ in use
//!    ▲                                        │             │          │
//!    │     nobody was told yet: undone ◀──────┴─────────────┘          │ release: its user is gone
//!    │                                        │                        │ (or force)
//!    └── cleaning ◀── resetting ◀── unbinding ┴◀───────────────────────┘
//! ```
//!
//! | state | what is done in it | how it ends |
//! |---|---|---|
//! | configuring | driver taken away, reset where others may have used it, MAC, VLAN, rate, spoof check, trust, link | read back |
//! | binding | vfio-pci, or the kernel's driver | the driver is there |
//! | in use | nothing; what it loses (its PF was reset, its VFs made again) it gets again | given back |
//! | unbinding | driver and `driver_override` taken away, before the reset, which hangs with some drivers bound | no driver |
//! | resetting | function-level reset: stale queues | it returned well |
//! | cleaning | no VLAN, no rate, no trust, spoof check on, link of the PF, no MAC | read back |
//!
//! Each state is in the journal before its work is done, and its work can be done again. A start after a crash
//! takes whatever is not *in use* on to *free*. A VF that cannot be cleaned stays where it is, with its owner's
//! name, is handed to nobody, and is tried again by [`Manager::reconcile`]. VFs of pools are
//! made without a driver: nothing takes hold of a free one by accident.
//!
//! # A PF's change
//!
//! ```text
//!   as it was ──▶ begun: target, and how it was ──▶ step … step ──▶ compare, give VFs in use their settings ──▶ ended
//!       ▲                                             │   ▲
//!       └────────────── undone ◀── refused ◀──────────┤   └── goes on at the next start, or when the PF answers
//!                                                     └── crash, PF wedged or gone
//! ```
//!
//! Going on means to make the steps anew from what the kernel shows now, so it does not matter whether the step
//! that was cut off had happened. The PF is ours from then on: as long as it shows the VFs that we made, or
//! none. VFs that somebody else made are theirs until [`Manager::adopt`].
//!
//! Which VF it is: PF, number, the boot's name, and how often the PF's VFs were made since we know it. A VF with
//! the same address after the PF was reset is another one, without a trace of what was set. Numbers of IOMMU
//! groups are never kept.

mod address;
mod allocation;
mod device;
mod errors;
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
