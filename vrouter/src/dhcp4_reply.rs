//! The DHCPv4 server's answers: their fields, their options, and where they go.

use crate::dhcp4::{CLIENT, COOKIE, OPTIONS, Request, SERVER, option};
use crate::tables::Guest;
use flow::MacAddr;
use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype, protocol};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// How long an address is lent: a day. It does not change while the port lives, but what comes
/// with it may.
pub(crate) const LEASE_SECONDS: u32 = 86_400;
/// BOOTP messages are at least this long (RFC 951 section 3).
const MESSAGE_MIN: usize = 300;
/// What every client takes, IP and UDP headers included (RFC 2131 section 2).
const SIZE_MIN: u16 = 576;

/// What the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    Offer,
    Ack,
    Nak,
    /// An acknowledgement without an address.
    Inform,
}

/// The whole frame.
pub(crate) fn reply(
    guest: &Guest,
    request: &Request,
    kind: ReplyKind,
    own: Ipv4Addr,
    server: Ipv4Addr,
) -> Vec<u8> {
    let message = message(guest, request, kind, own, server);
    // RFC 2131 section 4.1: a NAK is broadcast; a client that has an address is sent to it.
    let dst = match (kind, request.ciaddr) {
        (ReplyKind::Nak, _) => None,
        (_, Some(ciaddr)) => Some(ciaddr),
        _ if request.broadcast() => None,
        (ReplyKind::Inform, None) => None,
        _ => Some(own),
    };
    let eth_dst = if dst.is_some() {
        guest.port.mac
    } else {
        MacAddr::BROADCAST
    };
    let dst = dst.unwrap_or(Ipv4Addr::BROADCAST);
    let (src_ip, dst_ip) = (IpAddr::V4(server), IpAddr::V4(dst));
    let udp = UdpRepr {
        src: src_ip,
        dst: dst_ip,
        src_port: SERVER,
        dst_port: CLIENT,
    };
    let ip = Ipv4Repr::new(server, dst, protocol::UDP).emit(&udp.emit(&message));
    let src = guest.domain.network.gateway_mac;
    EthernetRepr {
        dst: eth_dst,
        src,
        vlan: None,
        ethertype: ethertype::IPV4,
    }
    .emit(&ip)
}

