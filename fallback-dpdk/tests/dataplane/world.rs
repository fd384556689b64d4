//! The world of the tests: one network with stations here and on another host, and frames between
//! them.

use crate::wire::{Namespace, Wire, eal, wait_for};
use fallback_dpdk::{Config, Counters, Dataplane, PortCounters, Wake};
use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype, protocol};
use flow::{DropReason, MacAddr, PortId};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use vrouter::{Network, NetworkId, Peer, Port, Subnet, Topology, Underlay, VRouter};

pub const UPLINK_MAC: MacAddr = MacAddr([2, 0xaa, 0, 0, 0, 1]);
pub const PEER_HOST_MAC: MacAddr = MacAddr([2, 0xaa, 0, 0, 0, 2]);
pub const GATEWAY_MAC: MacAddr = MacAddr([2, 0xbb, 0, 0, 0, 1]);
pub const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const PEER_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const VNI: u32 = 100;

/// The MAC of station `n`.
pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// The address of station `n`: 1 to 100 are ports here, 101 and up are on the other host.
pub fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, n)
}

/// The address of station `n` in the second subnet, which is reached through the gateway.
pub fn routed(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, n)
}

/// A topology with ports 1 to `ports`, and the peer 101 if its host is resolved or not.
pub fn topology(epoch: u64, ports: u8, resolved: bool) -> Topology {
    let id = NetworkId(1);
    let subnet = |third: u8| Subnet {
        prefix: format!("10.{third}.0.0/24").parse().expect("a prefix"),
        gateway: IpAddr::V4(Ipv4Addr::new(10, third, 0, 254)),
        slaac: false,
    };
    Topology {
        epoch,
        underlay: Some(Underlay {
            address: IpAddr::V4(VTEP),
            prefix_len: 24,
            gateway: None,
            mac: UPLINK_MAC,
            mtu: 1500,
            neighbours: if resolved {
                vec![(IpAddr::V4(PEER_VTEP), PEER_HOST_MAC)]
            } else {
                vec![]
            },
            answer_arp: true,
        }),
        networks: vec![Network {
            id,
            name: "blue".to_owned(),
            vni: VNI,
            mtu: 1400,
            gateway_mac: GATEWAY_MAC,
            subnets: vec![subnet(1), subnet(2)],
            dns: vec![],
            routes: vec![],
        }],
        ports: (1..=ports)
            .map(|n| Port {
                id: PortId(u32::from(n)),
                name: format!("vm{n}"),
                network: id,
                mac: mac(n),
                addresses: vec![IpAddr::V4(address(n)), IpAddr::V4(routed(n))],
            })
            .collect(),
        peers: vec![Peer {
            network: id,
            mac: mac(101),
            addresses: vec![IpAddr::V4(address(101))],
            vtep: IpAddr::V4(PEER_VTEP),
        }],
    }
}

/// A datagram between stations of the first subnet.
pub fn datagram(from: u8, to: u8, src_port: u16, payload: &[u8]) -> Vec<u8> {
    frame(
        mac(from),
        mac(to),
        address(from),
        address(to),
        64,
        src_port,
        payload,
    )
}

pub fn frame(
    eth_src: MacAddr,
    eth_dst: MacAddr,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ttl: u8,
    src_port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let udp = UdpRepr {
        src: IpAddr::V4(src),
        dst: IpAddr::V4(dst),
        src_port,
        dst_port: 9,
    };
    let ip = Ipv4Repr {
        ttl,
        ..Ipv4Repr::new(src, dst, protocol::UDP)
    };
    let eth = EthernetRepr {
        dst: eth_dst,
        src: eth_src,
        vlan: None,
        ethertype: ethertype::IPV4,
    };
    eth.emit(&ip.emit(&udp.emit(payload)))
}

/// A data plane with wires.
pub struct World {
    pub plane: Dataplane,
    pub namespace: Namespace,
}

impl World {
    pub fn new(config: Config) -> Self {
        let plane = Dataplane::start(eal(), config).expect("the data plane starts");
        World {
            plane,
            namespace: Namespace::new(),
        }
    }

    /// A small configuration.
    pub fn config() -> Config {
        Config {
            buffers: 4096,
            max_frame: 2048,
            flow_capacity: 4096,
            ..Config::default()
        }
    }

    /// Adds a port on a wire.
    pub fn port(&self, n: u32) -> Wire {
        let (device, wire) = self.namespace.wire(&n.to_string());
        self.namespace.run(|| {
            let wake = Wake::Interface(format!("p{n}"));
            // The doorbell is for the uplink's packets only.
            let wake = if n == 0 { wake } else { Wake::Timer };
            self.plane
                .add_ethdev(PortId(n), device, Some(wake))
                .expect("the port is added");
        });
        wire
    }

    /// Publishes a topology; when this returns, all workers use it.
    pub fn publish(&self, topology: Topology) {
        let epoch = topology.epoch;
        self.plane.publish(Arc::new(
            VRouter::new(topology).expect("the topology is valid"),
        ));
        wait_for("all workers to use the new router", || {
            self.plane.workers().iter().all(|w| w.epoch == epoch)
        });
    }

    pub fn counters(&self) -> Counters {
        self.plane.counters()
    }

    pub fn port_counters(&self, n: u32) -> PortCounters {
        let ports = self.counters().ports;
        ports
            .into_iter()
            .find(|(id, _)| *id == PortId(n))
            .expect("the port exists")
            .1
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.counters().drops[reason as usize]
    }
}
