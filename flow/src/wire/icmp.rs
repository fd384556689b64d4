//! ICMP (RFC 792) and ICMPv6 (RFC 4443): type, code, checksum, four more bytes, and a body.

use super::{array, get16, protocol, put16, view};
use crate::checksum::{checksum, pseudo_header};
use crate::reason::DropReason;
use std::net::Ipv6Addr;

/// Bytes of the header, the four after the checksum included.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is in the header.
pub const CHECKSUM: usize = 2;

/// Types and codes of ICMP.
pub mod v4 {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// The destination cannot be reached.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: larger than the next link takes, and DF is set (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// The TTL ran out (code 0).
    pub const TIME_EXCEEDED: u8 = 11;
}

/// Types of ICMPv6.
pub mod v6 {
    /// The destination cannot be reached.
    pub const UNREACHABLE: u8 = 1;
    /// Larger than the next link takes.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// The hop limit ran out (code 0).
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// A host asks for router advertisements (RFC 4861).
    pub const ROUTER_SOLICIT: u8 = 133;
    /// A router introduces itself.
    pub const ROUTER_ADVERT: u8 = 134;
    /// Who has the target address?
    pub const NEIGHBOUR_SOLICIT: u8 = 135;
    /// I have the target address.
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    /// There is a better first hop.
    pub const REDIRECT: u8 = 137;
}

view! {
    /// A message of either family. The bytes end with the message.
    IcmpPacket
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    if bytes.len() < HEADER_LEN {
        Err(DropReason::Malformed)
    } else {
        Ok(())
    }
}

impl<T: AsRef<[u8]>> IcmpPacket<T> {
    /// The type.
    pub fn kind(&self) -> u8 {
        self.as_bytes()[0]
    }

    /// The code.
    pub fn code(&self) -> u8 {
        self.as_bytes()[1]
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        get16(self.as_bytes(), CHECKSUM)
    }

    /// True where the checksum is right for ICMP over IPv4, which covers no pseudo header.
    pub fn checksum_ok_v4(&self) -> bool {
        checksum(self.as_bytes()) == 0
    }

    /// True where the checksum is right for ICMPv6 between these addresses.
    pub fn checksum_ok_v6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
        let bytes = self.as_bytes();
        let pseudo = pseudo_header(src.into(), dst.into(), protocol::ICMPV6, bytes.len());
        pseudo.bytes(bytes).finish() == 0
    }

    /// The four bytes after the checksum: identifier and sequence of an echo, MTU of an error.
    pub fn rest(&self) -> [u8; 4] {
        array(self.as_bytes(), 4)
    }

    /// All after the header.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[HEADER_LEN..]
    }
}

/// An ICMP message to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmpv4Repr {
    /// A type of [`v4`].
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
}

impl Icmpv4Repr {
    /// The message, checksum computed.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = header(self.kind, self.code, self.rest, payload);
        let sum = checksum(&out);
        put16(&mut out, CHECKSUM, sum);
        out
    }
}

/// An ICMPv6 message to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmpv6Repr {
    /// Source address, for the checksum.
    pub src: Ipv6Addr,
    /// Destination address, for the checksum.
    pub dst: Ipv6Addr,
    /// A type of [`v6`].
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
}

impl Icmpv6Repr {
    /// The message, checksum computed.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = header(self.kind, self.code, self.rest, payload);
        let pseudo = pseudo_header(
            self.src.into(),
            self.dst.into(),
            protocol::ICMPV6,
            out.len(),
        );
        let sum = pseudo.bytes(&out).finish();
        put16(&mut out, CHECKSUM, sum);
        out
    }
}

fn header(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend_from_slice(&rest);
    out.extend_from_slice(payload);
    out
}
