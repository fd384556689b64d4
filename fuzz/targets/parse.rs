//! Parsing arbitrary bytes: no panic, and every offset that is handed out lies in the packet.
#![no_main]

mod mend;

use flow::parse::{HEADER_LIMIT, vxlan_inner};
use flow::wire::{
    ArpPacket, EthernetFrame, IcmpPacket, Ipv4Packet, Ipv6Packet, NdMessage, TcpSegment,
    UdpDatagram, VxlanPacket,
};
use flow::{PortId, parse, parse_headers, parse_tunnel};
use libfuzzer_sys::fuzz_target;
use mend::mend_ipv4;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fuzz_target!(|bytes: &[u8]| {
    views(bytes);
    one(bytes);
    // A mutation that keeps a checksum right is rare: mend it where an outer, a tagged and an inner
    // IPv4 header would be, so that the fuzzer gets past the check.
    let mut mended = bytes.to_vec();
    for at in [14, 18, 64, 84] {
        mend_ipv4(&mut mended, at);
    }
    one(&mended);
});

fn one(bytes: &[u8]) {
    let plain = parse(bytes, PortId(1));
    let headers = &bytes[..bytes.len().min(HEADER_LIMIT)];
    assert_eq!(plain, parse_headers(headers, bytes.len(), PortId(1)));
    for parsed in [plain, parse_tunnel(bytes, PortId::UPLINK)]
        .into_iter()
        .flatten()
    {
        assert!(parsed.eth < parsed.l3 && parsed.l3 <= parsed.l4);
        assert!(parsed.l4 <= parsed.payload && parsed.payload <= parsed.ip_end());
        assert!(parsed.ip_end() <= parsed.end && parsed.end <= bytes.len());
        flow::entropy_port(&parsed.key);
        assert!(!parsed.key.to_string().is_empty());
    }
    if let Ok(Some(inner)) = vxlan_inner(bytes) {
        assert!(inner.start + 14 <= inner.end && inner.end <= bytes.len());
    }
}

/// Every view that accepts the bytes answers every question about them.
fn views(bytes: &[u8]) {
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    if let Ok(eth) = EthernetFrame::new_checked(bytes) {
        (
            eth.dst(),
            eth.src(),
            eth.vlan(),
            eth.ethertype(),
            eth.payload(),
        );
    }
    if let Ok(arp) = ArpPacket::new_checked(bytes) {
        (
            arp.operation(),
            arp.sender_mac(),
            arp.sender_ip(),
            arp.target_mac(),
            arp.target_ip(),
        );
    }
    if let Ok(ip) = Ipv4Packet::new_checked(bytes) {
        (
            ip.checksum_ok(),
            ip.payload(),
            ip.src(),
            ip.dst(),
            ip.fragment_offset(),
        );
    }
    if let Ok(ip) = Ipv6Packet::new_checked(bytes) {
        (ip.traffic_class(), ip.payload(), ip.src(), ip.dst());
    }
    if let Ok(udp) = UdpDatagram::new_checked(bytes) {
        (
            udp.checksum_ok(IpAddr::V4(v4), IpAddr::V4(v4)),
            udp.payload(),
        );
    }
    if let Ok(tcp) = TcpSegment::new_checked(bytes) {
        (
            tcp.checksum_ok(IpAddr::V6(v6), IpAddr::V6(v6)),
            tcp.payload(),
            tcp.sequence(),
        );
    }
    if let Ok(icmp) = IcmpPacket::new_checked(bytes) {
        (
            icmp.checksum_ok_v4(),
            icmp.checksum_ok_v6(v6, v6),
            icmp.rest(),
            icmp.payload(),
        );
    }
    if let Ok(vxlan) = VxlanPacket::new_checked(bytes) {
        (vxlan.vni(), vxlan.payload());
    }
    if let Ok(nd) = NdMessage::new_checked(bytes) {
        (nd.target(), nd.link_address(1), nd.options().count());
    }
}
