//! Anti-spoofing: a guest sends only from its port's MAC and from addresses that are its own.

use crate::explain::Trace;
use crate::input::Input;
use crate::tables::Guest;
use crate::validate::is_host_address;
use flow::DropReason;
use flow::wire::{ArpPacket, ethertype};
use std::net::{IpAddr, Ipv6Addr};

/// True where the guest may send from this address: its own, its link-local one, or one behind it
/// that a static route leads to.
pub(crate) fn is_own(guest: &Guest, ip: IpAddr) -> bool {
    guest.owns(ip) || (is_host_address(ip) && guest.domain.may_forward_for(guest.station, ip))
}

/// Checks the source of an IP packet.
pub(crate) fn ip(guest: &Guest, input: Input, trace: &mut Trace) -> Result<(), DropReason> {
    let src = input.src();
    if is_own(guest, src) {
        trace.note(|| format!("Source address {src} is the port's to use."));
        return Ok(());
    }
    trace.note(|| {
        let own: Vec<String> = guest
            .station
            .addresses
            .iter()
            .map(IpAddr::to_string)
            .collect();
        format!(
            "Source address {src} is none of the port's: {}.",
            own.join(", ")
        )
    });
    Err(DropReason::SpoofedIp)
}

/// True where the guest may ask the router's own services from this address: one of its own, or a
/// link-local address that is nobody else's, as hosts form without their MAC (RFC 7217).
pub(crate) fn may_use_services(guest: &Guest, src: Ipv6Addr) -> bool {
    let free = || src.is_unicast_link_local() && guest.domain.owner(src.into()).is_none();
    guest.owns(src.into()) || free()
}

/// The same guard on a plain Ethernet, where only MACs are known: ARP must not claim another's.
pub(crate) fn plain(guest: &Guest, input: Input) -> Result<(), DropReason> {
    if input.key().ethertype != ethertype::ARP {
        return Ok(());
    }
    let arp = ArpPacket::new_checked(input.network_layer())?;
    if arp.sender_mac() == guest.port.mac {
        Ok(())
    } else {
        Err(DropReason::SpoofedNeighbour)
    }
}
