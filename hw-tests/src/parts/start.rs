//! Part 1: a controller and two hosts.

use crate::story::Story;
use crate::world::World;
use anyhow::{Context, Result};

/// Starts the controller, and both agents with join tokens.
pub fn run(world: &World, story: &Story) -> Result<()> {
    story.part("1. A controller and two hosts");
    story.say(&format!(
        "{}, guests run by {}\nunderlay: a switch with a veth link to each host, MTU {}",
        world.libvirt.version,
        world.accel,
        world.cluster.underlay().mtu()
    ));
    let started = story.holds("the controller serves its API over mutual TLS", || {
        world.cluster.start_controller(story)?;
        Ok("the CA and an operator's certificate are made".into())
    });
    for host in &world.cluster.hosts {
        story.holds(
            &format!(
                "the agent of {} joins with a token and is in step",
                host.name
            ),
            || {
                world.cluster.join(host, story)?;
                Ok(format!("VTEP {}", host.address))
            },
        );
    }
    let _ = world.cluster.show(story, None, &["host", "list"]);
    started
        .then_some(())
        .context("There is no controller, so nothing else can be shown")
}
