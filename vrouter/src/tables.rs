//! The lookups that a topology is compiled into: stations by MAC and address, routes by longest
//! prefix, tunnel endpoints.

use crate::topology::{Network, Peer, Port, Topology};
use crate::validate::tunnel_overhead;
use flow::{MacAddr, PortId};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Behind a port of this host.
    Local(PortId),
    /// Behind this tunnel endpoint.
    Remote(IpAddr),
}

/// A guest's interface, here or on another host.
#[derive(Clone, Debug)]
pub(crate) struct Station {
    pub(crate) place: Place,
    pub(crate) mac: MacAddr,
    /// Where it may send from and be reached: its own addresses, those it forms by SLAAC, and its
    /// link-local address.
    pub(crate) addresses: Vec<IpAddr>,
    /// Prefixes that static routes lead to it.
    pub(crate) routed: Vec<IpNet>,
}

/// What a longest-prefix lookup finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// The destination is on the network itself.
    OnLink,
    /// The station with this address forwards it.
    Via(IpAddr),
}

/// One network, compiled.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) network: Network,
    pub(crate) stations: Vec<Station>,
    by_mac: HashMap<MacAddr, usize>,
    by_address: HashMap<IpAddr, usize>,
    /// Longest prefix first.
    routes: Vec<(IpNet, NextHop)>,
    /// The gateway's addresses, its link-local address included where there is a gateway.
    gateways: HashSet<IpAddr>,
    /// Ports of this host in this network, in order.
    pub(crate) locals: Vec<PortId>,
    /// Tunnel endpoints of the network's peers, each once, in order.
    pub(crate) vteps: Vec<IpAddr>,
}

impl Domain {
    fn new(network: &Network, topology: &Topology) -> Domain {
        let mut domain = Domain {
            network: network.clone(),
            stations: Vec::new(),
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            routes: Vec::new(),
            gateways: network.subnets.iter().map(|s| s.gateway).collect(),
            locals: Vec::new(),
            vteps: Vec::new(),
        };
        for Port {
            id, mac, addresses, ..
        } in in_network(&topology.ports, |p| p.network, network)
        {
            domain.add(Place::Local(*id), *mac, addresses);
            domain.locals.push(*id);
        }
        for Peer {
            vtep,
            mac,
            addresses,
            ..
        } in in_network(&topology.peers, |p| p.network, network)
        {
            domain.add(Place::Remote(*vtep), *mac, addresses);
            domain.vteps.push(*vtep);
        }
        domain.locals.sort_unstable();
        domain.vteps.sort_unstable();
        domain.vteps.dedup();
        domain.routes.extend(
            network
                .subnets
                .iter()
                .map(|s| (s.prefix.trunc(), NextHop::OnLink)),
        );
        domain.routes.extend(
            network
                .routes
                .iter()
                .map(|r| (r.destination.trunc(), NextHop::Via(r.next_hop))),
        );
        domain
            .routes
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        if !domain.is_plain() {
            domain.gateways.insert(domain.link_local().into());
            domain.derive_addresses();
        }
        for route in &network.routes {
            if let Some(index) = domain.by_address.get(&route.next_hop) {
                domain.stations[*index]
                    .routed
                    .push(route.destination.trunc());
            }
        }
        domain
    }

    fn add(&mut self, place: Place, mac: MacAddr, addresses: &[IpAddr]) {
        let index = self.stations.len();
        self.by_mac.insert(mac, index);
        addresses.iter().for_each(|ip| {
            self.by_address.insert(*ip, index);
        });
        let addresses = addresses.to_vec();
        self.stations.push(Station {
            place,
            mac,
            addresses,
            routed: Vec::new(),
        });
    }

    /// Gives each station the addresses that follow from its MAC, where nobody was given them.
    fn derive_addresses(&mut self) {
        let slaac: Vec<Ipv6Addr> = self
            .network
            .subnets
            .iter()
            .filter(|s| s.slaac)
            .filter_map(|s| match s.prefix.network() {
                IpAddr::V6(prefix) => Some(prefix),
                IpAddr::V4(_) => None,
            })
            .collect();
        for (index, station) in self.stations.iter_mut().enumerate() {
            let formed = slaac.iter().map(|prefix| from_eui64(*prefix, station.mac));
            for ip in formed.chain([link_local(station.mac)]).map(IpAddr::V6) {
                if !self.gateways.contains(&ip) && !self.by_address.contains_key(&ip) {
                    self.by_address.insert(ip, index);
                    station.addresses.push(ip);
                }
            }
        }
    }

