//! The frame that tells a network where a guest is now: a reverse ARP request (RFC 903), which no
//! host answers and every switch on the way learns from. QEMU and the kernel's team driver use the
//! same frame for this.

/// Bytes of the frame: the shortest Ethernet frame without its checksum.
pub const RARP_LEN: usize = 60;

/// A reverse ARP request, to everybody, from and about `mac`.
pub fn rarp(mac: [u8; 6]) -> [u8; RARP_LEN] {
    let mut frame = [0; RARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType; Ethernet, IPv4, their address lengths; "request reverse".
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_that_of_rfc_903() {
        let mac = [2, 3, 4, 5, 6, 7];
        let frame = rarp(mac);
        let mut wanted = vec![0xff; 6];
        wanted.extend(mac);
        wanted.extend([0x80, 0x35, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x03]);
        wanted.extend(mac);
        wanted.extend([0; 4]);
        wanted.extend(mac);
        wanted.extend([0; 4 + 18]);
        assert_eq!(frame[..], wanted[..]);
    }
}
