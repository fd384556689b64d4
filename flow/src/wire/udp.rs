//! UDP (RFC 768).

use super::{get16, length16, protocol, put16, view};
use crate::checksum::pseudo_header;
use crate::reason::DropReason;
use std::net::IpAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is in the header.
pub const CHECKSUM: usize = 6;

view! {
    /// A whole datagram: its length field is at least a header and in the bytes.
    UdpDatagram
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    if bytes.len() < HEADER_LEN {
        return Err(DropReason::Malformed);
    }
    let length = usize::from(get16(bytes, 4));
    if (HEADER_LEN..=bytes.len()).contains(&length) {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

impl<T: AsRef<[u8]>> UdpDatagram<T> {
    /// Source port.
    pub fn src_port(&self) -> u16 {
        get16(self.as_bytes(), 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        get16(self.as_bytes(), 2)
    }

    /// Bytes of header and payload.
    pub fn length(&self) -> usize {
        usize::from(get16(self.as_bytes(), 4))
    }

    /// The checksum; zero means none.
    pub fn checksum(&self) -> u16 {
        get16(self.as_bytes(), CHECKSUM)
    }

    /// True where the checksum is right for these addresses, or there is none.
    pub fn checksum_ok(&self, src: IpAddr, dst: IpAddr) -> bool {
        let bytes = &self.as_bytes()[..self.length()];
        self.checksum() == 0
            || pseudo_header(src, dst, protocol::UDP, bytes.len())
                .bytes(bytes)
                .finish()
                == 0
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[HEADER_LEN..self.length()]
    }
}

/// A datagram to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpRepr {
    /// Source address, for the checksum.
    pub src: IpAddr,
    /// Destination address, for the checksum. Of the same family as `src`.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl UdpRepr {
    /// Writes the header for a payload of `payload` bytes to the front of `out`, with checksum 0.
    ///
    /// # Panics
    /// Where header and payload are over 65535 bytes, or `out` is shorter than the header.
    pub fn write_header(&self, payload: usize, out: &mut [u8]) {
        put16(out, 0, self.src_port);
        put16(out, 2, self.dst_port);
        put16(out, 4, length16(HEADER_LEN + payload));
        put16(out, CHECKSUM, 0);
    }

    /// The datagram, checksum computed.
    ///
    /// # Panics
    /// Where header and payload are over 65535 bytes.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        self.write_header(payload.len(), &mut out);
        out.extend_from_slice(payload);
        let sum = pseudo_header(self.src, self.dst, protocol::UDP, out.len()).bytes(&out);
        put16(&mut out, CHECKSUM, sum.finish_udp());
        out
    }
}
