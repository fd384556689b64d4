//! What is shown of VFs: what this machine says without an agent, and what an agent adds.

use crate::output::{Row, or_dash};
use api::v1;
use serde::Serialize;
use sriov_mgr::kernel::{VfLinkState, VfSettings, VlanProtocol};
use sriov_mgr::{Function, Inventory};

/// A VF.
#[derive(Serialize)]
pub struct Vf {
    /// `PF#number`.
    pub id: String,
    pub pf: String,
    index: Option<u32>,
    /// PCI address; empty where VFs are no functions of their own.
    pub address: String,
    driver: String,
    interface: String,
    iommu_group: Option<u32>,
    settings: Option<Settings>,
    representor: String,
    /// Known with an agent only, as owner and phase.
    pool: String,
    owner: String,
    phase: String,
    holders: Vec<String>,
}

/// What the PF has set for a VF.
#[derive(Serialize)]
pub struct Settings {
    mac: String,
    vlan: u32,
    qos: u32,
    protocol: String,
    min_rate: u32,
    max_rate: u32,
    spoofchk: Option<bool>,
    trust: Option<bool>,
    link_state: String,
}

impl From<v1::ManagedVf> for Vf {
    fn from(vf: v1::ManagedVf) -> Self {
        Vf {
            id: vf.id,
            pf: vf.pf,
            index: Some(vf.index),
            address: vf.address,
            driver: vf.driver,
            interface: vf.interface,
            iommu_group: vf.iommu_group,
            settings: vf.settings.map(|settings| Settings {
                mac: settings.mac,
                vlan: settings.vlan,
                qos: settings.qos,
                protocol: settings.protocol,
                min_rate: settings.min_rate,
                max_rate: settings.max_rate,
                spoofchk: settings.spoofchk,
                trust: settings.trust,
                link_state: settings.link_state,
            }),
            representor: vf.representor,
            pool: vf.pool,
            owner: vf.owner,
            phase: vf.phase,
            holders: vf.holders,
        }
    }
}

impl Vf {
    /// Every VF of the inventory.
    pub fn of(inventory: &Inventory) -> Vec<Vf> {
        let vfs = inventory.nics.iter().filter_map(|nic| {
            let Function::Vf { pf, index } = &nic.function else {
                return None;
            };
            Some(Vf {
                id: match index {
                    Some(index) => format!("{pf}#{index}"),
                    None => nic.address.to_string(),
                },
                pf: pf.to_string(),
                index: *index,
                address: nic.address.to_string(),
                driver: nic.driver.clone().unwrap_or_default(),
                interface: nic
                    .interfaces
                    .first()
                    .map(|interface| interface.name.clone())
                    .unwrap_or_default(),
                iommu_group: nic.iommu_group,
                settings: nic.settings.as_ref().map(Settings::from),
                representor: nic.representor.clone().unwrap_or_default(),
                pool: String::new(),
                owner: String::new(),
                phase: String::new(),
                holders: nic.holders.clone(),
            })
        });
        vfs.collect()
    }

    fn vlan(&self) -> String {
        match &self.settings {
            Some(settings) if settings.vlan != 0 => settings.vlan.to_string(),
            _ => "-".to_owned(),
        }
    }

    /// To whom it is handed out and who has it, short enough for a line; `vf show` has both in full.
    fn used_by(&self) -> String {
        let mut words = Vec::new();
        if !self.owner.is_empty() {
            words.push(match self.phase.as_str() {
                "in use" => short_owner(&self.owner),
                phase => format!("{} ({phase})", short_owner(&self.owner)),
            });
        }
        words.extend(self.holders.first().map(|holder| short_holder(holder)));
        if self.holders.len() > 1 {
            words.push(format!("{} more", self.holders.len() - 1));
        }
        words.join(", ")
    }
}

/// An owner's name; of a port's id only as much as tells it from others.
fn short_owner(owner: &str) -> String {
    match owner.strip_prefix("port/").and_then(|id| id.get(..36)) {
        Some(id) if id.is_ascii() && id.len() + 5 == owner.len() => format!("port/{}", &id[..8]),
        _ => shortened(owner, 24),
    }
}

/// A holder as the kernel's side words it; of a virtual machine its name.
fn short_holder(holder: &str) -> String {
    let guest = holder.split_once("guest=").map(|(_, rest)| rest);
    match guest.and_then(|rest| rest.strip_suffix(')')) {
        Some(guest) => format!("VM {}", shortened(guest, 16)),
        None => shortened(holder, 24),
    }
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

impl Row for Vf {
    const TITLES: &'static [&'static str] =
        &["VF", "ADDRESS", "DRIVER", "MAC", "VLAN", "POOL", "USED BY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            or_dash(&self.address),
            or_dash(&self.driver),
            self.settings.as_ref().map_or("-", Settings::mac).to_owned(),
            self.vlan(),
            or_dash(&self.pool),
            or_dash(self.used_by()),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("VF", self.id.clone()),
            ("ADDRESS", self.address.clone()),
            ("DRIVER", or_dash(&self.driver)),
            ("INTERFACE", self.interface.clone()),
            ("REPRESENTOR", self.representor.clone()),
            (
                "IOMMU GROUP",
                self.iommu_group
                    .map(|group| group.to_string())
                    .unwrap_or_default(),
            ),
        ];
        if let Some(settings) = &self.settings {
            lines.extend(settings.details());
        }
        lines.extend([
            ("POOL", self.pool.clone()),
            ("OWNER", self.owner.clone()),
            ("STATE", self.phase.clone()),
            ("HELD BY", self.holders.join("\n")),
        ]);
        lines
    }
}

