//! Virtual networks with their subnets.

use std::net::IpAddr;
use std::sync::Arc;

use api::v1;
use ipnet::IpNet;
use uuid::Uuid;

use crate::mac::Mac;
use crate::plan::{check_revision, fields, find, next_revision, some_names};
use crate::records::{Network, Route, Subnet};
use crate::refusal::Refusal;
use crate::state::{Change, MAX_VNI, State};
use crate::store::Plan;
use crate::views;

/// The MTU while no host has reported its underlay's: VXLAN over Ethernet's 1500.
const DEFAULT_MTU: u32 = 1450;
/// Every IPv4 host takes datagrams of this size (RFC 1122, 3.3.2).
const MIN_MTU_V4: u32 = 576;
/// Every IPv6 link carries packets of this size (RFC 8200, 5).
const MIN_MTU_V6: u32 = 1280;
/// The most that the hosts' virtual routers take.
const MAX_MTU: u32 = 65000;
const MAX_SUBNETS: usize = 16;
const MAX_DNS: usize = 8;
const MAX_ROUTES: usize = 64;
/// IEEE 802.1Q-2018, table 9-2: 4095 is reserved.
const MAX_VLAN: u32 = 4094;

/// Finds a network by id or name.
///
/// # Errors
/// Not found.
pub fn network<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Network>, Refusal> {
    let id = find(
        "network",
        state.network_names(),
        |id| state.network(id).is_some(),
        reference,
    )?;
    state.network(id).ok_or_else(|| {
        Refusal::internal(format!(
            "Network {id} is in an index only; restart the controller"
        ))
    })
}

fn check_name(state: &State, name: &str) -> Result<(), Refusal> {
    fields::name("network", name)?;
    if state.network_names().contains_key(name) {
        return Err(Refusal::taken(format!(
            "Network {name} exists already; choose another name or use that network"
        )));
    }
    Ok(())
}

fn subnet(network: &str, subnet: &v1::Subnet) -> Result<Subnet, Refusal> {
    let prefix = fields::prefix("subnet", &subnet.cidr)?;
    let (shortest, longest) = match prefix {
        IpNet::V4(_) => (1, 30),
        IpNet::V6(_) => (8, 126),
    };
    if !(shortest..=longest).contains(&prefix.prefix_len()) {
        return Err(Refusal::invalid(format!(
            "Subnet {prefix} of network {network} cannot hold a gateway and ports; use a prefix length from {shortest} to {longest}"
        )));
    }
    if subnet.slaac && (prefix.addr().is_ipv4() || prefix.prefix_len() != 64) {
        return Err(Refusal::invalid(format!(
            "Subnet {prefix} of network {network} cannot use SLAAC, which needs an IPv6 /64; use a /64 or leave SLAAC out for DHCP"
        )));
    }
    let mut subnet = Subnet {
        prefix,
        gateway: prefix.addr(),
        slaac: subnet.slaac,
    };
    let (first, last) = subnet.usable();
    subnet.gateway = first;
    // Also says whether the prefix is one of unicast addresses.
    fields::address("address in subnet", &first.to_string())?;
    fields::address("address in subnet", &last.to_string())?;
    Ok(subnet)
}

fn subnets(network: &str, requested: &[v1::Subnet]) -> Result<Vec<Subnet>, Refusal> {
    fields::at_most("subnets", requested.len(), MAX_SUBNETS)?;
    let mut all: Vec<Subnet> = Vec::new();
    for request in requested {
        let mut subnet = subnet(network, request)?;
        if !request.gateway.is_empty() {
            let gateway = fields::address("gateway", &request.gateway)?;
            let (first, last) = subnet.usable();
            if gateway.is_ipv4() != first.is_ipv4() || !(first..=last).contains(&gateway) {
                return Err(Refusal::invalid(format!(
                    "Gateway {gateway} cannot be used in subnet {} of network {network}; use an address from {first} to {last}",
                    subnet.prefix
                )));
            }
            subnet.gateway = gateway;
        }
        let overlaps = |other: &&Subnet| {
            other.prefix.contains(&subnet.prefix) || subnet.prefix.contains(&other.prefix)
        };
        if let Some(other) = all.iter().find(overlaps) {
            return Err(Refusal::invalid(format!(
                "Subnets {} and {} of network {network} overlap; use prefixes that do not",
                other.prefix, subnet.prefix
            )));
        }
        all.push(subnet);
    }
    Ok(all)
}

fn dns(requested: &[String]) -> Result<Vec<IpAddr>, Refusal> {
    fields::at_most("name servers", requested.len(), MAX_DNS)?;
    requested
        .iter()
        .map(|text| fields::address("name server", text))
        .collect()
}

