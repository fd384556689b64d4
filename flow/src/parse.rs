//! From bytes to a flow key: where the headers are, and what they say.
//!
//! Whatever the bytes, parsing ends with a [`Parsed`] whose offsets lie in the packet or with a
//! [`DropReason`]; it never panics, allocates or loops longer than [`MAX_EXTENSIONS`].
//!
//! What is checked, and what is not:
//!
//! - Lengths: every length field must fit in what encloses it. What follows the IP packet in its
//!   frame is tolerated as far as Ethernet pads ([`PADDED_MAX`]): behind it a guest could hide a frame
//!   of any length from [`Action::CheckMtu`](crate::Action::CheckMtu). Outer frames are not so
//!   judged: they end with their datagram.
//! - The IPv4 header checksum is verified: 20 bytes that are in the cache anyway. Transport
//!   checksums are not: they cover the payload, and the receiver verifies them. Neither is the outer
//!   UDP checksum of a tunnel packet (RFC 7348 section 4 leaves that to the receiver).
//! - All that is read lies in the frame's first [`HEADER_LIMIT`] bytes, so a caller needs to copy
//!   no more than those out of a guest's memory. A longer chain of headers is malformed.
//! - A first fragment must hold the whole transport header (RFC 1858, RFC 7112).
//! - One 802.1Q tag is understood. A second one, and 802.1ad, are a payload of that EtherType.
//! - An IPv6 routing header with segments left and an IPv4 source route are not carried: the final
//!   destination would hide from anti-spoofing and policy (RFC 5095, RFC 7126 sections 4.3 and 4.4).

use crate::Vxlan;
use crate::checksum::checksum;
use crate::ids::PortId;
use crate::key::{FlowKey, Fragment, KeyAddr, TunnelKey};
use crate::reason::DropReason;
use crate::wire::{
    ArpPacket, EthernetFrame, Ipv4Packet, Ipv6Packet, VxlanPacket, arp, ethernet, ethertype, get16,
    icmp, protocol, tcp, udp, vxlan,
};
use std::net::IpAddr;

/// How many bytes of a frame, from its Ethernet header on, are looked at.
pub const HEADER_LIMIT: usize = 256;
/// The longest network layer that may have padding. Ethernet pads to 46 bytes (IEEE 802.3 clause
/// 4.2.3.3); some stations count a tag or the frame check sequence in.
pub const PADDED_MAX: usize = 64;
/// The longest chain of IPv6 extension headers that is followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Bit 12 of [`FlowKey::vlan`]: a tag is there.
const VLAN_PRESENT: u16 = 0x1000;
/// The SCTP common header (RFC 9260 section 3.1).
const SCTP_HEADER_LEN: usize = 12;

/// What parsing found. Offsets count from the packet's first byte, the outer headers included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// What flows match.
    pub key: FlowKey,
    /// The (inner) Ethernet header; 0 without a tunnel.
    pub eth: usize,
    /// The network header: IP, ARP, or whatever follows the Ethernet header.
    pub l3: usize,
    /// The transport header, after IP options and extension headers; the rest of the payload for a
    /// later fragment. For ARP the end of the message, for other EtherTypes equal to `l3`.
    pub l4: usize,
    /// After the TCP header with options, the UDP or SCTP header, or the first 8 bytes of ICMP. For
    /// all else equal to `l4`.
    pub payload: usize,
    /// Bytes of the network-layer packet: from the IP header's length fields, 28 for ARP, and all
    /// to the end of the frame for other EtherTypes.
    pub ip_len: usize,
    /// The end of the (inner) frame, with padding. Bytes after it belong to the outer frame only.
    pub end: usize,
}

impl Parsed {
    /// The end of the network-layer packet: before any padding.
    pub fn ip_end(&self) -> usize {
        self.l3 + self.ip_len
    }

    /// True for IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.key.ethertype == ethertype::IPV4
    }

    /// True for IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.key.ethertype == ethertype::IPV6
    }
}

/// Parses a frame as a port received it.
///
/// # Errors
/// The reason to drop it.
pub fn parse(packet: &[u8], in_port: PortId) -> Result<Parsed, DropReason> {
    parse_headers(packet, packet.len(), in_port)
}

/// Like [`parse`], for a frame of `len` bytes of which only the first, at least [`HEADER_LIMIT`] or
/// all, are at hand.
///
/// # Errors
/// The reason to drop it.
pub fn parse_headers(headers: &[u8], len: usize, in_port: PortId) -> Result<Parsed, DropReason> {
    let mut parsed = station_frame(headers, len)?;
    parsed.key.in_port = in_port;
    Ok(parsed)
}

