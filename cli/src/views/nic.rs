//! What is shown of NICs: the inventory, and what the agent adds to it.

use super::vf::Settings;
use crate::output::{Row, or_dash};
use api::v1;
use serde::{Deserialize, Serialize};
use sriov_mgr::kernel::EswitchMode;
use sriov_mgr::{AerCounts, Function, LinkState};

/// A NIC as lines and columns. Its JSON is the inventory's own, with what the agent adds.
#[derive(Serialize)]
pub struct Nic<'a> {
    #[serde(flatten)]
    nic: &'a sriov_mgr::Nic,
    #[serde(skip_serializing_if = "Option::is_none")]
    managed: Option<Managed>,
}

impl<'a> Nic<'a> {
    /// As the inventory has it, with the agent's word where there is one.
    pub fn new(nic: &'a sriov_mgr::Nic, agent: Option<&v1::ManagedNic>) -> Nic<'a> {
        let managed = agent.cloned().map(Managed::from);
        Nic { nic, managed }
    }

    fn interfaces(&self) -> String {
        let names: Vec<&str> = self
            .nic
            .interfaces
            .iter()
            .map(|i| i.name.as_str())
            .collect();
        or_dash(names.join(" "))
    }

    fn eswitch(&self) -> String {
        match self.nic.eswitch {
            Some(EswitchMode::Legacy) => "legacy".to_owned(),
            Some(EswitchMode::Switchdev) => "switchdev".to_owned(),
            None => String::new(),
        }
    }

    /// Of the PCI link and of the driver's health reporters; nothing where there were none.
    fn errors(&self) -> String {
        let mut errors = Vec::new();
        if let Some(aer) = self.nic.aer.filter(|aer| *aer != AerCounts::default()) {
            errors.push(format!(
                "PCI: {} corrected, {} not, {} fatal",
                aer.correctable, aer.nonfatal, aer.fatal
            ));
        }
        for reporter in &self.nic.reporters {
            if !reporter.healthy || reporter.errors > 0 {
                let state = if reporter.healthy {
                    "well again"
                } else {
                    "not well"
                };
                errors.push(format!(
                    "{}: {state}, {} errors, {} recoveries",
                    reporter.name, reporter.errors, reporter.recoveries
                ));
            }
        }
        errors.join("\n")
    }

    fn vfs(&self) -> String {
        match &self.nic.function {
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

impl Row for Nic<'_> {
    const TITLES: &'static [&'static str] = &[
        "ADDRESS",
        "INTERFACE",
        "LINK",
        "DRIVER",
        "VFS",
        "STATE",
        "MODEL",
    ];

    fn cells(&self) -> Vec<String> {
        let nic = self.nic;
        vec![
            nic.address.to_string(),
            self.interfaces(),
            nic.interfaces.first().map_or("-".to_owned(), link),
            or_dash(nic.driver.clone().unwrap_or_default()),
            // As `vf list` names it: the column is narrow.
            match nic.function {
                Function::Vf {
                    pf,
                    index: Some(index),
                } => format!("{pf}#{index}"),
                _ => self.vfs(),
            },
            self.managed.as_ref().map_or("-".to_owned(), Managed::state),
            // The maker's name is in `nic show`.
            nic.device.clone().unwrap_or_else(|| nic.model()),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let nic = self.nic;
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
            (
                "MSI VECTORS",
                match nic.msix_table {
                    Some(offered) => format!("{} of {offered} (MSI-X)", nic.msi_vectors),
                    None => nic.msi_vectors.to_string(),
                },
            ),
            ("PCIE LINK", nic.pcie_link.clone().unwrap_or_default()),
            ("ESWITCH", self.eswitch()),
            ("ERRORS", self.errors()),
            ("REPRESENTOR", nic.representor.clone().unwrap_or_default()),
        ];
        if let Some(settings) = &nic.settings {
            lines.extend(Settings::from(settings).details());
        }
        lines.push(("HELD BY", nic.holders.join("\n")));
        if let Some(managed) = &self.managed {
            lines.extend(managed.details());
        }
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

/// What the agent says of a PF.
#[derive(Serialize)]
pub struct Managed {
    ownership: String,
    eswitch: String,
    policies: Vec<String>,
    pools: Vec<String>,
    allocated: u32,
    wedged: String,
    problems: Vec<String>,
}

impl From<v1::ManagedNic> for Managed {
    fn from(nic: v1::ManagedNic) -> Self {
        Managed {
            ownership: nic.ownership,
            eswitch: nic.eswitch,
            policies: nic.policies,
            pools: nic.pools,
            allocated: nic.allocated,
            wedged: nic.wedged,
            problems: nic.problems,
        }
    }
}

impl Managed {
    /// In a word or two.
    fn state(&self) -> String {
        match self.ownership.as_str() {
            _ if !self.wedged.is_empty() => "wedged".to_owned(),
            // What is not ours to mend is no trouble of ours.
            "foreign" => "foreign".to_owned(),
            _ if !self.problems.is_empty() => "trouble".to_owned(),
            "none" => "free".to_owned(),
            other => other.to_owned(),
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let made_by = match self.ownership.as_str() {
            "ours" => "Ferrovia",
            "adopted" => "somebody else, taken over by Ferrovia",
            "external" => "somebody else, for Ferrovia to hand out",
            "foreign" => "somebody else: not touched (`ferrovia nic adopt` takes it over)",
            _ => "",
        };
        let mut troubles = self.problems.clone();
        troubles.retain(|trouble| *trouble != self.wedged);
        if !self.wedged.is_empty() {
            troubles.insert(
                0,
                format!("wedged, nothing is written to it: {}", self.wedged),
            );
        }
        let used = match self.pools.is_empty() && self.allocated == 0 {
            true => String::new(),
            false => format!("{} ({} handed out)", self.pools.join(" "), self.allocated),
        };
        vec![
            ("VFS MADE BY", made_by.to_owned()),
            ("POLICIES", self.policies.join(" ")),
            ("POOLS", used),
            ("TROUBLE", troubles.join("\n")),
        ]
    }
}

/// A device of the manager that the PCI inventory does not have (the kernel's simulated NIC).
#[derive(Serialize)]
pub struct OffPci {
    device: String,
    interface: String,
    driver: String,
    num_vfs: u32,
    total_vfs: u32,
    managed: Managed,
}

impl From<v1::ManagedNic> for OffPci {
    fn from(nic: v1::ManagedNic) -> Self {
        OffPci {
            device: nic.device.clone(),
            interface: nic.interface.clone(),
            driver: nic.driver.clone(),
            num_vfs: nic.num_vfs,
            total_vfs: nic.total_vfs,
            managed: nic.into(),
        }
    }
}

impl OffPci {
    /// Whether this is the device that is meant.
    pub fn is(&self, name: &str) -> bool {
        self.device == name || self.interface == name
    }
}

impl Row for OffPci {
    const TITLES: &'static [&'static str] = Nic::TITLES;

    fn cells(&self) -> Vec<String> {
        vec![
            self.device.clone(),
            or_dash(&self.interface),
            "-".to_owned(),
            or_dash(&self.driver),
            format!("{} of {}", self.num_vfs, self.total_vfs),
            self.managed.state(),
            "simulated".to_owned(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("DEVICE", self.device.clone()),
            ("INTERFACE", self.interface.clone()),
            ("DRIVER", self.driver.clone()),
            ("SR-IOV", format!("{} of {}", self.num_vfs, self.total_vfs)),
            ("ESWITCH", self.managed.eswitch.clone()),
        ];
        lines.extend(self.managed.details());
        lines
    }
}

/// A NIC of either kind.
#[derive(Serialize)]
#[serde(untagged)]
pub enum AnyNic<'a> {
    /// On PCI.
    Pci(Box<Nic<'a>>),
    /// Not.
    OffPci(Box<OffPci>),
}

impl Row for AnyNic<'_> {
    const TITLES: &'static [&'static str] = Nic::TITLES;

    fn cells(&self) -> Vec<String> {
        match self {
            AnyNic::Pci(nic) => nic.cells(),
            AnyNic::OffPci(nic) => nic.cells(),
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        match self {
            AnyNic::Pci(nic) => nic.details(),
            AnyNic::OffPci(nic) => nic.details(),
        }
    }
}

/// A policy: printed, and read back.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    name: String,
    #[serde(default = "weakest")]
    priority: u32,
    #[serde(default)]
    select: Select,
    #[serde(default)]
    num_vfs: Option<u32>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    eswitch: Option<String>,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    pool: Option<String>,
    #[serde(default)]
    driver: Option<String>,
    #[serde(default)]
    external: bool,
    /// Of agent.toml.
    #[serde(default)]
    from_file: bool,
}

fn weakest() -> u32 {
    99
}

/// Which PFs.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    vendor: Option<u32>,
    device: Option<u32>,
    driver: Option<String>,
    pf: Vec<String>,
    address: Vec<String>,
    root_port: Option<String>,
    numa_node: Option<u32>,
}

/// Settings of VFs.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    vlan: Option<u32>,
    qos: Option<u32>,
    protocol: Option<String>,
    min_rate: Option<u32>,
    max_rate: Option<u32>,
    spoofchk: Option<bool>,
    trust: Option<bool>,
    link_state: Option<String>,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<v1::NicPolicy> for Policy {
    fn from(policy: v1::NicPolicy) -> Self {
        let select = policy.select.unwrap_or_default();
        let defaults = policy.defaults.unwrap_or_default();
        Policy {
            name: policy.name,
            priority: policy.priority,
            select: Select {
                vendor: select.vendor,
                device: select.device,
                driver: some(select.driver),
                pf: select.pf,
                address: select.address,
                root_port: some(select.root_port),
                numa_node: select.numa_node,
            },
            num_vfs: policy.num_vfs,
            mtu: policy.mtu,
            eswitch: some(policy.eswitch),
            defaults: Defaults {
                vlan: defaults.vlan,
                qos: defaults.qos,
                protocol: some(defaults.protocol),
                min_rate: defaults.min_rate,
                max_rate: defaults.max_rate,
                spoofchk: defaults.spoofchk,
                trust: defaults.trust,
                link_state: some(defaults.link_state),
            },
            pool: some(policy.pool),
            driver: some(policy.driver),
            external: policy.external,
            from_file: policy.from_file,
        }
    }
}

impl From<Policy> for v1::NicPolicy {
    fn from(policy: Policy) -> Self {
        let (select, defaults) = (policy.select, policy.defaults);
        v1::NicPolicy {
            name: policy.name,
            priority: policy.priority,
            select: Some(v1::NicSelector {
                vendor: select.vendor,
                device: select.device,
                driver: select.driver.unwrap_or_default(),
                pf: select.pf,
                address: select.address,
                root_port: select.root_port.unwrap_or_default(),
                numa_node: select.numa_node,
            }),
            num_vfs: policy.num_vfs,
            mtu: policy.mtu,
            eswitch: policy.eswitch.unwrap_or_default(),
            defaults: Some(v1::VfDefaults {
                vlan: defaults.vlan,
                qos: defaults.qos,
                protocol: defaults.protocol.unwrap_or_default(),
                min_rate: defaults.min_rate,
                max_rate: defaults.max_rate,
                spoofchk: defaults.spoofchk,
                trust: defaults.trust,
                link_state: defaults.link_state.unwrap_or_default(),
            }),
            pool: policy.pool.unwrap_or_default(),
            driver: policy.driver.unwrap_or_default(),
            external: policy.external,
            from_file: policy.from_file,
        }
    }
}

impl Row for Policy {
    const TITLES: &'static [&'static str] = &[
        "NAME", "PRIORITY", "SELECTS", "VFS", "POOL", "DRIVER", "FROM",
    ];

    fn cells(&self) -> Vec<String> {
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        vec![
            self.name.clone(),
            self.priority.to_string(),
            self.select.words(),
            match self.external {
                true => "external".to_owned(),
                false => number(self.num_vfs),
            },
            or_dash(self.pool.clone().unwrap_or_default()),
            or_dash(self.driver.clone().unwrap_or_default()),
            if self.from_file { "agent.toml" } else { "API" }.to_owned(),
        ]
    }
}

impl Select {
    fn words(&self) -> String {
        let mut words: Vec<String> = [("vendor", self.vendor), ("device", self.device)]
            .iter()
            .filter_map(|(what, id)| Some(format!("{what} {:#06x}", (*id)?)))
            .collect();
        words.extend(self.driver.iter().map(|driver| format!("driver {driver}")));
        words.extend(self.pf.iter().chain(&self.address).cloned());
        words.extend(self.root_port.iter().map(|port| format!("behind {port}")));
        words.extend(self.numa_node.map(|node| format!("node {node}")));
        match words.is_empty() {
            true => "every PF".to_owned(),
            false => words.join(" "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_back_as_it_was_printed() {
        let policy = v1::NicPolicy {
            name: "tenants".into(),
            priority: 10,
            select: Some(v1::NicSelector {
                vendor: Some(0x8086),
                pf: vec!["eth0#0-3".into()],
                ..Default::default()
            }),
            num_vfs: Some(8),
            defaults: Some(v1::VfDefaults {
                trust: Some(false),
                ..Default::default()
            }),
            pool: "tenants".into(),
            ..Default::default()
        };
        let printed = serde_json::to_string(&Policy::from(policy.clone())).unwrap();
        let read: Policy = serde_json::from_str(&printed).unwrap();
        assert_eq!(v1::NicPolicy::from(read), policy);
    }

    #[test]
    fn a_slip_in_a_policy_is_no_policy() {
        let read = |text: &str| serde_json::from_str::<Policy>(text);
        assert!(read("{\"name\":\"a\"}").is_ok());
        assert!(read("{\"name\":\"a\",\"numvfs\":3}").is_err());
        assert!(read("{\"name\":\"a\",\"select\":{\"pfs\":[]}}").is_err());
    }
}
