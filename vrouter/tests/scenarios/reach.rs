//! Who reaches whom, by what way, and what the packet looks like when it is there.

use crate::frames::*;
use crate::world::*;
use flow::wire::{EthernetRepr, ethertype};
use flow::{Action, DropReason, MacAddr, PortId};
use std::net::IpAddr;
use vrouter::{Route, VRouter, Verdict};

#[test]
fn guests_of_one_subnet_reach_each_other_across_hosts() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let pairs: [(IpAddr, IpAddr); 3] = [
        (a.v4.into(), c.v4.into()),
        (a.v6.into(), c.v6.into()),
        (a.link_local().into(), c.link_local().into()),
    ];
    for (src, dst) in pairs {
        let frame = ping(c.mac, a.mac, src, dst, 56);
        let happened = world.send(&a, frame.clone());
        assert_eq!(
            happened.delivery_to(&c),
            frame,
            "a bridged frame arrives as it was sent"
        );
        let outer = see(&happened.wire[0]);
        assert_eq!((outer.src, outer.dst), (host_ip(0), host_ip(1)));
        assert_eq!((outer.eth_src, outer.eth_dst), (host_mac(0), host_mac(1)));
        assert_eq!(outer.payload[8..16], [8, 0, 0, 0, 0, 0, BLUE_VNI as u8, 0]);
    }
}

#[test]
fn guests_of_two_subnets_reach_each_other_through_the_gateway_one_hop_away() {
    let (world, guests) = (world(), guests());
    let ways = [(A, B), (B, A), (B, C), (C, B)];
    for (from, to) in ways.map(|(from, to)| (guests[from], guests[to])) {
        let pairs = [
            (from.v4.into(), to.v4.into()),
            (from.v6.into(), to.v6.into()),
        ];
        for (src, dst) in pairs {
            let sent = see(&ping(GATEWAY_MAC, from.mac, src, dst, 56));
            let happened = world.send(&from, ping(GATEWAY_MAC, from.mac, src, dst, 56));
            let mut expected = sent.clone();
            (expected.eth_dst, expected.eth_src, expected.ttl) = (to.mac, GATEWAY_MAC, 63);
            assert_eq!(see(&happened.delivery_to(&to)), expected);
        }
    }
}

#[test]
fn overlapping_networks_stay_apart() {
    let (world, guests) = (world(), guests());
    // X has A's MAC and addresses; what it sends to Y's, which are C's, must come to Y.
    let (x, y) = (guests[X], guests[Y]);
    let pairs = [(x.v4.into(), y.v4.into()), (x.v6.into(), y.v6.into())];
    for (src, dst) in pairs {
        let frame = ping(y.mac, x.mac, src, dst, 56);
        let happened = world.send(&x, frame.clone());
        assert_eq!(happened.delivery_to(&y), frame);
        assert_eq!(happened.wire[0][46..49], [0, 0, RED_VNI as u8]);
    }
    // B is in blue only: red has neither its MAC nor its subnet.
    let b = guests[B];
    let direct = ping(b.mac, x.mac, x.v4.into(), b.v4.into(), 56);
    world
        .send(&x, direct)
        .only_dropped(0, DropReason::UnknownDestination);
    let routed = ping(GATEWAY_MAC, x.mac, x.v4.into(), b.v4.into(), 56);
    world.send(&x, routed).only_dropped(0, DropReason::NoRoute);
}

#[test]
fn a_group_address_reaches_all_of_the_network_but_the_sender() {
    let (world, guests) = (world(), guests());
    let (a, c, p, x) = (guests[A], guests[C], guests[P], guests[X]);
    let to_all = |from: &Guest, group: MacAddr, dst: &str| {
        let dst = ip(dst);
        let src = if dst.is_ipv4() {
            from.v4.into()
        } else {
            from.v6.into()
        };
        udp(group, from.mac, (src, 1000), (dst, 5353), b"who is there")
    };
    let multicast6 = MacAddr([0x33, 0x33, 0, 0, 0, 0xfb]);
    let multicast4 = MacAddr([1, 0, 0x5e, 0, 0, 0xfb]);
    for (group, dst) in [
        (MacAddr::BROADCAST, "255.255.255.255"),
        (multicast4, "224.0.0.251"),
        (multicast6, "ff02::fb"),
    ] {
        let frame = to_all(&a, group, dst);
        let happened = world.send(&a, frame.clone());
        assert_eq!(happened.receivers(), [(0, 2), (1, 1)]);
        assert!(
            happened
                .delivered
                .iter()
                .all(|(_, _, bytes)| *bytes == frame)
        );
        assert_eq!(happened.wire.len(), 1, "one copy a host");
        assert_eq!(world.send(&x, to_all(&x, group, dst)).receivers(), [(1, 3)]);
        // A and B are on one host, which gets one copy.
        let happened = world.send(&c, to_all(&c, group, dst));
        assert_eq!(
            (happened.receivers(), happened.wire.len()),
            (vec![(0, 1), (0, 2)], 1)
        );
    }
    let happened = world.send(&p, to_all(&p, MacAddr::BROADCAST, "255.255.255.255"));
    assert_eq!(happened.receivers(), [(0, 6), (1, 5)]);
}

