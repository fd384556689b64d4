//! The virtual router of one host: networks, routes, neighbours and services, compiled into flows.
//!
//! ```text
//! Topology ── validate ──▶ VRouter ◀── first packet of a flow, or one the executor punted
//!                             │
//!      from a port:   spoof ─▶ arp · nd · ra · dhcp4 · dhcp6 · icmp (the gateway's services)
//!                         └──▶ forward: by MAC, by longest prefix, to all of a group
//!      from a tunnel: tunnel ─▶ by inner MAC           from the underlay: underlay
//!                             │
//!                             ▼
//!                          Verdict: a flow, this packet only, answers, or a drop with its reason
//! ```
//!
//! Each network has one gateway, which is on every host under the same MAC address. A packet is
//! routed where it comes in, so the host where it leaves only looks at the inner MAC address.
//!
//! Pure: no I/O, no clock, no threads, and nothing remembered between packets.
#![forbid(unsafe_code)]

mod arp;
mod dhcp4;
mod dhcp4_reply;
mod dhcp6;
mod dhcp6_message;
mod explain;
mod forward;
mod icmp;
mod input;
mod nd;
mod ra;
mod router;
mod spoof;
mod tables;
pub mod topology;
mod tunnel;
mod underlay;
mod validate;
mod verdict;

pub use explain::Explanation;
pub use router::VRouter;
pub use topology::{Network, NetworkId, Peer, Port, Route, Subnet, Topology, Underlay};
pub use underlay::underlay_arp_request;
pub use validate::{MTU_MAX, MTU_MIN, MTU_MIN_V6, TopologyError};
pub use verdict::{Answer, Verdict};