impl From<&VfSettings> for Settings {
    fn from(settings: &VfSettings) -> Self {
        let link_state = settings.link_state.map(|state| match state {
            VfLinkState::Auto => "auto",
            VfLinkState::Enable => "enable",
            VfLinkState::Disable => "disable",
        });
        Settings {
            mac: settings
                .mac
                .map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"))
                .unwrap_or_default(),
            vlan: settings.vlan.id.into(),
            qos: settings.vlan.qos.into(),
            protocol: match settings.vlan.protocol {
                VlanProtocol::Dot1q => "802.1q",
                VlanProtocol::Dot1ad => "802.1ad",
            }
            .to_owned(),
            min_rate: settings.rate.min,
            max_rate: settings.rate.max,
            spoofchk: settings.spoofchk,
            trust: settings.trust,
            link_state: link_state.unwrap_or_default().to_owned(),
        }
    }
}

impl Settings {
    /// The MAC that the PF has set; "-" where the VF chooses.
    fn mac(&self) -> &str {
        match self.mac.as_str() {
            "" | "00:00:00:00:00:00" => "-",
            mac => mac,
        }
    }

    pub fn details(&self) -> Vec<(&'static str, String)> {
        let on = |value: Option<bool>| match value {
            Some(true) => "on",
            Some(false) => "off",
            None => "",
        };
        let vlan = match (self.vlan, self.qos) {
            (0, _) => "none".to_owned(),
            (vlan, 0) => format!("{vlan} ({})", self.protocol),
            (vlan, qos) => format!("{vlan} ({}), priority {qos}", self.protocol),
        };
        let rate = match (self.min_rate, self.max_rate) {
            (0, 0) => String::new(),
            (min, 0) => format!("at least {min} Mbit/s"),
            (0, max) => format!("at most {max} Mbit/s"),
            (min, max) => format!("{min} to {max} Mbit/s"),
        };
        vec![
            (
                "MAC",
                match self.mac() {
                    "-" => "not set: the VF chooses".to_owned(),
                    mac => mac.to_owned(),
                },
            ),
            ("VLAN", vlan),
            ("RATE", rate),
            ("SPOOF CHECK", on(self.spoofchk).to_owned()),
            ("TRUST", on(self.trust).to_owned()),
            ("LINK", self.link_state.clone()),
        ]
    }
}

/// A VF that is handed out.
#[derive(Serialize)]
pub struct Allocation {
    owner: String,
    vf: String,
    address: String,
    pool: String,
    mac: String,
    vlan: u32,
    driver: String,
    state: String,
    notes: Vec<String>,
}

impl From<v1::VfAllocation> for Allocation {
    fn from(given: v1::VfAllocation) -> Self {
        Allocation {
            owner: given.owner,
            vf: given.vf,
            address: given.address,
            pool: given.pool,
            mac: given.mac,
            vlan: given.vlan,
            driver: given.driver,
            state: given.phase,
            notes: given.notes,
        }
    }
}

impl Row for Allocation {
    const TITLES: &'static [&'static str] = &["OWNER", "VF", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        vec![self.owner.clone(), self.vf.clone(), self.address.clone()]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OWNER", self.owner.clone()),
            ("VF", self.vf.clone()),
            ("ADDRESS", self.address.clone()),
            ("POOL", self.pool.clone()),
            ("MAC", self.mac.clone()),
            (
                "VLAN",
                match self.vlan {
                    0 => "none".to_owned(),
                    vlan => vlan.to_string(),
                },
            ),
            ("DRIVER", or_dash(&self.driver)),
            ("STATE", self.state.clone()),
            ("NOTE", self.notes.join("\n")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_by(owner: &str, phase: &str, holders: &[&str]) -> String {
        let vf = v1::ManagedVf {
            owner: owner.to_owned(),
            phase: phase.to_owned(),
            holders: holders.iter().map(|holder| (*holder).to_owned()).collect(),
            ..Default::default()
        };
        Vf::from(vf).used_by()
    }

    #[test]
    fn owner_and_holder_are_both_said() {
        let port = "port/3f2a9c1e-7d3b-4c51-9a6e-0b1c2d3e4f50";
        let qemu = "QEMU (pid 4711, guest=web-1)";
        for (found, said) in [
            (used_by("", "", &[]), ""),
            (used_by(port, "in use", &[]), "port/3f2a9c1e"),
            (used_by(port, "in use", &[qemu]), "port/3f2a9c1e, VM web-1"),
            (
                used_by("vm/a", "binding", &[qemu]),
                "vm/a (binding), VM web-1",
            ),
            (used_by("", "", &["testpmd (pid 9)"]), "testpmd (pid 9)"),
            (
                used_by("cli/a", "in use", &["a (pid 1)", "b (pid 2)"]),
                "cli/a, a (pid 1), 1 more",
            ),
        ] {
            assert_eq!(found, said);
        }
    }

    #[test]
    fn names_of_any_length_and_kind_fit() {
        let long = format!("QEMU (pid 4711, guest={})", "ä".repeat(64));
        assert_eq!(
            used_by(&format!("vm/{}", "ü".repeat(90)), "in use", &[&long])
                .chars()
                .count(),
            24 + 2 + 19
        );
        assert_eq!(used_by("port/ä", "in use", &[]), "port/ä");
        let no_id = format!("port/{}", "ä".repeat(18));
        assert_eq!(used_by(&no_id, "in use", &[]), no_id);
    }
}
