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
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// The network that it is attached to.
    pub network: &'a str,
    /// The host that serves it.
    pub host: &'a str,
    /// What it is made of.
    pub shape: Shape,
    /// More options of `ferrovia vm attach`.
    pub options: &'a [&'a str],
    /// Attached while it is shut off, and started then; the others are attached while they run.
    pub cold: bool,
}

impl<'a> Place<'a> {
    /// An ordinary guest, attached while it runs.
    pub fn live(name: &'a str, network: &'a str, host: &'a str) -> Place<'a> {
        Place {
            name,
            network,
            host,
            shape: Shape::default(),
            options: &[],
            cold: false,
        }
    }
}

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
        .map(|(name, network, host)| Place::live(name, network, host))
        .collect();
    places.extend(more.iter().cloned());
    let guests = boot(world, story, &places).context("Without guests nothing else can be shown")?;
    for (place, guest) in places.iter().zip(guests) {
        let Place {
            name,
            network,
            host,
            ..
        } = place;
        let how = if place.cold {
            "before it starts"
        } else {
            "while it runs"
        };
        story.holds(
            &format!("{name} is attached to {network} on {host} {how}"),
            || {
                world.attach(story, guest, network, host, place.options)?;
                let member = world.member(name)?;
                if place.cold {
                    member.guest.start()?;
                    member.guest.wait_until_up()?;
                }
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
        world.wait_ready()?;
        world.cluster.show(story, None, &["port", "list"])?;
        Ok(format!("{} ports", world.members.len()))
    });
    Ok(())
}

fn boot(world: &World, story: &Story, places: &[Place<'_>]) -> Option<Vec<Guest>> {
    let names: Vec<&str> = places.iter().filter(|p| !p.cold).map(|p| p.name).collect();
    story.say(&format!(
        "booting {} through libvirt, all at once …",
        names.join(", ")
    ));
    story.check(&format!("{} guests boot in libvirt", names.len()), || {
        let start = Instant::now();
        let guests: Vec<Guest> = places
            .iter()
            .map(|place| world.define(place.name, &place.shape))
            .collect::<Result<_>>()?;
        let warm = || {
            places
                .iter()
                .zip(&guests)
                .filter(|(place, _)| !place.cold)
                .map(|(_, guest)| guest)
        };
        warm().try_for_each(Guest::start)?;
        warm().try_for_each(Guest::wait_until_up)?;
        let word = format!(
            "Linux {} by {}, up after {:.1} s",
            world.image.release,
            world.accel.domain_type(),
            start.elapsed().as_secs_f32()
        );
        Ok((guests, word))
    })
}