/// Parses a frame from the underlay: an untagged, unfragmented packet to UDP port 4789 gives the key
/// of the frame in it with [`FlowKey::tunnel`] set, anything else its own key.
///
/// # Errors
/// The reason to drop it. A packet to port 4789 that is no VXLAN is malformed.
pub fn parse_tunnel(packet: &[u8], in_port: PortId) -> Result<Parsed, DropReason> {
    let mut outer = frame(packet, packet.len())?;
    outer.key.in_port = in_port;
    let Some(inner) = inner_of(packet, &outer)? else {
        return Ok(outer);
    };
    let mut parsed = station_frame(&packet[inner.start..inner.end], inner.end - inner.start)?;
    parsed.key.in_port = in_port;
    parsed.key.tunnel = TunnelKey {
        vni: inner.vni,
        src: outer.key.ip_src,
        dst: outer.key.ip_dst,
    };
    for offset in [
        &mut parsed.eth,
        &mut parsed.l3,
        &mut parsed.l4,
        &mut parsed.payload,
        &mut parsed.end,
    ] {
        *offset += inner.start;
    }
    Ok(parsed)
}

/// Where the frame in a VXLAN packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner {
    /// The first byte of the inner Ethernet header.
    pub start: usize,
    /// One past the inner frame's last byte, by the outer UDP length.
    pub end: usize,
    /// The network identifier.
    pub vni: u32,
}

/// Where the frame in this VXLAN packet is: what [`Action::DecapVxlan`](crate::Action::DecapVxlan)
/// takes out. None for a packet that is not VXLAN.
///
/// # Errors
/// The reason to drop it, where it is malformed.
pub fn vxlan_inner(packet: &[u8]) -> Result<Option<Inner>, DropReason> {
    inner_of(packet, &frame(packet, packet.len())?)
}

fn inner_of(packet: &[u8], outer: &Parsed) -> Result<Option<Inner>, DropReason> {
    let key = &outer.key;
    let is_vxlan = (outer.is_ipv4() || outer.is_ipv6())
        && key.vlan == 0
        && key.protocol == protocol::UDP
        && key.fragment == Fragment::No
        && key.dst_port == Vxlan::UDP_PORT;
    if !is_vxlan {
        return Ok(None);
    }
    let end = outer.l4 + usize::from(get16(packet, outer.l4 + 4));
    let header = VxlanPacket::new_checked(&packet[outer.payload..end])?;
    let start = outer.payload + vxlan::HEADER_LEN;
    if end - start < ethernet::HEADER_LEN {
        return Err(DropReason::Malformed);
    }
    Ok(Some(Inner {
        start,
        end,
        vni: header.vni(),
    }))
}

/// A frame of a station: no longer than its packet, but for padding.
fn station_frame(headers: &[u8], len: usize) -> Result<Parsed, DropReason> {
    let parsed = frame(headers, len)?;
    let (padded, whole) = (parsed.end - parsed.l3, parsed.ip_end() == parsed.end);
    if whole || padded <= PADDED_MAX {
        Ok(parsed)
    } else {
        Err(DropReason::Malformed)
    }
}

fn frame(headers: &[u8], len: usize) -> Result<Parsed, DropReason> {
    let h = &headers[..headers.len().min(len).min(HEADER_LIMIT)];
    let eth = EthernetFrame::new_checked(h)?;
    let l3 = eth.header_len();
    let key = FlowKey {
        eth_src: eth.src(),
        eth_dst: eth.dst(),
        // An 802.3 length is not an identity.
        ethertype: if eth.ethertype() < ethertype::FIRST {
            0
        } else {
            eth.ethertype()
        },
        vlan: eth.vlan().map_or(0, |tci| tci | VLAN_PRESENT),
        ..FlowKey::default()
    };
    let parsed = Parsed {
        key,
        eth: 0,
        l3,
        l4: l3,
        payload: l3,
        ip_len: len - l3,
        end: len,
    };
    match key.ethertype {
        ethertype::IPV4 => ipv4(h, parsed),
        ethertype::IPV6 => ipv6(h, parsed),
        ethertype::ARP => arp(h, parsed),
        _ => Ok(parsed),
    }
}

fn arp(h: &[u8], mut parsed: Parsed) -> Result<Parsed, DropReason> {
    let message = ArpPacket::new_checked(&h[parsed.l3..])?;
    let operation = message.operation();
    parsed.key.protocol = u8::try_from(operation).map_err(|_| DropReason::UnsupportedProtocol)?;
    parsed.key.ip_src = IpAddr::V4(message.sender_ip()).into();
    parsed.key.ip_dst = IpAddr::V4(message.target_ip()).into();
    parsed.ip_len = arp::LEN;
    parsed.l4 = parsed.ip_end();
    parsed.payload = parsed.l4;
    Ok(parsed)
}

