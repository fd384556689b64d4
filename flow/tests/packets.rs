//! What must hold for every packet: the parser finds what was built, and never panics.

use flow::checksum::checksum;
use flow::parse::{HEADER_LIMIT, MAX_EXTENSIONS, PADDED_MAX, vxlan_inner};
use flow::reference::{Outcome, Packet, execute};
use flow::testing::{self, PacketSpec};
use flow::wire::{EthernetRepr, Ipv6Repr, UdpRepr, ethertype, protocol};
use flow::{
    Action, DropReason, Fragment, KeyAddr, MacAddr, Parsed, PortId, TunnelKey, Vxlan, parse,
    parse_headers, parse_tunnel,
};
use proptest::prelude::*;
use std::net::Ipv6Addr;

const PORT: PortId = PortId(7);

fn assert_offsets(parsed: &Parsed, length: usize) {
    let ordered = [
        parsed.eth + 14,
        parsed.l3,
        parsed.l4,
        parsed.payload,
        parsed.ip_end(),
        parsed.end,
        length,
    ];
    assert!(ordered.is_sorted(), "{parsed:?} in {length} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_parser_finds_what_was_built(spec in PacketSpec::any()) {
        let bytes = spec.build();
        let parsed = parse(&bytes, PORT).unwrap();
        prop_assert_eq!(parsed.key, spec.key(PORT));
        prop_assert_eq!(parsed.end, bytes.len());
        assert_offsets(&parsed, bytes.len());
        if parsed.is_ipv4() || parsed.is_ipv6() {
            prop_assert_eq!(parsed.ip_end(), bytes.len() - spec.padding);
        }
    }

    #[test]
    fn the_first_bytes_are_enough(spec in PacketSpec::any()) {
        let bytes = spec.build();
        let headers = &bytes[..bytes.len().min(HEADER_LIMIT)];
        prop_assert_eq!(parse_headers(headers, bytes.len(), PORT), parse(&bytes, PORT));
    }

    #[test]
    fn a_tunnel_packet_has_the_key_of_its_inner_frame(
        spec in PacketSpec::any(), outer in testing::vxlan(), padding in 0usize..40,
    ) {
        let frame = spec.build();
        let list = [Action::EncapVxlan(outer), Action::Output(PORT)];
        let run = execute(&list, Packet::complete(frame.clone()));
        let mut wire = run.outputs[0].1.bytes.clone();
        prop_assert_eq!(wire.len(), frame.len() + outer.overhead());
        // Seen by a guest's port, the same bytes are plain UDP.
        prop_assert!(parse(&wire, PORT).unwrap().key.tunnel.is_none());
        wire.resize(wire.len() + padding, 0);

        let parsed = parse_tunnel(&wire, PortId::UPLINK).unwrap();
        let (src, dst) = (KeyAddr::from(outer.src), KeyAddr::from(outer.dst));
        prop_assert_eq!(parsed.key.tunnel, TunnelKey { vni: outer.vni, src, dst });
        let inner = flow::FlowKey { tunnel: TunnelKey::NONE, ..parsed.key };
        prop_assert_eq!(inner, spec.key(PortId::UPLINK));
        prop_assert_eq!(parsed.eth, outer.overhead());
        prop_assert_eq!(parsed.end, wire.len() - padding);
        assert_offsets(&parsed, wire.len());
    }

    #[test]
    fn hostile_bytes_never_panic_and_offsets_stay_inside(bytes in testing::hostile_packet()) {
        for parsed in [parse(&bytes, PORT), parse_tunnel(&bytes, PORT)].into_iter().flatten() {
            assert_offsets(&parsed, bytes.len());
        }
        let headers = &bytes[..bytes.len().min(HEADER_LIMIT)];
        prop_assert_eq!(parse_headers(headers, bytes.len(), PORT), parse(&bytes, PORT));
        if let Ok(Some(inner)) = vxlan_inner(&bytes) {
            prop_assert!(inner.start + 14 <= inner.end && inner.end <= bytes.len());
        }
    }

    #[test]
    fn every_truncation_is_refused_or_inside(spec in PacketSpec::any()) {
        let bytes = PacketSpec { padding: 0, ..spec }.build();
        for length in 0..bytes.len().min(400) {
            if let Ok(parsed) = parse(&bytes[..length], PORT) {
                // Only what has no length of its own parses when cut.
                prop_assert!(!parsed.is_ipv4() && !parsed.is_ipv6());
                assert_offsets(&parsed, length);
            }
        }
    }

    #[test]
    fn a_frame_in_and_out_of_a_tunnel_is_the_same(
        input in testing::hostile_packet(), outer in testing::vxlan(),
    ) {
        let list = [Action::EncapVxlan(outer), Action::DecapVxlan, Action::Output(PORT)];
        let run = execute(&list, Packet::complete(input.clone()));
        if input.len() < 14 {
            prop_assert_eq!(run.outcome, Outcome::Dropped(DropReason::BadAction));
        } else {
            prop_assert_eq!(run.outputs, vec![(PORT, Packet::complete(input))]);
        }
    }
}

