//! A guest that leaves checksums to the device: they must be right when the packet leaves the host.

use anyhow::{Result, bail, ensure};
use hw_tests::capture::{Capture, check_checksums};
use hw_tests::world::World;
use std::time::Duration;

/// Both checksum features were negotiated, so the guest really leaves the work to us.
pub fn offered(world: &World) -> Result<String> {
    let guest = &world.member("blue-a")?.guest;
    // /sys/bus/virtio/devices/*/features is a string of bits, VIRTIO_NET_F_CSUM (0) and GUEST_CSUM (1) first.
    let bits = guest.expect("cat /sys/class/net/eth0/device/features")?;
    ensure!(
        bits.starts_with("11"),
        "The features of the guest's device are {}",
        bits.trim()
    );
    Ok(format!("features {}…", bits.get(..24).unwrap_or(&bits)))
}

/// Sums up what a capture between the hosts saw.
pub fn right_on_the_wire(world: &World) -> Result<String> {
    let cluster = &world.cluster;
    let underlay = cluster.underlay();
    let capture = Capture::start(
        cluster.run(),
        underlay.netns(),
        &underlay.port("h1"),
        "udp port 4789",
    )?;
    let (from, to) = (world.member("blue-a")?, world.member("blue-b")?);
    for address in [&from.ipv4, &from.ipv6] {
        world.fetch("blue-a", address, "blue-b", 200)?;
    }
    // UDP, to a port where nobody listens: the checksum is what matters. DNS asks over UDP.
    from.guest.run_for(
        &format!("nslookup -type=a ferrovia.test {}", to.ipv4),
        Duration::from_secs(20),
    )?;
    from.guest.run_for(
        &format!("nslookup -type=a ferrovia.test {}", to.ipv6),
        Duration::from_secs(20),
    )?;
    let seen = check_checksums(&capture.finish()?);
    if !seen.wrong.is_empty() {
        bail!(
            "{} packets have a wrong checksum, the first: {}",
            seen.wrong.len(),
            seen.wrong[0]
        );
    }
    ensure!(
        seen.tcp > 50 && seen.udp > 0,
        "Too few packets were seen to say anything: {seen:?}"
    );
    Ok(format!(
        "{} TCP segments and {} UDP datagrams",
        seen.tcp, seen.udp
    ))
}
