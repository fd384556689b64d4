//! Reading sysfs attributes (kernel: `Documentation/ABI/testing/sysfs-bus-pci`).

use crate::address::PciAddress;
use std::fs;
use std::path::{Path, PathBuf};

/// One directory of sysfs. Attributes that are missing or unreadable read as `None`: a device may go
/// away, and kernels differ in what they show.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn text(&self, attribute: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(attribute)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    pub(crate) fn number(&self, attribute: &str) -> Option<i64> {
        let text = self.text(attribute)?;
        match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// The last part of a symbolic link's target: the driver's name, the group's number.
    pub(crate) fn link_name(&self, attribute: &str) -> Option<String> {
        let target = fs::read_link(self.0.join(attribute)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Names of the entries of a sub-directory, sorted; empty where it does not exist.
    pub(crate) fn entries(&self, sub: &str) -> Vec<String> {
        let Ok(dir) = fs::read_dir(self.0.join(sub)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = dir
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// The PCI functions that `virtfn0`, `virtfn1`, … point at, with their numbers, in order.
    pub(crate) fn virtual_functions(&self) -> Vec<(u32, PciAddress)> {
        let mut functions: Vec<(u32, PciAddress)> = self
            .entries("")
            .iter()
            .filter_map(|name| {
                let index = name.strip_prefix("virtfn")?.parse().ok()?;
                Some((index, self.link_name(name)?.parse().ok()?))
            })
            .collect();
        functions.sort();
        functions
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
