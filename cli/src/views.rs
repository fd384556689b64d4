//! What is shown of each object: the columns of tables and the fields of JSON.
//!
//! The JSON field names here are the stable interface for scripts; the protobuf messages behind them
//! may grow.

use crate::output::{Row, duration, or_dash};
use api::v1;
use serde::Serialize;

/// A host.
#[derive(Serialize)]
pub struct Host {
    id: String,
    name: String,
    revision: u64,
    vtep: String,
    underlay_mtu: u32,
    connected: bool,
    agent_version: String,
    applied_version: u64,
    desired_version: u64,
    last_seen_ms: i64,
    homes: Vec<Home>,
    problems: Vec<String>,
}

/// A home of flows on a host.
#[derive(Serialize)]
pub struct Home {
    home: String,
    available: bool,
    reason: String,
}

impl From<v1::HomeStatus> for Home {
    fn from(home: v1::HomeStatus) -> Self {
        Home {
            home: home.home,
            available: home.available,
            reason: home.reason,
        }
    }
}

impl Home {
    fn line(&self) -> String {
        match (self.available, self.reason.is_empty()) {
            (true, true) => format!("{}: available", self.home),
            (true, false) => format!("{}: available ({})", self.home, self.reason),
            (false, _) => format!("{}: not here: {}", self.home, self.reason),
        }
    }
}

fn home_lines(homes: &[Home]) -> String {
    homes.iter().map(Home::line).collect::<Vec<_>>().join("\n")
}

impl From<v1::Host> for Host {
    fn from(host: v1::Host) -> Self {
        let status = host.status.unwrap_or_default();
        Host {
            id: host.id,
            name: host.name,
            revision: host.revision,
            vtep: host.vtep,
            underlay_mtu: host.underlay_mtu,
            connected: status.connected,
            agent_version: status.agent_version,
            applied_version: status.applied_version,
            desired_version: status.desired_version,
            last_seen_ms: status.last_seen_ms,
            homes: status.homes.into_iter().map(Home::from).collect(),
            problems: status.problems,
        }
    }
}

impl Host {
    fn state(&self) -> &'static str {
        match self.connected {
            false => "away",
            true if self.applied_version >= self.desired_version => "in step",
            true => "applying",
        }
    }
}

impl Row for Host {
    const TITLES: &'static [&'static str] = &["NAME", "STATE", "VTEP", "MTU", "AGENT", "HOMES"];

    fn cells(&self) -> Vec<String> {
        let homes: Vec<&str> = self
            .homes
            .iter()
            .filter(|h| h.available)
            .map(|h| h.home.as_str())
            .collect();
        vec![
            self.name.clone(),
            self.state().to_owned(),
            or_dash(&self.vtep),
            if self.underlay_mtu == 0 {
                "-".into()
            } else {
                self.underlay_mtu.to_string()
            },
            or_dash(&self.agent_version),
            or_dash(homes.join(" ")),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NAME", self.name.clone()),
            ("ID", self.id.clone()),
            ("REVISION", self.revision.to_string()),
            ("STATE", self.state().to_owned()),
            ("VTEP", or_dash(&self.vtep)),
            ("UNDERLAY MTU", self.underlay_mtu.to_string()),
            ("AGENT", or_dash(&self.agent_version)),
            (
                "APPLIED",
                format!("{} of {}", self.applied_version, self.desired_version),
            ),
            ("HOMES", home_lines(&self.homes)),
            ("PROBLEMS", self.problems.join("\n")),
        ]
    }
}

/// A virtual network.
#[derive(Serialize)]
pub struct Network {
    id: String,
    name: String,
    revision: u64,
    vni: u32,
    mtu: u32,
    subnets: Vec<Subnet>,
    dns: Vec<String>,
    routes: Vec<Route>,
    gateway_mac: String,
}

/// A subnet of a network.
#[derive(Serialize)]
pub struct Subnet {
    cidr: String,
    gateway: String,
    slaac: bool,
}

/// A static route that guests learn.
#[derive(Serialize)]
pub struct Route {
    destination: String,
    next_hop: String,
}