    /// True for a plain Ethernet: no subnets, so no gateway and no addresses to guard.
    pub(crate) fn is_plain(&self) -> bool {
        self.network.subnets.is_empty()
    }

    /// The link-local address of the gateway.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        link_local(self.network.gateway_mac)
    }

    pub(crate) fn has_v6(&self) -> bool {
        self.network.subnets.iter().any(|s| s.gateway.is_ipv6())
    }

    /// True where guests form their own addresses.
    pub(crate) fn is_slaac(&self, ip: Ipv6Addr) -> bool {
        let mut subnets = self.network.subnets.iter();
        subnets.any(|s| s.slaac && s.prefix.contains(&IpAddr::V6(ip)))
    }

    pub(crate) fn is_gateway(&self, ip: IpAddr) -> bool {
        self.gateways.contains(&ip)
    }

    pub(crate) fn station_by_mac(&self, mac: MacAddr) -> Option<&Station> {
        self.by_mac.get(&mac).map(|index| &self.stations[*index])
    }

    pub(crate) fn station_by_address(&self, ip: IpAddr) -> Option<&Station> {
        self.by_address.get(&ip).map(|index| &self.stations[*index])
    }

    /// Who has this address: the gateway's MAC or a station's.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<MacAddr> {
        if self.is_gateway(ip) {
            return Some(self.network.gateway_mac);
        }
        self.station_by_address(ip).map(|s| s.mac)
    }

    /// The longest prefix that holds the address.
    pub(crate) fn route(&self, ip: IpAddr) -> Option<(IpNet, NextHop)> {
        self.routes
            .iter()
            .find(|(prefix, _)| prefix.contains(&ip))
            .copied()
    }

    /// True where a static route leads to the station that sends, so that others' packets may
    /// come from it: not those of addresses on the network itself.
    pub(crate) fn may_forward_for(&self, station: &Station, ip: IpAddr) -> bool {
        station.routed.iter().any(|prefix| prefix.contains(&ip))
            && matches!(self.route(ip), Some((_, NextHop::Via(via)))
                if station.addresses.contains(&via))
    }

    /// The gateway of the subnet that holds `ip`, or else of one that holds an address of
    /// `station`, or else of any subnet of that family.
    pub(crate) fn gateway_for(&self, ip: IpAddr, station: &Station) -> Option<IpAddr> {
        if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Some(self.link_local().into());
        }
        let family = || {
            self.network
                .subnets
                .iter()
                .filter(|s| s.gateway.is_ipv4() == ip.is_ipv4())
        };
        family()
            .find(|s| s.prefix.contains(&ip))
            .or_else(|| {
                family().find(|s| station.addresses.iter().any(|own| s.prefix.contains(own)))
            })
            .or_else(|| family().next())
            .map(|s| s.gateway)
    }
}

fn in_network<'a, T>(
    all: &'a [T],
    of: impl Fn(&T) -> crate::NetworkId,
    network: &Network,
) -> impl Iterator<Item = &'a T> {
    let id = network.id;
    all.iter().filter(move |one| of(one) == id)
}

fn from_eui64(prefix: Ipv6Addr, mac: MacAddr) -> Ipv6Addr {
    let mut octets = prefix.octets();
    octets[8..].copy_from_slice(&mac.eui64());
    octets.into()
}

/// The link-local address made of a MAC (RFC 4291 section 2.5.6 and appendix A).
pub(crate) fn link_local(mac: MacAddr) -> Ipv6Addr {
    from_eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// A port of this host and where the tables have it.
#[derive(Clone, Copy, Debug)]
struct PortEntry {
    port: usize,
    domain: usize,
    station: usize,
}

/// A port of this host, its network and its station.
#[derive(Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) port: &'a Port,
    pub(crate) domain: &'a Domain,
    pub(crate) station: &'a Station,
}

