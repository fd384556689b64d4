//! The world of the demo and of the tests: two hosts, the networks `blue` and `red`, and guests in them.

use crate::accel::Accel;
use crate::cluster::{Cluster, Host};
use crate::command::wait_for;
use crate::guest::{Guest, Shape};
use crate::image::Image;
use crate::libvirt::Libvirt;
use crate::run::Run;
use crate::story::Story;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of IP packet on the underlay.
pub const UNDERLAY_MTU: u16 = 9000;
/// The prefix that both networks use, each for itself.
pub const PREFIX: &str = "10.1.0.0/24";
/// Blue's IPv6 prefix.
pub const PREFIX6: &str = "fd00:b1::/64";
/// The gateway of [`PREFIX`].
pub const GATEWAY: &str = "10.1.0.1";
/// The gateway of [`PREFIX6`].
pub const GATEWAY6: &str = "fd00:b1::1";

/// A guest with its place in the world.
#[derive(Debug)]
pub struct Member {
    /// The guest.
    pub guest: Guest,
    /// The host that serves it.
    pub host: String,
    /// Its network.
    pub network: String,
    /// Its port.
    pub port: String,
    /// Its MAC address.
    pub mac: String,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Its IPv6 address; empty in a network without.
    pub ipv6: String,
}

/// A file that arrived whole.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its SHA-256, in hexadecimal digits.
    pub sum: String,
    /// How long the transfer took.
    pub took: Duration,
}

/// Everything. Guests go first when it is dropped.
#[derive(Debug)]
pub struct World {
    /// The guests, by the order in which they were attached.
    pub members: Vec<Member>,
    /// Hosts and controller.
    pub cluster: Cluster,
    /// How guests run.
    pub accel: Accel,
    /// The guests' image.
    pub image: Image,
    /// libvirt.
    pub libvirt: Libvirt,
}

impl World {
    /// An underlay with places for a controller and two hosts, and libvirt; nothing of ours runs yet.
    pub fn new(run: &Run) -> Result<World> {
        let image = Image::make(run)?;
        let accel = Accel::probe(&image);
        let libvirt = Libvirt::connect(run)?;
        let cluster = Cluster::new(run, 2, UNDERLAY_MTU)?;
        Ok(World {
            members: Vec::new(),
            cluster,
            accel,
            image,
            libvirt,
        })
    }

    /// Defines a guest, without an interface yet and shut off.
    pub fn define(&self, name: &str, shape: &Shape) -> Result<Guest> {
        Guest::define(self.cluster.run(), name, &self.image, &self.accel, shape)
    }

