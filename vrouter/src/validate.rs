//! Refusing a topology that contradicts itself, with the name of what is wrong.

use crate::topology::{Network, NetworkId, Subnet, Topology, Underlay};
use flow::{MacAddr, PortId};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// The longest MTU a network may have.
pub const MTU_MAX: u16 = 65000;
/// The shortest MTU of a network that carries IPv4 (RFC 791 section 3.1).
pub const MTU_MIN: u16 = 576;
/// The shortest MTU of a network that carries IPv6 (RFC 8200 section 5).
pub const MTU_MIN_V6: u16 = 1280;

/// Why a topology is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Two networks have one number.
    #[error("Network \"{name}\" has the number {id} of another network; number each network once")]
    DuplicateNetwork {
        /// The second network.
        name: String,
        /// The number both have.
        id: NetworkId,
    },
    /// A VNI outside its range.
    #[error("Network \"{network}\" has VNI {vni}; use 1 to 16777215")]
    VniRange {
        /// The network.
        network: String,
        /// Its VNI.
        vni: u32,
    },
    /// Two networks have one VNI.
    #[error(
        "Network \"{network}\" has VNI {vni}, which network \"{other}\" has already; give each its own"
    )]
    DuplicateVni {
        /// The second network.
        network: String,
        /// The first network.
        other: String,
        /// The VNI both have.
        vni: u32,
    },
    /// An MTU outside its range.
    #[error("Network \"{network}\" has MTU {mtu}; use {min} to {max}", max = MTU_MAX)]
    MtuRange {
        /// The network.
        network: String,
        /// Its MTU.
        mtu: u16,
        /// The least it may have.
        min: u16,
    },
    /// A subnet that cannot be one.
    #[error("Subnet {prefix} of network \"{network}\" {problem}")]
    Subnet {
        /// The network.
        network: String,
        /// The subnet.
        prefix: IpNet,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A static route that cannot work.
    #[error("Route {destination} of network \"{network}\" {problem}")]
    Route {
        /// The network.
        network: String,
        /// The route's destination.
        destination: IpNet,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A name server that cannot be one.
    #[error("Network \"{network}\" has name server {address}, which is no host's address")]
    Dns {
        /// The network.
        network: String,
        /// The name server.
        address: IpAddr,
    },
    /// A MAC address that no station can have.
    #[error("{owner} has MAC address {mac}, which is a group address or zero; use a station's")]
    MacKind {
        /// Who has it.
        owner: String,
        /// The address.
        mac: MacAddr,
    },
    /// A MAC address twice in a network.
    #[error(
        "{owner} has MAC address {mac}, which {other} of network \"{network}\" has already; give each its own"
    )]
    DuplicateMac {
        /// The second owner.
        owner: String,
        /// The first owner.
        other: String,
        /// The network both are in.
        network: String,
        /// The address.
        mac: MacAddr,
    },
    /// An IP address twice in a network.
    #[error(
        "{owner} has address {address}, which {other} of network \"{network}\" has already; give each its own"
    )]
    DuplicateAddress {
        /// The second owner.
        owner: String,
        /// The first owner.
        other: String,
        /// The network both are in.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// An address outside all subnets, or one that no host can have.
    #[error(
        "{owner} has address {address}, which is no host's address in any subnet of network \"{network}\""
    )]
    AddressOutside {
        /// Who has it.
        owner: String,
        /// The network.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// Two ports have one number.
    #[error("Port \"{name}\" has the number of another port, {id}; number each port once")]
    DuplicatePort {
        /// The second port.
        name: String,
        /// The number both have.
        id: PortId,
    },
    /// A port has the uplink's number.
    #[error("Port \"{name}\" has number 0, which is the uplink; number ports from 1")]
    PortIsUplink {
        /// The port.
        name: String,
    },
    /// A port or peer of a network that is not in the topology.
    #[error(
        "{owner} is in {network}, which the topology does not have; add the network or remove it"
    )]
    UnknownNetwork {
        /// Who refers to it.
        owner: String,
        /// The missing network.
        network: NetworkId,
    },
    /// A peer whose tunnel endpoint cannot be reached from here.
    #[error("{owner} is at tunnel endpoint {vtep}; {problem}")]
    Vtep {
        /// The peer.
        owner: String,
        /// Its tunnel endpoint.
        vtep: IpAddr,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An underlay that cannot work.
    #[error("Underlay address {address} {problem}")]
    Underlay {
        /// The host's address.
        address: IpAddr,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// Bytes that VXLAN takes from the underlay's MTU: outer IP, UDP, VXLAN, and the inner Ethernet
/// header.
pub(crate) const fn tunnel_overhead(underlay: IpAddr) -> u16 {
    match underlay {
        IpAddr::V4(_) => 20 + 8 + 8 + 14,
        IpAddr::V6(_) => 40 + 8 + 8 + 14,
    }
}

/// True for an address that a single host can have, and that routers forward.
pub(crate) fn is_host_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first != 0 && first != 127 && first < 224 && !a.is_link_local()
        }
        IpAddr::V6(a) => {
            !a.is_unspecified()
                && !a.is_loopback()
                && !a.is_multicast()
                && !a.is_unicast_link_local()
                && a.to_ipv4_mapped().is_none()
        }
    }
}

