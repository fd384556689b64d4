//! What a test may need of its target, and the reason when the target has not got it.

use super::facts::Facts;
use super::inventory::Platform;

/// Something that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Commands run as root.
    Root,
    /// So many PCI NICs with SR-IOV.
    PciPfs(usize),
    /// A PCI NIC with SR-IOV that can have at least so many VFs.
    Vfs(u32),
    /// The IOMMU is on, and VF can be isolated.
    Iommu,
    /// vfio-pci is there or can be loaded.
    Vfio,
    /// netdevsim is there or can be loaded.
    Netdevsim,
    /// A NIC with an eswitch whose mode can be changed; netdevsim is one.
    Switchdev,
    /// An emulated NIC: the test does what nobody should do to a real one.
    Emulated,
    /// A real NIC: an emulated one cannot show it. The words say what.
    Physical(&'static str),
    /// A PCI NIC with SR-IOV that has this driver.
    Driver(&'static str),
    /// A program on the target.
    Program(&'static str),
}

impl Need {
    /// As lists show it.
    pub fn word(&self) -> String {
        match self {
            Need::Root => "root".into(),
            Need::PciPfs(1) => "an SR-IOV NIC".into(),
            Need::PciPfs(count) => format!("{count} SR-IOV NICs"),
            Need::Vfs(count) => format!("{count} VFs"),
            Need::Iommu => "an IOMMU".into(),
            Need::Vfio => "VFIO".into(),
            Need::Netdevsim => "netdevsim".into(),
            Need::Switchdev => "switchdev".into(),
            Need::Emulated => "an emulated NIC".into(),
            Need::Physical(_) => "a real NIC".into(),
            Need::Driver(name) => format!("the driver {name}"),
            Need::Program(name) => format!("the program {name}"),
        }
    }

    /// Why a target with these facts cannot run the test; `None` when it can.
    pub fn missing(&self, facts: &Facts) -> Option<String> {
        let pfs: Vec<_> = facts.pfs().collect();
        match self {
            Need::Root if !facts.root => Some("It needs root; use the account root, or sudo = true".into()),
            Need::PciPfs(count) if pfs.len() < *count => Some(format!(
                "It needs {}; the target has {} for tests to use",
                self.word(),
                pfs.len()
            )),
            Need::Vfs(count) => {
                let most = pfs.iter().map(|nic| nic.total_vfs).max().unwrap_or(0);
                (most < *count).then(|| {
                    format!("It needs a NIC with {count} VFs; the most a NIC of the target has is {most}")
                })
            }
            Need::Iommu if facts.iommu_groups == 0 => Some(
                "It needs an IOMMU; turn it on in the firmware and boot with intel_iommu=on or the like".into(),
            ),
            Need::Vfio if !facts.vfio => Some("It needs vfio-pci, which this kernel has not".into()),
            Need::Netdevsim if !facts.netdevsim => {
                Some("It needs netdevsim, which this kernel has not".into())
            }
            Need::Switchdev if !facts.switchdev => {
                Some("It needs a NIC with an eswitch mode; no NIC of the target has one".into())
            }
            Need::Emulated if facts.platform != Platform::Emulated => {
                Some("It does what only an emulated NIC should suffer".into())
            }
            Need::Physical(what) if facts.platform != Platform::Physical => {
                Some(format!("An emulated NIC cannot show it: {what}"))
            }
            Need::Driver(name) if !pfs.iter().any(|nic| nic.driver == *name) => Some(format!(
                "It needs an SR-IOV NIC with the driver {name}; no NIC of the target has it"
            )),
            Need::Program(name) if !facts.programs.iter().any(|p| p == name) => {
                Some(format!("It needs the program {name}; install it on the target"))
            }
            _ => None,
        }
    }
}
