//! What must hold for the reference executor: each action does what its description says, and
//! checksums are right after it.

use flow::reference::{Execution, Outcome, Packet, execute, partial_csum_travels};
use flow::testing::{self, PacketSpec};
use flow::wire::{
    EthernetRepr, IcmpPacket, Ipv4Packet, Ipv4Repr, Ipv6Packet, TcpSegment, UdpDatagram, UdpRepr,
    VxlanPacket, ethertype, protocol,
};
use flow::{
    Action, DropReason, Fragment, MacAddr, Parsed, PartialCsum, PortId, Punt, Vxlan, parse,
};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};

const PORT: PortId = PortId(7);
const BAD_ACTION: Outcome = Outcome::Dropped(DropReason::BadAction);

/// The packet after these actions, if none of them stopped the list.
fn after(actions: &[Action], bytes: &[u8]) -> Result<Vec<u8>, Outcome> {
    let list = [actions, &[Action::Output(PORT)]].concat();
    let run = execute(&list, Packet::complete(bytes.to_vec()));
    match run.outcome {
        Outcome::Done => Ok(run.outputs[0].1.bytes.clone()),
        outcome => Err(outcome),
    }
}

fn addresses(parsed: &Parsed) -> (IpAddr, IpAddr) {
    (parsed.key.ip_src.to_ip(), parsed.key.ip_dst.to_ip())
}

/// All checksums of a whole packet, summed anew.
fn assert_checksums(bytes: &[u8]) {
    let parsed = parse(bytes, PORT).unwrap(); // Verifies the IPv4 header's.
    if parsed.key.fragment != Fragment::No || !(parsed.is_ipv4() || parsed.is_ipv6()) {
        return;
    }
    let (src, dst) = addresses(&parsed);
    let body = &bytes[parsed.l4..parsed.ip_end()];
    let right = match (parsed.key.protocol, src, dst) {
        (protocol::TCP, ..) => TcpSegment::new_checked(body).unwrap().checksum_ok(src, dst),
        (protocol::UDP, ..) => UdpDatagram::new_checked(body)
            .unwrap()
            .checksum_ok(src, dst),
        (protocol::ICMP, IpAddr::V4(_), _) => {
            IcmpPacket::new_checked(body).unwrap().checksum_ok_v4()
        }
        (protocol::ICMPV6, IpAddr::V6(src), IpAddr::V6(dst)) => IcmpPacket::new_checked(body)
            .unwrap()
            .checksum_ok_v6(src, dst),
        _ => true,
    };
    assert!(right, "wrong checksum in {parsed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_list_on_any_bytes_ends_without_a_panic(
        actions in testing::actions(), bytes in testing::hostile_packet(),
        start in 0usize..400, offset in 0usize..30, partial: bool,
    ) {
        let partial_csum = partial.then_some(PartialCsum { start, offset });
        let run = execute(&actions, Packet { bytes, partial_csum });
        let sends = actions.iter().filter(|a| matches!(a, Action::Output(_))).count();
        prop_assert!(run.outputs.len() <= sends);
        if run.outcome == Outcome::Done {
            prop_assert_eq!(run.outputs.len(), sends);
        }
    }

    #[test]
    fn checksums_are_right_after_any_list(actions in testing::actions(), spec in PacketSpec::any()) {
        let run = execute(&actions, Packet::complete(spec.build()));
        run.outputs.iter().for_each(|(_, packet)| assert_checksums(&packet.bytes));
    }

    #[test]
    fn addresses_and_ports_become_what_was_asked(
        spec in PacketSpec::any(), action in testing::action(),
    ) {
        let bytes = spec.build();
        let before = spec.key(PORT);
        let Ok(changed) = after(&[action], &bytes) else { return Ok(()) };
        let mut expected = before;
        match action {
            Action::SetEthSrc(mac) => expected.eth_src = mac,
            Action::SetEthDst(mac) => expected.eth_dst = mac,
            Action::SetIpSrc(ip) => expected.ip_src = ip.into(),
            Action::SetIpDst(ip) => expected.ip_dst = ip.into(),
            Action::SetPortSrc(port) => expected.src_port = port,
            Action::SetPortDst(port) => expected.dst_port = port,
            Action::PushVlan(tci) if before.vlan == 0 => expected.vlan = tci | 0x1000,
            Action::PopVlan if before.vlan != 0 => expected.vlan = 0,
            Action::DecTtl | Action::CheckMtu(_) | Action::Output(_) => {}
            _ => return Ok(()),
        }
        prop_assert_eq!(parse(&changed, PORT).unwrap().key, expected);
    }

    #[test]
    fn a_partial_checksum_means_the_same_as_a_full_one(
        actions in testing::actions(), spec in PacketSpec::any(),
    ) {
        let input = spec.build_partial();
        let mut full = input.clone();
        if let Some(partial) = full.partial_csum.take() {
            partial.fill(&mut full.bytes).unwrap();
            assert_checksums(&full.bytes);
        }
        let mut run = execute(&actions, input.clone());
        for (_, packet) in &mut run.outputs {
            prop_assert_eq!(
                packet.partial_csum.is_some(),
                input.partial_csum.is_some() && partial_csum_travels(&actions)
            );
            if let Some(partial) = packet.partial_csum.take() {
                partial.fill(&mut packet.bytes).unwrap();
            }
        }
        prop_assert_eq!(run, execute(&actions, full));
    }

    #[test]
    fn a_list_is_its_steps_one_by_one(actions in testing::actions(), bytes in testing::packet()) {
        let whole = execute(&actions, Packet::complete(bytes.clone()));
        let mut outputs = Vec::new();
        let mut outcome = if actions.is_empty() { BAD_ACTION } else { Outcome::Done };
        let mut packet = bytes;
        for action in actions {
            match action {
                Action::Output(port) => outputs.push((port, Packet::complete(packet.clone()))),
                Action::Drop(reason) => outcome = Outcome::Dropped(reason),
                step => match after(&[step], &packet) {
                    Ok(changed) => packet = changed,
                    Err(stopped) => outcome = stopped,
                },
            }
            if outcome != Outcome::Done {
                break;
            }
        }
        prop_assert_eq!(whole, Execution { outputs, outcome });
    }

    #[test]
    fn outer_headers_are_as_described(spec in PacketSpec::any(), outer in testing::vxlan()) {
        let frame = spec.build();
        let wire = after(&[Action::EncapVxlan(outer)], &frame).unwrap();
        let parsed = parse(&wire, PORT).unwrap();
        prop_assert_eq!((parsed.key.eth_src, parsed.key.eth_dst), (outer.eth_src, outer.eth_dst));
        prop_assert_eq!(addresses(&parsed), (outer.src, outer.dst));
        prop_assert_eq!(
            (parsed.key.src_port, parsed.key.dst_port), (outer.src_port, Vxlan::UDP_PORT)
        );
        let udp = UdpDatagram::new_checked(&wire[parsed.l4..]).unwrap();
        let vxlan = VxlanPacket::new_checked(udp.payload()).unwrap();
        prop_assert_eq!(vxlan.vni(), outer.vni);
        prop_assert_eq!(vxlan.payload(), &frame[..]);
        if parsed.is_ipv4() {
            let ip = Ipv4Packet::new_checked(&wire[parsed.l3..]).unwrap();
            prop_assert_eq!((ip.ttl(), ip.tos(), ip.id()), (outer.ttl, 0, 0));
            prop_assert!(ip.dont_fragment() && !ip.more_fragments());
            prop_assert_eq!(udp.checksum(), 0);
        } else {
            let ip = Ipv6Packet::new_checked(&wire[parsed.l3..]).unwrap();
            prop_assert_eq!((ip.hop_limit(), ip.traffic_class()), (outer.ttl, 0));
            prop_assert!(udp.checksum() != 0 && udp.checksum_ok(outer.src, outer.dst));
        }
    }
}

