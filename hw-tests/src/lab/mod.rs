//! The hardware lab: suites of tests on emulated and real NICs. `ferrovia-lab` is its command line.
//!
//! An [`inventory`] describes [`target`]s; [`runner`] gives each its tests, as many targets at once as
//! [`schedule`] allows. On a target ([`on_target`]) tests run one after the other; after each, a [`snapshot`]
//! says what it left, and [`restore`] puts it back; a [`hold`] keeps other runs off a host meanwhile. The [`results`] are data; [`report`] writes them in four
//! forms, [`baseline`] compares them with those of an earlier run.
//!
//! # A new test
//!
//! A test is a function in a file of [`crate::suites`], and a line in its suite's list:
//!
//! ```
//! use hw_tests::lab::suite::{Outcome, Test, same};
//! use hw_tests::lab::{Context, Need};
//!
//! const TESTS: &[Test] = &[
//!     Test::new("vfs_are_there", "as many VFs are there as were asked for", vfs_are_there)
//!         .needs(&[Need::Root, Need::PciPfs(1), Need::Vfs(2)]),
//! ];
//!
//! fn vfs_are_there(lab: &Context) -> Outcome {
//!     let pf = lab.pf()?.sysfs();
//!     let took = lab.timed(&format!("echo 2 > {pf}/sriov_numvfs"))?;
//!     lab.measure("vf_create_ms", took, hw_tests::lab::Unit::Milliseconds);
//!     same("the VF count", lab.read(&format!("{pf}/sriov_numvfs"))?.as_str(), "2")?;
//!     lab.shell_ok(&format!("echo 0 > {pf}/sriov_numvfs"))?;
//!     Ok(())
//! }
//! # assert_eq!(TESTS.len(), 1);
//! ```
//!
//! - `Ok(())` passes; [`suite::check`], [`suite::same`] and [`suite::Stop::fail`] fail; [`suite::Stop::skip`] skips.
//! - What it [needs](Need) is said in its line: where the target has not got it, the test is skipped with the reason.
//! - A program of ours is called by its name: `lab.ok(&["ferrovia", "nic", "list"])?`. An agent is started with
//!   [`Context::spawn`], which has kill -9 and wait.
//! - Commands and their output stand in the report by themselves. Everything else that a reader must know goes
//!   there with [`Context::note`]; numbers for trends with [`Context::measure`].
//! - A test undoes what it did. What it leaves (VFs, drivers, attributes, namespaces, links, processes) is taken
//!   away, and makes it fail. A test that fails half way need not care.
//! - Namespaces and links get their names from [`Context::named`]: on a host that has other work, the clean-up
//!   knows a test's own by that.
//! - Its name is stable: baselines know it by it.

pub mod baseline;
pub mod command_line;
mod commands;
pub mod context;
pub mod facts;
pub mod hold;
pub mod inventory;
pub mod needs;
pub mod on_target;
pub mod progress;
pub mod report;
pub mod restore;
pub mod results;
pub mod runner;
pub mod schedule;
pub mod selection;
pub mod snapshot;
pub mod suite;
pub mod target;

pub use context::Context;
pub use needs::Need;
pub use suite::Unit;
