//! ARP, neighbour discovery and router advertisements: every address is answered for, and nobody's
//! own address is contested.

use crate::frames::*;
use crate::world::*;
use flow::wire::arp::{REPLY, REQUEST};
use flow::wire::nd::{OVERRIDE, ROUTER, SOLICITED, TARGET_LINK_ADDRESS};
use flow::wire::*;
use flow::{DropReason, MacAddr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[test]
fn arp_is_answered_for_the_gateway_and_for_stations_here_and_there() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    let known = [
        (v4("10.0.0.1"), GATEWAY_MAC),
        (v4("10.0.1.1"), GATEWAY_MAC),
        (guests[B].v4, guests[B].mac),
        (guests[C].v4, guests[C].mac),
    ];
    for (target, owner) in known {
        // From its address, and as a probe: that of another's address has to fail.
        for sender in [a.v4, Ipv4Addr::UNSPECIFIED] {
            let answer = world
                .send(&a, arp(&a, REQUEST, sender, target))
                .answer_to(&a);
            let eth = EthernetFrame::new_checked(&answer[..]).unwrap();
            assert_eq!((eth.dst(), eth.src()), (a.mac, owner));
            let expected = ArpRepr {
                operation: REPLY,
                sender_mac: owner,
                sender_ip: target,
                target_mac: a.mac,
                target_ip: sender,
            };
            assert_eq!(eth.payload(), expected.emit());
        }
    }
    let unknown = world.send(&a, arp(&a, REQUEST, a.v4, v4("10.0.0.99")));
    unknown.only_dropped(0, DropReason::UnknownDestination);
}

#[test]
fn arp_for_ones_own_address_is_never_answered() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    world
        .send(&a, arp(&a, REQUEST, Ipv4Addr::UNSPECIFIED, a.v4))
        .nothing();
    world.send(&a, arp(&a, REQUEST, a.v4, a.v4)).nothing();
    world.send(&a, arp(&a, REPLY, a.v4, a.v4)).nothing();
    world.send(&a, arp(&a, REPLY, a.v4, guests[C].v4)).nothing();
}

/// The advertisement in a frame: target, flags, and its MAC.
fn advert(seen: &Seen) -> (Ipv6Addr, u8, MacAddr) {
    assert_eq!((seen.protocol, seen.ttl), (protocol::ICMPV6, 255));
    let message = NdMessage::new_checked(&seen.payload[..]).unwrap();
    assert_eq!(message.kind(), icmp::v6::NEIGHBOUR_ADVERT);
    let link = message.link_address(TARGET_LINK_ADDRESS).unwrap();
    (message.target().unwrap(), seen.payload[4], link)
}

#[test]
fn solicitations_are_answered_for_the_gateway_and_for_stations_here_and_there() {
    let (world, guests) = (world(), guests());
    let (a, b, c) = (guests[A], guests[B], guests[C]);
    let gateway = Guest {
        mac: GATEWAY_MAC,
        ..a
    };
    let known = [
        (v6("fd00:b::1"), GATEWAY_MAC, ROUTER),
        (v6("fd00:b:0:1::1"), GATEWAY_MAC, ROUTER),
        (gateway.link_local(), GATEWAY_MAC, ROUTER),
        (b.v6, b.mac, 0),
        (c.v6, c.mac, 0),
        (c.link_local(), c.mac, 0),
    ];
    for (target, owner, router) in known {
        for src in [a.v6, a.link_local()] {
            let probe = NdRepr::Solicit { target, link: None }.emit(src, target);
            // By multicast to resolve, and by unicast to probe (NUD).
            for frame in [solicit(&a, src, target), nd(&a, src, target, &probe)] {
                let seen = see(&world.send(&a, frame).answer_to(&a));
                assert_eq!((seen.eth_dst, seen.eth_src), (a.mac, owner));
                assert_eq!((seen.src, seen.dst), (target.into(), src.into()));
                assert_eq!(
                    advert(&seen),
                    (target, router | SOLICITED | OVERRIDE, owner)
                );
            }
        }
    }
    let unknown = world.send(&a, solicit(&a, a.v6, v6("fd00:b::99")));
    unknown.only_dropped(0, DropReason::UnknownDestination);
}