fn routes(
    network: &str,
    requested: &[v1::Route],
    subnets: &[Subnet],
) -> Result<Vec<Route>, Refusal> {
    fields::at_most("routes", requested.len(), MAX_ROUTES)?;
    let mut routes: Vec<Route> = Vec::new();
    for route in requested {
        let destination = fields::prefix("route destination", &route.destination)?;
        let next_hop = fields::address("next hop", &route.next_hop)?;
        let same_family = destination.addr().is_ipv4() == next_hop.is_ipv4();
        if !same_family
            || !subnets
                .iter()
                .any(|subnet| subnet.prefix.contains(&next_hop))
        {
            return Err(Refusal::invalid(format!(
                "The route to {destination} in network {network} goes to {next_hop}, which is in none of the network's subnets of that family; use a next hop in one"
            )));
        }
        // The rest is what the hosts' virtual routers would refuse, and the whole network with it.
        if let Some(subnet) = subnets.iter().find(|subnet| {
            let (first, last) = subnet.usable();
            subnet.prefix.contains(&next_hop)
                && (subnet.gateway == next_hop || !(first..=last).contains(&next_hop))
        }) {
            return Err(Refusal::invalid(format!(
                "The route to {destination} in network {network} goes to {next_hop}, which is the network, broadcast or gateway address of subnet {}; use a next hop that a guest can have, guests use the gateway without a route",
                subnet.prefix
            )));
        }
        if let Some(subnet) = subnets
            .iter()
            .find(|subnet| subnet.prefix.contains(&destination))
        {
            return Err(Refusal::invalid(format!(
                "The route to {destination} in network {network} lies inside subnet {}, whose addresses are all on the network; leave the route out",
                subnet.prefix
            )));
        }
        if routes.iter().any(|other| other.destination == destination) {
            return Err(Refusal::invalid(format!(
                "The route to {destination} in network {network} is there twice; give each destination one next hop"
            )));
        }
        routes.push(Route {
            destination,
            next_hop,
        });
    }
    Ok(routes)
}

/// Checks the MTU, or picks it when 0 is asked.
fn mtu(state: &State, network: &str, asked: u32, subnets: &[Subnet]) -> Result<u32, Refusal> {
    let v6 = subnets.iter().any(|subnet| subnet.prefix.addr().is_ipv6());
    let least = if v6 { MIN_MTU_V6 } else { MIN_MTU_V4 };
    let tightest = state
        .hosts()
        .filter_map(|host| Some((host.largest_mtu()?, host)))
        .min_by_key(|(mtu, _)| *mtu);
    let mtu = match (asked, &tightest) {
        (0, Some((largest, _))) => (*largest).min(MAX_MTU),
        (0, None) => DEFAULT_MTU,
        _ => asked,
    };
    if let Some((largest, host)) =
        tightest.filter(|(largest, _)| mtu > *largest || *largest < least)
    {
        return Err(Refusal::precondition(format!(
            "Network {network} would need an underlay MTU of {}, but host {} has {}; {}",
            mtu.max(least).saturating_add(host.encapsulation()),
            host.name,
            host.underlay_mtu,
            if largest >= least {
                format!("ask for an MTU of {largest} or less, or raise the underlay's")
            } else {
                "raise the underlay's MTU".into()
            }
        )));
    }
    if !(least..=MAX_MTU).contains(&mtu) {
        let family = if v6 { "with IPv6 " } else { "" };
        return Err(Refusal::invalid(format!(
            "Network {network} cannot have MTU {mtu}; a network {family}takes {least} to {MAX_MTU}, and 0 picks the best"
        )));
    }
    Ok(mtu)
}

/// Checks a provider VLAN; 0 is none.
fn vlan(state: &State, network: &str, asked: u32) -> Result<u32, Refusal> {
    if asked > MAX_VLAN {
        return Err(Refusal::invalid(format!(
            "Network {network} cannot have VLAN {asked}; use 1 to {MAX_VLAN}, or 0 for none"
        )));
    }
    // Two networks in one VLAN would hear each other.
    let other = state
        .networks()
        .find(|other| asked != 0 && other.vlan == asked && other.name != network);
    match other {
        Some(other) => Err(Refusal::taken(format!(
            "VLAN {asked} is network {}'s; choose another, or 0 for none",
            other.name
        ))),
        None => Ok(asked),
    }
}

/// A VF keeps the VLAN that it was given, so the network's must not change under it.
fn check_vlan_in_use(state: &State, old: &Network) -> Result<(), Refusal> {
    let ports = state.ports_in(old.id).into_iter().flatten();
    let with_vf = ports.filter(|(_, id)| state.port(**id).is_some_and(|port| port.uses_vf()));
    let names: Vec<&String> = with_vf.map(|(name, _)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Refusal::precondition(format!(
        "VLAN {} of network {} is set on the VFs of its ports: {}; delete them first",
        old.vlan,
        old.name,
        some_names(names.into_iter())
    )))
}

