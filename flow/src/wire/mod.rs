//! Packet headers: for each a view over bytes and a description that makes bytes.
//!
//! A view, such as [`Ipv4Packet`], wraps `&[u8]` or `&mut [u8]` (or anything like them). Its
//! `new_checked` proves once that the header is whole and its length fields are possible; after
//! that, no getter or setter can fail.
//!
//! A description, such as [`Ipv4Repr`], is what a sender has to say. `emit` makes the header and
//! puts the payload behind it, with lengths and checksums right, so packets are made from the
//! inside out: `EthernetRepr.emit(&Ipv4Repr.emit(&UdpRepr.emit(b"hello")))`. `emit` allocates and
//! is for the slow path; `write_header` writes into bytes that are there.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod tcp;
pub mod udp;
pub mod vxlan;

pub use arp::{ArpPacket, ArpRepr};
pub use ethernet::{EthernetFrame, EthernetRepr};
pub use icmp::{IcmpPacket, Icmpv4Repr, Icmpv6Repr};
pub use ipv4::{Ipv4Packet, Ipv4Repr};
pub use ipv6::{Ipv6Packet, Ipv6Repr};
pub use nd::{NdMessage, NdRepr, RouterAdvert};
pub use tcp::{TcpRepr, TcpSegment};
pub use udp::{UdpDatagram, UdpRepr};
pub use vxlan::VxlanPacket;

/// EtherTypes that the data plane knows (IANA "IEEE 802 Numbers").
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// An 802.1Q tag follows.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// The smallest EtherType; a smaller value is the length of an 802.3 frame.
    pub const FIRST: u16 = 0x0600;
}

/// IP protocol numbers that the data plane knows (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IP authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The 16-bit field at `at`.
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sets the 16-bit field at `at`.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// A length as its 16-bit field.
///
/// # Panics
/// Where the field cannot hold it: a description was asked to emit a payload that no such packet
/// can have. Payloads come from this program, never from a packet's length field.
pub(crate) fn length16(length: usize) -> u16 {
    u16::try_from(length).expect("payload longer than the header's 16-bit length field")
}

/// The shape that every view has.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<T>(T);

        impl<T: AsRef<[u8]>> $name<T> {
            /// Wraps the bytes after checking that the header is whole and its lengths possible.
            ///
            /// # Errors
            /// The reason to drop such a packet.
            pub fn new_checked(bytes: T) -> Result<Self, $crate::reason::DropReason> {
                check(bytes.as_ref())?;
                Ok($name(bytes))
            }

            /// The bytes, from the header's first on.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_ref()
            }

            /// The wrapped bytes.
            pub fn into_inner(self) -> T {
                self.0
            }
        }
    };
}
pub(crate) use view;
