//! IPv4 (RFC 791).

use super::{array, get16, length16, put16, view};
use crate::checksum::checksum;
use crate::reason::DropReason;
use std::net::Ipv4Addr;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

view! {
    /// A packet whose header and options are whole and whose total length is in the bytes. The
    /// checksum is not looked at: see [`Ipv4Packet::checksum_ok`].
    Ipv4Packet
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    check_within(bytes, bytes.len())
}

fn check_within(bytes: &[u8], room: usize) -> Result<(), DropReason> {
    if bytes.len() < HEADER_LEN || bytes[0] >> 4 != 4 {
        return Err(DropReason::Malformed);
    }
    let header = usize::from(bytes[0] & 15) * 4;
    let total = usize::from(get16(bytes, 2));
    let end = usize::from(get16(bytes, 6) & 0x1fff) * 8 + total.saturating_sub(header);
    let possible = header >= HEADER_LEN
        && header <= total
        && header <= bytes.len()
        && total <= room
        && end <= 0xffff;
    if possible {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

impl<'a> Ipv4Packet<&'a [u8]> {
    /// A view of which only the header may be here, in a packet of at most `room` bytes. Its
    /// payload must not be asked for.
    pub(crate) fn header_within(bytes: &'a [u8], room: usize) -> Result<Self, DropReason> {
        check_within(bytes, room)?;
        Ok(Ipv4Packet(bytes))
    }
}

impl<T: AsRef<[u8]>> Ipv4Packet<T> {
    /// Bytes of the header with options.
    pub fn header_len(&self) -> usize {
        usize::from(self.as_bytes()[0] & 15) * 4
    }

    /// DSCP and ECN.
    pub fn tos(&self) -> u8 {
        self.as_bytes()[1]
    }

    /// Bytes of header and payload.
    pub fn total_len(&self) -> usize {
        usize::from(get16(self.as_bytes(), 2))
    }

    /// Identification, for reassembly.
    pub fn id(&self) -> u16 {
        get16(self.as_bytes(), 4)
    }

    /// True where routers must not fragment.
    pub fn dont_fragment(&self) -> bool {
        self.as_bytes()[6] & 0x40 != 0
    }

    /// True in all fragments but the last.
    pub fn more_fragments(&self) -> bool {
        self.as_bytes()[6] & 0x20 != 0
    }

    /// Where this fragment belongs, in bytes.
    pub fn fragment_offset(&self) -> usize {
        usize::from(get16(self.as_bytes(), 6) & 0x1fff) * 8
    }

    /// Time to live.
    pub fn ttl(&self) -> u8 {
        self.as_bytes()[8]
    }

    /// What the payload is.
    pub fn protocol(&self) -> u8 {
        self.as_bytes()[9]
    }

    /// The header's checksum.
    pub fn checksum(&self) -> u16 {
        get16(self.as_bytes(), 10)
    }

    /// True where the header's checksum is right.
    pub fn checksum_ok(&self) -> bool {
        checksum(&self.as_bytes()[..self.header_len()]) == 0
    }

    /// Source.
    pub fn src(&self) -> Ipv4Addr {
        array::<4>(self.as_bytes(), 12).into()
    }

    /// Destination.
    pub fn dst(&self) -> Ipv4Addr {
        array::<4>(self.as_bytes(), 16).into()
    }

    /// The payload, without what follows the packet in its frame.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[self.header_len()..self.total_len()]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv4Packet<T> {
    /// Sets the time to live. The checksum is left alone.
    pub fn set_ttl(&mut self, ttl: u8) {
        self.0.as_mut()[8] = ttl;
    }

    /// Sets the header's checksum.
    pub fn set_checksum(&mut self, checksum: u16) {
        put16(self.0.as_mut(), 10, checksum);
    }

    /// Sets the source. Checksums are left alone.
    pub fn set_src(&mut self, ip: Ipv4Addr) {
        self.0.as_mut()[12..16].copy_from_slice(&ip.octets());
    }

    /// Sets the destination. Checksums are left alone.
    pub fn set_dst(&mut self, ip: Ipv4Addr) {
        self.0.as_mut()[16..20].copy_from_slice(&ip.octets());
    }
}

/// A packet to send: no options, not a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Repr {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification. Zero is right for a packet that is never fragmented (RFC 6864).
    pub id: u16,
    /// Whether routers must not fragment.
    pub dont_fragment: bool,
}

impl Ipv4Repr {
    /// A packet with TTL 64, TOS 0, identification 0 and DF set.
    pub const fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) -> Self {
        Ipv4Repr {
            src,
            dst,
            protocol,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: true,
        }
    }

    /// Writes the header for a payload of `payload` bytes to the front of `out`, checksum included.
    ///
    /// # Panics
    /// Where header and payload are over 65535 bytes, or `out` is shorter than the header.
    pub fn write_header(&self, payload: usize, out: &mut [u8]) {
        let out = &mut out[..HEADER_LEN];
        out.fill(0);
        out[0] = 0x45;
        out[1] = self.tos;
        put16(out, 2, length16(HEADER_LEN + payload));
        put16(out, 4, self.id);
        put16(out, 6, if self.dont_fragment { 0x4000 } else { 0 });
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..20].copy_from_slice(&self.dst.octets());
        let sum = checksum(out);
        put16(out, 10, sum);
    }

    /// The packet.
    ///
    /// # Panics
    /// Where header and payload are over 65535 bytes.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        self.write_header(payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }
}
