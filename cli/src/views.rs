//! What is shown of each object: the columns of tables and the fields of JSON. The controller's objects are
//! here, what an agent tells of its host in `local`.
//!
//! The JSON field names here are the stable interface for scripts; the protobuf messages behind them
//! may grow.

mod local;
pub mod nic;
pub mod vf;
pub mod xvio;

pub use local::{Agent, Drop, Flow, LocalPort, PortCounters};

use crate::output::{Row, or_dash};
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
    /// Provider VLAN of VFs; 0: none.
    vlan: u32,
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
            vlan: network.vlan,
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
            (
                "VLAN",
                match self.vlan {
                    0 => String::new(),
                    vlan => vlan.to_string(),
                },
            ),
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
    /// Pool that the VF is taken from; empty: the agent's own choice.
    pool: String,
    standby: bool,
    /// PCI address of the VF.
    vf: String,
    /// VLAN that is set on the VF.
    vlan: u32,
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
            pool: port.pool,
            standby: port.standby,
            vf: status.vf,
            vlan: status.vlan,
        }
    }
}

impl Port {
    fn has_rings(&self) -> bool {
        self.binding != "sriov" || self.standby
    }

    fn binding_line(&self) -> String {
        match self.standby {
            true => format!("{}, with a virtio standby", self.binding),
            false => self.binding.to_owned(),
        }
    }

    fn vf_line(&self) -> String {
        match self.vlan {
            _ if self.vf.is_empty() => String::new(),
            0 => format!("{}, untagged", self.vf),
            vlan => format!("{}, VLAN {vlan}", self.vf),
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
            ("BINDING", self.binding_line()),
            ("POOL", self.pool.clone()),
            (
                "QUEUE PAIRS",
                match self.has_rings() {
                    true => format!("{} of {} descriptors", self.queue_pairs, self.queue_size),
                    false => String::new(),
                },
            ),
            ("STATE", state),
            ("VF", self.vf_line()),
            (
                "GUEST",
                match (self.has_rings(), self.guest_connected) {
                    (false, _) => "",
                    (true, true) => "connected",
                    (true, false) => "not connected",
                }
                .to_owned(),
            ),
            ("SOCKET", self.socket.clone()),
            ("OWNER", self.owner.clone()),
        ]
    }
}
