//! Relayed guests: their packets go to a device of their own, and to the router when it is taken away.

use crate::guests::Guest;
use crate::wire::{Namespace, wait_for};
use crate::world::*;
use fallback_dpdk::{Config, Error, Wake};
use flow::{DropReason, PortId};
use std::time::Duration;

/// Relays a port to a device of `namespace`, looked at every millisecond.
fn relay(world: &World, namespace: &Namespace, n: u32, device: dpdk::Port) -> Result<(), Error> {
    namespace.run(|| world.plane.relay(PortId(n), device, Some(Wake::Timer)))
}

/// What no router would let through: a source that is not the guest's.
fn foreign(n: u8) -> Vec<u8> {
    datagram(77, 78, 1000 + u16::from(n), &[n; 200])
}

#[test]
fn a_relayed_guest_talks_to_its_device_and_returns_to_the_router_without_noticing() {
    for workers in [1, 2] {
        let world = World::new(Config {
            workers,
            ..World::config()
        });
        let (mut one, mut two) = (Guest::new(&world, 1), Guest::new(&world, 2));
        world.publish(topology(1, 2, true));
        for round in 0..3u8 {
            let (device, wire) = world.namespace.wire(&format!("r{round}"));
            relay(&world, &world.namespace, 1, device).expect("the port is relayed");
            for n in 0..40 {
                one.send(&foreign(n));
                assert_eq!(wire.recv(), foreign(n), "to the device");
                wire.send(&foreign(n));
                assert_eq!(one.recv(), foreign(n), "to the guest");
            }
            two.send(&datagram(
                2,
                1,
                1000,
                b"from a neighbour on the software path",
            ));
            assert_eq!(
                one.recv(),
                datagram(2, 1, 1000, b"from a neighbour on the software path")
            );
            let seen = world.plane.relayed(PortId(1)).expect("a relay");
            assert_eq!(
                (seen.counters.tx_packets, seen.counters.rx_packets),
                (40, 40)
            );
            assert_eq!(seen.queues, 1);

            assert!(world.plane.unrelay(PortId(1)).expect("the relay ends"));
            assert_eq!(world.plane.relayed(PortId(1)), None);
            one.send(&datagram(1, 2, 1000, b"through the router"));
            assert_eq!(two.recv(), datagram(1, 2, 1000, b"through the router"));
            wire.quiet();
        }
        let counters = world.counters();
        assert_eq!(counters.drops, [0; DropReason::COUNT]);
    }
}

#[test]
fn a_device_that_vanishes_takes_nothing_with_it() {
    let world = World::new(World::config());
    let (mut one, mut two) = (Guest::new(&world, 1), Guest::new(&world, 2));
    world.publish(topology(1, 2, true));
    let (device, wire) = world.namespace.wire("gone");
    relay(&world, &world.namespace, 1, device).expect("the port is relayed");
    one.send(&foreign(1));
    assert_eq!(wire.recv(), foreign(1));
    world.namespace.cut("gone");
    for n in 0..100 {
        one.send(&foreign(n));
    }
    wait_for("the link to be seen down", || {
        !world.plane.relayed(PortId(1)).expect("a relay").link.up
    });
    assert!(world.plane.unrelay(PortId(1)).expect("the relay ends"));
    one.send(&datagram(1, 2, 1000, b"on the software path"));
    assert_eq!(two.recv(), datagram(1, 2, 1000, b"on the software path"));
    two.send(&datagram(2, 1, 1000, b"both ways"));
    assert_eq!(one.recv(), datagram(2, 1, 1000, b"both ways"));
}