    /// `ferrovia vm attach` on `host`, and the guest becomes a member.
    pub fn attach(
        &mut self,
        story: &Story,
        guest: Guest,
        network: &str,
        host: &str,
        more: &[&str],
    ) -> Result<()> {
        let name = format!("{}-{network}", guest.domain());
        let base = ["vm", "attach", guest.domain(), "--network", network];
        let args = [&base[..], more].concat();
        self.cluster
            .show(story, Some(self.cluster.host(host)?), &args)?;
        let port = self.cluster.json(None, &["port", "show", &name])?;
        let text = |field: &str| port[field].as_str().unwrap_or_default().to_owned();
        let addresses: Vec<&str> = port["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str())
            .collect();
        let of = |six: bool| {
            addresses
                .iter()
                .find(|a| a.contains(':') == six)
                .map_or(String::new(), |a| (*a).to_owned())
        };
        self.members.push(Member {
            mac: text("mac"),
            ipv4: of(false),
            ipv6: of(true),
            host: host.into(),
            network: network.into(),
            port: name,
            guest,
        });
        Ok(())
    }

    /// The member whose guest has this name.
    pub fn member(&self, name: &str) -> Result<&Member> {
        let found = self.members.iter().find(|m| m.guest.name() == name);
        found.with_context(|| format!("The guest \"{name}\" was never attached"))
    }

    /// The host that serves a member.
    pub fn host_of(&self, name: &str) -> Result<&Host> {
        self.cluster.host(&self.member(name)?.host)
    }

    /// Waits until the port of every guest is ready, with its guest connected.
    pub fn wait_ready(&self) -> Result<()> {
        wait_for(
            "the port of every guest being ready",
            Duration::from_secs(30),
            || {
                let ports = self.cluster.json(None, &["port", "list"])?;
                for member in &self.members {
                    let port = ports
                        .as_array()
                        .into_iter()
                        .flatten()
                        .find(|p| p["name"] == member.port.as_str());
                    match port {
                        Some(port)
                            if port["state"] == "ready" && port["guest_connected"] == true => {}
                        Some(port) => bail!("Not this one: {port}"),
                        None => bail!("\"{}\" is not listed", member.port),
                    }
                }
                Ok(())
            },
        )
    }

    /// Packets that `host` dropped for `reason` so far.
    pub fn drops(&self, host: &str, reason: &str) -> Result<u64> {
        let rows = self
            .cluster
            .json(Some(self.cluster.host(host)?), &["drops"])?;
        let all = rows
            .as_array()
            .context("`ferrovia drops -o json` printed no list")?;
        let of = |host_row: bool| {
            all.iter()
                .filter(|row| row["reason"] == reason && (row["port"] == "host") == host_row)
                .filter_map(|row| row["packets"].as_u64())
                .sum::<u64>()
        };
        // The host's own row is the sum of all; not every reason has it.
        Ok(of(true).max(of(false)))
    }

    /// Fails unless `from` gets an answer to each of `count` pings.
    pub fn expect_ping(&self, from: &str, to: &str, count: u32) -> Result<String> {
        let guest = &self.member(from)?.guest;
        // The first packet of a conversation may wait for the underlay's neighbours.
        let output = guest.run(&crate::guest::ping_command(to, count, 56))?;
        let answered = output.text.matches("seq=").count();
        if !output.ok() || answered != count as usize {
            bail!("{answered} of {count} pings were answered: {output}");
        }
        let times = output
            .text
            .lines()
            .find(|l| l.contains("round-trip"))
            .and_then(|l| l.split('=').nth(1));
        Ok(format!(
            "{count} of {count} answered, min/avg/max {}",
            times.unwrap_or(" ?").trim()
        ))
    }

    /// `to` fetches a file of `kib` KiB over HTTP from `from`, which it reaches by `address`, and compares its
    /// SHA-256. HTTP carries the length, so that a file that was cut off does not pass for a whole one.
    pub fn fetch(&self, from: &str, address: &str, to: &str, kib: u32) -> Result<Fetched> {
        let (from, to) = (&self.member(from)?.guest, &self.member(to)?.guest);
        let limit = Duration::from_secs(120);
        let make = format!(
            "dd if=/dev/urandom of=/tmp/file bs=1k count={kib} 2>/dev/null && sha256sum < /tmp/file"
        );
        let made = from.run_for(&make, limit)?;
        let sum = made
            .text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        if !made.ok() || sum.len() != 64 {
            bail!("The file could not be made: {made}");
        }
        from.expect(
            "httpd -p 9000 -h /tmp && until netstat -ltn | grep -q :9000; do usleep 100000; done",
        )?;
        let place = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let start = Instant::now();
        let fetched = to.run_for(
            &format!("wget -q -O /tmp/file http://{place}:9000/file"),
            limit,
        );
        let took = start.elapsed();
        from.expect("killall httpd; rm -f /tmp/file")?;
        let fetched = fetched?;
        let received = to.run_for(
            "wc -c < /tmp/file; sha256sum < /tmp/file; rm -f /tmp/file",
            limit,
        )?;
        let bytes = u64::from(kib) << 10;
        if !fetched.ok()
            || !received.text.starts_with(&format!("{bytes}\n"))
            || !received.text.contains(&sum)
        {
            bail!(
                "{bytes} bytes with SHA-256 {sum} were offered, and what arrived is {} ({fetched})",
                received.text.trim()
            );
        }
        Ok(Fetched { sum, took })
    }

    /// Fails if `from` gets any answer.
    pub fn expect_silence(&self, from: &str, to: &str, count: u32) -> Result<String> {
        let output = self
            .member(from)?
            .guest
            .run(&crate::guest::ping_command(to, count, 56))?;
        if output.ok() || output.text.contains("seq=") {
            bail!("There was an answer: {output}");
        }
        Ok(format!("none of {count} pings was answered"))
    }

    /// The commands for a person who looks around in a world that was kept.
    pub fn how_to_enter(&self) -> Result<String> {
        let mut text = String::new();
        for host in &self.cluster.hosts {
            let command: Command = self.cluster.command(Some(host), &["status"])?;
            let envs: Vec<String> = command
                .get_envs()
                .filter_map(|(k, v)| {
                    Some(format!("{}={}", k.to_string_lossy(), v?.to_string_lossy()))
                })
                .collect();
            text.push_str(&format!(
                "sudo env {} {}\n",
                envs.join(" "),
                crate::command::shown(&command)
            ));
        }
        Ok(text)
    }
}
