//! PFs and VFs as the manager shows them: what the kernel says, beside what the journal and the policies say.

use crate::allocation::Phase;
use crate::device::VfId;
use crate::kernel::{PfState, VfState};
use serde::{Deserialize, Serialize};

/// Who made the VFs of a PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// We did.
    Ours,
    /// Somebody else did, and we were told to take them over.
    Adopted,
    /// Somebody else does, and a policy says that we may hand them out.
    External,
    /// Somebody else did: not touched.
    Foreign,
    /// There are none.
    None,
}

/// A PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfView {
    /// What the kernel says.
    pub state: PfState,
    /// Who made its VFs.
    pub ownership: Ownership,
    /// The policies that match it, strongest first.
    pub policies: Vec<String>,
    /// The pools its VFs are in.
    pub pools: Vec<String>,
    /// VFs that are handed out.
    pub allocated: u32,
    /// Why nothing is written to it, where that is so.
    pub wedged: Option<String>,
    /// What is not well, in sentences; empty: it is well.
    pub problems: Vec<String>,
}

/// A VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfView {
    /// Which.
    pub id: VfId,
    /// What the kernel says.
    pub state: VfState,
    /// The pool it is in.
    pub pool: Option<String>,
    /// To whom it is handed out.
    pub owner: Option<String>,
    /// Where in its life it is, while it is handed out or on its way.
    pub phase: Option<Phase>,
    /// Who has it open, as the kernel says.
    pub holders: Vec<String>,
}
