//! The homes of flows: the software table, TC flower in the kernel, and the NIC.

use crate::probe::{self, Unavailable};
use std::fmt;

/// A place where flows live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum HomeKind {
    /// The poll-mode table of the DPDK path. Always there, takes every flow.
    Software,
    /// TC flower in kernel software.
    Kernel,
    /// The NIC, through TC flower with `skip_sw`.
    Nic,
}

impl HomeKind {
    /// Every home, the one to fall back to first.
    pub const ALL: [HomeKind; 3] = [HomeKind::Software, HomeKind::Kernel, HomeKind::Nic];

    /// The stable name, as the CLI, the API and metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            HomeKind::Software => "software",
            HomeKind::Kernel => "kernel",
            HomeKind::Nic => "nic",
        }
    }
}

impl fmt::Display for HomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether flows can be placed in a home on this host, and if not, why.
pub type Availability = Result<(), Unavailable>;

/// A home of flows.
///
/// Installing, removing and counting flows become part of this when the first home other than
/// [`SoftwareHome`] can do it; `software` is installed into by the data plane itself.
pub trait Home: Send + Sync {
    /// Which home this is.
    fn kind(&self) -> HomeKind;

    /// Asks the host whether this home can take flows. Blocks for some milliseconds, at most for a
    /// few [netlink deadlines](crate::probe::DEADLINE), and leaves nothing behind.
    fn probe(&self) -> Availability;
}

/// The table of the DPDK path.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftwareHome;

impl Home for SoftwareHome {
    fn kind(&self) -> HomeKind {
        HomeKind::Software
    }

    fn probe(&self) -> Availability {
        Ok(())
    }
}

/// TC flower in kernel software.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelHome;

impl Home for KernelHome {
    fn kind(&self) -> HomeKind {
        HomeKind::Kernel
    }

    fn probe(&self) -> Availability {
        probe::flower()?;
        Err(Unavailable::NotInThisVersion {
            home: HomeKind::Kernel,
        })
    }
}

/// TC flower in the uplink's NIC.
#[derive(Clone, Debug, Default)]
pub struct NicHome {
    /// The uplink's kernel network interface, if it has one. An uplink that a DPDK driver took from
    /// the kernel has none.
    pub uplink: Option<String>,
}

impl Home for NicHome {
    fn kind(&self) -> HomeKind {
        HomeKind::Nic
    }

    fn probe(&self) -> Availability {
        let uplink = self
            .uplink
            .as_deref()
            .ok_or(Unavailable::NoUplinkInterface)?;
        probe::nic(uplink)?;
        probe::flower()?;
        Err(Unavailable::NotInThisVersion {
            home: HomeKind::Nic,
        })
    }
}
