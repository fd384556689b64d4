//! Keys and actions as text, the way the CLI shows them: `name=value`, short, one line.

use crate::action::{Action, Vxlan};
use crate::key::{FlowKey, Fragment, TunnelKey};
use crate::wire::{arp, ethertype, protocol};
use std::fmt;

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("none");
        }
        write!(
            f,
            "vxlan(vni={} {} > {})",
            self.vni,
            self.src.to_ip(),
            self.dst.to_ip()
        )
    }
}

/// The name of an IP protocol, where it has a short one.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        protocol::ICMP => "icmp",
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::ICMPV6 => "icmpv6",
        protocol::SCTP => "sctp",
        2 => "igmp",
        4 => "ipip",
        47 => "gre",
        50 => "esp",
        _ => return None,
    })
}

/// `port3 vxlan(…) 02:…:01 > 02:…:02 vlan=7 tcp 10.0.0.1:4000 > 10.0.0.2:80 first-fragment`, each
/// part only where the packet has it.
impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.in_port)?;
        if !self.tunnel.is_none() {
            write!(f, "{} ", self.tunnel)?;
        }
        write!(f, "{} > {} ", self.eth_src, self.eth_dst)?;
        if self.vlan != 0 {
            write!(f, "vlan={} ", self.vlan & 0xfff)?;
        }
        match self.ethertype {
            ethertype::IPV4 | ethertype::IPV6 => self.fmt_ip(f),
            ethertype::ARP => {
                match u16::from(self.protocol) {
                    arp::REQUEST => f.write_str("arp request")?,
                    arp::REPLY => f.write_str("arp reply")?,
                    other => write!(f, "arp operation={other}")?,
                }
                write!(f, " {} > {}", self.ip_src.to_ip(), self.ip_dst.to_ip())
            }
            0 => f.write_str("802.3"),
            other => write!(f, "ethertype=0x{other:04x}"),
        }
    }
}

impl FlowKey {
    fn fmt_ip(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match protocol_name(self.protocol) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "protocol={}", self.protocol)?,
        }
        let (src, dst) = (self.ip_src.to_ip(), self.ip_dst.to_ip());
        let has_header = self.fragment != Fragment::Later;
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP if has_header => {
                let src = std::net::SocketAddr::from((src, self.src_port));
                let dst = std::net::SocketAddr::from((dst, self.dst_port));
                write!(f, " {src} > {dst}")?;
            }
            protocol::ICMP | protocol::ICMPV6 if has_header => {
                write!(
                    f,
                    " {src} > {dst} type={} code={}",
                    self.src_port, self.dst_port
                )?;
            }
            _ => write!(f, " {src} > {dst}")?,
        }
        match self.fragment {
            Fragment::No => Ok(()),
            Fragment::First => f.write_str(" first-fragment"),
            Fragment::Later => f.write_str(" later-fragment"),
        }
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Vxlan {
            eth_src,
            eth_dst,
            src,
            dst,
            src_port,
            vni,
            ttl,
        } = self;
        write!(
            f,
            "vni={vni} {src} > {dst} sport={src_port} ttl={ttl} {eth_src} > {eth_dst}"
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::SetEthSrc(mac) => write!(f, "eth-src={mac}"),
            Action::SetEthDst(mac) => write!(f, "eth-dst={mac}"),
            Action::SetIpSrc(ip) => write!(f, "ip-src={ip}"),
            Action::SetIpDst(ip) => write!(f, "ip-dst={ip}"),
            Action::SetPortSrc(port) => write!(f, "port-src={port}"),
            Action::SetPortDst(port) => write!(f, "port-dst={port}"),
            Action::DecTtl => f.write_str("dec-ttl"),
            Action::CheckMtu(mtu) => write!(f, "check-mtu={mtu}"),
            Action::PushVlan(tci) => write!(f, "push-vlan={} pcp={}", tci & 0xfff, tci >> 13),
            Action::PopVlan => f.write_str("pop-vlan"),
            Action::EncapVxlan(outer) => write!(f, "encap-vxlan({outer})"),
            Action::DecapVxlan => f.write_str("decap-vxlan"),
            Action::Output(port) => write!(f, "output={port}"),
            Action::Drop(reason) => write!(f, "drop={reason}"),
        }
    }
}

/// An action list as text: `dec-ttl, check-mtu=1450, output=port2`; `(nothing)` for an empty one.
#[derive(Clone, Copy, Debug)]
pub struct ActionList<'a>(pub &'a [Action]);

impl fmt::Display for ActionList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else {
            return f.write_str("(nothing)");
        };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|action| write!(f, ", {action}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DropReason, MacAddr, PortId};
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_names_each_part_that_the_packet_has() {
        let mut key = FlowKey {
            in_port: PortId(3),
            eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
            eth_dst: MacAddr([2, 0, 0, 0, 0, 2]),
            ethertype: ethertype::IPV4,
            vlan: 0x1007,
            ip_src: ip("10.0.0.1").into(),
            ip_dst: ip("10.0.0.2").into(),
            protocol: protocol::TCP,
            fragment: Fragment::First,
            src_port: 4000,
            dst_port: 80,
            ..FlowKey::default()
        };
        assert_eq!(
            key.to_string(),
            "port3 02:00:00:00:00:01 > 02:00:00:00:00:02 vlan=7 tcp 10.0.0.1:4000 > 10.0.0.2:80 \
             first-fragment"
        );
        key = FlowKey {
            in_port: PortId::UPLINK,
            tunnel: TunnelKey {
                vni: 9,
                src: ip("192.0.2.1").into(),
                dst: ip("192.0.2.2").into(),
            },
            ethertype: ethertype::IPV6,
            vlan: 0,
            ip_src: ip("2001:db8::1").into(),
            ip_dst: ip("2001:db8::2").into(),
            protocol: protocol::ICMPV6,
            fragment: Fragment::No,
            src_port: 128,
            dst_port: 0,
            ..key
        };
        assert_eq!(
            key.to_string(),
            "uplink vxlan(vni=9 192.0.2.1 > 192.0.2.2) 02:00:00:00:00:01 > 02:00:00:00:00:02 \
             icmpv6 2001:db8::1 > 2001:db8::2 type=128 code=0"
        );
    }

    #[test]
    fn a_list_reads_in_order() {
        let list = [
            Action::SetEthDst(MacAddr([2, 0, 0, 0, 0, 9])),
            Action::DecTtl,
            Action::Output(PortId(2)),
            Action::Drop(DropReason::SpoofedIp),
        ];
        assert_eq!(
            ActionList(&list).to_string(),
            "eth-dst=02:00:00:00:00:09, dec-ttl, output=port2, drop=spoofed-ip"
        );
        assert_eq!(ActionList(&[]).to_string(), "(nothing)");
    }
}
