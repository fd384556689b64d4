//! A packet described field by field, so that what the parser finds can be compared with what was
//! meant.

use super::lists::{ipv4, ipv6, mac, port};
use crate::checksum::{PartialCsum, checksum, pseudo_header};
use crate::ids::{MacAddr, PortId};
use crate::key::{FlowKey, Fragment, TunnelKey};
use crate::parse::PADDED_MAX;
use crate::reference::Packet;
use crate::wire::{
    ArpRepr, EthernetRepr, Icmpv4Repr, Icmpv6Repr, Ipv4Repr, Ipv6Repr, TcpRepr, UdpRepr, ethertype,
    protocol, put16, tcp, udp,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A well-formed frame.
#[derive(Clone, Debug)]
pub struct PacketSpec {
    /// Ethernet source.
    pub eth_src: MacAddr,
    /// Ethernet destination.
    pub eth_dst: MacAddr,
    /// 802.1Q tag control information.
    pub vlan: Option<u16>,
    /// What is in the frame.
    pub network: Network,
    /// Zero bytes after the network-layer packet.
    pub padding: usize,
}

/// What is in a frame.
#[derive(Clone, Debug)]
pub enum Network {
    /// ARP.
    Arp(ArpRepr),
    /// IPv4 with `options` words of no-operation options.
    V4 {
        /// Source.
        src: Ipv4Addr,
        /// Destination.
        dst: Ipv4Addr,
        /// Time to live.
        ttl: u8,
        /// 0 to 10 words of options.
        options: usize,
        /// Which fragment.
        fragment: Fragment,
        /// Transport.
        body: Body,
    },
    /// IPv6.
    V6 {
        /// Source.
        src: Ipv6Addr,
        /// Destination.
        dst: Ipv6Addr,
        /// Hop limit.
        hops: u8,
        /// Extension headers before the fragment header, in order; hop-by-hop only at the front.
        extensions: Vec<Extension>,
        /// Which fragment.
        fragment: Fragment,
        /// Transport.
        body: Body,
    },
    /// Another EtherType and as many bytes.
    Other(u16, usize),
}

/// An IPv6 extension header; the number is of 8-byte units beyond the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// Hop-by-hop options.
    HopByHop(u8),
    /// Destination options.
    Destination(u8),
    /// A routing header with no segments left.
    Routing(u8),
    /// A fragment header that says "not a fragment" (RFC 6946).
    Atomic,
}

/// A transport header; the last number is the length of the payload.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    /// TCP with source and destination port.
    Tcp(u16, u16, usize),
    /// UDP with source and destination port and whether it has a checksum.
    Udp(u16, u16, bool, usize),
    /// ICMP of the family, with type and code.
    Icmp(u8, u8, usize),
    /// A protocol that is not looked into.
    Other(u8, usize),
}

fn payload_len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..120usize, 1 => 1380..1520usize, 1 => 200..3000usize]
}

/// Bytes that differ from their neighbours, so that a shift shows.
fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 256 + 1) as u8).collect()
}

fn body() -> BoxedStrategy<Body> {
    prop_oneof![
        3 => (port(), port(), payload_len()).prop_map(|(s, d, n)| Body::Tcp(s, d, n)),
        3 => (port(), port(), any::<bool>(), payload_len())
            .prop_map(|(s, d, sum, n)| Body::Udp(s, d, sum, n)),
        2 => (any::<u8>(), any::<u8>(), payload_len()).prop_map(|(k, c, n)| Body::Icmp(k, c, n)),
        1 => (select(vec![2u8, 4, 47, 50, 59, 89]), payload_len())
            .prop_map(|(p, n)| Body::Other(p, n)),
    ]
    .boxed()
}

fn fragment() -> impl Strategy<Value = Fragment> {
    prop_oneof![6 => Just(Fragment::No), 1 => Just(Fragment::First), 1 => Just(Fragment::Later)]
}

