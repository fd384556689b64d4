//! Network interfaces through rtnetlink: the list with what ties them to devices, and a PF's own settings.

use super::wire::{Body, Netlink, Refusal, attributes, text, u32_at};
use crate::device::Device;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::collections::HashSet;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PHYS_SWITCH_ID: u16 = 36;
const IFLA_PHYS_PORT_NAME: u16 = 38;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
/// `struct ifinfomsg`.
pub(crate) const IFINFOMSG: usize = 16;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// The interface it is enslaved to (bridge, bond).
    pub(crate) master: Option<u32>,
    pub(crate) switch_id: Option<String>,
    pub(crate) port_name: Option<String>,
    /// Bus and name of its device (kernel 5.14 and later).
    pub(crate) parent: Option<(String, String)>,
}

impl LinkInfo {
    pub(crate) fn is_of(&self, device: &Device) -> bool {
        let parent = self.parent.as_ref();
        parent.is_some_and(|(bus, name)| bus == device.bus() && *name == device.name())
    }

    /// Whether it stands for something behind the eswitch (`pf0vf3`, `pf0sf1`, with a controller `c1pf0vf3`)
    /// and not for the PF's own port.
    pub(crate) fn represents(&self) -> bool {
        self.port_name.as_deref().is_some_and(|name| {
            let name = name
                .trim_start_matches('c')
                .trim_start_matches(|c: char| c.is_ascii_digit());
            name.starts_with("pf")
        })
    }
}

/// `struct ifinfomsg` for one interface.
pub(crate) fn header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for field in [index, flags, change] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// Every interface of the calling thread's network namespace.
pub(crate) fn list() -> Result<Vec<LinkInfo>, Refusal> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let answers = netlink.dump(libc::RTM_GETLINK, &header(0, 0, 0))?;
    Ok(answers.iter().filter_map(|body| parse(body)).collect())
}

/// Indices of the interfaces that have an IP address.
pub(crate) fn with_addresses() -> Result<HashSet<u32>, Refusal> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    // `struct ifaddrmsg`, of any family; the index is its last field.
    let answers = netlink.dump(libc::RTM_GETADDR, &[0; 8])?;
    Ok(answers.iter().filter_map(|body| u32_at(body, 4)).collect())
}

/// Sets the MTU, bytes.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Result<(), Refusal> {
    let mut body = Body(header(index, 0, 0));
    body.put_u32(IFLA_MTU, mtu);
    change(&body)
}

/// Takes the interface up or down.
pub(crate) fn set_up(index: u32, up: bool) -> Result<(), Refusal> {
    let bit = libc::IFF_UP as u32;
    change(&Body(header(index, if up { bit } else { 0 }, bit)))
}

/// One `RTM_SETLINK`.
pub(crate) fn change(body: &Body) -> Result<(), Refusal> {
    Netlink::open(NETLINK_ROUTE)?.request(libc::RTM_SETLINK, &body.0)?;
    Ok(())
}

pub(crate) fn parse(body: &[u8]) -> Option<LinkInfo> {
    let mut link = LinkInfo {
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
        ..LinkInfo::default()
    };
    let (mut bus, mut device) = (None, None);
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_PHYS_SWITCH_ID => {
                link.switch_id = Some(value.iter().map(|b| format!("{b:02x}")).collect());
            }
            IFLA_PHYS_PORT_NAME => link.port_name = Some(text(value)),
            IFLA_PARENT_DEV_NAME => device = Some(text(value)),
            IFLA_PARENT_DEV_BUS_NAME => bus = Some(text(value)),
            _ => {}
        }
    }
    link.parent = bus.zip(device);
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_and_up_or_down() {
        let links = list().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.parent.as_ref()), (1, None));
    }

    #[test]
    fn representors_are_told_from_ports() {
        for (name, is) in [
            ("p0", false),
            ("p1s0", false),
            ("pf0vf3", true),
            ("c1pf0vf3", true),
            ("pf1sf88", true),
        ] {
            let link = LinkInfo {
                port_name: Some(name.into()),
                ..LinkInfo::default()
            };
            assert_eq!(link.represents(), is, "{name}");
        }
    }
}