#[test]
fn duplicate_address_detection_succeeds_for_free_addresses_only() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    for free in [a.v6, a.link_local(), v6("fd00:b::99"), v6("fe80::99")] {
        world.send(&a, dad(&a, free)).nothing();
    }
    for (taken, router) in [(c.v6, 0), (c.link_local(), 0), (v6("fd00:b::1"), ROUTER)] {
        let seen = see(&world.send(&a, dad(&a, taken)).answer_to(&a));
        assert_eq!(seen.dst, ip("ff02::1"));
        assert_eq!(seen.eth_dst, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
        let (target, flags, _) = advert(&seen);
        assert_eq!((target, flags), (taken, router | OVERRIDE));
    }
    let own = NdRepr::Advert {
        target: a.v6,
        link: a.mac,
        flags: OVERRIDE,
    };
    let all = v6("ff02::1");
    world
        .send(&a, nd(&a, a.v6, all, &own.emit(a.v6, all)))
        .nothing();
}

#[test]
fn an_address_that_would_be_dropped_as_spoofed_is_refused_to_slaac() {
    let (world, guests) = (world(), guests());
    let b = guests[B];
    let temporary = v6("fd00:b:0:1:d5a1:77:e30:1");
    let seen = see(&world.send(&b, dad(&b, temporary)).answer_to(&b));
    assert_eq!((seen.eth_src, seen.dst), (GATEWAY_MAC, ip("ff02::1")));
    let (target, flags, _) = advert(&seen);
    assert_eq!((target, flags), (temporary, OVERRIDE));
    // What it may use stays free, and nobody else is told that the address is there.
    let mut formed = temporary.octets();
    formed[8..].copy_from_slice(&b.mac.eui64());
    for own in [b.v6, Ipv6Addr::from(formed), b.link_local()] {
        world.send(&b, dad(&b, own)).nothing();
    }
    world
        .send(&b, solicit(&b, b.v6, temporary))
        .only_dropped(0, DropReason::UnknownDestination);
}

#[test]
fn invalid_neighbour_discovery_is_malformed() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    let target = guests[C].v6;
    let good = solicit(&a, a.v6, target);
    world.send(&a, good.clone()).answer_to(&a);
    let change = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let node = nd::solicited_node(target);
    let bad_option = {
        let mut body = target.octets().to_vec();
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        let kind = icmp::v6::NEIGHBOUR_SOLICIT;
        let icmp = Icmpv6Repr {
            src: a.v6,
            dst: node,
            kind,
            code: 0,
            rest: [0; 4],
        };
        nd(&a, a.v6, node, &icmp.emit(&body))
    };
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let with_link = NdRepr::Solicit {
        target,
        link: Some(a.mac),
    }
    .emit(unspecified, node);
    let all = v6("ff02::1");
    let to_all = NdRepr::Solicit { target, link: None }.emit(unspecified, all);
    let cases = [
        change(14 + 7, 254),
        change(14 + 40 + 2, good[56] ^ 1),
        bad_option,
        nd(&a, unspecified, node, &with_link),
        nd(&a, unspecified, all, &to_all),
    ];
    for frame in cases {
        world.send(&a, frame).only_dropped(0, DropReason::Malformed);
    }
}

fn router_solicitation(guest: &Guest, src: Ipv6Addr, with_link: bool) -> Vec<u8> {
    let dst = v6("ff02::2");
    let [a, b, c, d, e, f] = guest.mac.0;
    let option = [1, 1, a, b, c, d, e, f];
    let kind = icmp::v6::ROUTER_SOLICIT;
    let icmp = Icmpv6Repr {
        src,
        dst,
        kind,
        code: 0,
        rest: [0; 4],
    };
    nd(
        guest,
        src,
        dst,
        &icmp.emit(if with_link { &option } else { &[] }),
    )
}

