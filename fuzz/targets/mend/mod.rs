//! A mutation that keeps a checksum right is rare: this lets the fuzzer get past the check.

/// Makes the checksum of the IPv4 header at this place right, if there is a header.
pub fn mend_ipv4(bytes: &mut [u8], at: usize) {
    let Some(header) = bytes.get_mut(at..) else {
        return;
    };
    let length = header.first().map_or(0, |b| usize::from(b & 15) * 4);
    if (20..=header.len()).contains(&length) && header[0] >> 4 == 4 {
        header[10..12].fill(0);
        let sum = flow::checksum::checksum(&header[..length]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
