//! The link to the other hosts: what the kernel says of its interface, and keeping the kernel from
//! answering VXLAN.

use crate::config;
use flow::MacAddr;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::net::{IpAddr, SocketAddr};

/// What the kernel knows of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses that other hosts can reach, in the kernel's order.
    pub addresses: Vec<IpNet>,
}

/// Where this host is in the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface, where the uplink is one.
    pub interface: Option<String>,
    /// This host's address.
    pub address: IpNet,
    /// The way to hosts outside the prefix.
    pub gateway: Option<IpAddr>,
    /// Bytes of IP packet; `None`: ask the device.
    pub mtu: Option<u16>,
    /// `None`: ask the device.
    pub mac: Option<MacAddr>,
    /// Whether the kernel has this address too (and answers ARP for it).
    pub kernel_owns: bool,
}

/// The underlay cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// No such interface.
    #[error(
        "There is no interface \"{name}\" in this network namespace; create it or change interface in [underlay]"
    )]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// The kernel does not answer.
    #[error("The kernel does not tell about interface \"{name}\"")]
    Netlink {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// Netlink cannot be opened.
    #[error("Netlink cannot be opened")]
    Open(#[source] std::io::Error),
    /// No address at all.
    #[error(
        "Interface \"{name}\" has no address that other hosts can reach; add one, or write address in [underlay]"
    )]
    NoAddress {
        /// The interface.
        name: String,
    },
    /// No Ethernet.
    #[error("Interface \"{name}\" has no Ethernet address; the underlay must be Ethernet")]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// Larger than the interface allows.
    #[error(
        "mtu = {wanted} of [underlay] is more than the {have} of interface \"{name}\"; raise the interface's, or lower it here"
    )]
    Mtu {
        /// The interface.
        name: String,
        /// As configured.
        wanted: u16,
        /// As it is.
        have: u32,
    },
    /// Another program has the VXLAN port.
    #[error(
        "UDP port 4789 of {address} is taken by another program (a kernel VXLAN device, another agent); free it"
    )]
    PortTaken {
        /// This host's address.
        address: IpAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Some other failure with the VXLAN port.
    #[error("UDP port 4789 of {address} cannot be reserved")]
    Reserve {
        /// This host's address.
        address: IpAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Asks the kernel about an interface of this network namespace.
pub async fn interface(name: &str) -> Result<Interface, UnderlayError> {
    let netlink = |source| UnderlayError::Netlink {
        name: name.to_owned(),
        source,
    };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(UnderlayError::Open)?;
    let connection = tokio::spawn(connection);
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = match links.try_next().await {
        Ok(Some(link)) => link,
        Ok(None) => {
            return Err(UnderlayError::NoInterface {
                name: name.to_owned(),
            });
        }
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
            return Err(UnderlayError::NoInterface {
                name: name.to_owned(),
            });
        }
        Err(error) => return Err(netlink(error)),
    };
    let mut found = Interface {
        name: name.to_owned(),
        mac: MacAddr::ZERO,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    found.mac = MacAddr(mac);
                }
            }
            _ => {}
        }
    }
    let index = link.header.index;
    let mut addresses = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    while let Some(message) = addresses.try_next().await.map_err(netlink)? {
        found.addresses.extend(reachable(&message));
    }
    connection.abort();
    Ok(found)
}

/// The address of a message, where other hosts can reach it.
fn reachable(message: &AddressMessage) -> Option<IpNet> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let of = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
    };
    // On a point-to-point link "address" is the other side's and "local" is ours.
    IpNet::new(of(true).or_else(|| of(false))?, message.header.prefix_len).ok()
}

