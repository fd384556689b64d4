//! `ferrovia-agent check`: what a configuration asks for, and what this host lacks for it.

use crate::accounts;
use crate::config::{Config, Uplink};
use crate::daemon::{self, Options};
use crate::desired::{SocketMode, VfPort};
use crate::ports::chain;
use std::fmt::Write;

/// What the agent would do, in lines.
pub fn report(config: &Config, options: &Options) -> String {
    let mut text = String::new();
    let mut line = |title: &str, what: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{title:<11} {what}");
    };
    line("file", format!("{}: right", options.config.display()));
    line("host", config.host.clone());
    line("underlay", underlay(config));
    line("controller", controller(config));
    let dataplane = &config.dataplane;
    line(
        "data plane",
        format!(
            "{} worker(s), {} flows, {} buffers",
            dataplane.workers, dataplane.flow_capacity, dataplane.buffers
        ),
    );
    for network in config.alone.networks.values() {
        let vlan = match network.vlan {
            0 => String::new(),
            vlan => format!(", VLAN {vlan}"),
        };
        line(
            "network",
            format!("{} vni {}{vlan}", network.name, network.vni),
        );
    }
    for port in config.alone.ports.values() {
        let default = || format!("{}/{}.sock", options.paths.vhost_dir().display(), port.name);
        let socket = port.socket.as_ref().map_or_else(default, |path| {
            options.paths.relocate(path).display().to_string()
        });
        let verb = match port.mode {
            SocketMode::Server => "listens on",
            SocketMode::Client => "connects to",
        };
        line(
            "port",
            format!("{} in {}, {verb} {socket}", port.name, port.network),
        );
    }
    for port in config.alone.vf_ports.values() {
        line("port", vf(port));
    }
    for relay in config.relays.values() {
        let default = || {
            let dir = options.paths.vhost_dir();
            dir.join(format!("{}.sock", relay.name))
        };
        let socket = relay.socket.as_ref();
        let socket = socket.map_or_else(default, |path| options.paths.relocate(path));
        let verb = match relay.mode {
            SocketMode::Server => "listens on",
            SocketMode::Client => "connects to",
        };
        let (far, socket) = (relay.far.shown(), socket.display());
        line("relay", format!("{} to {far}, {verb} {socket}", relay.name));
    }
    if let Some(listen) = config.metrics {
        line("metrics", format!("http://{listen}/metrics"));
    }
    if !config.alone.peers.is_empty() {
        line("peers", config.alone.peers.len().to_string());
    }
    text
}

fn underlay(config: &Config) -> String {
    let Some(underlay) = &config.underlay else {
        return "none: only ports of this host reach each other".into();
    };
    let uplink = match &underlay.uplink {
        Uplink::Interface(name) => format!("interface {name} by af_packet"),
        Uplink::Device(device) => format!("DPDK device {device}"),
    };
    let address = underlay
        .address
        .map_or("the interface's own address".into(), |a| a.to_string());
    let mtu = underlay
        .mtu
        .map_or("the interface's MTU".into(), |mtu| format!("MTU {mtu}"));
    format!("{uplink}, {address}, {mtu}")
}

fn controller(config: &Config) -> String {
    match &config.controller {
        None => "none: runs alone from this file".into(),
        Some(controller) if controller.url.starts_with("http://") => format!(
            "{} PLAIN: neither encrypted nor authenticated",
            controller.url
        ),
        Some(controller) => controller.url.clone(),
    }
}

fn vf(port: &VfPort) -> String {
    let pool = match &port.pool {
        Some(pool) => format!("of pool {pool}"),
        None => "of any pool".into(),
    };
    let standby = if port.standby { ", with a standby" } else { "" };
    format!("{} in {}, a VF {pool}{standby}", port.name, port.network)
}

/// What the file names and this host does not have: accounts, groups, the underlay's interface. The agent would
/// not start.
pub async fn missing(config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    let sockets = &config.sockets;
    let owner = accounts::ownership(sockets.owner.as_deref(), None);
    missing.extend(owner.err().map(|error| chain(&error)));
    let groups = [
        (&sockets.group, "group of [sockets]"),
        (&config.api.group, "group of [api]"),
    ];
    for (group, key) in groups {
        let looked_up = group.as_ref().map(|name| accounts::group(name, key));
        missing.extend(looked_up.and_then(Result::err).map(|error| chain(&error)));
    }
    if let Some(underlay) = &config.underlay {
        let place = daemon::place(underlay).await;
        missing.extend(place.err().map(|error| chain(&error)));
    }
    missing
}
