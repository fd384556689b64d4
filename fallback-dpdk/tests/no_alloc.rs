//! A packet that has a flow costs no heap memory: shown with an allocator that counts.
#![allow(dead_code)] // Parts of the shared modules are for the other tests.

#[path = "dataplane/wire.rs"]
mod wire;
#[path = "dataplane/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use world::{World, datagram, frame, topology};

struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The whole process is counted, all workers included; this is the only test of the program.
#[test]
fn packets_with_a_flow_are_forwarded_routed_and_tunnelled_without_the_heap() {
    let world = World::new(fallback_dpdk::Config {
        workers: 2,
        ..World::config()
    });
    let (uplink, one, two) = (world.port(0), world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let switched = datagram(1, 2, 1000, b"in the subnet");
    let routed = frame(
        world::mac(1),
        world::GATEWAY_MAC,
        world::address(1),
        world::routed(2),
        64,
        1000,
        b"through the gateway",
    );
    let tunnelled = datagram(1, 101, 1000, b"to the other host");
    let mut buffer = [0; 4096];
    let mut receive = |wire: &wire::Wire| {
        let start = Instant::now();
        while wire.try_recv(&mut buffer).is_none() {
            assert!(
                start.elapsed().as_secs() < 10,
                "a frame arrives within 10 s"
            );
            std::thread::yield_now();
        }
    };
    let mut round = || {
        one.send(&switched);
        receive(&two);
        one.send(&routed);
        receive(&two);
        one.send(&tunnelled);
        receive(&uplink);
    };
    // First packets, thread-local memory of whatever needs some, a full sweep.
    for _ in 0..200 {
        round();
    }
    let hits = world.counters().hits;
    let before = CALLS.load(Ordering::Relaxed);
    for _ in 0..2000 {
        round();
    }
    let calls = CALLS.load(Ordering::Relaxed) - before;
    let hits = world.counters().hits - hits;
    assert_eq!(hits, 6000);
    assert_eq!(
        calls, 0,
        "{calls} calls of the allocator for {hits} packets"
    );
    // The count is alive.
    drop(std::hint::black_box(Box::new(1)));
    assert!(CALLS.load(Ordering::Relaxed) > before);
}