/// Brings the configuration and the interface together.
pub fn place(
    config: &config::Underlay,
    interface: Option<&Interface>,
) -> Result<Place, UnderlayError> {
    let Some(interface) = interface else {
        // The configuration is refused without an address for a device that is no interface.
        let address = config.address.ok_or(UnderlayError::NoAddress {
            name: String::new(),
        })?;
        return Ok(Place {
            interface: None,
            address,
            gateway: config.gateway,
            mtu: config.mtu,
            mac: None,
            kernel_owns: false,
        });
    };
    let name = interface.name.clone();
    if !interface.mac.is_station() {
        return Err(UnderlayError::NotEthernet { name });
    }
    if let Some(wanted) = config.mtu
        && u32::from(wanted) > interface.mtu
    {
        return Err(UnderlayError::Mtu {
            name,
            wanted,
            have: interface.mtu,
        });
    }
    let own = interface.addresses.first().copied();
    let address = config
        .address
        .or(own)
        .ok_or(UnderlayError::NoAddress { name: name.clone() })?;
    let kernel_owns = interface
        .addresses
        .iter()
        .any(|own| own.addr() == address.addr());
    Ok(Place {
        interface: Some(name),
        address,
        gateway: config.gateway,
        mtu: Some(config.mtu.unwrap_or(interface.mtu.min(65_000) as u16)),
        mac: Some(interface.mac),
        kernel_owns,
    })
}

/// Holds UDP port 4789 of the kernel's address: without it, the kernel would answer each VXLAN packet
/// with "port unreachable". Nothing is ever received: a packet filter drops all of it.
#[derive(Debug)]
pub struct Reservation {
    _socket: Socket,
}

/// Reserves the VXLAN port of an address that the kernel owns.
pub fn reserve(address: IpAddr) -> Result<Reservation, UnderlayError> {
    let port = flow::Vxlan::UDP_PORT;
    let make = || {
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        // "ret 0": keep none of the packet. Before bind, so that not one packet is queued.
        socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(address, port).into())?;
        Ok(Reservation { _socket: socket })
    };
    make().map_err(|source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => UnderlayError::PortTaken { address, source },
        _ => UnderlayError::Reserve { address, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Uplink;

    fn eth1() -> Interface {
        Interface {
            name: "eth1".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 9000,
            up: true,
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
        }
    }

    fn config() -> config::Underlay {
        let uplink = Uplink::Interface("eth1".into());
        config::Underlay {
            uplink,
            address: None,
            gateway: None,
            mtu: None,
        }
    }

    #[test]
    fn the_interface_gives_what_the_file_does_not() {
        let found = place(&config(), Some(&eth1())).unwrap();
        assert_eq!(found.address.to_string(), "192.0.2.1/24");
        assert_eq!((found.mtu, found.kernel_owns), (Some(9000), true));
    }

    #[test]
    fn an_address_of_our_own_is_answered_by_ourselves() {
        let address = Some("192.0.2.77/24".parse().unwrap());
        let found = place(
            &config::Underlay {
                address,
                ..config()
            },
            Some(&eth1()),
        )
        .unwrap();
        assert!(!found.kernel_owns);
    }

    #[test]
    fn what_the_interface_cannot_do_is_refused() {
        let jumbo = config::Underlay {
            mtu: Some(9001),
            ..config()
        };
        assert!(matches!(
            place(&jumbo, Some(&eth1())),
            Err(UnderlayError::Mtu { .. })
        ));
        let bare = Interface {
            addresses: vec![],
            ..eth1()
        };
        assert!(matches!(
            place(&config(), Some(&bare)),
            Err(UnderlayError::NoAddress { .. })
        ));
        let tun = Interface {
            mac: MacAddr::ZERO,
            ..eth1()
        };
        assert!(matches!(
            place(&config(), Some(&tun)),
            Err(UnderlayError::NotEthernet { .. })
        ));
    }

    #[tokio::test]
    async fn the_loopback_is_found_and_a_missing_interface_is_named() {
        let lo = interface("lo").await.unwrap();
        assert!(lo.mtu > 0);
        let error = interface("fvnone0").await.unwrap_err();
        assert!(
            matches!(error, UnderlayError::NoInterface { .. }),
            "{error:?}"
        );
    }

    #[test]
    fn the_port_can_be_held_once() {
        // An address of this machine that no other test uses.
        let address: IpAddr = "127.47.89.1".parse().unwrap();
        let first = reserve(address).unwrap();
        assert!(matches!(
            reserve(address),
            Err(UnderlayError::PortTaken { .. })
        ));
        drop(first);
        reserve(address).unwrap();
    }
}
