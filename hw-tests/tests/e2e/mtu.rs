//! Sizes: jumbo frames up to what the underlay carries, and what a packet gets that is too big.

use crate::addresses::GUEST_MTU;
use anyhow::{Result, bail, ensure};
use hw_tests::capture::{Capture, check_checksums};
use hw_tests::command::wait_for;
use hw_tests::guest::ping_command;
use hw_tests::world::World;
use std::time::Duration;

/// Pings that fill the guest's MTU, to the other host: IPv4 header 20, IPv6 header 40, ICMP header 8.
pub fn jumbo(world: &World) -> Result<String> {
    let to = world.member("blue-b")?;
    full_size(world, &to.ipv4, GUEST_MTU - 28)?;
    full_size(world, &to.ipv6, GUEST_MTU - 48)?;
    full_size(world, &world.member("blue-c")?.ipv4, GUEST_MTU - 28)?;
    Ok(format!("{GUEST_MTU} bytes of IP packet"))
}

fn full_size(world: &World, address: &str, payload: u16) -> Result<()> {
    let output = world
        .member("blue-a")?
        .guest
        .run(&ping_command(address, 3, payload.into()))?;
    ensure!(
        output.text.matches("seq=").count() == 3,
        "{payload} bytes to {address}: {output}"
    );
    Ok(())
}

/// A capture on the underlay: the longest inner packet is the guest's MTU, and it travels in one piece.
pub fn capture_fits(world: &World) -> Result<String> {
    let cluster = &world.cluster;
    let underlay = cluster.underlay();
    let capture = Capture::start(
        cluster.run(),
        underlay.netns(),
        &underlay.port("h1"),
        "udp port 4789",
    )?;
    full_size(world, &world.member("blue-b")?.ipv4, GUEST_MTU - 28)?;
    let packets = capture.finish()?;
    let longest = packets.iter().map(Vec::len).max().unwrap_or(0);
    // The Ethernet header of the underlay is not part of its MTU.
    let limit = usize::from(underlay.mtu()) + 14;
    ensure!(
        longest <= limit,
        "A frame of {longest} bytes left a host, and {limit} fit"
    );
    let inner = check_checksums(&packets).longest;
    ensure!(
        inner == usize::from(GUEST_MTU),
        "The longest inner packet is {inner}, and {GUEST_MTU} were sent"
    );
    Ok(format!(
        "frames of up to {longest} bytes, inner packets of up to {inner}"
    ))
}

/// The network's MTU becomes smaller while guests still have the old one: the router answers what is too big.
pub fn too_big(world: &World) -> Result<String> {
    const SMALL: u16 = 1400;
    let result = with_mtu(world, SMALL, || {
        let to = world.member("blue-b")?;
        let guest = &world.member("blue-a")?.guest;
        // -F forbids fragments; the router's answer shows as "!F-1400" (RFC 1191).
        let trace = guest.run_for(
            &format!("traceroute -n -F -q 1 -m 2 -w 3 {} 3000", to.ipv4),
            Duration::from_secs(30),
        )?;
        ensure!(
            trace.text.contains(&format!("!F-{SMALL}")),
            "traceroute saw no \"!F-{SMALL}\": {trace}"
        );
        // IPv6: the first is too big, the kernel learns, and the next go in fragments (RFC 8201).
        let ping = guest.run(&ping_command(&to.ipv6, 4, 3000))?;
        let answered = ping.text.matches("seq=").count();
        ensure!(
            answered >= 2,
            "{answered} of 4 long IPv6 pings were answered: {ping}"
        );
        // TCP finds its way too, with segments that were too big at first.
        world.fetch("blue-a", &world.member("blue-a")?.ipv4, "blue-b", 300)?;
        Ok(format!(
            "IPv4 told {SMALL}; {answered} of 4 long IPv6 pings; TCP went on"
        ))
    });
    let routes = "ip route flush cache; ip -6 route flush cache";
    let _ = world.member("blue-a")?.guest.run(routes);
    result
}

fn with_mtu(world: &World, mtu: u16, work: impl FnOnce() -> Result<String>) -> Result<String> {
    set_mtu(world, mtu)?;
    let result = work();
    set_mtu(world, GUEST_MTU)?;
    result
}

fn set_mtu(world: &World, mtu: u16) -> Result<()> {
    world.cluster.cli(
        None,
        &["network", "update", "blue", "--mtu", &mtu.to_string()],
    )?;
    for host in &world.cluster.hosts {
        world.cluster.wait_connected(host)?;
    }
    wait_for("the network's new MTU", Duration::from_secs(5), || {
        let shown = world.cluster.json(None, &["network", "show", "blue"])?;
        if shown["mtu"] != mtu {
            bail!("it is {}", shown["mtu"])
        } else {
            Ok(())
        }
    })
}
