//! VXLAN (RFC 7348): the 8 bytes between UDP and the inner frame.

use super::view;
use crate::reason::DropReason;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The largest network identifier.
pub const MAX_VNI: u32 = 0xff_ffff;

const VNI_VALID: u8 = 0x08;

view! {
    /// A header whose I flag says that the VNI is valid. Reserved fields are ignored, as the RFC
    /// asks.
    VxlanPacket
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    let valid = bytes.len() >= HEADER_LEN && bytes[0] & VNI_VALID != 0;
    if valid {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

impl<T: AsRef<[u8]>> VxlanPacket<T> {
    /// The network identifier, 24 bits.
    pub fn vni(&self) -> u32 {
        let bytes = self.as_bytes();
        u32::from_be_bytes([0, bytes[4], bytes[5], bytes[6]])
    }

    /// The inner frame.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[HEADER_LEN..]
    }
}

/// The header for `vni`, of which the low 24 bits count.
pub const fn header(vni: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.to_be_bytes();
    [VNI_VALID, 0, 0, 0, a, b, c, 0]
}