impl From<v1::Network> for Network {
    fn from(network: v1::Network) -> Self {
        Network {
            id: network.id,
            name: network.name,
            revision: network.revision,
            vni: network.vni,
            mtu: network.mtu,
            subnets: network
                .subnets
                .into_iter()
                .map(|s| Subnet {
                    cidr: s.cidr,
                    gateway: s.gateway,
                    slaac: s.slaac,
                })
                .collect(),
            dns: network.dns,
            routes: network
                .routes
                .into_iter()
                .map(|r| Route {
                    destination: r.destination,
                    next_hop: r.next_hop,
                })
                .collect(),
            gateway_mac: network.gateway_mac,
        }
    }
}

impl Row for Network {
    const TITLES: &'static [&'static str] = &["NAME", "VNI", "MTU", "SUBNETS", "DNS"];

    fn cells(&self) -> Vec<String> {
        let subnets: Vec<&str> = self.subnets.iter().map(|s| s.cidr.as_str()).collect();
        vec![
            self.name.clone(),
            self.vni.to_string(),
            self.mtu.to_string(),
            or_dash(subnets.join(" ")),
            or_dash(self.dns.join(" ")),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let subnet = |s: &Subnet| {
            let slaac = if s.slaac { ", slaac" } else { "" };
            format!("{} (gateway {}{slaac})", s.cidr, s.gateway)
        };
        let route = |r: &Route| format!("{} by {}", r.destination, r.next_hop);
        vec![
            ("NAME", self.name.clone()),
            ("ID", self.id.clone()),
            ("REVISION", self.revision.to_string()),
            ("VNI", self.vni.to_string()),
            ("MTU", self.mtu.to_string()),
            (
                "SUBNETS",
                self.subnets
                    .iter()
                    .map(subnet)
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            ("DNS", self.dns.join(" ")),
            (
                "ROUTES",
                self.routes.iter().map(route).collect::<Vec<_>>().join("\n"),
            ),
            ("GATEWAY MAC", self.gateway_mac.clone()),
        ]
    }
}

/// A port of a network, as the controller knows it.
#[derive(Serialize)]
pub struct Port {
    id: String,
    name: String,
    revision: u64,
    network: String,
    host: String,
    mac: String,
    addresses: Vec<String>,
    binding: &'static str,
    queue_pairs: u32,
    queue_size: u32,
    state: &'static str,
    reason: String,
    guest_connected: bool,
    socket: String,
    owner: String,
}

impl From<v1::Port> for Port {
    fn from(port: v1::Port) -> Self {
        let binding = match port.binding() {
            v1::Binding::Unspecified | v1::Binding::Virtio => "virtio",
            v1::Binding::Xvio => "xvio",
            v1::Binding::Sriov => "sriov",
            v1::Binding::Tap => "tap",
        };
        let status = port.status.unwrap_or_default();
        let virtio = port.virtio.unwrap_or_default();
        Port {
            state: match status.state() {
                v1::PortState::Unspecified | v1::PortState::Pending => "pending",
                v1::PortState::Ready => "ready",
                v1::PortState::Failed => "failed",
            },
            id: port.id,
            name: port.name,
            revision: port.revision,
            network: if port.network_name.is_empty() {
                port.network
            } else {
                port.network_name
            },
            host: if port.host_name.is_empty() {
                port.host
            } else {
                port.host_name
            },
            mac: port.mac,
            addresses: port.addresses,
            binding,
            queue_pairs: virtio.queue_pairs,
            queue_size: virtio.queue_size,
            reason: status.reason,
            guest_connected: status.guest_connected,
            socket: status.socket,
            owner: port.owner,
        }
    }
}

impl Row for Port {
    const TITLES: &'static [&'static str] = &[
        "NAME",
        "NETWORK",
        "HOST",
        "MAC",
        "ADDRESSES",
        "BINDING",
        "STATE",
        "GUEST",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.network.clone(),
            or_dash(&self.host),
            self.mac.clone(),
            or_dash(self.addresses.join(" ")),
            self.binding.to_owned(),
            self.state.to_owned(),
            if self.guest_connected {
                "connected"
            } else {
                "-"
            }
            .to_owned(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let state = if self.reason.is_empty() {
            self.state.to_owned()
        } else {
            format!("{}: {}", self.state, self.reason)
        };
        vec![
            ("NAME", self.name.clone()),
            ("ID", self.id.clone()),
            ("REVISION", self.revision.to_string()),
            ("NETWORK", self.network.clone()),
            ("HOST", or_dash(&self.host)),
            ("MAC", self.mac.clone()),
            ("ADDRESSES", self.addresses.join(" ")),
            ("BINDING", self.binding.to_owned()),
            (
                "QUEUE PAIRS",
                format!("{} of {} descriptors", self.queue_pairs, self.queue_size),
            ),
            ("STATE", state),
            (
                "GUEST",
                if self.guest_connected {
                    "connected"
                } else {
                    "not connected"
                }
                .to_owned(),
            ),
            ("SOCKET", self.socket.clone()),
            ("OWNER", self.owner.clone()),
        ]
    }
}

/// Drops of one reason.
#[derive(Serialize)]
pub struct Drop {
    /// The port, or "host" for the sum over the host.
    pub port: String,
    pub reason: String,
    pub packets: u64,
}

impl Row for Drop {
    const TITLES: &'static [&'static str] = &["PORT", "REASON", "PACKETS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.port.clone(),
            self.reason.clone(),
            self.packets.to_string(),
        ]
    }
}