fn extensions() -> BoxedStrategy<Vec<Extension>> {
    let rest = prop_oneof![
        (0..3u8).prop_map(Extension::Destination),
        (0..3u8).prop_map(Extension::Routing),
    ];
    let some = (proptest::option::of(0..3u8), vec(rest, 0..3), any::<bool>()).prop_map(
        |(hop_by_hop, mut rest, atomic)| {
            if let Some(units) = hop_by_hop {
                rest.insert(0, Extension::HopByHop(units));
            }
            if atomic {
                rest.push(Extension::Atomic);
            }
            rest
        },
    );
    prop_oneof![2 => Just(Vec::new()), 1 => some].boxed()
}

fn network() -> BoxedStrategy<Network> {
    let arp = (1..3u16, mac(), ipv4(), mac(), ipv4()).prop_map(
        |(operation, sender_mac, sender_ip, target_mac, target_ip)| {
            Network::Arp(ArpRepr {
                operation,
                sender_mac,
                sender_ip,
                target_mac,
                target_ip,
            })
        },
    );
    let ttl = || prop_oneof![0..3u8, any::<u8>()];
    let options = prop_oneof![4 => Just(0), 1 => 1..=10usize];
    let v4 = (ipv4(), ipv4(), ttl(), options, fragment(), body()).prop_map(
        |(src, dst, ttl, options, fragment, body)| Network::V4 {
            src,
            dst,
            ttl,
            options,
            fragment,
            body,
        },
    );
    let v6 = (ipv6(), ipv6(), ttl(), extensions(), fragment(), body()).prop_map(
        |(src, dst, hops, mut extensions, fragment, body)| {
            if fragment != Fragment::No {
                extensions.retain(|e| *e != Extension::Atomic);
            }
            Network::V6 {
                src,
                dst,
                hops,
                extensions,
                fragment,
                body,
            }
        },
    );
    let other = (
        select(vec![0x88ccu16, 0x8847, 0x88a8, 0x9000]),
        payload_len(),
    )
        .prop_map(|(ethertype, length)| Network::Other(ethertype, length));
    prop_oneof![1 => arp, 6 => v4, 6 => v6, 1 => other].boxed()
}

