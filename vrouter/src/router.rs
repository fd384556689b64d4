//! [`VRouter`]: a compiled topology, and the way a packet takes through it.

use crate::explain::{Explanation, Trace};
use crate::input::Input;
use crate::tables::{Guest, Tables};
use crate::topology::Topology;
use crate::validate::{TopologyError, validate};
use crate::verdict::{Answer, Verdict};
use crate::{arp, dhcp4, dhcp6, forward, icmp, nd, ra, spoof, tunnel, underlay};
use flow::parse::Parsed;
use flow::wire::{ethertype, icmp::v6, protocol};
use flow::{Action, ActionList, DropReason, FlowKey, Fragment, PortId, Punt};
use std::net::IpAddr;

/// The virtual router of one host, under one topology.
///
/// Immutable: workers share it, and a change makes a new one. It has no clock and does no I/O;
/// equal packets get equal verdicts. It runs for the first packet of a flow, so it may allocate.
#[derive(Debug)]
pub struct VRouter {
    tables: Tables,
}

impl VRouter {
    /// Validates a topology and compiles it.
    ///
    /// # Errors
    /// What contradicts itself in the topology; see [`TopologyError`].
    pub fn new(topology: Topology) -> Result<VRouter, TopologyError> {
        validate(&topology)?;
        Ok(VRouter {
            tables: Tables::new(topology),
        })
    }

    /// The topology's epoch.
    pub fn epoch(&self) -> u64 {
        self.tables.topology.epoch
    }

    /// The topology this router was made of.
    pub fn topology(&self) -> &Topology {
        &self.tables.topology
    }

    /// What is to be done with the first packet of a flow.
    ///
    /// `packet` is the whole frame in private memory, and `parsed` what [`flow::parse()`] found in
    /// it. Where it ends early, forwarding still works, but ARP, ND, DHCP and ICMP, which read
    /// beyond the headers, drop it as malformed, and ICMP errors quote less.
    pub fn first_packet(&self, parsed: &Parsed, packet: &[u8]) -> Verdict {
        self.decide(Input { parsed, packet }, &mut Trace::off())
    }

    /// The same decision, told in plain words.
    pub fn explain(&self, parsed: &Parsed, packet: &[u8]) -> Explanation {
        let mut trace = Trace::on();
        let verdict = self.decide(Input { parsed, packet }, &mut trace);
        trace.note(|| conclusion(&verdict));
        Explanation {
            steps: trace.into_steps(),
            verdict,
        }
    }

    /// The executor stopped with a punt: the ICMP error that the sender is due, if any.
    ///
    /// `packet` is the packet as it came in; an ICMP error quotes as much of it as is here.
    pub fn punt(&self, why: Punt, parsed: &Parsed, packet: &[u8]) -> Verdict {
        let input = Input { parsed, packet };
        let reason = match why {
            Punt::TtlExceeded => DropReason::TtlExceeded,
            Punt::TooBig => DropReason::TooBig,
        };
        let Some(guest) = self.tables.guest(parsed.key.in_port) else {
            // From the tunnel, too: the host where the packet came in has answered or had to.
            return Verdict::Drop(reason);
        };
        if parsed.key.eth_src != guest.port.mac
            || guest.domain.is_plain()
            || !spoof::is_own(&guest, input.src())
        {
            return Verdict::Drop(reason);
        }
        let error = match why {
            Punt::TtlExceeded => icmp::Error::TimeExceeded,
            Punt::TooBig => match self.exceeded_mtu(input) {
                Some(mtu) => icmp::Error::TooBig(mtu),
                None => return Verdict::Drop(reason),
            },
        };
        match icmp::error(&guest, input, error) {
            Some(packet) => Verdict::answer(guest.port.id, packet),
            None => Verdict::Drop(reason),
        }
    }

    /// The MTU that stops this packet on its way.
    fn exceeded_mtu(&self, input: Input) -> Option<u16> {
        let actions = match self.decide(input, &mut Trace::off()) {
            Verdict::Flow { actions, .. } | Verdict::Once { actions } => actions,
            _ => return None,
        };
        actions.iter().find_map(|action| match action {
            Action::CheckMtu(mtu) if input.parsed.ip_len > usize::from(*mtu) => Some(*mtu),
            _ => None,
        })
    }

    /// What has to be resolved in the underlay: tunnel endpoints on the link, or the gateway.
    pub fn underlay_next_hops(&self) -> Vec<IpAddr> {
        self.tables.next_hops().to_vec()
    }

    /// An unsolicited router advertisement for each port whose network has IPv6, to be sent now
    /// and then (RFC 4861 section 6.2.4).
    pub fn router_advertisements(&self) -> Vec<Answer> {
        self.tables
            .guests()
            .filter(|guest| guest.domain.has_v6())
            .map(|guest| Answer {
                port: guest.port.id,
                packet: ra::unsolicited(&guest),
            })
            .collect()
    }

