//! ICMP of the gateway: echo replies, and errors about packets that cannot go on
//! (RFC 792, RFC 1191, RFC 1812 section 4.3, RFC 4443).

use crate::explain::Trace;
use crate::input::Input;
use crate::router::drop_flow;
use crate::tables::Guest;
use crate::validate::is_host_address;
use crate::verdict::Verdict;
use flow::checksum::mend;
use flow::wire::icmp::{CHECKSUM, v4, v6};
use flow::wire::{
    EthernetRepr, IcmpPacket, Icmpv4Repr, Icmpv6Repr, Ipv4Repr, Ipv6Repr, ethertype, protocol,
};
use flow::{DropReason, Fragment};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest ICMP error, IP header included (RFC 1812 section 4.3.2.3).
const ERROR_MAX_V4: usize = 576;
/// The longest ICMPv6 error: the least MTU of IPv6 (RFC 4443 section 3).
const ERROR_MAX_V6: usize = 1280;

/// An error to tell the sender of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The TTL or hop limit ran out.
    TimeExceeded,
    /// Longer than this many bytes, which is what the next link takes.
    ///
    /// For IPv4 this is sent whether or not DF is set: no home of flows fragments, and the sender
    /// of a packet without DF learns of the path's MTU by it just as well.
    TooBig(u16),
    /// Nothing listens on the UDP port.
    PortUnreachable,
}

impl Error {
    fn v4(self) -> Icmpv4Repr {
        let (kind, code, rest) = match self {
            Error::TimeExceeded => (v4::TIME_EXCEEDED, 0, [0; 4]),
            Error::TooBig(mtu) => {
                let [high, low] = mtu.to_be_bytes();
                (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, [0, 0, high, low])
            }
            Error::PortUnreachable => (v4::UNREACHABLE, 3, [0; 4]),
        };
        Icmpv4Repr { kind, code, rest }
    }

    fn v6(self, src: Ipv6Addr, dst: Ipv6Addr) -> Icmpv6Repr {
        let (kind, code, rest) = match self {
            Error::TimeExceeded => (v6::TIME_EXCEEDED, 0, [0; 4]),
            Error::TooBig(mtu) => (v6::PACKET_TOO_BIG, 0, u32::from(mtu).to_be_bytes()),
            Error::PortUnreachable => (v6::UNREACHABLE, 4, [0; 4]),
        };
        Icmpv6Repr {
            src,
            dst,
            kind,
            code,
            rest,
        }
    }
}

/// A packet for the gateway itself, which is not forwarded.
pub(crate) fn to_gateway(guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
    let key = input.key();
    trace.note(|| format!("It is for the gateway's own address {}.", input.dst()));
    if key.fragment != Fragment::No {
        trace.note(|| "The gateway does not reassemble fragments.".into());
        return drop_flow(key, DropReason::UnsupportedProtocol);
    }
    let echo = match (input.src(), input.dst()) {
        (IpAddr::V4(src), IpAddr::V4(dst))
            if (key.protocol, key.src_port) == (protocol::ICMP, v4::ECHO_REQUEST.into()) =>
        {
            echo_v4(input, src, dst)
        }
        (IpAddr::V6(src), IpAddr::V6(dst))
            if (key.protocol, key.src_port) == (protocol::ICMPV6, v6::ECHO_REQUEST.into()) =>
        {
            echo_v6(input, src, dst)
        }
        _ if key.protocol == protocol::UDP => {
            trace.note(|| "No service listens there.".into());
            return match error_from(guest, input, Error::PortUnreachable, input.dst()) {
                Some(packet) => Verdict::answer(guest.port.id, packet),
                None => Verdict::Drop(DropReason::UnsupportedProtocol),
            };
        }
        _ => {
            trace.note(|| "The gateway has no service for it.".into());
            return drop_flow(key, DropReason::UnsupportedProtocol);
        }
    };
    match echo {
        Ok(ip) => {
            trace.note(|| "An echo request, which it answers.".into());
            Verdict::answer(guest.port.id, frame(guest, key.ethertype, &ip))
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The request turned round. Its checksum is mended, not made anew, so that damage shows.
fn turned(input: Input, reply: u8) -> Result<Vec<u8>, DropReason> {
    let request = IcmpPacket::new_checked(input.transport()?)?;
    let mut message = request.as_bytes().to_vec();
    let sum = mend(request.checksum(), &message[..2], &[reply, message[1]]);
    message[0] = reply;
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(message)
}

fn echo_v4(input: Input, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Vec<u8>, DropReason> {
    let message = turned(input, v4::ECHO_REPLY)?;
    Ok(Ipv4Repr::new(dst, src, protocol::ICMP).emit(&message))
}

fn echo_v6(input: Input, src: Ipv6Addr, dst: Ipv6Addr) -> Result<Vec<u8>, DropReason> {
    // Turning the addresses round leaves the pseudo header's sum as it is.
    let message = turned(input, v6::ECHO_REPLY)?;
    Ok(Ipv6Repr::new(dst, src, protocol::ICMPV6).emit(&message))
}

/// The error that the sender is due, from its gateway; none where the standards forbid one.
pub(crate) fn error(guest: &Guest, input: Input, error: Error) -> Option<Vec<u8>> {
    let from = guest.domain.gateway_for(input.src(), guest.station)?;
    error_from(guest, input, error, from)
}

fn error_from(guest: &Guest, input: Input, error: Error, from: IpAddr) -> Option<Vec<u8>> {
    if !may_be_answered(input) {
        return None;
    }
    let original = input.ip_packet();
    let ip = match (from, input.src()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let quoted = &original[..original.len().min(ERROR_MAX_V4 - 28)];
            // RFC 1812 section 4.3.2.5: errors have precedence 6, and are not fragmented here.
            let ip = Ipv4Repr {
                tos: 0xc0,
                ..Ipv4Repr::new(src, dst, protocol::ICMP)
            };
            ip.emit(&error.v4().emit(quoted))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let quoted = &original[..original.len().min(ERROR_MAX_V6 - 48)];
            Ipv6Repr::new(src, dst, protocol::ICMPV6).emit(&error.v6(src, dst).emit(quoted))
        }
        _ => return None,
    };
    Some(frame(guest, input.key().ethertype, &ip))
}

/// RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 (e): never about an error, a group, a later
/// fragment, or a source that is no single host.
fn may_be_answered(input: Input) -> bool {
    let key = input.key();
    let kind = key.src_port as u8;
    let about_error = match key.protocol {
        protocol::ICMP => !matches!(kind, v4::ECHO_REQUEST | v4::ECHO_REPLY | 13..=18),
        protocol::ICMPV6 => kind < 128 || kind == v6::REDIRECT,
        _ => false,
    };
    let single_source = match input.src() {
        IpAddr::V6(src) if src.is_unicast_link_local() => true,
        src => is_host_address(src),
    };
    let to_group = match input.dst() {
        IpAddr::V4(dst) => dst.is_multicast() || dst.is_broadcast() || dst.is_unspecified(),
        IpAddr::V6(dst) => dst.is_multicast() || dst.is_unspecified(),
    };
    !about_error
        && single_source
        && !to_group
        && !key.eth_dst.is_group()
        && key.fragment != Fragment::Later
}

fn frame(guest: &Guest, kind: u16, ip: &[u8]) -> Vec<u8> {
    let (dst, src) = (guest.port.mac, guest.domain.network.gateway_mac);
    let ethertype = if kind == ethertype::IPV6 {
        ethertype::IPV6
    } else {
        ethertype::IPV4
    };
    EthernetRepr {
        dst,
        src,
        vlan: None,
        ethertype,
    }
    .emit(ip)
}
