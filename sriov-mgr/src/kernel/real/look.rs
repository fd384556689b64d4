//! PFs and VFs as the kernel shows them: sysfs, rtnetlink and devlink put together.

use super::devlink::{Devlink, VfPort};
use super::links::{self, LinkInfo};
use super::tree::{Tree, refused};
use super::vf_attributes;
use super::wire::Refusal;
use crate::address::PciAddress;
use crate::device::Device;
use crate::inventory;
use crate::kernel::{EswitchMode, KernelError, PfHealth, PfState, Rate, VfSettings, VfState};
use crate::sysfs::{self, Dir};
use std::collections::HashMap;
use std::thread::sleep;
use std::time::Duration;

/// A VF of which its PF does not tell is being reset: tries, and the pause between them.
const UNREPORTED_TRIES: u32 = 20;
const UNREPORTED_PAUSE: Duration = Duration::from_millis(100);

/// What is read beside sysfs, once for all VFs of a PF.
pub(crate) struct View {
    links: Vec<LinkInfo>,
    eswitch: Option<EswitchMode>,
    ports: Vec<VfPort>,
    rates: Vec<(u32, Rate)>,
}

impl View {
    /// Without what may block while an operation on the PF hangs: devlink, whose lock that operation holds.
    pub(crate) fn cautious(device: &Device) -> Result<View, KernelError> {
        let links = links::list().map_err(|r| refused(device, "Listing the interfaces", &r))?;
        Ok(View {
            links,
            eswitch: None,
            ports: Vec::new(),
            rates: Vec::new(),
        })
    }

    pub(crate) fn whole(device: &Device) -> Result<View, KernelError> {
        let mut view = View::cautious(device)?;
        let mut devlink = match Devlink::open() {
            Ok(devlink) => devlink,
            // No driver with devlink is loaded.
            Err(refusal) if refusal.errno == libc::ENOENT => return Ok(view),
            Err(refusal) => return Err(refused(device, "Opening devlink", &refusal)),
        };
        let read = |r: Refusal| refused(device, "Reading the eswitch", &r);
        view.eswitch = devlink.eswitch(device).map_err(read)?;
        if view.eswitch == Some(EswitchMode::Switchdev) {
            view.ports = devlink.vf_ports(device).map_err(read)?;
            view.rates = devlink.rates(device).map_err(read)?;
        }
        Ok(view)
    }

    /// The PF's own interface: the uplink, not a representor.
    pub(crate) fn uplink(&self, tree: &Tree, device: &Device) -> Option<&LinkInfo> {
        let own = self.links.iter().filter(|link| !link.represents());
        let mut of_device = own.clone().filter(|link| link.is_of(device));
        // Kernels before 5.14 do not say which device an interface is of; sysfs does.
        of_device.next().or_else(|| {
            let names = interface_names(&tree.dir(device));
            own.clone()
                .find(|link| link.parent.is_none() && names.contains(&link.name))
        })
    }

    /// The eswitch's mode, where there is one to choose.
    pub(crate) fn eswitch(&self) -> Option<EswitchMode> {
        self.eswitch
    }

    /// Representors by VF number.
    pub(crate) fn representors(&self) -> HashMap<u32, String> {
        let ports = self.ports.iter();
        ports
            .filter_map(|port| Some((port.vf, port.interface.clone()?)))
            .collect()
    }

    /// What the PF has set for its VFs, by number; empty where it cannot be read.
    pub(crate) fn settings(&self, tree: &Tree, device: &Device) -> HashMap<u32, VfSettings> {
        let link = self.uplink(tree, device);
        let read = link.map(|link| vf_attributes::read(link.index).unwrap_or_default());
        read.unwrap_or_default().into_iter().collect()
    }

    fn representor(&self, index: u32) -> Option<String> {
        self.ports
            .iter()
            .find(|port| port.vf == index)?
            .interface
            .clone()
    }
}

/// Interfaces stand in `net/` of the function itself.
fn interface_names(dir: &Dir) -> Vec<String> {
    dir.entries("net")
}

