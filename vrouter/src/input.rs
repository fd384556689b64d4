//! The packet under decision: its parsed headers together with its bytes, which may be fewer.

use flow::parse::Parsed;
use flow::wire::ethertype;
use flow::{DropReason, FlowKey, KeyAddr};
use std::net::{IpAddr, Ipv6Addr};

/// A packet and what the parser found in it.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) parsed: &'a Parsed,
    pub(crate) packet: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn key(&self) -> &'a FlowKey {
        &self.parsed.key
    }

    /// Source address. Never IPv4 for an IPv6 packet, not even a mapped one.
    pub(crate) fn src(&self) -> IpAddr {
        address(self.key().ethertype, self.key().ip_src)
    }

    /// Destination address, with the same care.
    pub(crate) fn dst(&self) -> IpAddr {
        address(self.key().ethertype, self.key().ip_dst)
    }

    /// All from the network-layer header on, Ethernet padding included.
    pub(crate) fn network_layer(&self) -> &'a [u8] {
        self.packet.get(self.parsed.l3..).unwrap_or_default()
    }

    /// The IP packet as far as it is here, without what follows it in the frame.
    pub(crate) fn ip_packet(&self) -> &'a [u8] {
        let bytes = self.network_layer();
        &bytes[..bytes.len().min(self.parsed.ip_len)]
    }

    /// The transport header and its payload.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] where the packet is not here to its end.
    pub(crate) fn transport(&self) -> Result<&'a [u8], DropReason> {
        let end = self
            .parsed
            .l3
            .checked_add(self.parsed.ip_len)
            .ok_or(DropReason::Malformed)?;
        self.packet
            .get(self.parsed.l4..end)
            .ok_or(DropReason::Malformed)
    }
}

fn address(kind: u16, ip: KeyAddr) -> IpAddr {
    if kind == ethertype::IPV6 {
        IpAddr::V6(Ipv6Addr::from(ip.0))
    } else {
        ip.to_ip()
    }
}
