//! Programs that are killed and started again.

use anyhow::{Result, ensure};
use hw_tests::parts::interrupt::ping_during;
use hw_tests::story::{Audience, Story};
use hw_tests::world::World;
use std::time::Duration;

/// The controller is killed under a ping, stays away for a while, and is started again.
pub fn controller(world: &World) -> Result<String> {
    let quiet = Story::new(Audience::Tests);
    let seen = ping_during(world, "blue-a", "blue-b", || {
        world.cluster.kill_controller()?;
        std::thread::sleep(Duration::from_secs(3));
        world.cluster.start_controller(&quiet)?;
        for host in &world.cluster.hosts {
            world.cluster.wait_connected(host)?;
        }
        Ok(())
    })?;
    ensure!(seen.lost == 0, "{} pings were lost", seen.lost);
    ensure!(
        seen.longest < Duration::from_secs(1),
        "There was no answer for {:?}",
        seen.longest
    );
    Ok(format!(
        "{} pings answered, none lost, longest gap {:?}",
        seen.answers, seen.longest
    ))
}

/// The agent of h2 is killed; its guest asks for its address again, before and without any other traffic.
pub fn lease_after_kill(world: &World) -> Result<String> {
    let member = world.member("blue-b")?;
    let host = world.host_of("blue-b")?;
    host.kill_agent()?;
    host.start_agent()?;
    let lease = member.guest.dhcp()?;
    ensure!(
        lease.field("ip") == member.ipv4,
        "The lease is for {}",
        lease.field("ip")
    );
    world.expect_ping("blue-b", &world.member("blue-a")?.ipv4, 3)?;
    world.cluster.wait_connected(host)?;
    Ok(format!("{} again", member.ipv4))
}
