//! Why the manager did not do what it was asked. Each is a sentence for the operator.

use crate::device::{Device, VfId};
use crate::journal::JournalError;
use crate::kernel::KernelError;
use crate::plan::Disturbed;

/// The manager did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal cannot be read or written; without it nothing is done.
    #[error("The journal of the VFs does not work")]
    Journal(#[from] JournalError),
    /// The kernel did not do its part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Nothing by that name.
    #[error("{0}")]
    NotFound(String),
    /// No VF is free.
    #[error("{0}")]
    Exhausted(String),
    /// Made by somebody else, and so not touched.
    #[error("{device} is not Ferrovia's: {why}")]
    NotOurs {
        /// The device.
        device: Device,
        /// What says so, and what to do.
        why: String,
    },
    /// It would disturb somebody.
    #[error("{what} disturbs {}; end their use first, or force it", list(disturbs))]
    Disturbs {
        /// What would be done.
        what: String,
        /// To whom.
        disturbs: Vec<Disturbed>,
    },
    /// The NIC cannot do what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel said yes and did something else.
    #[error("{vf} did not become what was asked for: {difference}")]
    NotTaken {
        /// The VF.
        vf: VfId,
        /// Attribute, what was asked, what is there.
        difference: String,
    },
    /// The PF did not become what was asked for.
    #[error("{device}: {why}")]
    Partition {
        /// The PF.
        device: Device,
        /// What happened, what was undone, what to do.
        why: String,
    },
    /// The VF is not yet clean and is kept back.
    #[error("{vf} is kept back from use until it is clean: {why}")]
    Unclean {
        /// The VF.
        vf: VfId,
        /// What failed.
        why: String,
    },
}

/// The first few: of a NIC whose VFs are all in use, the whole would be longer than what carries an error to its
/// caller takes (16 KiB with gRPC). The plan has them all.
fn list(disturbs: &[Disturbed]) -> String {
    const SHOWN: usize = 8;
    let mut texts: Vec<String> = disturbs
        .iter()
        .take(SHOWN)
        .map(Disturbed::to_string)
        .collect();
    if disturbs.len() > SHOWN {
        texts.push(format!("and {} more", disturbs.len() - SHOWN));
    }
    texts.join(", ")
}
