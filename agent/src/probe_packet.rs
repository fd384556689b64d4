//! The packet that a trace asks about: given whole, or made from a few fields as the guest's own
//! stack would make it.

use api::v1;
use flow::wire::{
    EthernetRepr, Icmpv4Repr, Icmpv6Repr, Ipv4Repr, Ipv6Repr, TcpRepr, UdpRepr, ethertype, icmp,
    protocol, tcp,
};
use flow::{MacAddr, PortId};
use std::net::IpAddr;
use vrouter::{Network, Topology};

/// The longest packet that is traced.
pub const MAX_PACKET: usize = 65_535 + 18;

/// The packet of a request from this port, or what is wrong with the request.
pub fn build(
    request: &v1::TraceRequest,
    port: PortId,
    topology: &Topology,
) -> Result<Vec<u8>, String> {
    if !request.packet.is_empty() {
        if request.packet.len() > MAX_PACKET {
            return Err(format!(
                "A packet of {} bytes is none",
                request.packet.len()
            ));
        }
        return Ok(request.packet.clone());
    }
    let own = topology.ports.iter().find(|p| p.id == port);
    let own = own.ok_or("The port is not ready; see its status")?;
    let network = topology.networks.iter().find(|n| n.id == own.network);
    let network = network.ok_or("The port's network is not known here")?;
    let dst = address(&request.dst, "dst")?;
    let src = match request.src.as_str() {
        "" => *own
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4() == dst.is_ipv4())
            .ok_or_else(|| {
                format!(
                    "Port \"{}\" has no address of the family of {dst}; give src",
                    own.name
                )
            })?,
        text => address(text, "src")?,
    };
    if src.is_ipv4() != dst.is_ipv4() {
        return Err(format!("{src} and {dst} are not of one family"));
    }
    let ports = (
        port_number(request.src_port, 40_000)?,
        port_number(request.dst_port, 80)?,
    );
    let payload = transport(&request.protocol, src, dst, ports)?;
    let (kind, ip) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (
            ethertype::IPV4,
            Ipv4Repr::new(src, dst, payload.0).emit(&payload.1),
        ),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (
            ethertype::IPV6,
            Ipv6Repr::new(src, dst, payload.0).emit(&payload.1),
        ),
        _ => return Err(format!("{src} and {dst} are not of one family")),
    };
    let dst = next_station(network, topology, dst);
    Ok(EthernetRepr {
        dst,
        src: own.mac,
        vlan: None,
        ethertype: kind,
    }
    .emit(&ip))
}

/// The MAC that the guest would send to: the station's on its own link, otherwise the gateway's.
fn next_station(network: &Network, topology: &Topology, dst: IpAddr) -> MacAddr {
    let gateway = network.gateway_mac;
    if !network
        .subnets
        .iter()
        .any(|subnet| subnet.prefix.contains(&dst))
    {
        return gateway;
    }
    let ports = topology.ports.iter().filter(|p| p.network == network.id);
    let ports = ports.map(|p| (&p.addresses, p.mac));
    let peers = topology.peers.iter().filter(|p| p.network == network.id);
    let mut stations = ports.chain(peers.map(|p| (&p.addresses, p.mac)));
    stations
        .find(|(addresses, _)| addresses.contains(&dst))
        .map_or(gateway, |(_, mac)| mac)
}

fn address(text: &str, field: &str) -> Result<IpAddr, String> {
    let shown: String = text.chars().take(64).collect();
    text.parse()
        .map_err(|_| format!("\"{shown}\" is not an IP address; give one as {field}"))
}

fn port_number(number: u32, default: u16) -> Result<u16, String> {
    match number {
        0 => Ok(default),
        number => u16::try_from(number).map_err(|_| format!("{number} is not a port number")),
    }
}

