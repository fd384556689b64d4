//! What the parts of a file must be to each other: names that exist, addresses that fit and are
//! nobody else's.

use super::Underlay;
use super::resources::{FileNetwork, Resources};
use crate::desired::{valid_name, vxlan_overhead};
use checked_toml::{At, Collector, suggestion};
use flow::MacAddr;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

/// Checks networks, ports and peers together.
pub(super) fn resources(
    file: &Resources,
    underlay: Option<(&Underlay, Range<usize>)>,
    out: &mut Collector<'_>,
) {
    let underlay = underlay.map(|(underlay, _)| underlay);
    let mut names: HashMap<&str, &FileNetwork> = HashMap::new();
    let mut vnis: HashMap<u64, &str> = HashMap::new();
    for network in &file.networks {
        let name = network.name.value.as_str();
        if !valid_name(name) {
            out.add(
                network.name.span.clone(),
                "A network's name is 1 to 63 of a-z, 0-9 and -, and starts with a letter",
            );
        }
        if names.insert(name, network).is_some() {
            out.add(
                network.name.span.clone(),
                format!("There is already a network \"{name}\""),
            );
        }
        if let Some(vni) = &network.vni
            && let Some(other) = vnis.insert(vni.value, name)
        {
            out.add(
                vni.span.clone(),
                format!("VNI {} is already that of network \"{other}\"", vni.value),
            );
        }
        one_network(network, underlay, out);
    }
    ends(file, &names, underlay, out);
}

fn one_network(network: &FileNetwork, underlay: Option<&Underlay>, out: &mut Collector<'_>) {
    let name = &network.name.value;
    if let Some(mac) = &network.gateway_mac {
        station(mac, out);
    }
    if let (Some(mtu), Some(underlay)) = (&network.mtu, underlay)
        && let (Some(below), Some(address)) = (underlay.mtu, underlay.address)
    {
        let most = below.saturating_sub(vxlan_overhead(address.addr()));
        if mtu.value > u64::from(most) {
            out.add(
                mtu.span.clone(),
                format!(
                    "An MTU of {} does not fit the underlay's {below}: VXLAN leaves {most}",
                    mtu.value
                ),
            );
        }
    }
    let mut prefixes: Vec<IpNet> = Vec::new();
    for subnet in &network.subnets {
        let prefix = subnet.cidr.value;
        let span = || subnet.cidr.span.clone();
        if prefix.trunc() != prefix {
            out.add(
                span(),
                format!(
                    "{prefix} has host bits set; the prefix is {}",
                    prefix.trunc()
                ),
            );
        }
        let first = prefix.network();
        if first.is_multicast() || first.is_loopback() || prefix.prefix_len() == 0 {
            out.add(span(), format!("{prefix} cannot be a subnet of guests"));
        }
        for other in &prefixes {
            if other.contains(&prefix.network()) || prefix.contains(&other.network()) {
                out.add(
                    span(),
                    format!("{prefix} overlaps with {other} of network \"{name}\""),
                );
            }
        }
        prefixes.push(prefix);
        if let Some(gateway) = &subnet.gateway
            && !prefix.contains(&gateway.value)
        {
            out.add(
                gateway.span.clone(),
                format!("The gateway {} is outside of {prefix}", gateway.value),
            );
        }
        if let Some(slaac) = subnet.slaac.as_ref().filter(|at| at.value)
            && !(matches!(prefix, IpNet::V6(_)) && prefix.prefix_len() == 64)
        {
            out.add(
                slaac.span.clone(),
                format!("SLAAC needs an IPv6 /64, and {prefix} is none"),
            );
        }
        if let (IpNet::V6(_), Some(mtu)) = (prefix, &network.mtu)
            && mtu.value < 1280
        {
            out.add(
                mtu.span.clone(),
                format!("IPv6 needs an MTU of at least 1280, and {prefix} is IPv6"),
            );
        }
    }
    for route in &network.routes {
        if route.destination.value.addr().is_ipv4() != route.next_hop.value.is_ipv4() {
            out.add(
                route.next_hop.span.clone(),
                format!(
                    "The next hop {} is not of the family of {}",
                    route.next_hop.value, route.destination.value
                ),
            );
        }
    }
}

