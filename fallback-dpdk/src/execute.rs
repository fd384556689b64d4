//! Runs an action list on a packet in its buffer: the fast twin of [`flow::reference::execute`].
//!
//! The meaning is the reference's, byte for byte; a property test holds the two together. What is
//! different is how: nothing is parsed again that is known, headers are put into the headroom and
//! taken off in place, and a packet is copied only where an output is not its last use.

use crate::table::Program;
use dpdk::{Mbuf, Mempool};
use flow::checksum::{Sum, mend, mend_udp, pseudo_header};
use flow::parse::{PADDED_MAX, vxlan_inner};
use flow::reference::Outcome;
use flow::wire::{EthernetRepr, Ipv4Repr, Ipv6Repr, UdpRepr};
use flow::wire::{ethernet, ethertype, icmp, ipv4, ipv6, protocol, tcp, udp, vxlan};
use flow::{Action, DropReason, Fragment, Parsed, PartialCsum, PortId, Punt, Vxlan};
use std::net::IpAddr;

/// Where outputs go.
pub(crate) trait Outputs {
    /// Sends a copy; the packet is still needed.
    fn copy(&mut self, port: PortId, packet: &Mbuf, csum: Option<PartialCsum>);
    /// Sends the packet itself.
    fn give(&mut self, port: PortId, packet: Mbuf, csum: Option<PartialCsum>);
}

const BAD_ACTION: Outcome = Outcome::Dropped(DropReason::BadAction);
const NO_BUFFER: Outcome = Outcome::Dropped(DropReason::NoBuffer);

/// Runs `program` on `packet`. `parsed` is what parsing it found when it came in: offsets with
/// `eth` zero describe the packet itself, others the frame in a tunnel. The outcome is the
/// reference's, except that a packet that finds no room for more headers is dropped with
/// [`DropReason::NoBuffer`].
pub(crate) fn execute(
    program: &Program,
    packet: Mbuf,
    csum: Option<PartialCsum>,
    parsed: &Parsed,
    pool: &Mempool,
    outputs: &mut impl Outputs,
) -> Outcome {
    let mut run = Run {
        packet,
        csum,
        view: View::of(parsed),
        pool,
    };
    if let Err(outcome) = run.settle_checksum(program) {
        return outcome;
    }
    let Some((last, before)) = program.actions.split_last() else {
        return BAD_ACTION;
    };
    for action in before {
        match *action {
            Action::Output(port) => outputs.copy(port, &run.packet, run.csum),
            ref other => {
                if let Err(outcome) = run.change(other) {
                    return outcome;
                }
            }
        }
    }
    match *last {
        Action::Output(port) => outputs.give(port, run.packet, run.csum),
        ref other => {
            if let Err(outcome) = run.change(other) {
                return outcome;
            }
        }
    }
    Outcome::Done
}

/// What is known of the packet's layout at this step.
#[derive(Clone, Copy)]
enum View {
    /// The offsets are right for the packet as it is.
    Plain(Layout),
    /// It came in a tunnel: this is the frame inside, which `DecapVxlan` will bare.
    Inside {
        frame: Layout,
        start: usize,
        end: usize,
    },
    /// Something changed: parse when it is needed.
    Unknown,
}

/// The part of [`Parsed`] that actions need.
#[derive(Clone, Copy)]
struct Layout {
    l3: usize,
    l4: usize,
    ip_len: usize,
    ethertype: u16,
    protocol: u8,
    fragment: Fragment,
}

impl Layout {
    fn new(parsed: &Parsed) -> Self {
        Layout {
            l3: parsed.l3 - parsed.eth,
            l4: parsed.l4 - parsed.eth,
            ip_len: parsed.ip_len,
            ethertype: parsed.key.ethertype,
            protocol: parsed.key.protocol,
            fragment: parsed.key.fragment,
        }
    }

    fn is_ipv4(&self) -> bool {
        self.ethertype == ethertype::IPV4
    }

    fn is_ipv6(&self) -> bool {
        self.ethertype == ethertype::IPV6
    }

