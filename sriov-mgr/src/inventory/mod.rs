//! The inventory itself: every PCI network function with its interfaces.

mod live;

pub use live::AerCounts;
pub(crate) use live::aer;

use crate::address::PciAddress;
use crate::ethtool::{self, DriverInfo};
use crate::kernel::real::devlink::Reporter;
use crate::kernel::{EswitchMode, VfSettings};
use crate::netlink::{self, Link, LinkState};
use crate::pci_names::PciNames;
use crate::sysfs::{self, Dir};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// PCI base class of network controllers (PCI Code and ID Assignment, section 1.3).
const CLASS_NETWORK: i64 = 0x02;

/// Why the inventory could not be read or a NIC not be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sysfs here.
    #[error("{} cannot be read: is sysfs mounted?", path.display())]
    NoSysfs {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel did not list its interfaces.
    #[error("The kernel's interface list cannot be read through rtnetlink")]
    Netlink(#[source] std::io::Error),
    /// No NIC by that name or address.
    #[error("No NIC \"{asked}\" on this host; it has {}", if known.is_empty() { "no PCI NIC".to_owned() } else { known.join(", ") })]
    NotFound {
        /// What was asked for.
        asked: String,
        /// Every NIC there is, by address and interface.
        known: Vec<String>,
    },
}

/// Every PCI network function of a host, ordered by address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inventory {
    /// The functions: PFs, VFs and NICs without SR-IOV.
    pub nics: Vec<Nic>,
}

/// Which NIC is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By PCI address.
    Address(PciAddress),
    /// By interface name.
    Interface(String),
}

impl From<&str> for Selector {
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Selector::Interface(text.to_owned()), Selector::Address)
    }
}

/// PCI identification numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicId {
    /// Vendor, such as 0x8086.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// Vendor of the board.
    pub subsystem_vendor: u16,
    /// Board of that vendor.
    pub subsystem_device: u16,
}

/// One PCI network function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Where it is.
    pub address: PciAddress,
    /// Its identification numbers.
    pub id: NicId,
    /// Vendor's name, from pci.ids.
    pub vendor: Option<String>,
    /// Device's name, from pci.ids.
    pub device: Option<String>,
    /// The kernel driver bound to it.
    pub driver: Option<String>,
    /// What kind of function it is.
    pub function: Function,
    /// NUMA node; absent where the platform does not say.
    pub numa_node: Option<u32>,
    /// IOMMU group of this boot (the number may change with the next).
    pub iommu_group: Option<u32>,
    /// Other PCI functions of the same IOMMU group.
    pub iommu_peers: Vec<PciAddress>,
    /// Reset methods that the kernel would try, in order.
    pub reset_methods: Vec<String>,
    /// MSI-X vectors now allocated.
    pub msi_vectors: usize,
    /// MSI-X vectors that the function offers; absent without MSI-X and for unprivileged readers.
    pub msix_table: Option<u16>,
    /// PCI errors counted so far, where the platform reports them.
    pub aer: Option<AerCounts>,
    /// Health reporters of a PF's driver (devlink).
    pub reporters: Vec<Reporter>,
    /// Mode of a PF's eswitch, where it has one to choose.
    pub eswitch: Option<EswitchMode>,
    /// What its PF has set for a VF.
    pub settings: Option<VfSettings>,
    /// A VF's representor, in switchdev mode.
    pub representor: Option<String>,
    /// Who has a VF in use, in words; empty: nobody that this reader may see.
    pub holders: Vec<String>,
    /// Present link, such as "8.0 GT/s PCIe x8".
    pub pcie_link: Option<String>,
    /// Network interfaces on it: usually one, more on multi-port functions and with representors.
    pub interfaces: Vec<Interface>,
}

/// What an SR-IOV capability makes of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Function {
    /// Without SR-IOV.
    Plain,
    /// A physical function that can be partitioned.
    Pf {
        /// Most VFs that the device can have.
        total_vfs: u32,
        /// VFs it has now, in the order of their numbers.
        vfs: Vec<PciAddress>,
    },
    /// A virtual function.
    Vf {
        /// Its physical function.
        pf: PciAddress,
        /// Its number there, from 0.
        index: Option<u32>,
    },
}

