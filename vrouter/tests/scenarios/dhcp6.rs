//! DHCPv6 from the client's side, read with an own parser.

use crate::frames::*;
use crate::world::*;
use flow::DropReason;
use flow::wire::{UdpDatagram, nd::multicast_mac, protocol};
use std::net::Ipv6Addr;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [
        &code.to_be_bytes()[..],
        &(value.len() as u16).to_be_bytes(),
        value,
    ]
    .concat()
}

fn client_id() -> Vec<u8> {
    option(1, &[0, 4, 1, 2, 3, 4, 5, 6, 7, 8])
}

fn server_id() -> Vec<u8> {
    option(2, &[&[0, 3, 0, 1][..], &GATEWAY_MAC.0].concat())
}

fn ia_na(addresses: &[Ipv6Addr]) -> Vec<u8> {
    let mut value = b"iaid\0\0\0\0\0\0\0\0".to_vec();
    for ip in addresses {
        value.extend(option(5, &[&ip.octets()[..], &[0; 8]].concat()));
    }
    option(3, &value)
}

fn ask(guest: &Guest, kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let message = [&[kind, 7, 8, 9][..], &options.concat()].concat();
    let all = v6("ff02::1:2");
    let (src, dst) = ((guest.link_local().into(), 546), (all.into(), 547));
    udp(multicast_mac(all), guest.mac, src, dst, &message)
}

fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = vec![];
    while !bytes.is_empty() {
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        all.push((
            u16::from_be_bytes([bytes[0], bytes[1]]),
            bytes[4..4 + length].to_vec(),
        ));
        bytes = &bytes[4 + length..];
    }
    all
}

/// The answer's kind and options.
fn read(guest: &Guest, frame: &[u8]) -> (u8, Vec<(u16, Vec<u8>)>) {
    let seen = see(frame);
    let gateway = Guest {
        mac: GATEWAY_MAC,
        ..*guest
    };
    assert_eq!(
        (seen.protocol, seen.eth_src, seen.eth_dst),
        (protocol::UDP, GATEWAY_MAC, guest.mac)
    );
    assert_eq!(seen.src, std::net::IpAddr::V6(gateway.link_local()));
    assert_eq!(seen.dst, std::net::IpAddr::V6(guest.link_local()));
    let udp = UdpDatagram::new_checked(&seen.payload[..]).unwrap();
    assert_eq!((udp.src_port(), udp.dst_port()), (547, 546));
    assert_eq!(udp.payload()[1..4], [7, 8, 9]);
    (udp.payload()[0], options(&udp.payload()[4..]))
}

fn value(all: &[(u16, Vec<u8>)], code: u16) -> Option<&[u8]> {
    all.iter()
        .find(|(c, _)| *c == code)
        .map(|(_, value)| &value[..])
}

/// The addresses of the answer's first association, with preferred and valid lifetimes.
fn addresses(all: &[(u16, Vec<u8>)]) -> Vec<(Ipv6Addr, u32, u32)> {
    let ia = value(all, 3).unwrap();
    assert_eq!(&ia[..4], b"iaid");
    let inner = options(&ia[12..]);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    inner
        .iter()
        .filter(|(code, _)| *code == 5)
        .map(|(_, v)| {
            let ip = <[u8; 16]>::try_from(&v[..16]).unwrap();
            (ip.into(), number(&v[16..20]), number(&v[20..24]))
        })
        .collect()
}

/// T1 and T2 of the answer's first association.
fn times(all: &[(u16, Vec<u8>)]) -> (u32, u32) {
    let ia = value(all, 3).unwrap();
    let number = |at: usize| u32::from_be_bytes(ia[at..at + 4].try_into().unwrap());
    (number(4), number(8))
}

fn status(value: &[u8]) -> u16 {
    u16::from_be_bytes([value[0], value[1]])
}

#[test]
fn solicit_request_renew_and_rebind_lead_to_the_ports_address() {
    let (world, a) = (world(), guests()[A]);
    let c = client_id;
    let rapid = option(14, &[]);
    let cases = [
        (ask(&a, SOLICIT, &[c(), ia_na(&[])]), ADVERTISE, false),
        (
            ask(&a, SOLICIT, &[c(), rapid, ia_na(&[v6("2001:db8::5")])]),
            REPLY,
            true,
        ),
        (
            ask(&a, REQUEST, &[c(), server_id(), ia_na(&[a.v6])]),
            REPLY,
            false,
        ),
        (
            ask(&a, RENEW, &[c(), server_id(), ia_na(&[a.v6])]),
            REPLY,
            false,
        ),
        (ask(&a, REBIND, &[c(), ia_na(&[a.v6])]), REPLY, false),
    ];
    for (frame, kind, rapid) in cases {
        let (answered, all) = read(&a, &world.send(&a, frame).answer_to(&a));
        assert_eq!(answered, kind);
        assert_eq!(value(&all, 1), Some(&client_id()[4..]));
        assert_eq!(value(&all, 2), Some(&server_id()[4..]));
        assert_eq!(value(&all, 14).is_some(), rapid);
        assert_eq!(value(&all, 23), Some(&v6("2620:fe::fe").octets()[..]));
        assert_eq!(addresses(&all), [(a.v6, 86_400, 86_400)]);
        // RFC 8415 section 21.4: renewing at half and rebinding at 0.8 of the preferred lifetime,
        // so that an address in use is never deprecated.
        assert_eq!(times(&all), (43_200, 69_120));
    }
}

