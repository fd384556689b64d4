//! Frames for the tests, made and read.

use crate::world::*;
use flow::MacAddr;
use flow::wire::icmp::{v4 as icmp4, v6 as icmp6};
use flow::wire::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub fn ethernet(dst: MacAddr, src: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    EthernetRepr {
        dst,
        src,
        vlan: None,
        ethertype,
    }
    .emit(payload)
}

/// An IP packet in its frame, of the family of the addresses.
pub fn ip_frame(
    dst_mac: MacAddr,
    src_mac: MacAddr,
    (src, dst): (IpAddr, IpAddr),
    protocol: u8,
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let ip = Ipv4Repr {
                ttl,
                ..Ipv4Repr::new(src, dst, protocol)
            }
            .emit(payload);
            ethernet(dst_mac, src_mac, ethertype::IPV4, &ip)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6Repr {
                hop_limit: ttl,
                ..Ipv6Repr::new(src, dst, protocol)
            }
            .emit(payload);
            ethernet(dst_mac, src_mac, ethertype::IPV6, &ip)
        }
        _ => panic!("families differ"),
    }
}

pub const ECHO: [u8; 4] = [0x12, 0x34, 0, 1];

/// An echo request.
pub fn ping(dst_mac: MacAddr, src_mac: MacAddr, src: IpAddr, dst: IpAddr, size: usize) -> Vec<u8> {
    ping_ttl(dst_mac, src_mac, src, dst, size, 64)
}

pub fn ping_ttl(
    dst_mac: MacAddr,
    src_mac: MacAddr,
    src: IpAddr,
    dst: IpAddr,
    size: usize,
    ttl: u8,
) -> Vec<u8> {
    let body = vec![0x61; size];
    let (protocol, message) = match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let echo = Icmpv6Repr {
                src,
                dst,
                kind: icmp6::ECHO_REQUEST,
                code: 0,
                rest: ECHO,
            };
            (protocol::ICMPV6, echo.emit(&body))
        }
        _ => {
            let echo = Icmpv4Repr {
                kind: icmp4::ECHO_REQUEST,
                code: 0,
                rest: ECHO,
            };
            (protocol::ICMP, echo.emit(&body))
        }
    };
    ip_frame(dst_mac, src_mac, (src, dst), protocol, ttl, &message)
}

pub fn udp(
    dst_mac: MacAddr,
    src_mac: MacAddr,
    (src, src_port): (IpAddr, u16),
    (dst, dst_port): (IpAddr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let datagram = UdpRepr {
        src,
        dst,
        src_port,
        dst_port,
    }
    .emit(payload);
    ip_frame(dst_mac, src_mac, (src, dst), protocol::UDP, 64, &datagram)
}

pub fn arp(guest: &Guest, operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let message = ArpRepr {
        operation,
        sender_mac: guest.mac,
        sender_ip: sender,
        target_mac: MacAddr::ZERO,
        target_ip: target,
    };
    ethernet(
        MacAddr::BROADCAST,
        guest.mac,
        ethertype::ARP,
        &message.emit(),
    )
}

/// A message of neighbour discovery from a guest.
pub fn nd(guest: &Guest, src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let dst_mac = if dst.is_multicast() {
        nd::multicast_mac(dst)
    } else {
        mac(99)
    };
    ip_frame(
        dst_mac,
        guest.mac,
        (src.into(), dst.into()),
        protocol::ICMPV6,
        255,
        message,
    )
}

/// A neighbour solicitation as a guest sends it to resolve.
pub fn solicit(guest: &Guest, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let dst = nd::solicited_node(target);
    let message = NdRepr::Solicit {
        target,
        link: Some(guest.mac),
    }
    .emit(src, dst);
    nd(guest, src, dst, &message)
}

/// Duplicate address detection for `target`.
pub fn dad(guest: &Guest, target: Ipv6Addr) -> Vec<u8> {
    let dst = nd::solicited_node(target);
    let src = Ipv6Addr::UNSPECIFIED;
    nd(
        guest,
        src,
        dst,
        &NdRepr::Solicit { target, link: None }.emit(src, dst),
    )
}

/// An IP packet taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub eth_dst: MacAddr,
    pub eth_src: MacAddr,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

/// Takes a frame apart, with all its checksums verified.
#[track_caller]
pub fn see(frame: &[u8]) -> Seen {
    let eth = EthernetFrame::new_checked(frame).unwrap();
    let (eth_dst, eth_src) = (eth.dst(), eth.src());
    let seen = match eth.ethertype() {
        ethertype::IPV4 => {
            let ip = Ipv4Packet::new_checked(eth.payload()).unwrap();
            assert!(ip.checksum_ok());
            assert_eq!(ip.total_len(), eth.payload().len());
            let (src, dst) = (ip.src().into(), ip.dst().into());
            let (protocol, ttl, payload) = (ip.protocol(), ip.ttl(), ip.payload().to_vec());
            Seen {
                eth_dst,
                eth_src,
                src,
                dst,
                protocol,
                ttl,
                payload,
            }
        }
        ethertype::IPV6 => {
            let ip = Ipv6Packet::new_checked(eth.payload()).unwrap();
            assert_eq!(ip.total_len(), eth.payload().len());
            let (src, dst) = (ip.src().into(), ip.dst().into());
            let (protocol, ttl, payload) =
                (ip.next_header(), ip.hop_limit(), ip.payload().to_vec());
            Seen {
                eth_dst,
                eth_src,
                src,
                dst,
                protocol,
                ttl,
                payload,
            }
        }
        other => panic!("EtherType {other:#06x}"),
    };
    match (seen.protocol, seen.src, seen.dst) {
        (protocol::ICMP, ..) => {
            assert!(
                IcmpPacket::new_checked(&seen.payload[..])
                    .unwrap()
                    .checksum_ok_v4()
            );
        }
        (protocol::ICMPV6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            assert!(
                IcmpPacket::new_checked(&seen.payload[..])
                    .unwrap()
                    .checksum_ok_v6(src, dst)
            );
        }
        (protocol::UDP, src, dst) => {
            let udp = UdpDatagram::new_checked(&seen.payload[..]).unwrap();
            // VXLAN may go without (RFC 7348 section 5); what the router makes itself may not.
            assert!(udp.checksum() != 0 || udp.dst_port() == 4789);
            assert!(udp.checksum_ok(src, dst));
        }
        _ => {}
    }
    seen
}
