//! # The software home of flows
//!
//! The DPDK path: poll-mode workers that move packets between guests' rings and devices, by flows in
//! a table of their own, with the virtual router in the same thread for what has no flow yet. It is
//! always there and takes every flow.
//!
//! ```text
//!  Dataplane (any thread)                       worker (one thread each, pinned)
//!  ──────────────────────                       ───────────────────────────────────────────────
//!  publish(router) ──── owned messages ──────▶  mailbox, one flag looked at a turn
//!  add / remove port                            input ─▶ table ─▶ execute ─▶ fabric ─▶ ports
//!  inject, flows, trace ◀─── replies ─────────            │ miss                └────▶ ring ─▶ other worker
//!  counters ◀────────── relaxed loads ────────            └─▶ slow_path ─▶ vrouter
//!  events   ◀────────── bounded channel ──────
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `control.rs`, `inspect.rs` | [`Dataplane`]: what the agent calls to change, and to look |
//! | `message.rs` | the protocol between control side and workers |
//! | `placement.rs` | moving a port to another worker |
//! | `worker.rs` | the loop: poll, look up, execute, age, sleep |
//! | `recovery.rs` | what it does after a panic |
//! | `slow_path.rs` | first packets, punts, answers, rate limits |
//! | `input.rs` | receive sides: guests' rings and devices, parsed into bursts |
//! | `fabric.rs` | transmit sides: staging by output, hand-off to other workers |
//! | `relay/` | a guest whose packets go to a device of its own and not through the router |
//! | `execute.rs` | action lists on packet buffers |
//! | `table.rs` | the flow table |
//! | `ring.rs` | the hand-off ring |
//! | `idle.rs`, `wake.rs`, `uplink_doorbell.rs` | when to sleep, and what wakes |
//! | `bucket.rs`, `counters.rs`, `record.rs`, `config.rs`, `error.rs` | what they say |
//!
//! ## Laws
//! On the way of a packet that has a flow: no lock, no allocation, no system call but a receiver's
//! doorbell. Everything a worker changes is its own. A packet is dropped for a reason that has a name
//! and a counter. What a list of actions means is [`flow::reference::execute`].

mod bucket;
mod config;
mod control;
mod counters;
mod error;
mod execute;
mod fabric;
mod idle;
mod input;
mod inspect;
mod message;
mod placement;
mod record;
mod recovery;
mod relay;
mod ring;
mod slow_path;
mod table;
#[cfg(test)]
mod testbed;
mod uplink_doorbell;
mod wake;
mod worker;

pub use config::Config;
pub use control::{Dataplane, Wake};
pub use counters::{Counters, PortCounters, WorkerStats};
pub use error::Error;
pub use record::{Event, FlowDump, FlowFilter, FlowRecord, Trace};
pub use relay::Relay;