impl PacketSpec {
    /// Any of them.
    pub fn any() -> impl Strategy<Value = PacketSpec> {
        let vlan = prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)];
        let padding = prop_oneof![3 => Just(0), 1 => 0..50usize];
        (mac(), mac(), vlan, network(), padding).prop_map(
            |(eth_src, eth_dst, vlan, network, padding)| {
                let mut spec = PacketSpec {
                    eth_src,
                    eth_dst,
                    vlan,
                    network,
                    padding: 0,
                };
                // Only as far as Ethernet pads.
                let length = spec.build().len() - spec.ethernet(0).header_len();
                spec.padding = padding.min(PADDED_MAX.saturating_sub(length));
                spec
            },
        )
    }

    fn ethernet(&self, ethertype: u16) -> EthernetRepr {
        EthernetRepr {
            dst: self.eth_dst,
            src: self.eth_src,
            vlan: self.vlan,
            ethertype,
        }
    }

    /// The frame, all checksums right.
    pub fn build(&self) -> Vec<u8> {
        let (ethertype, mut packet) = match &self.network {
            Network::Arp(arp) => (ethertype::ARP, arp.emit()),
            Network::V4 {
                src,
                dst,
                ttl,
                options,
                fragment,
                body,
            } => (
                ethertype::IPV4,
                build_v4(*src, *dst, *ttl, *options, *fragment, *body),
            ),
            Network::V6 {
                src,
                dst,
                hops,
                extensions,
                fragment,
                body,
            } => (
                ethertype::IPV6,
                build_v6(*src, *dst, *hops, extensions, *fragment, *body),
            ),
            Network::Other(ethertype, length) => (*ethertype, payload(*length)),
        };
        packet.resize(packet.len() + self.padding, 0);
        self.ethernet(ethertype).emit(&packet)
    }

    /// The frame as a guest with checksum offload hands it over: whole TCP and UDP packets without
    /// padding leave their checksum partial.
    pub fn build_partial(&self) -> Packet {
        let bytes = self.build();
        let (fragment, ips) = match &self.network {
            Network::V4 {
                src, dst, fragment, ..
            } => (fragment, (IpAddr::V4(*src), IpAddr::V4(*dst))),
            Network::V6 {
                src, dst, fragment, ..
            } => (fragment, (IpAddr::V6(*src), IpAddr::V6(*dst))),
            _ => return Packet::complete(bytes),
        };
        let key = self.key(PortId(0));
        let offset = match key.protocol {
            protocol::TCP => tcp::CHECKSUM,
            protocol::UDP => udp::CHECKSUM,
            _ => return Packet::complete(bytes),
        };
        if *fragment != Fragment::No || self.padding != 0 {
            return Packet::complete(bytes);
        }
        let mut bytes = bytes;
        let start = crate::parse(&bytes, PortId(0))
            .expect("generated packets parse")
            .l4;
        let length = bytes.len() - start;
        let sum = pseudo_header(ips.0, ips.1, key.protocol, length).fold();
        put16(&mut bytes, start + offset, sum);
        Packet {
            bytes,
            partial_csum: Some(PartialCsum { start, offset }),
        }
    }

    /// The key that the parser must find.
    pub fn key(&self, in_port: PortId) -> FlowKey {
        let mut key = FlowKey {
            in_port,
            tunnel: TunnelKey::NONE,
            eth_src: self.eth_src,
            eth_dst: self.eth_dst,
            vlan: self.vlan.map_or(0, |tci| tci | 0x1000),
            ..FlowKey::default()
        };
        match &self.network {
            Network::Arp(arp) => {
                key.ethertype = ethertype::ARP;
                key.protocol = arp.operation as u8;
                key.ip_src = IpAddr::V4(arp.sender_ip).into();
                key.ip_dst = IpAddr::V4(arp.target_ip).into();
            }
            Network::V4 {
                src,
                dst,
                fragment,
                body,
                ..
            } => {
                key.ethertype = ethertype::IPV4;
                key.ip_src = IpAddr::V4(*src).into();
                key.ip_dst = IpAddr::V4(*dst).into();
                body.fill_key(&mut key, protocol::ICMP, *fragment);
            }
            Network::V6 {
                src,
                dst,
                fragment,
                body,
                ..
            } => {
                key.ethertype = ethertype::IPV6;
                key.ip_src = IpAddr::V6(*src).into();
                key.ip_dst = IpAddr::V6(*dst).into();
                body.fill_key(&mut key, protocol::ICMPV6, *fragment);
            }
            Network::Other(ethertype, _) => key.ethertype = *ethertype,
        }
        key
    }
}

impl Body {
    fn fill_key(self, key: &mut FlowKey, icmp: u8, fragment: Fragment) {
        let (protocol, src_port, dst_port) = match self {
            Body::Tcp(src, dst, _) => (protocol::TCP, src, dst),
            Body::Udp(src, dst, ..) => (protocol::UDP, src, dst),
            Body::Icmp(kind, code, _) => (icmp, u16::from(kind), u16::from(code)),
            Body::Other(protocol, _) => (protocol, 0, 0),
        };
        key.protocol = protocol;
        key.fragment = fragment;
        if fragment != Fragment::Later {
            (key.src_port, key.dst_port) = (src_port, dst_port);
        }
    }

