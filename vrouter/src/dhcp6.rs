//! The DHCPv6 server (RFC 8415): each port has one address, so there are no leases to remember.

use crate::dhcp4_reply::LEASE_SECONDS;
use crate::dhcp6_message::{Message, Options, option, parse, status};
use crate::explain::Trace;
use crate::input::Input;
use crate::ra::name_servers;
use crate::spoof::may_use_services;
use crate::tables::Guest;
use crate::verdict::Verdict;
use flow::wire::{EthernetRepr, Ipv6Repr, UdpDatagram, UdpRepr, ethertype, protocol};
use flow::{DropReason, Fragment, MacAddr};
use std::net::{IpAddr, Ipv6Addr};

/// The server's UDP port.
pub(crate) const SERVER: u16 = 547;
/// The client's UDP port.
pub(crate) const CLIENT: u16 = 546;
/// `ff02::1:2`: all relay agents and servers.
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Message types (RFC 8415 section 7.3).
mod message {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const DECLINE: u8 = 9;
    pub(super) const INFORMATION_REQUEST: u8 = 11;
}

/// True for what a client sends to DHCPv6 servers, or to the gateway.
pub(crate) fn is_for_server(guest: &Guest, input: Input) -> bool {
    let key = input.key();
    let to_gateway =
        key.eth_dst == guest.domain.network.gateway_mac && guest.domain.is_gateway(input.dst());
    key.protocol == protocol::UDP
        && key.dst_port == SERVER
        && key.fragment == Fragment::No
        && ((key.eth_dst.is_group() && input.dst() == ALL_SERVERS) || to_gateway)
}

