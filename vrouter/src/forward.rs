//! Forwarding: by destination MAC inside a network, by longest prefix through the gateway, to all
//! for groups. Each ends in an action list.

use crate::explain::Trace;
use crate::input::Input;
use crate::router::drop_flow;
use crate::tables::{Domain, Guest, NextHop, Place, Station, Tables};
use crate::validate::is_host_address;
use crate::verdict::Verdict;
use flow::entropy_port;
use flow::{Action, DropReason, MacAddr, PortId, Vxlan};
use std::net::{IpAddr, Ipv6Addr};

/// Outer TTL of tunnel packets.
const TUNNEL_TTL: u8 = 64;

/// Forwards a guest's packet whose source was checked.
pub(crate) fn forward(tables: &Tables, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let key = input.key();
    let domain = guest.domain;
    if is_bridge_reserved(key.eth_dst) {
        trace.note(|| format!("{} never leaves its link.", key.eth_dst));
        return drop_flow(key, DropReason::NotForwardable);
    }
    if key.eth_dst.is_group() {
        return flood(tables, guest, input, trace);
    }
    if key.eth_dst == domain.network.gateway_mac && !domain.is_plain() {
        return route(tables, guest, input, trace);
    }
    let Some(station) = domain.station_by_mac(key.eth_dst) else {
        trace.note(|| format!("No station in the network has MAC {}.", key.eth_dst));
        return drop_flow(key, DropReason::UnknownDestination);
    };
    trace.note(|| format!("Destination MAC {} is {}.", key.eth_dst, place(station)));
    deliver(tables, guest, station, &[], input, trace)
}

fn place(station: &Station) -> String {
    match station.place {
        Place::Local(port) => format!("behind {port} of this host"),
        Place::Remote(vtep) => format!("on the host at {vtep}"),
    }
}

/// IEEE 802.1Q table 8-1: what bridges do not relay.
fn is_bridge_reserved(mac: MacAddr) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
}

fn route(tables: &Tables, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let (key, domain) = (input.key(), guest.domain);
    let dst = input.dst();
    let scoped = |ip| matches!(ip, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(&v6));
    if !is_host_address(dst) || scoped(input.src()) {
        trace.note(|| format!("Packets from {} to {dst} are not routed.", input.src()));
        return drop_flow(key, DropReason::NotForwardable);
    }
    let Some((prefix, next_hop)) = domain.route(dst) else {
        trace.note(|| format!("No route leads to {dst}."));
        return drop_flow(key, DropReason::NoRoute);
    };
    let via = match next_hop {
        NextHop::OnLink => dst,
        NextHop::Via(via) => via,
    };
    trace.note(|| format!("{dst} is routed by {prefix}, next hop {via}."));
    let Some(station) = domain.station_by_address(via) else {
        trace.note(|| format!("Nobody in the network has {via}."));
        return drop_flow(key, DropReason::UnknownDestination);
    };
    trace.note(|| format!("{via} is at {}, {}.", station.mac, place(station)));
    let rewrite = [
        Action::DecTtl,
        Action::SetEthSrc(domain.network.gateway_mac),
        Action::SetEthDst(station.mac),
    ];
    deliver(tables, guest, station, &rewrite, input, trace)
}

/// To one station. The MTU is checked before anything changes, so that a punted packet is as it
/// came.
fn deliver(
    tables: &Tables,
    guest: &Guest,
    station: &Station,
    rewrite: &[Action],
    input: Input,
    trace: &mut Trace,
) -> Verdict {
    let key = input.key();
    let (mtu, last) = match station.place {
        Place::Local(port) if port == guest.port.id => {
            trace.note(|| "The sender is also the receiver.".into());
            return drop_flow(key, DropReason::Hairpin);
        }
        Place::Local(port) => (guest.domain.network.mtu, vec![Action::Output(port)]),
        Place::Remote(vtep) => {
            let Some((mtu, encap)) = encap(tables, guest.domain, vtep, input) else {
                trace.note(|| format!("The next hop towards {vtep} is not resolved."));
                return Verdict::Drop(DropReason::UnderlayUnresolved);
            };
            (
                mtu,
                vec![Action::EncapVxlan(encap), Action::Output(PortId::UPLINK)],
            )
        }
    };
    trace.note(|| {
        format!(
            "At most {mtu} bytes go that way; it has {}.",
            input.parsed.ip_len
        )
    });
    let mut actions = vec![Action::CheckMtu(mtu)];
    actions.extend_from_slice(rewrite);
    actions.extend(last);
    Verdict::Flow { key: *key, actions }
}

/// The tunnel to a host and the longest IP packet that goes through; none while the next hop is
/// not resolved.
fn encap(tables: &Tables, domain: &Domain, vtep: IpAddr, input: Input) -> Option<(u16, Vxlan)> {
    let underlay = tables.topology.underlay.as_ref()?;
    let tag = if input.key().vlan == 0 { 0 } else { 4 };
    let mtu = tables
        .tunnel_mtu()?
        .saturating_sub(tag)
        .min(domain.network.mtu);
    let vxlan = Vxlan {
        eth_src: underlay.mac,
        eth_dst: tables.next_hop_mac(vtep)?,
        src: underlay.address,
        dst: vtep,
        src_port: entropy_port(input.key()),
        vni: domain.network.vni,
        ttl: TUNNEL_TTL,
    };
    Some((mtu, vxlan))
}

/// To every other station: each local port, and each host of the network once.
fn flood(tables: &Tables, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let (key, domain) = (input.key(), guest.domain);
    let mut mtu = domain.network.mtu;
    let mut actions = outputs(domain, Some(guest.port.id));
    let tunnels: Vec<_> = domain
        .vteps
        .iter()
        .filter_map(|vtep| encap(tables, domain, *vtep, input))
        .collect();
    for (index, (tunnel_mtu, vxlan)) in tunnels.iter().enumerate() {
        mtu = mtu.min(*tunnel_mtu);
        if index > 0 {
            actions.push(Action::DecapVxlan);
        }
        actions.extend([Action::EncapVxlan(*vxlan), Action::Output(PortId::UPLINK)]);
    }
    trace.note(|| {
        let (ports, hosts, all) = (domain.locals.len() - 1, tunnels.len(), domain.vteps.len());
        format!("A group address: to {ports} other ports here and {hosts} of {all} other hosts.")
    });
    let resolved = tunnels.len() == domain.vteps.len();
    if actions.is_empty() {
        return match resolved {
            true => drop_flow(key, DropReason::UnknownDestination),
            false => Verdict::Drop(DropReason::UnderlayUnresolved),
        };
    }
    actions.insert(0, Action::CheckMtu(mtu));
    match resolved {
        true => Verdict::Flow { key: *key, actions },
        false => Verdict::Once { actions },
    }
}

/// One output for each port of this host in the network, but the sender's.
pub(crate) fn outputs(domain: &Domain, except: Option<PortId>) -> Vec<Action> {
    let ports = domain.locals.iter().filter(|port| Some(**port) != except);
    ports.map(|port| Action::Output(*port)).collect()
}
