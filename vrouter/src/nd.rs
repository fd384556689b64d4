//! Neighbour discovery from guests (RFC 4861, RFC 4862): the router answers for every address.

use crate::explain::Trace;
use crate::input::Input;
use crate::ra;
use crate::router::drop_flow;
use crate::spoof::may_use_services;
use crate::tables::Guest;
use crate::verdict::Verdict;
use flow::wire::icmp::v6;
use flow::wire::nd::{
    OVERRIDE, ROUTER, SOLICITED, SOURCE_LINK_ADDRESS, TARGET_LINK_ADDRESS, multicast_mac,
    solicited_node,
};
use flow::wire::{EthernetRepr, IcmpPacket, Ipv6Repr, NdMessage, NdRepr, ethertype, protocol};
use flow::{DropReason, Fragment, MacAddr};
use std::net::{IpAddr, Ipv6Addr};

/// `ff02::1`.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Decides about a message of neighbour discovery. The key has not the target, so only what
/// follows from the type is installed.
pub(crate) fn decide(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let kind = input.key().src_port as u8;
    if matches!(kind, v6::ROUTER_ADVERT | v6::REDIRECT) {
        trace.note(|| "Only the gateway advertises routers and redirects.".into());
        return drop_flow(input.key(), DropReason::SpoofedNeighbour);
    }
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (input.src(), input.dst()) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let message = match checked(input, src, dst) {
        Ok(message) => message,
        Err(reason) => {
            trace.note(|| "The message of neighbour discovery is not valid.".into());
            return Verdict::Drop(reason);
        }
    };
    let link = match kind {
        v6::NEIGHBOUR_ADVERT => message.link_address(TARGET_LINK_ADDRESS),
        _ => message.link_address(SOURCE_LINK_ADDRESS),
    };
    let tentative = src.is_unspecified();
    if link.is_some_and(|mac| mac != guest.port.mac) || !(tentative || may_use_services(guest, src))
    {
        trace.note(|| format!("Neighbour discovery from {src} claims what is not the port's."));
        return Verdict::Drop(DropReason::SpoofedNeighbour);
    }
    // RFC 4861 sections 7.1.1 and 6.1.1: no link address without an address.
    if tentative && (link.is_some() || kind == v6::NEIGHBOUR_ADVERT) {
        return Verdict::Drop(DropReason::Malformed);
    }
    match (kind, message.target()) {
        (v6::NEIGHBOUR_SOLICIT, Some(target)) => solicit(guest, src, dst, target, trace),
        (v6::NEIGHBOUR_ADVERT, Some(target)) if !may_use_services(guest, target) => {
            trace.note(|| format!("It advertises {target}, which is not the port's."));
            Verdict::Drop(DropReason::SpoofedNeighbour)
        }
        (v6::NEIGHBOUR_ADVERT, _) => Verdict::CONSUMED,
        _ if guest.domain.has_v6() => {
            trace.note(|| "A router solicitation, which the gateway answers.".into());
            let to = if tentative { ALL_NODES } else { src };
            Verdict::answer(guest.port.id, ra::advertisement(guest, to))
        }
        _ => {
            trace.note(|| "A router solicitation in a network without IPv6.".into());
            Verdict::CONSUMED
        }
    }
}

/// What RFC 4861 sections 6.1 and 7.1 ask of every message.
fn checked(input: Input<'_>, src: Ipv6Addr, dst: Ipv6Addr) -> Result<NdMessage<&[u8]>, DropReason> {
    const HOP_LIMIT: usize = 7;
    let bytes = input.transport()?;
    let icmp = IcmpPacket::new_checked(bytes)?;
    let valid = input.network_layer().get(HOP_LIMIT) == Some(&255)
        && icmp.code() == 0
        && icmp.checksum_ok_v6(src, dst)
        && input.key().fragment == Fragment::No;
    if valid {
        NdMessage::new_checked(bytes)
    } else {
        Err(DropReason::Malformed)
    }
}

fn solicit(
    guest: &Guest,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    target: Ipv6Addr,
    trace: &mut Trace,
) -> Verdict {
    let tentative = src.is_unspecified();
    if target.is_multicast() || (tentative && dst != solicited_node(target)) {
        return Verdict::Drop(DropReason::Malformed);
    }
    if guest.owns(target.into()) {
        trace.note(|| format!("It solicits {target}, the port's own address."));
        return Verdict::CONSUMED;
    }
    // With SLAAC the router knows only addresses made of the MAC: packets from a temporary (RFC 8981)
    // or opaque one (RFC 7217) would be dropped as spoofed. Told that it is taken, the guest goes
    // back to what works.
    let refused = || {
        let refused = tentative && guest.domain.is_slaac(target);
        refused.then_some(guest.domain.network.gateway_mac)
    };
    let Some(owner) = guest.domain.owner(target.into()).or_else(refused) else {
        trace.note(|| format!("It solicits {target}, which nobody in the network has."));
        let free = Verdict::CONSUMED; // Duplicate address detection is right to hear nothing.
        return if tentative {
            free
        } else {
            Verdict::Drop(DropReason::UnknownDestination)
        };
    };
    trace.note(|| format!("It solicits {target}, which is at {owner}."));
    let router = if guest.domain.is_gateway(target.into()) {
        ROUTER
    } else {
        0
    };
    let (to, solicited) = if tentative {
        (ALL_NODES, 0)
    } else {
        (src, SOLICITED)
    };
    let advert = NdRepr::Advert {
        target,
        link: owner,
        flags: router | solicited | OVERRIDE,
    };
    let message = advert.emit(target, to);
    Verdict::answer(
        guest.port.id,
        frame(link_dst(to, guest.port.mac), owner, target, to, &message),
    )
}

/// The MAC that a message to `to` goes to, where `unicast` has it unless it is a group.
pub(crate) fn link_dst(to: Ipv6Addr, unicast: MacAddr) -> MacAddr {
    if to.is_multicast() {
        multicast_mac(to)
    } else {
        unicast
    }
}

/// A message of neighbour discovery in its frame.
pub(crate) fn frame(
    eth_dst: MacAddr,
    eth_src: MacAddr,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    message: &[u8],
) -> Vec<u8> {
    let ip = Ipv6Repr {
        hop_limit: 255,
        ..Ipv6Repr::new(src, dst, protocol::ICMPV6)
    };
    EthernetRepr {
        dst: eth_dst,
        src: eth_src,
        vlan: None,
        ethertype: ethertype::IPV6,
    }
    .emit(&ip.emit(message))
}

/// Multicast listener discovery (RFC 3810): heard, and not needed, as multicast is flooded.
pub(crate) fn mld(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let allowed = match input.src() {
        IpAddr::V6(src) => src.is_unspecified() || may_use_services(guest, src),
        IpAddr::V4(_) => false,
    };
    if !allowed {
        trace.note(|| format!("Source address {} is none of the port's.", input.src()));
        return drop_flow(input.key(), DropReason::SpoofedIp);
    }
    trace.note(|| "Group membership is not tracked: multicast is flooded.".into());
    Verdict::CONSUMED
}
