//! Flows age, routers change, ports come and go under traffic.

use crate::wire::wait_for;
use crate::world::*;
use fallback_dpdk::{Config, Error, FlowFilter};
use flow::{DropReason, PortId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn an_unused_flow_ages_out_and_a_used_one_stays() {
    let config = Config {
        flow_idle: Duration::from_millis(1500),
        ..World::config()
    };
    let world = World::new(config);
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let (quiet, busy) = (
        datagram(1, 2, 1000, b"once"),
        datagram(1, 2, 2000, b"often"),
    );
    one.send(&quiet);
    two.recv();
    let flows = || {
        world
            .plane
            .flows(&FlowFilter::default(), 10)
            .expect("the worker answers")
            .flows
    };
    let mut seen_both = false;
    wait_for("the quiet flow to age out", || {
        one.send(&busy);
        two.recv();
        std::thread::sleep(Duration::from_millis(50));
        let ports: Vec<u16> = flows().iter().map(|flow| flow.key.src_port).collect();
        seen_both |= ports.len() == 2;
        ports == [2000]
    });
    assert!(seen_both);
    wait_for("the busy flow to age out once it is quiet", || {
        flows().is_empty()
    });
    wait_for("the counters to follow", || {
        world.counters().flows == 0 && world.counters().expired == 2
    });
    one.send(&quiet);
    assert_eq!(two.recv(), quiet);
}

#[test]
fn a_new_router_compiles_flows_again_and_their_counters_go_on() {
    let world = World::new(World::config());
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let packet = datagram(1, 2, 1000, b"same flow");
    for _ in 0..3 {
        one.send(&packet);
        two.recv();
    }
    world.publish(topology(2, 2, true));
    for _ in 0..2 {
        one.send(&packet);
        two.recv();
    }
    let flows = world
        .plane
        .flows(&FlowFilter::default(), 10)
        .expect("the worker answers")
        .flows;
    assert_eq!(flows.len(), 1);
    assert_eq!((flows[0].packets, flows[0].epoch), (5, 2));
    assert_eq!(world.plane.workers()[0].recompiled, 1);
    assert_eq!((world.counters().misses, world.counters().hits), (2, 3));
    // In a router without port 2 its flow has no place either.
    world.publish(topology(3, 1, true));
    one.send(&packet);
    two.quiet();
    let dropped = world
        .port_counters(1)
        .dropped()
        .map(|(_, count)| count)
        .sum::<u64>();
    assert_eq!(dropped, 1);
}

#[test]
fn without_a_router_packets_are_dropped_by_name() {
    let world = World::new(World::config());
    let (one, _two) = (world.port(1), world.port(2));
    one.send(&datagram(1, 2, 1000, b"too early"));
    wait_for("the drop", || world.drops(DropReason::UnknownPort) == 1);
}

#[test]
fn ports_are_named_once_and_have_to_exist() {
    let world = World::new(World::config());
    let _one = world.port(1);
    let (device, _wire) = world.namespace.wire("again");
    let refused = world.plane.add_ethdev(PortId(1), device, None);
    assert!(matches!(refused, Err(Error::PortExists(PortId(1)))));
    assert!(matches!(
        world.plane.remove_port(PortId(9)),
        Err(Error::NoSuchPort(PortId(9)))
    ));
    assert!(matches!(
        world.plane.inject(PortId(9), vec![0; 60]),
        Err(Error::NoSuchPort(_))
    ));
    assert!(matches!(
        world.plane.inject(PortId(1), vec![0; 5000]),
        Err(Error::TooLong { .. })
    ));
    assert!(matches!(
        world.plane.trace(PortId(9), &[0; 60]),
        Err(Error::NoSuchPort(_))
    ));
}

struct EndFlood<'a>(&'a AtomicBool);

impl Drop for EndFlood<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_port_is_removed_under_traffic_and_comes_back() {
    for workers in [1, 2] {
        let world = World::new(Config {
            workers,
            ..World::config()
        });
        let one = world.port(1);
        let stop = AtomicBool::new(false);
        world.publish(topology(1, 2, true));
        std::thread::scope(|scope| {
            // Ends the flood when this scope is left by a failed assertion too.
            let _end = EndFlood(&stop);
            let flood = scope.spawn(|| {
                let mut n = 0u16;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_add(1);
                    if !one.try_send(&datagram(1, 2, n % 500, b"flood")) {
                        std::thread::yield_now();
                    }
                }
            });
            for round in 0..3 {
                let device = format!("r{workers}{round}");
                let (port, wire) = world.namespace.wire(&device);
                // The driver looks for its interface in the caller's namespace.
                let added = world
                    .namespace
                    .run(|| world.plane.add_ethdev(PortId(2), port, None));
                added.expect("the port is added");
                let other = datagram(2, 1, round, b"back");
                wire.recv();
                wire.send(&other);
                wait_for("its packet to come in", || {
                    world.port_counters(2).rx_packets > 0
                });
                world
                    .plane
                    .remove_port(PortId(2))
                    .expect("the port is removed");
                let left = world
                    .plane
                    .flows(&FlowFilter::default(), 5000)
                    .expect("the workers answer");
                assert!(left.flows.iter().all(|flow| flow.key.in_port != PortId(2)));
            }
            let missing = world.drops(DropReason::NoSuchPort);
            wait_for("packets to the removed port to be dropped", || {
                world.drops(DropReason::NoSuchPort) > missing
            });
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("the flood ends");
        });
        let total = world.counters().buffers;
        world
            .plane
            .remove_port(PortId(1))
            .expect("the port is removed");
        // Nothing is in a device any more; workers keep a cache.
        wait_for("the buffers to come home", || {
            world.counters().buffers_free == total
        });
    }
}