#[test]
fn a_relayed_guest_moves_between_workers_and_loses_nothing() {
    let world = World::new(Config {
        workers: 2,
        ..World::config()
    });
    let (mut one, mut two) = (Guest::new(&world, 1), Guest::new(&world, 2));
    world.publish(topology(1, 2, true));
    let (device, wire) = world.namespace.wire("mv");
    let doorbell = Some(Wake::Interface("pmv".to_owned()));
    let relayed = world
        .namespace
        .run(|| world.plane.relay(PortId(1), device, doorbell));
    relayed.expect("the port is relayed");
    let owner = || {
        let workers = world.plane.workers();
        workers.iter().position(|w| w.ports.contains(&PortId(1)))
    };
    for round in 0..20u8 {
        let to = usize::from(round % 2);
        for n in 0..4 {
            one.send(&foreign(n));
        }
        wire.send(&foreign(5));
        world.plane.move_port(PortId(1), to).expect("it moves");
        assert_eq!(owner(), Some(to));
        for n in 0..4 {
            assert_eq!(wire.recv(), foreign(n), "what waited is sent in order");
        }
        assert_eq!(one.recv(), foreign(5), "what waited is delivered");
        // Asleep and woken by the device's doorbell at the new worker.
        std::thread::sleep(Duration::from_millis(30));
        wire.send(&foreign(9));
        assert_eq!(one.recv(), foreign(9));
        two.send(&datagram(2, 1, 1000, b"from the other worker or the same"));
        assert_eq!(
            one.recv(),
            datagram(2, 1, 1000, b"from the other worker or the same")
        );
    }
    assert!(matches!(
        world.plane.move_port(PortId(1), 2),
        Err(Error::NoSuchWorker { worker: 2, last: 1 })
    ));
    assert!(matches!(
        world.plane.move_port(PortId(7), 0),
        Err(Error::NoSuchPort(PortId(7)))
    ));
    assert!(world.plane.unrelay(PortId(1)).expect("the relay ends"));
    assert_eq!(world.counters().drops, [0; DropReason::COUNT]);
}

#[test]
fn what_cannot_be_relayed_is_refused_and_changes_nothing() {
    let world = World::new(World::config());
    let mut one = Guest::new(&world, 1);
    let uplink = world.port(0);
    world.publish(topology(1, 1, true));
    let device = |name: &str| world.namespace.wire(name);

    let (spare, _wire) = device("a");
    assert!(matches!(
        relay(&world, &world.namespace, 0, spare),
        Err(Error::NotAGuest(PortId(0)))
    ));
    let (spare, _wire) = device("b");
    assert!(matches!(
        relay(&world, &world.namespace, 9, spare),
        Err(Error::NoSuchPort(PortId(9)))
    ));
    let (first, wire) = device("c");
    relay(&world, &world.namespace, 1, first).expect("the port is relayed");
    let (second, _wire) = device("d");
    let error = relay(&world, &world.namespace, 1, second).expect_err("it has a device");
    assert!(
        error.to_string().contains("is relayed to net_af_packet"),
        "{error}"
    );
    one.send(&foreign(3));
    assert_eq!(wire.recv(), foreign(3));
    assert!(!world.plane.unrelay(PortId(0)).expect("nothing to end"));
    // A port that is removed takes its device along.
    world.plane.remove_port(PortId(1)).expect("removed");
    assert!(one.recv_within(Duration::from_millis(50)).is_none());
    uplink.quiet();
}

#[test]
fn relays_leave_half_of_the_buffers_to_everybody_else() {
    // Enough for one queue of a device.
    let world = World::new(Config {
        buffers: 2 * 1024,
        ..World::config()
    });
    let (mut one, _two) = (Guest::new(&world, 1), Guest::new(&world, 2));
    world.publish(topology(1, 2, true));
    let (device, wire) = world.namespace.wire("h");
    relay(&world, &world.namespace, 1, device).expect("the port is relayed");
    let (device, _wire) = world.namespace.wire("i");
    let error = relay(&world, &world.namespace, 2, device).expect_err("too many buffers");
    assert!(matches!(error, Error::Buffers { all: 2048, .. }));
    assert!(error.to_string().ends_with("raise buffers"), "{error}");
    one.send(&foreign(1));
    assert_eq!(wire.recv(), foreign(1));
    // There is room again when the first one has ended.
    assert!(world.plane.unrelay(PortId(1)).expect("the relay ends"));
    let (device, _wire) = world.namespace.wire("j");
    relay(&world, &world.namespace, 2, device).expect("the port is relayed");
}
