//! Where devices stand in sysfs and debugfs, what stands there, and how refusals of a write are told.

use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::KernelError;
use crate::kernel::real::wire::Refusal;
use crate::sysfs::Dir;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// PCI base class of network controllers (PCI Code and ID Assignment, section 1.3).
const CLASS_NETWORK: i64 = 0x02;
/// VFs of a netdevsim device whose limit is not shown, which needs debugfs
/// (drivers/net/netdevsim/bus.c, NSIM_BUS_DEV_MAX_VFS).
const NETDEVSIM_VFS: u32 = 4;

/// The root under which sysfs is: `/`, but for tests.
#[derive(Clone, Debug)]
pub(crate) struct Tree(pub(crate) PathBuf);

impl Tree {
    pub(crate) fn dir(&self, device: &Device) -> Dir {
        Dir(self
            .0
            .join("sys/bus")
            .join(device.bus())
            .join("devices")
            .join(device.name()))
    }

    pub(crate) fn function(&self, function: PciAddress) -> Dir {
        self.dir(&Device::Pci(function))
    }

    /// Every PCI network function, of whatever kind. Reads nothing that can block.
    pub(crate) fn nics(&self) -> Vec<PciAddress> {
        let names = Dir(self.0.join("sys/bus/pci/devices")).entries("");
        let functions = names.iter().filter_map(|name| name.parse().ok());
        let network = |function: &PciAddress| {
            let class = self.function(*function).number("class");
            class.is_some_and(|class| class >> 16 == CLASS_NETWORK)
        };
        functions.filter(network).collect()
    }

    /// Every device that can have VFs, in order. Reads nothing that can block.
    pub(crate) fn pfs(&self) -> Vec<Device> {
        let nics = self.nics().into_iter().map(Device::Pci);
        let mut found: Vec<Device> = nics.filter(|nic| self.total_vfs(nic) > 0).collect();
        for name in Dir(self.0.join("sys/bus/netdevsim/devices")).entries("") {
            found.extend(format!("netdevsim/{name}").parse::<Device>());
        }
        found.sort();
        found
    }

    /// Most VFs of `device`.
    pub(crate) fn total_vfs(&self, device: &Device) -> u32 {
        let total = match device {
            Device::Pci(_) => self.dir(device).number("sriov_totalvfs"),
            Device::Netdevsim(_) => {
                let debug = self
                    .0
                    .join("sys/kernel/debug/netdevsim")
                    .join(device.name());
                Dir(debug)
                    .number("max_vfs")
                    .or(Some(i64::from(NETDEVSIM_VFS)))
            }
        };
        total
            .and_then(|total| u32::try_from(total).ok())
            .unwrap_or(0)
    }

    /// The number of VFs. Blocks while it is being changed.
    pub(crate) fn num_vfs(&self, device: &Device) -> Option<u32> {
        self.dir(device)
            .number("sriov_numvfs")
            .and_then(|count| u32::try_from(count).ok())
    }

    /// The PCI functions of the VFs, by number: sysfs links, which may come after the VFs (R3). Never blocks.
    pub(crate) fn vf_functions(&self, device: &Device) -> Vec<(u32, PciAddress)> {
        self.dir(device).virtual_functions()
    }

    /// The topmost bridge above a function: the root port.
    pub(crate) fn root_port(&self, device: &Device) -> Option<PciAddress> {
        let path = fs::canonicalize(&self.dir(device).0).ok()?;
        let mut parts = path
            .iter()
            .filter_map(|part| part.to_str()?.parse::<PciAddress>().ok());
        let first = parts.next()?;
        // On the root bus itself there is no port above.
        (Some(first) != device.pci()).then_some(first)
    }

