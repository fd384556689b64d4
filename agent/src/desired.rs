//! The desired state of this host as the agent understands it, wherever it came from: its own file
//! ([`config`](crate::config)) or the controller ([`wire`](crate::wire)).

use flow::MacAddr;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The largest VXLAN network identifier.
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// All that this host should have. Keys are ids (of ports from a file: their names).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Networks by id.
    pub networks: BTreeMap<String, Network>,
    /// Ports of this host that the virtual router has, by id.
    pub ports: BTreeMap<String, Port>,
    /// Ports of this host that have a VF, by id; one with a standby is among [`ports`](Self::ports) too.
    pub vf_ports: BTreeMap<String, VfPort>,
    /// Ports of other hosts, by the id of the port.
    pub peers: BTreeMap<String, Peer>,
    /// Ports that were asked for but cannot be understood: id, name and why.
    pub refused: BTreeMap<String, (String, String)>,
}

/// A port as one of the two kinds, or as both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyPort {
    /// Its part in the virtual router.
    pub virtio: Option<Port>,
    /// Its VF.
    pub vf: Option<VfPort>,
}

impl Desired {
    /// Adds a port to whichever list it belongs.
    pub fn add(&mut self, id: &str, port: AnyPort) {
        if let Some(virtio) = port.virtio {
            self.ports.insert(id.to_owned(), virtio);
        }
        if let Some(vf) = port.vf {
            self.vf_ports.insert(id.to_owned(), vf);
        }
    }
}

/// A virtual network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Unique name.
    pub name: String,
    /// VXLAN network identifier, 1 to [`MAX_VNI`].
    pub vni: u32,
    /// Bytes of IP packet; `None`: the largest the underlay carries.
    pub mtu: Option<u16>,
    /// The distributed gateway's MAC, the same on every host.
    pub gateway_mac: MacAddr,
    /// Prefixes.
    pub subnets: Vec<Subnet>,
    /// DNS servers told to guests.
    pub dns: Vec<IpAddr>,
    /// Classless static routes told to guests.
    pub routes: Vec<Route>,
    /// Provider VLAN of VFs, 1 to 4094; 0: none.
    pub vlan: u16,
}

/// A prefix of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix, host bits zero.
    pub prefix: IpNet,
    /// The distributed gateway's address.
    pub gateway: IpAddr,
    /// Guests form their own EUI-64 addresses (IPv6 /64 only).
    pub slaac: bool,
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By whom.
    pub next_hop: IpAddr,
}

/// Who makes a port's vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SocketMode {
    /// The agent listens, the guest's QEMU connects.
    #[default]
    Server,
    /// QEMU listens, the agent connects, again and again until it succeeds.
    Client,
}

/// A guest's port on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Unique name.
    pub name: String,
    /// Id of its network.
    pub network: String,
    /// The guest's MAC.
    pub mac: MacAddr,
    /// The guest's addresses.
    pub addresses: Vec<IpAddr>,
    /// 1 to 64.
    pub queue_pairs: u16,
    /// Descriptors a ring.
    pub queue_size: u16,
    /// Who makes the socket.
    pub mode: SocketMode,
    /// The socket, where it is not the default.
    pub socket: Option<PathBuf>,
    /// Its packets go to a VF while there is one (binding xvio).
    pub relay: Option<Relayed>,
}

/// What a port of binding xvio has beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// The pool to take the VF from; `None`: the agent's own choice.
    pub pool: Option<String>,
    /// A virtual device of DPDK instead of a VF.
    pub device: Option<String>,
    /// What it is attached to, such as "vm/web-1"; may be empty.
    pub owner: String,
}

/// A port whose guest has a VF. The NIC carries its frames, the virtual router never sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfPort {
    /// Unique name.
    pub name: String,
    /// Id of its network.
    pub network: String,
    /// The guest's MAC, set on the VF by its PF.
    pub mac: MacAddr,
    /// The guest's addresses: for those who ask, the VF does not know them.
    pub addresses: Vec<IpAddr>,
    /// The pool to take the VF from; `None`: the agent's own choice.
    pub pool: Option<String>,
    /// Whether it has a vhost-user socket beside.
    pub standby: bool,
    /// What it is attached to, such as "vm/web-1"; may be empty.
    pub owner: String,
}

/// A port of another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Id of its network.
    pub network: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host's address in the underlay.
    pub vtep: IpAddr,
}

/// The first usable address of a prefix: the default gateway.
pub fn first_address(prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(p) if p.prefix_len() >= 31 => IpAddr::V4(p.network()),
        IpNet::V4(p) => IpAddr::V4(std::net::Ipv4Addr::from_bits(
            p.network().to_bits().wrapping_add(1),
        )),
        IpNet::V6(p) if p.prefix_len() >= 127 => IpAddr::V6(p.network()),
        IpNet::V6(p) => IpAddr::V6(std::net::Ipv6Addr::from_bits(
            p.network().to_bits().wrapping_add(1),
        )),
    }
}

/// The gateway's MAC where none is given: locally administered, made of the VNI, so that every host
/// comes to the same.
pub fn default_gateway_mac(vni: u32) -> MacAddr {
    let [_, a, b, c] = vni.to_be_bytes();
    MacAddr([0x02, 0xfe, 0x00, a, b, c])
}

/// Bytes that VXLAN takes from the underlay's MTU: the inner Ethernet header, VXLAN, UDP and outer IP.
pub fn vxlan_overhead(underlay: IpAddr) -> u16 {
    if underlay.is_ipv4() {
        14 + 8 + 8 + 20
    } else {
        14 + 8 + 8 + 40
    }
}

/// What a name of ours looks like: 1 to 63 of `a-z 0-9 -`, starting with a letter.
pub fn valid_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_is_the_gateway() {
        let first = |cidr: &str| first_address(&cidr.parse().unwrap()).to_string();
        assert_eq!(first("10.0.0.0/24"), "10.0.0.1");
        assert_eq!(first("fd00::/64"), "fd00::1");
        assert_eq!(first("10.0.0.4/31"), "10.0.0.4");
        assert_eq!(first("255.255.255.255/32"), "255.255.255.255");
    }

    #[test]
    fn names_are_dns_labels_that_start_with_a_letter() {
        for good in ["a", "web-1", "h1"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", "1a", "Web", "a_b", "a/b", "../x", "ä", &"a".repeat(64)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }
}
