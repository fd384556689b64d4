//! DHCPv4 from the client's side, read with an own parser.

use crate::frames::*;
use crate::world::*;
use flow::wire::{UdpDatagram, protocol};
use flow::{DropReason, MacAddr};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use vrouter::Route;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ALL: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

/// A client's message.
fn message(guest: &Guest, kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![0; 240];
    out[..4].copy_from_slice(&[1, 1, 6, 0]);
    out[4..8].copy_from_slice(b"xid!");
    out[28..34].copy_from_slice(&guest.mac.0);
    out[236..].copy_from_slice(&[99, 130, 83, 99]);
    out.extend_from_slice(&[53, 1, kind]);
    options
        .iter()
        .for_each(|option| out.extend_from_slice(option));
    out.push(255);
    out
}

fn broadcast(guest: &Guest, message: &[u8]) -> Vec<u8> {
    udp(
        MacAddr::BROADCAST,
        guest.mac,
        (NOBODY, 68),
        (ALL, 67),
        message,
    )
}

/// A server's message.
#[derive(Debug)]
struct Reply {
    frame: Seen,
    flags: u16,
    ciaddr: Ipv4Addr,
    yiaddr: Ipv4Addr,
    options: BTreeMap<u8, Vec<u8>>,
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    <[u8; 4]>::try_from(bytes).unwrap().into()
}

fn read(guest: &Guest, frame: &[u8]) -> Reply {
    let seen = see(frame);
    assert_eq!((seen.protocol, seen.eth_src), (protocol::UDP, GATEWAY_MAC));
    let udp = UdpDatagram::new_checked(&seen.payload[..]).unwrap();
    assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
    let bytes = udp.payload();
    assert!(bytes.len() >= 300);
    assert_eq!((&bytes[..3], &bytes[4..8]), (&[2, 1, 6][..], &b"xid!"[..]));
    assert_eq!(
        (&bytes[24..28], &bytes[28..34]),
        (&[0; 4][..], &guest.mac.0[..])
    );
    assert_eq!(bytes[236..240], [99, 130, 83, 99]);
    let mut options = BTreeMap::<u8, Vec<u8>>::new();
    let mut rest = &bytes[240..];
    while rest[0] != 255 {
        let (value, after) = rest[2..].split_at(usize::from(rest[1]));
        options.entry(rest[0]).or_default().extend_from_slice(value);
        rest = after;
    }
    assert!(rest[1..].iter().all(|byte| *byte == 0));
    Reply {
        flags: u16::from_be_bytes([bytes[10], bytes[11]]),
        ciaddr: address(&bytes[12..16]),
        yiaddr: address(&bytes[16..20]),
        options,
        frame: seen,
    }
}

const WANTED: &[u8] = &[55, 5, 1, 3, 6, 26, 121];
const OURS: &[u8] = &[54, 4, 10, 0, 0, 1];
const RIGHT: &[u8] = &[50, 4, 10, 0, 0, 10];

#[test]
fn discover_and_request_lead_to_the_ports_address() {
    let (world, a) = (world(), guests()[A]);
    let client_id: &[u8] = &[61, 7, 1, 2, 0, 0, 0, 0, 10];
    let discover = broadcast(&a, &message(&a, DISCOVER, &[WANTED, client_id]));
    let offer = read(&a, &world.send(&a, discover).answer_to(&a));
    let request = broadcast(&a, &message(&a, REQUEST, &[OURS, RIGHT, WANTED, client_id]));
    let ack = read(&a, &world.send(&a, request).answer_to(&a));
    for (reply, kind) in [(offer, OFFER), (ack, ACK)] {
        assert_eq!(
            (reply.yiaddr, reply.ciaddr, reply.flags),
            (a.v4, v4("0.0.0.0"), 0)
        );
        assert_eq!(
            (reply.frame.src, reply.frame.dst),
            (ip("10.0.0.1"), a.v4.into())
        );
        assert_eq!(reply.frame.eth_dst, a.mac);
        let expected: BTreeMap<u8, Vec<u8>> = [
            (1, vec![255, 255, 255, 0]),
            (3, vec![10, 0, 0, 1]),
            (6, vec![9, 9, 9, 9]),
            (12, b"guest-0".to_vec()),
            (26, BLUE_MTU.to_be_bytes().to_vec()),
            (51, 86_400u32.to_be_bytes().to_vec()),
            (53, vec![kind]),
            (54, vec![10, 0, 0, 1]),
            (58, 43_200u32.to_be_bytes().to_vec()),
            (59, 75_600u32.to_be_bytes().to_vec()),
            (61, client_id[2..].to_vec()),
        ]
        .into();
        assert_eq!(reply.options, expected, "no option 121 without routes");
    }
}