/// True where `ip` is inside `prefix` and not its network or broadcast address.
pub(crate) fn usable_in(prefix: &IpNet, ip: IpAddr) -> bool {
    if !prefix.contains(&ip) || !is_host_address(ip) {
        return false;
    }
    match prefix {
        IpNet::V4(p) if p.prefix_len() < 31 => ip != p.network() && ip != p.broadcast(),
        _ => true,
    }
}

/// The stations of one network, by address: for finding what is there twice.
#[derive(Default)]
struct Claims {
    macs: HashMap<MacAddr, String>,
    addresses: HashMap<IpAddr, String>,
}

impl Claims {
    fn mac(&mut self, network: &Network, owner: &str, mac: MacAddr) -> Result<(), TopologyError> {
        if !mac.is_station() {
            return Err(TopologyError::MacKind {
                owner: owner.into(),
                mac,
            });
        }
        match self.macs.insert(mac, owner.into()) {
            None => Ok(()),
            Some(other) => Err(TopologyError::DuplicateMac {
                owner: owner.into(),
                other,
                network: network.name.clone(),
                mac,
            }),
        }
    }

    fn address(&mut self, network: &Network, owner: &str, ip: IpAddr) -> Result<(), TopologyError> {
        if !network.subnets.iter().any(|s| usable_in(&s.prefix, ip)) {
            return Err(TopologyError::AddressOutside {
                owner: owner.into(),
                network: network.name.clone(),
                address: ip,
            });
        }
        match self.addresses.insert(ip, owner.into()) {
            None => Ok(()),
            Some(other) => Err(TopologyError::DuplicateAddress {
                owner: owner.into(),
                other,
                network: network.name.clone(),
                address: ip,
            }),
        }
    }
}

/// Checks the whole of it.
pub(crate) fn validate(topology: &Topology) -> Result<(), TopologyError> {
    if let Some(underlay) = &topology.underlay {
        check_underlay(underlay, topology.networks.iter().any(has_v6))?;
    }
    let mut claims: HashMap<NetworkId, (&Network, Claims)> = HashMap::new();
    let mut vnis: HashMap<u32, &Network> = HashMap::new();
    for network in &topology.networks {
        let mut own = Claims::default();
        check_network(network, &mut own)?;
        if let Some(other) = vnis.insert(network.vni, network) {
            return Err(TopologyError::DuplicateVni {
                network: network.name.clone(),
                other: other.name.clone(),
                vni: network.vni,
            });
        }
        if claims.insert(network.id, (network, own)).is_some() {
            return Err(TopologyError::DuplicateNetwork {
                name: network.name.clone(),
                id: network.id,
            });
        }
    }
    let mut ids = HashSet::new();
    for port in &topology.ports {
        if port.id == PortId::UPLINK {
            return Err(TopologyError::PortIsUplink {
                name: port.name.clone(),
            });
        }
        if !ids.insert(port.id) {
            return Err(TopologyError::DuplicatePort {
                name: port.name.clone(),
                id: port.id,
            });
        }
        let owner = format!("Port \"{}\"", port.name);
        let (network, own) =
            claims
                .get_mut(&port.network)
                .ok_or_else(|| TopologyError::UnknownNetwork {
                    owner: owner.clone(),
                    network: port.network,
                })?;
        own.mac(network, &owner, port.mac)?;
        port.addresses
            .iter()
            .try_for_each(|ip| own.address(network, &owner, *ip))?;
    }
    for peer in &topology.peers {
        let owner = format!("Peer {}", peer.mac);
        let (network, own) =
            claims
                .get_mut(&peer.network)
                .ok_or_else(|| TopologyError::UnknownNetwork {
                    owner: owner.clone(),
                    network: peer.network,
                })?;
        check_vtep(topology.underlay.as_ref(), &owner, peer.vtep)?;
        own.mac(network, &owner, peer.mac)?;
        peer.addresses
            .iter()
            .try_for_each(|ip| own.address(network, &owner, *ip))?;
    }
    Ok(())
}

fn has_v6(network: &Network) -> bool {
    network
        .subnets
        .iter()
        .any(|s| matches!(s.prefix, IpNet::V6(_)))
}

fn check_underlay(underlay: &Underlay, any_v6: bool) -> Result<(), TopologyError> {
    let fail = |problem: String| {
        Err(TopologyError::Underlay {
            address: underlay.address,
            problem,
        })
    };
    if !is_host_address(underlay.address) {
        return fail("is no host's address; use the unicast address of the uplink".into());
    }
    if !underlay.mac.is_station() {
        let owner = format!("Underlay address {}", underlay.address);
        return Err(TopologyError::MacKind {
            owner,
            mac: underlay.mac,
        });
    }
    let Ok(prefix) = IpNet::new(underlay.address, underlay.prefix_len) else {
        let length = underlay.prefix_len;
        return fail(format!(
            "has a prefix of length {length}, which its family does not have"
        ));
    };
    if let Some(gateway) = underlay.gateway
        && (!prefix.contains(&gateway) || gateway == underlay.address)
    {
        let net = prefix.trunc();
        return fail(format!(
            "has gateway {gateway}; use another host's address in {net}"
        ));
    }
    let least = tunnel_overhead(underlay.address) + if any_v6 { MTU_MIN_V6 } else { MTU_MIN };
    if underlay.mtu < least {
        let mtu = underlay.mtu;
        return fail(format!(
            "has MTU {mtu}, too short for VXLAN; raise it to {least} or more"
        ));
    }
    Ok(())
}

