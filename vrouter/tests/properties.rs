//! What holds for every packet in every topology.

use flow::wire::*;
use flow::{Action, FlowKey, MacAddr, PortId, Punt, parse, parse_tunnel};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use vrouter::*;

/// Everything is drawn from small pools, so that networks overlap and packets hit what is there.
fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))
}

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, n / 32, n)
}

fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, u16::from(n / 32), 0, 0, 0, n.into())
}

const GATEWAY: u8 = 1;
const STATIONS: u8 = 8;

/// One station of a network: not there, here, or behind one of two other hosts.
type Stations = Vec<Option<u8>>;

fn network_strategy() -> impl Strategy<Value = (Stations, bool, bool, bool, u16)> {
    let place = proptest::option::of(0u8..3);
    let stations = proptest::collection::vec(place, usize::from(STATIONS));
    let (plain, slaac, route) = (prop::bool::weighted(0.2), any::<bool>(), any::<bool>());
    (
        stations,
        plain,
        slaac,
        route,
        prop_oneof![Just(1280u16), Just(1500), Just(9000)],
    )
}

/// The number of a station in the pools: half are in each of two subnets.
fn number(station: usize) -> u8 {
    if station < 4 {
        10 + station as u8
    } else {
        40 + station as u8
    }
}

fn topology_strategy() -> impl Strategy<Value = Topology> {
    let networks = proptest::collection::vec(network_strategy(), 1..4);
    (networks, any::<bool>(), any::<bool>()).prop_map(|(networks, resolved, underlay)| {
        let mut topology = Topology {
            epoch: 1,
            ..Topology::default()
        };
        let neighbours = if resolved {
            vec![(vtep(11), mac(211))]
        } else {
            vec![]
        };
        topology.underlay = underlay.then(|| Underlay {
            address: vtep(10),
            prefix_len: 24,
            gateway: None,
            mac: mac(210),
            mtu: 1500,
            neighbours: [neighbours, vec![(vtep(12), mac(212))]].concat(),
            answer_arp: true,
        });
        for (index, (stations, plain, slaac, route, mtu)) in networks.into_iter().enumerate() {
            add_network(&mut topology, index, stations, (plain, slaac, route), mtu);
        }
        topology
    })
}

fn add_network(
    topology: &mut Topology,
    index: usize,
    stations: Stations,
    (plain, slaac, route): (bool, bool, bool),
    mtu: u16,
) {
    let id = NetworkId(index as u32);
    let half = |third: u8, slaac| {
        [
            (IpAddr::V4(v4(third * 32 + 1)), 24, false),
            (IpAddr::V6(v6(third * 32 + 1)), 64, slaac),
        ]
        .map(|(gateway, length, slaac)| Subnet {
            prefix: ipnet::IpNet::new(gateway, length).unwrap().trunc(),
            gateway,
            slaac,
        })
    };
    let subnets = if plain {
        vec![]
    } else {
        [half(0, slaac), half(1, false)].concat()
    };
    let destination = "203.0.113.0/24".parse().unwrap();
    let next_hop = v4(number(0)).into();
    topology.networks.push(Network {
        id,
        name: format!("network-{index}"),
        vni: 100 + index as u32,
        mtu,
        gateway_mac: mac(GATEWAY),
        subnets,
        dns: vec!["9.9.9.9".parse().unwrap()],
        routes: if route && !plain {
            vec![Route {
                destination,
                next_hop,
            }]
        } else {
            vec![]
        },
    });
    for (station, place) in stations.into_iter().enumerate() {
        let number = number(station);
        let addresses = if plain {
            vec![]
        } else {
            vec![v4(number).into(), v6(number).into()]
        };
        match place {
            None => {}
            Some(0) => topology.ports.push(Port {
                id: PortId(1 + index as u32 * 100 + station as u32),
                name: format!("port-{station}"),
                network: id,
                mac: mac(number),
                addresses,
            }),
            Some(host) => topology.peers.push(Peer {
                network: id,
                mac: mac(number),
                addresses,
                vtep: vtep(10 + host),
            }),
        }
    }
}

fn mac_strategy() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        6 => (0usize..8).prop_map(|station| mac(number(station))),
        3 => Just(mac(GATEWAY)),
        2 => Just(MacAddr::BROADCAST),
        1 => Just(MacAddr([0x33, 0x33, 0, 0, 0, 1])),
        1 => any::<[u8; 6]>().prop_map(MacAddr),
    ]
}