#[test]
fn a_client_that_cannot_take_unicast_gets_broadcast() {
    let (world, a) = (world(), guests()[A]);
    let mut discover = message(&a, DISCOVER, &[]);
    discover[10] = 0x80;
    let offer = read(&a, &world.send(&a, broadcast(&a, &discover)).answer_to(&a));
    assert_eq!(
        (offer.frame.eth_dst, offer.frame.dst),
        (MacAddr::BROADCAST, ALL)
    );
    assert_eq!((offer.flags, offer.yiaddr), (0x8000, a.v4));
}

#[test]
fn a_wrong_address_is_refused_and_another_servers_offer_respected() {
    let (world, a) = (world(), guests()[A]);
    let wrong: &[u8] = &[50, 4, 10, 0, 0, 99];
    let mut renewing_wrong = message(&a, REQUEST, &[]);
    renewing_wrong[12..16].copy_from_slice(&[10, 0, 0, 99]);
    for refused in [
        message(&a, REQUEST, &[OURS, wrong]),
        message(&a, REQUEST, &[wrong]),
        renewing_wrong,
    ] {
        let nak = read(&a, &world.send(&a, broadcast(&a, &refused)).answer_to(&a));
        assert_eq!(
            (nak.frame.eth_dst, nak.frame.dst),
            (MacAddr::BROADCAST, ALL)
        );
        assert_eq!((nak.yiaddr, nak.ciaddr), (v4("0.0.0.0"), v4("0.0.0.0")));
        let expected = [(53, vec![NAK]), (54, vec![10, 0, 0, 1])].into();
        assert_eq!(nak.options, expected);
    }
    let after_reboot = broadcast(&a, &message(&a, REQUEST, &[RIGHT]));
    assert_eq!(
        read(&a, &world.send(&a, after_reboot).answer_to(&a)).options[&53],
        [ACK]
    );
    let other_server: &[u8] = &[54, 4, 10, 0, 0, 2];
    let silent = [
        message(&a, REQUEST, &[other_server, RIGHT]),
        message(&a, DECLINE, &[OURS, RIGHT]),
        message(&a, RELEASE, &[OURS]),
    ];
    for message in silent {
        world.send(&a, broadcast(&a, &message)).nothing();
    }
}

#[test]
fn renewal_is_unicast_and_rebinding_is_broadcast() {
    let (world, a) = (world(), guests()[A]);
    let mut renewing = message(&a, REQUEST, &[]);
    renewing[12..16].copy_from_slice(&a.v4.octets());
    for (dst_mac, dst) in [(GATEWAY_MAC, ip("10.0.0.1")), (MacAddr::BROADCAST, ALL)] {
        let frame = udp(dst_mac, a.mac, (a.v4.into(), 68), (dst, 67), &renewing);
        let ack = read(&a, &world.send(&a, frame).answer_to(&a));
        assert_eq!(
            (ack.yiaddr, ack.ciaddr, ack.options[&53][0]),
            (a.v4, a.v4, ACK)
        );
        assert_eq!((ack.frame.eth_dst, ack.frame.dst), (a.mac, a.v4.into()));
    }
}

#[test]
fn renewal_of_an_address_that_is_not_the_ports_any_more_is_refused() {
    let (world, a) = (world(), guests()[A]);
    let old = v4("10.0.0.99");
    let mut renewing = message(&a, REQUEST, &[]);
    renewing[12..16].copy_from_slice(&old.octets());
    for (dst_mac, dst) in [(GATEWAY_MAC, ip("10.0.0.1")), (MacAddr::BROADCAST, ALL)] {
        let frame = udp(dst_mac, a.mac, (old.into(), 68), (dst, 67), &renewing);
        let nak = read(&a, &world.send(&a, frame).answer_to(&a));
        assert_eq!((nak.options[&53][0], nak.frame.dst), (NAK, ALL));
    }
}

#[test]
fn inform_gets_configuration_without_a_lease() {
    let (world, a) = (world(), guests()[A]);
    let mut inform = message(&a, INFORM, &[WANTED]);
    inform[12..16].copy_from_slice(&a.v4.octets());
    let frame = udp(
        MacAddr::BROADCAST,
        a.mac,
        (a.v4.into(), 68),
        (ALL, 67),
        &inform,
    );
    let ack = read(&a, &world.send(&a, frame).answer_to(&a));
    assert_eq!((ack.yiaddr, ack.ciaddr), (v4("0.0.0.0"), a.v4));
    assert_eq!(ack.options[&53], [ACK]);
    assert!(ack.options.contains_key(&6) && !ack.options.contains_key(&51));
}

