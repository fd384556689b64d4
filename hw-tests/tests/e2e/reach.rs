//! Who reaches whom: the same host, another host, the gateway, in both families.

use anyhow::{Result, bail};
use hw_tests::world::{GATEWAY, GATEWAY6, World};
use std::time::Duration;

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
    let (from, to) = (world.member("blue-c")?, world.member("blue-b")?);
    let sum = from.guest.expect(
        "dd if=/dev/urandom of=/tmp/six bs=64k count=16 2>/dev/null; sha256sum < /tmp/six",
    )?;
    to.guest.spawn(
        "nc -l -p 9006 > /tmp/six; touch /tmp/six.done",
        "/tmp/nc6.log",
    )?;
    to.guest
        .expect("until netstat -ltn | grep -q :9006; do usleep 100000; done")?;
    let sent = from.guest.run_for(
        &format!("nc {} 9006 < /tmp/six", to.ipv6),
        Duration::from_secs(30),
    )?;
    let received = to
        .guest
        .expect("until [ -e /tmp/six.done ]; do usleep 100000; done; sha256sum < /tmp/six")?;
    if !sent.ok() || received != sum {
        bail!("{sum} was sent ({sent}), and {received} arrived");
    }
    Ok("1 MiB".into())
}
