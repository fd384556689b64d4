//! What the operator wants of the NICs: policies, as the agent's TOML and the API give them.
//!
//! A [`Policy`] selects PFs (and, with `eth0#0-3`, some of their VFs) and says how they are to be. Several
//! policies may match one PF: of each attribute, the policy with the smallest priority number that sets it
//! wins (0 is the strongest, 99 the weakest and the default, as with the SR-IOV network operator).
//! Two policies of the same priority that claim the same VFs are refused.
//!
//! | file | is |
//! |---|---|
//! | `select` | whether a PF is meant, and which of its VFs |
//! | `aim` | whether what is selected is there and can have VFs |
//! | `check` | what is wrong with a set of policies, by itself and on this host |
//! | `resolve` | the set made into one [`Wanted`] for each PF |

mod aim;
mod check;
mod resolve;
mod select;

pub(crate) use aim::{absent, without_sriov};
pub(crate) use check::label;
pub use check::{PolicyProblem, check};
pub use resolve::{Wanted, WantedVf, resolve};
pub use select::{PfSelector, Selector, VfRange};

use crate::kernel::{EswitchMode, Rate, VfLinkState, VlanProtocol};
use serde::{Deserialize, Serialize};

/// The weakest priority, and the default.
pub const WEAKEST: u8 = 99;

/// How some PFs and their VFs are to be. What is absent is left as it is, or to another policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name, for messages; not empty, different from every other's.
    pub name: String,
    /// 0 (strongest) to 99 (weakest, the default).
    #[serde(default = "weakest")]
    pub priority: u8,
    /// Which PFs.
    #[serde(default)]
    pub select: Selector,
    /// How many VFs; 0: none.
    #[serde(default)]
    pub num_vfs: Option<u32>,
    /// Smallest MTU of the PF's interface, bytes. A PF that has more keeps it: it carries these too.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Mode of the eswitch.
    #[serde(default)]
    pub eswitch: Option<EswitchMode>,
    /// Settings of the VFs, where whoever asks for one does not say otherwise.
    #[serde(default)]
    pub defaults: VfDefaults,
    /// The pool that the VFs can be asked for from.
    #[serde(default)]
    pub pool: Option<String>,
    /// The driver that the VFs of the pool are given when they are handed out.
    #[serde(default)]
    pub driver: Option<VfDriver>,
    /// Somebody else makes the VFs: they may be handed out, but the PF (number of VFs, eswitch, MTU, link)
    /// is never changed.
    #[serde(default)]
    pub external: bool,
}

/// One that selects every PF, wants nothing of it, and is the weakest.
impl Default for Policy {
    fn default() -> Self {
        Policy {
            name: String::new(),
            priority: WEAKEST,
            select: Selector::default(),
            num_vfs: None,
            mtu: None,
            eswitch: None,
            defaults: VfDefaults::default(),
            pool: None,
            driver: None,
            external: false,
        }
    }
}

fn weakest() -> u8 {
    WEAKEST
}

/// Settings that a policy gives to VFs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfDefaults {
    /// VLAN id, 0 to 4094; 0: none.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Priority in the VLAN tag, 0 to 7.
    #[serde(default)]
    pub qos: Option<u8>,
    /// Which tag.
    #[serde(default)]
    pub protocol: Option<VlanProtocol>,
    /// Transmit rates, Mbit/s; 0: none.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Whether source addresses are checked.
    #[serde(default)]
    pub spoofchk: Option<bool>,
    /// Whether the VF may change its MAC and be promiscuous.
    #[serde(default)]
    pub trust: Option<bool>,
    /// What link the VF sees.
    #[serde(default)]
    pub link_state: Option<VfLinkState>,
}

/// The driver that a VF is given when it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfDriver {
    /// The one that the kernel finds for it.
    Kernel,
    /// vfio-pci, for a VM or DPDK.
    Vfio,
}
