//! Arbitrary frames through the virtual router with a fixed topology: no panic, the explanation is of
//! the same verdict, its lists run, nothing leaves its network, and answers are well-formed.
#![no_main]

mod mend;

use flow::reference::{Outcome, Packet, execute};
use flow::{Action, MacAddr, Parsed, PortId, Vxlan, parse, parse_tunnel};
use libfuzzer_sys::fuzz_target;
use mend::mend_ipv4;
use std::net::IpAddr;
use std::sync::LazyLock;
use vrouter::{Network, NetworkId, Peer, Port, Subnet, Topology, Underlay, VRouter, Verdict};

const BLUE_VNI: u32 = 100;
const RED_VNI: u32 = 200;

static ROUTER: LazyLock<VRouter> =
    LazyLock::new(|| VRouter::new(topology()).expect("the fixed topology is valid"));

fuzz_target!(|bytes: &[u8]| {
    let [choice, flags, frame @ ..] = bytes else {
        return;
    };
    let mut frame = frame.to_vec();
    let port = PortId(u32::from(choice % 5)); // The uplink, three ports, and one that is unknown.
    if flags & 4 != 0 {
        let inner = if port == PortId::UPLINK {
            tunnel(&mut frame)
        } else {
            0
        };
        shape(&mut frame, inner, flags >> 3);
    }
    if flags & 1 != 0 {
        be_honest(&mut frame, port);
        address(&mut frame, port, choice / 5);
    }
    if flags & 2 != 0 {
        mend_ipv4(&mut frame, 14);
        mend_ipv4(&mut frame, 64);
    }
    let parsed = if port == PortId::UPLINK {
        parse_tunnel
    } else {
        parse
    }(&frame, port);
    let Ok(parsed) = parsed else { return };
    let verdict = ROUTER.first_packet(&parsed, &frame);
    assert_eq!(ROUTER.explain(&parsed, &frame).verdict, verdict);
    check(&verdict, &parsed, &frame);
});

fn check(verdict: &Verdict, parsed: &Parsed, frame: &[u8]) {
    match verdict {
        Verdict::Flow { actions, key } => {
            assert_eq!(*key, parsed.key);
            run(actions, parsed, frame);
        }
        Verdict::Once { actions } => run(actions, parsed, frame),
        Verdict::Answer(answers) => {
            for answer in answers {
                assert_eq!(
                    answer.port, parsed.key.in_port,
                    "an answer goes to who asked"
                );
                parse(&answer.packet, answer.port).expect("an answer is well-formed");
            }
        }
        Verdict::Learned { .. } => assert_eq!(parsed.key.in_port, PortId::UPLINK),
        Verdict::Drop(_) => {}
    }
}

fn run(actions: &[Action], parsed: &Parsed, frame: &[u8]) {
    assert!(!actions.is_empty());
    let done = execute(actions, Packet::complete(frame.to_vec()));
    for (port, packet) in &done.outputs {
        assert_ne!(*port, parsed.key.in_port, "a packet never goes back");
        let vni = if *port == PortId::UPLINK {
            parse_tunnel(&packet.bytes, *port)
                .expect("encapsulated")
                .key
                .tunnel
                .vni
        } else {
            vni_of(*port)
        };
        assert_eq!(
            Some(vni),
            source_vni(parsed),
            "a packet stays in its network"
        );
    }
    if let Outcome::Punted(why) = done.outcome {
        let verdict = ROUTER.punt(why, parsed, frame);
        assert!(
            !matches!(verdict, Verdict::Flow { .. }),
            "a punt makes no flow"
        );
        check(&verdict, parsed, frame);
    }
}

fn source_vni(parsed: &Parsed) -> Option<u32> {
    match parsed.key.in_port {
        PortId::UPLINK => Some(parsed.key.tunnel.vni),
        port => Some(vni_of(port)),
    }
}

fn vni_of(port: PortId) -> u32 {
    if port == PortId(3) { RED_VNI } else { BLUE_VNI }
}

/// Makes the frame a VXLAN packet of the blue network and returns where its inner frame begins.
fn tunnel(frame: &mut [u8]) -> usize {
    shape(frame, 0, 0);
    let length = (frame.len().saturating_sub(34) as u16).to_be_bytes();
    set(frame, 22, &[64, 17]);
    set(frame, 36, &Vxlan::UDP_PORT.to_be_bytes());
    set(frame, 38, &length);
    set(frame, 42, &[8, 0, 0, 0, 0, 0, BLUE_VNI as u8, 0]);
    50
}

