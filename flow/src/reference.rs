//! The reference executor: the meaning of an action list, byte for byte.
//!
//! It is written to be obviously right and nothing else: it copies, allocates and parses again for
//! each step. Every home of flows is tested against it.
//!
//! # What each action does to a packet that it does not fit
//!
//! The list stops with [`DropReason::BadAction`]; copies that were sent stay sent.
//!
//! | action | fits |
//! |---|---|
//! | `SetEthSrc`, `SetEthDst`, `PushVlan`, `EncapVxlan` | 14 bytes or more |
//! | `SetIpSrc`, `SetIpDst` | a packet that [`parse`] takes, of the address's family |
//! | `SetPortSrc`, `SetPortDst` | one that it takes as TCP or UDP over IP, not a later fragment |
//! | `DecTtl` | one that it takes as IP |
//! | `CheckMtu` | one that it takes |
//! | `PopVlan` | 18 bytes or more with TPID 0x8100 |
//! | `EncapVxlan`, further | both addresses of one family, a VNI of 24 bits, an outer IP packet of at most 65535 bytes (IPv6: payload) |
//! | `DecapVxlan` | one in which [`vxlan_inner`] finds a frame |
//!
//! # Checksums
//!
//! Changed addresses and ports mend the checksums that cover them (RFC 1624): a wrong checksum stays
//! wrong, a UDP checksum of zero stays zero. Covering checksums are the IPv4 header's and those of
//! TCP, UDP and ICMPv6, in a first fragment as in a whole packet; a later fragment has none. Other
//! protocols are not looked into.
//!
//! The outer headers of VXLAN: IPv4 has TOS 0, identification 0, DF set, and UDP checksum 0; IPv6 has
//! traffic class 0, flow label 0, and a computed UDP checksum (RFC 8200 section 8.1).
//!
//! # Partial checksums
//!
//! A packet may arrive with a checksum that its sender left to be filled in. The list means what it
//! means for the packet with that checksum filled in first, except where
//! [`partial_csum_travels`]: there it goes along to each output.

use crate::action::{Action, Vxlan};
use crate::checksum::{mend, mend_udp};
use crate::ids::PortId;
use crate::key::Fragment;
use crate::parse::{Parsed, parse, vxlan_inner};
use crate::reason::{DropReason, Punt};
use crate::wire::{
    EthernetFrame, EthernetRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, UdpRepr, ethernet,
    ethertype, get16, icmp, protocol, put16, tcp, udp, vxlan,
};
use std::net::IpAddr;

pub use crate::checksum::PartialCsum;

/// A packet and what its sender left to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The checksum to fill in, if any.
    pub partial_csum: Option<PartialCsum>,
}

impl Packet {
    /// A packet that is complete.
    pub fn complete(bytes: Vec<u8>) -> Packet {
        Packet {
            bytes,
            partial_csum: None,
        }
    }
}

/// How a list ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All steps were done.
    Done,
    /// A step dropped the packet.
    Dropped(DropReason),
    /// A step handed the packet back to the virtual router.
    Punted(Punt),
}

/// What a list did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execution {
    /// What was sent where, in order.
    pub outputs: Vec<(PortId, Packet)>,
    /// How the list ended.
    pub outcome: Outcome,
}

/// True where a partial checksum stays partial through this list: no step looks at or moves bytes
/// that a checksum covers.
pub fn partial_csum_travels(actions: &[Action]) -> bool {
    actions.iter().all(|action| {
        matches!(
            action,
            Action::SetEthSrc(_)
                | Action::SetEthDst(_)
                | Action::DecTtl
                | Action::CheckMtu(_)
                | Action::Output(_)
        )
    })
}

/// Runs the list on the packet.
///
/// An empty list drops with [`DropReason::BadAction`]. A partial checksum whose field is not in the
/// packet drops with [`DropReason::Malformed`] before the first step.
pub fn execute(actions: &[Action], mut packet: Packet) -> Execution {
    let mut outputs = Vec::new();
    let ended = run(actions, &mut packet, &mut outputs);
    Execution {
        outputs,
        outcome: ended.err().unwrap_or(Outcome::Done),
    }
}