    /// Writes an attribute. `what` says in words what that asks for.
    pub(crate) fn write(
        &self,
        device: &Device,
        file: &Path,
        value: &str,
        what: &str,
    ) -> Result<(), KernelError> {
        let opened = OpenOptions::new().write(true).open(file);
        let mut opened = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => KernelError::Gone {
                device: device.to_string(),
                what: file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            },
            _ => refused(device, what, &error.into()),
        })?;
        opened
            .write_all(value.as_bytes())
            .map_err(|error| refused(device, what, &error.into()))
    }
}

/// The kernel's refusal in our terms, with what is known of that error here.
pub(crate) fn refused(device: &Device, what: &str, refusal: &Refusal) -> KernelError {
    let known = match refusal.errno {
        libc::EACCES | libc::EPERM => {
            Some("this needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)".to_owned())
        }
        _ => None,
    };
    KernelError::Refused {
        device: device.to_string(),
        what: what.to_owned(),
        errno: refusal.errno,
        hint: refusal.words.clone().or(known),
    }
}

/// The same refusal with another hint, where the kernel itself said nothing.
pub(crate) fn hinted(error: KernelError, hint: impl FnOnce(i32) -> Option<String>) -> KernelError {
    match error {
        KernelError::Refused {
            device,
            what,
            errno,
            hint: None,
        } => KernelError::Refused {
            device,
            what,
            errno,
            hint: hint(errno),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::real::testtree;
    use std::os::unix::fs::symlink;

    #[test]
    fn pfs_are_pci_network_functions_with_vfs_and_netdevsim() {
        let root = testtree::igb(2);
        let tree = Tree(root.path().to_owned());
        let found: Vec<String> = tree.pfs().iter().map(Device::to_string).collect();
        assert_eq!(found, ["0000:01:00.0", "netdevsim/netdevsim3"]);
        let pf = "0000:01:00.0".parse().unwrap();
        assert_eq!((tree.total_vfs(&pf), tree.num_vfs(&pf)), (7, Some(2)));
        assert_eq!(tree.total_vfs(&Device::Netdevsim(3)), 64);
        assert_eq!(tree.total_vfs(&Device::Netdevsim(4)), 4);
        assert_eq!(tree.vf_functions(&pf).len(), 2);
    }

    #[test]
    fn the_root_port_is_the_topmost_bridge() {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("sys/bus/pci/devices");
        let real = root
            .path()
            .join("sys/devices/pci0000:00/0000:00:04.0/0000:01:00.0/0000:02:00.0");
        fs::create_dir_all(&devices).unwrap();
        fs::create_dir_all(&real).unwrap();
        for (name, depth) in [
            ("0000:02:00.0", 0),
            ("0000:01:00.0", 1),
            ("0000:00:04.0", 2),
        ] {
            symlink(real.ancestors().nth(depth).unwrap(), devices.join(name)).unwrap();
        }
        let tree = Tree(root.path().to_owned());
        let port = |address: &str| {
            tree.root_port(&address.parse().unwrap())
                .map(|p| p.to_string())
        };
        assert_eq!(port("0000:02:00.0").as_deref(), Some("0000:00:04.0"));
        assert_eq!(port("0000:01:00.0").as_deref(), Some("0000:00:04.0"));
        assert_eq!(port("0000:00:04.0"), None);
    }

    #[test]
    fn a_missing_attribute_is_told_from_a_refused_write() {
        let root = testtree::igb(0);
        let tree = Tree(root.path().to_owned());
        let pf: Device = "0000:01:00.0".parse().unwrap();
        let gone = tree
            .write(&pf, &tree.dir(&pf).0.join("nosuch"), "1", "Resetting")
            .unwrap_err();
        assert!(matches!(gone, KernelError::Gone { .. }), "{gone}");
        // A directory cannot be written: the kernel's error number comes through.
        let refused = tree
            .write(&pf, &tree.dir(&pf).0, "1", "Resetting")
            .unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EISDIR));
        assert!(
            refused
                .to_string()
                .starts_with("Resetting on 0000:01:00.0 was refused"),
            "{refused}"
        );
    }
}
