//! What the control side gets to see of flows and packets: records, filters, events, traces.

use crate::table::Entry;
use flow::reference::Execution;
use flow::{Action, DropReason, FlowKey, KeyAddr, MacAddr, PortId};
use std::net::IpAddr;
use std::time::Duration;
use vrouter::Verdict;

/// One flow of a table, copied out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// What it matches.
    pub key: FlowKey,
    /// What is done to its packets.
    pub actions: Vec<Action>,
    /// Packets that used it, the first one included.
    pub packets: u64,
    /// Their bytes as they came in.
    pub bytes: u64,
    /// Since it was installed.
    pub age: Duration,
    /// Since its last packet.
    pub idle: Duration,
    /// The router that compiled it. An older one than the present means that the next packet has it
    /// compiled again.
    pub epoch: u64,
    /// The worker in whose table it is.
    pub worker: usize,
}

impl FlowRecord {
    pub(crate) fn new(entry: &Entry, worker: usize, now: u64, hz: u64) -> Self {
        let hz = hz.max(1);
        let since = |then: u64| {
            let ticks = now.saturating_sub(then);
            // The rest is below one second's ticks, so this fits for clocks up to 18 GHz.
            let nanos = ticks % hz * 1_000_000_000 / hz;
            Duration::from_secs(ticks / hz) + Duration::from_nanos(nanos)
        };
        FlowRecord {
            key: entry.key,
            actions: entry.program.actions.to_vec(),
            packets: entry.packets,
            bytes: entry.bytes,
            age: since(entry.born),
            idle: since(entry.used),
            epoch: entry.epoch,
            worker,
        }
    }
}

/// Which flows a dump is about: all conditions that are set have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Flows that come in at this port or leave through it.
    pub port: Option<PortId>,
    /// Flows from or to this (inner) address.
    pub address: Option<IpAddr>,
    /// Flows of this IP protocol.
    pub protocol: Option<u8>,
    /// Flows from or to this transport port.
    pub transport_port: Option<u16>,
    /// Flows that came in a tunnel with this VNI, or that are put into one.
    pub vni: Option<u32>,
}

impl FlowFilter {
    /// Whether a flow is asked for.
    pub fn matches(&self, key: &FlowKey, actions: &[Action]) -> bool {
        let port = |port| key.in_port == port || actions.contains(&Action::Output(port));
        let address = |ip: IpAddr| {
            let ip = KeyAddr::from(ip);
            key.ip_src == ip || key.ip_dst == ip
        };
        let vni = |vni| {
            (!key.tunnel.is_none() && key.tunnel.vni == vni)
                || actions
                    .iter()
                    .any(|a| matches!(a, Action::EncapVxlan(outer) if outer.vni == vni))
        };
        self.port.is_none_or(port)
            && self.address.is_none_or(address)
            && self
                .protocol
                .is_none_or(|protocol| key.protocol == protocol)
            && self
                .transport_port
                .is_none_or(|port| key.src_port == port || key.dst_port == port)
            && self.vni.is_none_or(vni)
    }
}

/// The answer to a question for flows.
#[derive(Clone, Debug, Default)]
pub struct FlowDump {
    /// The flows, at most as many as were asked for.
    pub flows: Vec<FlowRecord>,
    /// There are more that match.
    pub truncated: bool,
    /// Flows in all tables, matching or not.
    pub total: usize,
}

/// What the packet path tells the control side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A neighbour in the underlay said where it is.
    Learned {
        /// Its address.
        ip: IpAddr,
        /// Its MAC address.
        mac: MacAddr,
    },
    /// Packets wait for this next hop of the underlay, whose MAC address nobody knows: ask for it
    /// now. Told at most ten times a second for each worker.
    Unresolved {
        /// The next hop.
        ip: IpAddr,
    },
}

/// What would happen to a packet, and why.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What its headers say, or why it would be dropped at once.
    pub key: Result<FlowKey, DropReason>,
    /// The flow that is installed for it now.
    pub installed: Option<FlowRecord>,
    /// How the router comes to its decision.
    pub steps: Vec<String>,
    /// The router's decision; `None` where the packet does not get that far.
    pub verdict: Option<Verdict>,
    /// What the decided actions make of the packet.
    pub execution: Option<Execution>,
}