/// The PF. Where `cautious`, an operation on it hangs: nothing is read that would hang too.
pub(crate) fn pf(
    tree: &Tree,
    device: &Device,
    view: &View,
    cautious: bool,
) -> Result<PfState, KernelError> {
    let dir = present(tree, device)?;
    let uplink = view.uplink(tree, device);
    let number = |attribute| dir.number(attribute).and_then(|n| u16::try_from(n).ok());
    let counted = || u32::try_from(tree.vf_functions(device).len()).ok();
    let num_vfs = if cautious {
        counted()
    } else {
        tree.num_vfs(device)
    };
    Ok(PfState {
        device: device.clone(),
        vendor: number("vendor").unwrap_or(0),
        device_id: number("device").unwrap_or(0),
        driver: driver(&dir, device),
        interface: uplink.map(|link| link.name.clone()),
        mtu: uplink.map(|link| link.mtu),
        up: uplink.is_some_and(|link| link.up),
        total_vfs: tree.total_vfs(device),
        num_vfs: num_vfs.unwrap_or(0),
        autoprobe: dir.number("sriov_drivers_autoprobe") != Some(0),
        eswitch: view.eswitch,
        numa_node: dir
            .number("numa_node")
            .and_then(|node| u32::try_from(node).ok()),
        root_port: tree.root_port(device),
    })
}

/// What the PF says of its errors; nothing where neither the platform nor its driver counts any.
pub(crate) fn health(tree: &Tree, device: &Device) -> Result<PfHealth, KernelError> {
    let dir = present(tree, device)?;
    let reporters = Devlink::open().and_then(|mut devlink| devlink.health(device));
    Ok(PfHealth {
        aer: inventory::aer(&dir),
        reporters: reporters.unwrap_or_default(),
    })
}

/// PCI NICs that are neither PFs nor VFs, from sysfs alone: nothing of it can block.
pub(crate) fn without_sriov(tree: &Tree) -> Vec<PfState> {
    let plain = |address: PciAddress| {
        let (dir, device) = (tree.function(address), Device::Pci(address));
        if dir.link_name("physfn").is_some() || tree.total_vfs(&device) > 0 {
            return None;
        }
        let number = |attribute| dir.number(attribute).and_then(|n| u16::try_from(n).ok());
        Some(PfState {
            vendor: number("vendor").unwrap_or(0),
            device_id: number("device").unwrap_or(0),
            driver: driver(&dir, &device),
            interface: interface_names(&dir).into_iter().next(),
            mtu: None,
            up: false,
            total_vfs: 0,
            num_vfs: 0,
            autoprobe: true,
            eswitch: None,
            numa_node: dir
                .number("numa_node")
                .and_then(|node| u32::try_from(node).ok()),
            root_port: tree.root_port(&device),
            device,
        })
    };
    tree.nics().into_iter().filter_map(plain).collect()
}

fn driver(dir: &Dir, device: &Device) -> Option<String> {
    match device {
        Device::Pci(_) => dir.link_name("driver"),
        // Its own bus has one driver, which is always bound.
        Device::Netdevsim(_) => Some(
            dir.link_name("driver")
                .unwrap_or_else(|| "netdevsim".into()),
        ),
    }
}

/// The directory of a device that is there.
pub(crate) fn present(tree: &Tree, device: &Device) -> Result<Dir, KernelError> {
    let dir = tree.dir(device);
    if sysfs::exists(&dir.0) {
        return Ok(dir);
    }
    Err(KernelError::Gone {
        device: device.to_string(),
        what: format!("no such device in /sys/bus/{}/devices", device.bus()),
    })
}

/// Every VF of `device`, or only VF `only`.
pub(crate) fn vfs(
    tree: &Tree,
    device: &Device,
    view: &View,
    only: Option<u32>,
) -> Result<Vec<VfState>, KernelError> {
    present(tree, device)?;
    let count = tree.num_vfs(device).unwrap_or(0);
    let functions: HashMap<u32, PciAddress> = tree.vf_functions(device).into_iter().collect();
    let mut settings: HashMap<u32, VfSettings> = match view.uplink(tree, device) {
        Some(link) if count > 0 => vf_attributes::read(link.index)
            .map_err(|r| refused(device, &format!("Reading the settings of {count} VFs"), &r))?
            .into_iter()
            .collect(),
        _ => HashMap::new(),
    };
    if let Some(index) = only.filter(|index| *index < count && unreported(&settings, *index)) {
        return Err(KernelError::Refused {
            device: device.to_string(),
            what: format!("Reading the settings of VF {index}"),
            errno: libc::EBUSY,
            hint: Some(
                "its PF tells of other VFs and not of this one, as while it is being reset".into(),
            ),
        });
    }
    let numbers = (0..count).filter(|index| only.is_none_or(|only| only == *index));
    let vfs = numbers.map(|index| {
        let function = functions.get(&index).copied();
        let settings = settings.remove(&index).unwrap_or_default();
        vf(tree, view, index, function, settings)
    });
    Ok(vfs.collect())
}

