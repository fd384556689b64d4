//! VFIO: may a function be given to a user-space driver or a VM, and does it then work?
//!
//! ```text
//!   sysfs, procfs ──read──▶ Facts ──judge──▶ Verdict (every obstacle, with the way out)
//!   /dev/vfio     ──self_test─▶ CheckReport (container, group, device, DMA, config, reset, interrupt)
//! ```
//!
//! - [`Facts::read`] looks and changes nothing; [`Verdict::of`] is pure, so that it is tested on facts that
//!   no test machine has (two devices of one group, missing interrupt remapping, no-IOMMU).
//! - [`check`] is `ferrovia vf check`: the verdict, then the self-test on the device itself. A device that
//!   is broken may block its caller for ever: the caller is a helper process with a deadline, which
//!   hands each step on as it is done, so that the one which hangs has a name.
//! - [`reset`] resets an unbound function and does not believe that it worked.
//!
//! The number of an IOMMU group is read anew each time: it changes from boot to boot.

mod check;
mod child;
mod facts;
mod ioctl;
mod obstacle;
mod read;
mod reset;
mod self_test;
mod verdict;

pub use check::{CheckReport, CheckRequest, Step, StepName, StepResult, check};
pub use child::{ChildError, check_in_child, serve_check};
pub use facts::{Facts, Group, GroupType, Host, Member, ReservedRegion};
pub use obstacle::{Force, Obstacle};
pub use reset::{ResetError, reset};
pub use verdict::{Purpose, Verdict};
