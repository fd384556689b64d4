//! Ethernet II frames with at most one 802.1Q tag (IEEE 802.3 clause 3, 802.1Q clause 9).

use super::{array, ethertype, get16, put16, view};
use crate::ids::MacAddr;
use crate::reason::DropReason;

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;
/// Bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;

view! {
    /// A frame, tagged or not.
    EthernetFrame
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    let tagged = bytes.len() >= HEADER_LEN && get16(bytes, 12) == ethertype::VLAN;
    let header = if tagged {
        HEADER_LEN + TAG_LEN
    } else {
        HEADER_LEN
    };
    if bytes.len() < header {
        Err(DropReason::Malformed)
    } else {
        Ok(())
    }
}

impl<T: AsRef<[u8]>> EthernetFrame<T> {
    /// Destination.
    pub fn dst(&self) -> MacAddr {
        MacAddr(array(self.as_bytes(), 0))
    }

    /// Source.
    pub fn src(&self) -> MacAddr {
        MacAddr(array(self.as_bytes(), 6))
    }

    /// Tag control information of the 802.1Q tag, if there is one.
    pub fn vlan(&self) -> Option<u16> {
        let bytes = self.as_bytes();
        (get16(bytes, 12) == ethertype::VLAN).then(|| get16(bytes, 14))
    }

    /// The EtherType after the tag. Below [`ethertype::FIRST`] it is an 802.3 length.
    pub fn ethertype(&self) -> u16 {
        get16(self.as_bytes(), self.header_len() - 2)
    }

    /// Bytes of the header, with the tag.
    pub fn header_len(&self) -> usize {
        if self.vlan().is_some() {
            HEADER_LEN + TAG_LEN
        } else {
            HEADER_LEN
        }
    }

    /// All after the header, padding included.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[self.header_len()..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> EthernetFrame<T> {
    /// Sets the destination.
    pub fn set_dst(&mut self, mac: MacAddr) {
        self.0.as_mut()[0..6].copy_from_slice(&mac.0);
    }

    /// Sets the source.
    pub fn set_src(&mut self, mac: MacAddr) {
        self.0.as_mut()[6..12].copy_from_slice(&mac.0);
    }
}

/// A header to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EthernetRepr {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// Tag control information, for a tagged frame.
    pub vlan: Option<u16>,
    /// What the payload is.
    pub ethertype: u16,
}

impl EthernetRepr {
    /// Bytes of the header.
    pub const fn header_len(&self) -> usize {
        if self.vlan.is_some() {
            HEADER_LEN + TAG_LEN
        } else {
            HEADER_LEN
        }
    }

    /// Writes the header to the front of `out`, which has room for it.
    pub fn write_header(&self, out: &mut [u8]) {
        out[0..6].copy_from_slice(&self.dst.0);
        out[6..12].copy_from_slice(&self.src.0);
        if let Some(tci) = self.vlan {
            put16(out, 12, ethertype::VLAN);
            put16(out, 14, tci);
        }
        put16(out, self.header_len() - 2, self.ethertype);
    }

    /// The frame, without padding: whoever sends to a wire pads.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.header_len()];
        self.write_header(&mut out);
        out.extend_from_slice(payload);
        out
    }
}
