//! What comes from the underlay: tunnel packets of known hosts, and neighbours.

use crate::frames::*;
use crate::world::*;
use flow::reference::{Packet, execute};
use flow::wire::arp::{REPLY, REQUEST};
use flow::wire::*;
use flow::{Action, DropReason, MacAddr, PortId, Vxlan};
use std::net::IpAddr;
use vrouter::{Verdict, underlay_arp_request};

/// A frame in VXLAN, as host 1 would send it to host 0.
fn tunnelled(frame: Vec<u8>, vni: u32, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let (eth_src, eth_dst) = (host_mac(1), host_mac(0));
    let outer = Vxlan {
        eth_src,
        eth_dst,
        src,
        dst,
        src_port: 50000,
        vni,
        ttl: 64,
    };
    let list = [Action::EncapVxlan(outer), Action::Output(PortId::UPLINK)];
    execute(&list, Packet::complete(frame))
        .outputs
        .remove(0)
        .1
        .bytes
}

fn from_host_1(frame: Vec<u8>, vni: u32) -> Vec<u8> {
    tunnelled(frame, vni, host_ip(1), host_ip(0))
}

#[test]
fn only_known_hosts_stations_and_networks_get_through() {
    let (world, guests) = (world(), guests());
    let (a, b, c) = (guests[A], guests[B], guests[C]);
    let inner = |dst_mac, src_mac| ping(dst_mac, src_mac, c.v4.into(), a.v4.into(), 8);
    let good = inner(a.mac, c.mac);
    let delivered = world.receive(0, from_host_1(good.clone(), BLUE_VNI));
    assert_eq!(delivered.delivery_to(&a), good);
    let routed = inner(a.mac, GATEWAY_MAC);
    assert_eq!(
        world.receive(0, from_host_1(routed, BLUE_VNI)).receivers(),
        [(0, 1)]
    );
    let (one, zero) = (host_ip(1), host_ip(0));
    let cases = [
        (
            tunnelled(good.clone(), BLUE_VNI, one, ip("192.0.2.9")),
            DropReason::NotForUs,
        ),
        (
            tunnelled(good.clone(), 4242, one, zero),
            DropReason::UnknownVni,
        ),
        (
            tunnelled(good.clone(), BLUE_VNI, ip("192.0.2.9"), zero),
            DropReason::UnknownTunnelSource,
        ),
        (
            from_host_1(inner(a.mac, mac(99)), BLUE_VNI),
            DropReason::SpoofedMac,
        ),
        (
            from_host_1(inner(b.mac, a.mac), BLUE_VNI),
            DropReason::SpoofedMac,
        ),
        (
            from_host_1(inner(MacAddr::BROADCAST, GATEWAY_MAC), BLUE_VNI),
            DropReason::SpoofedMac,
        ),
        (
            from_host_1(inner(mac(99), c.mac), BLUE_VNI),
            DropReason::UnknownDestination,
        ),
        (
            from_host_1(inner(GATEWAY_MAC, c.mac), BLUE_VNI),
            DropReason::UnknownDestination,
        ),
        (
            from_host_1(inner(c.mac, c.mac), BLUE_VNI),
            DropReason::UnknownDestination,
        ),
        (from_host_1(ping_big(&a, &c), BLUE_VNI), DropReason::TooBig),
    ];
    for (frame, reason) in cases {
        world.receive(0, frame).only_dropped(0, reason);
    }
}

fn ping_big(a: &Guest, c: &Guest) -> Vec<u8> {
    ping(a.mac, c.mac, c.v4.into(), a.v4.into(), 1451 - 28)
}

#[test]
fn hops_are_not_counted_at_the_receiving_host() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let last_hop = ping_ttl(a.mac, GATEWAY_MAC, c.v4.into(), a.v4.into(), 8, 1);
    let happened = world.receive(0, from_host_1(last_hop.clone(), BLUE_VNI));
    assert_eq!(happened.delivery_to(&a), last_hop);
}

#[test]
fn a_group_address_goes_to_local_ports_only() {
    let (world, guests) = (world(), guests());
    let (c, r) = (guests[C], guests[R]);
    let to_all = |from: &Guest| {
        let (src, dst) = ((from.v4.into(), 9), (ip("255.255.255.255"), 9));
        udp(MacAddr::BROADCAST, from.mac, src, dst, b"hello")
    };
    let blue = world.receive(0, from_host_1(to_all(&c), BLUE_VNI));
    assert_eq!(
        (blue.receivers(), blue.wire.len()),
        (vec![(0, 1), (0, 2)], 0)
    );
    let plain = world.receive(0, from_host_1(to_all(&r), PLAIN_VNI));
    assert_eq!(
        (plain.receivers(), plain.wire.len()),
        (vec![(0, 5), (0, 6)], 0)
    );
}

