//! The vocabulary of the data plane: what a packet looks like, what a flow matches, what is done
//! to a packet, and why one is dropped.
//!
//! A [`FlowKey`] says which packets a flow is for and a list of [`Action`]s says what happens to
//! them. Every home of flows (the DPDK path, TC flower, a NIC) runs the same list;
//! [`reference::execute`] is what the list means, and each home is tested against it.
//!
//! ```text
//! bytes ── parse ──▶ FlowKey ──(a table, the virtual router)──▶ [Action] ── execute ──▶ bytes
//!            │                                                                │
//!            └── wire: a view and a description for each header, checksum ────┘
//! ```
//!
//! Nothing here does I/O, allocates on the packet path, or knows of any other crate.
#![forbid(unsafe_code)]

pub mod action;
pub mod checksum;
pub mod entropy;
pub mod ids;
pub mod key;
pub mod parse;
pub mod reason;
pub mod reference;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod wire;

pub use action::{Action, Vxlan};
pub use checksum::PartialCsum;
pub use entropy::entropy_port;
pub use ids::{MacAddr, PortId};
pub use key::{FlowKey, Fragment, KeyAddr, TunnelKey};
pub use parse::{Parsed, parse, parse_headers, parse_tunnel};
pub use reason::{DropReason, Punt};
pub use text::ActionList;
