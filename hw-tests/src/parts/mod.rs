//! The five parts of the demo. Each is a row of checks on the [`World`](crate::world::World), told to a person
//! by the demo and counted by the end-to-end tests.

pub mod interrupt;
pub mod networks;
pub mod operate;
pub mod start;
pub mod traffic;
