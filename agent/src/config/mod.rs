//! The agent's configuration: `/etc/ferrovia/agent.toml`.
//!
//! The whole file is checked before anything is done, and every problem is reported with its line
//! and column. [`parse`] is pure; what depends on the machine (does the interface exist, is there
//! such an account) is checked where it is used.

mod check;
mod nic;
mod resources;
mod xvio;

pub use checked_toml::{LoadError as ConfigError, Problem, Problems};

pub use nic::Nic;

use crate::desired::{Desired, valid_name};
use crate::relays::spec::Spec;
use checked_toml::{At, Collector, Table};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A whole, checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This host's name, as the controller knows it.
    pub host: String,
    /// The link to other hosts; without it only ports of this host reach each other.
    pub underlay: Option<Underlay>,
    /// The controller; without it the agent runs alone from the file.
    pub controller: Option<Controller>,
    /// The DPDK side.
    pub dataplane: Dataplane,
    /// The vhost-user sockets.
    pub sockets: Sockets,
    /// The local API.
    pub api: Api,
    /// The NICs.
    pub nic: Nic,
    /// Relays, by name.
    pub relays: BTreeMap<String, Spec>,
    /// Where Prometheus asks for counters; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Networks, ports and peers of an agent that runs alone.
    pub alone: Desired,
}

/// Which port is the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// A kernel interface, by af_packet.
    Interface(String),
    /// A DPDK device string.
    Device(String),
}

impl Uplink {
    /// The kernel interface behind the uplink, where there is one.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Uplink::Interface(name) => Some(name),
            Uplink::Device(device) => device
                .split(',')
                .skip(1)
                .find_map(|arg| arg.trim().strip_prefix("iface=")),
        }
    }
}

/// `[underlay]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The port.
    pub uplink: Uplink,
    /// This host's address and prefix; `None`: the interface's own.
    pub address: Option<IpNet>,
    /// The way to hosts outside the prefix.
    pub gateway: Option<IpAddr>,
    /// Bytes of IP packet; `None`: the interface's own.
    pub mtu: Option<u16>,
}

/// `[controller]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `https://…` or, in plain mode, `http://…`.
    pub url: String,
    /// A join token, used once.
    pub token_file: Option<PathBuf>,
    /// Without encryption and authentication.
    pub plain: bool,
}

/// `[dataplane]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Worker threads.
    pub workers: u16,
    /// The cores they are pinned to, one for each worker.
    pub cores: Option<Vec<usize>>,
    /// DPDK memory, MiB.
    pub memory_mb: Option<u32>,
    /// Whether hugepages are used.
    pub hugepages: Hugepages,
    /// Flows in the table.
    pub flow_capacity: u32,
    /// Packet buffers.
    pub buffers: u32,
}

/// Whether DPDK's memory is in hugepages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// Where there are any.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Or the agent does not start.
    Require,
}

/// `[sockets]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Account by name or number; `None`: `libvirt-qemu` where it exists, else the agent's own.
    pub owner: Option<String>,
    /// Group by name or number; `None`: `kvm` where it exists, else the agent's own.
    pub group: Option<String>,
    /// Permission bits.
    pub mode: u32,
}

/// `[api]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Api {
    /// Group that may use the local API; `None`: the agent's own.
    pub group: Option<String>,
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    Ok(parse(&checked_toml::load(path)?, path)?)
}

/// Checks the text of a configuration file. `file` is only for the messages.
pub fn parse(text: &str, file: &Path) -> Result<Config, Problems> {
    checked_toml::parse(text, file, read)
}

fn read(mut top: Table<'_, '_>, out: &mut Collector<'_>) -> Config {
    let host = name(top.required("host", "\"h1\"", out), "A host's name", out);
    let underlay_table = top.table("underlay", out);
    let underlay_span = underlay_table.as_ref().map(|t| t.span.clone());
    let underlay = underlay_table.map(|table| read_underlay(table, out));
    let controller_table = top.table("controller", out);
    let controller = controller_table.and_then(|table| read_controller(table, out));
    let dataplane = read_dataplane(top.table("dataplane", out), out);
    let sockets = read_sockets(top.table("sockets", out), out);
    let api = match top.table("api", out) {
        Some(mut table) => {
            let group = table.string("group", out).map(|at| at.value);
            table.finish(out);
            Api { group }
        }
        None => Api::default(),
    };
    let nic = nic::read(top.table("nic", out), out);
    let file = resources::read(&mut top, out);
    let relays = xvio::read(top.table("xvio", out), &file.ports, out);
    let metrics = top.table("metrics", out);
    let metrics = metrics.and_then(|table| read_metrics(table, out));
    top.finish(out);
    if controller.is_some() {
        for span in file.spans() {
            out.add(
                span,
                "Networks, ports and peers come from the controller; remove them here, or remove [controller]",
            );
        }
    }
    check::resources(&file, underlay.as_ref().zip(underlay_span), out);
    let alone = file.into_desired();
    Config {
        host,
        underlay,
        controller,
        dataplane,
        sockets,
        api,
        nic,
        relays,
        metrics,
        alone,
    }
}

