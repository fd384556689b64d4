//! # XVIO: the vhost-user virtio-net device
//!
//! A guest keeps its plain virtio-net driver; this crate is the device behind it. The guest's
//! memory and rings are shared with us over a vhost-user socket, and a worker moves packets in
//! bursts between the rings and whatever it switches to.
//!
//! ```text
//!   frontend (QEMU, DPDK virtio-user)              worker (one per queue pair)
//!        │ vhost-user messages                        │ GuestTx::poll / complete
//!        ▼                                            │ GuestRx::send / flush
//!   socket ─▶ wire ─▶ messages ──── gate ──────────▶ ring ──────▶ guest memory
//!            framing   what they      closed while      chains,      mapped once,
//!            and fds   mean           rings change      used ring    bounds kept
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `backend.rs` | [`Backend`]: configuration, status, start and end |
//! | `server.rs` | the message thread: connection, reconnection, answers |
//! | `quiet.rs` | how much a port's frontend may fill the log |
//! | `socket.rs` | the listening socket's file: ownership, permissions, stale and live sockets |
//! | `wire.rs` | the framing of messages and their file descriptors, with deadlines |
//! | `messages.rs`, `messages/` | what each message does to the device |
//! | `device.rs` | the device's state: features, memory table, the set-up of each ring |
//! | `gate.rs` | the gate between a worker and the message thread (checked with loom) |
//! | `memory.rs` | mapped guest memory, and its addresses |
//! | `access.rs` | the only raw accesses to it |
//! | `sigbus.rs` | guest memory that is taken away while it is mapped |
//! | `queue.rs` | one vring as worker and message thread share it |
//! | `doorbell.rs` | ringing the guest's eventfds without ever waiting for them |
//! | `ring.rs` | a ring of either layout: chains in bulk, used entries in bulk |
//! | `walk.rs` | the walk through the descriptors of a chain |
//! | `split.rs`, `packed.rs` | the two layouts |
//! | `hooks.rs` | what a ring tells in-flight tracking and dirty logging |
//! | `inflight.rs` | the in-flight table: what a killed backend had taken |
//! | `dirty.rs` | the dirty log of a live migration |
//! | `rarp.rs` | the frame that says where a guest is now |
//! | `net_header.rs` | the virtio-net header |
//! | `tx.rs`, `rx.rs` | the burst interface: guest to us, us to guest |
//! | `features.rs` | the feature bits and what is offered |
//! | `clock.rs` | the processor's counter, for less than a microsecond |
//! | `counters.rs`, `error.rs` | what is counted, what can fail |
//!
//! ## Who is trusted
//! Nobody on the other side. Every value read from shared memory is read once into private memory
//! and judged there. A ring with impossible content stops alone, with a reason
//! ([`Status::broken_queues`]), until the driver resets or re-enables it. A malformed message ends
//! its connection, and the socket is ready for the next one.
//!
//! ## Who may touch what
//! A ring's state is inside a [`gate`]: the worker passes it once per burst without ever waiting;
//! the message thread closes it, waits for the worker to leave, changes the ring, and opens it
//! again. A worker that is parked is outside, so nobody waits for it. A burst holds its pass until
//! [`GuestTx::complete`], and packets sent hold it until [`GuestRx::flush`]: complete and flush
//! before parking, and before dropping the [`Backend`] on the same thread (it would wait in vain).
//!
//! ## Limits of this version
//! No segmentation. The first guest that connects makes this crate the process's handler of SIGBUS; what is
//! not a guest's goes on to the handler before, so whoever wants its own installs it earlier.

mod access;
mod backend;
mod clock;
mod counters;
mod device;
mod dirty;
mod doorbell;
mod error;
mod features;
pub mod gate;
mod hooks;
mod inflight;
mod memory;
mod messages;
mod net_header;
mod packed;
mod queue;
mod quiet;
mod rarp;
mod ring;
mod rx;
mod server;
mod sigbus;
mod socket;
mod split;
mod tx;
mod walk;
mod wire;

pub use backend::{Backend, BackendConfig, PairCounters, QueuePair, SocketMode, State, Status};
pub use counters::{Counters, CountersSnapshot};
pub use error::{CopyError, Error, SendError};
pub use features::Offer;
pub use rarp::{RARP_LEN, rarp};
pub use rx::GuestRx;
pub use tx::{GuestTx, Kick, TxBurst, TxPacket};

/// Packets in one burst, at most.
pub const BURST: usize = 32;

/// A checksum the receiver (or the device) still has to fill in: the internet checksum over the
/// bytes from `start` to the end of the packet, stored `offset` bytes after `start`
/// (virtio 1.2, 5.1.6.2; `VIRTIO_NET_HDR_F_NEEDS_CSUM`). Both count from the packet's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialCsum {
    /// First byte the checksum covers.
    pub start: u16,
    /// Where the checksum is stored, from `start`.
    pub offset: u16,
}