#[test]
fn classless_routes_come_with_the_default_route_to_those_who_ask() {
    let plan = plan().change(|topology| {
        let route = |to: &str| Route {
            destination: to.parse().unwrap(),
            next_hop: ip("10.0.0.30"),
        };
        topology.networks[0].routes = vec![route("203.0.112.0/23"), route("172.16.0.0/12")];
    });
    let (world, guests) = (plan.build(), guests());
    let routes = |guest: &Guest, options: &[&[u8]]| {
        let discover = broadcast(guest, &message(guest, DISCOVER, options));
        let offer = world.send(guest, discover).answer_to(guest);
        read(guest, &offer).options.get(&121).cloned()
    };
    let all = |via: [u8; 4], gateway: [u8; 4]| {
        let parts: [&[u8]; 6] = [
            &[23, 203, 0, 112],
            &via,
            &[12, 172, 16],
            &via,
            &[0],
            &gateway,
        ];
        Some(parts.concat())
    };
    assert_eq!(
        routes(&guests[A], &[WANTED]),
        all([10, 0, 0, 30], [10, 0, 0, 1])
    );
    assert_eq!(routes(&guests[A], &[]), None, "not asked for");
    // In another subnet, the next hop is out of reach but by the gateway.
    assert_eq!(
        routes(&guests[B], &[WANTED]),
        all([10, 0, 1, 1], [10, 0, 1, 1])
    );
    // The next hop itself must not be told to send to itself.
    assert_eq!(routes(&guests[C], &[WANTED]), None);
}

#[test]
fn an_answer_never_outgrows_what_the_client_takes() {
    let plan = plan().change(|topology| {
        topology.networks[0].routes = (0..250u8)
            .map(|n| Route {
                destination: format!("203.0.{n}.0/24").parse().unwrap(),
                next_hop: ip("10.0.0.30"),
            })
            .collect();
    });
    let (world, a) = (plan.build(), guests()[A]);
    let long_id = [&[61, 255][..], &[7; 255]].concat();
    for size in [0u16, 576, 600, 1500, 65535] {
        let [high, low] = size.to_be_bytes();
        let options: [&[u8]; 3] = [&[57, 2, high, low], &long_id, WANTED];
        let discover = broadcast(&a, &message(&a, DISCOVER, &options));
        let answer = world.send(&a, discover).answer_to(&a);
        assert!(
            answer.len() - 14 <= usize::from(size.clamp(576, 1500)),
            "{size}"
        );
        assert_eq!(read(&a, &answer).options[&53], [OFFER]);
    }
}

#[test]
fn relays_other_clients_and_garbage_are_refused() {
    let (world, guests) = (world(), guests());
    let (a, c) = (guests[A], guests[C]);
    let good = message(&a, DISCOVER, &[]);
    let change = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let cases = [
        (change(24, 10), DropReason::UnsupportedProtocol),
        (change(3, 1), DropReason::UnsupportedProtocol),
        (message(&a, 13, &[]), DropReason::UnsupportedProtocol),
        (change(33, 99), DropReason::SpoofedMac),
        (message(&c, DISCOVER, &[]), DropReason::SpoofedMac),
        (change(0, 2), DropReason::Malformed),
        (change(2, 16), DropReason::Malformed),
        (change(236, 0), DropReason::Malformed),
        (good[..239].to_vec(), DropReason::Malformed),
        (good[..240].to_vec(), DropReason::Malformed),
        (
            message(&a, DISCOVER, &[&[50, 3, 1, 2, 3]]),
            DropReason::Malformed,
        ),
        (
            message(&a, DISCOVER, &[&[61, 200, 1]]),
            DropReason::Malformed,
        ),
        (vec![], DropReason::Malformed),
    ];
    for (message, reason) in cases {
        world
            .send(&a, broadcast(&a, &message))
            .only_dropped(0, reason);
    }
    let spoofed = udp(
        MacAddr::BROADCAST,
        a.mac,
        (c.v4.into(), 68),
        (ALL, 67),
        &good,
    );
    world
        .send(&a, spoofed)
        .only_dropped(0, DropReason::SpoofedIp);
    let truncated = broadcast(&a, &good);
    let parsed = flow::parse(&truncated, a.port).unwrap();
    let verdict = world.hosts[0].first_packet(&parsed, &truncated[..100]);
    assert_eq!(verdict, vrouter::Verdict::Drop(DropReason::Malformed));
}

#[test]
fn a_port_without_an_ipv4_address_gets_no_lease() {
    let plan = plan().change(|t| {
        t.ports
            .iter_mut()
            .for_each(|p| p.addresses.retain(IpAddr::is_ipv6))
    });
    let (world, a) = (plan.build(), guests()[A]);
    let discover = broadcast(&a, &message(&a, DISCOVER, &[]));
    world
        .send(&a, discover)
        .only_dropped(0, DropReason::UnknownDestination);
}
