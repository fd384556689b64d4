//! A NIC of the fake kernel: what it can do, and its state.

use super::super::{
    EswitchMode, PfHealth, PfState, Rate, VfChange, VfLinkState, VfSettings, VfState, Vlan,
    VlanProtocol,
};
use crate::address::PciAddress;
use crate::device::Device;
use std::collections::{BTreeMap, BTreeSet};

/// When a driver lets the eswitch's mode change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EswitchRule {
    /// The driver has no mode to choose: EOPNOTSUPP.
    None,
    /// At any time.
    Any,
    /// Only when no VF is bound to a driver: EBUSY otherwise (mlx5).
    VfsUnbound,
    /// Only without VFs: EOPNOTSUPP otherwise (ice).
    WithoutVfs,
}

/// A PF, and what its driver can do. Start from [`FakePf::igb`], [`FakePf::mlx5`], [`FakePf::ice`] or
/// [`FakePf::netdevsim`] and change what the test is about; a NIC without SR-IOV is [`FakePf::plain`].
#[derive(Clone, Debug)]
pub struct FakePf {
    /// Where it is.
    pub device: Device,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device number.
    pub device_id: u16,
    /// The driver it is bound to at the start.
    pub driver: String,
    /// Its interface's name.
    pub interface: String,
    /// Largest MTU, bytes.
    pub max_mtu: u32,
    /// Most VFs.
    pub total_vfs: u32,
    /// The driver makes no more than this and says nothing.
    pub gives_at_most: u32,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// Root port.
    pub root_port: Option<PciAddress>,
    /// The eswitch.
    pub eswitch: EswitchRule,
    /// The VFs' own driver; `None` where VFs are no functions.
    pub vf_driver: Option<String>,
    /// First VF offset and VF stride (SR-IOV capability): addresses of the VFs.
    pub vf_routing: (u16, u16),
    /// Reads of the VFs before sysfs shows their links (R3).
    pub late_links: u32,
    /// Whether a minimum rate is taken (EINVAL otherwise).
    pub min_rate: bool,
    /// Whether 802.1ad is taken (EPROTONOSUPPORT otherwise).
    pub dot1ad: bool,
    /// Whether a link state is taken (EOPNOTSUPP otherwise).
    pub link_state: bool,
    /// What stands against giving its VFs to vfio-pci.
    pub vfio_obstacles: Vec<String>,
    /// What it says of its errors.
    pub health: PfHealth,
}

impl FakePf {
    /// An Intel 82576: 7 VFs, no eswitch to choose, no minimum rate, no 802.1ad, no link state.
    ///
    /// # Panics
    /// When `address` is no PCI address: a mistake of the test.
    pub fn igb(address: &str, interface: &str) -> FakePf {
        FakePf {
            device: address.parse().expect("a PCI address"),
            vendor: 0x8086,
            device_id: 0x10c9,
            driver: "igb".into(),
            interface: interface.into(),
            max_mtu: 9216,
            total_vfs: 7,
            gives_at_most: 7,
            numa_node: Some(0),
            root_port: None,
            eswitch: EswitchRule::None,
            vf_driver: Some("igbvf".into()),
            vf_routing: (128, 2),
            late_links: 0,
            min_rate: false,
            dot1ad: false,
            link_state: false,
            vfio_obstacles: Vec::new(),
            health: PfHealth::default(),
        }
    }

    /// An Intel 82574L, which has no SR-IOV.
    ///
    /// # Panics
    /// As [`FakePf::igb`].
    pub fn plain(address: &str, interface: &str) -> FakePf {
        FakePf {
            device_id: 0x10d3,
            driver: "e1000e".into(),
            total_vfs: 0,
            gives_at_most: 0,
            vf_driver: None,
            ..FakePf::igb(address, interface)
        }
    }

    /// A ConnectX-6 Dx: 16 VFs, switchdev once its VFs are unbound.
    ///
    /// # Panics
    /// As [`FakePf::igb`].
    pub fn mlx5(address: &str, interface: &str) -> FakePf {
        FakePf {
            vendor: 0x15b3,
            device_id: 0x101d,
            driver: "mlx5_core".into(),
            total_vfs: 16,
            gives_at_most: 16,
            eswitch: EswitchRule::VfsUnbound,
            vf_driver: Some("mlx5_core".into()),
            vf_routing: (2, 1),
            min_rate: true,
            dot1ad: true,
            link_state: true,
            ..FakePf::igb(address, interface)
        }
    }