/// Counters of one port of the data plane, as its guest sees the directions.
#[derive(Serialize)]
pub struct PortCounters {
    port: String,
    network: String,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    dropped: u64,
}

impl PortCounters {
    /// Names the port and its network.
    pub fn new(port: &str, network: &str, counters: &v1::PortCounters) -> PortCounters {
        PortCounters {
            port: port.to_owned(),
            network: network.to_owned(),
            rx_packets: counters.rx_packets,
            rx_bytes: counters.rx_bytes,
            tx_packets: counters.tx_packets,
            tx_bytes: counters.tx_bytes,
            dropped: counters.drops.iter().map(|d| d.packets).sum(),
        }
    }
}

impl Row for PortCounters {
    const TITLES: &'static [&'static str] = &[
        "PORT",
        "NETWORK",
        "RX PACKETS",
        "RX BYTES",
        "TX PACKETS",
        "TX BYTES",
        "DROPPED",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.port.clone(),
            or_dash(&self.network),
            self.rx_packets.to_string(),
            self.rx_bytes.to_string(),
            self.tx_packets.to_string(),
            self.tx_bytes.to_string(),
            self.dropped.to_string(),
        ]
    }
}

/// A port of this host's data plane.
#[derive(Serialize)]
pub struct LocalPort {
    number: u32,
    #[serde(flatten)]
    port: Port,
    active_queue_pairs: u32,
    features: String,
    counters: PortCounters,
}

impl From<v1::LocalPort> for LocalPort {
    fn from(local: v1::LocalPort) -> Self {
        let port = Port::from(local.port.unwrap_or_default());
        LocalPort {
            number: local.number,
            counters: PortCounters::new(
                &port.name,
                &port.network,
                &local.counters.unwrap_or_default(),
            ),
            port,
            active_queue_pairs: local.active_queue_pairs,
            features: local.features,
        }
    }
}

impl Row for LocalPort {
    const TITLES: &'static [&'static str] = &[
        "#",
        "NAME",
        "NETWORK",
        "ADDRESSES",
        "STATE",
        "GUEST",
        "QUEUES",
        "RX PACKETS",
        "TX PACKETS",
        "DROPPED",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.port.name.clone(),
            self.port.network.clone(),
            or_dash(self.port.addresses.join(" ")),
            self.port.state.to_owned(),
            if self.port.guest_connected {
                "connected"
            } else {
                "-"
            }
            .to_owned(),
            self.active_queue_pairs.to_string(),
            self.counters.rx_packets.to_string(),
            self.counters.tx_packets.to_string(),
            self.counters.dropped.to_string(),
        ]
    }
}

/// A flow.
#[derive(Serialize)]
pub struct Flow {
    in_port: String,
    network: String,
    key: String,
    actions: String,
    home: String,
    packets: u64,
    bytes: u64,
    age_ms: u64,
    idle_ms: u64,
}

