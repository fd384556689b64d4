//! A safe binding to the system's DPDK: its start, packet buffers, Ethernet devices.
//!
//! - [`Eal`]: DPDK's start in this process; everything else needs it.
//! - [`Mempool`], [`Mbuf`], [`MbufBurst`]: packet buffers, owned like any Rust value.
//! - [`Port`], [`RxQueue`], [`TxQueue`]: devices by their device string ([`devargs`]).
//!
//! DPDK is linked dynamically and found through pkg-config (22.11 of Debian 12, 24.11 of Debian 13);
//! a C shim (`shim/`) makes its inline functions and bit fields callable, so nothing here is generated and
//! only the first cache line of an mbuf is known on both sides, which both assert at compile time.
//!
//! What is done with packets is not this crate's business; neither is who polls a queue, except that
//! it is one thread at a time, which the types enforce.

#![deny(missing_docs)]

mod burst;
mod descriptors;
pub mod devargs;
mod eal;
mod error;
mod ffi;
mod hugepages;
mod kernel;
mod log;
mod mbuf;
mod mempool;
mod port;
mod queue;

pub use burst::{BURST, Drain, MbufBurst};
pub use devargs::{af_packet_data_room, af_packet_devargs, pci_address};
pub use eal::{Eal, EalConfig, ThreadGuard, cycles, cycles_hz, version};
pub use error::Error;
pub use hugepages::Hugepages;
pub use mbuf::Mbuf;
pub use mempool::{HEADROOM, Mempool};
pub use port::{Link, Port, PortConfig, PortStats};
pub use queue::{RxQueue, TxQueue};