fn ipv6_chain(next: u8, chain: &[u8]) -> Vec<u8> {
    let ip = |n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n);
    let (src, dst) = (ip(1), ip(2));
    let udp = UdpRepr {
        src: src.into(),
        dst: dst.into(),
        src_port: 1,
        dst_port: 2,
    };
    let body = [chain, &udp.emit(b"x")].concat();
    let eth = EthernetRepr {
        dst: MacAddr([2, 0, 0, 0, 0, 2]),
        src: MacAddr([2, 0, 0, 0, 0, 1]),
        vlan: None,
        ethertype: ethertype::IPV6,
    };
    eth.emit(&Ipv6Repr::new(src, dst, next).emit(&body))
}

fn destination_options(count: usize) -> Vec<u8> {
    let mut chain = [protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(count);
    let last = chain.len() - 8;
    chain[last] = protocol::UDP;
    chain
}

#[test]
fn padding_is_tolerated_as_far_as_ethernet_pads_and_hides_no_long_frame() {
    let ip = Ipv6Repr::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 59).emit(&[]);
    let eth = |kind| EthernetRepr {
        dst: MacAddr([2, 0, 0, 0, 0, 2]),
        src: MacAddr([2, 0, 0, 0, 0, 1]),
        vlan: None,
        ethertype: kind,
    };
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0; 20]].concat();
    for (kind, packet) in [(ethertype::IPV6, &ip), (ethertype::ARP, &arp)] {
        for (length, expected) in [
            (packet.len(), Ok(packet.len())),
            (46, Ok(packet.len())),
            (PADDED_MAX, Ok(packet.len())),
            (PADDED_MAX + 1, Err(DropReason::Malformed)),
            (9000, Err(DropReason::Malformed)),
        ] {
            let mut padded = packet.clone();
            padded.resize(length, 0);
            let frame = eth(kind).emit(&padded);
            let found = parse(&frame, PORT).map(|parsed| parsed.ip_len);
            assert_eq!(found, expected, "{kind:#06x} padded to {length}");
            let outer = Vxlan {
                eth_src: MacAddr([2, 0, 0, 0, 0, 3]),
                eth_dst: MacAddr([2, 0, 0, 0, 0, 4]),
                src: [192, 0, 2, 1].into(),
                dst: [192, 0, 2, 2].into(),
                src_port: 50000,
                vni: 1,
                ttl: 64,
            };
            let list = [Action::EncapVxlan(outer), Action::Output(PORT)];
            let run = execute(&list, Packet::complete(frame));
            let found = parse_tunnel(&run.outputs[0].1.bytes, PortId::UPLINK);
            assert_eq!(found.map(|parsed| parsed.ip_len), expected, "in a tunnel");
        }
    }
    // What is longer than that has no padding, whatever its length.
    let long = Ipv6Repr::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 59).emit(&[0; 8960]);
    assert!(parse(&eth(ethertype::IPV6).emit(&long), PORT).is_ok());
}

#[test]
fn a_chain_of_extension_headers_is_followed_to_its_bound() {
    let longest = ipv6_chain(
        protocol::DESTINATION_OPTIONS,
        &destination_options(MAX_EXTENSIONS),
    );
    assert_eq!(parse(&longest, PORT).unwrap().key.dst_port, 2);
    let longer = ipv6_chain(
        protocol::DESTINATION_OPTIONS,
        &destination_options(MAX_EXTENSIONS + 1),
    );
    assert_eq!(parse(&longer, PORT), Err(DropReason::Malformed));
}

