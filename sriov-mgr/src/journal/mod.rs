//! What was begun and what was handed out, on disk.

use std::path::PathBuf;

/// The journal does not work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("{} is in use by another process; one agent at a time may manage the VFs of a host", dir.display())]
    Locked {
        /// Its folder.
        dir: PathBuf,
    },
    /// It cannot be read or written.
    #[error("{what} {} failed: {why}", path.display())]
    Io {
        /// What was done: "Writing".
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}
