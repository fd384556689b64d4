//! ARP for IPv4 over Ethernet (RFC 826).

use super::{array, ethertype, get16, put16, view};
use crate::ids::MacAddr;
use crate::reason::DropReason;
use std::net::Ipv4Addr;

/// Bytes of a message.
pub const LEN: usize = 28;
/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has the sender address.
pub const REPLY: u16 = 2;

view! {
    /// An ARP message for IPv4 over Ethernet. Other kinds are
    /// [`UnsupportedProtocol`](DropReason::UnsupportedProtocol).
    ArpPacket
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    if bytes.len() < LEN {
        return Err(DropReason::Malformed);
    }
    let kind = (get16(bytes, 0), get16(bytes, 2), bytes[4], bytes[5]);
    if kind == (1, ethertype::IPV4, 6, 4) {
        Ok(())
    } else {
        Err(DropReason::UnsupportedProtocol)
    }
}

impl<T: AsRef<[u8]>> ArpPacket<T> {
    /// [`REQUEST`], [`REPLY`] or something rare.
    pub fn operation(&self) -> u16 {
        get16(self.as_bytes(), 6)
    }

    /// The sender's MAC.
    pub fn sender_mac(&self) -> MacAddr {
        MacAddr(array(self.as_bytes(), 8))
    }

    /// The sender's address.
    pub fn sender_ip(&self) -> Ipv4Addr {
        array::<4>(self.as_bytes(), 14).into()
    }

    /// The target's MAC; without meaning in a request.
    pub fn target_mac(&self) -> MacAddr {
        MacAddr(array(self.as_bytes(), 18))
    }

    /// The target's address.
    pub fn target_ip(&self) -> Ipv4Addr {
        array::<4>(self.as_bytes(), 24).into()
    }
}

/// A message to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpRepr {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// The sender's MAC.
    pub sender_mac: MacAddr,
    /// The sender's address.
    pub sender_ip: Ipv4Addr,
    /// The target's MAC; zero in a request.
    pub target_mac: MacAddr,
    /// The target's address.
    pub target_ip: Ipv4Addr,
}

impl ArpRepr {
    /// The message.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; LEN];
        put16(&mut out, 0, 1);
        put16(&mut out, 2, ethertype::IPV4);
        out[4] = 6;
        out[5] = 4;
        put16(&mut out, 6, self.operation);
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender_ip.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..28].copy_from_slice(&self.target_ip.octets());
        out
    }
}