/// A network interface of a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name, such as "enp59s0f0".
    pub name: String,
    /// Index in this network namespace.
    pub index: u32,
    /// MAC address.
    pub mac: Option<String>,
    /// MTU, bytes.
    pub mtu: u32,
    /// Operational state.
    pub state: LinkState,
    /// Whether there is a carrier; absent while the interface is down.
    pub carrier: Option<bool>,
    /// Speed in Mbit/s; absent without a link or where the driver does not say.
    pub speed_mbps: Option<u32>,
    /// The eswitch it belongs to: interfaces with the same id share one.
    pub switch_id: Option<String>,
    /// Its port on that eswitch, such as "p0" (uplink) or "pf0vf3" (a VF's representor).
    pub port_name: Option<String>,
    /// Driver and firmware versions.
    pub driver: Option<DriverInfo>,
}

impl Inventory {
    /// Reads the inventory of the running host.
    ///
    /// # Errors
    /// [`Error::NoSysfs`] and [`Error::Netlink`].
    pub async fn read() -> Result<Inventory, Error> {
        let links = netlink::links().await?;
        let whole = move || {
            let root = Path::new("/");
            let mut inventory = Self::assemble(root, &links, &ethtool::driver_info)?;
            live::complete(root, &mut inventory);
            Ok(inventory)
        };
        // All of it is many small system calls: not for the runtime's own threads.
        let read = tokio::task::spawn_blocking(whole).await;
        read.unwrap_or_else(|died| Err(Error::Netlink(std::io::Error::other(died))))
    }

    fn assemble(
        root: &Path,
        links: &[Link],
        driver_info: &dyn Fn(&str) -> Option<DriverInfo>,
    ) -> Result<Inventory, Error> {
        let devices = root.join("sys/bus/pci/devices");
        if !sysfs::exists(&root.join("sys/bus")) {
            return Err(Error::NoSysfs { path: devices });
        }
        let names = PciNames::load(root);
        let links: HashMap<&str, &Link> = links.iter().map(|l| (l.name.as_str(), l)).collect();
        let mut numbers = VfNumbers::default();
        let mut nics: Vec<Nic> = Dir(devices.clone())
            .entries("")
            .iter()
            .filter_map(|name| name.parse::<PciAddress>().ok())
            .filter_map(|address| nic(&devices, address, &names, &links, driver_info, &mut numbers))
            .collect();
        nics.sort_by_key(|nic| nic.address);
        Ok(Inventory { nics })
    }

    /// The NIC that `selector` means.
    ///
    /// # Errors
    /// [`Error::NotFound`], which lists what there is.
    pub fn find(&self, selector: &Selector) -> Result<&Nic, Error> {
        let found = self.nics.iter().find(|nic| match selector {
            Selector::Address(address) => nic.address == *address,
            Selector::Interface(name) => nic.interfaces.iter().any(|i| i.name == *name),
        });
        found.ok_or_else(|| Error::NotFound {
            asked: match selector {
                Selector::Address(address) => address.to_string(),
                Selector::Interface(name) => name.clone(),
            },
            known: self.nics.iter().map(Nic::label).collect(),
        })
    }
}

impl Nic {
    /// Address and interface names, such as "0000:3b:00.0 (enp59s0f0)".
    pub fn label(&self) -> String {
        let names: Vec<&str> = self.interfaces.iter().map(|i| i.name.as_str()).collect();
        if names.is_empty() {
            self.address.to_string()
        } else {
            format!("{} ({})", self.address, names.join(", "))
        }
    }

    /// "Vendor Device", or the numbers where no name is known.
    pub fn model(&self) -> String {
        let vendor = self
            .vendor
            .clone()
            .unwrap_or_else(|| format!("{:04x}", self.id.vendor));
        let device = self
            .device
            .clone()
            .unwrap_or_else(|| format!("{:04x}", self.id.device));
        format!("{vendor} {device}")
    }
}

