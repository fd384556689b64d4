//! Two hosts with a guest here and there, joined by nothing but function calls: frames go through
//! a host's [`VRouter`] and `flow`'s reference executor until they are delivered or dropped.

use flow::reference::{Outcome, Packet, execute};
use flow::{Action, DropReason, MacAddr, PortId, parse, parse_tunnel};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use vrouter::*;

/// Shorthand for a MAC address of the tests.
pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A guest: where it is and who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    pub host: usize,
    pub port: PortId,
    pub mac: MacAddr,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Guest {
    /// The link-local address that follows from the MAC.
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f, g, h] = self.mac.eui64();
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h])
    }
}

pub const GATEWAY_MAC: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);
pub const BLUE_VNI: u32 = 100;
pub const RED_VNI: u32 = 200;
pub const PLAIN_VNI: u32 = 300;
pub const BLUE_MTU: u16 = 1450;

/// The two hosts, as data that a test may change before it builds them.
#[derive(Clone)]
pub struct Plan(pub [Topology; 2]);

/// Blue: A and B on host 0, in two subnets; C on host 1. Red: X on host 0 and Y on host 1, with
/// the very addresses and MACs of A and C. A plain Ethernet: P and Q on host 0, R on host 1.
pub fn guests() -> [Guest; 8] {
    let guest = |host, port, m, a: &str, b: &str| Guest {
        host,
        port: PortId(port),
        mac: mac(m),
        v4: v4(a),
        v6: v6(b),
    };
    [
        guest(0, 1, 10, "10.0.0.10", "fd00:b::10"),
        guest(0, 2, 20, "10.0.1.20", "fd00:b:0:1::20"),
        guest(1, 1, 30, "10.0.0.30", "fd00:b::30"),
        guest(0, 3, 10, "10.0.0.10", "fd00:b::10"),
        guest(1, 3, 30, "10.0.0.30", "fd00:b::30"),
        guest(0, 5, 50, "198.51.100.50", "2001:db8::50"),
        guest(0, 6, 60, "198.51.100.60", "2001:db8::60"),
        guest(1, 5, 70, "198.51.100.70", "2001:db8::70"),
    ]
}

pub const A: usize = 0;
pub const B: usize = 1;
pub const C: usize = 2;
pub const X: usize = 3;
pub const Y: usize = 4;
pub const P: usize = 5;
pub const Q: usize = 6;
pub const R: usize = 7;

fn subnet(prefix: &str, gateway: &str, slaac: bool) -> Subnet {
    Subnet {
        prefix: prefix.parse().unwrap(),
        gateway: ip(gateway),
        slaac,
    }
}

fn networks() -> Vec<Network> {
    let blue = Network {
        id: NetworkId(1),
        name: "blue".into(),
        vni: BLUE_VNI,
        mtu: BLUE_MTU,
        gateway_mac: GATEWAY_MAC,
        subnets: vec![
            subnet("10.0.0.0/24", "10.0.0.1", false),
            subnet("10.0.1.0/24", "10.0.1.1", false),
            subnet("fd00:b::/64", "fd00:b::1", false),
            subnet("fd00:b:0:1::/64", "fd00:b:0:1::1", true),
        ],
        dns: vec![ip("9.9.9.9"), ip("2620:fe::fe")],
        routes: vec![],
    };
    let red = Network {
        id: NetworkId(2),
        name: "red".into(),
        vni: RED_VNI,
        subnets: vec![
            subnet("10.0.0.0/24", "10.0.0.1", false),
            subnet("fd00:b::/64", "fd00:b::1", false),
        ],
        ..blue.clone()
    };
    let plain = Network {
        id: NetworkId(3),
        name: "plain".into(),
        vni: PLAIN_VNI,
        subnets: vec![],
        dns: vec![],
        ..blue.clone()
    };
    vec![blue, red, plain]
}

fn network_of(index: usize) -> NetworkId {
    NetworkId(match index {
        A | B | C => 1,
        X | Y => 2,
        _ => 3,
    })
}

fn addresses_of(index: usize) -> Vec<IpAddr> {
    let guest = guests()[index];
    if index >= P {
        vec![]
    } else {
        vec![guest.v4.into(), guest.v6.into()]
    }
}

pub fn host_ip(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + host as u8))
}

pub fn host_mac(host: usize) -> MacAddr {
    MacAddr([6, 0, 0, 0, 0, host as u8])
}

/// Both hosts' topologies.
pub fn plan() -> Plan {
    Plan([0, 1].map(|host| {
        let other = 1 - host;
        let here = |index: &usize| guests()[*index].host == host;
        let port = |index: usize| Port {
            id: guests()[index].port,
            name: format!("guest-{index}"),
            network: network_of(index),
            mac: guests()[index].mac,
            addresses: addresses_of(index),
        };
        let peer = |index: usize| Peer {
            network: network_of(index),
            mac: guests()[index].mac,
            addresses: addresses_of(index),
            vtep: host_ip(other),
        };
        Topology {
            epoch: 7,
            underlay: Some(Underlay {
                address: host_ip(host),
                prefix_len: 24,
                gateway: None,
                mac: host_mac(host),
                mtu: 1500,
                neighbours: vec![(host_ip(other), host_mac(other))],
                answer_arp: true,
            }),
            networks: networks(),
            ports: (0..8).filter(here).map(port).collect(),
            peers: (0..8).filter(|index| !here(index)).map(peer).collect(),
        }
    }))
}

