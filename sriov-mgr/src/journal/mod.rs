//! What was begun and what was handed out, on disk before it happens.
//!
//! # What it is
//! A text file, `journal`, in a folder that one process at a time has locked. Its first line is
//! `ferrovia-sriov-journal 1` (the version); each other line is one commit:
//!
//! ```text
//! 9a1f0c3d5e7b2468 17 [{"is":"phase","owner":"port/1","phase":"binding"}]
//! checksum         n  records, as JSON
//! ```
//!
//! The checksum is the first 8 bytes of the SHA-256 of `n records`; `n` counts commits from 1. A line is on
//! disk (`fdatasync`) before what it announces is done. Records that several threads bring while a sync is
//! under way go to disk together as the next line, so a torn write tears one line, the last: it is dropped,
//! for nothing that it announces was begun. A bad line before the last is damage, and the journal does not open:
//! guessing whose VF it was about is worse than asking. So is a first line that is bad or missing: it was on disk
//! before the file had its name.
//!
//! When it has grown, and at each start, it is replaced by one record of the whole state: written beside it,
//! synced, renamed over it, and the folder synced.
//!
//! # Why this and not a database
//! The state is small (hundreds of VFs), the writes are many and must each be synced once and no more, and
//! when something has gone wrong an operator wants to read what happened with `less`.
//!
//! | file | is |
//! |---|---|
//! | `record` | what can be written down |
//! | `ledger` | the state that the records make |
//! | `file` | lines and checksums |
//! | `store` | ledger and file together: group commit, replacement |
//! | `crash` | where tests let the process die |

mod crash;
mod file;
mod ledger;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub use crash::CrashPoints;
pub(crate) use ledger::{Ledger, PfEntry};
pub(crate) use record::{Before, Hold, Operation, Record, Target};
pub(crate) use store::Store;

use std::path::PathBuf;

/// The journal does not work. Without it nothing is done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("{} is in use by another process; one agent at a time may manage the VFs of a host", dir.display())]
    Locked {
        /// Its folder.
        dir: PathBuf,
    },
    /// It cannot be read or written.
    #[error("{what} {} failed: {why}; nothing more is done to VFs until the agent is started anew", path.display())]
    Io {
        /// What was done: "Writing".
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is not what was written.
    #[error(
        "{}, line {line}, is damaged: {why}; what follows it cannot be trusted. Compare `ferrovia vf list` with the \
         VMs of this host, move the file away, and adopt the PFs again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// It is of another version.
    #[error("{} is of version {version}, and this agent knows version 1; start the agent that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: String,
    },
}
