//! The gateway's echo, and its errors about packets that cannot go on.

use crate::frames::*;
use crate::world::*;
use flow::wire::icmp::{v4 as icmp4, v6 as icmp6};
use flow::wire::*;
use flow::{DropReason, MacAddr};
use std::net::IpAddr;

fn addresses(guest: &Guest) -> [IpAddr; 2] {
    [guest.v4.into(), guest.v6.into()]
}

#[test]
fn the_gateway_answers_echo_on_all_its_addresses() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    let link_local = Guest {
        mac: GATEWAY_MAC,
        ..a
    }
    .link_local();
    let pairs: [(IpAddr, IpAddr); 6] = [
        (a.v4.into(), ip("10.0.0.1")),
        (a.v4.into(), ip("10.0.1.1")),
        (a.v6.into(), ip("fd00:b::1")),
        (a.v6.into(), ip("fd00:b:0:1::1")),
        (a.v6.into(), link_local.into()),
        (a.link_local().into(), link_local.into()),
    ];
    for (src, dst) in pairs {
        for size in [0, 1, 56, 1400] {
            let request = ping_ttl(GATEWAY_MAC, a.mac, src, dst, size, 1);
            let asked = see(&request);
            let seen = see(&world.send(&a, request).answer_to(&a));
            assert_eq!((seen.src, seen.dst), (dst, src));
            assert_eq!(
                (seen.eth_src, seen.eth_dst, seen.ttl),
                (GATEWAY_MAC, a.mac, 64)
            );
            let kind = if src.is_ipv4() {
                icmp4::ECHO_REPLY
            } else {
                icmp6::ECHO_REPLY
            };
            assert_eq!(seen.payload[..2], [kind, 0]);
            assert_eq!(seen.payload[4..], asked.payload[4..]);
        }
    }
}

#[test]
fn what_else_is_sent_to_the_gateway_is_unreachable_or_unsupported() {
    let (world, guests) = (world(), guests());
    let a = guests[A];
    for (src, dst) in addresses(&a)
        .into_iter()
        .zip([ip("10.0.0.1"), ip("fd00:b::1")])
    {
        let frame = udp(
            GATEWAY_MAC,
            a.mac,
            (src, 40000),
            (dst, 33434),
            b"traceroute",
        );
        let seen = see(&world.send(&a, frame.clone()).answer_to(&a));
        let expected = if src.is_ipv4() { [3, 3] } else { [1, 4] };
        assert_eq!(seen.payload[..2], expected);
        assert_eq!(seen.payload[8..], frame[14..]);
        let segment = [vec![0; 12], vec![0x50, 2], vec![0; 6]].concat();
        let tcp = ip_frame(GATEWAY_MAC, a.mac, (src, dst), protocol::TCP, 64, &segment);
        world
            .send(&a, tcp)
            .only_dropped(0, DropReason::UnsupportedProtocol);
    }
}

#[test]
fn a_packet_whose_hops_run_out_gets_time_exceeded_from_its_gateway() {
    let (world, guests) = (world(), guests());
    for (from, to) in [(guests[A], guests[B]), (guests[C], guests[B])] {
        for (src, dst) in addresses(&from).into_iter().zip(addresses(&to)) {
            let gateway = if src.is_ipv4() {
                ip("10.0.0.1")
            } else {
                ip("fd00:b::1")
            };
            for ttl in [0, 1] {
                let frame = ping_ttl(GATEWAY_MAC, from.mac, src, dst, 56, ttl);
                let seen = see(&world.send(&from, frame.clone()).answer_to(&from));
                assert_eq!((seen.src, seen.dst), (gateway, src));
                let kind = if src.is_ipv4() { 11 } else { 3 };
                assert_eq!(seen.payload[..2], [kind, 0]);
                assert_eq!(seen.payload[8..], frame[14..], "the whole packet is quoted");
            }
        }
    }
    // In one subnet nothing is routed, and hops do not count.
    let (a, c) = (guests[A], guests[C]);
    let frame = ping_ttl(c.mac, a.mac, a.v4.into(), c.v4.into(), 8, 1);
    assert_eq!(world.send(&a, frame.clone()).delivery_to(&c), frame);
}

/// Pads a ping so that its IP packet has `len` bytes.
fn ping_of(len: usize, dst_mac: MacAddr, from: &Guest, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let headers = if src.is_ipv4() { 28 } else { 48 };
    ping(dst_mac, from.mac, src, dst, len - headers)
}