#[test]
fn what_the_client_has_wrongly_is_taken_away_on_renewal() {
    let (world, a) = (world(), guests()[A]);
    let old = v6("fd00:b::99");
    let frame = ask(&a, RENEW, &[client_id(), server_id(), ia_na(&[old, a.v6])]);
    let (_, all) = read(&a, &world.send(&a, frame).answer_to(&a));
    assert_eq!(addresses(&all), [(a.v6, 86_400, 86_400), (old, 0, 0)]);
}

#[test]
fn confirm_tells_whether_the_client_is_still_on_its_link() {
    let (world, a) = (world(), guests()[A]);
    for (held, expected) in [(a.v6, 0), (v6("fd00:b::99"), 0), (v6("2001:db8::1"), 4)] {
        let frame = ask(&a, CONFIRM, &[client_id(), ia_na(&[held])]);
        let (kind, all) = read(&a, &world.send(&a, frame).answer_to(&a));
        assert_eq!((kind, status(value(&all, 13).unwrap())), (REPLY, expected));
    }
    world
        .send(&a, ask(&a, CONFIRM, &[client_id(), ia_na(&[])]))
        .nothing();
}

#[test]
fn release_decline_and_information_requests_are_answered() {
    let (world, a) = (world(), guests()[A]);
    for kind in [RELEASE, DECLINE] {
        let frame = ask(&a, kind, &[client_id(), server_id(), ia_na(&[a.v6])]);
        let (kind, all) = read(&a, &world.send(&a, frame).answer_to(&a));
        assert_eq!((kind, status(value(&all, 13).unwrap())), (REPLY, 0));
    }
    let frame = ask(&a, INFORMATION_REQUEST, &[option(6, &[0, 23])]);
    let (kind, all) = read(&a, &world.send(&a, frame).answer_to(&a));
    assert_eq!(kind, REPLY);
    assert_eq!(value(&all, 23), Some(&v6("2620:fe::fe").octets()[..]));
    assert_eq!(value(&all, 3), None);
}

#[test]
fn further_associations_and_prefixes_are_refused_with_a_status() {
    let (world, a) = (world(), guests()[A]);
    let pd = option(25, b"iapd\0\0\0\0\0\0\0\0");
    let second = option(3, b"more\0\0\0\0\0\0\0\0");
    let frame = ask(&a, SOLICIT, &[client_id(), pd, ia_na(&[]), second]);
    let (_, all) = read(&a, &world.send(&a, frame).answer_to(&a));
    assert_eq!(addresses(&all).len(), 1);
    let refusals: Vec<(u16, u16)> = all
        .iter()
        .filter(|(code, v)| matches!(code, 3 | 25) && &v[..4] != b"iaid")
        .map(|(code, v)| (*code, status(value(&options(&v[12..]), 13).unwrap())))
        .collect();
    assert_eq!(refusals, [(25, 6), (3, 2)]);
}

#[test]
fn messages_for_other_servers_and_garbage_are_not_answered() {
    let (world, a) = (world(), guests()[A]);
    let other = option(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let ignored = [
        ask(&a, REQUEST, &[client_id(), other, ia_na(&[])]),
        ask(&a, REQUEST, &[client_id(), ia_na(&[])]),
        ask(&a, SOLICIT, &[ia_na(&[])]),
        ask(&a, SOLICIT, &[client_id(), server_id(), ia_na(&[])]),
        ask(&a, INFORMATION_REQUEST, &[ia_na(&[])]),
    ];
    for frame in ignored {
        world.send(&a, frame).nothing();
    }
    let cases = [
        (ask(&a, 12, &[client_id()]), DropReason::UnsupportedProtocol),
        (ask(&a, 0, &[]), DropReason::UnsupportedProtocol),
        (ask(&a, SOLICIT, &[vec![0, 1, 0, 9]]), DropReason::Malformed),
        (ask(&a, SOLICIT, &[vec![0, 1, 0]]), DropReason::Malformed),
        (
            ask(&a, SOLICIT, &[option(3, b"short")]),
            DropReason::Malformed,
        ),
        (
            ask(&a, SOLICIT, &[option(1, &[0; 131])]),
            DropReason::Malformed,
        ),
    ];
    for (frame, reason) in cases {
        world.send(&a, frame).only_dropped(0, reason);
    }
}

#[test]
fn a_port_without_an_ipv6_address_is_told_there_is_none() {
    let plan = plan().change(|t| {
        t.ports
            .iter_mut()
            .for_each(|p| p.addresses.retain(|ip| ip.is_ipv4()))
    });
    let (world, a) = (plan.build(), guests()[A]);
    let frame = ask(&a, SOLICIT, &[client_id(), ia_na(&[])]);
    let (kind, all) = read(&a, &world.send(&a, frame).answer_to(&a));
    assert_eq!((kind, addresses(&all)), (ADVERTISE, vec![]));
    let inner = options(&value(&all, 3).unwrap()[12..]);
    assert_eq!(status(value(&inner, 13).unwrap()), 2);
}