fn message(
    guest: &Guest,
    request: &Request,
    kind: ReplyKind,
    own: Ipv4Addr,
    server: Ipv4Addr,
) -> Vec<u8> {
    let mut out = vec![0; OPTIONS];
    out[..4].copy_from_slice(&[2, 1, 6, 0]);
    out[4..8].copy_from_slice(&request.xid);
    let nak = kind == ReplyKind::Nak;
    // A NAK has the broadcast flag so that it reaches a client whose address is wrong.
    let flags = if nak {
        request.flags | 0x8000
    } else {
        request.flags
    };
    out[10..12].copy_from_slice(&flags.to_be_bytes());
    if let Some(ciaddr) = request.ciaddr.filter(|_| !nak) {
        out[12..16].copy_from_slice(&ciaddr.octets());
    }
    if matches!(kind, ReplyKind::Offer | ReplyKind::Ack) {
        out[16..20].copy_from_slice(&own.octets());
    }
    out[28..34].copy_from_slice(&request.chaddr.0);
    out[OPTIONS - 4..].copy_from_slice(&COOKIE);
    let room = usize::from(request.max_size.unwrap_or(SIZE_MIN).clamp(SIZE_MIN, 1500)) - 28;
    let mut options = Options { out, room };
    let code = match kind {
        ReplyKind::Offer => 2,
        ReplyKind::Ack | ReplyKind::Inform => 5,
        ReplyKind::Nak => 6,
    };
    options.put(option::MESSAGE_TYPE, &[code]);
    options.put(option::SERVER_ID, &server.octets());
    if let Some(id) = request.client_id {
        options.put(option::CLIENT_ID, id); // RFC 6842.
    }
    if matches!(kind, ReplyKind::Offer | ReplyKind::Ack) {
        options.put(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        options.put(option::RENEWAL_TIME, &(LEASE_SECONDS / 2).to_be_bytes());
        options.put(
            option::REBINDING_TIME,
            &(LEASE_SECONDS / 8 * 7).to_be_bytes(),
        );
    }
    if !nak {
        configuration(guest, request, own, server, &mut options);
    }
    options.finish()
}

fn configuration(
    guest: &Guest,
    request: &Request,
    own: Ipv4Addr,
    server: Ipv4Addr,
    options: &mut Options,
) {
    let network = &guest.domain.network;
    let subnet = network
        .subnets
        .iter()
        .find(|s| s.prefix.contains(&IpAddr::V4(own)));
    if let Some(IpNet::V4(prefix)) = subnet.map(|s| s.prefix) {
        options.put(option::SUBNET_MASK, &prefix.netmask().octets());
    }
    options.put(option::ROUTER, &server.octets());
    options.put(option::MTU, &network.mtu.to_be_bytes());
    let servers: Vec<u8> = network
        .dns
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        })
        .take(8)
        .flatten()
        .collect();
    if !servers.is_empty() {
        options.put(option::NAME_SERVER, &servers);
    }
    if is_host_name(&guest.port.name) {
        options.put(option::HOST_NAME, guest.port.name.as_bytes());
    }
    if request.wanted.contains(&option::CLASSLESS_ROUTES) {
        let routes = classless_routes(guest, own, server);
        if !routes.is_empty() {
            options.put(option::CLASSLESS_ROUTES, &routes);
        }
    }
}

/// RFC 1123 section 2.1, one label.
fn is_host_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The network's static routes as RFC 3442 has them, and the default route, since a client that
/// takes this option does not look at the router option. Empty without static routes.
fn classless_routes(guest: &Guest, own: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    let network = &guest.domain.network;
    let on_link = |ip: Ipv4Addr| {
        network
            .subnets
            .iter()
            .any(|s| s.prefix.contains(&IpAddr::V4(ip)) && s.prefix.contains(&IpAddr::V4(own)))
    };
    let mut out = Vec::new();
    let mut default = gateway;
    for route in &network.routes {
        let (IpNet::V4(to), IpAddr::V4(via)) = (route.destination.trunc(), route.next_hop) else {
            continue;
        };
        if guest.owns(via.into()) {
            continue; // It is the next hop itself.
        }
        let via = if on_link(via) { via } else { gateway };
        if to.prefix_len() == 0 {
            default = via;
        } else {
            put_route(&mut out, to.prefix_len(), to.addr(), via);
        }
    }
    if !out.is_empty() || default != gateway {
        put_route(&mut out, 0, Ipv4Addr::UNSPECIFIED, default);
    }
    out
}

fn put_route(out: &mut Vec<u8>, prefix_len: u8, to: Ipv4Addr, via: Ipv4Addr) {
    out.push(prefix_len);
    out.extend_from_slice(&to.octets()[..usize::from(prefix_len.div_ceil(8))]);
    out.extend_from_slice(&via.octets());
}

/// A message under way, and how long it may become.
struct Options {
    out: Vec<u8>,
    room: usize,
}

impl Options {
    /// Adds an option where there is room for it and the end: the most needed come first. A long
    /// value is split (RFC 3396).
    fn put(&mut self, code: u8, value: &[u8]) {
        let parts = value.chunks(255);
        if self.out.len() + value.len() + 2 * parts.len() + 1 > self.room {
            return;
        }
        for part in parts {
            self.out.push(code);
            self.out.push(part.len() as u8);
            self.out.extend_from_slice(part);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.push(option::END);
        if self.out.len() < MESSAGE_MIN {
            self.out.resize(MESSAGE_MIN, option::PAD);
        }
        self.out
    }
}