    /// An Intel E810: 64 VFs, switchdev only without VFs.
    ///
    /// # Panics
    /// As [`FakePf::igb`].
    pub fn ice(address: &str, interface: &str) -> FakePf {
        FakePf {
            device_id: 0x1592,
            driver: "ice".into(),
            total_vfs: 64,
            gives_at_most: 64,
            eswitch: EswitchRule::WithoutVfs,
            vf_driver: Some("iavf".into()),
            vf_routing: (8, 1),
            min_rate: true,
            dot1ad: true,
            link_state: true,
            ..FakePf::igb(address, interface)
        }
    }

    /// The kernel's simulated NIC: VFs are no functions, everything is taken.
    pub fn netdevsim(number: u32, interface: &str, total_vfs: u32) -> FakePf {
        FakePf {
            device: Device::Netdevsim(number),
            vendor: 0,
            device_id: 0,
            driver: "netdevsim".into(),
            interface: interface.into(),
            max_mtu: 65535,
            total_vfs,
            gives_at_most: total_vfs,
            numa_node: None,
            root_port: None,
            eswitch: EswitchRule::Any,
            vf_driver: None,
            vf_routing: (0, 0),
            late_links: 0,
            min_rate: true,
            dot1ad: true,
            link_state: true,
            vfio_obstacles: Vec::new(),
            health: PfHealth::default(),
        }
    }

    /// With this NUMA node.
    #[must_use]
    pub fn on_node(mut self, node: u32) -> FakePf {
        self.numa_node = Some(node);
        self
    }
}

/// A VF of a [`Nic`].
#[derive(Clone, Debug)]
pub(super) struct FakeVf {
    pub(super) driver: Option<String>,
    pub(super) driver_override: Option<String>,
    pub(super) iommu_group: Option<u32>,
    pub(super) settings: VfSettings,
}

/// A PF's state.
#[derive(Clone, Debug)]
pub(super) struct Nic {
    pub(super) is: FakePf,
    pub(super) present: bool,
    pub(super) driver: Option<String>,
    pub(super) autoprobe: bool,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) mode: EswitchMode,
    pub(super) vfs: Vec<FakeVf>,
    /// Reads that still do not see the links of new VFs.
    pub(super) late: u32,
    /// Drivers that VFs may be bound to, beside their own.
    pub(super) drivers: BTreeSet<String>,
    /// Who holds which VF. One that has it open (VFIO) keeps it from going away.
    pub(super) holders: BTreeMap<u32, Vec<Holder>>,
}

#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) name: String,
    pub(super) has_it_open: bool,
}

impl Nic {
    pub(super) fn new(is: FakePf) -> Nic {
        Nic {
            driver: Some(is.driver.clone()),
            present: true,
            autoprobe: true,
            mtu: 1500,
            up: true,
            mode: EswitchMode::Legacy,
            vfs: Vec::new(),
            late: 0,
            drivers: ["vfio-pci".to_owned()].into(),
            holders: BTreeMap::new(),
            is,
        }
    }

    pub(super) fn state(&self) -> PfState {
        let bound = self.driver.is_some();
        PfState {
            device: self.is.device.clone(),
            vendor: self.is.vendor,
            device_id: self.is.device_id,
            driver: self.driver.clone(),
            interface: bound.then(|| self.is.interface.clone()),
            mtu: bound.then_some(self.mtu),
            up: bound && self.up,
            total_vfs: self.is.total_vfs,
            num_vfs: self.vfs.len() as u32,
            autoprobe: self.autoprobe,
            eswitch: (bound && self.is.eswitch != EswitchRule::None).then_some(self.mode),
            numa_node: self.is.numa_node,
            root_port: self.is.root_port,
        }
    }

    /// The PCI function of VF `index`: routing id of the PF, plus offset, plus stride times the number
    /// (PCI Express base specification, SR-IOV capability).
    pub(super) fn vf_address(&self, index: u32) -> Option<PciAddress> {
        let pf = self.is.device.pci()?;
        self.is.vf_driver.as_ref()?;
        let (offset, stride) = self.is.vf_routing;
        let rid = u32::from(pf.bus) << 8 | u32::from(pf.device) << 3 | u32::from(pf.function);
        let rid = rid + u32::from(offset) + u32::from(stride) * index;
        Some(PciAddress {
            domain: pf.domain,
            bus: (rid >> 8) as u8,
            device: (rid >> 3 & 31) as u8,
            function: (rid & 7) as u8,
        })
    }

    pub(super) fn vf_state(&self, index: u32) -> Option<VfState> {
        let vf = self.vfs.get(index as usize)?;
        let interface = vf.driver.is_some() && vf.driver == self.is.vf_driver;
        let shown = self.late == 0;
        Some(VfState {
            index,
            address: self.vf_address(index).filter(|_| shown),
            driver: vf.driver.clone().filter(|_| shown),
            driver_override: vf.driver_override.clone().filter(|_| shown),
            interface: (interface && shown).then(|| format!("{}v{index}", self.is.interface)),
            iommu_group: vf.iommu_group.filter(|_| shown),
            representor: (self.mode == EswitchMode::Switchdev)
                .then(|| format!("{}_{index}", self.is.interface)),
            settings: vf.settings.clone(),
        })
    }

