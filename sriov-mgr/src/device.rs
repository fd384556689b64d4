//! The name of a NIC function, as devlink writes it: bus and device.
//!
//! Nearly every NIC is a PCI function. The kernel's simulated NIC (netdevsim) is not, and its VFs are
//! no devices of their own; naming PFs as devlink does lets the same code drive both.

use crate::address::PciAddress;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A device on a bus.
///
/// The text form of a PCI function is its address (`0000:3b:00.0`); of any other device it is bus and
/// name (`netdevsim/netdevsim1`). Parsing takes `pci/0000:3b:00.0` too.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// A PCI function.
    Pci(PciAddress),
    /// A device of the kernel's simulated NIC, by the number in its name.
    Netdevsim(u32),
}

impl Device {
    /// The bus, as sysfs and devlink name it.
    pub fn bus(&self) -> &'static str {
        match self {
            Device::Pci(_) => "pci",
            Device::Netdevsim(_) => "netdevsim",
        }
    }

    /// The device's name on its bus, as sysfs and devlink write it.
    pub fn name(&self) -> String {
        match self {
            Device::Pci(address) => address.to_string(),
            Device::Netdevsim(number) => format!("netdevsim{number}"),
        }
    }

    /// The PCI address, of a PCI function.
    pub fn pci(&self) -> Option<PciAddress> {
        match self {
            Device::Pci(address) => Some(*address),
            Device::Netdevsim(_) => None,
        }
    }
}

impl From<PciAddress> for Device {
    fn from(address: PciAddress) -> Device {
        Device::Pci(address)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Pci(address) => address.fmt(f),
            Device::Netdevsim(number) => write!(f, "netdevsim/netdevsim{number}"),
        }
    }
}

/// The text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" names no NIC; write a PCI address such as 0000:3b:00.0")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Device, ParseDeviceError> {
        if let Some(name) = text.strip_prefix("netdevsim/") {
            let digits = name.strip_prefix("netdevsim").unwrap_or_default();
            let number = digits.parse().ok();
            // One spelling only: a number with a sign or leading zeros is another device's name.
            if let Some(number) = number.filter(|n: &u32| n.to_string() == digits) {
                return Ok(Device::Netdevsim(number));
            }
        } else if let Ok(address) = text.strip_prefix("pci/").unwrap_or(text).parse() {
            return Ok(Device::Pci(address));
        }
        Err(ParseDeviceError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Device {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<Device, ParseDeviceError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

/// A VF: its PF, and its number there.
///
/// The text form is `0000:3b:00.0#3`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct VfId {
    /// The PF.
    pub pf: Device,
    /// The VF's number on its PF, from 0.
    pub index: u32,
}

impl fmt::Display for VfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.pf, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for (text, shown) in [
            ("0000:3b:00.0", "0000:3b:00.0"),
            ("pci/0000:3b:00.0", "0000:3b:00.0"),
            ("netdevsim/netdevsim12", "netdevsim/netdevsim12"),
        ] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "eth0",
            "netdevsim/",
            "netdevsim/netdevsim",
            "netdevsim/netdevsim+1",
            "netdevsim/netdevsim01",
        ] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
