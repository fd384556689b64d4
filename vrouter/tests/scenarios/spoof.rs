//! A guest sends only as itself.

use crate::frames::*;
use crate::world::*;
use flow::wire::arp::{REPLY, REQUEST};
use flow::wire::icmp::v6 as icmp6;
use flow::wire::{Icmpv6Repr, NdRepr, RouterAdvert, nd, protocol};
use flow::{DropReason, MacAddr};
use std::net::{IpAddr, Ipv6Addr};

#[test]
fn another_source_mac_is_dropped_on_every_network() {
    let (world, guests) = (world(), guests());
    for (from, to) in [(A, B), (A, C), (X, Y), (P, Q), (C, A)] {
        let (from, to) = (guests[from], guests[to]);
        for claimed in [
            to.mac,
            GATEWAY_MAC,
            mac(99),
            MacAddr::ZERO,
            MacAddr::BROADCAST,
        ] {
            let frame = ping(to.mac, claimed, from.v4.into(), to.v4.into(), 8);
            world
                .send(&from, frame)
                .only_dropped(from.host, DropReason::SpoofedMac);
        }
    }
}

#[test]
fn another_source_address_is_dropped_wherever_it_goes() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let others4 = [
        "10.0.0.30",
        "10.0.0.1",
        "10.0.0.11",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
    ];
    let others6 = [
        "fd00:b::30",
        "fd00:b::1",
        "fd00:b::11",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "2001:db8::1",
    ];
    for dst_mac in [c.mac, GATEWAY_MAC, MacAddr::BROADCAST] {
        for src in others4 {
            let frame = ping(dst_mac, a.mac, ip(src), c.v4.into(), 8);
            world.send(&a, frame).only_dropped(0, DropReason::SpoofedIp);
        }
        for src in others6 {
            let frame = ping(dst_mac, a.mac, ip(src), c.v6.into(), 8);
            world.send(&a, frame).only_dropped(0, DropReason::SpoofedIp);
        }
    }
    let neighbours_link_local = ping(c.mac, a.mac, c.link_local().into(), c.v6.into(), 8);
    world
        .send(&a, neighbours_link_local)
        .only_dropped(0, DropReason::SpoofedIp);
}

#[test]
fn an_ipv4_mapped_source_is_not_the_ipv4_address() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let mapped = |v4: std::net::Ipv4Addr| IpAddr::V6(v4.to_ipv6_mapped());
    for (src, dst) in [(mapped(a.v4), mapped(c.v4)), (a.v6.into(), mapped(c.v4))] {
        let happened = world.send(&a, ping(GATEWAY_MAC, a.mac, src, dst, 8));
        happened.only_dropped(0, DropReason::NotForwardable);
    }
}

#[test]
fn a_slaac_address_is_the_ports_where_the_subnet_has_slaac() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let formed = |guest: &Guest, prefix: &str| {
        let mut octets = v6(prefix).octets();
        octets[8..].copy_from_slice(&guest.mac.eui64());
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let slaac = |guest| formed(guest, "fd00:b:0:1::");
    let frame = ping(c.mac, a.mac, slaac(&a), slaac(&c), 8);
    assert_eq!(world.send(&a, frame.clone()).delivery_to(&c), frame);
    let not_slaac = ping(c.mac, a.mac, formed(&a, "fd00:b::"), c.v6.into(), 8);
    world
        .send(&a, not_slaac)
        .only_dropped(0, DropReason::SpoofedIp);
}

#[test]
fn arp_must_not_claim_another() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    for operation in [REQUEST, REPLY] {
        for claimed in [c.v4, v4("10.0.0.1"), v4("10.0.0.99")] {
            let frame = arp(&a, operation, claimed, c.v4);
            world
                .send(&a, frame)
                .only_dropped(0, DropReason::SpoofedNeighbour);
        }
        let mut other_mac = arp(&a, operation, a.v4, c.v4);
        other_mac[22..28].copy_from_slice(&c.mac.0);
        world
            .send(&a, other_mac)
            .only_dropped(0, DropReason::SpoofedNeighbour);
    }
    let p = guests[P];
    let mut on_plain = arp(&p, REQUEST, p.v4, guests[Q].v4);
    on_plain[22..28].copy_from_slice(&guests[Q].mac.0);
    world
        .send(&p, on_plain)
        .only_dropped(0, DropReason::SpoofedNeighbour);
}

