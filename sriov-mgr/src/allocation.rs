//! A VF that is handed out: what is asked for, and what was given.

use crate::address::PciAddress;
use crate::device::{Device, VfId};
use crate::kernel::{Rate, VfLinkState, Vlan};
use crate::policy::VfDriver;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What somebody asks for. What is `None` is chosen: by the policies of the VF, else by the manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// For whom: `port/<id>`, `vm/<domain>`, `cli/<name>`. An owner has one VF; asking again gives the same.
    pub owner: String,
    /// The pool to take it from; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// This VF and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<VfChoice>,
    /// The NUMA node to be near to. One on another node is given when there is none, with a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// PFs to stay away from, because another VF of the same VM is there. One of these is given when there
    /// is no other, with a note.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid_pfs: Vec<Device>,
    /// MAC address: unicast, unique on this host. Absent: one is made from the owner's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
    /// VLAN; id 0: none, whatever the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Transmit rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Check of source addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoofchk: Option<bool>,
    /// Trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// What link the VF sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLinkState>,
    /// The driver to hand it out with. Absent here and in the policy: it stays without a driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<VfDriver>,
}

/// One VF, by either of its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfChoice {
    /// PF and number.
    Vf(VfId),
    /// PCI address.
    Address(PciAddress),
}

impl fmt::Display for VfChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VfChoice::Vf(vf) => vf.fmt(f),
            VfChoice::Address(address) => address.fmt(f),
        }
    }
}

/// Settings a VF is handed out with. `None`: nobody asked, so it is the safe default where the NIC has the
/// attribute, and nothing where it has not. `Some`: asked for, so a NIC that cannot do it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// MAC address.
    pub mac: [u8; 6],
    /// VLAN; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Rates; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Check of source addresses; default: on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoofchk: Option<bool>,
    /// Trust; default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// What link the VF sees; default: the PF's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLinkState>,
}

/// Where an allocation is in its life. See the diagram in the crate's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Chosen; its settings are being made.
    Configuring,
    /// Its settings are read back; it gets its driver.
    Binding,
    /// Handed out.
    InUse,
    /// Given back: its driver is taken away.
    Unbinding,
    /// Given back: the function is reset.
    Resetting,
    /// Given back: the settings go back to the defaults.
    Cleaning,
}

impl Phase {
    /// Whether it is on its way back.
    pub fn releasing(self) -> bool {
        matches!(self, Phase::Unbinding | Phase::Resetting | Phase::Cleaning)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Configuring => "configuring",
            Phase::Binding => "binding",
            Phase::InUse => "in use",
            Phase::Unbinding => "releasing: unbinding",
            Phase::Resetting => "releasing: resetting",
            Phase::Cleaning => "releasing: cleaning",
        })
    }
}

/// Which VF of that number it is: one that was removed and made again is another one, whatever its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The boot in which it was made.
    pub boot: String,
    /// How often the VFs of its PF had been made until then, as far as we know.
    pub creation: u64,
}

/// A VF that is handed out, or on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// For whom.
    pub owner: String,
    /// Different for each allocation there ever was on this host.
    pub serial: u64,
    /// Which VF.
    pub vf: VfId,
    /// Its PCI function; absent where VFs are no functions (netdevsim).
    pub address: Option<PciAddress>,
    /// The pool it was taken from.
    pub pool: Option<String>,
    /// The VF as it was then.
    pub identity: Identity,
    /// What it was asked for with.
    pub request: Request,
    /// Its settings.
    pub settings: Settings,
    /// Its driver; `None`: it has none.
    pub driver: Option<VfDriver>,
    /// It had its kernel driver before, and gets it again when it is released.
    pub was_bound: bool,
    /// Where in its life it is.
    pub phase: Phase,
    /// What is not as one would expect, such as "0000:3b:00.0 is on NUMA node 1, not 0".
    pub notes: Vec<String>,
}

/// What became of a VF that was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Whose it was.
    pub owner: String,
    /// Which; absent: the owner had none, and nothing was touched.
    pub vf: Option<VfId>,
    /// What is worth knowing, such as who still used it.
    pub notes: Vec<String>,
}