#[test]
fn a_plain_ethernet_carries_everything_by_mac() {
    let (world, guests) = (world(), guests());
    let (p, q, r) = (guests[P], guests[Q], guests[R]);
    let tagged = |to: &Guest| {
        let header = EthernetRepr {
            dst: to.mac,
            src: p.mac,
            vlan: Some(5),
            ethertype: 0x88b5,
        };
        header.emit(b"an experiment of IEEE")
    };
    for to in [q, r] {
        assert_eq!(world.send(&p, tagged(&to)).delivery_to(&to), tagged(&to));
        let foreign = ping(to.mac, p.mac, ip("203.0.113.9"), ip("203.0.113.10"), 8);
        assert_eq!(world.send(&p, foreign.clone()).delivery_to(&to), foreign);
    }
    let asked = world.send(&p, arp(&p, 1, p.v4, r.v4));
    assert_eq!(
        asked.receivers(),
        [(0, 6), (1, 5)],
        "nobody answers for others"
    );
    let bridge = MacAddr([1, 0x80, 0xc2, 0, 0, 0]);
    let spanning_tree = ethernet(bridge, p.mac, 0x88cc, &[0; 46]);
    world
        .send(&p, spanning_tree)
        .only_dropped(0, DropReason::NotForwardable);
    let other_ethertype = ethernet(guests[C].mac, guests[A].mac, 0x88b5, &[0; 46]);
    world
        .send(&guests[A], other_ethertype)
        .only_dropped(0, DropReason::UnsupportedProtocol);
}

#[test]
fn a_packet_to_oneself_or_nobody_is_dropped_with_its_reason() {
    let (world, guests) = (world(), guests());
    let (a, b) = (guests[A], guests[B]);
    let to = |dst_mac, dst: &str| ping(dst_mac, a.mac, a.v4.into(), ip(dst), 8);
    let to6 = |dst: &str| ping(GATEWAY_MAC, a.mac, a.v6.into(), ip(dst), 8);
    let from_link_local = ping(GATEWAY_MAC, a.mac, a.link_local().into(), b.v6.into(), 8);
    let cases = [
        (to(a.mac, "10.0.0.10"), DropReason::Hairpin),
        (to(GATEWAY_MAC, "10.0.0.10"), DropReason::Hairpin),
        (to(mac(77), "10.0.0.77"), DropReason::UnknownDestination),
        (to(GATEWAY_MAC, "10.0.1.77"), DropReason::UnknownDestination),
        (
            to(GATEWAY_MAC, "10.0.1.255"),
            DropReason::UnknownDestination,
        ),
        (to(GATEWAY_MAC, "8.8.8.8"), DropReason::NoRoute),
        (to(GATEWAY_MAC, "127.0.0.1"), DropReason::NotForwardable),
        (
            to(GATEWAY_MAC, "169.254.169.254"),
            DropReason::NotForwardable,
        ),
        (to(GATEWAY_MAC, "224.0.0.5"), DropReason::NotForwardable),
        (
            to(GATEWAY_MAC, "255.255.255.255"),
            DropReason::NotForwardable,
        ),
        (to6("2001:db8::1"), DropReason::NoRoute),
        (to6("fe80::77"), DropReason::NotForwardable),
        (to6("ff02::1"), DropReason::NotForwardable),
        (to6("::1"), DropReason::NotForwardable),
        (from_link_local, DropReason::NotForwardable),
    ];
    for (frame, reason) in cases {
        world.send(&a, frame).only_dropped(0, reason);
    }
}

