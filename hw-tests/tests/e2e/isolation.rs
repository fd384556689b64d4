//! Networks are worlds of their own, and guests speak only as themselves.

use anyhow::{Result, bail, ensure};
use hw_tests::world::World;

/// red-a has an address that a guest of blue has too; each talks in its own network.
pub fn same_address(world: &World) -> Result<String> {
    let red = world.member("red-a")?;
    let twin = world
        .members
        .iter()
        .find(|m| m.network == "blue" && m.ipv4 == red.ipv4);
    let Some(twin) = twin else {
        bail!("No guest of blue has {}, the address of red-a", red.ipv4)
    };
    // The gateway's answer finds its way back to the right one of the two.
    world.expect_ping("red-a", hw_tests::world::GATEWAY, 3)?;
    world.expect_ping(twin.guest.name(), hw_tests::world::GATEWAY, 3)?;
    let red_flows = world.cluster.cli(
        Some(world.host_of("red-a")?),
        &["flow", "list", "--port", &red.port],
    )?;
    for blue in world
        .members
        .iter()
        .filter(|m| m.network == "blue" && m.ipv4 != red.ipv4)
    {
        world.expect_silence("red-a", &blue.ipv4, 2)?;
    }
    Ok(format!(
        "{} is red-a's and {}'s; {} lines of flows",
        red.ipv4,
        twin.guest.name(),
        red_flows.lines().count()
    ))
}

/// blue-c sends with another MAC address.
pub fn forged_mac(world: &World) -> Result<String> {
    let from = world.member("blue-c")?;
    let before = world.drops(&from.host, "spoofed-mac")?;
    let to = world.member("blue-b")?.ipv4.clone();
    from.guest.expect(
        "ip link set eth0 down; ip link set eth0 address 02:de:ad:be:ef:01; ip link set eth0 up",
    )?;
    let _ = from.guest.run(&format!("ping -c 3 -W 1 {to}"))?;
    from.guest.expect(&format!(
        "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up",
        from.mac
    ))?;
    from.guest.dhcp()?;
    let counted = world.drops(&from.host, "spoofed-mac")? - before;
    ensure!(counted > 0, "Nothing was counted as spoofed-mac");
    world.expect_ping("blue-c", &to, 2)?;
    Ok(format!("{counted} packets dropped as spoofed-mac"))
}
