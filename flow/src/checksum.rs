//! The internet checksum: over bytes (RFC 1071), mended for a change (RFC 1624), and the partial
//! checksum that a guest leaves for its device to fill in (virtio 1.2, section 5.1.6.2).

use crate::reason::DropReason;
use std::net::IpAddr;

/// A running one's complement sum. Add the parts, then [`finish`](Sum::finish).
///
/// The order of parts does not matter as long as each has an even length or is the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing added yet.
    pub const ZERO: Sum = Sum(0);

    /// Adds bytes as big-endian 16-bit words; an odd last byte is padded with zero.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            // 2^16 is 1 in this arithmetic, so a 32-bit word may be added whole.
            sum += u64::from(u32::from_be_bytes(*word));
        }
        match *rest {
            [a] => sum += u64::from(u16::from_be_bytes([a, 0])),
            [a, b] => sum += u64::from(u16::from_be_bytes([a, b])),
            [a, b, c] => {
                sum +=
                    u64::from(u16::from_be_bytes([a, b])) + u64::from(u16::from_be_bytes([c, 0]));
            }
            _ => {}
        }
        Sum(sum)
    }

    /// Adds one 16-bit word.
    #[must_use]
    pub fn word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word))
    }

    /// The sum folded to 16 bits, not complemented: what a partial checksum's field holds.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum as UDP sends it: zero, which would mean "none", goes out as 0xffff (RFC 768).
    pub fn finish_udp(self) -> u16 {
        never_zero(self.finish())
    }
}

/// Zero becomes 0xffff, which is the same number in one's complement and never means "none".
pub fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The checksum over `bytes`. Over bytes that hold their own right checksum it is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::ZERO.bytes(bytes).finish()
}

/// The pseudo header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
///
/// `length` is that of the transport header and its payload. Addresses of different families give
/// a sum that belongs to no packet.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Sum {
    let sum = Sum::ZERO
        .bytes(&(length as u32).to_be_bytes())
        .word(u16::from(protocol));
    let add = |sum: Sum, ip| match ip {
        IpAddr::V4(ip) => sum.bytes(&ip.octets()),
        IpAddr::V6(ip) => sum.bytes(&ip.octets()),
    };
    add(add(sum, src), dst)
}

/// The checksum after the covered bytes `old` became `new` (RFC 1624, equation 3).
///
/// Both are of one even length and began at an even distance from the start of what is covered. A
/// checksum that was wrong stays wrong, so a mended packet hides no damage.
pub fn mend(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2));
    let mut sum = Sum::ZERO.word(!checksum).bytes(new);
    for word in old.as_chunks::<2>().0 {
        sum = sum.word(!u16::from_be_bytes(*word));
    }
    sum.finish()
}

/// Like [`mend`] for a UDP checksum: zero ("none") stays, and the result is never zero.
pub fn mend_udp(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    if checksum == 0 {
        0
    } else {
        never_zero(mend(checksum, old, new))
    }
}

/// A checksum that the sender left to its device: virtio's `NEEDS_CSUM`.
///
/// The field at `start + offset` holds the pseudo header's folded sum. Filling it in means: sum all
/// bytes from `start` to the end of the packet and store the complement in the field.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartialCsum {
    /// Where the covered bytes begin, counted from the first byte of the packet.
    pub start: usize,
    /// Where the checksum field is, counted from `start`, as in virtio's `csum_offset`.
    pub offset: usize,
}

impl PartialCsum {
    /// Where the field is, counted from the first byte, if it lies in a packet of `len` bytes.
    pub fn field(self, len: usize) -> Option<usize> {
        let field = self.start.checked_add(self.offset)?;
        (field.checked_add(2)? <= len).then_some(field)
    }

    /// Fills the checksum in.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] where the field is not in the packet.
    pub fn fill(self, packet: &mut [u8]) -> Result<(), DropReason> {
        let field = self.field(packet.len()).ok_or(DropReason::Malformed)?;
        let value = never_zero(checksum(&packet[self.start..]));
        packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 2, by the letter.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.bytes(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn a_known_ipv4_header_sums_to_zero() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0);
    }

    #[test]
    fn a_partial_checksum_outside_the_packet_is_malformed() {
        for (start, offset) in [(0, 3), (4, 0), (usize::MAX, 1), (1, usize::MAX), (3, 0)] {
            let partial = PartialCsum { start, offset };
            assert_eq!(
                partial.fill(&mut [0; 4]),
                Err(DropReason::Malformed),
                "{partial:?}"
            );
        }
        assert_eq!(
            PartialCsum {
                start: 0,
                offset: 2
            }
            .fill(&mut [0; 4]),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn summing_equals_the_rfc(bytes: Vec<u8>) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes));
        }

        #[test]
        fn mending_equals_summing_again(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..200),
            at in 0usize..1000, new: [u8; 4],
        ) {
            bytes[0] |= 1; // All zero bytes are the one case in which both zeros are right.
            let at = 1 + at % ((bytes.len() - 4) / 2);
            let before = checksum(&bytes);
            let old = <[u8; 4]>::try_from(&bytes[2 * at..2 * at + 4]).unwrap();
            bytes[2 * at..2 * at + 4].copy_from_slice(&new);
            prop_assert_eq!(mend(before, &old, &new), checksum(&bytes));
        }

        #[test]
        fn a_filled_partial_checksum_verifies(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..200), dst: [u8; 4],
        ) {
            let length = bytes.len() - 20;
            let pseudo = pseudo_header([10, 0, 0, 1].into(), dst.into(), 6, length);
            bytes[36..38].copy_from_slice(&pseudo.fold().to_be_bytes());
            PartialCsum { start: 20, offset: 16 }.fill(&mut bytes).unwrap();
            prop_assert_eq!(pseudo.bytes(&bytes[20..]).finish(), 0);
        }
    }
}
