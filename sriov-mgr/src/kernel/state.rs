//! What the kernel says of PFs and VFs, and what can be changed on a VF.

use super::real::devlink::Reporter;
use crate::address::PciAddress;
use crate::device::Device;
use crate::inventory::AerCounts;
use serde::{Deserialize, Serialize};

/// A PF as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfState {
    /// Which.
    pub device: Device,
    /// PCI vendor; 0 for a device that is not on PCI.
    pub vendor: u16,
    /// PCI device number of that vendor.
    pub device_id: u16,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// Its interface (the uplink representor in switchdev mode), in this network namespace.
    pub interface: Option<String>,
    /// MTU of the interface, bytes.
    pub mtu: Option<u32>,
    /// Whether the interface is up (administratively).
    pub up: bool,
    /// Most VFs the device can have.
    pub total_vfs: u32,
    /// VFs it has.
    pub num_vfs: u32,
    /// Whether new VFs are bound to their driver by themselves.
    pub autoprobe: bool,
    /// Mode of the eswitch; absent where the driver has none to choose.
    pub eswitch: Option<EswitchMode>,
    /// NUMA node, where the platform says.
    pub numa_node: Option<u32>,
    /// The PCI root port it hangs from.
    pub root_port: Option<PciAddress>,
}

/// What a PF says of its own errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfHealth {
    /// PCI errors, where the platform counts them.
    pub aer: Option<AerCounts>,
    /// Its driver's health reporters (devlink), those of its ports among them.
    pub reporters: Vec<Reporter>,
}

/// What the NIC's switch is to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EswitchMode {
    /// The NIC switches by MAC and VLAN by itself.
    Legacy,
    /// Each VF has a representor, and rules decide.
    Switchdev,
}

/// A VF as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfState {
    /// Its number on its PF, from 0.
    pub index: u32,
    /// Its PCI function; absent where VFs are no functions of their own (netdevsim), and for the moment
    /// in which sysfs does not show it yet.
    pub address: Option<PciAddress>,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// The only driver that may be bound to it, where that is set.
    pub driver_override: Option<String>,
    /// Its interface, in this network namespace.
    pub interface: Option<String>,
    /// Its IOMMU group of this boot: never to be stored.
    pub iommu_group: Option<u32>,
    /// Its representor, in switchdev mode.
    pub representor: Option<String>,
    /// What its PF has set for it.
    pub settings: VfSettings,
}

/// Settings of a VF that its PF holds (kernel: `struct ifla_vf_*`, `include/uapi/linux/if_link.h`). What the
/// driver does not report is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfSettings {
    /// Administrative MAC; all zero: the VF chooses.
    pub mac: Option<[u8; 6]>,
    /// VLAN that is put on and taken off.
    pub vlan: Vlan,
    /// Rates.
    pub rate: Rate,
    /// Whether source addresses are checked.
    pub spoofchk: Option<bool>,
    /// Whether the VF may change its MAC and be promiscuous.
    pub trust: Option<bool>,
    /// What link the VF sees.
    pub link_state: Option<VfLinkState>,
    /// Whether the VF may read the RSS table and key.
    pub query_rss: Option<bool>,
}

/// A VLAN set on a VF from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vlan {
    /// VLAN id, 1 to 4094; 0: none.
    pub id: u16,
    /// Priority, 0 to 7.
    #[serde(default)]
    pub qos: u8,
    /// Which tag.
    #[serde(default)]
    pub protocol: VlanProtocol,
}

/// EtherType of a VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VlanProtocol {
    /// 0x8100.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1q,
    /// 0x88a8.
    #[serde(rename = "802.1ad")]
    Dot1ad,
}

/// Transmit rates of a VF, Mbit/s; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Guaranteed.
    #[serde(default)]
    pub min: u32,
    /// At most.
    #[serde(default)]
    pub max: u32,
}

/// What link a VF sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfLinkState {
    /// The PF's.
    Auto,
    /// Always up: VFs of one PF reach each other without a cable.
    Enable,
    /// Always down.
    Disable,
}

/// A change of a VF's settings; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfChange {
    /// Administrative MAC.
    pub mac: Option<[u8; 6]>,
    /// VLAN; id 0 removes it.
    pub vlan: Option<Vlan>,
    /// Rates; 0 removes them.
    pub rate: Option<Rate>,
    /// Check of source addresses.
    pub spoofchk: Option<bool>,
    /// Trust.
    pub trust: Option<bool>,
    /// Link.
    pub link_state: Option<VfLinkState>,
}
