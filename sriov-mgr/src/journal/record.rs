//! What can be written down.

use super::Ledger;
use crate::address::PciAddress;
use crate::allocation::{Allocation, Identity, Phase};
use crate::device::Device;
use crate::kernel::{EswitchMode, VfChange};
use crate::recipe::Step;
use serde::{Deserialize, Serialize};

/// One thing that happened, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// The whole state: the first record of a file.
    Whole { ledger: Box<Ledger> },
    /// The host was started anew: no VF of before is there.
    Boot { boot: String },
    /// A PF is about to be changed; its first step is about to be done.
    Begin { pf: Device, operation: Operation },
    /// The next step is about to be done.
    Step { pf: Device, at: usize },
    /// The change has ended, well or not; the PF has this many VFs.
    End {
        pf: Device,
        num_vfs: u32,
        hold: Hold,
    },
    /// Somebody else's VFs are ours now.
    Adopt {
        pf: Device,
        num_vfs: u32,
        before: Before,
    },
    /// The PF is nothing of ours any more.
    Disown { pf: Device },
    /// The PF's VFs have gone without our doing.
    Gone { pf: Device },
    /// A VF is about to be made ready for an owner.
    Allocate { allocation: Box<Allocation> },
    /// The next part of an allocation's life is about to begin.
    Phase { owner: String, phase: Phase },
    /// The VF was made anew and has its owner's settings again.
    Renew {
        owner: String,
        identity: Identity,
        address: Option<PciAddress>,
    },
    /// The VF is clean, or no more.
    Free { owner: String },
}

/// Whose a PF is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hold {
    /// Not ours.
    #[default]
    None,
    /// We made its VFs.
    Made,
    /// We were told to take it over.
    Adopted,
}

/// How a PF was before we changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// PCI vendor and device: another NIC may be there after a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<(u16, u16)>,
    pub(crate) num_vfs: u32,
    pub(crate) autoprobe: bool,
    pub(crate) eswitch: Option<EswitchMode>,
    pub(crate) mtu: Option<u32>,
}

/// How a PF is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) num_vfs: u32,
    pub(crate) eswitch: Option<EswitchMode>,
    /// The interface's MTU, exactly; absent: as it is.
    pub(crate) mtu: Option<u32>,
    /// Whether the interface is to be up; otherwise it stays as it is.
    pub(crate) up: bool,
    /// VFs of pools, which get no driver before they are handed out.
    pub(crate) pooled: Vec<u32>,
    /// Settings of VFs in no pool.
    pub(crate) settings: Vec<(u32, VfChange)>,
}

/// A change of a PF that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) target: Target,
    /// To go back to when it does not work.
    pub(crate) from: Before,
    pub(crate) steps: Vec<Step>,
    /// The step that is about to be done, or has been.
    pub(crate) at: usize,
    /// Whose the PF is when it has ended well.
    pub(crate) then: Hold,
}