fn udp_packet(ttl: u8, payload: usize) -> Vec<u8> {
    let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let udp = UdpRepr {
        src: src.into(),
        dst: dst.into(),
        src_port: 1000,
        dst_port: 53,
    };
    let ip = Ipv4Repr {
        ttl,
        ..Ipv4Repr::new(src, dst, protocol::UDP)
    };
    let (dst, src) = (MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 1]));
    let eth = EthernetRepr {
        dst,
        src,
        vlan: None,
        ethertype: ethertype::IPV4,
    };
    eth.emit(&ip.emit(&udp.emit(&vec![9; payload])))
}

fn outer(src: &str, dst: &str) -> Vxlan {
    Vxlan {
        eth_src: MacAddr([2, 0, 0, 0, 1, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 1, 2]),
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        src_port: 50000,
        vni: 100,
        ttl: 64,
    }
}

#[test]
fn a_ttl_of_one_or_zero_is_punted_and_larger_ones_fall_by_one() {
    for ttl in [0, 1] {
        let stopped = after(&[Action::DecTtl], &udp_packet(ttl, 8));
        assert_eq!(
            stopped,
            Err(Outcome::Punted(Punt::TtlExceeded)),
            "ttl {ttl}"
        );
    }
    for ttl in [2, 3, 255] {
        let changed = after(&[Action::DecTtl], &udp_packet(ttl, 8)).unwrap();
        assert_eq!(changed, udp_packet(ttl - 1, 8), "ttl {ttl}");
    }
}

#[test]
fn the_mtu_counts_the_ip_packet_and_neither_ethernet_nor_padding() {
    let mut packet = udp_packet(64, 8); // 36 bytes of IP
    packet.resize(60, 0);
    assert!(after(&[Action::CheckMtu(36)], &packet).is_ok());
    let stopped = after(&[Action::CheckMtu(35)], &packet);
    assert_eq!(stopped, Err(Outcome::Punted(Punt::TooBig)));
}

