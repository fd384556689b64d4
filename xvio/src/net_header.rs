//! The virtio-net header in front of every packet (virtio 1.2, 5.1.6), judged from a private copy.

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE};

use crate::PartialCsum;

/// An Ethernet header; a frame shorter than this is a runt.
pub(crate) const ETH_HEADER: usize = 14;
/// The longest header there is here: with `num_buffers`.
pub(crate) const MAX_HEADER: usize = 12;
const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;

/// What is wrong with one packet; it is dropped and counted, the queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Shorter than an Ethernet header.
    Runt,
    /// It asks for segmentation, which was not offered.
    Gso,
    /// The checksum it asks for is not inside it, or was not offered.
    Csum,
}

/// A header that begins with these bytes (little-endian) asks for nothing: no flags, no
/// segmentation. What the other fields say does not matter then.
#[inline]
pub(crate) fn is_plain(front: u64) -> bool {
    front & 0xffff == 0
}

/// Judges the header of a packet from the guest: `header` as copied from the ring, `len` the
/// packet's length without it, `csum_offered` whether the driver may leave checksums to us.
pub(crate) fn judge(
    header: &[u8; MAX_HEADER],
    len: usize,
    csum_offered: bool,
) -> Result<Option<PartialCsum>, Bad> {
    let [flags, gso_type, ..] = *header;
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if len < ETH_HEADER {
        return Err(Bad::Runt);
    }
    if gso_type != GSO_NONE {
        return Err(Bad::Gso);
    }
    if flags & NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let (start, offset) = (field(6), field(8));
    let end = usize::from(start) + usize::from(offset) + 2;
    if !csum_offered || usize::from(start) < ETH_HEADER || end > len {
        return Err(Bad::Csum);
    }
    Ok(Some(PartialCsum { start, offset }))
}

/// The header of a packet to the guest, which lies in `buffers` of its buffers.
pub(crate) fn emit(csum: Option<PartialCsum>, buffers: u16) -> [u8; MAX_HEADER] {
    let mut header = [0; MAX_HEADER];
    if let Some(csum) = csum {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&csum.start.to_le_bytes());
        header[8..10].copy_from_slice(&csum.offset.to_le_bytes());
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// The internet checksum (RFC 1071) as it is stored in a packet, over bytes that come piece by
/// piece. The place of the checksum itself holds the pseudo header's sum and is included.
#[derive(Debug)]
pub(crate) struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    pub(crate) fn new() -> Self {
        Sum { sum: 0, odd: false }
    }

    /// Adds the next bytes.
    pub(crate) fn add(&mut self, part: &[u8]) {
        let (words, last) = part.as_chunks::<2>();
        // Summed as it lies, and swapped if the part begins in the middle of a word (RFC 1071, 2 B):
        // a packet of 64 KiB stays far below 64 bits.
        let mut own: u64 = words
            .iter()
            .map(|w| u64::from(u16::from_be_bytes(*w)))
            .sum();
        own += last.first().map_or(0, |byte| u64::from(*byte) << 8);
        self.sum += if self.odd { own << 8 } else { own };
        self.odd ^= !last.is_empty();
    }

    pub(crate) fn finish(self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        match !(sum as u16) {
            // In UDP an all-zero field means "no checksum"; both are zero in ones' complement.
            0 => 0xffff,
            value => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8, start: u16, offset: u16) -> [u8; MAX_HEADER] {
        let mut h = emit(Some(PartialCsum { start, offset }), 1);
        h[0] = flags;
        h[1] = gso;
        h
    }

    #[test]
    fn a_checksum_request_must_lie_inside_the_packet() {
        let good = PartialCsum {
            start: 34,
            offset: 16,
        };
        assert_eq!(judge(&header(1, 0, 34, 16), 60, true), Ok(Some(good)));
        assert_eq!(
            judge(&header(1, 0, 34, 24), 60, true),
            Ok(Some(PartialCsum {
                start: 34,
                offset: 24
            }))
        );
        assert_eq!(judge(&header(1, 0, 34, 25), 60, true), Err(Bad::Csum));
        assert_eq!(
            judge(&header(1, 0, 0xffff, 0xffff), 60, true),
            Err(Bad::Csum)
        );
        assert_eq!(judge(&header(1, 0, 13, 0), 60, true), Err(Bad::Csum));
        assert_eq!(judge(&header(1, 0, 34, 16), 60, false), Err(Bad::Csum));
    }

    #[test]
    fn segmentation_and_runts_are_refused() {
        assert_eq!(judge(&header(0, 1, 0, 0), 60, true), Err(Bad::Gso));
        assert_eq!(judge(&header(0, 0x80, 0, 0), 60, true), Err(Bad::Gso));
        assert_eq!(judge(&header(0, 0, 0, 0), 13, true), Err(Bad::Runt));
        assert_eq!(judge(&header(0, 0, 9, 9), 14, true), Ok(None));
    }

    #[test]
    fn the_checksum_does_not_depend_on_how_the_packet_is_cut() {
        let checksum = |parts: &[&[u8]]| {
            let mut sum = Sum::new();
            parts.iter().for_each(|part| sum.add(part));
            sum.finish()
        };
        let packet: Vec<u8> = (15..=200u8).collect();
        let whole = checksum(&[&packet]);
        for cut in 0..packet.len() {
            let (a, b) = packet.split_at(cut);
            assert_eq!(checksum(&[a, b]), whole, "cut at {cut}");
            for (c, d) in (0..b.len()).map(|more| b.split_at(more)) {
                assert_eq!(checksum(&[a, c, &[], d]), whole, "cut at {cut}");
            }
        }
        // RFC 1071, section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
        assert_eq!(
            checksum(&[&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
    }
}
