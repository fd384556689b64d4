//! What the virtual router is told: networks, ports of this host, and stations on other hosts.
//!
//! A [`Topology`] is a whole, not a change: every change makes a new one with a new epoch, and
//! from it a new [`VRouter`](crate::VRouter). [`TopologyError`](crate::TopologyError) lists what
//! is refused.

use flow::{MacAddr, PortId};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// Everything one host's virtual router knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Grows with each change; flows made under another epoch are stale.
    pub epoch: u64,
    /// The way to other hosts; `None` on a host that stands alone.
    pub underlay: Option<Underlay>,
    /// The networks that have a port here.
    pub networks: Vec<Network>,
    /// The ports of this host.
    pub ports: Vec<Port>,
    /// The stations of these networks that live on other hosts.
    pub peers: Vec<Peer>,
}

/// This host's place in the network that joins the hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The address of this host's VXLAN tunnel endpoint.
    pub address: IpAddr,
    /// Length of the on-link prefix around `address`.
    pub prefix_len: u8,
    /// The next hop to tunnel endpoints outside the prefix.
    pub gateway: Option<IpAddr>,
    /// The MAC address of the uplink.
    pub mac: MacAddr,
    /// The longest IP packet the uplink carries, in bytes.
    pub mtu: u16,
    /// Resolved next hops.
    pub neighbours: Vec<(IpAddr, MacAddr)>,
    /// Answer ARP and ND for `address`. False where the kernel owns the address and answers.
    pub answer_arp: bool,
}

/// The number of a network, chosen by whoever makes the topology.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct NetworkId(pub u32);

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network{}", self.0)
    }
}

/// A virtual network: one broadcast domain, and one routing table.
///
/// With subnets it has a gateway, and the virtual router knows every address in it. Without
/// subnets it is a plain Ethernet: no gateway, no services, no addresses to guard, only MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Unique in the topology.
    pub id: NetworkId,
    /// For people: errors and explanations.
    pub name: String,
    /// VXLAN network identifier, 1 to 16777215, unique in the topology.
    pub vni: u32,
    /// The longest IP packet in the network, in bytes: 576 to 65000, at least 1280 with IPv6.
    pub mtu: u16,
    /// The MAC address of the distributed gateway, the same on every host.
    pub gateway_mac: MacAddr,
    /// The subnets; they do not overlap.
    pub subnets: Vec<Subnet>,
    /// Name servers handed to guests, of either family.
    pub dns: Vec<IpAddr>,
    /// Static routes to what lies behind a station of the network.
    pub routes: Vec<Route>,
}

/// A range of addresses in a network, with its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The range.
    pub prefix: IpNet,
    /// The gateway's address, inside the range.
    pub gateway: IpAddr,
    /// Guests form their own addresses (RFC 4862). Only for an IPv6 prefix of length 64.
    pub slaac: bool,
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub destination: IpNet,
    /// The station that forwards it: an address inside one of the network's subnets.
    pub next_hop: IpAddr,
}

/// A port of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number in the data plane; not [`PortId::UPLINK`].
    pub id: PortId,
    /// Its name, which DHCP also hands out as the host name where it is one.
    pub name: String,
    /// The network it is in.
    pub network: NetworkId,
    /// The only MAC address it may send from.
    pub mac: MacAddr,
    /// The addresses it may send from. The first of each family is handed out by DHCP.
    pub addresses: Vec<IpAddr>,
}

/// A station on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The network it is in.
    pub network: NetworkId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The tunnel endpoint of its host.
    pub vtep: IpAddr,
}