fn number_strategy() -> impl Strategy<Value = u8> {
    prop_oneof![4 => (0usize..8).prop_map(number), 1 => Just(1u8), 1 => Just(33u8), 1 => any::<u8>()]
}

fn v4_strategy() -> impl Strategy<Value = Ipv4Addr> {
    let special = [
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "203.0.113.5",
        "127.0.0.1",
    ];
    prop_oneof![
        5 => number_strategy().prop_map(v4),
        1 => prop::sample::select(special.to_vec()).prop_map(|text| text.parse().unwrap()),
    ]
}

fn v6_strategy() -> impl Strategy<Value = Ipv6Addr> {
    let special = [
        "::",
        "ff02::1",
        "ff02::2",
        "ff02::1:2",
        "fe80::ff:fe00:a",
        "fe80::5",
        "::1",
    ];
    prop_oneof![
        5 => number_strategy().prop_map(v6),
        2 => prop::sample::select(special.to_vec()).prop_map(|text| text.parse().unwrap()),
    ]
}

/// The bytes after the IP header: something that the router's services look at, or anything.
fn transport_strategy() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let any_bytes = || proptest::collection::vec(any::<u8>(), 0..400);
    let port = || prop::sample::select(&[53u16, 67, 68, 546, 547, 4789, 40000][..]);
    let udp = (port(), port(), any_bytes()).prop_map(|(src, dst, bytes)| {
        let length = 8 + bytes.len() as u16;
        let fields = [src, dst, length, 0].map(u16::to_be_bytes).concat();
        (protocol::UDP, [fields, bytes].concat())
    });
    let kinds = [0u8, 1, 3, 8, 11, 128, 129, 133, 134, 135, 136, 137, 143];
    let icmp = (
        prop::sample::select(kinds.to_vec()),
        any_bytes(),
        any::<bool>(),
    )
        .prop_map(|(kind, bytes, v6)| {
            let protocol = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            (protocol, [vec![kind, 0, 0, 0, 0, 0, 0, 0], bytes].concat())
        });
    prop_oneof![udp, icmp, (any::<u8>(), any_bytes())]
}

/// A DHCP message of a client, before its options.
fn dhcp_strategy() -> impl Strategy<Value = Vec<u8>> {
    let options = proptest::collection::vec(any::<u8>(), 0..300);
    (number_strategy(), 0u8..10, options).prop_map(|(number, kind, options)| {
        let mut out = vec![0; 240];
        out[..3].copy_from_slice(&[1, 1, 6]);
        out[28..34].copy_from_slice(&mac(number).0);
        out[236..].copy_from_slice(&[99, 130, 83, 99]);
        [out, vec![53, 1, kind], options].concat()
    })
}

fn frame_strategy() -> impl Strategy<Value = Vec<u8>> {
    let macs = || (mac_strategy(), mac_strategy());
    let eth = |(dst, src), ethertype, payload: &[u8]| {
        EthernetRepr {
            dst,
            src,
            vlan: None,
            ethertype,
        }
        .emit(payload)
    };
    let ipv4 = (
        macs(),
        v4_strategy(),
        v4_strategy(),
        transport_strategy(),
        0u8..4,
    )
        .prop_map(move |(macs, src, dst, (protocol, payload), ttl)| {
            let ip = Ipv4Repr {
                ttl,
                ..Ipv4Repr::new(src, dst, protocol)
            }
            .emit(&payload);
            eth(macs, ethertype::IPV4, &ip)
        });
    let ipv6 = (
        macs(),
        v6_strategy(),
        v6_strategy(),
        transport_strategy(),
        any::<bool>(),
    )
        .prop_map(move |(macs, src, dst, (next, mut payload), fill)| {
            if next == protocol::ICMPV6 && fill {
                payload[2..4].fill(0);
                let sum = flow::checksum::pseudo_header(src.into(), dst.into(), 58, payload.len());
                let sum = sum.bytes(&payload).finish().to_be_bytes();
                payload[2..4].copy_from_slice(&sum);
            }
            let ip = Ipv6Repr {
                hop_limit: 255,
                ..Ipv6Repr::new(src, dst, next)
            }
            .emit(&payload);
            eth(macs, ethertype::IPV6, &ip)
        });
    let arp = (macs(), 0u16..4, v4_strategy(), v4_strategy()).prop_map(
        move |(macs, operation, sender_ip, target_ip)| {
            let (sender_mac, target_mac) = (macs.1, MacAddr::ZERO);
            let arp = ArpRepr {
                operation,
                sender_mac,
                sender_ip,
                target_mac,
                target_ip,
            };
            eth(macs, ethertype::ARP, &arp.emit())
        },
    );
    let dhcp = (macs(), dhcp_strategy()).prop_map(move |((_, src_mac), message)| {
        let (src, dst) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        let udp = UdpRepr {
            src: src.into(),
            dst: dst.into(),
            src_port: 68,
            dst_port: 67,
        };
        let ip = Ipv4Repr::new(src, dst, protocol::UDP).emit(&udp.emit(&message));
        eth((MacAddr::BROADCAST, src_mac), ethertype::IPV4, &ip)
    });
    let anything = (
        macs(),
        any::<u16>(),
        proptest::collection::vec(any::<u8>(), 0..100),
    )
        .prop_map(move |(macs, ethertype, payload)| eth(macs, ethertype, &payload));
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![4 => ipv4, 4 => ipv6, 2 => arp, 1 => dhcp, 1 => anything, 1 => noise]
}

