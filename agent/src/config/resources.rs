//! `[[network]]`, `[[port]]` and `[[peer]]`: what an agent that runs alone has.

use crate::desired::{self, Desired, MAX_VNI, SocketMode, valid_name};
use crate::relays::spec::{Origin, check_device};
use checked_toml::{At, Collector, Table};
use flow::MacAddr;
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

const IP: &str = "an IP address, such as 10.0.0.10 or fd00::10";
const CIDR: &str = "a prefix such as 10.0.0.0/24 or fd00::/64";
pub(super) const MAC: &str =
    "a MAC address; write six hexadecimal bytes, such as 52:54:00:12:34:56";

pub(super) struct FileNetwork {
    pub(super) span: Range<usize>,
    pub(super) name: At<String>,
    pub(super) vni: Option<At<u64>>,
    pub(super) mtu: Option<At<u64>>,
    pub(super) gateway_mac: Option<At<MacAddr>>,
    pub(super) vlan: Option<At<u64>>,
    pub(super) subnets: Vec<FileSubnet>,
    pub(super) dns: Vec<At<IpAddr>>,
    pub(super) routes: Vec<FileRoute>,
}

pub(super) struct FileSubnet {
    pub(super) cidr: At<IpNet>,
    pub(super) gateway: Option<At<IpAddr>>,
    pub(super) slaac: Option<At<bool>>,
}

impl FileSubnet {
    pub(super) fn gateway(&self) -> IpAddr {
        let default = || desired::first_address(&self.cidr.value);
        self.gateway.as_ref().map_or_else(default, |at| at.value)
    }
}

pub(super) struct FileRoute {
    pub(super) destination: At<IpNet>,
    pub(super) next_hop: At<IpAddr>,
}

pub(super) struct FilePort {
    pub(super) span: Range<usize>,
    pub(super) name: At<String>,
    pub(super) network: Option<At<String>>,
    pub(super) mac: Option<At<MacAddr>>,
    pub(super) addresses: Vec<At<IpAddr>>,
    pub(super) queue_pairs: u16,
    pub(super) queue_size: u16,
    pub(super) mode: SocketMode,
    pub(super) socket: Option<At<String>>,
    pub(super) vf: Option<FileVf>,
}

/// What a port of binding sriov or xvio has beside.
pub(super) struct FileVf {
    /// The guest has virtio rings, and its packets go to the VF.
    pub(super) relayed: bool,
    pub(super) pool: Option<String>,
    /// A virtual device of DPDK instead of a VF, where its packets are relayed.
    pub(super) device: Option<At<String>>,
    pub(super) standby: bool,
}

pub(super) struct FilePeer {
    pub(super) span: Range<usize>,
    pub(super) network: Option<At<String>>,
    pub(super) mac: Option<At<MacAddr>>,
    pub(super) addresses: Vec<At<IpAddr>>,
    pub(super) vtep: Option<At<IpAddr>>,
}

pub(super) struct Resources {
    pub(super) networks: Vec<FileNetwork>,
    pub(super) ports: Vec<FilePort>,
    pub(super) peers: Vec<FilePeer>,
}

