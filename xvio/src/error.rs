//! What can fail, as the operator or the caller can act on it.

use std::io;
use std::path::PathBuf;

/// Why a backend cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers on that socket.
    #[error(
        "Socket {path} is in use by another process; stop that process or give the port another socket"
    )]
    SocketInUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path exists and is no socket.
    #[error("{path} exists and is not a socket; remove it or give the port another socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("Socket path {path} is too long: at most {max} bytes fit; use a shorter directory")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Longest path that fits, in bytes.
        max: usize,
    },
    /// A step of making the socket failed.
    #[error("Socket {path}: cannot {step}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What was attempted.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error("Vhost-user port {name}: {reason}")]
    Config {
        /// The port's name.
        name: String,
        /// What to change.
        reason: String,
    },
    /// Threads or descriptors ran out.
    #[error("Vhost-user port {name}: cannot {step}")]
    System {
        /// The port's name.
        name: String,
        /// What was attempted.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a packet did not go to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The guest has not provided enough buffers.
    #[error("The guest's receive ring is full")]
    Full,
    /// No frontend, the ring is not enabled, or it is broken.
    #[error("The guest's receive ring is not running")]
    Down,
    /// The packet does not fit into what one packet may take of this ring.
    #[error("The packet is longer than the guest's buffers can hold")]
    TooLong,
}

/// Why a packet could not be copied out of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The destination's length is not the packet's.
    #[error("The destination is {got} bytes long, the packet {wanted}")]
    Length {
        /// The packet's length.
        wanted: usize,
        /// The destination's length.
        got: usize,
    },
}