/// A frame of which a few bytes may have been damaged.
fn damaged_strategy() -> impl Strategy<Value = Vec<u8>> {
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (frame_strategy(), any::<bool>(), damage).prop_map(|(mut frame, harmed, damage)| {
        for (at, value) in damage {
            if harmed && !frame.is_empty() {
                let at = at.index(frame.len());
                frame[at] = value;
            }
        }
        frame
    })
}

/// Networks of local ports.
fn networks(topology: &Topology) -> HashMap<PortId, NetworkId> {
    topology
        .ports
        .iter()
        .map(|port| (port.id, port.network))
        .collect()
}

/// Asserts that a list stays in one network: its ports, or the tunnel with its VNI.
fn check_actions(topology: &Topology, from: PortId, network: NetworkId, actions: &[Action]) {
    let ports = networks(topology);
    let vni = topology
        .networks
        .iter()
        .find(|n| n.id == network)
        .unwrap()
        .vni;
    let mut tunnel = None;
    let mut seen = vec![];
    assert!(!actions.is_empty());
    for action in actions {
        match action {
            Action::EncapVxlan(vxlan) => {
                assert_eq!(vxlan.vni, vni, "into another network's tunnel");
                assert_ne!(from, PortId::UPLINK, "from tunnel to tunnel");
                assert!(tunnel.replace(vxlan.dst).is_none(), "a tunnel in a tunnel");
            }
            Action::DecapVxlan => tunnel = None,
            Action::Output(PortId::UPLINK) => {
                assert!(
                    !seen.contains(&(PortId::UPLINK, tunnel)),
                    "a host gets it twice"
                );
                seen.push((PortId::UPLINK, tunnel));
                assert!(tunnel.is_some(), "bare onto the underlay");
            }
            Action::Output(port) => {
                assert_ne!(*port, from, "back to its sender");
                assert_eq!(ports[port], network, "out of another network's port");
                assert_eq!(tunnel, None, "a guest gets a tunnel packet");
                assert!(!seen.contains(&(*port, None)), "a port gets it twice");
                seen.push((*port, None));
            }
            _ => {}
        }
    }
}

fn check(router: &VRouter, from: PortId, network: NetworkId, verdict: &Verdict, key: &FlowKey) {
    match verdict {
        Verdict::Flow {
            key: installed,
            actions,
        } => {
            assert_eq!(installed, key);
            check_actions(router.topology(), from, network, actions);
        }
        Verdict::Once { actions } => check_actions(router.topology(), from, network, actions),
        Verdict::Answer(answers) => {
            for answer in answers {
                assert_eq!(answer.port, from, "an answer goes to who asked");
                let parsed = parse(&answer.packet, from).expect("the router speaks properly");
                assert_eq!(parsed.end, answer.packet.len());
            }
        }
        Verdict::Learned { .. } => panic!("a guest taught the underlay"),
        Verdict::Drop(_) => {}
    }
}

