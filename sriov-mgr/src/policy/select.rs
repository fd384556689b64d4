//! Which PFs a policy means, and which of their VFs.

use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::PfState;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which PFs are meant: those that fit every criterion given. Without any, every PF of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// PCI vendor, such as 0x8086.
    #[serde(default)]
    pub vendor: Option<u16>,
    /// PCI device number.
    #[serde(default)]
    pub device: Option<u16>,
    /// The PF's driver, such as "ice".
    #[serde(default)]
    pub driver: Option<String>,
    /// Interfaces of PFs, any of them: `eth0`, or `eth0#0-3` for some VFs of it.
    #[serde(default)]
    pub pf: Vec<PfSelector>,
    /// Devices, any of them: `0000:3b:00.0`.
    #[serde(default)]
    pub address: Vec<Device>,
    /// The root port that the PF hangs from.
    #[serde(default)]
    pub root_port: Option<PciAddress>,
    /// NUMA node.
    #[serde(default)]
    pub numa_node: Option<u32>,
}

/// A PF by its interface's name, and which of its VFs: `eth0`, `eth0#3`, `eth0#0-3`. In place of the
/// interface a device may stand: `0000:3b:00.0#0-3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PfSelector {
    /// The interface, or the device's text.
    pub name: String,
    /// Which VFs; absent: all.
    pub vfs: Option<VfRange>,
}

/// Numbers of VFs, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VfRange {
    /// The first.
    pub first: u32,
    /// The last; not below the first.
    pub last: u32,
}

impl VfRange {
    /// Every VF there can be.
    pub const ALL: VfRange = VfRange {
        first: 0,
        last: u32::MAX,
    };

    /// Whether VF `index` is one of them.
    pub fn contains(&self, index: u32) -> bool {
        (self.first..=self.last).contains(&index)
    }

    /// The VFs that are in both.
    pub fn common(&self, other: &VfRange) -> Option<VfRange> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(VfRange { first, last })
    }
}

impl fmt::Display for VfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, u32::MAX) => f.write_str("all VFs"),
            (first, last) if first == last => write!(f, "VF {first}"),
            (first, last) => write!(f, "VFs {first}-{last}"),
        }
    }
}

/// The text selects no PF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" selects no PF; write an interface, or some of its VFs, such as eth0 or eth0#0-3")]
pub struct ParsePfSelectorError(String);

impl FromStr for PfSelector {
    type Err = ParsePfSelectorError;

    fn from_str(text: &str) -> Result<PfSelector, ParsePfSelectorError> {
        let wrong = || ParsePfSelectorError(text.chars().take(64).collect());
        let (name, range) = match text.split_once('#') {
            Some((name, range)) => (name, Some(range)),
            None => (text, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let vfs = match range {
            None => None,
            Some(range) => Some(parse_range(range).ok_or_else(wrong)?),
        };
        let name = name.to_owned();
        Ok(PfSelector { name, vfs })
    }
}

fn parse_range(text: &str) -> Option<VfRange> {
    // `u32::from_str` takes a sign, which no one means.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(VfRange { first, last })
}

impl fmt::Display for PfSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.vfs {
            Some(VfRange { first, last }) if first == last => write!(f, "#{first}"),
            Some(VfRange { first, last }) => write!(f, "#{first}-{last}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for PfSelector {
    type Error = ParsePfSelectorError;

    fn try_from(text: String) -> Result<PfSelector, ParsePfSelectorError> {
        text.parse()
    }
}

impl From<PfSelector> for String {
    fn from(selector: PfSelector) -> String {
        selector.to_string()
    }
}

impl PfSelector {
    pub(super) fn names(&self, pf: &PfState) -> bool {
        pf.interface.as_deref() == Some(self.name.as_str())
            || self.name.parse::<Device>().is_ok_and(|d| d == pf.device)
    }
}

impl Selector {
    /// Whether `pf` is meant.
    pub(super) fn selects(&self, pf: &PfState) -> bool {
        !self.vfs_of(pf).is_empty()
    }

    /// Which VFs of `pf` are meant; empty: the PF is not.
    pub fn vfs_of(&self, pf: &PfState) -> Vec<VfRange> {
        let fits = self.vendor.is_none_or(|v| v == pf.vendor)
            && self.device.is_none_or(|d| d == pf.device_id)
            && (self.driver.is_none() || self.driver == pf.driver)
            && (self.address.is_empty() || self.address.contains(&pf.device))
            && (self.root_port.is_none() || self.root_port == pf.root_port)
            && (self.numa_node.is_none() || self.numa_node == pf.numa_node);
        if !fits {
            return Vec::new();
        }
        if self.pf.is_empty() {
            return vec![VfRange::ALL];
        }
        let named = self.pf.iter().filter(|selector| selector.names(pf));
        named.map(|s| s.vfs.unwrap_or(VfRange::ALL)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_round_trips() {
        for text in ["eth0", "eth0#3", "eth0#0-3", "0000:3b:00.0#4-7"] {
            assert_eq!(text.parse::<PfSelector>().unwrap().to_string(), text);
        }
        let one = "eth0#2-2".parse::<PfSelector>().unwrap();
        assert_eq!(one.vfs, Some(VfRange { first: 2, last: 2 }));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "",
            "#0-3",
            "eth0#",
            "eth0#3-1",
            "eth0#-1",
            "eth0#+1",
            "eth0#a",
            "eth0#0-3-5",
            "eth 0",
            "eth0#0-4294967296",
        ] {
            let error = text.parse::<PfSelector>().unwrap_err().to_string();
            assert!(error.contains("such as eth0"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            if let Ok(selector) = text.parse::<PfSelector>() {
                prop_assert_eq!(selector.to_string().parse::<PfSelector>().unwrap(), selector);
            }
        }

        #[test]
        fn what_is_common_is_in_both(a in 0u32..20, b in 0u32..20, c in 0u32..20, d in 0u32..20, i in 0u32..20) {
            let x = VfRange { first: a.min(b), last: a.max(b) };
            let y = VfRange { first: c.min(d), last: c.max(d) };
            let both = x.common(&y).is_some_and(|r| r.contains(i));
            prop_assert_eq!(both, x.contains(i) && y.contains(i));
        }
    }
}
