//! Packets out of VXLAN: checked against what is known of the sending host, delivered by their
//! inner destination MAC. Routing, answering and TTLs were the business of that host.

use crate::explain::Trace;
use crate::forward::outputs;
use crate::input::Input;
use crate::router::is_to_dhcp_client;
use crate::tables::{Domain, Place, Tables};
use crate::verdict::Verdict;
use flow::wire::icmp::v6;
use flow::wire::{ethertype, protocol};
use flow::{Action, DropReason, FlowKey, Fragment};

/// Decides about a packet that came in a tunnel. Drops are not installed: anybody in the underlay
/// can send them.
pub(crate) fn decide(tables: &Tables, input: Input, trace: &mut Trace) -> Verdict {
    match check(tables, input.key(), trace) {
        Ok(domain) => deliver(domain, input.key(), trace),
        Err(reason) => Verdict::Drop(reason),
    }
}

fn check<'a>(
    tables: &'a Tables,
    key: &FlowKey,
    trace: &mut Trace,
) -> Result<&'a Domain, DropReason> {
    let (from, to) = (key.tunnel.src.to_ip(), key.tunnel.dst.to_ip());
    trace.note(|| format!("The packet came in VXLAN {} from {from}.", key.tunnel.vni));
    if tables
        .topology
        .underlay
        .as_ref()
        .is_none_or(|underlay| underlay.address != to)
    {
        trace.note(|| format!("It is addressed to {to}, which is not this host."));
        return Err(DropReason::NotForUs);
    }
    let Some(domain) = tables.domain_by_vni(key.tunnel.vni) else {
        trace.note(|| "No network here has this VNI.".into());
        return Err(DropReason::UnknownVni);
    };
    trace.note(|| format!("The VNI is that of network \"{}\".", domain.network.name));
    if domain.vteps.binary_search(&from).is_err() {
        trace.note(|| format!("No station of the network is on a host at {from}."));
        return Err(DropReason::UnknownTunnelSource);
    }
    let routed = key.eth_src == domain.network.gateway_mac && !domain.is_plain();
    let sender = domain
        .station_by_mac(key.eth_src)
        .map(|station| station.place);
    if !(sender == Some(Place::Remote(from)) || (routed && !key.eth_dst.is_group())) {
        trace.note(|| format!("Source MAC {} is not of a station there.", key.eth_src));
        return Err(DropReason::SpoofedMac);
    }
    if !domain.is_plain() {
        carried(key, trace)?;
    }
    Ok(domain)
}

/// In a network with subnets each host answers its own guests, so what configures guests has no
/// business in the tunnel.
fn carried(key: &FlowKey, trace: &mut Trace) -> Result<(), DropReason> {
    if key.vlan != 0
        || !matches!(
            key.ethertype,
            ethertype::ARP | ethertype::IPV4 | ethertype::IPV6
        )
    {
        trace.note(|| "A network with subnets carries untagged IP only.".into());
        return Err(DropReason::UnsupportedProtocol);
    }
    let neighbour_discovery = key.protocol == protocol::ICMPV6
        && key.fragment != Fragment::Later
        && (v6::ROUTER_SOLICIT..=v6::REDIRECT).contains(&(key.src_port as u8));
    let local = key.ethertype == ethertype::ARP
        || (key.ethertype == ethertype::IPV6 && neighbour_discovery)
        || is_to_dhcp_client(key);
    if local {
        trace.note(|| "ARP, neighbour discovery and DHCP stay on their host.".into());
        return Err(DropReason::NotForwardable);
    }
    Ok(())
}

fn deliver(domain: &Domain, key: &FlowKey, trace: &mut Trace) -> Verdict {
    let mut actions = vec![Action::CheckMtu(domain.network.mtu)];
    if key.eth_dst.is_group() {
        trace.note(|| format!("A group address: to {} ports here.", domain.locals.len()));
        actions.extend(outputs(domain, None));
    } else if let Some(Place::Local(port)) = domain
        .station_by_mac(key.eth_dst)
        .map(|station| station.place)
    {
        trace.note(|| format!("Destination MAC {} is behind {port}.", key.eth_dst));
        actions.push(Action::Output(port));
    }
    if actions.len() == 1 {
        trace.note(|| format!("No port here has destination MAC {}.", key.eth_dst));
        return Verdict::Drop(DropReason::UnknownDestination);
    }
    // What arrives is the inner packet in its tunnel.
    actions.insert(0, Action::DecapVxlan);
    Verdict::Flow { key: *key, actions }
}
