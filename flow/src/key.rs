//! The flow key: everything a flow matches on, flat and of fixed size.

use crate::ids::{MacAddr, PortId};
use std::net::{IpAddr, Ipv6Addr};

/// The identity of a flow: two packets with equal keys get the same actions.
///
/// The key is exact (no masks). Fields that a packet does not have are zero, so that keys compare
/// and hash as plain bytes. IPv4 addresses are held as IPv4-mapped IPv6 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    /// Where the packet came in.
    pub in_port: PortId,
    /// The tunnel the packet came in; [`TunnelKey::NONE`] for a packet that was not encapsulated.
    /// The rest of the key describes the inner packet.
    pub tunnel: TunnelKey,
    /// Ethernet source.
    pub eth_src: MacAddr,
    /// Ethernet destination.
    pub eth_dst: MacAddr,
    /// The EtherType after any VLAN tag, host order.
    pub ethertype: u16,
    /// The 802.1Q tag control information with bit 12 (CFI/DEI) set when a tag is there; 0 without.
    pub vlan: u16,
    /// Network source address; for ARP the sender's protocol address.
    pub ip_src: KeyAddr,
    /// Network destination address; for ARP the target's protocol address.
    pub ip_dst: KeyAddr,
    /// IPv4 protocol or IPv6 next header after known extension headers; for ARP the operation.
    pub protocol: u8,
    /// Whether the packet is a fragment, and which.
    pub fragment: Fragment,
    /// TCP, UDP or SCTP source port; ICMP type. Zero for later fragments.
    pub src_port: u16,
    /// TCP, UDP or SCTP destination port; ICMP code. Zero for later fragments.
    pub dst_port: u16,
}

/// The tunnel that brought a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TunnelKey {
    /// VXLAN network identifier, 24 bits (RFC 7348 section 5).
    pub vni: u32,
    /// Outer source address.
    pub src: KeyAddr,
    /// Outer destination address.
    pub dst: KeyAddr,
}

impl TunnelKey {
    /// Not encapsulated.
    pub const NONE: TunnelKey = TunnelKey {
        vni: 0,
        src: KeyAddr::UNSPECIFIED,
        dst: KeyAddr::UNSPECIFIED,
    };

    /// True where the packet came without a tunnel.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// An address in a key: IPv6, or IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct KeyAddr(pub [u8; 16]);

impl KeyAddr {
    /// All zero: the packet has no such address (or it is `::`).
    pub const UNSPECIFIED: KeyAddr = KeyAddr([0; 16]);

    /// The address, IPv4 where it is mapped.
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

impl From<IpAddr> for KeyAddr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => KeyAddr(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => KeyAddr(v6.octets()),
        }
    }
}

/// Which part of a fragmented packet this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    No = 0,
    /// The first fragment: the transport header is here.
    First = 1,
    /// A later fragment: no transport header, ports are zero in the key.
    Later = 2,
}
