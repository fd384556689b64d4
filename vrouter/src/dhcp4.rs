//! The DHCPv4 server (RFC 2131, RFC 2132): each port has one address, for as long as it is asked
//! for, so there are no leases to remember.
//!
//! The codec is our own because there is so little of it: the fixed fields, and options as type,
//! length and value. Crates for DHCP bring a DNS library with them.

use crate::dhcp4_reply::{ReplyKind, reply};
use crate::explain::Trace;
use crate::input::Input;
use crate::tables::Guest;
use crate::verdict::Verdict;
use flow::wire::{UdpDatagram, protocol};
use flow::{DropReason, Fragment, MacAddr};
use std::net::{IpAddr, Ipv4Addr};

/// The server's UDP port.
pub(crate) const SERVER: u16 = 67;
/// The client's UDP port.
pub(crate) const CLIENT: u16 = 68;

/// Where the options begin, after the cookie.
pub(crate) const OPTIONS: usize = 240;
/// What tells DHCP from BOOTP.
pub(crate) const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Option codes (RFC 2132, RFC 3442).
pub(crate) mod option {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const SUBNET_MASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const NAME_SERVER: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER_ID: u8 = 54;
    pub(crate) const PARAMETER_LIST: u8 = 55;
    pub(crate) const MAX_SIZE: u8 = 57;
    pub(crate) const RENEWAL_TIME: u8 = 58;
    pub(crate) const REBINDING_TIME: u8 = 59;
    pub(crate) const CLIENT_ID: u8 = 61;
    pub(crate) const CLASSLESS_ROUTES: u8 = 121;
    pub(crate) const END: u8 = 255;
}

/// Message types (RFC 2132 section 9.6).
mod message {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// A client's message, as far as the server cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) xid: [u8; 4],
    pub(crate) flags: u16,
    pub(crate) ciaddr: Option<Ipv4Addr>,
    pub(crate) chaddr: MacAddr,
    relayed: bool,
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    pub(crate) wanted: &'a [u8],
    pub(crate) max_size: Option<u16>,
    pub(crate) client_id: Option<&'a [u8]>,
}

impl Request<'_> {
    /// The client cannot take unicast before it has its address.
    pub(crate) fn broadcast(&self) -> bool {
        self.flags & 0x8000 != 0
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn specified(ip: Ipv4Addr) -> Option<Ipv4Addr> {
    (!ip.is_unspecified()).then_some(ip)
}

/// Reads a client's message over Ethernet; none for anything else.
pub(crate) fn parse(bytes: &[u8]) -> Option<Request<'_>> {
    let head: [u8; 4] = array(bytes, 0)?;
    // A request, from Ethernet, with addresses of six bytes; the fourth counts relays.
    if head[..3] != [1, 1, 6] || array(bytes, OPTIONS - 4)? != COOKIE {
        return None;
    }
    let mut request = Request {
        xid: array(bytes, 4)?,
        flags: u16::from_be_bytes(array(bytes, 10)?),
        ciaddr: specified(array::<4>(bytes, 12)?.into()),
        chaddr: MacAddr(array(bytes, 28)?),
        relayed: array(bytes, 24)? != [0; 4] || head[3] != 0,
        ..Request::default()
    };
    let mut rest = &bytes[OPTIONS..];
    while let [code, after @ ..] = rest {
        match *code {
            option::PAD => rest = after,
            option::END => break,
            code => {
                let (length, after) = after.split_first()?;
                let (value, after) = after.split_at_checked(usize::from(*length))?;
                take(&mut request, code, value)?;
                rest = after;
            }
        }
    }
    (request.kind != 0).then_some(request)
}

