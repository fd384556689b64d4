//! The network between the hosts: finding the next hops' MAC addresses, and answering for ours.

use crate::arp;
use crate::explain::Trace;
use crate::input::Input;
use crate::nd;
use crate::tables::{Tables, link_local};
use crate::topology::Underlay;
use crate::verdict::Verdict;
use flow::wire::arp::{REPLY, REQUEST};
use flow::wire::icmp::v6;
use flow::wire::nd::{
    OVERRIDE, SOLICITED, SOURCE_LINK_ADDRESS, TARGET_LINK_ADDRESS, multicast_mac, solicited_node,
};
use flow::wire::{ArpPacket, ArpRepr, IcmpPacket, NdMessage, NdRepr, ethertype, protocol};
use flow::{DropReason, Fragment, MacAddr, PortId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The question who has `target`, as a frame for the uplink: an ARP request, or a neighbour
/// solicitation where `target` is an IPv6 address. The answer comes back as
/// [`Verdict::Learned`].
///
/// The sender is `underlay`'s address, or unspecified where that is of the other family.
pub fn underlay_arp_request(underlay: &Underlay, target: IpAddr) -> Vec<u8> {
    match target {
        IpAddr::V4(target_ip) => {
            let sender_ip = match underlay.address {
                IpAddr::V4(own) => own,
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
            };
            let request = ArpRepr {
                operation: REQUEST,
                sender_mac: underlay.mac,
                sender_ip,
                target_mac: MacAddr::ZERO,
                target_ip,
            };
            arp::frame(MacAddr::BROADCAST, underlay.mac, &request)
        }
        IpAddr::V6(target) => {
            let src = match underlay.address {
                IpAddr::V6(own) => own,
                IpAddr::V4(_) => link_local(underlay.mac),
            };
            let dst = solicited_node(target);
            let message = NdRepr::Solicit {
                target,
                link: Some(underlay.mac),
            }
            .emit(src, dst);
            nd::frame(multicast_mac(dst), underlay.mac, src, dst, &message)
        }
    }
}

/// Decides about a packet on the uplink that is not in a tunnel.
pub(crate) fn decide(tables: &Tables, input: Input, trace: &mut Trace) -> Verdict {
    trace.note(|| "The packet came in by the uplink, not in a tunnel.".into());
    let Some(underlay) = &tables.topology.underlay else {
        return Verdict::Drop(DropReason::NotForUs);
    };
    let key = input.key();
    let verdict = match (key.vlan, key.ethertype) {
        (0, ethertype::ARP) => arp_message(tables, underlay, input, trace),
        (0, ethertype::IPV6)
            if key.protocol == protocol::ICMPV6 && key.fragment == Fragment::No =>
        {
            nd_message(tables, underlay, input, trace)
        }
        _ => None,
    };
    verdict.unwrap_or_else(|| {
        trace.note(|| "It is not for the virtual router.".into());
        Verdict::Drop(DropReason::NotForUs)
    })
}

/// A neighbour that said where it is, if it is one that was asked for.
fn learned(tables: &Tables, ip: IpAddr, mac: MacAddr, trace: &mut Trace) -> Option<Verdict> {
    if !mac.is_station() || tables.next_hops().binary_search(&ip).is_err() {
        trace.note(|| format!("{ip} says it is at {mac}, but is no next hop."));
        return None;
    }
    trace.note(|| format!("Next hop {ip} says it is at {mac}."));
    Some(Verdict::Learned { ip, mac })
}

fn arp_message(
    tables: &Tables,
    underlay: &Underlay,
    input: Input,
    trace: &mut Trace,
) -> Option<Verdict> {
    let arp = ArpPacket::new_checked(input.network_layer()).ok()?;
    if arp.sender_mac() != input.key().eth_src {
        return None;
    }
    if arp.operation() == REPLY || arp.sender_ip() == arp.target_ip() {
        return learned(tables, arp.sender_ip().into(), arp.sender_mac(), trace);
    }
    let IpAddr::V4(own) = underlay.address else {
        return None;
    };
    if arp.operation() != REQUEST || !underlay.answer_arp || arp.target_ip() != own {
        return None;
    }
    trace.note(|| format!("ARP asks for {own}, this host's address."));
    let reply = ArpRepr {
        operation: REPLY,
        sender_mac: underlay.mac,
        sender_ip: own,
        target_mac: arp.sender_mac(),
        target_ip: arp.sender_ip(),
    };
    let packet = arp::frame(arp.sender_mac(), underlay.mac, &reply);
    Some(Verdict::answer(PortId::UPLINK, packet))
}

fn nd_message(
    tables: &Tables,
    underlay: &Underlay,
    input: Input,
    trace: &mut Trace,
) -> Option<Verdict> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (input.src(), input.dst()) else {
        return None;
    };
    let bytes = input.transport().ok()?;
    let valid = input.network_layer().get(7) == Some(&255)
        && IcmpPacket::new_checked(bytes)
            .ok()?
            .checksum_ok_v6(src, dst);
    let message = NdMessage::new_checked(bytes).ok().filter(|_| valid)?;
    let target = message.target()?;
    if message.kind() == v6::NEIGHBOUR_ADVERT {
        let mac = message
            .link_address(TARGET_LINK_ADDRESS)
            .unwrap_or(input.key().eth_src);
        return learned(tables, target.into(), mac, trace);
    }
    if IpAddr::V6(target) != underlay.address || !underlay.answer_arp {
        return None;
    }
    trace.note(|| format!("It solicits {target}, this host's address."));
    let (to, solicited) = answer_to(src);
    let flags = solicited | OVERRIDE;
    let reply = NdRepr::Advert {
        target,
        link: underlay.mac,
        flags,
    }
    .emit(target, to);
    let asker = message
        .link_address(SOURCE_LINK_ADDRESS)
        .unwrap_or(input.key().eth_src);
    let packet = nd::frame(nd::link_dst(to, asker), underlay.mac, target, to, &reply);
    Some(Verdict::answer(PortId::UPLINK, packet))
}

fn answer_to(src: Ipv6Addr) -> (Ipv6Addr, u8) {
    if src.is_unspecified() {
        (nd::ALL_NODES, 0)
    } else {
        (src, SOLICITED)
    }
}
