//! Where a flow can live, whether that place is there on this host, and which one a flow gets.
//!
//! ```text
//! Placement ── asks each ──▶ Home::probe ── netlink ──▶ kernel: flower, actions, link, features
//!     └── choose(key, actions) ──▶ Choice { home, why }
//! ```
//!
//! Homes are probed, never guessed from versions or PCI ids: the answer to "why not in the NIC?" is
//! what the kernel said. This version probes all three homes and places every flow in `software`,
//! the only one that it can install into.
#![forbid(unsafe_code)]

pub mod home;
mod netlink;
pub mod placement;
pub mod probe;

pub use home::{Availability, Home, HomeKind, KernelHome, NicHome, SoftwareHome};
pub use placement::{Choice, Placement, availability};
