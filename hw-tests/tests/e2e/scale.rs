//! Many ports on one agent, and an agent with nothing to do.

use anyhow::{Context, Result, bail, ensure};
use api::v1;
use hw_tests::command::wait_for;
use hw_tests::world::World;
use std::time::{Duration, Instant};

/// Ports that are created.
const PORTS: u32 = 100;
const NETWORK: &str = "many";

/// Processor time of an agent with connected guests and no traffic.
pub fn idle(world: &World) -> Result<String> {
    const WATCHED: Duration = Duration::from_secs(10);
    let host = world.host_of("blue-a")?;
    // Let what went before come to rest.
    std::thread::sleep(Duration::from_secs(2));
    let before = host.agent_cpu_time()?;
    std::thread::sleep(WATCHED);
    let used = host.agent_cpu_time()?.saturating_sub(before);
    let share = used.as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    ensure!(share < 3.0, "It used {share:.1} % of a core");
    Ok(format!(
        "{share:.1} % of a core over {} s",
        WATCHED.as_secs()
    ))
}

/// Creates the ports through the API and waits until the agent reports each ready.
pub fn hundred_ports(world: &World) -> Result<String> {
    let start = Instant::now();
    world.cluster.api(async |mut client| {
        let subnets = vec![v1::Subnet {
            cidr: "10.9.0.0/16".into(),
            ..Default::default()
        }];
        let network = v1::CreateNetworkRequest {
            name: NETWORK.into(),
            subnets,
            ..Default::default()
        };
        client.create_network(network).await?;
        for number in 1..=PORTS {
            let port = v1::CreatePortRequest {
                name: format!("many-{number}"),
                network: NETWORK.into(),
                host: "h1".into(),
                ..Default::default()
            };
            client
                .create_port(port)
                .await
                .with_context(|| format!("Port {number} was refused"))?;
        }
        Ok(())
    })?;
    let created = start.elapsed();
    wait_ready(world)?;
    Ok(format!(
        "created in {:.1} s, ready after {:.1} s",
        created.as_secs_f32(),
        start.elapsed().as_secs_f32()
    ))
}

/// Kills their agent; each must be ready again, with the socket that a guest would connect to.
pub fn all_back(world: &World) -> Result<String> {
    let host = world.cluster.host("h1")?;
    host.kill_agent()?;
    let start = Instant::now();
    host.start_agent()?;
    world.cluster.wait_connected(host)?;
    let sockets = wait_ready(world)?;
    let took = start.elapsed();
    for socket in &sockets {
        std::os::unix::net::UnixStream::connect(socket)
            .with_context(|| format!("Nobody listens on \"{socket}\""))?;
    }
    Ok(format!(
        "{} ports after {:.1} s",
        sockets.len(),
        took.as_secs_f32()
    ))
}

/// The guests that were connected all the time.
pub fn guests_after(world: &World) -> Result<String> {
    world.wait_ready()?;
    world.expect_ping("blue-a", &world.member("blue-b")?.ipv4, 3)?;
    world.expect_ping("blue-c", &world.member("blue-b")?.ipv6, 3)
}

/// Waits until each port is ready, and returns the sockets.
fn wait_ready(world: &World) -> Result<Vec<String>> {
    wait_for("every port being ready", Duration::from_secs(60), || {
        let ports = world
            .cluster
            .json(None, &["port", "list", "--network", NETWORK])?;
        let ports = ports
            .as_array()
            .context("`ferrovia port list -o json` printed no list")?;
        let ready = ports.iter().filter(|p| p["state"] == "ready").count();
        if ready != PORTS as usize {
            let other = ports.iter().find(|p| p["state"] != "ready");
            bail!("{ready} of {PORTS} are ready; not ready: {other:?}");
        }
        Ok(ports
            .iter()
            .filter_map(|p| p["socket"].as_str().map(str::to_owned))
            .collect())
    })
}