/// The options of a router advertisement, each from its type on.
fn options(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = vec![];
    while !bytes.is_empty() {
        let (option, rest) = bytes.split_at(usize::from(bytes[1]) * 8);
        all.push(option);
        bytes = rest;
    }
    all
}

#[test]
fn a_router_advertisement_tells_all_a_guest_needs() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    let gateway = Guest {
        mac: GATEWAY_MAC,
        ..a
    };
    let stable = v6("fe80::1234");
    for (src, dst) in [
        (a.link_local(), a.link_local()),
        (stable, stable),
        (Ipv6Addr::UNSPECIFIED, v6("ff02::1")),
    ] {
        let asked = router_solicitation(&a, src, !src.is_unspecified());
        let seen = see(&world.send(&a, asked).answer_to(&a));
        assert_eq!(
            (seen.src, seen.dst),
            (gateway.link_local().into(), IpAddr::V6(dst))
        );
        assert_eq!((seen.ttl, seen.eth_src), (255, GATEWAY_MAC));
        let message = &seen.payload;
        assert_eq!(message[..2], [134, 0]);
        assert_eq!(
            message[4..8],
            [64, 0xc0, 35, 40],
            "hop limit, M and O, 9000 seconds"
        );
        let options = options(&message[16..]);
        let kinds: Vec<u8> = options.iter().map(|option| option[0]).collect();
        assert_eq!(kinds, [1, 5, 3, 3, 25]);
        assert_eq!(options[0][2..], GATEWAY_MAC.0);
        assert_eq!(options[1][4..], u32::from(BLUE_MTU).to_be_bytes());
        assert_eq!(options[2][2..4], [64, 0x80], "on link, not autonomous");
        assert_eq!(options[2][16..], v6("fd00:b::").octets());
        assert_eq!(options[3][2..4], [64, 0xc0], "on link and autonomous");
        assert_eq!(options[3][16..], v6("fd00:b:0:1::").octets());
        assert_eq!(options[4][8..], v6("2620:fe::fe").octets());
    }
    let unsolicited = world.hosts[0].router_advertisements();
    let ports: Vec<u32> = unsolicited.iter().map(|answer| answer.port.0).collect();
    assert_eq!(
        ports,
        [1, 2, 3],
        "every port but those on the plain Ethernet"
    );
    assert_eq!(see(&unsolicited[0].packet).dst, ip("ff02::1"));
}

#[test]
fn a_guest_that_makes_no_address_of_its_mac_is_led_to_dhcpv6() {
    let formed = v6("fd00:b:0:1:0:ff:fe00:14"); // by SLAAC of B's MAC
    let b = guests()[B];
    assert_eq!(formed.octets()[8..], b.mac.eui64());
    for (address, flags) in [(Some(formed), 0xc0), (None, 0x40)] {
        let plan = plan().change(|t| {
            let ports = t.ports.iter_mut().filter(|p| p.name == "guest-1");
            ports.for_each(|p| {
                p.addresses.retain(IpAddr::is_ipv4);
                p.addresses.extend(address.map(IpAddr::V6));
            });
        });
        let asked = router_solicitation(&b, b.link_local(), true);
        let seen = see(&plan.build().send(&b, asked).answer_to(&b));
        assert_eq!(seen.payload[5], flags, "M and O for {address:?}");
    }
}

#[test]
fn without_ipv6_no_router_is_advertised() {
    let plan = plan().change(|topology| {
        topology.networks[1]
            .subnets
            .retain(|subnet| subnet.gateway.is_ipv4());
        let red = |ips: &mut Vec<IpAddr>| ips.retain(IpAddr::is_ipv4);
        topology
            .ports
            .iter_mut()
            .filter(|p| p.network.0 == 2)
            .for_each(|p| red(&mut p.addresses));
        topology
            .peers
            .iter_mut()
            .filter(|p| p.network.0 == 2)
            .for_each(|p| red(&mut p.addresses));
    });
    let (world, x) = (plan.build(), guests()[X]);
    world
        .send(&x, router_solicitation(&x, x.link_local(), true))
        .nothing();
    assert_eq!(world.hosts[0].router_advertisements().len(), 2);
}
