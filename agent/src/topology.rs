//! From the desired state to what the virtual router is told, and what of it must be left out.
//!
//! The virtual router refuses a topology that contradicts itself as a whole. Here one bad port, peer
//! or network costs only itself: it is found, left out, and the reason kept for its status.

use crate::desired::{Desired, Network, vxlan_overhead};
use crate::numbering::Numbers;
use std::collections::{BTreeMap, HashSet};
use vrouter::{NetworkId, Topology, Underlay, VRouter};

/// The MTU of a network on a host without an underlay, where none is given.
pub const DEFAULT_MTU: u16 = 1500;

/// A router, and who is not part of it.
#[derive(Debug)]
pub struct Built {
    /// Of everything that fits together.
    pub router: VRouter,
    /// Ports that had to be left out, by id, and why.
    pub refused: BTreeMap<String, String>,
    /// What else was left out.
    pub notes: Vec<String>,
}

/// The MTU that a network's guests have.
pub fn mtu_of(network: &Network, underlay: Option<&Underlay>) -> u16 {
    let default = underlay.map_or(DEFAULT_MTU, |underlay| {
        underlay
            .mtu
            .saturating_sub(vxlan_overhead(underlay.address))
            .max(vrouter_minimum(network))
    });
    network.mtu.unwrap_or(default).min(vrouter::MTU_MAX)
}

fn vrouter_minimum(network: &Network) -> u16 {
    let v6 = network
        .subnets
        .iter()
        .any(|subnet| subnet.prefix.addr().is_ipv6());
    if v6 {
        vrouter::MTU_MIN_V6
    } else {
        vrouter::MTU_MIN
    }
}

/// Builds the router of `desired`, with the ports that `include` lets in and that have a number.
pub fn build(
    desired: &Desired,
    numbers: &Numbers,
    underlay: Option<&Underlay>,
    epoch: u64,
    include: &dyn Fn(&str) -> bool,
) -> Built {
    let whole = translate(desired, numbers, underlay, epoch, include);
    let ids = &whole.ids;
    let mut refused = BTreeMap::new();
    for (id, port) in desired.ports.iter().filter(|(id, _)| include(id)) {
        if !desired.networks.contains_key(&port.network) {
            let why = format!(
                "Network {} of port \"{}\" is not known here",
                port.network, port.name
            );
            refused.insert(id.clone(), why);
        }
    }
    if let Ok(router) = VRouter::new(whole.topology.clone()) {
        return Built {
            router,
            refused,
            notes: Vec::new(),
        };
    }
    let mut sound = Sound {
        topology: Topology {
            epoch,
            ..Topology::default()
        },
        refused,
        notes: Vec::new(),
    };
    let alone = Topology {
        underlay: underlay.cloned(),
        epoch,
        ..Topology::default()
    };
    match VRouter::new(alone) {
        Ok(_) => sound.topology.underlay = underlay.cloned(),
        Err(error) => sound.notes.push(error.to_string()),
    }
    let mut vnis = HashSet::new();
    for network in &whole.topology.networks {
        sound.add_network(network, &whole.topology, ids, &mut vnis);
    }
    let Sound {
        topology,
        mut refused,
        mut notes,
    } = sound;
    match VRouter::new(topology) {
        Ok(router) => Built {
            router,
            refused,
            notes,
        },
        Err(error) => {
            // Every part was found sound, so this is not reached; if it is, nothing is switched
            // rather than the wrong thing.
            notes.push(error.to_string());
            refused.extend(ids.keys().map(|id| (id.clone(), error.to_string())));
            let router = empty(epoch);
            Built {
                router,
                refused,
                notes,
            }
        }
    }
}

/// A router that knows nothing.
pub fn empty(epoch: u64) -> VRouter {
    let nothing = Topology {
        epoch,
        ..Topology::default()
    };
    VRouter::new(nothing).expect("an empty topology contradicts nothing")
}

struct Whole {
    topology: Topology,
    /// Port ids by their place in `topology.ports`.
    ids: BTreeMap<String, flow::PortId>,
}

