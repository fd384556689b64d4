//! Part 4: an agent is killed with -9 under a running ping and started again.

use crate::command::wait_for;
use crate::interruption::{Interruption, measure};
use crate::story::Story;
use crate::world::World;
use anyhow::{Result, bail};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(100);
/// Longer than this without an answer is not "starting again".
const LONGEST: Duration = Duration::from_secs(10);

/// Kills the agent of h1 while blue-a pings blue-b.
pub fn run(world: &World, story: &Story) {
    story.part("4. An agent is killed and started again");
    story.holds("traffic goes on after kill -9 of an agent", || {
        let host = world.host_of("blue-a")?;
        let seen = ping_during(world, "blue-a", "blue-b", || {
            host.kill_agent()?;
            story.command(
                &host.name,
                "kill -9 $(pidof ferrovia-agent); ferrovia-agent run &",
                "",
            );
            host.start_agent()
        })?;
        if seen.longest > LONGEST {
            bail!(
                "The longest time without an answer was {:.1} s",
                seen.longest.as_secs_f32()
            );
        }
        Ok(format!(
            "interrupted for {:.2} s; {} pings answered, {} lost",
            seen.longest.as_secs_f32(),
            seen.answers,
            seen.lost
        ))
    });
    story.holds("the controller sees the agent again", || {
        world.cluster.wait_connected(world.host_of("blue-a")?)?;
        world.wait_ready()?;
        Ok("all ports are ready, all guests connected".into())
    });
}

/// Does `work` while `from` pings `to` ten times a second, and returns what the ping saw.
pub fn ping_during(
    world: &World,
    from: &str,
    to: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<Interruption> {
    let target = world.member(to)?.ipv4.clone();
    let guest = &world.member(from)?.guest;
    guest.spawn(&format!("ping -i 0.1 {target}"), "/tmp/ping.log")?;
    wait_for(
        "a first answer to the ping",
        Duration::from_secs(20),
        || {
            let seen = guest.expect("grep -c seq= /tmp/ping.log || true")?;
            if seen.trim().parse::<u32>().unwrap_or(0) < 5 {
                bail!("{} so far", seen.trim())
            } else {
                Ok(())
            }
        },
    )?;
    let result = work();
    let before: u32 = guest
        .expect("grep -c seq= /tmp/ping.log || true")?
        .trim()
        .parse()
        .unwrap_or(0);
    let again = wait_for(
        "answers after the interruption",
        Duration::from_secs(30),
        || {
            let seen: u32 = guest
                .expect("grep -c seq= /tmp/ping.log || true")?
                .trim()
                .parse()
                .unwrap_or(0);
            if seen < before + 20 {
                bail!("{} more so far", seen.saturating_sub(before))
            } else {
                Ok(())
            }
        },
    );
    guest.run("killall -INT ping; sleep 1")?;
    let log = guest.expect("cat /tmp/ping.log")?;
    result?;
    again?;
    measure(&log, INTERVAL)
}