/// The same cases on every run; another seed is another hunt.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(0x5eed_0ffe_4407),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_guests_packet_stays_in_its_network(
        topology in topology_strategy(),
        frames in proptest::collection::vec((damaged_strategy(), any::<bool>()), 1..20),
    ) {
        let router = VRouter::new(topology).unwrap();
        for port in &router.topology().ports {
            for (frame, honest) in &frames {
                let mut frame = frame.clone();
                if *honest && frame.len() >= 12 {
                    frame[6..12].copy_from_slice(&port.mac.0);
                }
                let Ok(parsed) = parse(&frame, port.id) else { continue };
                let verdict = router.first_packet(&parsed, &frame);
                check(&router, port.id, port.network, &verdict, &parsed.key);
                prop_assert_eq!(&router.explain(&parsed, &frame).verdict, &verdict);
                for why in Punt::ALL {
                    let punted = router.punt(*why, &parsed, &frame);
                    check(&router, port.id, port.network, &punted, &parsed.key);
                }
                // Whatever is cut off, nothing breaks, and forwarding is the same.
                let short = &frame[..parsed.l3.min(frame.len())];
                let cut = router.first_packet(&parsed, short);
                check(&router, port.id, port.network, &cut, &parsed.key);
                if matches!(verdict, Verdict::Flow { .. }) {
                    prop_assert_eq!(&cut, &verdict);
                }
                router.punt(Punt::TtlExceeded, &parsed, short);
            }
        }
    }

    #[test]
    fn a_flow_is_right_for_every_packet_of_its_key(
        topology in topology_strategy(),
        frame in frame_strategy(),
        others in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let router = VRouter::new(topology).unwrap();
        for port in &router.topology().ports {
            let mut frame = frame.clone();
            if frame.len() >= 12 {
                frame[6..12].copy_from_slice(&port.mac.0);
            }
            let Ok(parsed) = parse(&frame, port.id) else { continue };
            let verdict = router.first_packet(&parsed, &frame);
            for (at, value) in &others {
                let mut other = frame.clone();
                let at = at.index(other.len());
                other[at] = *value;
                match parse(&other, port.id) {
                    Ok(parsed_other) if parsed_other.key == parsed.key => {
                        let second = router.first_packet(&parsed_other, &other);
                        if matches!(verdict, Verdict::Flow { .. }) {
                            prop_assert_eq!(&second, &verdict, "byte {} is not in the key", at);
                        } else {
                            let installs = matches!(second, Verdict::Flow { .. });
                            prop_assert!(!installs, "byte {} is not in the key", at);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_tunnel_packet_stays_in_its_vni(
        topology in topology_strategy(),
        frame in damaged_strategy(),
        vni in 99u32..104,
        (src, dst) in (9u8..14, 9u8..12),
    ) {
        let router = VRouter::new(topology).unwrap();
        let inner = [&[8, 0, 0, 0, 0, 0, vni as u8, 0][..], &frame].concat();
        let (src, dst) = (vtep(src), vtep(dst));
        let udp = UdpRepr { src, dst, src_port: 50000, dst_port: 4789 }.emit(&inner);
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) else { unreachable!() };
        let ip = Ipv4Repr::new(src, dst, protocol::UDP).emit(&udp);
        let (dst, src) = (mac(210), mac(211));
        let header = EthernetRepr { dst, src, vlan: None, ethertype: ethertype::IPV4 };
        let outer = header.emit(&ip);
        let Ok(parsed) = parse_tunnel(&outer, PortId::UPLINK) else { return Ok(()) };
        let verdict = router.first_packet(&parsed, &outer);
        prop_assert_eq!(&router.explain(&parsed, &outer).verdict, &verdict);
        match &verdict {
            Verdict::Flow { actions, .. } => {
                let network = router.topology().networks.iter().find(|n| n.vni == vni).unwrap().id;
                prop_assert_eq!(actions[0], Action::DecapVxlan);
                check_actions(router.topology(), PortId::UPLINK, network, actions);
            }
            Verdict::Drop(_) => {}
            other => prop_assert!(false, "{:?} for a tunnel packet", other),
        }
        for why in Punt::ALL {
            prop_assert!(matches!(router.punt(*why, &parsed, &outer), Verdict::Drop(_)));
        }
    }

    #[test]
    fn what_else_the_underlay_sends_reaches_no_guest(
        topology in topology_strategy(),
        frame in damaged_strategy(),
    ) {
        let router = VRouter::new(topology).unwrap();
        let Ok(parsed) = parse_tunnel(&frame, PortId::UPLINK) else { return Ok(()) };
        match router.first_packet(&parsed, &frame) {
            Verdict::Answer(answers) => {
                prop_assert!(answers.iter().all(|answer| answer.port == PortId::UPLINK));
            }
            Verdict::Learned { ip, .. } => {
                prop_assert!(router.underlay_next_hops().contains(&ip));
            }
            Verdict::Drop(_) => {}
            other => prop_assert!(parsed.key.tunnel != Default::default(), "{:?}", other),
        }
    }
}
