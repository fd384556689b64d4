//! The vocabulary of the data plane: what a packet looks like, what a flow matches, what is done
//! to a packet, and why one is dropped.
//!
//! A [`FlowKey`] says which packets a flow is for and a list of [`Action`]s says what happens to
//! them. Every home of flows (the DPDK path, TC flower, a NIC) runs the same list;
//! [`reference::execute`] is what the list means, and each home is tested against it.
//!
//! Nothing here does I/O, allocates on the packet path, or knows of any other crate.
#![forbid(unsafe_code)]

pub mod action;
pub mod ids;
pub mod key;
pub mod reason;

pub use action::{Action, Vxlan};
pub use ids::{MacAddr, PortId};
pub use key::{FlowKey, Fragment, KeyAddr, TunnelKey};
pub use reason::{DropReason, Punt};
