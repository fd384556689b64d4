//! Vendor and device names: the system's `pci.ids` first, the `pci-ids` crate's data otherwise.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Where distributions keep `pci.ids`, in the order that libpci looks.
const SYSTEM_FILES: [&str; 3] = [
    "usr/share/misc/pci.ids",
    "usr/share/hwdata/pci.ids",
    "var/lib/pciutils/pci.ids",
];

/// Names of PCI vendors and devices.
pub struct PciNames {
    system: Option<HashMap<u16, Vendor>>,
}

struct Vendor {
    name: String,
    devices: HashMap<u16, String>,
}

impl PciNames {
    /// Reads the first `pci.ids` found under `root` (`/` on a live host). A missing or unreadable
    /// file is no error: the built-in data answers then.
    pub fn load(root: &Path) -> PciNames {
        let text = SYSTEM_FILES
            .iter()
            .find_map(|file| fs::read(root.join(file)).ok());
        PciNames {
            system: text.map(|bytes| parse(&String::from_utf8_lossy(&bytes))),
        }
    }

    /// The vendor's name, such as "Intel Corporation".
    pub fn vendor(&self, vendor: u16) -> Option<String> {
        let system = self
            .system
            .as_ref()
            .and_then(|ids| ids.get(&vendor))
            .map(|v| v.name.clone());
        system.or_else(|| {
            let builtin: Option<&'static pci_ids::Vendor> = pci_ids::FromId::from_id(vendor);
            builtin.map(|v| v.name().to_owned())
        })
    }

    /// The device's name, such as "82576 Gigabit Network Connection".
    pub fn device(&self, vendor: u16, device: u16) -> Option<String> {
        let system = self.system.as_ref().and_then(|ids| ids.get(&vendor));
        system
            .and_then(|v| v.devices.get(&device).cloned())
            .or_else(|| pci_ids::Device::from_vid_pid(vendor, device).map(|d| d.name().to_owned()))
    }
}

/// Reads the vendor and device lines; stops at the class list, skips what it does not know.
fn parse(text: &str) -> HashMap<u16, Vendor> {
    let mut vendors: HashMap<u16, Vendor> = HashMap::new();
    let mut current = None;
    for line in text.lines() {
        if line.starts_with("C ") {
            break;
        }
        if line.starts_with("\t\t") || line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let Some((id, name)) = id_and_name(line.trim_start_matches('\t')) else {
            continue;
        };
        if line.starts_with('\t') {
            if let Some(vendor) = current.and_then(|id| vendors.get_mut(&id)) {
                vendor.devices.insert(id, name);
            }
        } else {
            vendors.insert(
                id,
                Vendor {
                    name,
                    devices: HashMap::new(),
                },
            );
            current = Some(id);
        }
    }
    vendors
}

fn id_and_name(line: &str) -> Option<(u16, String)> {
    let (id, name) = line.split_once("  ")?;
    Some((u16::from_str_radix(id, 16).ok()?, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_file_wins_and_built_in_data_fills_in() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("usr/share/misc");
        fs::create_dir_all(&file).unwrap();
        fs::write(
            file.join("pci.ids"),
            "# comment\n8086  Intel, renamed here\n\t10c9  A NIC by another name\n\t\t8086 a01f  sub\nC 02  Network\n\t00  x\n",
        )
        .unwrap();
        let names = PciNames::load(root.path());
        assert_eq!(names.vendor(0x8086).unwrap(), "Intel, renamed here");
        assert_eq!(
            names.device(0x8086, 0x10c9).unwrap(),
            "A NIC by another name"
        );
        assert!(
            names.device(0x8086, 0x10ca).unwrap().contains("82576"),
            "not in the file: built-in data"
        );
        assert!(names.vendor(0x15b3).unwrap().contains("Mellanox"));
    }

    #[test]
    fn garbage_is_skipped() {
        let ids = parse(
            "\tdead  device of nobody\nzzzz  x\n8086\n15b3  Mellanox\n\tnothex  y\n\t1017  ConnectX\n",
        );
        assert_eq!(ids.len(), 1);
        assert_eq!(ids[&0x15b3].devices[&0x1017], "ConnectX");
    }
}
