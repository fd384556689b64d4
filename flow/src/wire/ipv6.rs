//! IPv6 (RFC 8200). Extension headers are walked by [`parse`](mod@crate::parse).

use super::{array, get16, length16, put16, view};
use crate::reason::DropReason;
use std::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

view! {
    /// A packet whose fixed header is whole and whose payload length is in the bytes. Jumbograms
    /// (RFC 2675) are not carried.
    Ipv6Packet
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    check_within(bytes, bytes.len())
}

fn check_within(bytes: &[u8], room: usize) -> Result<(), DropReason> {
    let whole = bytes.len() >= HEADER_LEN && bytes[0] >> 4 == 6;
    if whole && HEADER_LEN + usize::from(get16(bytes, 4)) <= room {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

impl<'a> Ipv6Packet<&'a [u8]> {
    /// A view of which only the header may be here, in a packet of at most `room` bytes. Its
    /// payload must not be asked for.
    pub(crate) fn header_within(bytes: &'a [u8], room: usize) -> Result<Self, DropReason> {
        check_within(bytes, room)?;
        Ok(Ipv6Packet(bytes))
    }
}

impl<T: AsRef<[u8]>> Ipv6Packet<T> {
    /// DSCP and ECN.
    pub fn traffic_class(&self) -> u8 {
        let bytes = self.as_bytes();
        bytes[0] << 4 | bytes[1] >> 4
    }

    /// Bytes after the fixed header.
    pub fn payload_len(&self) -> usize {
        usize::from(get16(self.as_bytes(), 4))
    }

    /// Bytes of header and payload.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.payload_len()
    }

    /// What follows the fixed header: an extension header or a transport protocol.
    pub fn next_header(&self) -> u8 {
        self.as_bytes()[6]
    }

    /// Hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.as_bytes()[7]
    }

    /// Source.
    pub fn src(&self) -> Ipv6Addr {
        array::<16>(self.as_bytes(), 8).into()
    }

    /// Destination.
    pub fn dst(&self) -> Ipv6Addr {
        array::<16>(self.as_bytes(), 24).into()
    }

    /// All after the fixed header, without what follows the packet in its frame.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[HEADER_LEN..self.total_len()]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv6Packet<T> {
    /// Sets the hop limit.
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.0.as_mut()[7] = hops;
    }

    /// Sets the source. Checksums are left alone.
    pub fn set_src(&mut self, ip: Ipv6Addr) {
        self.0.as_mut()[8..24].copy_from_slice(&ip.octets());
    }

    /// Sets the destination. Checksums are left alone.
    pub fn set_dst(&mut self, ip: Ipv6Addr) {
        self.0.as_mut()[24..40].copy_from_slice(&ip.octets());
    }
}

/// A packet to send, without extension headers and with flow label 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Repr {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// What the payload is.
    pub next_header: u8,
    /// Hop limit. Neighbour discovery requires 255 (RFC 4861).
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
}

impl Ipv6Repr {
    /// A packet with hop limit 64 and traffic class 0.
    pub const fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8) -> Self {
        Ipv6Repr {
            src,
            dst,
            next_header,
            hop_limit: 64,
            traffic_class: 0,
        }
    }

    /// Writes the header for a payload of `payload` bytes to the front of `out`.
    ///
    /// # Panics
    /// Where the payload is over 65535 bytes, or `out` is shorter than the header.
    pub fn write_header(&self, payload: usize, out: &mut [u8]) {
        let out = &mut out[..HEADER_LEN];
        out.fill(0);
        out[0] = 0x60 | self.traffic_class >> 4;
        out[1] = self.traffic_class << 4;
        put16(out, 4, length16(payload));
        out[6] = self.next_header;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.src.octets());
        out[24..40].copy_from_slice(&self.dst.octets());
    }

    /// The packet.
    ///
    /// # Panics
    /// Where the payload is over 65535 bytes.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        self.write_header(payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }
}