impl From<v1::Flow> for Flow {
    fn from(flow: v1::Flow) -> Self {
        Flow {
            in_port: flow.in_port,
            network: flow.network,
            key: flow.key,
            actions: flow.actions,
            home: flow.home,
            packets: flow.packets,
            bytes: flow.bytes,
            age_ms: flow.age_ms,
            idle_ms: flow.idle_ms,
        }
    }
}

impl Row for Flow {
    const TITLES: &'static [&'static str] =
        &["FROM", "KEY", "ACTIONS", "HOME", "PACKETS", "BYTES", "IDLE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.in_port.clone(),
            self.key.clone(),
            self.actions.clone(),
            self.home.clone(),
            self.packets.to_string(),
            self.bytes.to_string(),
            duration(self.idle_ms),
        ]
    }
}

/// What the agent of this host does.
#[derive(Serialize)]
pub struct Agent {
    host: String,
    version: String,
    vtep: String,
    underlay_mtu: u32,
    uplink: String,
    controller: String,
    controller_mode: String,
    controller_connected: bool,
    applied_version: u64,
    hugepages: bool,
    uptime_ms: u64,
    homes: Vec<Home>,
    workers: Vec<Worker>,
}

/// A worker of the data plane.
#[derive(Serialize)]
pub struct Worker {
    index: u32,
    core: Option<u32>,
    packets: u64,
    flows: u64,
    sleeps: u64,
    busy_cycles: u64,
    idle_cycles: u64,
}

impl From<v1::AgentInfo> for Agent {
    fn from(info: v1::AgentInfo) -> Self {
        Agent {
            host: info.host,
            version: info.version,
            vtep: info.vtep,
            underlay_mtu: info.underlay_mtu,
            uplink: info.uplink,
            controller: info.controller,
            controller_mode: info.controller_mode,
            controller_connected: info.controller_connected,
            applied_version: info.applied_version,
            hugepages: info.hugepages,
            uptime_ms: info.uptime_ms,
            homes: info.homes.into_iter().map(Home::from).collect(),
            workers: info
                .workers
                .into_iter()
                .map(|w| Worker {
                    index: w.index,
                    core: u32::try_from(w.core).ok(),
                    packets: w.packets,
                    flows: w.flows,
                    sleeps: w.sleeps,
                    busy_cycles: w.busy_cycles,
                    idle_cycles: w.idle_cycles,
                })
                .collect(),
        }
    }
}

impl Row for Agent {
    const TITLES: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        Vec::new()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let controller = match self.controller_mode.as_str() {
            "none" => "none: runs alone from its file".to_owned(),
            mode => {
                let state = if self.controller_connected {
                    "connected"
                } else {
                    "not connected"
                };
                format!("{} ({mode}, {state})", self.controller)
            }
        };
        let worker = |w: &Worker| {
            let core = w
                .core
                .map_or("not pinned".to_owned(), |core| format!("core {core}"));
            let cycles = w.busy_cycles + w.idle_cycles;
            let busy = if cycles == 0 {
                0.0
            } else {
                100.0 * w.busy_cycles as f64 / cycles as f64
            };
            format!(
                "{}: {core}, {} packets, {} flows, busy {busy:.1} % of polling, {} sleeps",
                w.index, w.packets, w.flows, w.sleeps
            )
        };
        vec![
            ("HOST", self.host.clone()),
            ("VERSION", self.version.clone()),
            ("UP", duration(self.uptime_ms)),
            ("CONTROLLER", controller),
            ("APPLIED", self.applied_version.to_string()),
            ("UPLINK", or_dash(&self.uplink)),
            ("VTEP", or_dash(&self.vtep)),
            ("UNDERLAY MTU", self.underlay_mtu.to_string()),
            (
                "HUGEPAGES",
                if self.hugepages { "yes" } else { "no" }.to_owned(),
            ),
            ("HOMES", home_lines(&self.homes)),
            (
                "WORKERS",
                self.workers
                    .iter()
                    .map(worker)
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
        ]
    }
}
