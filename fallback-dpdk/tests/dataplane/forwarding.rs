//! Packets take the right way, and the flow table is what makes the next ones quick.

use crate::wire::wait_for;
use crate::world::*;
use fallback_dpdk::{Config, Event, FlowFilter};
use flow::reference::{Packet, execute};
use flow::{Action, DropReason, PortId, Vxlan};
use std::net::IpAddr;
use std::time::Duration;

#[test]
fn the_first_packet_makes_a_flow_and_the_next_ones_use_it() {
    let world = World::new(World::config());
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    for n in 0..10u8 {
        let sent = datagram(1, 2, 1000, &[n; 40]);
        one.send(&sent);
        assert_eq!(two.recv(), sent, "packet {n}");
    }
    one.quiet();
    let (from, to) = (world.port_counters(1), world.port_counters(2));
    assert_eq!((from.rx_packets, from.misses, from.hits), (10, 1, 9));
    assert_eq!(from.rx_bytes, 10 * 82);
    assert_eq!((to.tx_packets, to.tx_bytes, to.rx_packets), (10, 820, 0));
    let dump = world
        .plane
        .flows(&FlowFilter::default(), 100)
        .expect("the worker answers");
    assert_eq!(dump.flows.len(), 1);
    let flow = &dump.flows[0];
    assert_eq!((flow.packets, flow.bytes, flow.epoch), (10, 820, 1));
    assert_eq!(flow.key.in_port, PortId(1));
    assert!(flow.actions.contains(&Action::Output(PortId(2))));
}

#[test]
fn a_station_of_another_host_is_reached_through_the_tunnel_and_answers() {
    let world = World::new(World::config());
    let (uplink, one) = (world.port(0), world.port(1));
    world.publish(topology(1, 1, true));
    for _ in 0..3 {
        let sent = datagram(1, 101, 1000, b"to the other host");
        one.send(&sent);
        let outer = uplink.recv();
        let parsed = flow::parse_tunnel(&outer, PortId(0)).expect("a tunnel packet");
        assert_eq!(parsed.key.tunnel.vni, VNI);
        assert_eq!(parsed.key.tunnel.dst.to_ip(), IpAddr::V4(PEER_VTEP));
        assert_eq!(&outer[0..6], &PEER_HOST_MAC.0);
        assert_eq!(&outer[parsed.eth..parsed.end], sent);
        let back = tunnelled(&datagram(101, 1, 2000, b"and back"));
        uplink.send(&back);
        assert_eq!(one.recv(), datagram(101, 1, 2000, b"and back"));
    }
    let counters = world.counters();
    assert_eq!(
        (counters.misses, counters.hits, counters.flows),
        (2, 4, counters.flows)
    );
}

/// As the other host sends it.
pub fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let outer = Vxlan {
        eth_src: PEER_HOST_MAC,
        eth_dst: UPLINK_MAC,
        src: IpAddr::V4(PEER_VTEP),
        dst: IpAddr::V4(VTEP),
        src_port: 50_000,
        vni: VNI,
        ttl: 64,
    };
    let list = [Action::EncapVxlan(outer), Action::Output(PortId(0))];
    let run = execute(&list, Packet::complete(inner.to_vec()));
    run.outputs.into_iter().next().expect("it fits").1.bytes
}

#[test]
fn a_hop_limit_that_runs_out_is_answered_by_the_gateway() {
    let world = World::new(World::config());
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let through_gateway = |ttl| {
        frame(
            mac(1),
            GATEWAY_MAC,
            address(1),
            routed(2),
            ttl,
            1000,
            b"by way of the gateway",
        )
    };
    one.send(&through_gateway(64));
    let arrived = two.recv();
    assert_eq!(&arrived[0..6], &mac(2).0);
    assert_eq!(arrived[14 + 8], 63);
    // The flow exists: this one stops in the middle of its list.
    one.send(&through_gateway(1));
    let error = one.recv();
    assert_eq!(
        (error[14 + 9], error[34], error[35]),
        (1, 11, 0),
        "ICMP time exceeded: {error:02x?}"
    );
    // It quotes the packet as it came.
    assert_eq!(&error[42..62], &through_gateway(1)[14..34]);
    two.quiet();
    assert_eq!(
        world.port_counters(1).drops[DropReason::TtlExceeded as usize],
        1
    );
}

#[test]
fn arp_is_answered_from_the_worker() {
    let world = World::new(World::config());
    let one = world.port(1);
    world.publish(topology(1, 2, true));
    one.send(&arp_request(1, 2));
    let reply = one.recv();
    assert_eq!(&reply[0..6], &mac(1).0);
    assert_eq!(&reply[22..28], &mac(2).0, "{reply:02x?}");
    assert_eq!(world.port_counters(1).tx_packets, 1);
}