fn nic(
    devices: &Path,
    address: PciAddress,
    names: &PciNames,
    links: &HashMap<&str, &Link>,
    driver_info: &dyn Fn(&str) -> Option<DriverInfo>,
    numbers: &mut VfNumbers,
) -> Option<Nic> {
    let dir = Dir(devices.join(address.to_string()));
    if dir.number("class")? >> 16 != CLASS_NETWORK {
        return None;
    }
    let id_of = |attribute| dir.number(attribute).and_then(|n| u16::try_from(n).ok());
    let id = NicId {
        vendor: id_of("vendor")?,
        device: id_of("device")?,
        subsystem_vendor: id_of("subsystem_vendor").unwrap_or(0),
        subsystem_device: id_of("subsystem_device").unwrap_or(0),
    };
    let iommu_group = dir
        .link_name("iommu_group")
        .and_then(|group| group.parse().ok());
    let mut iommu_peers: Vec<PciAddress> = dir
        .entries("iommu_group/devices")
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    iommu_peers.retain(|peer| *peer != address);
    Some(Nic {
        address,
        id,
        vendor: names.vendor(id.vendor),
        device: names.device(id.vendor, id.device),
        driver: dir.link_name("driver"),
        function: function(devices, &dir, address, numbers),
        numa_node: dir
            .number("numa_node")
            .and_then(|node| u32::try_from(node).ok()),
        iommu_group,
        iommu_peers,
        reset_methods: dir
            .text("reset_method")
            .map(|methods| methods.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        msi_vectors: dir.entries("msi_irqs").len(),
        msix_table: std::fs::read(dir.0.join("config"))
            .ok()
            .and_then(|config| live::msix_vectors(&config)),
        aer: live::aer(&dir),
        reporters: Vec::new(),
        eswitch: None,
        settings: None,
        representor: None,
        holders: Vec::new(),
        pcie_link: match (
            dir.text("current_link_speed"),
            dir.text("current_link_width"),
        ) {
            (Some(speed), Some(width)) if width != "0" => Some(format!("{speed} x{width}")),
            _ => None,
        },
        interfaces: interface_names(&dir)
            .into_iter()
            .filter_map(|(name, place)| interface(&place, links.get(name.as_str())?, driver_info))
            .collect(),
    })
}

/// Numbers of the VFs of each PF, read once a PF: it has a link for each of them.
type VfNumbers = HashMap<PciAddress, HashMap<PciAddress, u32>>;

fn function(devices: &Path, dir: &Dir, address: PciAddress, numbers: &mut VfNumbers) -> Function {
    if let Some(pf) = dir
        .link_name("physfn")
        .and_then(|name| name.parse::<PciAddress>().ok())
    {
        let siblings = numbers.entry(pf).or_insert_with(|| {
            let links = Dir(devices.join(pf.to_string())).virtual_functions();
            links.into_iter().map(|(index, vf)| (vf, index)).collect()
        });
        let index = siblings.get(&address).copied();
        return Function::Vf { pf, index };
    }
    match dir
        .number("sriov_totalvfs")
        .and_then(|total| u32::try_from(total).ok())
    {
        Some(total_vfs) if total_vfs > 0 => Function::Pf {
            total_vfs,
            vfs: dir
                .virtual_functions()
                .into_iter()
                .map(|(_, vf)| vf)
                .collect(),
        },
        _ => Function::Plain,
    }
}

/// Interfaces stand in `net/` of the function itself, or of its virtio device.
fn interface_names(dir: &Dir) -> Vec<(String, Dir)> {
    let mut places = vec![dir.0.clone()];
    places.extend(
        dir.entries("")
            .iter()
            .filter(|name| name.starts_with("virtio"))
            .map(|name| dir.0.join(name)),
    );
    let mut found = Vec::new();
    for place in places {
        for name in Dir(place.clone()).entries("net") {
            found.push((name.clone(), Dir(place.join("net").join(&name))));
        }
    }
    found
}

fn interface(
    dir: &Dir,
    link: &Link,
    driver_info: &dyn Fn(&str) -> Option<DriverInfo>,
) -> Option<Interface> {
    Some(Interface {
        name: link.name.clone(),
        index: link.index,
        mac: link.mac.clone(),
        mtu: link.mtu,
        state: link.state,
        carrier: link.carrier,
        speed_mbps: dir
            .number("speed")
            .and_then(|speed| u32::try_from(speed).ok())
            .filter(|s| *s > 0),
        switch_id: dir.text("phys_switch_id"),
        port_name: dir.text("phys_port_name"),
        driver: driver_info(&link.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A sysfs tree with one PF, two of its VFs, a virtio NIC and a disk, as kernels lay it out.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("sys/bus/pci/devices");
        let group = root.path().join("sys/kernel/iommu_groups/7/devices");
        fs::create_dir_all(&group).unwrap();
        let device = |name: &str, class: &str, vendor: &str, device: &str| {
            let dir = devices.join(name);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in [
                ("class", class),
                ("vendor", vendor),
                ("device", device),
                ("numa_node", "-1"),
            ] {
                fs::write(dir.join(file), format!("{text}\n")).unwrap();
            }
            dir
        };
        let pf = device("0000:3b:00.0", "0x020000", "0x8086", "0x10c9");
        fs::write(pf.join("sriov_totalvfs"), "7\n").unwrap();
        fs::write(pf.join("numa_node"), "1\n").unwrap();
        fs::write(pf.join("reset_method"), "flr bus\n").unwrap();
        fs::create_dir_all(pf.join("net/fvpf0")).unwrap();
        fs::write(pf.join("net/fvpf0/speed"), "25000\n").unwrap();
        fs::create_dir_all(pf.join("msi_irqs/40")).unwrap();
        for (index, name) in ["0000:3b:10.0", "0000:3b:10.2"].iter().enumerate() {
            let vf = device(name, "0x020000", "0x8086", "0x10ca");
            symlink("../0000:3b:00.0", vf.join("physfn")).unwrap();
            symlink(format!("../{name}"), pf.join(format!("virtfn{index}"))).unwrap();
            symlink(group.parent().unwrap(), vf.join("iommu_group")).unwrap();
            symlink(&vf, group.join(name)).unwrap();
        }
        let virtio = device("0000:00:03.0", "0x020000", "0x1af4", "0x1041");
        fs::create_dir_all(virtio.join("virtio2/net/fvv0")).unwrap();
        device("0000:00:02.0", "0x010000", "0x1af4", "0x1042");
        root
    }

    fn link(name: &str) -> Link {
        Link {
            index: 2,
            name: name.into(),
            mac: Some("02:00:00:00:00:01".into()),
            mtu: 1500,
            state: LinkState::Up,
            carrier: Some(true),
        }
    }

    #[test]
    fn functions_are_told_apart_and_put_together() {
        let root = tree();
        let links = [link("fvpf0"), link("fvv0")];
        let inventory = Inventory::assemble(root.path(), &links, &|_| None).unwrap();
        let addresses: Vec<String> = inventory
            .nics
            .iter()
            .map(|n| n.address.to_string())
            .collect();
        assert_eq!(
            addresses,
            [
                "0000:00:03.0",
                "0000:3b:00.0",
                "0000:3b:10.0",
                "0000:3b:10.2"
            ]
        );

        let pf = inventory.find(&"fvpf0".into()).unwrap();
        assert_eq!(pf.numa_node, Some(1));
        assert_eq!(pf.reset_methods, ["flr", "bus"]);
        assert_eq!(pf.msi_vectors, 1);
        assert_eq!(pf.interfaces[0].speed_mbps, Some(25000));
        assert!(pf.model().contains("82576"), "{}", pf.model());
        let Function::Pf { total_vfs: 7, vfs } = &pf.function else {
            panic!("{:?}", pf.function)
        };
        assert_eq!(vfs.len(), 2);

        let vf = inventory.find(&"0000:3b:10.2".into()).unwrap();
        assert_eq!(
            vf.function,
            Function::Vf {
                pf: pf.address,
                index: Some(1)
            }
        );
        assert_eq!(vf.iommu_group, Some(7));
        assert_eq!(vf.iommu_peers, [vfs[0]]);
        assert_eq!(vf.numa_node, None);

        assert_eq!(inventory.nics[0].interfaces[0].name, "fvv0");
        assert_eq!(inventory.nics[0].function, Function::Plain);
    }

    #[test]
    fn an_unknown_nic_is_answered_with_those_there_are() {
        let root = tree();
        let inventory = Inventory::assemble(root.path(), &[link("fvpf0")], &|_| None).unwrap();
        let error = inventory.find(&"eth9".into()).unwrap_err().to_string();
        assert!(
            error.contains("\"eth9\"") && error.contains("0000:3b:00.0 (fvpf0)"),
            "{error}"
        );
    }

    #[test]
    fn without_sysfs_the_error_says_so() {
        let root = tempfile::tempdir().unwrap();
        let error = Inventory::assemble(root.path(), &[], &|_| None).unwrap_err();
        assert!(error.to_string().contains("is sysfs mounted?"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_running_host_reads() {
        let inventory = Inventory::read().await.unwrap();
        for nic in &inventory.nics {
            assert_eq!(
                inventory.find(&Selector::Address(nic.address)).unwrap(),
                nic
            );
        }
    }
}
