//! Part 2: two networks with overlapping addresses, and guests in them.

use crate::guest::{Guest, Shape};
use crate::story::Story;
use crate::world::{PREFIX, PREFIX6, World};
use anyhow::{Context, Result, bail};
use std::time::Instant;

/// The guests of the demo: name, network, host.
pub const GUESTS: [(&str, &str, &str); 3] = [
    ("blue-a", "blue", "h1"),
    ("blue-b", "blue", "h2"),
    ("red-a", "red", "h1"),
];

/// A guest with what is needed to attach it.
pub type Place<'a> = (&'a str, &'a str, &'a str, Shape, &'a [&'a str]);

/// Creates the networks, boots the guests, all at once, and attaches each to its network.
pub fn run(world: &mut World, story: &Story, more: &[Place<'_>]) -> Result<()> {
    story.part("2. Two networks and the virtual machines in them");
    story.holds(
        "blue (IPv4 and IPv6) and red (the same addresses) are created",
        || {
            let slaac = format!("{PREFIX6},slaac");
            let blue = [
                "network",
                "create",
                "blue",
                "--subnet",
                PREFIX,
                "--subnet",
                &slaac,
                "--dns",
                "10.1.0.53",
            ];
            world.cluster.show(story, None, &blue)?;
            world.cluster.show(
                story,
                None,
                &["network", "create", "red", "--subnet", PREFIX],
            )?;
            let list = world.cluster.json(None, &["network", "list"])?;
            Ok(format!("{} networks", list.as_array().map_or(0, Vec::len)))
        },
    );
    let mut places: Vec<Place<'_>> = GUESTS
        .iter()
        .map(|(name, network, host)| (*name, *network, *host, Shape::default(), &[][..]))
        .collect();
    places.extend(more.iter().cloned());
    let guests = boot(world, story, &places).context("Without guests nothing else can be shown")?;
    for ((name, network, host, _, options), guest) in places.iter().zip(guests) {
        story.holds(
            &format!("{name} is attached to {network} on {host} while it runs"),
            || {
                world.attach(story, guest, network, host, options)?;
                let member = world.member(name)?;
                let seen = member.guest.wait_for_nic()?;
                if seen != member.mac {
                    bail!(
                        "The guest sees the MAC {seen}, and its port has {}",
                        member.mac
                    );
                }
                Ok(format!(
                    "MAC {seen}, addresses {} {}",
                    member.ipv4, member.ipv6
                ))
            },
        );
    }
    story.holds("every port is ready, with its guest connected", || {
        world.cluster.show(story, None, &["port", "list"])?;
        let ports = world.cluster.json(None, &["port", "list"])?;
        let ports = ports.as_array().context("No list of ports was printed")?;
        if let Some(bad) = ports
            .iter()
            .find(|p| p["state"] != "ready" || p["guest_connected"] != true)
        {
            bail!("Not this one: {bad}");
        }
        Ok(format!("{} ports", ports.len()))
    });
    Ok(())
}

fn boot(world: &World, story: &Story, places: &[Place<'_>]) -> Option<Vec<Guest>> {
    let names: Vec<&str> = places.iter().map(|p| p.0).collect();
    story.say(&format!(
        "booting {} through libvirt, all at once …",
        names.join(", ")
    ));
    story.check(&format!("{} guests boot in libvirt", places.len()), || {
        let start = Instant::now();
        let guests: Vec<Guest> = places
            .iter()
            .map(|(name, _, _, shape, _)| world.boot(name, shape))
            .collect::<Result<_>>()?;
        for guest in &guests {
            guest.wait_until_up()?;
        }
        let word = format!(
            "Linux {} by {}, up after {:.1} s",
            world.image.release,
            world.accel.domain_type(),
            start.elapsed().as_secs_f32()
        );
        Ok((guests, word))
    })
}
