//! PCI addresses: `domain:bus:device.function`, as sysfs and `lspci -D` write them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The place of a PCI function: domain, bus, device (0 to 31) and function (0 to 7).
///
/// The text form is sysfs's, such as `0000:3b:00.2`; parsing also takes it without the domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI segment (domain). Some hosts have more than 65,536 (VMD uses 0x10000 and up).
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device on the bus, 0 to 31.
    pub device: u8,
    /// Function of the device, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

/// The text is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a PCI address; write domain:bus:device.function, such as 0000:3b:00.2")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (front, function) = text.rsplit_once('.')?;
    let mut parts = front.rsplit(':');
    let device = hex(parts.next()?, 2)?;
    let bus = hex(parts.next()?, 2)?;
    let domain = parts.next().map_or(Some(0), |p| hex(p, 8))?;
    if parts.next().is_some() {
        return None;
    }
    let function = hex(function, 1)?;
    let address = PciAddress {
        domain,
        bus: u8::try_from(bus).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

fn hex(text: &str, most: usize) -> Option<u32> {
    let digits =
        !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for PciAddress {
    type Error = ParsePciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_with_and_without_domain() {
        for (text, shown) in [
            ("0000:3b:00.2", "0000:3b:00.2"),
            ("3b:1f.7", "0000:3b:1f.7"),
            ("10000:01:00.0", "10000:01:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "3b.0",
            "a:0000:3b:00.0",
            "0000:+b:00.0",
            "eth0",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(
                error.to_string().contains("such as 0000:3b:00.2"),
                "{text}: {error}"
            );
        }
    }
}