    /// Makes or removes VFs. What was set on them goes (R14).
    pub(super) fn make_vfs(&mut self, count: u32, next_group: &mut u32) {
        self.vfs = (0..count)
            .map(|_| FakeVf {
                driver: self.is.vf_driver.clone().filter(|_| self.autoprobe),
                driver_override: None,
                iommu_group: self.is.vf_driver.is_some().then(|| {
                    *next_group += 1;
                    *next_group
                }),
                settings: VfSettings {
                    mac: Some([0, 0, 0, 0, 0, 0]),
                    vlan: Vlan::default(),
                    rate: Rate::default(),
                    spoofchk: Some(true),
                    trust: Some(false),
                    link_state: self.is.link_state.then_some(VfLinkState::Auto),
                    query_rss: None,
                },
            })
            .collect();
        self.late = if count > 0 { self.is.late_links } else { 0 };
        self.holders.clear();
    }

    /// The holder that keeps a VF from being removed or unbound.
    pub(super) fn kept_open(&self, index: Option<u32>) -> Option<&str> {
        self.holders
            .iter()
            .filter(|(vf, _)| index.is_none_or(|i| i == **vf))
            .flat_map(|(_, holders)| holders)
            .find(|holder| holder.has_it_open)
            .map(|holder| holder.name.as_str())
    }

    /// The driver that a probe of VF `index` finds.
    pub(super) fn driver_for(&self, index: u32) -> Option<String> {
        let vf = self.vfs.get(index as usize)?;
        match &vf.driver_override {
            Some(name) => (self.drivers.contains(name) || Some(name) == self.is.vf_driver.as_ref())
                .then(|| name.clone()),
            None => self.is.vf_driver.clone(),
        }
    }

    /// Applies up to `most` attributes of `change` in the kernel's order; those before a refused one stay.
    pub(super) fn change_vf(
        &mut self,
        index: u32,
        change: &VfChange,
        most: u32,
    ) -> Result<(), i32> {
        for one in attributes(change).into_iter().take(most as usize) {
            self.set_attribute(index, one)?;
        }
        Ok(())
    }

    fn set_attribute(&mut self, index: u32, one: Attribute) -> Result<(), i32> {
        let by_rate_objects = self.mode == EswitchMode::Switchdev && self.is.vf_driver.is_some();
        let vf = self.vfs.get_mut(index as usize).ok_or(libc::EINVAL)?;
        let settings = &mut vf.settings;
        match one {
            Attribute::Mac(mac) if mac[0] & 1 == 1 => return Err(libc::EINVAL),
            Attribute::Mac(mac) => settings.mac = Some(mac),
            Attribute::Vlan(vlan) if vlan.id > 4094 || vlan.qos > 7 => return Err(libc::EINVAL),
            Attribute::Vlan(vlan) if vlan.protocol == VlanProtocol::Dot1ad && !self.is.dot1ad => {
                return Err(libc::EPROTONOSUPPORT);
            }
            Attribute::Vlan(vlan) => settings.vlan = vlan,
            Attribute::Rate(rate) if rate.min > 0 && !self.is.min_rate => return Err(libc::EINVAL),
            Attribute::Rate(rate) if rate.max > 0 && rate.min > rate.max => {
                return Err(libc::EINVAL);
            }
            Attribute::Rate(rate) if by_rate_objects && rate != Rate::default() => {
                return Err(libc::EOPNOTSUPP);
            }
            Attribute::Rate(rate) => settings.rate = rate,
            Attribute::Spoofchk(on) => settings.spoofchk = Some(on),
            Attribute::Link(_) if !self.is.link_state => return Err(libc::EOPNOTSUPP),
            Attribute::Link(link) => settings.link_state = Some(link),
            Attribute::Trust(on) => settings.trust = Some(on),
        }
        Ok(())
    }
}

enum Attribute {
    Mac([u8; 6]),
    Vlan(Vlan),
    Rate(Rate),
    Spoofchk(bool),
    Link(VfLinkState),
    Trust(bool),
}

/// What `change` asks for, in the order in which the kernel does it (net/core/rtnetlink.c, `do_setvfinfo`).
fn attributes(change: &VfChange) -> Vec<Attribute> {
    let in_order = [
        change.mac.map(Attribute::Mac),
        change.vlan.map(Attribute::Vlan),
        change.rate.map(Attribute::Rate),
        change.spoofchk.map(Attribute::Spoofchk),
        change.link_state.map(Attribute::Link),
        change.trust.map(Attribute::Trust),
    ];
    in_order.into_iter().flatten().collect()
}
