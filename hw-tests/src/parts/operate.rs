//! Part 5: what an operator sees: ports, flows with their homes, counters and drops.

use crate::story::Story;
use crate::world::World;
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Prints what the command line shows, and checks that it fits what happened.
pub fn run(world: &World, story: &Story) {
    story.part("5. What an operator sees");
    story.holds("ports, with their guests", || {
        world.cluster.show(story, None, &["port", "list"])?;
        let ports = list(world, None, &["port", "list"])?;
        for member in &world.members {
            if !ports
                .iter()
                .any(|p| p["name"] == member.port.as_str() && p["state"] == "ready")
            {
                bail!("\"{}\" is not listed as ready", member.port);
            }
        }
        Ok(format!("{} ports", ports.len()))
    });
    story.holds(
        "flows live in the home \"software\", with their packets",
        || {
            // Traffic of now: an agent that was killed starts with an empty table.
            world.expect_ping("blue-a", &world.member("blue-b")?.ipv4, 3)?;
            let host = world.host_of("blue-a")?;
            world
                .cluster
                .show(story, Some(host), &["flow", "list", "--limit", "12"])?;
            let flows = list(world, Some("h1"), &["flow", "list"])?;
            if flows.is_empty() || flows.iter().any(|f| f["home"] != "software") {
                bail!("The flows are {flows:?}");
            }
            if !flows.iter().any(|f| f["packets"].as_u64() > Some(0)) {
                bail!("No flow has counted a packet");
            }
            Ok(format!("{} flows on {}", flows.len(), host.name))
        },
    );
    story.holds("why no other home is available here", || {
        let status = world
            .cluster
            .show(story, Some(world.host_of("blue-a")?), &["status"])?;
        if !status.contains("software") || !status.contains("nic") {
            bail!("`ferrovia status` does not speak of the homes: {status}");
        }
        Ok("kernel and nic each with a reason".into())
    });
    story.holds("counters of the uplink and each port", || {
        let text = world
            .cluster
            .show(story, Some(world.host_of("blue-a")?), &["counters"])?;
        if !text.contains("uplink") {
            bail!("`ferrovia counters` does not show the uplink");
        }
        Ok(format!("{} lines", text.lines().count()))
    });
    story.holds("what would happen to a packet, and why", || {
        let from = world.member("blue-a")?;
        let to = world.member("blue-b")?.ipv4.clone();
        let text = world.cluster.show(
            story,
            Some(world.host_of("blue-a")?),
            &["flow", "trace", &from.port, "--dst", &to],
        )?;
        if !text.contains("=>") {
            bail!("`ferrovia flow trace` gave no verdict: {text}");
        }
        Ok(text.lines().last().unwrap_or_default().trim().to_owned())
    });
}

fn list(world: &World, host: Option<&str>, args: &[&str]) -> Result<Vec<Value>> {
    let host = host.map(|h| world.cluster.host(h)).transpose()?;
    let value = world.cluster.json(host, args)?;
    Ok(value
        .as_array()
        .with_context(|| format!("`ferrovia {} -o json` printed no list", args.join(" ")))?
        .clone())
}
