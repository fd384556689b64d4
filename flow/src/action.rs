//! What is done to a packet: the actions and their order.

use crate::ids::{MacAddr, PortId};
use crate::reason::DropReason;
use std::net::IpAddr;

/// One step of an action list. Steps run in order, each on the packet as the one before left it.
///
/// The meaning of each, byte for byte, is [`reference::execute`](crate::reference::execute).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Replace the Ethernet source.
    SetEthSrc(MacAddr),
    /// Replace the Ethernet destination.
    SetEthDst(MacAddr),
    /// Replace the IPv4 or IPv6 source and mend the checksums that cover it.
    SetIpSrc(IpAddr),
    /// Replace the IPv4 or IPv6 destination and mend the checksums that cover it.
    SetIpDst(IpAddr),
    /// Replace the TCP or UDP source port and mend the checksum.
    SetPortSrc(u16),
    /// Replace the TCP or UDP destination port and mend the checksum.
    SetPortDst(u16),
    /// Lower the IPv4 TTL or IPv6 hop limit by one. A packet that arrives with 1 or 0 stops the list
    /// with [`Punt::TtlExceeded`](crate::reason::Punt::TtlExceeded).
    DecTtl,
    /// Stop the list with [`Punt::TooBig`](crate::reason::Punt::TooBig) where the network-layer packet
    /// (IP header and all after it, no Ethernet header) is longer than this many bytes.
    CheckMtu(u16),
    /// Insert an 802.1Q tag with this tag control information (TPID 0x8100).
    PushVlan(u16),
    /// Remove the outer 802.1Q tag.
    PopVlan,
    /// Put the packet into VXLAN (RFC 7348).
    EncapVxlan(Vxlan),
    /// Take the packet out of VXLAN: outer Ethernet, IP, UDP and VXLAN headers go.
    DecapVxlan,
    /// Send a copy of the packet, as it is now, out of this port.
    Output(PortId),
    /// Stop the list. Copies already sent stay sent.
    Drop(DropReason),
}

/// The outer headers of [`Action::EncapVxlan`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Vxlan {
    /// Outer Ethernet source.
    pub eth_src: MacAddr,
    /// Outer Ethernet destination: the next hop in the underlay.
    pub eth_dst: MacAddr,
    /// Outer source address. Of the same family as `dst`.
    pub src: IpAddr,
    /// Outer destination address: the other host.
    pub dst: IpAddr,
    /// Outer UDP source port: the flow's entropy (RFC 7348 section 5, 49152 to 65535).
    pub src_port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Outer TTL or hop limit.
    pub ttl: u8,
}

impl Vxlan {
    /// The IANA port of VXLAN.
    pub const UDP_PORT: u16 = 4789;

    /// Bytes that encapsulation adds before the inner Ethernet header: 50 over IPv4, 70 over IPv6.
    pub const fn overhead(&self) -> usize {
        match self.dst {
            IpAddr::V4(_) => 14 + 20 + 8 + 8,
            IpAddr::V6(_) => 14 + 40 + 8 + 8,
        }
    }
}
