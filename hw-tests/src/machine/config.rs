//! What a machine is made of, and what is known of one that runs.

use crate::accel::Accel;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Most PFs of a machine: each takes a root port of its own on one bus of 32 slots.
pub const MOST_PFS: u8 = 16;

/// Which devices the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Emulated Intel 82576 NICs, each a PF with up to 7 VFs behind a PCIe root port of its own, wired to one hub.
    Igb {
        /// How many PFs, 1 to [`MOST_PFS`].
        pfs: u8,
    },
    /// The kernel's `netdevsim` driver, loaded; devices appear when `/sys/bus/netdevsim/new_device` is written.
    Netdevsim,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flavour::Igb { pfs: 1 } => f.write_str("one igb PF"),
            Flavour::Igb { pfs } => write!(f, "{pfs} igb PFs"),
            Flavour::Netdevsim => f.write_str("netdevsim"),
        }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Its devices.
    pub flavour: Flavour,
    /// MiB of memory. Half of it is what files may take that are written inside.
    pub memory_mb: u32,
    /// Virtual processors.
    pub cpus: u8,
    /// Two NUMA nodes, with half of the processors, memory and PFs each.
    pub numa: bool,
    /// MiB of its memory in huge pages of 2 MiB, mounted at `/dev/hugepages`.
    pub hugepages_mb: u32,
    /// Words added to the kernel's command line.
    pub kernel_args: Vec<String>,
    /// Folders of the host that must be there inside although they lie below `/tmp`, `/var/tmp`, `/run` or
    /// `/dev/shm`, which are empty otherwise. The build folder and the kernel's modules are always there.
    pub keep: Vec<PathBuf>,
    /// How long the boot may take.
    pub boot_limit: Duration,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            flavour: Flavour::Igb { pfs: 1 },
            memory_mb: 1024,
            cpus: 2,
            numa: false,
            hugepages_mb: 0,
            kernel_args: Vec::new(),
            keep: Vec::new(),
            boot_limit: Duration::from_secs(180),
        }
    }
}

/// What is known of a running machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release.
    pub release: String,
    /// Who runs it.
    pub accel: Accel,
    /// Its devices.
    pub flavour: Flavour,
    /// How long the boot took, until commands are taken and the devices are there.
    pub boot: Duration,
}

/// What a command inside left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Done {
    /// True for exit code 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        write!(f, "exit code {}: {}", self.code, said.trim())
    }
}