/// Notes an option; none where its length is impossible.
fn take<'a>(request: &mut Request<'a>, code: u8, value: &'a [u8]) -> Option<()> {
    let address = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?));
    match code {
        option::MESSAGE_TYPE => request.kind = *value.first().filter(|_| value.len() == 1)?,
        option::REQUESTED_ADDRESS => request.requested = Some(address()?),
        option::SERVER_ID => request.server = Some(address()?),
        option::PARAMETER_LIST => request.wanted = value,
        option::MAX_SIZE => {
            request.max_size = Some(u16::from_be_bytes(value.try_into().ok()?));
        }
        option::CLIENT_ID => request.client_id = Some(value),
        _ => {}
    }
    Some(())
}

/// True for what a client sends to a DHCP server: to all, or to the gateway.
pub(crate) fn is_for_server(guest: &Guest, input: Input) -> bool {
    let key = input.key();
    let IpAddr::V4(dst) = input.dst() else {
        return false;
    };
    let to_gateway =
        key.eth_dst == guest.domain.network.gateway_mac && guest.domain.is_gateway(dst.into());
    key.protocol == protocol::UDP
        && key.dst_port == SERVER
        && key.fragment == Fragment::No
        && ((key.eth_dst.is_group() && dst.is_broadcast()) || to_gateway)
}

/// Serves a client. What is answered is not in the key, so nothing is installed.
pub(crate) fn decide(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let IpAddr::V4(src) = input.src() else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let datagram = match input.transport().and_then(UdpDatagram::new_checked) {
        Ok(datagram) => datagram,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(request) = parse(datagram.payload()) else {
        trace.note(|| "It is no DHCP message of a client on Ethernet.".into());
        return Verdict::Drop(DropReason::Malformed);
    };
    // A client renews from the address it has, and is to hear where that is not the port's any more.
    let renewing = request.kind == message::REQUEST && request.ciaddr == Some(src);
    if !(src.is_unspecified() || guest.owns(src.into()) || renewing) {
        trace.note(|| format!("DHCP from {src}, which is not the port's."));
        return Verdict::Drop(DropReason::SpoofedIp);
    }
    if request.relayed {
        trace.note(|| "Relayed DHCP is not served: guests are on the server's own link.".into());
        return Verdict::Drop(DropReason::UnsupportedProtocol);
    }
    if request.chaddr != guest.port.mac {
        trace.note(|| {
            format!(
                "It asks for {}, which is not the port's MAC.",
                request.chaddr
            )
        });
        return Verdict::Drop(DropReason::SpoofedMac);
    }
    let server = guest
        .v4()
        .and_then(|own| guest.domain.gateway_for(own.into(), guest.station));
    let (Some(own), Some(IpAddr::V4(server))) = (guest.v4(), server) else {
        trace.note(|| "The port has no IPv4 address to hand out.".into());
        return Verdict::Drop(DropReason::UnknownDestination);
    };
    match answer(&request, own, server) {
        Some(kind) => {
            trace.note(|| format!("DHCP message {}, answered with {kind:?}.", request.kind));
            let packet = reply(guest, &request, kind, own, server);
            Verdict::answer(guest.port.id, packet)
        }
        None if (message::DISCOVER..=message::INFORM).contains(&request.kind) => {
            trace.note(|| format!("DHCP message {} needs no answer.", request.kind));
            Verdict::CONSUMED
        }
        None => Verdict::Drop(DropReason::UnsupportedProtocol),
    }
}

/// What to answer, by RFC 2131 section 4.3.
fn answer(request: &Request, own: Ipv4Addr, server: Ipv4Addr) -> Option<ReplyKind> {
    match request.kind {
        message::DISCOVER => Some(ReplyKind::Offer),
        message::INFORM => Some(ReplyKind::Inform),
        message::REQUEST => {
            // Selecting: the client may have taken another server's offer.
            if request.server.is_some_and(|chosen| chosen != server) {
                return None;
            }
            // Selecting and after a reboot the address is in the option; renewing and rebinding,
            // it is the client's own.
            match request.requested.or(request.ciaddr)? {
                wanted if wanted == own => Some(ReplyKind::Ack),
                _ => Some(ReplyKind::Nak),
            }
        }
        // There is nobody else to give a declined or released address to.
        message::DECLINE | message::RELEASE => None,
        _ => None,
    }
}