    /// The transport checksum that covers the addresses, and whether it is UDP's.
    fn transport_checksum(&self) -> Option<(usize, bool)> {
        if self.fragment == Fragment::Later {
            return None;
        }
        match self.protocol {
            protocol::TCP => Some((self.l4 + tcp::CHECKSUM, false)),
            protocol::UDP => Some((self.l4 + udp::CHECKSUM, true)),
            protocol::ICMPV6 if self.is_ipv6() => Some((self.l4 + icmp::CHECKSUM, false)),
            _ => None,
        }
    }
}

impl View {
    fn of(parsed: &Parsed) -> Self {
        if parsed.eth == 0 {
            // What follows a packet of the underlay is tolerated where a station's frame is not.
            if parsed.ip_end() < parsed.end && parsed.end - parsed.l3 > PADDED_MAX {
                return View::Unknown;
            }
            View::Plain(Layout::new(parsed))
        } else {
            View::Inside {
                frame: Layout::new(parsed),
                start: parsed.eth,
                end: parsed.end,
            }
        }
    }
}

struct Run<'a> {
    packet: Mbuf,
    csum: Option<PartialCsum>,
    view: View,
    pool: &'a Mempool,
}

impl Run<'_> {
    /// Fills a partial checksum in, where the list does not let it travel.
    fn settle_checksum(&mut self, program: &Program) -> Result<(), Outcome> {
        let Some(csum) = self.csum else { return Ok(()) };
        if program.actions.is_empty() {
            return Err(BAD_ACTION);
        }
        let field = csum
            .field(self.packet.len())
            .ok_or(Outcome::Dropped(DropReason::Malformed))?;
        if program.keeps_partial {
            return Ok(());
        }
        csum.fill(self.packet.data_mut())
            .map_err(Outcome::Dropped)?;
        self.csum = None;
        // A field in the headers may have changed what they say. The usual ones have not.
        if let View::Plain(at) = self.view
            && at
                .transport_checksum()
                .is_some_and(|(usual, _)| usual == field)
        {
            return Ok(());
        }
        self.view = View::Unknown;
        Ok(())
    }

    fn layout(&mut self) -> Result<Layout, Outcome> {
        if let View::Plain(layout) = self.view {
            return Ok(layout);
        }
        let parsed = flow::parse(self.packet.data(), PortId::default()).map_err(|_| BAD_ACTION)?;
        let layout = Layout::new(&parsed);
        // The view of the frame inside is kept: the outer headers are rarely looked at.
        if matches!(self.view, View::Unknown) {
            self.view = View::Plain(layout);
        }
        Ok(layout)
    }

    fn change(&mut self, action: &Action) -> Result<(), Outcome> {
        match *action {
            Action::SetEthDst(mac) => {
                self.packet
                    .data_mut()
                    .get_mut(0..6)
                    .ok_or(BAD_ACTION)?
                    .copy_from_slice(&mac.0);
            }
            Action::SetEthSrc(mac) => {
                self.packet
                    .data_mut()
                    .get_mut(6..12)
                    .ok_or(BAD_ACTION)?
                    .copy_from_slice(&mac.0);
            }
            Action::SetIpSrc(ip) => self.set_ip(ip, true)?,
            Action::SetIpDst(ip) => self.set_ip(ip, false)?,
            Action::SetPortSrc(port) => self.set_port(port, 0)?,
            Action::SetPortDst(port) => self.set_port(port, 2)?,
            Action::DecTtl => self.dec_ttl()?,
            Action::CheckMtu(mtu) => {
                if self.layout()?.ip_len > usize::from(mtu) {
                    return Err(Outcome::Punted(Punt::TooBig));
                }
            }
            Action::PushVlan(tci) => self.push_vlan(tci)?,
            Action::PopVlan => self.pop_vlan()?,
            Action::EncapVxlan(ref outer) => self.encap(outer)?,
            Action::DecapVxlan => self.decap()?,
            Action::Drop(reason) => return Err(Outcome::Dropped(reason)),
            Action::Output(_) => {}
        }
        Ok(())
    }

    /// Changed headers of a tunnel packet: what was known of the frame inside may not hold.
    fn outer_changed(&mut self) {
        if matches!(self.view, View::Inside { .. }) {
            self.view = View::Unknown;
        }
    }

    fn mend_transport(&mut self, at: &Layout, old: &[u8], new: &[u8]) {
        if let Some((field, is_udp)) = at.transport_checksum() {
            let bytes = self.packet.data_mut();
            let mend = if is_udp { mend_udp } else { mend };
            put16(bytes, field, mend(get16(bytes, field), old, new));
        }
    }

    fn set_ip(&mut self, ip: IpAddr, source: bool) -> Result<(), Outcome> {
        let at = self.layout()?;
        let (mut new, mut old) = ([0; 16], [0; 16]);
        let (length, first) = match ip {
            IpAddr::V4(ip) if at.is_ipv4() => {
                new[..4].copy_from_slice(&ip.octets());
                (4, at.l3 + 12)
            }
            IpAddr::V6(ip) if at.is_ipv6() => {
                new = ip.octets();
                (16, at.l3 + 8)
            }
            _ => return Err(BAD_ACTION),
        };
        let field = if source { first } else { first + length };
        let (new, old) = (&new[..length], &mut old[..length]);
        let bytes = self.packet.data_mut();
        old.copy_from_slice(&bytes[field..field + length]);
        bytes[field..field + length].copy_from_slice(new);
        if at.is_ipv4() {
            let sum = mend(get16(bytes, at.l3 + 10), old, new);
            put16(bytes, at.l3 + 10, sum);
        }
        self.mend_transport(&at, old, new);
        self.outer_changed();
        if at.is_ipv6() {
            // Some addresses make the packet one that parsing refuses.
            self.view = View::Unknown;
        }
        Ok(())
    }

    fn set_port(&mut self, port: u16, offset: usize) -> Result<(), Outcome> {
        let at = self.layout()?;
        let has_ports = (at.is_ipv4() || at.is_ipv6())
            && matches!(at.protocol, protocol::TCP | protocol::UDP)
            && at.fragment != Fragment::Later;
        if !has_ports {
            return Err(BAD_ACTION);
        }
        let field = at.l4 + offset;
        let bytes = self.packet.data_mut();
        let old = get16(bytes, field).to_be_bytes();
        put16(bytes, field, port);
        self.mend_transport(&at, &old, &port.to_be_bytes());
        self.outer_changed();
        Ok(())
    }

    fn dec_ttl(&mut self) -> Result<(), Outcome> {
        let at = self.layout()?;
        let bytes = self.packet.data_mut();
        if at.is_ipv4() {
            let (ttl, next) = (bytes[at.l3 + 8], bytes[at.l3 + 9]);
            let lower = ttl.checked_sub(1).filter(|ttl| *ttl > 0);
            let lower = lower.ok_or(Outcome::Punted(Punt::TtlExceeded))?;
            let sum = mend(get16(bytes, at.l3 + 10), &[ttl, next], &[lower, next]);
            put16(bytes, at.l3 + 10, sum);
            bytes[at.l3 + 8] = lower;
        } else if at.is_ipv6() {
            let lower = bytes[at.l3 + 7].checked_sub(1).filter(|hops| *hops > 0);
            bytes[at.l3 + 7] = lower.ok_or(Outcome::Punted(Punt::TtlExceeded))?;
        } else {
            return Err(BAD_ACTION);
        }
        Ok(())
    }

    fn push_vlan(&mut self, tci: u16) -> Result<(), Outcome> {
        if self.packet.len() < ethernet::HEADER_LEN {
            return Err(BAD_ACTION);
        }
        self.prepend(ethernet::TAG_LEN)?;
        let bytes = self.packet.data_mut();
        bytes.copy_within(4..16, 0);
        put16(bytes, 12, ethertype::VLAN);
        put16(bytes, 14, tci);
        self.view = View::Unknown;
        Ok(())
    }

    fn pop_vlan(&mut self) -> Result<(), Outcome> {
        let bytes = self.packet.data_mut();
        if bytes.len() < 18 || get16(bytes, 12) != ethertype::VLAN {
            return Err(BAD_ACTION);
        }
        bytes.copy_within(0..12, 4);
        self.trim_front(ethernet::TAG_LEN)?;
        self.view = View::Unknown;
        Ok(())
    }

    fn encap(&mut self, outer: &Vxlan) -> Result<(), Outcome> {
        let frame = self.packet.len();
        if frame < ethernet::HEADER_LEN || outer.vni > vxlan::MAX_VNI {
            return Err(BAD_ACTION);
        }
        let payload = vxlan::HEADER_LEN + frame;
        let datagram = udp::HEADER_LEN + payload;
        let repr = UdpRepr {
            src: outer.src,
            dst: outer.dst,
            src_port: outer.src_port,
            dst_port: Vxlan::UDP_PORT,
        };
        let (kind, ip_header) = match (outer.src, outer.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) if ipv4::HEADER_LEN + datagram <= 0xffff => {
                (ethertype::IPV4, ipv4::HEADER_LEN)
            }
            (IpAddr::V6(_), IpAddr::V6(_)) if datagram <= 0xffff => {
                (ethertype::IPV6, ipv6::HEADER_LEN)
            }
            _ => return Err(BAD_ACTION),
        };
        self.prepend(outer.overhead())?;
        let bytes = self.packet.data_mut();
        let ethernet = EthernetRepr {
            dst: outer.eth_dst,
            src: outer.eth_src,
            vlan: None,
            ethertype: kind,
        };
        ethernet.write_header(bytes);
        let l3 = ethernet::HEADER_LEN;
        let l4 = l3 + ip_header;
        repr.write_header(payload, &mut bytes[l4..]);
        bytes[l4 + 8..l4 + 16].copy_from_slice(&vxlan::header(outer.vni));
        match (outer.src, outer.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                put16(bytes, l4 + udp::CHECKSUM, 0);
                let ip = Ipv4Repr {
                    ttl: outer.ttl,
                    ..Ipv4Repr::new(src, dst, protocol::UDP)
                };
                ip.write_header(datagram, &mut bytes[l3..]);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                put16(bytes, l4 + udp::CHECKSUM, 0);
                let pseudo = pseudo_header(outer.src, outer.dst, protocol::UDP, datagram);
                let sum: Sum = pseudo.bytes(&bytes[l4..]);
                put16(bytes, l4 + udp::CHECKSUM, sum.finish_udp());
                let ip = Ipv6Repr {
                    hop_limit: outer.ttl,
                    ..Ipv6Repr::new(src, dst, protocol::UDP)
                };
                ip.write_header(datagram, &mut bytes[l3..]);
            }
            _ => return Err(BAD_ACTION),
        }
        self.view = View::Unknown;
        Ok(())
    }

    fn decap(&mut self) -> Result<(), Outcome> {
        let (start, end, view) = match self.view {
            View::Inside { frame, start, end } => (start, end, View::Plain(frame)),
            View::Plain(_) | View::Unknown => {
                let inner = vxlan_inner(self.packet.data())
                    .ok()
                    .flatten()
                    .ok_or(BAD_ACTION)?;
                (inner.start, inner.end, View::Unknown)
            }
        };
        self.packet.truncate(end);
        self.trim_front(start)?;
        self.view = view;
        Ok(())
    }

    fn trim_front(&mut self, n: usize) -> Result<(), Outcome> {
        if self.packet.trim_front(n) {
            Ok(())
        } else {
            Err(BAD_ACTION)
        }
    }

    /// Room for `n` bytes in front; in another buffer where this one has none.
    fn prepend(&mut self, n: usize) -> Result<(), Outcome> {
        if self.packet.prepend(n).is_some() {
            return Ok(());
        }
        let mut roomier = self.pool.alloc().ok_or(NO_BUFFER)?;
        let bytes = roomier.append(n + self.packet.len()).ok_or(NO_BUFFER)?;
        bytes[n..].copy_from_slice(self.packet.data());
        self.packet = roomier;
        Ok(())
    }
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
