//! TCP (RFC 9293): as much of the header as the data plane looks at.

use super::{get16, protocol, put16, view};
use crate::checksum::pseudo_header;
use crate::reason::DropReason;
use std::net::IpAddr;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum is in the header.
pub const CHECKSUM: usize = 16;

/// The flag bits.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

view! {
    /// A segment whose header and options are whole.
    TcpSegment
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    if bytes.len() < HEADER_LEN {
        return Err(DropReason::Malformed);
    }
    let header = usize::from(bytes[12] >> 4) * 4;
    if (HEADER_LEN..=bytes.len()).contains(&header) {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

impl<T: AsRef<[u8]>> TcpSegment<T> {
    /// Source port.
    pub fn src_port(&self) -> u16 {
        get16(self.as_bytes(), 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        get16(self.as_bytes(), 2)
    }

    /// Sequence number.
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(super::array(self.as_bytes(), 4))
    }

    /// Bytes of the header with options.
    pub fn header_len(&self) -> usize {
        usize::from(self.as_bytes()[12] >> 4) * 4
    }

    /// The bits of [`flags`].
    pub fn flags(&self) -> u8 {
        self.as_bytes()[13]
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        get16(self.as_bytes(), CHECKSUM)
    }

    /// True where the checksum is right for these addresses. The bytes end with the segment.
    pub fn checksum_ok(&self, src: IpAddr, dst: IpAddr) -> bool {
        let bytes = self.as_bytes();
        pseudo_header(src, dst, protocol::TCP, bytes.len())
            .bytes(bytes)
            .finish()
            == 0
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[self.header_len()..]
    }
}

/// A segment to send, without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpRepr {
    /// Source address, for the checksum.
    pub src: IpAddr,
    /// Destination address, for the checksum. Of the same family as `src`.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// The bits of [`flags`].
    pub flags: u8,
    /// Receive window.
    pub window: u16,
}

impl TcpRepr {
    /// The segment, checksum computed.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        put16(&mut out, 0, self.src_port);
        put16(&mut out, 2, self.dst_port);
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        out[12] = 5 << 4;
        out[13] = self.flags;
        put16(&mut out, 14, self.window);
        out.extend_from_slice(payload);
        let sum = pseudo_header(self.src, self.dst, protocol::TCP, out.len()).bytes(&out);
        put16(&mut out, CHECKSUM, sum.finish());
        out
    }
}