fn arp_request(from: u8, to: u8) -> Vec<u8> {
    let arp = flow::wire::ArpRepr {
        operation: 1,
        sender_mac: mac(from),
        sender_ip: address(from),
        target_mac: flow::MacAddr::ZERO,
        target_ip: address(to),
    };
    let eth = flow::wire::EthernetRepr {
        dst: flow::MacAddr::BROADCAST,
        src: mac(from),
        vlan: None,
        ethertype: flow::wire::ethertype::ARP,
    };
    eth.emit(&arp.emit())
}

#[test]
fn an_unresolved_next_hop_is_told_and_its_answer_too() {
    let world = World::new(World::config());
    let (uplink, one) = (world.port(0), world.port(1));
    let events = world
        .plane
        .events()
        .expect("the first caller gets the receiver");
    assert!(world.plane.events().is_none());
    world.publish(topology(1, 1, false));
    one.send(&datagram(1, 101, 1000, b"nobody knows where"));
    let wait = Duration::from_secs(10);
    assert_eq!(
        events.recv_timeout(wait),
        Ok(Event::Unresolved {
            ip: IpAddr::V4(PEER_VTEP)
        })
    );
    wait_for("the drop to be counted", || {
        world.port_counters(1).drops[DropReason::UnderlayUnresolved as usize] == 1
    });
    let underlay = topology(1, 1, false).underlay.expect("there is one");
    let request = vrouter::underlay_arp_request(&underlay, IpAddr::V4(PEER_VTEP));
    world
        .plane
        .inject(PortId::UPLINK, request.clone())
        .expect("the uplink exists");
    assert_eq!(uplink.recv(), request);
    let reply = flow::wire::ArpRepr {
        operation: 2,
        sender_mac: PEER_HOST_MAC,
        sender_ip: PEER_VTEP,
        target_mac: UPLINK_MAC,
        target_ip: VTEP,
    };
    let eth = flow::wire::EthernetRepr {
        dst: UPLINK_MAC,
        src: PEER_HOST_MAC,
        vlan: None,
        ethertype: flow::wire::ethertype::ARP,
    };
    uplink.send(&eth.emit(&reply.emit()));
    let learned = Event::Learned {
        ip: IpAddr::V4(PEER_VTEP),
        mac: PEER_HOST_MAC,
    };
    assert_eq!(events.recv_timeout(wait), Ok(learned));
    world.publish(topology(2, 1, true));
    one.send(&datagram(1, 101, 1000, b"now it is known"));
    assert_eq!(
        flow::parse_tunnel(&uplink.recv(), PortId(0))
            .expect("a tunnel packet")
            .key
            .tunnel
            .vni,
        VNI
    );
}

#[test]
fn two_workers_hand_packets_to_each_other() {
    let config = Config {
        workers: 2,
        ..World::config()
    };
    let world = World::new(config);
    let (one, two) = (world.port(1), world.port(2));
    world.publish(topology(1, 2, true));
    let workers = world.plane.workers();
    assert_eq!(
        workers.iter().map(|w| w.ports.len()).collect::<Vec<_>>(),
        [1, 1]
    );
    for n in 0..200u8 {
        one.send(&datagram(1, 2, 1000, &[n; 40]));
        assert_eq!(two.recv(), datagram(1, 2, 1000, &[n; 40]));
        two.send(&datagram(2, 1, 1000, &[n; 40]));
        assert_eq!(one.recv(), datagram(2, 1, 1000, &[n; 40]));
    }
    let handed: Vec<u64> = world.plane.workers().iter().map(|w| w.handed_off).collect();
    assert_eq!(handed, [200, 200]);
    assert_eq!(world.counters().drops, [0; DropReason::COUNT]);
}

#[test]
fn a_trace_tells_what_would_happen_and_touches_nothing() {
    let world = World::new(World::config());
    let (one, two) = (world.port(1), world.port(2));
    let packet = datagram(1, 2, 1000, b"what if");
    let before = world
        .plane
        .trace(PortId(1), &packet)
        .expect("the port exists");
    assert!(before.verdict.is_none() && before.installed.is_none());
    world.publish(topology(1, 2, true));
    let trace = world
        .plane
        .trace(PortId(1), &packet)
        .expect("the port exists");
    assert!(trace.installed.is_none() && !trace.steps.is_empty());
    let execution = trace.execution.expect("it is forwarded");
    assert_eq!(execution.outputs[0].0, PortId(2));
    two.quiet();
    one.send(&packet);
    assert_eq!(two.recv(), execution.outputs[0].1.bytes);
    let after = world
        .plane
        .trace(PortId(1), &packet)
        .expect("the port exists");
    assert_eq!(after.installed.map(|flow| flow.packets), Some(1));
    assert_eq!(
        world
            .plane
            .trace(PortId(1), &packet[..20])
            .expect("the port exists")
            .key,
        Err(DropReason::Malformed)
    );
}