const BAD_ACTION: Outcome = Outcome::Dropped(DropReason::BadAction);

fn run(
    actions: &[Action],
    packet: &mut Packet,
    outputs: &mut Vec<(PortId, Packet)>,
) -> Result<(), Outcome> {
    if actions.is_empty() {
        return Err(BAD_ACTION);
    }
    if let Some(partial) = packet.partial_csum {
        if partial.field(packet.bytes.len()).is_none() {
            return Err(Outcome::Dropped(DropReason::Malformed));
        }
        if !partial_csum_travels(actions) {
            partial.fill(&mut packet.bytes).map_err(Outcome::Dropped)?;
            packet.partial_csum = None;
        }
    }
    for action in actions {
        match *action {
            Action::Output(port) => outputs.push((port, packet.clone())),
            Action::Drop(reason) => return Err(Outcome::Dropped(reason)),
            other => change(&mut packet.bytes, other)?,
        }
    }
    Ok(())
}

fn change(bytes: &mut Vec<u8>, action: Action) -> Result<(), Outcome> {
    match action {
        Action::SetEthDst(mac) => bytes
            .get_mut(0..6)
            .ok_or(BAD_ACTION)?
            .copy_from_slice(&mac.0),
        Action::SetEthSrc(mac) => bytes
            .get_mut(6..12)
            .ok_or(BAD_ACTION)?
            .copy_from_slice(&mac.0),
        Action::SetIpSrc(ip) => set_ip(bytes, ip, true)?,
        Action::SetIpDst(ip) => set_ip(bytes, ip, false)?,
        Action::SetPortSrc(port) => set_port(bytes, port, 0)?,
        Action::SetPortDst(port) => set_port(bytes, port, 2)?,
        Action::DecTtl => dec_ttl(bytes)?,
        Action::CheckMtu(mtu) => {
            if parsed(bytes)?.ip_len > usize::from(mtu) {
                return Err(Outcome::Punted(Punt::TooBig));
            }
        }
        Action::PushVlan(tci) => {
            fits(bytes.len() >= ethernet::HEADER_LEN)?;
            let [a, b] = ethertype::VLAN.to_be_bytes();
            let [c, d] = tci.to_be_bytes();
            bytes.splice(12..12, [a, b, c, d]);
        }
        Action::PopVlan => {
            fits(EthernetFrame::new_checked(&*bytes).is_ok_and(|eth| eth.vlan().is_some()))?;
            bytes.drain(12..16);
        }
        Action::EncapVxlan(outer) => *bytes = encap(bytes, &outer)?,
        Action::DecapVxlan => {
            let inner = vxlan_inner(bytes).ok().flatten().ok_or(BAD_ACTION)?;
            *bytes = bytes[inner.start..inner.end].to_vec();
        }
        Action::Output(_) | Action::Drop(_) => {}
    }
    Ok(())
}

fn fits(condition: bool) -> Result<(), Outcome> {
    if condition { Ok(()) } else { Err(BAD_ACTION) }
}

fn parsed(bytes: &[u8]) -> Result<Parsed, Outcome> {
    parse(bytes, PortId::default()).map_err(|_| BAD_ACTION)
}

/// The transport checksum that covers the addresses, and whether it is UDP's.
fn transport_checksum(at: &Parsed) -> Option<(usize, bool)> {
    match (at.key.fragment, at.key.protocol, at.is_ipv6()) {
        (Fragment::Later, ..) => None,
        (_, protocol::TCP, _) => Some((at.l4 + tcp::CHECKSUM, false)),
        (_, protocol::UDP, _) => Some((at.l4 + udp::CHECKSUM, true)),
        (_, protocol::ICMPV6, true) => Some((at.l4 + icmp::CHECKSUM, false)),
        _ => None,
    }
}

fn mend_transport(bytes: &mut [u8], at: &Parsed, old: &[u8], new: &[u8]) {
    if let Some((field, is_udp)) = transport_checksum(at) {
        let mend = if is_udp { mend_udp } else { mend };
        let sum = mend(get16(bytes, field), old, new);
        put16(bytes, field, sum);
    }
}