/// Ports and peers: both are ends in a network, with a MAC and addresses of their own.
fn ends(
    file: &Resources,
    networks: &HashMap<&str, &FileNetwork>,
    underlay: Option<&Underlay>,
    out: &mut Collector<'_>,
) {
    let mut taken = Taken::default();
    let mut names: HashMap<&str, ()> = HashMap::new();
    let mut sockets: HashMap<&str, &str> = HashMap::new();
    for port in &file.ports {
        let name = port.name.value.as_str();
        if !valid_name(name) {
            out.add(
                port.name.span.clone(),
                "A port's name is 1 to 63 of a-z, 0-9 and -, and starts with a letter",
            );
        }
        if names.insert(name, ()).is_some() {
            out.add(
                port.name.span.clone(),
                format!("There is already a port \"{name}\""),
            );
        }
        if let Some(socket) = &port.socket {
            let path = socket.value.as_str();
            if !path.starts_with('/') {
                out.add(
                    socket.span.clone(),
                    format!("The socket \"{path}\" must be an absolute path"),
                );
            } else if let Some(other) = sockets.insert(path, name) {
                out.add(
                    socket.span.clone(),
                    format!("{path} is already the socket of port \"{other}\""),
                );
            }
        }
        let who = format!("port \"{name}\"");
        taken.end(
            &who,
            &port.network,
            &port.mac,
            &port.addresses,
            networks,
            out,
        );
    }
    let own = underlay.and_then(|u| u.address).map(|a| a.addr());
    for peer in &file.peers {
        let who = peer
            .mac
            .as_ref()
            .map_or("a peer".to_owned(), |at| format!("peer {}", at.value));
        taken.end(
            &who,
            &peer.network,
            &peer.mac,
            &peer.addresses,
            networks,
            out,
        );
        let Some(vtep) = &peer.vtep else { continue };
        if underlay.is_none() {
            out.add(
                vtep.span.clone(),
                "A peer needs [underlay]: without it no other host is reached",
            );
        } else if own == Some(vtep.value) {
            out.add(
                vtep.span.clone(),
                format!(
                    "{} is this host's own address; make it a [[port]]",
                    vtep.value
                ),
            );
        } else if own.is_some_and(|own| own.is_ipv4() != vtep.value.is_ipv4()) {
            out.add(
                vtep.span.clone(),
                format!(
                    "{} is not of the family of the underlay's address",
                    vtep.value
                ),
            );
        }
    }
}

#[derive(Default)]
struct Taken<'f> {
    macs: HashMap<(&'f str, MacAddr), String>,
    addresses: HashMap<(&'f str, IpAddr), String>,
}

impl<'f> Taken<'f> {
    fn end(
        &mut self,
        who: &str,
        network: &'f Option<At<String>>,
        mac: &Option<At<MacAddr>>,
        addresses: &[At<IpAddr>],
        networks: &HashMap<&str, &FileNetwork>,
        out: &mut Collector<'_>,
    ) {
        let Some(network) = network else { return };
        let id = network.value.as_str();
        let found = networks.get(id);
        if found.is_none() {
            let known: Vec<&str> = networks.keys().copied().collect();
            let way_out = match suggestion(id, &known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "add it as [[network]]".to_owned(),
            };
            let shown: String = id.chars().take(64).collect();
            out.add(
                network.span.clone(),
                format!("There is no network \"{shown}\"; {way_out}"),
            );
        }
        if let Some(mac) = mac {
            station(mac, out);
            if let Some(other) = self.macs.insert((id, mac.value), who.to_owned()) {
                out.add(
                    mac.span.clone(),
                    format!("{} is already the MAC of {other}", mac.value),
                );
            }
        }
        for address in addresses {
            let ip = address.value;
            if let Some(other) = self.addresses.insert((id, ip), who.to_owned()) {
                out.add(
                    address.span.clone(),
                    format!("{ip} is already an address of {other}"),
                );
            }
            let Some(network) = found else { continue };
            match network
                .subnets
                .iter()
                .find(|subnet| subnet.cidr.value.contains(&ip))
            {
                None => out.add(
                    address.span.clone(),
                    format!("{ip} is in no subnet of network \"{id}\""),
                ),
                Some(subnet) if subnet.gateway() == ip => {
                    out.add(
                        address.span.clone(),
                        format!("{ip} is the gateway of network \"{id}\""),
                    );
                }
                Some(_) => {}
            }
        }
    }
}

fn station(mac: &At<MacAddr>, out: &mut Collector<'_>) {
    if !mac.value.is_station() {
        out.add(
            mac.span.clone(),
            format!(
                "{} is a group address or zero, and no station can have it",
                mac.value
            ),
        );
    }
}
