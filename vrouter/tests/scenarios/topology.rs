//! A topology that contradicts itself is refused, with a sentence that names what is wrong.

use crate::world::*;
use flow::{MacAddr, PortId};
use vrouter::{NetworkId, Route, Subnet, Topology, TopologyError, VRouter};

#[track_caller]
fn refused(change: impl FnOnce(&mut Topology)) -> String {
    let mut topology = plan().0[0].clone();
    change(&mut topology);
    let error: TopologyError = VRouter::new(topology).unwrap_err();
    error.to_string()
}

type Change = fn(&mut Topology);

#[test]
fn each_contradiction_is_named() {
    let cases: &[(Change, &str)] = &[
        (
            |t| t.networks[1].vni = 100,
            "Network \"red\" has VNI 100, which network \"blue\"",
        ),
        (
            |t| t.networks[0].vni = 0,
            "Network \"blue\" has VNI 0; use 1 to 16777215",
        ),
        (
            |t| t.networks[0].vni = 1 << 24,
            "Network \"blue\" has VNI 16777216",
        ),
        (
            |t| t.networks[1].id = NetworkId(1),
            "Network \"red\" has the number network1",
        ),
        (
            |t| t.networks[0].mtu = 1279,
            "Network \"blue\" has MTU 1279; use 1280 to 65000",
        ),
        (
            |t| t.networks[2].mtu = 575,
            "Network \"plain\" has MTU 575; use 576 to 65000",
        ),
        (|t| t.networks[0].mtu = 65001, "has MTU 65001"),
        (
            |t| t.networks[0].gateway_mac = mac(10),
            "Port \"guest-0\" has MAC address",
        ),
        (
            |t| t.networks[0].gateway_mac = MacAddr::BROADCAST,
            "Gateway of network \"blue\" has MAC",
        ),
        (
            |t| t.networks[0].dns = vec![ip("224.0.0.1")],
            "has name server 224.0.0.1",
        ),
        (
            |t| t.ports[0].id = PortId::UPLINK,
            "Port \"guest-0\" has number 0",
        ),
        (
            |t| t.ports[1].id = PortId(1),
            "Port \"guest-1\" has the number of another port, port1",
        ),
        (
            |t| t.ports[0].network = NetworkId(9),
            "Port \"guest-0\" is in network9",
        ),
        (
            |t| t.ports[1].mac = mac(10),
            "which Port \"guest-0\" of network \"blue\" has already",
        ),
        (
            |t| t.ports[0].mac = MacAddr::ZERO,
            "Port \"guest-0\" has MAC address 00:00",
        ),
        (
            |t| t.ports[1].addresses = vec![ip("10.0.0.10")],
            "Port \"guest-1\" has address 10.0.0.10",
        ),
        (
            |t| t.ports[0].addresses = vec![ip("10.0.0.1")],
            "which Gateway of subnet 10.0.0.0/24",
        ),
        (
            |t| t.ports[0].addresses = vec![ip("10.0.2.1")],
            "is no host's address in any subnet",
        ),
        (
            |t| t.ports[0].addresses = vec![ip("10.0.0.0")],
            "is no host's address in any subnet",
        ),
        (
            |t| t.ports[0].addresses = vec![ip("10.0.0.255")],
            "is no host's address in any subnet",
        ),
        (
            |t| t.peers[0].mac = mac(10),
            "Peer 02:00:00:00:00:0a has MAC address",
        ),
        (
            |t| t.peers[0].addresses = vec![ip("10.0.0.10")],
            "Peer 02:00:00:00:00:1e has address",
        ),
        (
            |t| t.peers[0].network = NetworkId(9),
            "Peer 02:00:00:00:00:1e is in network9",
        ),
        (|t| t.peers[0].vtep = ip("192.0.2.1"), "that is this host"),
        (
            |t| t.peers[0].vtep = ip("2001:db8::1"),
            "is of the other address family",
        ),
        (
            |t| t.peers[0].vtep = ip("224.0.0.1"),
            "use the unicast address of its host",
        ),
        (
            |t| underlay(t).mtu = 1329,
            "has MTU 1329, too short for VXLAN; raise it to 1330",
        ),
        (|t| underlay(t).prefix_len = 33, "has a prefix of length 33"),
        (
            |t| underlay(t).gateway = Some(ip("10.9.9.9")),
            "has gateway 10.9.9.9; use another host's",
        ),
        (
            |t| underlay(t).address = ip("127.0.0.1"),
            "Underlay address 127.0.0.1 is no host's",
        ),
        (
            |t| underlay(t).mac = MacAddr::ZERO,
            "Underlay address 192.0.2.1 has MAC address",
        ),
    ];
    for (change, expected) in cases {
        let text = refused(change);
        assert!(
            text.contains(expected),
            "{text:?} does not contain {expected:?}"
        );
    }
}