fn translate(
    desired: &Desired,
    numbers: &Numbers,
    underlay: Option<&Underlay>,
    epoch: u64,
    include: &dyn Fn(&str) -> bool,
) -> Whole {
    let mut topology = Topology {
        epoch,
        underlay: underlay.cloned(),
        ..Topology::default()
    };
    let mut numbers_of_networks = BTreeMap::new();
    for (number, (id, network)) in (0..).zip(&desired.networks) {
        numbers_of_networks.insert(id.as_str(), NetworkId(number));
        topology.networks.push(vrouter::Network {
            id: NetworkId(number),
            name: network.name.clone(),
            vni: network.vni,
            mtu: mtu_of(network, underlay),
            gateway_mac: network.gateway_mac,
            subnets: network
                .subnets
                .iter()
                .map(|s| vrouter::Subnet {
                    prefix: s.prefix,
                    gateway: s.gateway,
                    slaac: s.slaac,
                })
                .collect(),
            dns: network.dns.clone(),
            routes: network
                .routes
                .iter()
                .map(|r| vrouter::Route {
                    destination: r.destination,
                    next_hop: r.next_hop,
                })
                .collect(),
        });
    }
    let mut ids = BTreeMap::new();
    for (id, port) in desired.ports.iter().filter(|(id, _)| include(id)) {
        let (Some(network), Some(number)) = (
            numbers_of_networks.get(port.network.as_str()),
            numbers.get(id),
        ) else {
            continue;
        };
        ids.insert(id.clone(), number);
        topology.ports.push(vrouter::Port {
            id: number,
            name: port.name.clone(),
            network: *network,
            mac: port.mac,
            addresses: port.addresses.clone(),
        });
    }
    if underlay.is_some() {
        for peer in desired.peers.values() {
            let Some(network) = numbers_of_networks.get(peer.network.as_str()) else {
                continue;
            };
            topology.peers.push(vrouter::Peer {
                network: *network,
                mac: peer.mac,
                addresses: peer.addresses.clone(),
                vtep: peer.vtep,
            });
        }
    }
    Whole { topology, ids }
}

