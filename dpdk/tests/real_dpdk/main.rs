//! The crate against the system's real DPDK, without hugepages: one EAL for all tests, as DPDK
//! starts once in a process. Needs root and `ip` for the ports that work on network interfaces.

mod af_packet;
mod eal;
mod mbufs;
mod namespace;
mod ports;

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dpdk::{Eal, EalConfig, Hugepages, Mempool};

/// The EAL of this test process.
fn shared_eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| {
        let config = EalConfig {
            program: "dpdk-tests".to_owned(),
            memory_mb: Some(192),
            hugepages: Hugepages::Never,
            ..EalConfig::default()
        };
        Eal::init(&config).expect("the EAL starts without hugepages")
    })
}

/// A pool of this test's own.
fn pool(count: u32, data_room: u16) -> Mempool {
    Mempool::new(shared_eal(), "test", count, data_room, None).expect("memory for a pool")
}

/// Held while an af_packet port is attached, and while a program is started: one that starts in the
/// middle of an attachment inherits the socket, see the crate's `descriptors`.
static ATTACH_OR_SPAWN: Mutex<()> = Mutex::new(());

fn spawn(command: &mut Command) -> Child {
    let _held = ATTACH_OR_SPAWN
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    command.spawn().expect("the program starts")
}

/// A number that no other test of this process has: for names of devices.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(100);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Calls `done` until it is true, for 10 seconds at most.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited 10 s for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
