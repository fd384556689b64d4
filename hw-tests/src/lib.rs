//! End-to-end tests and the demo, on real guests: what they are made of.
//!
//! Fixtures are ordinary Rust values that undo themselves: a [`run`] with its folder, [`netns`] with links
//! between them, [`process`]es, an [`image`] that boots in seconds, [`guest`]s in [`libvirt`] that are driven
//! through a [`console`], a [`capture`] on a link. A [`cluster`] puts them together: a controller, two hosts
//! with an agent each, and guests; [`alone`] is one agent with two ports. A [`switch`] on vhost-user ports and guests in a [`qemu`] of their own show
//! what `xvio` does with nothing around it; a [`stream`] is bulk traffic that is checked. Ctrl-C at any time undoes all ([`cleanup`]).
//!
//! The hardware lab is here too: a [`machine`] with emulated SR-IOV NICs, the [`lab`] that runs [`suites`] on
//! such machines and on real hosts, and reports.

pub mod accel;
pub mod alone;
pub mod capture;
pub mod cleanup;
pub mod cluster;
pub mod command;
pub mod console;
pub mod cpio;
pub mod guest;
pub mod image;
pub mod interruption;
pub mod lab;
pub mod libvirt;
pub mod machine;
pub mod netns;
pub mod parts;
pub mod process;
pub mod qemu;
pub mod run;
pub mod sriov_inside;
pub mod story;
pub mod stream;
pub mod suites;
pub mod switch;
pub mod testpmd;
pub mod world;