/// What has been found to fit together so far.
struct Sound {
    topology: Topology,
    refused: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Sound {
    /// Adds one network with those of its ports and peers that are sound.
    fn add_network(
        &mut self,
        network: &vrouter::Network,
        whole: &Topology,
        ids: &BTreeMap<String, flow::PortId>,
        vnis: &mut HashSet<u32>,
    ) {
        let mut one = Topology {
            epoch: whole.epoch,
            underlay: self.topology.underlay.clone(),
            networks: vec![network.clone()],
            ..Topology::default()
        };
        let ports: Vec<_> = whole
            .ports
            .iter()
            .filter(|p| p.network == network.id)
            .collect();
        let id_of = |number| {
            ids.iter()
                .find(|(_, n)| **n == number)
                .map(|(id, _)| id.clone())
        };
        let bad = match VRouter::new(one.clone()) {
            Err(error) => Some(error.to_string()),
            Ok(_) if !vnis.insert(network.vni) => Some(format!(
                "Network \"{}\" has the VNI {} of another",
                network.name, network.vni
            )),
            Ok(_) => None,
        };
        if let Some(why) = bad {
            for port in ports {
                self.refused
                    .extend(id_of(port.id).map(|id| (id, why.clone())));
            }
            self.notes.push(why);
            return;
        }
        for port in ports {
            one.ports.push(port.clone());
            if let Err(error) = VRouter::new(one.clone()) {
                one.ports.pop();
                self.refused
                    .extend(id_of(port.id).map(|id| (id, error.to_string())));
            }
        }
        let peers = whole.peers.iter().filter(|p| p.network == network.id);
        let before = one.clone();
        one.peers.extend(peers.clone().cloned());
        if VRouter::new(one.clone()).is_err() {
            one = before;
            for peer in peers {
                one.peers.push(peer.clone());
                if let Err(error) = VRouter::new(one.clone()) {
                    one.peers.pop();
                    self.notes.push(error.to_string());
                }
            }
        }
        self.topology.networks.push(network.clone());
        self.topology.ports.append(&mut one.ports);
        self.topology.peers.append(&mut one.peers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Peer, Port, SocketMode, Subnet, default_gateway_mac};
    use flow::MacAddr;
    use proptest::prelude::*;

    fn network(vni: u32) -> Network {
        Network {
            name: format!("net-{vni}"),
            vni,
            mtu: None,
            gateway_mac: default_gateway_mac(vni),
            subnets: vec![Subnet {
                prefix: "10.0.0.0/24".parse().unwrap(),
                gateway: "10.0.0.1".parse().unwrap(),
                slaac: false,
            }],
            dns: vec![],
            routes: vec![],
            vlan: 0,
        }
    }

    fn port(name: &str, network: &str, last: u8) -> Port {
        Port {
            name: name.into(),
            network: network.into(),
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            addresses: vec![std::net::Ipv4Addr::new(10, 0, 0, last).into()],
            queue_pairs: 1,
            queue_size: 256,
            mode: SocketMode::Server,
            socket: None,
            relay: None,
        }
    }

    fn underlay() -> Underlay {
        Underlay {
            address: "192.0.2.1".parse().unwrap(),
            prefix_len: 24,
            gateway: None,
            mac: MacAddr([2, 0, 0, 0, 1, 1]),
            mtu: 1500,
            neighbours: vec![],
            answer_arp: false,
        }
    }

    fn numbers(desired: &Desired) -> Numbers {
        let mut numbers = Numbers::default();
        for id in desired.ports.keys() {
            numbers.of(id);
        }
        numbers
    }

    #[test]
    fn the_mtu_is_what_the_underlay_leaves() {
        let (net, mut below) = (network(1), underlay());
        assert_eq!(mtu_of(&net, None), 1500);
        assert_eq!(mtu_of(&net, Some(&below)), 1450);
        below.mtu = 9000;
        assert_eq!(mtu_of(&net, Some(&below)), 8950);
        below.address = "2001:db8::1".parse().unwrap();
        assert_eq!(mtu_of(&net, Some(&below)), 8930);
        assert_eq!(
            mtu_of(
                &Network {
                    mtu: Some(1400),
                    ..net
                },
                Some(&below)
            ),
            1400
        );
    }

    #[test]
    fn a_sound_state_is_whole() {
        let mut desired = Desired::default();
        desired.networks.insert("n".into(), network(1));
        desired.networks.insert("m".into(), network(2));
        desired.ports.insert("a".into(), port("a", "n", 10));
        desired.ports.insert("b".into(), port("b", "m", 10));
        let built = build(&desired, &numbers(&desired), Some(&underlay()), 7, &|_| {
            true
        });
        assert_eq!(
            (built.refused.len(), built.notes.len()),
            (0, 0),
            "{built:?}"
        );
        assert_eq!(built.router.epoch(), 7);
    }

    #[test]
    fn each_bad_part_costs_only_itself() {
        let mut desired = Desired::default();
        desired.networks.insert("n".into(), network(1));
        desired.networks.insert("twin".into(), network(1));
        desired.networks.insert(
            "bad".into(),
            Network {
                mtu: Some(100),
                ..network(3)
            },
        );
        desired.ports.insert("a".into(), port("a", "n", 10));
        desired.ports.insert("b".into(), port("b", "n", 10));
        desired.ports.insert("c".into(), port("c", "bad", 11));
        desired.ports.insert("d".into(), port("d", "nowhere", 12));
        desired.ports.insert("e".into(), port("e", "n", 13));
        let vtep = "192.0.2.1".parse().unwrap();
        let own = Peer {
            network: "n".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 20]),
            addresses: vec![],
            vtep,
        };
        desired.peers.insert("p".into(), own);
        let built = build(&desired, &numbers(&desired), Some(&underlay()), 1, &|_| {
            true
        });
        let refused: Vec<_> = built.refused.keys().map(String::as_str).collect();
        assert_eq!(refused, ["b", "c", "d"], "{built:?}");
        assert!(
            built.refused["b"].contains("\"b\""),
            "{}",
            built.refused["b"]
        );
        assert_eq!(built.notes.len(), 3, "{:?}", built.notes);
    }

    proptest! {
        /// Whatever is desired, something is built, and every port is in it or has its reason.
        #[test]
        fn anything_builds(
            vnis in proptest::collection::vec((0u32..4, proptest::option::of(0u16..2000)), 0..4),
            ports in proptest::collection::vec((0usize..5, 0u8..5), 0..8),
        ) {
            let mut desired = Desired::default();
            for (i, (vni, mtu)) in vnis.iter().enumerate() {
                desired.networks.insert(format!("n{i}"), Network { mtu: *mtu, ..network(*vni) });
            }
            for (i, (network, last)) in ports.iter().enumerate() {
                let name = format!("p{i}");
                desired.ports.insert(name.clone(), port(&name, &format!("n{network}"), *last));
            }
            let built = build(&desired, &numbers(&desired), None, 1, &|_| true);
            let again = {
                let keep = |id: &str| !built.refused.contains_key(id);
                build(&desired, &numbers(&desired), None, 1, &keep)
            };
            prop_assert!(again.refused.is_empty(), "{:?}", again.refused);
        }
    }
}