/// The protocol's number, and an echo request, a SYN or a datagram.
fn transport(
    name: &str,
    src: IpAddr,
    dst: IpAddr,
    (src_port, dst_port): (u16, u16),
) -> Result<(u8, Vec<u8>), String> {
    Ok(match name {
        "tcp" => {
            let syn = TcpRepr {
                src,
                dst,
                src_port,
                dst_port,
                sequence: 0,
                acknowledgement: 0,
                flags: tcp::flags::SYN,
                window: 65_535,
            };
            (protocol::TCP, syn.emit(&[]))
        }
        "udp" => (
            protocol::UDP,
            UdpRepr {
                src,
                dst,
                src_port,
                dst_port,
            }
            .emit(b"ferrovia"),
        ),
        "icmp" | "icmpv6" | "" => match (src, dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let kind = icmp::v6::ECHO_REQUEST;
                let echo = Icmpv6Repr {
                    src,
                    dst,
                    kind,
                    code: 0,
                    rest: [0, 1, 0, 1],
                };
                (protocol::ICMPV6, echo.emit(b"ferrovia"))
            }
            _ => {
                let echo = Icmpv4Repr {
                    kind: icmp::v4::ECHO_REQUEST,
                    code: 0,
                    rest: [0, 1, 0, 1],
                };
                (protocol::ICMP, echo.emit(b"ferrovia"))
            }
        },
        other => {
            let shown: String = other.chars().take(32).collect();
            return Err(format!(
                "\"{shown}\" cannot be traced; use icmp, tcp or udp"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::{FlowKey, parse};
    use vrouter::{NetworkId, Peer, Port, Subnet};

    fn topology() -> Topology {
        let id = NetworkId(1);
        let prefix = |p: &str, g: &str| Subnet {
            prefix: p.parse().unwrap(),
            gateway: g.parse().unwrap(),
            slaac: false,
        };
        Topology {
            networks: vec![Network {
                id,
                name: "blue".into(),
                vni: 1,
                mtu: 1450,
                gateway_mac: MacAddr([2, 0, 0, 0, 0, 254]),
                subnets: vec![
                    prefix("10.0.0.0/24", "10.0.0.1"),
                    prefix("fd00::/64", "fd00::1"),
                ],
                dns: vec![],
                routes: vec![],
            }],
            ports: vec![Port {
                id: PortId(1),
                name: "a".into(),
                network: id,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec!["10.0.0.10".parse().unwrap(), "fd00::10".parse().unwrap()],
            }],
            peers: vec![Peer {
                network: id,
                mac: MacAddr([2, 0, 0, 0, 0, 2]),
                addresses: vec!["10.0.0.11".parse().unwrap()],
                vtep: "192.0.2.2".parse().unwrap(),
            }],
            ..Topology::default()
        }
    }

    fn key(dst: &str, protocol: &str) -> FlowKey {
        let request = v1::TraceRequest {
            dst: dst.into(),
            protocol: protocol.into(),
            ..Default::default()
        };
        let packet = build(&request, PortId(1), &topology()).unwrap();
        parse(&packet, PortId(1)).unwrap().key
    }

    #[test]
    fn a_packet_is_what_the_guest_would_send() {
        let peer = key("10.0.0.11", "tcp");
        assert_eq!(peer.eth_dst, MacAddr([2, 0, 0, 0, 0, 2]));
        assert_eq!((peer.protocol, peer.dst_port), (6, 80));
        let far = key("198.51.100.1", "udp");
        assert_eq!(far.eth_dst, MacAddr([2, 0, 0, 0, 0, 254]));
        let six = key("fd00::1", "");
        assert_eq!((six.protocol, six.src_port), (58, 128));
        assert_eq!(six.ip_src.to_ip().to_string(), "fd00::10");
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let bad = |request: v1::TraceRequest| build(&request, PortId(1), &topology()).unwrap_err();
        let to = |dst: &str| v1::TraceRequest {
            dst: dst.into(),
            ..Default::default()
        };
        assert!(bad(to("10.0.0")).contains("not an IP address"));
        assert!(
            bad(v1::TraceRequest {
                src: "fd00::1".into(),
                ..to("10.0.0.1")
            })
            .contains("one family")
        );
        assert!(
            bad(v1::TraceRequest {
                protocol: "x".into(),
                ..to("10.0.0.1")
            })
            .contains("icmp, tcp")
        );
        assert!(
            bad(v1::TraceRequest {
                dst_port: 70_000,
                ..to("10.0.0.1")
            })
            .contains("70000")
        );
        assert!(build(&to("10.0.0.1"), PortId(9), &topology()).is_err());
    }
}