fn check_vtep(underlay: Option<&Underlay>, owner: &str, vtep: IpAddr) -> Result<(), TopologyError> {
    let fail = |problem: &str| {
        Err(TopologyError::Vtep {
            owner: owner.into(),
            vtep,
            problem: problem.into(),
        })
    };
    if !is_host_address(vtep) {
        return fail("use the unicast address of its host");
    }
    match underlay {
        Some(u) if u.address == vtep => fail("that is this host; give it as a port instead"),
        Some(u) if u.address.is_ipv4() != vtep.is_ipv4() => {
            fail("this host's underlay is of the other address family; use one family on all hosts")
        }
        _ => Ok(()),
    }
}

fn check_network(network: &Network, claims: &mut Claims) -> Result<(), TopologyError> {
    let name = || network.name.clone();
    if network.vni == 0 || network.vni >> 24 != 0 {
        return Err(TopologyError::VniRange {
            network: name(),
            vni: network.vni,
        });
    }
    let min = if has_v6(network) { MTU_MIN_V6 } else { MTU_MIN };
    if !(min..=MTU_MAX).contains(&network.mtu) {
        return Err(TopologyError::MtuRange {
            network: name(),
            mtu: network.mtu,
            min,
        });
    }
    claims.mac(
        network,
        &format!("Gateway of network \"{}\"", network.name),
        network.gateway_mac,
    )?;
    for (index, subnet) in network.subnets.iter().enumerate() {
        check_subnet(network, subnet, &network.subnets[..index])?;
        let owner = format!("Gateway of subnet {}", subnet.prefix.trunc());
        claims.address(network, &owner, subnet.gateway)?;
    }
    for address in &network.dns {
        if !is_host_address(*address) {
            return Err(TopologyError::Dns {
                network: name(),
                address: *address,
            });
        }
    }
    check_routes(network)
}

fn check_subnet(
    network: &Network,
    subnet: &Subnet,
    before: &[Subnet],
) -> Result<(), TopologyError> {
    let prefix = subnet.prefix.trunc();
    let fail = |problem: String| {
        Err(TopologyError::Subnet {
            network: network.name.clone(),
            prefix,
            problem,
        })
    };
    if prefix.prefix_len() == 0
        || !(is_host_address(prefix.network()) && is_host_address(last_address(&prefix)))
    {
        return fail("holds addresses that no host can have; use a unicast prefix".into());
    }
    if !usable_in(&prefix, subnet.gateway) {
        let gateway = subnet.gateway;
        return fail(format!(
            "has gateway {gateway}; use a host's address inside it"
        ));
    }
    if subnet.slaac && (prefix.prefix_len() != 64 || subnet.gateway.is_ipv4()) {
        return fail("has slaac, which needs an IPv6 prefix of length 64".into());
    }
    let overlap = |other: &&Subnet| {
        other.prefix.contains(&prefix.network()) || prefix.contains(&other.prefix.network())
    };
    match before.iter().find(overlap) {
        Some(other) => {
            let other = other.prefix.trunc();
            fail(format!(
                "overlaps subnet {other}; subnets of one network must not overlap"
            ))
        }
        None => Ok(()),
    }
}

fn last_address(prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(p) => IpAddr::V4(p.broadcast()),
        IpNet::V6(p) => IpAddr::V6(p.broadcast()),
    }
}

fn check_routes(network: &Network) -> Result<(), TopologyError> {
    let mut seen = HashSet::new();
    for route in &network.routes {
        let destination = route.destination.trunc();
        let fail = |problem: String| {
            Err(TopologyError::Route {
                network: network.name.clone(),
                destination,
                problem,
            })
        };
        let next_hop = route.next_hop;
        if destination.addr().is_ipv4() != next_hop.is_ipv4() {
            return fail(format!(
                "has next hop {next_hop} of the other address family"
            ));
        }
        if !network
            .subnets
            .iter()
            .any(|s| usable_in(&s.prefix, next_hop))
        {
            return fail(format!(
                "has next hop {next_hop}; use an address inside a subnet"
            ));
        }
        if network.subnets.iter().any(|s| s.gateway == next_hop) {
            return fail(format!(
                "has next hop {next_hop}, the gateway itself; use a station's"
            ));
        }
        if network
            .subnets
            .iter()
            .any(|s| s.prefix.contains(&destination))
        {
            return fail("lies inside a subnet, whose addresses are all on the network".into());
        }
        if !seen.insert(destination) {
            return fail("is there twice; give each destination one next hop".into());
        }
    }
    Ok(())
}
