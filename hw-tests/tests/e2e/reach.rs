//! Who reaches whom: the same host, another host, the gateway, in both families.

use anyhow::Result;
use hw_tests::world::{GATEWAY, GATEWAY6, World};

/// blue-a and blue-c are both on h1.
pub fn same_host_v4(world: &World) -> Result<String> {
    world.expect_ping("blue-a", &world.member("blue-c")?.ipv4, 3)
}

/// The same over IPv6.
pub fn same_host_v6(world: &World) -> Result<String> {
    world.expect_ping("blue-c", &world.member("blue-a")?.ipv6, 3)
}

/// blue-b is on h2.
pub fn other_host_v4(world: &World) -> Result<String> {
    world.expect_ping("blue-b", &world.member("blue-c")?.ipv4, 3)?;
    world.expect_ping("blue-c", &world.member("blue-b")?.ipv4, 3)
}

/// The same over IPv6.
pub fn other_host_v6(world: &World) -> Result<String> {
    world.expect_ping("blue-b", &world.member("blue-c")?.ipv6, 3)?;
    world.expect_ping("blue-c", &world.member("blue-b")?.ipv6, 3)
}

/// Each host's agent answers for the gateway.
pub fn gateway_v4(world: &World) -> Result<String> {
    world.expect_ping("blue-b", GATEWAY, 3)?;
    world.expect_ping("blue-a", GATEWAY, 3)
}

/// The same over IPv6.
pub fn gateway_v6(world: &World) -> Result<String> {
    world.expect_ping("blue-b", GATEWAY6, 3)?;
    world.expect_ping("blue-a", GATEWAY6, 3)
}

/// A MiB over TCP and IPv6 between hosts.
pub fn tcp_v6(world: &World) -> Result<String> {
    let fetched = world.fetch("blue-b", &world.member("blue-b")?.ipv6, "blue-c", 1024)?;
    Ok(format!("1 MiB in {:.1} s", fetched.took.as_secs_f32()))
}