impl Guest<'_> {
    /// The IPv4 address that DHCP hands out.
    pub(crate) fn v4(&self) -> Option<Ipv4Addr> {
        self.port.addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The IPv6 address that DHCPv6 hands out.
    pub(crate) fn v6(&self) -> Option<Ipv6Addr> {
        self.port.addresses.iter().find_map(|ip| match ip {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    }

    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        self.station.addresses.contains(&ip)
    }
}

/// A topology, compiled.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) topology: Topology,
    domains: Vec<Domain>,
    by_vni: HashMap<u32, usize>,
    ports: HashMap<PortId, PortEntry>,
    neighbours: HashMap<IpAddr, MacAddr>,
    /// Every next hop that peers need, each once, in order.
    next_hops: Vec<IpAddr>,
}

impl Tables {
    /// Compiles a topology that was validated.
    pub(crate) fn new(topology: Topology) -> Tables {
        let domains: Vec<Domain> = topology
            .networks
            .iter()
            .map(|n| Domain::new(n, &topology))
            .collect();
        let by_vni = domains
            .iter()
            .enumerate()
            .map(|(i, d)| (d.network.vni, i))
            .collect();
        let by_id: HashMap<_, _> = domains
            .iter()
            .enumerate()
            .map(|(i, d)| (d.network.id, i))
            .collect();
        let ports = topology
            .ports
            .iter()
            .enumerate()
            .filter_map(|(index, port)| {
                let domain = *by_id.get(&port.network)?;
                let station = *domains[domain].by_mac.get(&port.mac)?;
                Some((
                    port.id,
                    PortEntry {
                        port: index,
                        domain,
                        station,
                    },
                ))
            });
        let ports = ports.collect();
        let neighbours = topology
            .underlay
            .iter()
            .flat_map(|u| u.neighbours.iter().copied())
            .collect();
        let mut tables = Tables {
            topology,
            domains,
            by_vni,
            ports,
            neighbours,
            next_hops: vec![],
        };
        let vteps = tables.domains.iter().flat_map(|d| &d.vteps);
        let mut hops: Vec<IpAddr> = vteps.filter_map(|vtep| tables.next_hop(*vtep)).collect();
        hops.sort_unstable();
        hops.dedup();
        tables.next_hops = hops;
        tables
    }

    pub(crate) fn guest(&self, id: PortId) -> Option<Guest<'_>> {
        let entry = self.ports.get(&id)?;
        let domain = &self.domains[entry.domain];
        let (port, station) = (
            &self.topology.ports[entry.port],
            &domain.stations[entry.station],
        );
        Some(Guest {
            port,
            domain,
            station,
        })
    }

    /// Every port, in the topology's order.
    pub(crate) fn guests(&self) -> impl Iterator<Item = Guest<'_>> {
        self.topology
            .ports
            .iter()
            .filter_map(|port| self.guest(port.id))
    }

    pub(crate) fn domain_by_vni(&self, vni: u32) -> Option<&Domain> {
        self.by_vni.get(&vni).map(|index| &self.domains[*index])
    }

    /// The underlay's next hop towards a tunnel endpoint.
    pub(crate) fn next_hop(&self, vtep: IpAddr) -> Option<IpAddr> {
        let underlay = self.topology.underlay.as_ref()?;
        let on_link = IpNet::new(underlay.address, underlay.prefix_len)
            .ok()?
            .contains(&vtep);
        if on_link {
            Some(vtep)
        } else {
            underlay.gateway
        }
    }

    /// The MAC of the next hop towards a tunnel endpoint, where it is resolved.
    pub(crate) fn next_hop_mac(&self, vtep: IpAddr) -> Option<MacAddr> {
        self.neighbours.get(&self.next_hop(vtep)?).copied()
    }

    /// Every next hop that peers need, each once, in order.
    pub(crate) fn next_hops(&self) -> &[IpAddr] {
        &self.next_hops
    }

    /// The longest IP packet that fits into the tunnel, for a frame without a VLAN tag.
    pub(crate) fn tunnel_mtu(&self) -> Option<u16> {
        let underlay = self.topology.underlay.as_ref()?;
        Some(
            underlay
                .mtu
                .saturating_sub(tunnel_overhead(underlay.address)),
        )
    }
}
