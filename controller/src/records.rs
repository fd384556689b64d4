//! Hosts, networks, ports and tokens as the controller keeps them: parsed and valid.

use std::net::IpAddr;

use api::token::Role;
use ipnet::IpNet;
use uuid::Uuid;

use crate::mac::Mac;

/// A host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Never changes.
    pub id: Uuid,
    /// Unique among hosts.
    pub name: String,
    /// Grows with every change.
    pub revision: u64,
    /// Where VXLAN arrives.
    pub vtep: Option<IpAddr>,
    /// The operator gave the VTEP; the agent's word does not change it.
    pub vtep_given: bool,
    /// The store's revision when the VTEP last changed: peers on this host changed with it.
    pub vtep_revision: u64,
    /// MTU of the underlay link, bytes; 0 while unknown.
    pub underlay_mtu: u32,
}

impl Host {
    /// The largest network MTU that this host's underlay carries; `None` while unknown.
    pub fn largest_mtu(&self) -> Option<u32> {
        (self.underlay_mtu != 0).then(|| self.underlay_mtu.saturating_sub(self.encapsulation()))
    }

    /// What VXLAN adds to an inner IP packet within the underlay's MTU: the inner Ethernet header (14), VXLAN
    /// (8), UDP (8) and the outer IP header (RFC 7348).
    pub fn encapsulation(&self) -> u32 {
        match self.vtep {
            Some(IpAddr::V6(_)) => 14 + 8 + 8 + 40,
            _ => 14 + 8 + 8 + 20,
        }
    }
}

/// A virtual network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Never changes.
    pub id: Uuid,
    /// Unique among networks.
    pub name: String,
    /// Grows with every change.
    pub revision: u64,
    /// VXLAN network identifier, unique.
    pub vni: u32,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// They do not overlap.
    pub subnets: Vec<Subnet>,
    /// Name servers for the guests.
    pub dns: Vec<IpAddr>,
    /// Routes for the guests.
    pub routes: Vec<Route>,
    /// The distributed gateway's MAC.
    pub gateway_mac: Mac,
    /// Provider VLAN of VFs; 0: none.
    pub vlan: u32,
}

/// A subnet of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Subnet {
    /// Without host bits.
    pub prefix: IpNet,
    /// Within the prefix.
    pub gateway: IpAddr,
    /// Guests form their own addresses.
    pub slaac: bool,
}

impl Subnet {
    /// The first and the last address that a port can have (the gateway may be among them). Without network
    /// and broadcast address in IPv4, without the subnet-router anycast address in IPv6 (RFC 4291, 2.6.1).
    pub fn usable(&self) -> (IpAddr, IpAddr) {
        match self.prefix {
            IpNet::V4(net) => {
                let (network, broadcast) = (u32::from(net.network()), u32::from(net.broadcast()));
                (
                    IpAddr::V4((network + 1).into()),
                    IpAddr::V4((broadcast - 1).into()),
                )
            }
            IpNet::V6(net) => (
                IpAddr::V6((u128::from(net.network()) + 1).into()),
                IpAddr::V6(net.broadcast()),
            ),
        }
    }
}

/// A route that guests learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Without host bits.
    pub destination: IpNet,
    /// In one of the network's subnets.
    pub next_hop: IpAddr,
}

/// A port.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Never changes.
    pub id: Uuid,
    /// Unique among ports.
    pub name: String,
    /// Grows with every change.
    pub revision: u64,
    /// Its network.
    pub network: Uuid,
    /// Its host, if it is on one.
    pub host: Option<Uuid>,
    /// Unique in the network.
    pub mac: Mac,
    /// Each in one of the network's subnets.
    pub addresses: Vec<IpAddr>,
    /// As in the API's `Binding`.
    pub binding: i32,
    /// Queue pairs of the vhost-user device.
    pub queue_pairs: u32,
    /// Descriptors a ring.
    pub queue_size: u32,
    /// As in the API's `SocketMode`.
    pub socket_mode: i32,
    /// Free text.
    pub owner: String,
    /// Pool of its VF; empty: the agent's own choice.
    pub pool: String,
    /// A vhost-user socket beside the VF.
    pub standby: bool,
}

impl Port {
    /// Whether the port has a VF of its own.
    pub fn has_vf(&self) -> bool {
        self.binding == api::v1::Binding::Sriov as i32
    }

    /// Whether its frames may go through a VF, in the network's VLAN.
    pub fn uses_vf(&self) -> bool {
        self.has_vf() || self.binding == api::v1::Binding::Xvio as i32
    }

    /// Whether the hosts' virtual routers reach it: a VF's frames never come to them.
    pub fn is_routed(&self) -> bool {
        !self.has_vf() || self.standby
    }
}

/// A join token that was not used yet. Of its secret only the hash is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What the certificate will be good for.
    pub role: Role,
    /// The name in the certificate.
    pub name: String,
    /// The host, for a host's token.
    pub host: Option<Uuid>,
    /// Seconds since the epoch.
    pub expires: i64,
}

impl Token {
    /// How a token is found: the first half of its hash.
    pub fn key(&self) -> u128 {
        token_key(&self.hash)
    }
}

/// The key of the token whose secret has this hash.
pub fn token_key(hash: &[u8; 32]) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(half)
}

/// An address as a number, for ranges.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