/// Whether the driver tells of VFs, but not of this one (`ndo_get_vf_config` fails for it, and the kernel leaves
/// it out). To take that for a VF without settings would be to call it clean.
fn unreported(settings: &HashMap<u32, VfSettings>, index: u32) -> bool {
    !settings.is_empty() && !settings.contains_key(&index)
}

fn vf(
    tree: &Tree,
    view: &View,
    index: u32,
    function: Option<PciAddress>,
    settings: VfSettings,
) -> VfState {
    let mut state = VfState {
        index,
        address: function,
        driver: None,
        driver_override: None,
        interface: None,
        iommu_group: None,
        representor: view.representor(index),
        settings,
    };
    let port = view.ports.iter().find(|port| port.vf == index);
    let rate = port.and_then(|port| view.rates.iter().find(|(at, _)| *at == port.port));
    if let Some((_, rate)) = rate {
        state.settings.rate = *rate;
    }
    if let Some(function) = function {
        let dir = tree.function(function);
        state.driver = dir.link_name("driver");
        state.driver_override = dir.text("driver_override").filter(|name| name != "(null)");
        state.iommu_group = dir
            .link_name("iommu_group")
            .and_then(|group| group.parse().ok());
        state.interface = interface_of(&dir, function, &view.links);
    }
    state
}

/// The VF's interface in this network namespace. sysfs shows those of the namespace that it was mounted in,
/// the list those of ours: it must be in both, where the list says whose it is.
fn interface_of(dir: &Dir, function: PciAddress, links: &[LinkInfo]) -> Option<String> {
    let device = Device::Pci(function);
    let listed = links.iter().find(|link| link.is_of(&device));
    listed.map(|link| link.name.clone()).or_else(|| {
        let names = interface_names(dir);
        let found = links
            .iter()
            .find(|link| link.parent.is_none() && names.contains(&link.name));
        found.map(|link| link.name.clone())
    })
}

/// One VF.
pub(crate) fn one_vf(
    tree: &Tree,
    device: &Device,
    view: &View,
    index: u32,
) -> Result<VfState, KernelError> {
    let mut tries = 1;
    let found = loop {
        match vfs(tree, device, view, Some(index)) {
            Err(error) if error.errno() == Some(libc::EBUSY) && tries < UNREPORTED_TRIES => {
                tries += 1;
                sleep(UNREPORTED_PAUSE);
            }
            other => break other?,
        }
    };
    found.into_iter().next().ok_or_else(|| KernelError::Gone {
        device: device.to_string(),
        what: format!("VF {index}; it has {}", tree.num_vfs(device).unwrap_or(0)),
    })
}

