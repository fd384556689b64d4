//! `ferrovia nic`: NICs of this machine, read without an agent.

use crate::args::{Global, Nic};
use crate::failure::Failure;
use crate::output::{Format, Row, json, or_dash, print};
use serde::Serialize;
use sriov_mgr::{Function, Inventory, LinkState};

pub async fn run(global: &Global, command: Nic) -> Result<(), Failure> {
    let inventory = Inventory::read().await?;
    match command {
        Nic::List => match global.output {
            Format::Json => json(&inventory.nics),
            Format::Table if inventory.nics.is_empty() => print("This machine has no PCI NIC."),
            Format::Table => global
                .output
                .list(&inventory.nics.iter().map(View).collect::<Vec<_>>()),
        },
        Nic::Show { nic } => {
            let nic = inventory.find(&nic.as_str().into())?;
            global.output.one(&View(nic))
        }
    }
}

/// A NIC as lines and columns; its JSON is the inventory's own.
#[derive(Serialize)]
#[serde(transparent)]
struct View<'a>(&'a sriov_mgr::Nic);

impl View<'_> {
    fn interfaces(&self) -> String {
        let names: Vec<&str> = self.0.interfaces.iter().map(|i| i.name.as_str()).collect();
        or_dash(names.join(" "))
    }

    fn vfs(&self) -> String {
        match &self.0.function {
            Function::Plain => "-".to_owned(),
            Function::Pf { total_vfs, vfs } => format!("{} of {total_vfs}", vfs.len()),
            Function::Vf {
                pf,
                index: Some(index),
            } => format!("VF {index} of {pf}"),
            Function::Vf { pf, index: None } => format!("VF of {pf}"),
        }
    }
}

impl Row for View<'_> {
    const TITLES: &'static [&'static str] = &[
        "ADDRESS",
        "INTERFACE",
        "LINK",
        "DRIVER",
        "VFS",
        "NUMA",
        "MODEL",
    ];

    fn cells(&self) -> Vec<String> {
        let nic = self.0;
        vec![
            nic.address.to_string(),
            self.interfaces(),
            nic.interfaces.first().map_or("-".to_owned(), link),
            or_dash(nic.driver.clone().unwrap_or_default()),
            self.vfs(),
            nic.numa_node
                .map_or("-".to_owned(), |node| node.to_string()),
            nic.model(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let nic = self.0;
        let id = nic.id;
        let mut lines = vec![
            ("ADDRESS", nic.address.to_string()),
            ("MODEL", nic.model()),
            (
                "PCI ID",
                format!(
                    "{:04x}:{:04x}, board {:04x}:{:04x}",
                    id.vendor, id.device, id.subsystem_vendor, id.subsystem_device
                ),
            ),
            (
                "DRIVER",
                nic.driver
                    .clone()
                    .unwrap_or_else(|| "none bound".to_owned()),
            ),
            (
                "SR-IOV",
                match &nic.function {
                    Function::Plain => "no".to_owned(),
                    _ => self.vfs(),
                },
            ),
            (
                "NUMA NODE",
                nic.numa_node.map(|n| n.to_string()).unwrap_or_default(),
            ),
            (
                "IOMMU GROUP",
                match (nic.iommu_group, nic.iommu_peers.as_slice()) {
                    (None, _) => {
                        "none: the IOMMU is off, so its VFs cannot be given to VMs".to_owned()
                    }
                    (Some(group), []) => format!("{group}, alone"),
                    (Some(group), peers) => {
                        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
                        format!("{group}, with {}", peers.join(" "))
                    }
                },
            ),
            ("RESET", nic.reset_methods.join(" ")),
            ("MSI VECTORS", nic.msi_vectors.to_string()),
            ("PCIE LINK", nic.pcie_link.clone().unwrap_or_default()),
        ];
        for interface in &nic.interfaces {
            let mut text = format!(
                "{}: {}, MAC {}, MTU {}",
                interface.name,
                link(interface),
                interface.mac.as_deref().unwrap_or("-"),
                interface.mtu
            );
            if let Some(driver) = interface.driver.as_ref().filter(|d| !d.firmware.is_empty()) {
                text.push_str(&format!(", firmware {}", driver.firmware));
            }
            if let Some(port) = &interface.port_name {
                text.push_str(&format!(", eswitch port {port}"));
            }
            lines.push(("INTERFACE", text));
        }
        lines
    }
}

fn link(interface: &sriov_mgr::Interface) -> String {
    match (interface.state, interface.speed_mbps) {
        (LinkState::Up, Some(mbps)) if mbps >= 1000 => format!("up {}G", f64::from(mbps) / 1000.0),
        (LinkState::Up, Some(mbps)) => format!("up {mbps}M"),
        (LinkState::Up, None) => "up".to_owned(),
        (LinkState::Down, _) => "down".to_owned(),
        (LinkState::Unknown, _) => "unknown".to_owned(),
    }
}