    fn decide(&self, input: Input, trace: &mut Trace) -> Verdict {
        let key = input.key();
        if key.in_port == PortId::UPLINK {
            return if key.tunnel.is_none() {
                underlay::decide(&self.tables, input, trace)
            } else {
                tunnel::decide(&self.tables, input, trace)
            };
        }
        let Some(guest) = self.tables.guest(key.in_port) else {
            trace.note(|| format!("{} is in no network.", key.in_port));
            return Verdict::Drop(DropReason::UnknownPort);
        };
        trace.note(|| {
            let (port, network) = (&guest.port.name, &guest.domain.network);
            format!(
                "The packet came in by port \"{port}\" of network \"{}\", VNI {}.",
                network.name, network.vni
            )
        });
        if key.eth_src != guest.port.mac {
            trace.note(|| {
                format!(
                    "Its source MAC is {}, but the port's is {}.",
                    key.eth_src, guest.port.mac
                )
            });
            return drop_flow(key, DropReason::SpoofedMac);
        }
        if guest.domain.is_plain() {
            trace.note(|| "The network has no subnets: it is a plain Ethernet.".into());
            return match spoof::plain(&guest, input) {
                Ok(()) => plain(key, forward::forward(&self.tables, &guest, input, trace)),
                Err(reason) => Verdict::Drop(reason),
            };
        }
        if key.vlan != 0 {
            trace.note(|| "It has a VLAN tag, which a network with subnets does not carry.".into());
            return drop_flow(key, DropReason::UnsupportedProtocol);
        }
        match key.ethertype {
            ethertype::ARP => arp::decide(&guest, input, trace),
            ethertype::IPV4 => self.ipv4(&guest, input, trace),
            ethertype::IPV6 => self.ipv6(&guest, input, trace),
            other => {
                trace.note(|| format!("EtherType {other:#06x} is not carried here."));
                drop_flow(key, DropReason::UnsupportedProtocol)
            }
        }
    }

    fn ipv4(&self, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
        let key = input.key();
        if dhcp4::is_for_server(guest, input) {
            return dhcp4::decide(guest, input, trace);
        }
        if let Err(reason) = spoof::ip(guest, input, trace) {
            return drop_flow(key, reason);
        }
        if key.protocol == IGMP {
            trace.note(|| "Group membership is not tracked: multicast is flooded.".into());
            return Verdict::CONSUMED;
        }
        if is_to_dhcp_client(key) {
            trace.note(|| "Only the gateway is a DHCP server.".into());
            return drop_flow(key, DropReason::NotForwardable);
        }
        self.to_gateway_or_on(guest, input, trace)
    }

    fn ipv6(&self, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
        let key = input.key();
        if key.protocol == protocol::ICMPV6 && key.fragment != Fragment::Later {
            match key.src_port as u8 {
                v6::ROUTER_SOLICIT..=v6::REDIRECT => return nd::decide(guest, input, trace),
                MLD_QUERY..=MLD_DONE | MLD_V2_REPORT => return nd::mld(guest, input, trace),
                _ => {}
            }
        }
        if dhcp6::is_for_server(guest, input) {
            return dhcp6::decide(guest, input, trace);
        }
        if let Err(reason) = spoof::ip(guest, input, trace) {
            return drop_flow(key, reason);
        }
        if is_to_dhcp_client(key) {
            trace.note(|| "Only the gateway is a DHCPv6 server.".into());
            return drop_flow(key, DropReason::NotForwardable);
        }
        self.to_gateway_or_on(guest, input, trace)
    }

    fn to_gateway_or_on(&self, guest: &Guest, input: Input, trace: &mut Trace) -> Verdict {
        let to_gateway_mac = input.key().eth_dst == guest.domain.network.gateway_mac;
        if to_gateway_mac && guest.domain.is_gateway(input.dst()) {
            icmp::to_gateway(guest, input, trace)
        } else {
            forward::forward(&self.tables, guest, input, trace)
        }
    }
}

const IGMP: u8 = 2;
const MLD_QUERY: u8 = 130;
const MLD_DONE: u8 = 132;
const MLD_V2_REPORT: u8 = 143;

/// True for what a DHCP client would take as its server's word. The source port does not matter:
/// clients that read raw packets look at the destination port only.
pub(crate) fn is_to_dhcp_client(key: &FlowKey) -> bool {
    let client = match key.ethertype {
        ethertype::IPV4 => dhcp4::CLIENT,
        ethertype::IPV6 => dhcp6::CLIENT,
        _ => return false,
    };
    key.protocol == protocol::UDP && key.fragment != Fragment::Later && key.dst_port == client
}

/// A flow that drops: for reasons that follow from the key alone.
pub(crate) fn drop_flow(key: &FlowKey, reason: DropReason) -> Verdict {
    Verdict::Flow {
        key: *key,
        actions: vec![Action::Drop(reason)],
    }
}

/// On a plain Ethernet every ARP message is looked at: its sender's MAC is not in the key.
fn plain(key: &FlowKey, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Flow { actions, .. } if key.ethertype == ethertype::ARP => match actions[..] {
            [Action::Drop(reason)] => Verdict::Drop(reason),
            _ => Verdict::Once { actions },
        },
        other => other,
    }
}

fn conclusion(verdict: &Verdict) -> String {
    let list = ActionList;
    match verdict {
        Verdict::Flow { actions, .. } => format!("A flow is installed: {}.", list(actions)),
        Verdict::Once { actions } => format!("For this packet only: {}.", list(actions)),
        Verdict::Answer(answers) if answers.is_empty() => "It is taken note of.".into(),
        Verdict::Answer(answers) => {
            let (count, length) = (answers.len(), answers[0].packet.len());
            let port = answers[0].port;
            format!(
                "The router answers with {count} packet(s), the first of {length} bytes to {port}."
            )
        }
        Verdict::Learned { ip, mac } => format!("The underlay's {ip} is at {mac}."),
        Verdict::Drop(reason) => format!("It is dropped: {reason}."),
    }
}