/// Serves a client. What is answered is not in the key, so nothing is installed.
pub(crate) fn decide(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let IpAddr::V6(src) = input.src() else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if !may_use_services(guest, src) {
        trace.note(|| format!("DHCPv6 from {src}, which is not the port's."));
        return Verdict::Drop(DropReason::SpoofedIp);
    }
    if !guest.domain.has_v6() {
        trace.note(|| "The network has no IPv6.".into());
        return Verdict::CONSUMED;
    }
    let datagram = match input.transport().and_then(UdpDatagram::new_checked) {
        Ok(datagram) => datagram,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(request) = parse(datagram.payload()) else {
        trace.note(|| "It is no DHCPv6 message of a client.".into());
        return Verdict::Drop(DropReason::Malformed);
    };
    let Some(answer) = answer(guest, &request) else {
        trace.note(|| format!("DHCPv6 message {} needs no answer.", request.kind));
        return match request.kind {
            message::SOLICIT..=message::INFORMATION_REQUEST => Verdict::CONSUMED,
            _ => Verdict::Drop(DropReason::UnsupportedProtocol),
        };
    };
    trace.note(|| {
        format!(
            "DHCPv6 message {}, answered with {}.",
            request.kind, answer[0]
        )
    });
    Verdict::answer(guest.port.id, frame(guest, src, &answer))
}

fn frame(guest: &Guest, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let from = guest.domain.link_local();
    let udp = UdpRepr {
        src: from.into(),
        dst: to.into(),
        src_port: SERVER,
        dst_port: CLIENT,
    };
    let ip = Ipv6Repr::new(from, to, protocol::UDP).emit(&udp.emit(message));
    let (dst, src) = (guest.port.mac, guest.domain.network.gateway_mac);
    EthernetRepr {
        dst,
        src,
        vlan: None,
        ethertype: ethertype::IPV6,
    }
    .emit(&ip)
}

/// The server's DUID: that of its link-layer address (RFC 8415 section 11.4).
fn server_id(mac: MacAddr) -> [u8; 10] {
    let [a, b, c, d, e, f] = mac.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// RFC 8415 section 16: which messages need, and which must not have, a server identifier.
fn is_for_us(request: &Message, own: &[u8]) -> bool {
    match request.kind {
        message::REQUEST | message::RENEW | message::RELEASE | message::DECLINE => {
            request.client_id.is_some() && request.server_id == Some(own)
        }
        message::SOLICIT | message::CONFIRM | message::REBIND => {
            request.client_id.is_some() && request.server_id.is_none()
        }
        message::INFORMATION_REQUEST => {
            request.server_id.is_none_or(|id| id == own) && request.associations.is_empty()
        }
        _ => false,
    }
}

/// The answer by RFC 8415 section 18.3; none where the message is to be ignored.
fn answer(guest: &Guest, request: &Message) -> Option<Vec<u8>> {
    let own_id = server_id(guest.domain.network.gateway_mac);
    if !is_for_us(request, &own_id) {
        return None;
    }
    let rapid = request.kind == message::SOLICIT && request.rapid_commit;
    let kind = match request.kind {
        message::SOLICIT if !rapid => message::ADVERTISE,
        _ => message::REPLY,
    };
    let mut out = Options::new(kind, request.transaction);
    if let Some(id) = request.client_id {
        out.put(option::CLIENT_ID, id);
    }
    out.put(option::SERVER_ID, &own_id);
    if rapid {
        out.put(option::RAPID_COMMIT, &[]);
    }
    match request.kind {
        message::CONFIRM => out.status(confirm(guest, request)?, "Checked"),
        message::RELEASE | message::DECLINE => {
            out.status(status::SUCCESS, "There is nobody else to give it to");
        }
        message::INFORMATION_REQUEST => name_server_option(guest, &mut out),
        _ => {
            associations(guest, request, &mut out);
            name_server_option(guest, &mut out);
        }
    }
    Some(out.finish())
}

fn name_server_option(guest: &Guest, out: &mut Options) {
    let servers: Vec<u8> = name_servers(guest)
        .take(8)
        .flat_map(|ip| ip.octets())
        .collect();
    if !servers.is_empty() {
        out.put(option::NAME_SERVERS, &servers);
    }
}

/// Section 18.3.3: whether the client's addresses are of this link; none where it names none.
fn confirm(guest: &Guest, request: &Message) -> Option<u16> {
    let mut addresses = request
        .associations
        .iter()
        .flat_map(|ia| &ia.addresses)
        .peekable();
    addresses.peek()?;
    let on_link = |ip: &Ipv6Addr| {
        let subnets = &guest.domain.network.subnets;
        subnets.iter().any(|s| s.prefix.contains(&IpAddr::V6(*ip)))
    };
    let all = addresses.all(on_link);
    Some(if all {
        status::SUCCESS
    } else {
        status::NOT_ON_LINK
    })
}

/// The first association for addresses gets the port's; for others there is none.
fn associations(guest: &Guest, request: &Message, out: &mut Options) {
    let mut own = guest.v6();
    for ia in &request.associations {
        let mut body = ia.head.to_vec();
        if ia.code == option::IA_NA {
            body.resize(4, 0);
            let (t1, t2) = (LEASE_SECONDS / 2, LEASE_SECONDS / 5 * 4);
            body.extend_from_slice(&t1.to_be_bytes());
            body.extend_from_slice(&t2.to_be_bytes());
        }
        let mut inner = Options::within(body);
        match own.take_if(|_| ia.code == option::IA_NA) {
            Some(ip) => {
                // Preferred until the end: T1 and T2 are to come before (RFC 8415 section 21.4).
                inner.address(ip, LEASE_SECONDS, LEASE_SECONDS);
                // Section 18.3.4: what the client has wrongly goes with lifetimes of zero.
                let renewing = matches!(request.kind, message::RENEW | message::REBIND);
                for wrong in ia.addresses.iter().filter(|old| renewing && **old != ip) {
                    inner.address(*wrong, 0, 0);
                }
            }
            None if ia.code == option::IA_PD => {
                inner.status(status::NO_PREFIX, "No prefixes are delegated");
            }
            None => inner.status(status::NO_ADDRESS, "The port has no further address"),
        }
        out.put(ia.code, &inner.finish());
    }
}