#[test]
fn a_static_route_leads_through_a_station_and_back() {
    let route = |to: &str| Route {
        destination: to.parse().unwrap(),
        next_hop: ip("10.0.0.30"),
    };
    let plan = plan().change(|topology| {
        topology.networks[0].routes = vec![route("203.0.113.0/24"), route("203.0.0.0/16")];
    });
    let (world, guests) = (plan.build(), guests());
    let (a, b, c) = (guests[A], guests[B], guests[C]);
    for from in [a, b] {
        let there = ping(GATEWAY_MAC, from.mac, from.v4.into(), ip("203.0.113.9"), 8);
        let seen = see(&world.send(&from, there).delivery_to(&c));
        assert_eq!(
            (seen.eth_dst, seen.dst, seen.ttl),
            (c.mac, ip("203.0.113.9"), 63)
        );
        let back = ping(GATEWAY_MAC, c.mac, ip("203.0.113.9"), from.v4.into(), 8);
        assert_eq!(
            see(&world.send(&c, back).delivery_to(&from)).src,
            ip("203.0.113.9")
        );
    }
    // Only from behind the station that has the route, and never others' own addresses.
    let elsewhere = ping(GATEWAY_MAC, a.mac, ip("203.0.113.9"), b.v4.into(), 8);
    world
        .send(&a, elsewhere)
        .only_dropped(0, DropReason::SpoofedIp);
    let anothers = ping(GATEWAY_MAC, c.mac, a.v4.into(), b.v4.into(), 8);
    world
        .send(&c, anothers)
        .only_dropped(1, DropReason::SpoofedIp);
}

#[test]
fn a_default_route_through_a_station_does_not_let_it_spoof() {
    let plan = plan().change(|topology| {
        let destination = "0.0.0.0/0".parse().unwrap();
        topology.networks[0].routes = vec![Route {
            destination,
            next_hop: ip("10.0.0.30"),
        }];
    });
    let (world, guests) = (plan.build(), guests());
    let (a, b, c) = (guests[A], guests[B], guests[C]);
    let inbound = ping(GATEWAY_MAC, c.mac, ip("8.8.8.8"), b.v4.into(), 8);
    world.send(&c, inbound).delivery_to(&b);
    for src in [
        IpAddr::V4(a.v4),
        ip("10.0.1.99"),
        ip("10.0.0.1"),
        ip("127.0.0.1"),
        ip("224.0.0.1"),
    ] {
        let frame = ping(GATEWAY_MAC, c.mac, src, b.v4.into(), 8);
        world.send(&c, frame).only_dropped(1, DropReason::SpoofedIp);
    }
}

#[test]
fn while_the_next_hop_is_not_resolved_nothing_is_installed() {
    let plan = plan().change(|topology| topology.underlay.as_mut().unwrap().neighbours.clear());
    let world = plan.clone().build();
    let guests = guests();
    let (a, c) = (guests[A], guests[C]);
    let unicast = ping(c.mac, a.mac, a.v4.into(), c.v4.into(), 8);
    world
        .send(&a, unicast.clone())
        .only_dropped(0, DropReason::UnderlayUnresolved);
    let to_all = ping(
        MacAddr::BROADCAST,
        a.mac,
        a.v4.into(),
        ip("255.255.255.255"),
        8,
    );
    let parsed = flow::parse(&to_all, a.port).unwrap();
    let expected = vec![Action::CheckMtu(BLUE_MTU), Action::Output(PortId(2))];
    let verdict = world.hosts[0].first_packet(&parsed, &to_all);
    assert_eq!(verdict, Verdict::Once { actions: expected });
    assert_eq!(world.hosts[0].underlay_next_hops(), [host_ip(1)]);
    // Off the link, the gateway is what has to be resolved.
    let mut far = plan.0[0].clone();
    let underlay = far.underlay.as_mut().unwrap();
    underlay.prefix_len = 31;
    underlay.address = ip("192.0.2.9");
    underlay.gateway = Some(ip("192.0.2.8"));
    underlay.neighbours = vec![(ip("192.0.2.8"), mac(88))];
    let router = VRouter::new(far).unwrap();
    assert_eq!(router.underlay_next_hops(), [ip("192.0.2.8")]);
    let parsed = flow::parse(&unicast, a.port).unwrap();
    let Verdict::Flow { actions, .. } = router.first_packet(&parsed, &unicast) else {
        panic!()
    };
    assert!(
        matches!(&actions[1], Action::EncapVxlan(v) if v.eth_dst == mac(88) && v.dst == host_ip(1))
    );
}

#[test]
fn an_unknown_port_is_named_so() {
    let world = world();
    let stranger = Guest {
        port: PortId(42),
        ..guests()[A]
    };
    let frame = ethernet(GATEWAY_MAC, stranger.mac, ethertype::ARP, &[0; 28]);
    let frame = [
        &frame[..14],
        &arp(&stranger, 1, stranger.v4, v4("10.0.0.1"))[14..],
    ]
    .concat();
    world
        .send(&stranger, frame)
        .only_dropped(0, DropReason::UnknownPort);
}
