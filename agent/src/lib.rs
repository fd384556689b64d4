//! The host agent: brings the desired state of this host, the data plane and the virtual router
//! together, and answers for what runs.
//!
//! ```text
//!  agent.toml ─▶ config ─┐                               ┌─▶ ports: xvio backends ─┐
//!                        ├─▶ desired ─▶ control ─────────┤                         ├─▶ data plane
//!  controller ─▶ sync ─▶ wire                │           └─▶ topology: VRouter ────┘
//!                 ▲                          ├─▶ state_file
//!                 └────────── view ◀─────────┘
//!                               └─▶ local_api
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the file: read, checked as a whole, every problem with its place |
//! | [`desired`] | what this host should have, wherever that came from |
//! | [`wire`] | the controller's resources, as they came, and what they mean |
//! | [`state_file`] | the last known desired state, on disk |
//! | [`control`] | the one thread that changes the data plane |
//! | [`diff`], [`ports`], [`numbering`] | which ports to take down and set up; the ports that run; their numbers |
//! | [`topology`] | from desired state to a virtual router, leaving out what contradicts itself |
//! | [`underlay`], [`uplink`], [`neighbours`] | the link to other hosts, its port, who is who on it |
//! | [`nics`] | the SR-IOV manager: policies, the API of NICs and VFs, VFs of ports |
//! | [`relays`] | guests whose packets go to a device of their own |
//! | [`sync`] | the stream to the controller |
//! | [`local_api`], [`view`], [`probe_packet`] | what the agent shows of itself |
//! | [`metrics`] | the same counters for Prometheus |
//! | [`homes`] | where flows can live on this host |
//! | [`check`] | what a configuration asks for, and what this host lacks for it |
//! | [`daemon`], [`lock`], [`accounts`], [`paths`], [`notify`] | the process: order of start, one at a time, files and their owners |
#![forbid(unsafe_code)]

pub mod accounts;
pub mod check;
pub mod config;
pub mod control;
pub mod daemon;
pub mod desired;
pub mod diff;
pub mod homes;
pub mod local_api;
pub mod lock;
pub mod metrics;
pub mod neighbours;
pub mod nics;
pub mod notify;
pub mod numbering;
pub mod paths;
pub mod ports;
pub mod probe_packet;
pub mod relays;
pub mod state_file;
pub mod sync;
pub mod topology;
pub mod underlay;
pub mod uplink;
pub mod view;
pub mod wire;
