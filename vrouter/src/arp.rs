//! ARP from guests (RFC 826, RFC 5227): the router knows every address and answers for all.

use crate::explain::Trace;
use crate::input::Input;
use crate::tables::Guest;
use crate::verdict::Verdict;
use flow::wire::arp::{REPLY, REQUEST};
use flow::wire::{ArpPacket, ArpRepr, EthernetRepr, ethertype};
use flow::{DropReason, MacAddr};

/// Decides about an ARP message. The key has not the sender's MAC, so nothing is installed.
pub(crate) fn decide(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let arp = match ArpPacket::new_checked(input.network_layer()) {
        Ok(arp) => arp,
        Err(reason) => return Verdict::Drop(reason),
    };
    let (sender, target) = (arp.sender_ip(), arp.target_ip());
    // RFC 5227 section 1.1: a probe has no sender address.
    let probe = sender.is_unspecified() && arp.operation() == REQUEST;
    if arp.sender_mac() != guest.port.mac || !(probe || guest.owns(sender.into())) {
        trace.note(|| {
            format!(
                "ARP claims {sender} at {}, which is not the port's.",
                arp.sender_mac()
            )
        });
        return Verdict::Drop(DropReason::SpoofedNeighbour);
    }
    match arp.operation() {
        REPLY => return Verdict::CONSUMED,
        REQUEST => {}
        _ => return Verdict::Drop(DropReason::UnsupportedProtocol),
    }
    if guest.owns(target.into()) {
        trace.note(|| format!("ARP probes or announces {target}, the port's own address."));
        return Verdict::CONSUMED;
    }
    let Some(owner) = guest.domain.owner(target.into()) else {
        trace.note(|| format!("ARP asks for {target}, which nobody in the network has."));
        return Verdict::Drop(DropReason::UnknownDestination);
    };
    trace.note(|| format!("ARP asks for {target}, which is at {owner}."));
    let reply = ArpRepr {
        operation: REPLY,
        sender_mac: owner,
        sender_ip: target,
        target_mac: guest.port.mac,
        target_ip: sender,
    };
    Verdict::answer(guest.port.id, frame(guest.port.mac, owner, &reply))
}

/// An ARP message in its frame.
pub(crate) fn frame(dst: MacAddr, src: MacAddr, arp: &ArpRepr) -> Vec<u8> {
    EthernetRepr {
        dst,
        src,
        vlan: None,
        ethertype: ethertype::ARP,
    }
    .emit(&arp.emit())
}