fn ipv4(h: &[u8], mut parsed: Parsed) -> Result<Parsed, DropReason> {
    let ip = Ipv4Packet::header_within(&h[parsed.l3..], parsed.end - parsed.l3)?;
    if checksum(&ip.as_bytes()[..ip.header_len()]) != 0 {
        return Err(DropReason::BadIpChecksum);
    }
    check_options(&ip.as_bytes()[crate::wire::ipv4::HEADER_LEN..ip.header_len()])?;
    parsed.ip_len = ip.total_len();
    parsed.l4 = parsed.l3 + ip.header_len();
    let key = &mut parsed.key;
    key.ip_src = IpAddr::V4(ip.src()).into();
    key.ip_dst = IpAddr::V4(ip.dst()).into();
    key.protocol = ip.protocol();
    key.fragment = fragment(ip.fragment_offset(), ip.more_fragments());
    transport(h, parsed)
}

/// IPv4 options must be whole, and not a source route.
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    while let [kind, rest @ ..] = options {
        options = match *kind {
            END => return Ok(()),
            NO_OPERATION => rest,
            LOOSE_ROUTE | STRICT_ROUTE => return Err(DropReason::UnsupportedProtocol),
            _ => {
                let length = rest.first().map_or(0, |length| usize::from(*length));
                let after = options.get(length..).filter(|_| length >= 2);
                after.ok_or(DropReason::Malformed)?
            }
        };
    }
    Ok(())
}

fn fragment(offset: usize, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

fn ipv6(h: &[u8], mut parsed: Parsed) -> Result<Parsed, DropReason> {
    let ip = Ipv6Packet::header_within(&h[parsed.l3..], parsed.end - parsed.l3)?;
    parsed.ip_len = ip.total_len();
    parsed.key.ip_src = KeyAddr(ip.src().octets());
    parsed.key.ip_dst = KeyAddr(ip.dst().octets());
    let first = parsed.l3 + crate::wire::ipv6::HEADER_LEN;
    // An IPv4-mapped address on the wire would be mistaken for IPv4 in the key (RFC 4038, 4.2).
    for ip in [ip.src(), ip.dst()] {
        if ip.to_ipv4_mapped().is_some() {
            return Err(DropReason::NotForwardable);
        }
    }
    parsed.key.protocol = ip.next_header();
    parsed.l4 = first;
    let mut fragmented = false;
    for _ in 0..=MAX_EXTENSIONS {
        let next = parsed.key.protocol;
        if !is_extension(next) {
            return transport(h, parsed);
        }
        let at = parsed.l4;
        let header = h.get(at..at + 8).ok_or(DropReason::Malformed)?;
        let length = match next {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if at + length > parsed.ip_end() || (next == protocol::HOP_BY_HOP && at != first) {
            return Err(DropReason::Malformed);
        }
        if next == protocol::ROUTING && header[3] != 0 {
            return Err(DropReason::UnsupportedProtocol);
        }
        parsed.l4 = at + length;
        parsed.key.protocol = header[0];
        if next == protocol::FRAGMENT {
            let field = get16(header, 2);
            let offset = usize::from(field & 0xfff8);
            if fragmented || offset + (parsed.ip_end() - parsed.l4) > 0xffff {
                return Err(DropReason::Malformed);
            }
            fragmented = true;
            parsed.key.fragment = fragment(offset, field & 1 != 0);
            if parsed.key.fragment == Fragment::Later {
                parsed.payload = parsed.l4;
                return Ok(parsed);
            }
        }
    }
    Err(DropReason::Malformed)
}

fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

fn transport(h: &[u8], mut parsed: Parsed) -> Result<Parsed, DropReason> {
    let (at, end, whole) = (
        parsed.l4,
        parsed.ip_end(),
        parsed.key.fragment == Fragment::No,
    );
    parsed.payload = at;
    if parsed.key.fragment == Fragment::Later {
        return Ok(parsed);
    }
    let header_len = match (parsed.key.protocol, parsed.is_ipv4()) {
        (protocol::TCP, _) => tcp::HEADER_LEN,
        (protocol::UDP, _) => udp::HEADER_LEN,
        (protocol::SCTP, _) => SCTP_HEADER_LEN,
        (protocol::ICMP, true) | (protocol::ICMPV6, false) => icmp::HEADER_LEN,
        _ => return Ok(parsed),
    };
    let header = h.get(at..at + header_len).ok_or(DropReason::Malformed)?;
    if at + header_len > end {
        return Err(DropReason::Malformed);
    }
    parsed.payload = at + header_len;
    let key = &mut parsed.key;
    match key.protocol {
        protocol::ICMP | protocol::ICMPV6 => {
            key.src_port = u16::from(header[0]);
            key.dst_port = u16::from(header[1]);
            return Ok(parsed);
        }
        protocol::TCP => {
            let length = usize::from(header[12] >> 4) * 4;
            if length < header_len || (whole && at + length > end) {
                return Err(DropReason::Malformed);
            }
            parsed.payload = (at + length).min(end);
        }
        protocol::UDP => {
            let length = usize::from(get16(header, 4));
            if length < header_len || (whole && at + length > end) {
                return Err(DropReason::Malformed);
            }
        }
        _ => {}
    }
    key.src_port = get16(header, 0);
    key.dst_port = get16(header, 2);
    Ok(parsed)
}