fn read_metrics(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<SocketAddr> {
    const ADDRESS: &str = "an address with its port, such as 127.0.0.1:9690";
    let listen = table.required("listen", "\"127.0.0.1:9690\"", out);
    let listen = listen.and_then(|_| table.parsed::<SocketAddr>("listen", ADDRESS, out));
    let anywhere = table.boolean("anywhere", out).is_some_and(|at| at.value);
    table.finish(out);
    let listen = listen?;
    if !listen.value.ip().is_loopback() && !anywhere {
        out.add(
            listen.span,
            format!(
                "{} is not a loopback address, and whoever reaches it can read every counter; add anywhere = true \
                 where that is meant",
                listen.value.ip()
            ),
        );
    }
    Some(listen.value)
}

fn name(at: Option<At<String>>, what: &str, out: &mut Collector<'_>) -> String {
    let Some(at) = at else { return String::new() };
    if !valid_name(&at.value) {
        out.add(
            at.span,
            format!("{what} is 1 to 63 of a-z, 0-9 and -, and starts with a letter"),
        );
    }
    at.value
}

fn read_underlay(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Underlay {
    let interface = table.string("interface", out);
    let device = table.string("device", out);
    let uplink = match (interface, device) {
        (Some(interface), None) => {
            let text = &interface.value;
            if text.is_empty() || text.len() > 15 || text.contains(['/', ',', ' ']) {
                out.add(
                    interface.span,
                    format!("\"{text}\" is not the name of an interface"),
                );
            }
            Uplink::Interface(interface.value)
        }
        (None, Some(device)) => {
            if device.value.trim().is_empty() || device.value.contains(['\0', '\n']) {
                out.add(
                    device.span,
                    "A DPDK device is written as \"net_af_packet0,iface=eth1\" or \"0000:3b:00.0\"",
                );
            }
            Uplink::Device(device.value)
        }
        (Some(_), Some(device)) => {
            out.add(
                device.span,
                "[underlay] has an interface and a device; give one of them",
            );
            Uplink::Device(device.value)
        }
        (None, None) => {
            out.add(
                table.span.clone(),
                "[underlay] needs interface = \"eth1\" or a DPDK device string in device",
            );
            Uplink::Device(String::new())
        }
    };
    let address = table.parsed::<IpNet>(
        "address",
        "an address with its prefix length, such as 192.0.2.1/24",
        out,
    );
    let gateway = table.parsed::<IpAddr>("gateway", "an IP address", out);
    let mtu = table.number("mtu", 576..=65_000, out);
    table.finish(out);

    if let Some(address) = &address {
        let ip = address.value.addr();
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || is_broadcast(ip) {
            out.add(
                address.span.clone(),
                format!("{ip} cannot be the address of a host"),
            );
        }
    } else if uplink.interface().is_none() {
        out.add(
            table_span_or(&mtu, &gateway),
            "address of [underlay] is missing; a device without a kernel interface has none of its own",
        );
    }
    if let (Some(address), Some(gateway)) = (&address, &gateway) {
        let ip = gateway.value;
        if !address.value.contains(&ip) {
            out.add(
                gateway.span.clone(),
                format!("The gateway {ip} is outside of {}", address.value.trunc()),
            );
        } else if ip == address.value.addr() {
            out.add(
                gateway.span.clone(),
                format!("The gateway {ip} is this host's own address"),
            );
        }
    }
    Underlay {
        uplink,
        address: address.map(|at| at.value),
        gateway: gateway.map(|at| at.value),
        mtu: mtu.map(|at| at.value as u16),
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn table_span_or<A, B>(a: &Option<At<A>>, b: &Option<At<B>>) -> std::ops::Range<usize> {
    a.as_ref()
        .map(|at| at.span.clone())
        .or(b.as_ref().map(|at| at.span.clone()))
        .unwrap_or(0..0)
}

fn read_controller(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<Controller> {
    let url = table.required("url", "\"https://controller:6640\"", out);
    let token_file = table
        .string("token_file", out)
        .map(|at| PathBuf::from(at.value));
    let plain = table.boolean("plain", out).is_some_and(|at| at.value);
    table.finish(out);
    let url = url?;
    if let Err(why) = check_url(&url.value, plain) {
        out.add(url.span, why);
    }
    Some(Controller {
        url: url.value,
        token_file,
        plain,
    })
}

/// Whether a controller's URL can be used, in plain mode or not.
pub fn check_url(url: &str, plain: bool) -> Result<(), String> {
    let parsed: Result<tonic::transport::Uri, _> = url.parse();
    let uri = parsed.ok().filter(|uri| uri.host().is_some());
    let Some(uri) = uri else {
        return Err(format!(
            "\"{url}\" is not a URL such as https://controller:6640"
        ));
    };
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if plain || is_loopback(uri.host().unwrap_or_default()) => Ok(()),
        Some("http") => Err(format!(
            "\"{url}\" is not encrypted; write https://, or plain = true where the network is trusted"
        )),
        _ => Err(format!("\"{url}\" must start with https:// or http://")),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn read_dataplane(table: Option<Table<'_, '_>>, out: &mut Collector<'_>) -> Dataplane {
    let mut dataplane = Dataplane {
        workers: 1,
        cores: None,
        memory_mb: None,
        hugepages: Hugepages::Auto,
        flow_capacity: 65_536,
        buffers: 8192,
    };
    let Some(mut table) = table else {
        return dataplane;
    };
    let workers = table.number("workers", 1..=64, out);
    let cores = table.number_list("cores", 0..=1023, out);
    let memory = table.number("memory_mb", 16..=1 << 20, out);
    let hugepages = table.string("hugepages", out);
    let flows = table.number("flow_capacity", 1024..=16 << 20, out);
    let buffers = table.number("buffers", 1024..=4 << 20, out);
    table.finish(out);
    if let Some(at) = hugepages {
        dataplane.hugepages = match at.value.as_str() {
            "auto" => Hugepages::Auto,
            "never" => Hugepages::Never,
            "require" => Hugepages::Require,
            other => {
                let shown: String = other.chars().take(32).collect();
                out.add(
                    at.span,
                    format!("\"{shown}\" is not known for hugepages; write auto, never or require"),
                );
                Hugepages::Auto
            }
        };
    }
    if let Some(cores) = cores {
        let list: Vec<usize> = cores.value.iter().map(|c| *c as usize).collect();
        let count = workers.as_ref().map(|w| w.value as usize);
        let unique: std::collections::BTreeSet<_> = list.iter().collect();
        if unique.len() != list.len() {
            out.add(
                cores.span,
                "A core is listed twice; each worker needs its own",
            );
        } else if list.is_empty() {
            out.add(
                cores.span,
                "cores is empty; remove it to let workers run on any core",
            );
        } else if count.is_some_and(|count| count != list.len()) {
            out.add(
                cores.span,
                format!(
                    "cores lists {} for {} workers; give one for each",
                    list.len(),
                    count.unwrap_or(0)
                ),
            );
        }
        dataplane.workers = list.len().clamp(1, 64) as u16;
        dataplane.cores = Some(list);
    }
    if let Some(workers) = workers {
        dataplane.workers = workers.value as u16;
    }
    dataplane.memory_mb = memory.map(|at| at.value as u32);
    dataplane.flow_capacity = flows.map_or(dataplane.flow_capacity, |at| at.value as u32);
    dataplane.buffers = buffers.map_or(dataplane.buffers, |at| at.value as u32);
    dataplane
}

fn read_sockets(table: Option<Table<'_, '_>>, out: &mut Collector<'_>) -> Sockets {
    let mut sockets = Sockets {
        owner: None,
        group: None,
        mode: 0o660,
    };
    let Some(mut table) = table else {
        return sockets;
    };
    sockets.owner = table.string("owner", out).map(|at| at.value);
    sockets.group = table.string("group", out).map(|at| at.value);
    if let Some(at) = table.string("mode", out) {
        match u32::from_str_radix(&at.value, 8) {
            Ok(mode) if mode <= 0o777 => sockets.mode = mode,
            _ => out.add(
                at.span,
                "mode is permission bits in octal, such as \"0660\"",
            ),
        }
    }
    table.finish(out);
    sockets
}

#[cfg(test)]
mod tests;
