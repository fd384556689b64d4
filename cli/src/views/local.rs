//! What an agent tells of its own host: ports with counters, drops, flows, and the agent itself.

use super::{Home, Port, home_lines};
use crate::output::{Row, duration, or_dash};
use api::v1;
use serde::Serialize;

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