impl Plan {
    /// Changes both hosts' topologies alike.
    pub fn change(mut self, change: impl Fn(&mut Topology)) -> Plan {
        self.0.iter_mut().for_each(change);
        self
    }

    pub fn build(self) -> World {
        World {
            hosts: self.0.map(|topology| VRouter::new(topology).unwrap()),
        }
    }
}

/// The plan as it is, built.
pub fn world() -> World {
    plan().build()
}

pub struct World {
    pub hosts: [VRouter; 2],
}

/// All that came of one frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// What guests were handed, by host and port.
    pub delivered: Vec<(usize, PortId, Vec<u8>)>,
    /// What routers answered, by host and port.
    pub answers: Vec<(usize, PortId, Vec<u8>)>,
    /// What was dropped, by host.
    pub drops: Vec<(usize, DropReason)>,
    /// What went over the wire between the hosts.
    pub wire: Vec<Vec<u8>>,
    /// The action lists that ran, in order.
    pub actions: Vec<Vec<Action>>,
}

impl Happened {
    /// Asserts that nothing came of it but this drop.
    #[track_caller]
    pub fn only_dropped(&self, host: usize, reason: DropReason) {
        let drops = vec![(host, reason)];
        let actions = self.actions.clone();
        let wire = self.wire.clone();
        assert_eq!(
            *self,
            Happened {
                drops,
                actions,
                wire,
                ..Happened::default()
            }
        );
    }

    /// Asserts that nothing came of it at all.
    #[track_caller]
    pub fn nothing(&self) {
        assert_eq!(*self, Happened::default());
    }

    /// The one answer, which is to go to this guest.
    #[track_caller]
    pub fn answer_to(&self, guest: &Guest) -> Vec<u8> {
        assert_eq!(self.drops, []);
        assert_eq!(self.delivered, []);
        let [(host, port, bytes)] = &self.answers[..] else {
            panic!("{self:?}")
        };
        assert_eq!((*host, *port), (guest.host, guest.port));
        bytes.clone()
    }

    /// The one delivery, which is to be to this guest.
    #[track_caller]
    pub fn delivery_to(&self, guest: &Guest) -> Vec<u8> {
        assert_eq!((&self.drops[..], &self.answers[..]), (&[][..], &[][..]));
        let [(host, port, bytes)] = &self.delivered[..] else {
            panic!("{self:?}")
        };
        assert_eq!((*host, *port), (guest.host, guest.port));
        bytes.clone()
    }

    /// Who got it, by host and port.
    pub fn receivers(&self) -> Vec<(usize, u32)> {
        let mut all: Vec<_> = self.delivered.iter().map(|(h, p, _)| (*h, p.0)).collect();
        all.sort_unstable();
        all
    }
}

impl World {
    /// What comes of a frame that a guest sends.
    pub fn send(&self, from: &Guest, frame: Vec<u8>) -> Happened {
        let mut happened = Happened::default();
        self.run(from.host, from.port, frame, &mut happened);
        happened
    }

    /// What comes of a frame on a host's uplink.
    pub fn receive(&self, host: usize, frame: Vec<u8>) -> Happened {
        let mut happened = Happened::default();
        self.run(host, PortId::UPLINK, frame, &mut happened);
        happened
    }

    fn run(&self, host: usize, port: PortId, frame: Vec<u8>, happened: &mut Happened) {
        let parsed = match port {
            PortId::UPLINK => parse_tunnel(&frame, port),
            _ => parse(&frame, port),
        };
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => return happened.drops.push((host, reason)),
        };
        let router = &self.hosts[host];
        let verdict = router.first_packet(&parsed, &frame);
        let told = router.explain(&parsed, &frame);
        assert_eq!(
            told.verdict, verdict,
            "explained otherwise: {:#?}",
            told.steps
        );
        assert!(told.steps.len() >= 2, "{:#?}", told.steps);
        let actions = match verdict {
            Verdict::Flow { key, actions } => {
                assert_eq!(key, parsed.key);
                actions
            }
            Verdict::Once { actions } => actions,
            other => return self.conclude(host, other, happened),
        };
        happened.actions.push(actions.clone());
        let execution = execute(&actions, Packet::complete(frame.clone()));
        for (out, packet) in execution.outputs {
            if out == PortId::UPLINK {
                happened.wire.push(packet.bytes.clone());
                self.run(1 - host, PortId::UPLINK, packet.bytes, happened);
            } else {
                happened.delivered.push((host, out, packet.bytes));
            }
        }
        match execution.outcome {
            Outcome::Done => {}
            Outcome::Dropped(reason) => happened.drops.push((host, reason)),
            Outcome::Punted(why) => {
                self.conclude(host, router.punt(why, &parsed, &frame), happened);
            }
        }
    }

    fn conclude(&self, host: usize, verdict: Verdict, happened: &mut Happened) {
        match verdict {
            Verdict::Answer(answers) => {
                happened
                    .answers
                    .extend(answers.into_iter().map(|a| (host, a.port, a.packet)));
            }
            Verdict::Drop(reason) => happened.drops.push((host, reason)),
            other => panic!("{other:?} where only answers and drops can be"),
        }
    }
}