    fn build(self, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
        match self {
            Body::Tcp(src_port, dst_port, length) => {
                let (sequence, acknowledgement, flags, window) = (1, 2, tcp::flags::ACK, 512);
                let tcp = TcpRepr {
                    src,
                    dst,
                    src_port,
                    dst_port,
                    sequence,
                    acknowledgement,
                    flags,
                    window,
                };
                (protocol::TCP, tcp.emit(&payload(length)))
            }
            Body::Udp(src_port, dst_port, with_checksum, length) => {
                let mut bytes = UdpRepr {
                    src,
                    dst,
                    src_port,
                    dst_port,
                }
                .emit(&payload(length));
                if !with_checksum {
                    put16(&mut bytes, udp::CHECKSUM, 0);
                }
                (protocol::UDP, bytes)
            }
            Body::Icmp(kind, code, length) => match (src, dst) {
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    let icmp = Icmpv6Repr {
                        src,
                        dst,
                        kind,
                        code,
                        rest: [1, 2, 3, 4],
                    };
                    (protocol::ICMPV6, icmp.emit(&payload(length)))
                }
                _ => {
                    let icmp = Icmpv4Repr {
                        kind,
                        code,
                        rest: [1, 2, 3, 4],
                    };
                    (protocol::ICMP, icmp.emit(&payload(length)))
                }
            },
            Body::Other(protocol, length) => (protocol, payload(length)),
        }
    }
}

fn build_v4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ttl: u8,
    options: usize,
    fragment: Fragment,
    body: Body,
) -> Vec<u8> {
    let (protocol, body) = body.build(src.into(), dst.into());
    let ip = Ipv4Repr {
        ttl,
        ..Ipv4Repr::new(src, dst, protocol)
    };
    let mut packet = ip.emit(&[&vec![1; options * 4], &body[..]].concat());
    packet[0] = 0x45 + options as u8;
    match fragment {
        Fragment::No => {}
        Fragment::First => put16(&mut packet, 6, 0x2000),
        Fragment::Later => put16(&mut packet, 6, 185),
    }
    put16(&mut packet, 10, 0);
    let sum = checksum(&packet[..20 + options * 4]);
    put16(&mut packet, 10, sum);
    packet
}

fn build_v6(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hops: u8,
    extensions: &[Extension],
    fragment: Fragment,
    body: Body,
) -> Vec<u8> {
    let (protocol, body) = body.build(src.into(), dst.into());
    let mut headers: Vec<(u8, Vec<u8>)> = extensions.iter().map(|e| e.build()).collect();
    match fragment {
        Fragment::No => {}
        Fragment::First => headers.push((protocol::FRAGMENT, vec![0, 0, 0, 1, 9, 9, 9, 9])),
        Fragment::Later => headers.push((protocol::FRAGMENT, vec![0, 0, 5, 0xc8, 9, 9, 9, 9])),
    }
    // Each header names the one after it.
    let mut next = protocol;
    for (own, bytes) in headers.iter_mut().rev() {
        bytes[0] = next;
        next = *own;
    }
    let chain: Vec<u8> = headers.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let ip = Ipv6Repr {
        hop_limit: hops,
        ..Ipv6Repr::new(src, dst, next)
    };
    ip.emit(&[chain, body].concat())
}

impl Extension {
    /// Its number and its bytes, of which the first is to be set.
    fn build(self) -> (u8, Vec<u8>) {
        let options = |units: u8| {
            // One PadN option over all of it (RFC 8200 section 4.2).
            let length = (usize::from(units) + 1) * 8;
            let mut bytes = vec![0; length];
            (bytes[1], bytes[2], bytes[3]) = (units, 1, (length - 4) as u8);
            bytes
        };
        match self {
            Extension::HopByHop(units) => (protocol::HOP_BY_HOP, options(units)),
            Extension::Destination(units) => (protocol::DESTINATION_OPTIONS, options(units)),
            Extension::Routing(units) => {
                let mut bytes = vec![0; (usize::from(units) + 1) * 8];
                (bytes[1], bytes[2]) = (units, 4);
                (protocol::ROUTING, bytes)
            }
            Extension::Atomic => (protocol::FRAGMENT, vec![0, 0, 0, 0, 9, 9, 9, 9]),
        }
    }
}
