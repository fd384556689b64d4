//! Tests of the control side on devices that neither receive nor keep anything.

use super::*;
use crate::testbed::{eal, pool};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A device that never receives and takes all it is given.
pub(crate) fn silent_port() -> dpdk::Port {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let devargs = format!("net_null{number},no-rx=1");
    let port = dpdk::Port::attach(eal(), &devargs).expect("a null device");
    port.configure(&PortConfig::new(pool()))
        .expect("it is configured");
    port.start().expect("it starts");
    port
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_worker_that_panics_goes_on_and_its_ports_too() {
    let config = Config {
        workers: 2,
        buffers: 512,
        max_frame: 2048,
        ..Config::default()
    };
    let plane = Dataplane::start(eal().clone(), config).unwrap();
    let (one, two) = (PortId(1), PortId(2));
    for port in [one, two] {
        plane
            .add_ethdev(port, silent_port(), Some(Wake::Timer))
            .unwrap();
    }
    let worker = plane.state().ports[&one].worker;
    for times in 1..=3 {
        plane
            .handle(worker)
            .unwrap()
            .tell(Command::Panic(one))
            .unwrap();
        wait_for("the panic is counted", || {
            plane.workers()[worker].panics == times
        });
    }
    let sent = || {
        let ports = plane.counters().ports;
        ports
            .iter()
            .find(|(id, _)| *id == one)
            .unwrap()
            .1
            .tx_packets
    };
    let before = sent();
    for _ in 0..3 {
        plane.inject(one, vec![0; 60]).unwrap();
    }
    wait_for("the port still sends", || sent() == before + 3);
    // It still answers, lets go of its ports, and no buffer is lost.
    plane.remove_port(one).unwrap();
    plane.remove_port(two).unwrap();
    wait_for("all buffers are back", || {
        plane.counters().buffers_free == 512
    });
}

#[test]
fn packets_between_workers_hold_at_most_half_of_the_buffers() {
    for workers in 1..=16 {
        for buffers in [8192, 16_384, 100_000] {
            let config = Config {
                workers,
                buffers,
                ..Config::default()
            };
            let depth = handoff_depth(&config);
            assert!(depth.is_power_of_two() && depth <= 1024);
            let waiting = depth * workers * (workers - 1);
            let fits = waiting <= buffers as usize / 2;
            assert!(fits || depth == BURST, "{workers} workers: {waiting}");
        }
    }
}