#[test]
fn what_configures_guests_does_not_come_by_tunnel() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let solicitation = solicit(&c, c.v6, a.v6);
    let server = ((c.v4.into(), 67), (a.v4.into(), 68));
    let server6 = ((c.link_local().into(), 547), (a.link_local().into(), 546));
    let cases = [
        arp(&c, REQUEST, c.v4, a.v4),
        arp(&c, REPLY, v4("10.0.0.1"), a.v4),
        solicitation,
        udp(a.mac, c.mac, server.0, server.1, &[2; 300]),
        udp(a.mac, c.mac, server6.0, server6.1, &[2; 40]),
        udp(a.mac, c.mac, (server.0.0, 6767), server.1, &[2; 300]),
        udp(a.mac, c.mac, (server6.0.0, 6767), server6.1, &[2; 40]),
    ];
    for frame in cases {
        let happened = world.receive(0, from_host_1(frame, BLUE_VNI));
        happened.only_dropped(0, DropReason::NotForwardable);
    }
    let tagged = EthernetRepr {
        dst: a.mac,
        src: c.mac,
        vlan: Some(1),
        ethertype: 0x0800,
    };
    let mut frame = tagged.emit(&ping(a.mac, c.mac, c.v4.into(), a.v4.into(), 8)[14..]);
    let happened = world.receive(0, from_host_1(frame.clone(), BLUE_VNI));
    happened.only_dropped(0, DropReason::UnsupportedProtocol);
    frame = ethernet(a.mac, c.mac, 0x88b5, &[0; 46]);
    let happened = world.receive(0, from_host_1(frame, BLUE_VNI));
    happened.only_dropped(0, DropReason::UnsupportedProtocol);
}

fn uplink_verdict(world: &World, host: usize, frame: &[u8]) -> Verdict {
    let parsed = flow::parse_tunnel(frame, PortId::UPLINK).unwrap();
    let told = world.hosts[host].explain(&parsed, frame);
    let verdict = world.hosts[host].first_packet(&parsed, frame);
    assert_eq!(told.verdict, verdict);
    verdict
}

#[test]
fn a_next_hop_is_asked_for_answers_and_is_learned() {
    let plan = plan();
    let underlays = [0, 1].map(|host: usize| plan.0[host].underlay.clone().unwrap());
    let world = plan.build();
    let question = underlay_arp_request(&underlays[0], host_ip(1));
    assert_eq!(question[..12], [&[0xff; 6][..], &host_mac(0).0].concat());
    let Verdict::Answer(answers) = uplink_verdict(&world, 1, &question) else {
        panic!()
    };
    assert_eq!((answers.len(), answers[0].port), (1, PortId::UPLINK));
    let learned = uplink_verdict(&world, 0, &answers[0].packet);
    assert_eq!(
        learned,
        Verdict::Learned {
            ip: host_ip(1),
            mac: host_mac(1)
        }
    );
    // Nobody is answered for others, nothing learned that no peer needs.
    let not_for_us = Verdict::Drop(DropReason::NotForUs);
    let for_other = underlay_arp_request(&underlays[0], ip("192.0.2.77"));
    assert_eq!(uplink_verdict(&world, 1, &for_other), not_for_us);
    let stranger = Guest {
        v4: v4("192.0.2.77"),
        ..guests()[A]
    };
    let unneeded = arp(&stranger, REPLY, stranger.v4, v4("192.0.2.1"));
    assert_eq!(uplink_verdict(&world, 0, &unneeded), not_for_us);
    let mut forged = answers[0].packet.clone();
    forged[6..12].copy_from_slice(&mac(99).0);
    assert_eq!(uplink_verdict(&world, 0, &forged), not_for_us);
    let ssh = udp(
        host_mac(0),
        host_mac(1),
        (host_ip(1), 1),
        (host_ip(0), 22),
        b"x",
    );
    assert_eq!(uplink_verdict(&world, 0, &ssh), not_for_us);
}

#[test]
fn where_the_kernel_answers_arp_the_router_does_not() {
    let plan = plan().change(|t| t.underlay.as_mut().unwrap().answer_arp = false);
    let question = underlay_arp_request(plan.0[0].underlay.as_ref().unwrap(), host_ip(1));
    let world = plan.build();
    let verdict = uplink_verdict(&world, 1, &question);
    assert_eq!(verdict, Verdict::Drop(DropReason::NotForUs));
}

#[test]
fn an_ipv6_underlay_uses_neighbour_discovery() {
    let (one, two) = (ip("2001:db8:ffff::1"), ip("2001:db8:ffff::2"));
    let mut plan = plan();
    for (host, own, other) in [(0, one, two), (1, two, one)] {
        let underlay = plan.0[host].underlay.as_mut().unwrap();
        (underlay.address, underlay.prefix_len) = (own, 64);
        underlay.neighbours.clear();
        plan.0[host]
            .peers
            .iter_mut()
            .for_each(|peer| peer.vtep = other);
    }
    let question = underlay_arp_request(plan.0[0].underlay.as_ref().unwrap(), two);
    let world = plan.build();
    assert_eq!(world.hosts[0].underlay_next_hops(), [two]);
    let Verdict::Answer(answers) = uplink_verdict(&world, 1, &question) else {
        panic!()
    };
    let seen = see(&answers[0].packet);
    assert_eq!(
        (seen.eth_dst, seen.src, seen.dst, seen.ttl),
        (host_mac(0), two, one, 255)
    );
    let learned = uplink_verdict(&world, 0, &answers[0].packet);
    assert_eq!(
        learned,
        Verdict::Learned {
            ip: two,
            mac: host_mac(1)
        }
    );
    let mut damaged = answers[0].packet.clone();
    damaged[60] ^= 1;
    assert_eq!(
        uplink_verdict(&world, 0, &damaged),
        Verdict::Drop(DropReason::NotForUs)
    );
}
