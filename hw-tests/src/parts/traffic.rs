//! Part 3: leases, ping across VXLAN, a file over TCP, isolation, a spoofed source.

use crate::story::Story;
use crate::world::World;
use anyhow::{Result, bail};

/// The file that is copied, MiB.
const FILE_MIB: u32 = 16;

/// Shows the traffic of the guests.
pub fn run(world: &World, story: &Story) {
    story.part("3. Traffic");
    for member in &world.members {
        let name = member.guest.name();
        story.holds(
            &format!("{name} gets its lease from the agent of {}", member.host),
            || {
                let lease = member.guest.dhcp()?;
                if lease.field("ip") != member.ipv4 {
                    bail!(
                        "The lease is for {}, and the port has {}",
                        lease.field("ip"),
                        member.ipv4
                    );
                }
                Ok(format!(
                    "{} router {} MTU {}",
                    lease.field("ip"),
                    lease.field("router"),
                    lease.field("mtu")
                ))
            },
        );
    }
    for name in ["blue-a", "blue-b"] {
        story.holds(
            &format!("{name} forms its IPv6 address from the router's advertisement"),
            || {
                let member = world.member(name)?;
                let seen = member.guest.ipv6_addresses()?;
                if !seen.contains(&member.ipv6) {
                    bail!(
                        "The guest has {}, and the port {}",
                        seen.join(" "),
                        member.ipv6
                    );
                }
                Ok(member.ipv6.clone())
            },
        );
    }
    story.holds("ping across VXLAN", || {
        world.expect_ping("blue-a", &world.member("blue-b")?.ipv4, 5)
    });
    story.holds("ping6 across VXLAN", || {
        world.expect_ping("blue-a", &world.member("blue-b")?.ipv6, 5)
    });
    story.holds(
        &format!("a file of {FILE_MIB} MiB copied over TCP has the same checksum"),
        || copy_file(world),
    );
    story.holds(
        "red cannot reach blue, though the addresses overlap",
        || {
            let blue = world.member("blue-b")?.ipv4.clone();
            let red = world.member("red-a")?;
            // Red has its own 10.1.0.0/24: an address of blue's that is nobody's there.
            if red.ipv4 == blue {
                bail!("red-a has the address of blue-b, so this proves nothing");
            }
            let blue_a = &world.member("blue-a")?.ipv4;
            let same = if red.ipv4 == *blue_a {
                format!(", and red-a has blue-a's address {blue_a}")
            } else {
                String::new()
            };
            Ok(format!(
                "{} to {blue}{same}",
                world.expect_silence("red-a", &blue, 3)?
            ))
        },
    );
    story.holds("a spoofed source is dropped, with its reason", || {
        spoof(world, story)
    });
}

/// Copies a file from blue-a to blue-b.
fn copy_file(world: &World) -> Result<String> {
    let fetched = world.fetch(
        "blue-a",
        &world.member("blue-a")?.ipv4,
        "blue-b",
        FILE_MIB << 10,
    )?;
    let rate = FILE_MIB as f32 / fetched.took.as_secs_f32();
    Ok(format!("{rate:.1} MiB/s, SHA-256 {}…", &fetched.sum[..16]))
}

/// blue-a sends with an address that is not its own.
fn spoof(world: &World, story: &Story) -> Result<String> {
    let (from, to) = (world.member("blue-a")?, world.member("blue-b")?);
    let before = world.drops(&from.host, "spoofed-ip")?;
    let forged = "10.1.0.66";
    from.guest
        .expect(&format!("ip addr add {forged}/32 dev eth0"))?;
    let output = from
        .guest
        .run(&format!("ping -c 3 -W 2 -I {forged} {}", to.ipv4));
    from.guest
        .expect(&format!("ip addr del {forged}/32 dev eth0"))?;
    let output = output?;
    if output.ok() || output.text.contains("seq=") {
        bail!("Packets from {forged} were answered: {output}");
    }
    let counted = world.drops(&from.host, "spoofed-ip")? - before;
    world
        .cluster
        .show(story, Some(world.cluster.host(&from.host)?), &["drops"])?;
    if counted < 3 {
        bail!("3 forged packets were sent, and {counted} were counted as spoofed-ip");
    }
    Ok(format!(
        "{counted} packets from {forged} dropped as spoofed-ip"
    ))
}