fn underlay(topology: &mut Topology) -> &mut vrouter::Underlay {
    topology.underlay.as_mut().unwrap()
}

#[test]
fn subnets_have_usable_gateways_and_do_not_overlap() {
    let cases = [
        (
            "10.0.0.128/25",
            "10.0.0.129",
            false,
            "overlaps subnet 10.0.0.0/24",
        ),
        (
            "10.0.0.0/16",
            "10.0.9.1",
            false,
            "overlaps subnet 10.0.0.0/24",
        ),
        (
            "10.5.0.0/24",
            "10.6.0.1",
            false,
            "has gateway 10.6.0.1; use a host's address inside",
        ),
        ("10.5.0.0/24", "10.5.0.0", false, "has gateway 10.5.0.0"),
        ("10.5.0.0/24", "10.5.0.255", false, "has gateway 10.5.0.255"),
        ("10.5.0.0/24", "10.5.0.1", true, "has slaac, which needs"),
        ("fd00:9::/80", "fd00:9::1", true, "has slaac, which needs"),
        (
            "224.0.0.0/24",
            "224.0.0.1",
            false,
            "holds addresses that no host can have",
        ),
        (
            "0.0.0.0/0",
            "10.5.0.1",
            false,
            "holds addresses that no host can have",
        ),
        (
            "fe80::/64",
            "fe80::1",
            false,
            "holds addresses that no host can have",
        ),
        (
            "ff00::/8",
            "ff02::1",
            false,
            "holds addresses that no host can have",
        ),
    ];
    for (prefix, gateway, slaac, expected) in cases {
        let subnet = Subnet {
            prefix: prefix.parse().unwrap(),
            gateway: ip(gateway),
            slaac,
        };
        let text = refused(|t| t.networks[0].subnets.push(subnet));
        let named = format!("Subnet {prefix} of network \"blue\"");
        assert!(
            text.contains(&named) && text.contains(expected),
            "{text:?} ({expected:?})"
        );
    }
}

#[test]
fn routes_lead_out_of_the_network_by_a_station_in_it() {
    let cases = [
        (
            "203.0.113.0/24",
            "fd00:b::10",
            "of the other address family",
        ),
        (
            "203.0.113.0/24",
            "10.9.0.1",
            "use an address inside a subnet",
        ),
        ("203.0.113.0/24", "10.0.0.1", "the gateway itself"),
        ("10.0.0.64/26", "10.0.0.10", "lies inside a subnet"),
        ("203.0.113.77/24", "10.0.0.10", "is there twice"),
    ];
    for (destination, next_hop, expected) in cases {
        let route = |to: &str, via| Route {
            destination: to.parse().unwrap(),
            next_hop: ip(via),
        };
        let text = refused(|t| {
            t.networks[0].routes = vec![route(destination, next_hop)];
            if expected == "is there twice" {
                t.networks[0].routes.push(route("203.0.113.0/24", next_hop));
            }
        });
        assert!(
            text.contains(expected),
            "{text:?} does not contain {expected:?}"
        );
    }
}

#[test]
fn the_smallest_topologies_are_fine() {
    assert_eq!(VRouter::new(Topology::default()).unwrap().epoch(), 0);
    let mut alone = plan().0[0].clone();
    alone.underlay = None;
    alone.networks[0].subnets.push(Subnet {
        prefix: "10.7.0.0/31".parse().unwrap(),
        gateway: ip("10.7.0.0"),
        slaac: false,
    });
    alone.ports[0].addresses.push(ip("10.7.0.1"));
    let router = VRouter::new(alone).unwrap();
    assert_eq!((router.epoch(), router.underlay_next_hops()), (7, vec![]));
}
