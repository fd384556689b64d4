//! `[[xvio.relay]]`: the relays that are there as long as the file has them.

use super::resources::{FilePort, MAC};
use super::{Collector, Table};
use crate::desired::{SocketMode, valid_name};
use crate::relays::spec::{
    DEFAULT_MTU, DEFAULT_QUEUE_SIZE, Far, MTU, NAME_RULE, Origin, Spec, check_device, check_socket,
    check_vlan,
};
use checked_toml::At;
use flow::MacAddr;
use sriov_mgr::PciAddress;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

/// A relay, and where what must be its own stands.
struct FileRelay {
    spec: Spec,
    name: Range<usize>,
    socket: Range<usize>,
    far: Range<usize>,
}

pub(super) fn read(
    table: Option<Table<'_, '_>>,
    ports: &[FilePort],
    out: &mut Collector<'_>,
) -> BTreeMap<String, Spec> {
    let Some(mut table) = table else {
        return BTreeMap::new();
    };
    let mut relays = Vec::new();
    for mut table in table.tables("relay", out) {
        table.title = "[[xvio.relay]]".to_owned();
        relays.extend(relay(table, out));
    }
    table.finish(out);
    apart(&relays, ports, out);
    let specs = relays.into_iter().map(|relay| relay.spec);
    specs.map(|spec| (spec.name.clone(), spec)).collect()
}

fn relay(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<FileRelay> {
    let span = table.span.clone();
    let name = table.required("name", "\"vm-1\"", out);
    if let Some(at) = name.as_ref().filter(|at| !valid_name(&at.value)) {
        out.add(at.span.clone(), NAME_RULE);
    }
    let mac = table
        .required("mac", "\"52:54:00:12:34:56\"", out)
        .map(|_| ());
    let mac = mac.and_then(|()| table.parsed::<MacAddr>("mac", MAC, out));
    if let Some(at) = mac.as_ref().filter(|at| !at.value.is_station()) {
        out.add(
            at.span.clone(),
            format!(
                "{} is a group address or zero, and no station can have it",
                at.value
            ),
        );
    }
    let queue_pairs = table.number("queue_pairs", 1..=64, out);
    let queue_size = table.number("queue_size", 64..=32_768, out);
    if let Some(at) = queue_size.as_ref().filter(|at| !at.value.is_power_of_two()) {
        out.add(
            at.span.clone(),
            "queue_size must be a power of two, such as 1024",
        );
    }
    let mtu = table.number("mtu", MTU, out);
    let vlan = table.number("vlan", 1..=4094, out);
    let mode = match table.string("mode", out) {
        Some(at) if at.value == "client" => SocketMode::Client,
        Some(at) if at.value != "server" => {
            out.add(at.span, "mode is \"server\" (the agent makes the socket) or \"client\" (the guest's QEMU makes it)");
            SocketMode::Server
        }
        _ => SocketMode::Server,
    };
    let socket = table.string("socket", out);
    if let Some(at) = &socket
        && let Err(why) = check_socket(&at.value)
    {
        out.add(at.span.clone(), why);
    }
    let far = far(&mut table, out);
    table.finish(out);
    let (far, far_span) = far?;
    if let Some(at) = &vlan
        && let Err(why) = check_vlan(&far, at.value as u16)
    {
        out.add(at.span.clone(), why);
    }
    let name = name?;
    Some(FileRelay {
        socket: socket.as_ref().map_or(span, |at| at.span.clone()),
        far: far_span,
        spec: Spec {
            name: name.value,
            socket: socket.map(|at| PathBuf::from(at.value)),
            mode,
            queue_pairs: queue_pairs.map_or(1, |at| at.value as u16),
            queue_size: queue_size.map_or(DEFAULT_QUEUE_SIZE, |at| at.value as u16),
            mtu: mtu.map_or(DEFAULT_MTU, |at| at.value as u16),
            mac: mac?.value,
            vlan: vlan.map_or(0, |at| at.value as u16),
            far,
        },
        name: name.span,
    })
}

/// The far side: a VF or a device, and where it stands.
fn far(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Option<(Far, Range<usize>)> {
    const ADDRESS: &str = "the PCI address of a VF, such as 0000:3b:02.1";
    let has_vf = table.contains("vf");
    let vf = table.parsed::<PciAddress>("vf", ADDRESS, out);
    let device: Option<At<String>> = table.string("device", out);
    match (vf, device) {
        (Some(vf), None) => Some((Far::Vf(vf.value), vf.span)),
        (None, Some(device)) if !has_vf => {
            if let Err(why) = check_device(&device.value, Origin::File) {
                out.add(device.span.clone(), why);
            }
            Some((Far::Device(device.value), device.span))
        }
        (_, Some(device)) => {
            out.add(
                device.span,
                "[[xvio.relay]] has a vf and a device; give one of them",
            );
            None
        }
        (None, None) => {
            if !has_vf {
                out.add(
                    table.span.clone(),
                    "[[xvio.relay]] needs vf = \"0000:3b:02.1\" or a DPDK device string in device",
                );
            }
            None
        }
    }
}

/// Names, sockets and far sides are nobody else's.
fn apart(relays: &[FileRelay], ports: &[FilePort], out: &mut Collector<'_>) {
    let default = |name: &str| format!("/run/ferrovia/vhost/{name}.sock");
    let mut sockets: HashMap<String, String> = HashMap::new();
    for port in ports {
        let name = &port.name.value;
        let own = port.socket.as_ref().map(|at| at.value.clone());
        sockets.insert(
            own.unwrap_or_else(|| default(name)),
            format!("port \"{name}\""),
        );
    }
    let (mut names, mut fars) = (HashMap::new(), HashMap::new());
    for port in ports {
        let device = port.vf.as_ref().and_then(|vf| vf.device.as_ref());
        let Some(device) = device else { continue };
        let own = device.value.split(',').next().unwrap_or_default();
        let who = format!("port \"{}\"", port.name.value);
        if let Some(other) = fars.insert(own.to_owned(), who) {
            out.add(
                device.span.clone(),
                format!("{own} is already the far side of {other}"),
            );
        }
    }
    for relay in relays {
        let name = &relay.spec.name;
        if names.insert(name, ()).is_some() {
            out.add(
                relay.name.clone(),
                format!("There is already a relay \"{name}\""),
            );
            continue;
        }
        let socket = match &relay.spec.socket {
            Some(path) => path.display().to_string(),
            None => default(name),
        };
        if let Some(other) = sockets.insert(socket.clone(), format!("relay \"{name}\"")) {
            out.add(
                relay.socket.clone(),
                format!("{socket} is already the socket of {other}"),
            );
        }
        let own = match &relay.spec.far {
            Far::Vf(address) => address.to_string(),
            device => device.device_name().unwrap_or_default().to_owned(),
        };
        if let Some(other) = fars.insert(own.clone(), format!("relay \"{name}\"")) {
            out.add(
                relay.far.clone(),
                format!("{own} is already the far side of {other}"),
            );
        }
    }
}
