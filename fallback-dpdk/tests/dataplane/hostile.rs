//! Guests and wires that send rubbish, or too much.

use crate::wire::wait_for;
use crate::world::*;
use fallback_dpdk::{Config, FlowFilter};
use flow::{DropReason, PortId};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[test]
fn a_flood_of_damaged_packets_changes_nothing_for_others() {
    let world = World::new(World::config());
    let (uplink, one, two) = (world.port(0), world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let mut runner = TestRunner::deterministic();
    let strategy = flow::testing::hostile_packet();
    let mut sent = [0u64; 3];
    for n in 0..6000usize {
        let mut packet = strategy.new_tree(&mut runner).expect("a packet").current();
        packet.truncate(1500);
        let which = n % 3;
        let wire = [&uplink, &one, &two][which];
        // The kernel itself refuses frames without an Ethernet header.
        if packet.len() > 14 && wire.try_send(&packet) {
            sent[which] += 1;
        }
    }
    // Every packet is accounted for before the flood counts as survived.
    wait_for("the flood to be taken", || {
        (0..3u32).all(|n| world.port_counters(n).rx_packets >= sent[n as usize] * 9 / 10)
    });
    assert!(world.drops(DropReason::Malformed) > 500);
    let mut buffer = [0; 4096];
    while two.try_recv(&mut buffer).is_some() || one.try_recv(&mut buffer).is_some() {}
    let fine = datagram(1, 2, 1000, b"still here");
    one.send(&fine);
    let arrived = std::iter::from_fn(|| Some(two.recv()))
        .take(100)
        .find(|frame| *frame == fine);
    assert!(arrived.is_some());
}

#[test]
fn a_scanning_guest_is_limited_and_its_neighbour_is_not() {
    let world = World::new(Config {
        slow_path_rate: 100,
        flow_capacity: 64,
        ..World::config()
    });
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let neighbour = datagram(2, 1, 7, b"a quiet flow");
    two.send(&neighbour);
    assert_eq!(one.recv(), neighbour);
    for port in 0..5000 {
        one.try_send(&datagram(1, 2, port, b"scan"));
    }
    wait_for("the limit to show", || {
        world.port_counters(1).drops[DropReason::RateLimited as usize] > 1000
    });
    two.send(&neighbour);
    assert_eq!(one.recv(), neighbour);
    let from_two = FlowFilter {
        port: Some(PortId(2)),
        ..FlowFilter::default()
    };
    let flows = world
        .plane
        .flows(&from_two, 1000)
        .expect("the worker answers")
        .flows;
    let quiet: Vec<_> = flows
        .iter()
        .filter(|flow| flow.key.in_port == PortId(2))
        .collect();
    assert_eq!(quiet.len(), 1);
    assert_eq!(quiet[0].packets, 2, "it was never displaced");
    assert_eq!(world.port_counters(2).misses, 1);
    assert!(world.counters().flows <= 64);
    assert_eq!(
        world.port_counters(2).drops[DropReason::RateLimited as usize],
        0
    );
}