#[test]
fn an_empty_list_is_a_bad_action_and_sent_copies_stay_sent() {
    let packet = Packet::complete(udp_packet(64, 8));
    assert_eq!(
        execute(&[], packet.clone()),
        Execution {
            outputs: vec![],
            outcome: BAD_ACTION
        }
    );
    let run = execute(
        &[Action::Output(PORT), Action::PopVlan, Action::Output(PORT)],
        packet.clone(),
    );
    assert_eq!(
        run,
        Execution {
            outputs: vec![(PORT, packet)],
            outcome: BAD_ACTION
        }
    );
}

#[test]
fn what_does_not_fit_is_a_bad_action() {
    let udp = udp_packet(64, 8);
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    let mut later = udp.clone();
    later[20..22].copy_from_slice(&185u16.to_be_bytes());
    later[24..26].copy_from_slice(&[0, 0]);
    let sum = flow::checksum::checksum(&later[14..34]);
    later[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(parse(&later, PORT).unwrap().key.fragment, Fragment::Later);
    let mut lldp = udp.clone();
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let over_24_bits = Vxlan {
        vni: 1 << 24,
        ..outer("192.0.2.1", "192.0.2.2")
    };
    let cases: &[(&str, Action, &[u8])] = &[
        ("the other family's source", Action::SetIpSrc(v6), &udp),
        ("the other family's destination", Action::SetIpDst(v6), &udp),
        ("a port in a later fragment", Action::SetPortSrc(1), &later),
        ("a port without IP", Action::SetPortDst(1), &lldp),
        ("a TTL without IP", Action::DecTtl, &lldp),
        ("no tag", Action::PopVlan, &udp),
        ("no tunnel", Action::DecapVxlan, &udp),
        (
            "two families",
            Action::EncapVxlan(outer("192.0.2.1", "2001:db8::2")),
            &udp,
        ),
        ("a VNI of 25 bits", Action::EncapVxlan(over_24_bits), &udp),
        (
            "no Ethernet header",
            Action::SetEthSrc(MacAddr::ZERO),
            &udp[..11],
        ),
        ("a cut Ethernet header", Action::PushVlan(1), &udp[..13]),
        ("a cut IP header", Action::CheckMtu(1500), &udp[..30]),
    ];
    for (what, action, packet) in cases {
        assert_eq!(after(&[*action], packet), Err(BAD_ACTION), "{what}");
    }
}

#[test]
fn the_longest_frame_that_fits_a_tunnel_goes_and_one_more_byte_does_not() {
    for (ends, longest) in [
        (("192.0.2.1", "192.0.2.2"), 65535 - 20 - 8 - 8),
        (("2001:db8::1", "2001:db8::2"), 65535 - 8 - 8),
    ] {
        let list = [
            Action::EncapVxlan(outer(ends.0, ends.1)),
            Action::DecapVxlan,
        ];
        let frame = vec![0x55; longest];
        assert_eq!(after(&list, &frame).as_deref(), Ok(&frame[..]), "{ends:?}");
        assert_eq!(
            after(&list, &[&frame[..], &[0]].concat()),
            Err(BAD_ACTION),
            "{ends:?}"
        );
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero_and_a_wrong_one_stays_wrong() {
    let list = [
        Action::SetIpDst("10.9.9.9".parse().unwrap()),
        Action::SetPortDst(5353),
    ];
    let mut none = udp_packet(64, 8);
    none[40..42].fill(0);
    assert_eq!(after(&list, &none).unwrap()[40..42], [0, 0]);
    let mut wrong = udp_packet(64, 8);
    wrong[40] ^= 1;
    let changed = after(&list, &wrong).unwrap();
    let udp = UdpDatagram::new_checked(&changed[34..]).unwrap();
    assert!(!udp.checksum_ok("10.0.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap()));
}

#[test]
fn a_partial_checksum_outside_the_packet_is_malformed_even_where_it_would_travel() {
    let bytes = udp_packet(64, 8);
    let partial_csum = Some(PartialCsum {
        start: bytes.len() - 1,
        offset: 0,
    });
    for actions in [&[Action::Output(PORT)][..], &[Action::PopVlan]] {
        let run = execute(
            actions,
            Packet {
                bytes: bytes.clone(),
                partial_csum,
            },
        );
        let outcome = Outcome::Dropped(DropReason::Malformed);
        assert_eq!(
            run,
            Execution {
                outputs: vec![],
                outcome
            }
        );
    }
}

#[test]
fn the_outer_frame_of_a_known_packet_is_byte_for_byte_this() {
    let wire = after(
        &[Action::EncapVxlan(outer("192.0.2.1", "192.0.2.2"))],
        &udp_packet(64, 0),
    )
    .unwrap();
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 8, 0,
        0x45, 0, 0, 78, 0, 0, 0x40, 0, 64, 17, 0xb6, 0x9b, 192, 0, 2, 1, 192, 0, 2, 2,
        0xc3, 0x50, 0x12, 0xb5, 0, 58, 0, 0,
        8, 0, 0, 0, 0, 0, 100, 0,
    ];
    assert_eq!(wire[..50], expected);
    assert_eq!(wire[50..], udp_packet(64, 0));
}