fn set_ip(bytes: &mut [u8], ip: IpAddr, source: bool) -> Result<(), Outcome> {
    let at = parsed(bytes)?;
    let new = match ip {
        IpAddr::V4(ip) if at.is_ipv4() => ip.octets().to_vec(),
        IpAddr::V6(ip) if at.is_ipv6() => ip.octets().to_vec(),
        _ => return Err(BAD_ACTION),
    };
    let first = at.l3 + if at.is_ipv4() { 12 } else { 8 };
    let field = if source { first } else { first + new.len() };
    let old = bytes[field..field + new.len()].to_vec();
    bytes[field..field + new.len()].copy_from_slice(&new);
    if at.is_ipv4() {
        let sum = mend(get16(bytes, at.l3 + 10), &old, &new);
        put16(bytes, at.l3 + 10, sum);
    }
    mend_transport(bytes, &at, &old, &new);
    Ok(())
}

fn set_port(bytes: &mut [u8], port: u16, offset: usize) -> Result<(), Outcome> {
    let at = parsed(bytes)?;
    let has_ports = (at.is_ipv4() || at.is_ipv6())
        && matches!(at.key.protocol, protocol::TCP | protocol::UDP)
        && at.key.fragment != Fragment::Later;
    fits(has_ports)?;
    let field = at.l4 + offset;
    let old = get16(bytes, field).to_be_bytes();
    put16(bytes, field, port);
    mend_transport(bytes, &at, &old, &port.to_be_bytes());
    Ok(())
}

fn dec_ttl(bytes: &mut [u8]) -> Result<(), Outcome> {
    let at = parsed(bytes)?;
    let header = &mut bytes[at.l3..];
    if at.is_ipv4() {
        let mut ip = Ipv4Packet::new_checked(header).map_err(|_| BAD_ACTION)?;
        if ip.ttl() <= 1 {
            return Err(Outcome::Punted(Punt::TtlExceeded));
        }
        let (old, new) = ([ip.ttl(), ip.protocol()], [ip.ttl() - 1, ip.protocol()]);
        ip.set_checksum(mend(ip.checksum(), &old, &new));
        ip.set_ttl(new[0]);
    } else if at.is_ipv6() {
        let mut ip = Ipv6Packet::new_checked(header).map_err(|_| BAD_ACTION)?;
        if ip.hop_limit() <= 1 {
            return Err(Outcome::Punted(Punt::TtlExceeded));
        }
        ip.set_hop_limit(ip.hop_limit() - 1);
    } else {
        return Err(BAD_ACTION);
    }
    Ok(())
}

fn encap(frame: &[u8], outer: &Vxlan) -> Result<Vec<u8>, Outcome> {
    fits(frame.len() >= ethernet::HEADER_LEN && outer.vni <= vxlan::MAX_VNI)?;
    let mut payload = vxlan::header(outer.vni).to_vec();
    payload.extend_from_slice(frame);
    let datagram = udp::HEADER_LEN + payload.len();
    let udp = UdpRepr {
        src: outer.src,
        dst: outer.dst,
        src_port: outer.src_port,
        dst_port: Vxlan::UDP_PORT,
    };
    let (kind, packet) = match (outer.src, outer.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            fits(crate::wire::ipv4::HEADER_LEN + datagram <= 0xffff)?;
            let mut udp = udp.emit(&payload);
            put16(&mut udp, udp::CHECKSUM, 0);
            let ip = Ipv4Repr {
                ttl: outer.ttl,
                ..Ipv4Repr::new(src, dst, protocol::UDP)
            };
            (ethertype::IPV4, ip.emit(&udp))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            fits(datagram <= 0xffff)?;
            let ip = Ipv6Repr {
                hop_limit: outer.ttl,
                ..Ipv6Repr::new(src, dst, protocol::UDP)
            };
            (ethertype::IPV6, ip.emit(&udp.emit(&payload)))
        }
        _ => return Err(BAD_ACTION),
    };
    let eth = EthernetRepr {
        dst: outer.eth_dst,
        src: outer.eth_src,
        vlan: None,
        ethertype: kind,
    };
    Ok(eth.emit(&packet))
}
