//! MAC addresses, and how the controller picks them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered station address (IEEE 802, 8.2), always the same for an id and a probe number.
    /// 46 bits are left to chance; the caller probes on until one is free.
    pub fn derived(id: Uuid, probe: u32) -> Mac {
        let hash = Sha256::new()
            .chain_update(id.as_bytes())
            .chain_update(probe.to_be_bytes())
            .finalize();
        let mut octets = [0; 6];
        octets.copy_from_slice(&hash[..6]);
        // libvirt takes fe:… for the host's side of a tap device, and 52:54:00 is what QEMU makes up.
        octets[0] = (octets[0] & 0x3c) | 0x02;
        Mac(octets)
    }

    /// Whether one station can own it: not a group address (IEEE 802, 8.2.2) and not all zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The address a guest forms with it in a /64 (RFC 4291, appendix A).
    pub fn eui64(self, prefix: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        ((u128::from(prefix) & !u128::from(u64::MAX)) | u128::from(interface)).into()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is not six octets in hexadecimal with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not a MAC address")]
pub struct BadMac;

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Mac, BadMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(BadMac)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(BadMac);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| BadMac)?;
        }
        if parts.next().is_some() {
            Err(BadMac)
        } else {
            Ok(Mac(octets))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_local_stations_and_repeatable() {
        for number in 0..1000 {
            let id = Uuid::from_u128(number);
            let mac = Mac::derived(id, 0);
            assert!(mac.is_station() && mac.0[0] & 2 == 2, "{mac}");
            assert_eq!(mac, Mac::derived(id, 0));
            assert_ne!(mac, Mac::derived(id, 1));
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }

    #[test]
    fn text_that_is_no_mac_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02-00-00-00-00-00",
            "2:0:0:0:0:0",
            "+2:00:00:00:00:00",
            "gg:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(BadMac), "{text}");
        }
    }

    #[test]
    fn eui64_follows_rfc_4291() {
        let mac: Mac = "34:56:78:9a:bc:de".parse().unwrap();
        let address = mac.eui64("2001:db8::".parse().unwrap());
        assert_eq!(
            address,
            "2001:db8::3656:78ff:fe9a:bcde"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
        );
    }
}