#[test]
fn a_packet_up_to_the_mtu_goes_and_a_longer_one_is_told_the_mtu() {
    let (small, guests) = (1500 - 80, guests());
    let (a, b, c) = (guests[A], guests[B], guests[C]);
    // With an underlay of 1420 bytes the tunnel takes 1370: less than the network's 1450.
    let narrow = plan()
        .change(|t| t.underlay.as_mut().unwrap().mtu = small)
        .build();
    let wide = world();
    let jumbo = plan()
        .change(|t| t.underlay.as_mut().unwrap().mtu = 9000)
        .build();
    let cases = [
        (&wide, b, GATEWAY_MAC, BLUE_MTU),
        (&wide, b, b.mac, BLUE_MTU),
        (&wide, c, c.mac, BLUE_MTU),
        (&jumbo, c, c.mac, BLUE_MTU),
        (&narrow, b, GATEWAY_MAC, BLUE_MTU),
        (&narrow, c, c.mac, small - 50),
    ];
    for (world, to, dst_mac, mtu) in cases {
        for (src, dst) in addresses(&a).into_iter().zip(addresses(&to)) {
            let fits = ping_of(mtu.into(), dst_mac, &a, src, dst);
            let happened = world.send(&a, fits);
            happened.delivery_to(&to);
            assert!(happened.wire.iter().all(|frame| frame.len() <= 14 + 1500));
            let long = ping_of(usize::from(mtu) + 1, dst_mac, &a, src, dst);
            let seen = see(&world.send(&a, long.clone()).answer_to(&a));
            let [high, low] = mtu.to_be_bytes();
            let quote = &seen.payload[8..];
            if src.is_ipv4() {
                assert_eq!(seen.src, ip("10.0.0.1"));
                assert_eq!(seen.payload[..2], [3, 4]);
                assert_eq!(seen.payload[4..8], [0, 0, high, low]);
                assert_eq!(quote, &long[14..14 + 576 - 28]);
            } else {
                assert_eq!(seen.src, ip("fd00:b::1"));
                assert_eq!(seen.payload[..2], [2, 0]);
                assert_eq!(seen.payload[4..8], [0, 0, high, low]);
                assert_eq!(quote, &long[14..14 + 1280 - 48]);
            }
        }
    }
}

#[test]
fn an_ipv6_underlay_takes_seventy_bytes() {
    let plan = plan().change(|topology| {
        let v6_of = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => IpAddr::V6(v6(&format!("2001:db8:ffff::{}", v4.octets()[3]))),
            v6 => v6,
        };
        let underlay = topology.underlay.as_mut().unwrap();
        underlay.address = v6_of(underlay.address);
        underlay.prefix_len = 64;
        underlay
            .neighbours
            .iter_mut()
            .for_each(|(ip, _)| *ip = v6_of(*ip));
        topology
            .peers
            .iter_mut()
            .for_each(|peer| peer.vtep = v6_of(peer.vtep));
    });
    let (world, guests) = (plan.build(), guests());
    let (a, c) = (guests[A], guests[C]);
    let (src, dst) = (a.v4.into(), c.v4.into());
    let happened = world.send(&a, ping_of(1430, c.mac, &a, src, dst));
    happened.delivery_to(&c);
    assert_eq!(happened.wire[0].len(), 14 + 1500);
    let seen = see(&world
        .send(&a, ping_of(1431, c.mac, &a, src, dst))
        .answer_to(&a));
    assert_eq!(seen.payload[4..8], [0, 0, 0x05, 0x96]);
}

#[test]
fn no_error_is_sent_about_errors_groups_or_later_fragments() {
    let (world, guests) = (world(), guests());
    let (a, b) = (guests[A], guests[B]);
    let expired = |protocol, src: IpAddr, dst: IpAddr, payload: &[u8]| {
        ip_frame(GATEWAY_MAC, a.mac, (src, dst), protocol, 1, payload)
    };
    let (src6, dst6) = (a.v6, b.v6);
    let error4 = Icmpv4Repr {
        kind: icmp4::UNREACHABLE,
        code: 1,
        rest: [0; 4],
    }
    .emit(&[0; 28]);
    let kind = icmp6::UNREACHABLE;
    let error6 = Icmpv6Repr {
        src: src6,
        dst: dst6,
        kind,
        code: 0,
        rest: [0; 4],
    }
    .emit(&[0; 48]);
    let mut later = expired(protocol::UDP, a.v4.into(), b.v4.into(), &[0; 64]);
    later[14 + 6..14 + 8].copy_from_slice(&[0, 8]);
    let sum = {
        later[24..26].fill(0);
        flow::checksum::checksum(&later[14..34])
    };
    later[24..26].copy_from_slice(&sum.to_be_bytes());
    let fragment = [&[17, 0, 0, 8, 0, 0, 0, 1][..], &[0; 64]].concat();
    let later6 = expired(protocol::FRAGMENT, src6.into(), dst6.into(), &fragment);
    let cases = [
        expired(protocol::ICMP, a.v4.into(), b.v4.into(), &error4),
        expired(protocol::ICMPV6, src6.into(), dst6.into(), &error6),
        later,
        later6,
    ];
    for frame in cases {
        world
            .send(&a, frame)
            .only_dropped(0, DropReason::TtlExceeded);
    }
    let group = [
        (MacAddr::BROADCAST, "255.255.255.255"),
        (MacAddr([1, 0, 94, 0, 0, 5]), "224.0.0.5"),
    ];
    for (dst_mac, dst) in group {
        let long = ping_of(1451, dst_mac, &a, a.v4.into(), ip(dst));
        world.send(&a, long).only_dropped(0, DropReason::TooBig);
    }
    let long6 = ping_of(
        1451,
        MacAddr([0x33, 0x33, 0, 0, 0, 5]),
        &a,
        src6.into(),
        ip("ff02::5"),
    );
    world.send(&a, long6).only_dropped(0, DropReason::TooBig);
    // On a plain Ethernet there is no gateway to speak.
    let (p, r) = (guests[P], guests[R]);
    let long = ping_of(1451, r.mac, &p, p.v4.into(), r.v4.into());
    world.send(&p, long).only_dropped(0, DropReason::TooBig);
}
