//! The host agent.
#![forbid(unsafe_code)]
pub mod accounts;
pub mod config;
pub mod desired;
pub mod diff;
pub mod lock;
pub mod neighbours;
pub mod numbering;
pub mod paths;
pub mod state_file;
pub mod topology;
pub mod underlay;
pub mod view;
pub mod wire;
