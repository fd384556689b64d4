//! What happens to PFs and VFs without our doing, and what is done about it.

use crate::device::{Device, VfId};
use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A PF that has VFs of ours, or is to have them, is not there.
    PfGone {
        /// Which.
        pf: Device,
    },
    /// It is there again.
    PfBack {
        /// Which.
        pf: Device,
    },
    /// It has no driver (for longer than a change of drivers takes).
    DriverGone {
        /// Which.
        pf: Device,
    },
    /// Nothing is written to it any more: an operation has not returned.
    PfWedged {
        /// Which.
        pf: Device,
        /// What hangs.
        why: String,
    },
    /// The operation that hung has returned.
    PfAnswers {
        /// Which.
        pf: Device,
    },
    /// All VFs of a PF have gone.
    VfsGone {
        /// Which PF.
        pf: Device,
        /// How many it had.
        count: u32,
    },
    /// They were made again.
    VfsMade {
        /// Which PF.
        pf: Device,
        /// How many.
        count: u32,
    },
    /// Somebody else changed the number of VFs.
    Drift {
        /// Which PF.
        pf: Device,
        /// What is not as it was left, and what to do.
        why: String,
    },
    /// A VF in use had lost its settings or driver; it has them again.
    Restored {
        /// Which VF.
        vf: VfId,
        /// Whose.
        owner: String,
        /// What it had lost.
        what: String,
    },
    /// A VF was handed out.
    Allocated {
        /// Which VF.
        vf: VfId,
        /// To whom.
        owner: String,
    },
    /// A VF was given back and is clean.
    Freed {
        /// Which VF.
        vf: VfId,
        /// Whose it was.
        owner: String,
    },
    /// A VF in use is no more: its PF has fewer now.
    Lost {
        /// Which VF.
        vf: VfId,
        /// Whose it was.
        owner: String,
    },
    /// Something could not be done; it is tried again at the next reconciliation.
    Failed {
        /// The PF.
        pf: Device,
        /// What, and why.
        why: String,
    },
}