#[test]
fn a_routing_header_with_segments_left_is_not_carried() {
    let chain = [protocol::UDP, 0, 0, 1, 0, 0, 0, 0];
    let packet = ipv6_chain(protocol::ROUTING, &chain);
    assert_eq!(parse(&packet, PORT), Err(DropReason::UnsupportedProtocol));
}

#[test]
fn an_ipv4_source_route_is_not_carried_and_other_options_are() {
    let with_options = |options: [u8; 8]| {
        let mut ip = vec![
            0x47, 0, 0, 28, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        ip.extend_from_slice(&options);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let eth = EthernetRepr {
            dst: MacAddr([2, 0, 0, 0, 0, 2]),
            src: MacAddr([2, 0, 0, 0, 0, 1]),
            vlan: None,
            ethertype: ethertype::IPV4,
        };
        parse(&eth.emit(&ip), PORT).map(|parsed| parsed.l4)
    };
    let whole = Ok(14 + 28);
    let (route, malformed) = (DropReason::UnsupportedProtocol, DropReason::Malformed);
    for (options, expected) in [
        ([148, 4, 0, 0, 0, 0, 0, 0], whole),
        ([7, 7, 4, 0, 0, 0, 0, 1], whole),
        ([0, 131, 7, 4, 10, 0, 0, 3], whole),
        ([131, 7, 4, 10, 0, 0, 3, 0], Err(route)),
        ([1, 137, 7, 4, 10, 0, 0, 3], Err(route)),
        ([148, 4, 0, 0, 131, 3, 4, 0], Err(route)),
        ([7, 0, 0, 0, 0, 0, 0, 0], Err(malformed)),
        ([7, 1, 0, 0, 0, 0, 0, 0], Err(malformed)),
        ([7, 9, 0, 0, 0, 0, 0, 0], Err(malformed)),
        ([1, 1, 1, 1, 1, 1, 1, 7], Err(malformed)),
    ] {
        assert_eq!(with_options(options), expected, "{options:?}");
    }
}

#[test]
fn hop_by_hop_options_come_first_or_not_at_all() {
    let options = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
    assert!(parse(&ipv6_chain(protocol::HOP_BY_HOP, &options), PORT).is_ok());
    let second = [&[protocol::HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0][..], &options].concat();
    let packet = ipv6_chain(protocol::DESTINATION_OPTIONS, &second);
    assert_eq!(parse(&packet, PORT), Err(DropReason::Malformed));
}

#[test]
fn two_fragment_headers_are_malformed_and_an_atomic_fragment_is_whole() {
    let atomic = [protocol::UDP, 0, 0, 0, 1, 2, 3, 4];
    let parsed = parse(&ipv6_chain(protocol::FRAGMENT, &atomic), PORT).unwrap();
    assert_eq!(
        (parsed.key.fragment, parsed.key.src_port),
        (Fragment::No, 1)
    );
    let twice = [&[protocol::FRAGMENT, 0, 0, 0, 1, 2, 3, 4][..], &atomic].concat();
    assert_eq!(
        parse(&ipv6_chain(protocol::FRAGMENT, &twice), PORT),
        Err(DropReason::Malformed)
    );
}

#[test]
fn a_first_fragment_without_the_transport_header_is_malformed() {
    let first = [protocol::UDP, 0, 0, 1, 1, 2, 3, 4];
    let mut packet = ipv6_chain(protocol::FRAGMENT, &first);
    assert_eq!(parse(&packet, PORT).unwrap().key.fragment, Fragment::First);
    packet.truncate(14 + 40 + 8 + 4);
    packet[18..20].copy_from_slice(&12u16.to_be_bytes());
    assert_eq!(parse(&packet, PORT), Err(DropReason::Malformed));
}

#[test]
fn a_fragment_that_ends_beyond_64_kib_is_malformed() {
    let last = [protocol::UDP, 0, 0xff, 0xf8, 1, 2, 3, 4];
    assert_eq!(
        parse(&ipv6_chain(protocol::FRAGMENT, &last), PORT),
        Err(DropReason::Malformed)
    );
}

#[test]
fn a_mapped_address_on_the_wire_is_not_taken_for_ipv4() {
    let mut packet = ipv6_chain(protocol::UDP, &[]);
    packet[22..38].copy_from_slice(&"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(parse(&packet, PORT), Err(DropReason::NotForwardable));
}