/// Creates a network.
///
/// # Errors
/// Anything wrong with a field, a taken name, VNI or VLAN, an MTU above an underlay's.
pub fn create(
    state: &State,
    plan: &mut Plan,
    request: &v1::CreateNetworkRequest,
) -> Result<Arc<Network>, Refusal> {
    let name = &request.name;
    check_name(state, name)?;
    let subnets = subnets(name, &request.subnets)?;
    let dns = dns(&request.dns)?;
    let routes = routes(name, &request.routes, &subnets)?;
    let mtu = mtu(state, name, request.mtu, &subnets)?;
    let vlan = vlan(state, name, request.vlan)?;
    let vni = match request.vni {
        0 => state.free_vni().ok_or_else(|| {
            Refusal::exhausted(format!(
                "No VNI is free for network {name}; delete networks that are not used"
            ))
        })?,
        vni if vni > MAX_VNI => {
            return Err(Refusal::invalid(format!(
                "Network {name} cannot have VNI {vni}; use 1 to {MAX_VNI}, or 0 to have one picked"
            )));
        }
        vni => match state.network_of_vni(vni) {
            Some(other) => {
                return Err(Refusal::taken(format!(
                    "VNI {vni} is network {}'s; choose another, or 0 to have one picked",
                    other.name
                )));
            }
            None => vni,
        },
    };
    let id = Uuid::new_v4();
    let gateway_mac = (0..)
        .map(|probe| Mac::derived(id, probe))
        .find(|mac| !state.mac_taken(*mac));
    let gateway_mac = gateway_mac
        .ok_or_else(|| Refusal::exhausted("No MAC is free; delete ports that are not used"))?;
    let network = Arc::new(Network {
        id,
        name: name.clone(),
        revision: next_revision(state),
        vni,
        mtu,
        subnets,
        dns,
        routes,
        gateway_mac,
        vlan,
    });
    plan.push(Change::PutNetwork(network.clone()));
    Ok(network)
}

/// Changes a network. Ports keep their addresses, so a subnet that has some can get another gateway, but
/// neither go nor change its length or its way of addressing.
///
/// # Errors
/// Not found, stale, in use, and all of [`create`].
pub fn update(
    state: &State,
    plan: &mut Plan,
    request: &v1::UpdateNetworkRequest,
) -> Result<Arc<Network>, Refusal> {
    let old = network(state, &request.r#ref)?;
    check_revision("network", &old.name, request.revision, old.revision)?;
    let mut new = Network::clone(old);
    if let Some(name) = request.name.as_ref().filter(|name| **name != old.name) {
        check_name(state, name)?;
        new.name.clone_from(name);
    }
    if request.set_subnets {
        new.subnets = subnets(&old.name, &request.subnets)?;
        check_subnets_in_use(state, old, &new.subnets)?;
    }
    if request.set_dns {
        new.dns = dns(&request.dns)?;
    }
    if request.set_routes {
        new.routes = routes(&old.name, &request.routes, &new.subnets)?;
    } else if request.set_subnets {
        let kept = views::network(&new).routes;
        new.routes = routes(&old.name, &kept, &new.subnets)?;
    }
    if request.mtu.is_some() || request.set_subnets {
        new.mtu = mtu(
            state,
            &old.name,
            request.mtu.unwrap_or(old.mtu),
            &new.subnets,
        )?;
    }
    if let Some(asked) = request.vlan.filter(|asked| *asked != old.vlan) {
        new.vlan = vlan(state, &old.name, asked)?;
        check_vlan_in_use(state, old)?;
    }
    if new == **old {
        return Ok(old.clone());
    }
    new.revision = next_revision(state);
    let new = Arc::new(new);
    plan.push(Change::PutNetwork(new.clone()));
    Ok(new)
}

fn check_subnets_in_use(state: &State, old: &Network, new: &[Subnet]) -> Result<(), Refusal> {
    let ports = state
        .ports_in(old.id)
        .into_iter()
        .flat_map(|ports| ports.values())
        .filter_map(|&id| state.port(id));
    for port in ports {
        for address in &port.addresses {
            let Some(was) = old
                .subnets
                .iter()
                .find(|subnet| subnet.prefix.contains(address))
            else {
                continue;
            };
            let is = new.iter().find(|subnet| subnet.prefix == was.prefix);
            if is.is_none_or(|is| is.slaac != was.slaac) {
                return Err(Refusal::precondition(format!(
                    "Subnet {} of network {} is used by port {} ({address}); delete its ports before the subnet goes or changes",
                    was.prefix, old.name, port.name
                )));
            }
            if new.iter().any(|subnet| subnet.gateway == *address) {
                return Err(Refusal::precondition(format!(
                    "Gateway {address} of network {} is the address of port {}; choose another gateway or delete the port",
                    old.name, port.name
                )));
            }
        }
    }
    Ok(())
}

/// Deletes a network without ports.
///
/// # Errors
/// Not found, stale, in use.
pub fn delete(state: &State, plan: &mut Plan, request: &v1::DeleteRequest) -> Result<(), Refusal> {
    let old = network(state, &request.r#ref)?;
    check_revision("network", &old.name, request.revision, old.revision)?;
    if let Some(ports) = state.ports_in(old.id) {
        return Err(Refusal::precondition(format!(
            "Network {} has ports: {}; delete them first",
            old.name,
            some_names(ports.keys())
        )));
    }
    plan.push(Change::DeleteNetwork(old.id));
    Ok(())
}
