//! What guests are told about their addresses: DHCPv4 and router advertisements.

use anyhow::{Result, bail, ensure};
use hw_tests::world::{GATEWAY, UNDERLAY_MTU, World};

/// VXLAN over IPv4 takes 50 bytes of the underlay's packet: Ethernet 14, IP 20, UDP 8, VXLAN 8.
pub const GUEST_MTU: u16 = UNDERLAY_MTU - 50;

/// The fields of a lease (RFC 2132, RFC 3442).
pub fn lease(world: &World) -> Result<String> {
    let lease = world.member("blue-a")?.guest.dhcp()?;
    ensure!(
        lease.field("router") == GATEWAY,
        "The router is \"{}\"",
        lease.field("router")
    );
    ensure!(
        lease.field("mtu") == GUEST_MTU.to_string(),
        "The MTU is \"{}\"",
        lease.field("mtu")
    );
    ensure!(
        lease.field("dns") == "10.1.0.53",
        "The DNS server is \"{}\"",
        lease.field("dns")
    );
    ensure!(
        lease.field("mask") == "24",
        "The prefix length is \"{}\"",
        lease.field("mask")
    );
    // A client that asks for classless routes takes the default route from them too.
    let routes = lease.field("staticroutes");
    ensure!(
        routes.is_empty() || routes.contains(GATEWAY),
        "The routes are \"{routes}\""
    );
    Ok(format!(
        "MTU {}, DNS {}, routes \"{routes}\"",
        lease.field("mtu"),
        lease.field("dns")
    ))
}

/// What the guest made of it.
pub fn applied(world: &World) -> Result<String> {
    let guest = &world.member("blue-a")?.guest;
    let mtu = guest.expect("cat /sys/class/net/eth0/mtu")?;
    ensure!(
        mtu.trim() == GUEST_MTU.to_string(),
        "The interface's MTU is {}",
        mtu.trim()
    );
    let routes = guest.expect("ip route")?;
    ensure!(
        routes.contains(&format!("default via {GATEWAY}")),
        "The routes are {routes}"
    );
    Ok(format!("MTU {}, default via {GATEWAY}", mtu.trim()))
}

/// What the router's advertisement brought (RFC 4861, RFC 4862).
pub fn advertised(world: &World) -> Result<String> {
    let guest = &world.member("blue-b")?.guest;
    let routes = guest.expect("ip -6 route")?;
    if !routes
        .lines()
        .any(|line| line.starts_with("default via fe80:"))
    {
        bail!("There is no default route by a link-local address: {routes}");
    }
    let mtu = guest.expect("cat /proc/sys/net/ipv6/conf/eth0/mtu")?;
    ensure!(
        mtu.trim() == GUEST_MTU.to_string(),
        "IPv6's MTU is {}",
        mtu.trim()
    );
    Ok(format!("IPv6 MTU {}", mtu.trim()))
}