#[test]
fn neighbour_discovery_must_not_claim_another() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let advert = |src: Ipv6Addr, target, link| {
        let message = NdRepr::Advert {
            target,
            link,
            flags: nd::OVERRIDE,
        };
        nd(&a, src, v6("ff02::1"), &message.emit(src, v6("ff02::1")))
    };
    let solicit_as = |src: Ipv6Addr, link| {
        let dst = nd::solicited_node(c.v6);
        nd(
            &a,
            src,
            dst,
            &NdRepr::Solicit { target: c.v6, link }.emit(src, dst),
        )
    };
    let gateway = v6("fd00:b::1");
    let all = v6("ff02::1");
    let router = RouterAdvert {
        hop_limit: 64,
        managed: false,
        other: false,
        lifetime: 1800,
        link: a.mac,
        mtu: None,
        prefixes: vec![],
        dns: vec![],
        dns_lifetime: 0,
    };
    let rest = [0; 4];
    let redirect = Icmpv6Repr {
        src: a.link_local(),
        dst: all,
        kind: icmp6::REDIRECT,
        code: 0,
        rest,
    };
    let cases = [
        advert(a.v6, c.v6, a.mac),
        advert(a.v6, gateway, a.mac),
        advert(a.v6, a.v6, c.mac),
        advert(c.v6, c.v6, a.mac),
        advert(a.link_local(), c.link_local(), a.mac),
        solicit_as(c.v6, Some(a.mac)),
        solicit_as(gateway, Some(a.mac)),
        solicit_as(a.v6, Some(c.mac)),
        solicit_as(c.link_local(), Some(a.mac)),
        nd(&a, a.link_local(), all, &router.emit(a.link_local(), all)),
        nd(&a, a.link_local(), all, &redirect.emit(&[0; 32])),
    ];
    for frame in cases {
        world
            .send(&a, frame)
            .only_dropped(0, DropReason::SpoofedNeighbour);
    }
}

#[test]
fn a_link_local_address_of_ones_own_making_reaches_the_routers_services_only() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let stable = v6("fe80::1234:5678:9abc:def0");
    let answer = see(&world
        .send(&a, solicit(&a, stable, v6("fd00:b::1")))
        .answer_to(&a));
    assert_eq!(answer.dst, stable);
    let frame = ping(c.mac, a.mac, stable.into(), c.link_local().into(), 8);
    world.send(&a, frame).only_dropped(0, DropReason::SpoofedIp);
    world.send(&a, dad(&a, stable)).nothing();
}

#[test]
fn a_guest_is_no_dhcp_server() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    // Clients that read raw packets look at the destination port only.
    for (dst_mac, source) in [
        (c.mac, None),
        (MacAddr::BROADCAST, None),
        (GATEWAY_MAC, None),
        (c.mac, Some(6767)),
        (MacAddr::BROADCAST, Some(6767)),
    ] {
        let offer = udp(
            dst_mac,
            a.mac,
            (a.v4.into(), source.unwrap_or(67)),
            (c.v4.into(), 68),
            &[2; 300],
        );
        world
            .send(&a, offer)
            .only_dropped(0, DropReason::NotForwardable);
        let (src, dst) = (a.link_local().into(), c.link_local().into());
        let advertise = udp(
            dst_mac,
            a.mac,
            (src, source.unwrap_or(547)),
            (dst, 546),
            &[2; 40],
        );
        world
            .send(&a, advertise)
            .only_dropped(0, DropReason::NotForwardable);
    }
    // The other family's port is no client's.
    let frame = udp(
        c.mac,
        a.mac,
        (a.v4.into(), 547),
        (c.v4.into(), 546),
        &[2; 40],
    );
    assert_eq!(world.send(&a, frame.clone()).delivery_to(&c), frame);
}

#[test]
fn group_membership_reports_are_heard_and_not_flooded() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    let all_routers = v6("ff02::16");
    for src in [a.link_local(), Ipv6Addr::UNSPECIFIED, v6("fe80::77")] {
        let report = Icmpv6Repr {
            src,
            dst: all_routers,
            kind: 143,
            code: 0,
            rest: [0; 4],
        };
        let to = nd::multicast_mac(all_routers);
        let pair = (src.into(), all_routers.into());
        let frame = ip_frame(to, a.mac, pair, protocol::ICMPV6, 1, &report.emit(&[]));
        world.send(&a, frame).nothing();
    }
    let pair = (a.v4.into(), ip("224.0.0.22"));
    let igmp = ip_frame(
        MacAddr([1, 0, 0x5e, 0, 0, 22]),
        a.mac,
        pair,
        2,
        1,
        &[0x22, 0, 0, 0],
    );
    world.send(&a, igmp).nothing();
}