pub(super) fn read(top: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Resources {
    let networks = top.tables("network", out);
    let networks = networks
        .into_iter()
        .filter_map(|t| network(t, out))
        .collect();
    let ports = top.tables("port", out);
    let ports = ports.into_iter().filter_map(|t| port(t, out)).collect();
    let peers = top.tables("peer", out);
    let peers = peers.into_iter().map(|t| peer(t, out)).collect();
    Resources {
        networks,
        ports,
        peers,
    }
}

fn network(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<FileNetwork> {
    let span = table.span.clone();
    let name = table.required("name", "\"blue\"", out);
    let vni = table.number("vni", 1..=u64::from(MAX_VNI), out);
    if vni.is_none() && !table.contains("vni") {
        out.add(
            span.clone(),
            "\"vni\" of [[network]] is missing; add vni = 100, the same on every host",
        );
    }
    let mtu = table.number("mtu", 576..=65_000, out);
    let gateway_mac = table.parsed("gateway_mac", MAC, out);
    let vlan = table.number("vlan", 1..=4094, out);
    let dns = table.parsed_list("dns", IP, out);
    let mut subnets = Vec::new();
    for mut subnet in table.tables("subnets", out) {
        let cidr = subnet.required("cidr", "\"10.0.0.0/24\"", out).map(|_| ());
        let cidr = cidr.and_then(|()| subnet.parsed::<IpNet>("cidr", CIDR, out));
        let gateway = subnet.parsed("gateway", IP, out);
        let slaac = subnet.boolean("slaac", out);
        subnet.finish(out);
        subnets.extend(cidr.map(|cidr| FileSubnet {
            cidr,
            gateway,
            slaac,
        }));
    }
    let mut routes = Vec::new();
    for mut route in table.tables("routes", out) {
        let destination = route
            .required("destination", "\"192.0.2.0/24\"", out)
            .map(|_| ());
        let destination = destination.and_then(|()| route.parsed("destination", CIDR, out));
        let next_hop = route.required("next_hop", "\"10.0.0.2\"", out).map(|_| ());
        let next_hop = next_hop.and_then(|()| route.parsed("next_hop", IP, out));
        route.finish(out);
        routes.extend(
            destination
                .zip(next_hop)
                .map(|(destination, next_hop)| FileRoute {
                    destination,
                    next_hop,
                }),
        );
    }
    table.finish(out);
    Some(FileNetwork {
        span,
        name: name?,
        vni,
        mtu,
        gateway_mac,
        vlan,
        subnets,
        dns,
        routes,
    })
}

/// `binding`, and the keys that only a port with a VF has.
fn vf(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Option<FileVf> {
    let binding = table.string("binding", out);
    let pool = table.string("pool", out);
    let standby = table.boolean("standby", out);
    let device = table.string("device", out);
    let relayed = binding.as_ref().is_some_and(|at| at.value == "xvio");
    if let Some(at) = device.as_ref().filter(|_| !relayed) {
        out.add(
            at.span.clone(),
            "Only a port with binding = \"xvio\" has a device; add that, or remove this",
        );
    }
    if let Some(at) = pool.as_ref().filter(|at| !valid_name(&at.value)) {
        out.add(
            at.span.clone(),
            "A pool's name is 1 to 63 of a-z, 0-9 and -, and starts with a letter",
        );
    }
    match binding {
        Some(at) if at.value == "sriov" => {
            return Some(FileVf {
                relayed: false,
                pool: pool.map(|at| at.value),
                device: None,
                standby: standby.is_some_and(|at| at.value),
            });
        }
        Some(at) if at.value == "xvio" => {
            if let Some(standby) = standby {
                out.add(
                    standby.span,
                    "Only a port with binding = \"sriov\" has a standby; with \"xvio\" the router is one already",
                );
            }
            if let Some(at) = &device
                && let Err(why) = check_device(&at.value, Origin::File)
            {
                out.add(at.span.clone(), why);
            }
            if let (Some(pool), Some(_)) = (&pool, &device) {
                out.add(
                    pool.span.clone(),
                    "A port with a device has no VF, and so no pool; give one of them",
                );
            }
            return Some(FileVf {
                relayed: true,
                device,
                pool: pool.map(|at| at.value),
                standby: false,
            });
        }
        Some(at) if at.value != "virtio" => out.add(
            at.span,
            "binding is \"virtio\" (a device of the agent), \"xvio\" (the same, with its packets in a VF) or \"sriov\" (a VF of a NIC)",
        ),
        _ => {}
    }
    if let Some(pool) = pool {
        out.add(
            pool.span,
            "Only a port with binding = \"sriov\" or \"xvio\" has a pool; add that, or remove this",
        );
    }
    if let Some(standby) = standby {
        out.add(
            standby.span,
            "Only a port with binding = \"sriov\" has a standby; add that, or remove this",
        );
    }
    None
}

fn port(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<FilePort> {
    let span = table.span.clone();
    let name = table.required("name", "\"web-1\"", out);
    let network = table.required("network", "\"blue\"", out);
    let mac = table
        .required("mac", "\"52:54:00:12:34:56\"", out)
        .map(|_| ());
    let mac = mac.and_then(|()| table.parsed("mac", MAC, out));
    let addresses = table.parsed_list("addresses", IP, out);
    let queue_pairs = table
        .number("queue_pairs", 1..=64, out)
        .map_or(1, |at| at.value as u16);
    let queue_size = match table.number("queue_size", 64..=32_768, out) {
        Some(at) if !at.value.is_power_of_two() => {
            out.add(at.span, "queue_size must be a power of two, such as 1024");
            1024
        }
        at => at.map_or(1024, |at| at.value as u16),
    };
    let mode = match table.string("mode", out) {
        Some(at) if at.value == "client" => SocketMode::Client,
        Some(at) if at.value != "server" => {
            out.add(at.span, "mode is \"server\" (the agent makes the socket) or \"client\" (the guest's QEMU makes it)");
            SocketMode::Server
        }
        _ => SocketMode::Server,
    };
    let socket = table.string("socket", out);
    let vf = vf(&mut table, out);
    table.finish(out);
    Some(FilePort {
        span,
        name: name?,
        network,
        mac,
        addresses,
        queue_pairs,
        queue_size,
        mode,
        socket,
        vf,
    })
}

fn peer(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> FilePeer {
    let span = table.span.clone();
    let network = table.required("network", "\"blue\"", out);
    let mac = table
        .required("mac", "\"52:54:00:12:34:57\"", out)
        .map(|_| ());
    let mac = mac.and_then(|()| table.parsed("mac", MAC, out));
    let addresses = table.parsed_list("addresses", IP, out);
    let vtep = table.required("vtep", "\"192.0.2.2\"", out).map(|_| ());
    let vtep = vtep.and_then(|()| table.parsed("vtep", IP, out));
    table.finish(out);
    FilePeer {
        span,
        network,
        mac,
        addresses,
        vtep,
    }
}

impl Resources {
    /// Where each of them stands.
    pub(super) fn spans(&self) -> Vec<Range<usize>> {
        let networks = self.networks.iter().map(|n| n.span.clone());
        let ports = self.ports.iter().map(|p| p.span.clone());
        networks
            .chain(ports)
            .chain(self.peers.iter().map(|p| p.span.clone()))
            .collect()
    }

    /// The desired state, of a file without problems (what a problem made incomplete is left out).
    pub(super) fn into_desired(self) -> Desired {
        let mut desired = Desired::default();
        for network in self.networks {
            let vni = network.vni.map_or(0, |at| at.value as u32);
            let subnets = network
                .subnets
                .iter()
                .map(|subnet| desired::Subnet {
                    prefix: subnet.cidr.value.trunc(),
                    gateway: subnet.gateway(),
                    slaac: subnet.slaac.as_ref().is_some_and(|at| at.value),
                })
                .collect();
            let routes = network
                .routes
                .iter()
                .map(|route| desired::Route {
                    destination: route.destination.value.trunc(),
                    next_hop: route.next_hop.value,
                })
                .collect();
            let name = network.name.value;
            desired.networks.insert(
                name.clone(),
                desired::Network {
                    name,
                    vni,
                    mtu: network.mtu.map(|at| at.value as u16),
                    gateway_mac: network
                        .gateway_mac
                        .map_or_else(|| desired::default_gateway_mac(vni), |at| at.value),
                    subnets,
                    dns: network.dns.into_iter().map(|at| at.value).collect(),
                    routes,
                    vlan: network.vlan.map_or(0, |at| at.value as u16),
                },
            );
        }
        for port in self.ports {
            let (Some(network), Some(mac)) = (port.network, port.mac) else {
                continue;
            };
            let name = port.name.value;
            let virtio = desired::Port {
                name: name.clone(),
                network: network.value,
                mac: mac.value,
                addresses: port.addresses.into_iter().map(|at| at.value).collect(),
                queue_pairs: port.queue_pairs,
                queue_size: port.queue_size,
                mode: port.mode,
                socket: port.socket.map(|at| PathBuf::from(at.value)),
                relay: port
                    .vf
                    .as_ref()
                    .filter(|vf| vf.relayed)
                    .map(|vf| desired::Relayed {
                        pool: vf.pool.clone(),
                        device: vf.device.as_ref().map(|at| at.value.clone()),
                        owner: String::new(),
                    }),
            };
            let vf = port.vf.filter(|vf| !vf.relayed);
            let vf = vf.map(|vf| desired::VfPort {
                name: name.clone(),
                network: virtio.network.clone(),
                mac: virtio.mac,
                addresses: virtio.addresses.clone(),
                pool: vf.pool,
                standby: vf.standby,
                owner: String::new(),
            });
            let routed = vf.as_ref().is_none_or(|vf| vf.standby);
            let port = desired::AnyPort {
                virtio: routed.then_some(virtio),
                vf,
            };
            desired.add(&name, port);
        }
        for (index, peer) in self.peers.into_iter().enumerate() {
            let (Some(network), Some(mac), Some(vtep)) = (peer.network, peer.mac, peer.vtep) else {
                continue;
            };
            let peer = desired::Peer {
                network: network.value,
                mac: mac.value,
                addresses: peer.addresses.into_iter().map(|at| at.value).collect(),
                vtep: vtep.value,
            };
            desired.peers.insert(format!("peer-{index:06}"), peer);
        }
        desired
    }
}