/// A VF's PCI function without asking anything that blocks.
pub(crate) fn function_of(tree: &Tree, device: &Device, index: u32) -> Option<PciAddress> {
    let functions = tree.vf_functions(device);
    functions
        .into_iter()
        .find(|(at, _)| *at == index)
        .map(|(_, function)| function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::real::testtree;

    fn view(links: Vec<LinkInfo>) -> View {
        View {
            links,
            eswitch: None,
            ports: Vec::new(),
            rates: Vec::new(),
        }
    }

    fn link(index: u32, name: &str, parent: Option<&str>, port: Option<&str>) -> LinkInfo {
        LinkInfo {
            index,
            name: name.into(),
            mtu: 1500,
            up: true,
            parent: parent.map(|p| ("pci".to_owned(), p.to_owned())),
            port_name: port.map(str::to_owned),
            ..LinkInfo::default()
        }
    }

    #[test]
    fn a_pf_is_put_together() {
        let root = testtree::igb(2);
        let tree = Tree(root.path().to_owned());
        let device: Device = "0000:01:00.0".parse().unwrap();
        let view = view(vec![
            link(5, "fvrep1", Some("0000:01:00.0"), Some("pf0vf1")),
            link(6, "fvpf0", Some("0000:01:00.0"), None),
        ]);
        let state = pf(&tree, &device, &view, false).unwrap();
        assert_eq!(state.interface.as_deref(), Some("fvpf0"));
        assert_eq!((state.total_vfs, state.num_vfs, state.up), (7, 2, true));
        assert_eq!((state.vendor, state.device_id), (0x8086, 0x10c9));
        assert_eq!(state.driver.as_deref(), Some("igb"));
        assert_eq!(state.numa_node, None);
        // Something hangs: the links are counted instead of asking.
        std::fs::remove_file(tree.dir(&device).0.join("sriov_numvfs")).unwrap();
        assert_eq!(pf(&tree, &device, &view, true).unwrap().num_vfs, 2);
        assert_eq!(pf(&tree, &device, &view, false).unwrap().num_vfs, 0);
    }

    #[test]
    fn older_kernels_tell_the_interface_by_sysfs() {
        let root = testtree::igb(1);
        let tree = Tree(root.path().to_owned());
        let device: Device = "0000:01:00.0".parse().unwrap();
        let view = view(vec![
            link(2, "other", None, None),
            link(3, "fvpf0", None, None),
            link(4, "fvvf0", None, None),
        ]);
        assert_eq!(view.uplink(&tree, &device).unwrap().index, 3);
        let function = function_of(&tree, &device, 0).unwrap();
        let vf = vf(&tree, &view, 0, Some(function), VfSettings::default());
        assert_eq!(vf.interface.as_deref(), Some("fvvf0"));
    }

    #[test]
    fn a_vf_is_put_together_and_its_link_may_be_late() {
        let root = testtree::igb(2);
        let tree = Tree(root.path().to_owned());
        let device: Device = "0000:01:00.0".parse().unwrap();
        let mut view = view(vec![link(7, "fvvf1", Some("0000:01:10.2"), None)]);
        view.ports = vec![VfPort {
            vf: 1,
            port: 9,
            interface: Some("fvrep1".into()),
        }];
        view.rates = vec![(9, Rate { min: 1, max: 2 })];
        let function = function_of(&tree, &device, 1).unwrap();
        let state = vf(&tree, &view, 1, Some(function), VfSettings::default());
        assert_eq!(state.driver.as_deref(), Some("igbvf"));
        assert_eq!(state.driver_override, None);
        assert_eq!(state.interface.as_deref(), Some("fvvf1"));
        assert_eq!(state.iommu_group, Some(21));
        assert_eq!(state.representor.as_deref(), Some("fvrep1"));
        assert_eq!(state.settings.rate, Rate { min: 1, max: 2 });
        std::fs::remove_file(tree.dir(&device).0.join("virtfn1")).unwrap();
        assert_eq!(function_of(&tree, &device, 1), None);
    }

    #[test]
    fn a_vf_that_is_left_out_is_not_one_without_settings() {
        let all = HashMap::from([(0, VfSettings::default()), (2, VfSettings::default())]);
        assert!(!unreported(&all, 0) && !unreported(&all, 2));
        assert!(unreported(&all, 1));
        // A driver that tells of no VF has no settings to tell of.
        assert!(!unreported(&HashMap::new(), 1));
    }

    #[test]
    fn nics_without_sriov_are_no_pfs_and_no_vfs() {
        let root = testtree::igb(2);
        let tree = Tree(root.path().to_owned());
        assert_eq!(without_sriov(&tree), []);
        // The firmware of some NICs can be set to offer none.
        let pf = tree.dir(&"0000:01:00.0".parse().unwrap()).0;
        std::fs::write(pf.join("sriov_totalvfs"), "0").unwrap();
        let found = without_sriov(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].device.to_string(), "0000:01:00.0");
        assert_eq!(found[0].interface.as_deref(), Some("fvpf0"));
        assert_eq!(found[0].driver.as_deref(), Some("igb"));
    }

    #[test]
    fn what_is_not_there_is_gone() {
        let root = testtree::igb(0);
        let tree = Tree(root.path().to_owned());
        let nowhere: Device = "0000:09:00.0".parse().unwrap();
        let error = pf(&tree, &nowhere, &view(Vec::new()), false).unwrap_err();
        assert!(matches!(error, KernelError::Gone { .. }), "{error}");
        let pf: Device = "0000:01:00.0".parse().unwrap();
        let error = one_vf(&tree, &pf, &view(Vec::new()), 3).unwrap_err();
        assert!(error.to_string().contains("VF 3; it has 0"), "{error}");
    }
}