/// Gives the frame at this place the fixed parts and lengths that it needs to be parsed.
fn shape(frame: &mut [u8], at: usize, kind: u8) {
    let beyond = |header| frame.len().saturating_sub(at + header) as u16;
    let (ip, ipv6_payload) = (beyond(14).to_be_bytes(), beyond(54).to_be_bytes());
    let (udp_in_v4, udp_in_v6) = (beyond(34).to_be_bytes(), beyond(54).to_be_bytes());
    match kind % 4 {
        0 | 1 => {
            set(frame, at + 12, &[0x08, 0x00, 0x45]);
            set(frame, at + 16, &ip);
            set(frame, at + 20, &[0, 0]);
            if frame.get(at + 23) == Some(&17) {
                set(frame, at + 38, &udp_in_v4);
            }
        }
        2 => {
            set(frame, at + 12, &[0x86, 0xdd, 0x60]);
            set(frame, at + 18, &ipv6_payload);
            if frame.get(at + 20) == Some(&17) {
                set(frame, at + 58, &udp_in_v6);
            }
        }
        _ => set(frame, at + 12, &[0x08, 0x06, 0, 1, 8, 0, 6, 4]),
    }
}

/// Gives the frame the port's own addresses, or those of a peer, so that it gets past anti-spoofing.
fn be_honest(frame: &mut [u8], port: PortId) {
    let at = if port == PortId::UPLINK { 50 } else { 0 };
    if at == 50 {
        set(frame, 26, &[192, 0, 2, 2]); // The outer addresses
        set(frame, 30, &[192, 0, 2, 1]);
        set(frame, 0, &mac(0xee).0);
    }
    let number = if port == PortId::UPLINK {
        9
    } else {
        port.0 as u8
    };
    set(frame, at + 6, &mac(number).0);
    match frame.get(at + 12..at + 14) {
        Some([0x08, 0x00]) => set(frame, at + 26, &[10, 0, 0, number]),
        Some([0x08, 0x06]) => {
            set(frame, at + 22, &mac(number).0);
            set(frame, at + 28, &[10, 0, 0, number]);
        }
        Some([0x86, 0xdd]) => set(frame, at + 22, &v6(number)),
        _ => {}
    }
}

/// Sends the frame to somebody who is there: the gateway, a guest, a peer, all; or leaves it.
fn address(frame: &mut [u8], port: PortId, whom: u8) {
    let at = if port == PortId::UPLINK { 50 } else { 0 };
    let number = match whom % 8 {
        0 | 1 => 254,
        2 => 1,
        3 => 2,
        4 => 9,
        5 => return set(frame, at, &[0xff; 6]),
        // To a station of another subnet, through the gateway.
        6 => return set(frame, at, &mac(254).0),
        _ => return,
    };
    set(frame, at, &mac(number).0);
    match frame.get(at + 12..at + 14) {
        Some([0x08, 0x00]) => set(frame, at + 30, &[10, 0, 0, number]),
        Some([0x08, 0x06]) => set(frame, at + 38, &[10, 0, 0, number]),
        Some([0x86, 0xdd]) => set(frame, at + 38, &v6(number)),
        _ => {}
    }
}

fn set(frame: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = frame.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn v6(n: u8) -> [u8; 16] {
    [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
}

fn addresses(n: u8) -> Vec<IpAddr> {
    vec![IpAddr::from([10, 0, 0, n]), IpAddr::from(v6(n))]
}

fn topology() -> Topology {
    let network = |id, name: &str, vni| Network {
        id: NetworkId(id),
        name: name.into(),
        vni,
        mtu: 1450,
        gateway_mac: mac(0xfe),
        subnets: vec![
            subnet("10.0.0.0/24", [10, 0, 0, 254].into(), false),
            subnet("2001:db8::/64", v6(254).into(), true),
            subnet("10.0.1.0/24", [10, 0, 1, 254].into(), false),
        ],
        dns: vec![[10, 0, 0, 53].into()],
        routes: vec![],
    };
    let port = |id: u8, network| Port {
        id: PortId(u32::from(id)),
        name: format!("vm{id}"),
        network: NetworkId(network),
        mac: mac(id),
        addresses: addresses(id),
    };
    let peer = |network, vtep: [u8; 4]| Peer {
        network: NetworkId(network),
        mac: mac(9),
        addresses: addresses(9),
        vtep: vtep.into(),
    };
    Topology {
        epoch: 1,
        underlay: Some(Underlay {
            address: [192, 0, 2, 1].into(),
            prefix_len: 24,
            gateway: None,
            mac: mac(0xee),
            mtu: 1500,
            neighbours: vec![([192, 0, 2, 2].into(), mac(0xed))],
            answer_arp: true,
        }),
        networks: vec![network(1, "blue", BLUE_VNI), network(2, "red", RED_VNI)],
        ports: vec![port(1, 1), port(2, 1), port(3, 2)],
        peers: vec![peer(1, [192, 0, 2, 2]), peer(2, [192, 0, 2, 2])],
    }
}

fn subnet(prefix: &str, gateway: IpAddr, slaac: bool) -> Subnet {
    Subnet {
        prefix: prefix.parse().expect("a prefix"),
        gateway,
        slaac,
    }
}
