//! Router advertisements (RFC 4861 section 6.2, RFC 8106), made for each port.

use crate::nd::{ALL_NODES, frame, link_dst};
use crate::tables::Guest;
use flow::wire::RouterAdvert;
use flow::wire::nd::AdvertisedPrefix;
use std::net::{IpAddr, Ipv6Addr};

/// Seconds a guest keeps the gateway and its name servers: the most that RFC 4861 allows, as the
/// gateway is on the guest's own host and cannot go away alone.
const ROUTER_LIFETIME: u16 = 9000;
/// Seconds a prefix is valid; refreshed by every advertisement.
const VALID: u32 = 86_400;
/// Seconds an address of the prefix is preferred.
const PREFERRED: u32 = 14_400;

/// The advertisement that nobody asked for.
pub(crate) fn unsolicited(guest: &Guest) -> Vec<u8> {
    advertisement(guest, ALL_NODES)
}

/// The advertisement for this guest, in its frame.
///
/// It has the prefixes that the guest has an address of or forms one in. M says that DHCPv6 has
/// an address: also the one that SLAAC leads to, as a guest that makes no address of its MAC has no
/// other way to it. O says that DHCPv6 has the name servers, too.
pub(crate) fn advertisement(guest: &Guest, to: Ipv6Addr) -> Vec<u8> {
    let network = &guest.domain.network;
    let prefixes = network.subnets.iter().filter_map(|subnet| {
        let own = guest
            .station
            .addresses
            .iter()
            .any(|ip| subnet.prefix.contains(ip));
        match subnet.prefix.network() {
            IpAddr::V6(prefix) if own || subnet.slaac => Some(AdvertisedPrefix {
                prefix,
                prefix_len: subnet.prefix.prefix_len(),
                on_link: true,
                autonomous: subnet.slaac,
                valid: VALID,
                preferred: PREFERRED,
            }),
            _ => None,
        }
    });
    let advert = RouterAdvert {
        hop_limit: 64,
        managed: guest.v6().is_some(),
        other: guest.v6().is_some() || name_servers(guest).next().is_some(),
        lifetime: ROUTER_LIFETIME,
        link: network.gateway_mac,
        mtu: Some(network.mtu.into()),
        prefixes: prefixes.collect(),
        dns: name_servers(guest).collect(),
        dns_lifetime: ROUTER_LIFETIME.into(),
    };
    let src = guest.domain.link_local();
    let eth_dst = link_dst(to, guest.port.mac);
    frame(eth_dst, network.gateway_mac, src, to, &advert.emit(src, to))
}

/// The network's name servers that IPv6 reaches.
pub(crate) fn name_servers(guest: &Guest) -> impl Iterator<Item = Ipv6Addr> {
    guest.domain.network.dns.iter().filter_map(|ip| match ip {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    })
}
