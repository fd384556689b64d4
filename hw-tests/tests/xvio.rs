//! Relays as an operator makes them: `ferrovia xvio` against a real agent, DPDK's virtio driver as the guests, and
//! the two ends of one wire as the far sides, one with af_packet, one with AF_XDP.
//!
//! Needs root and the programs of the workspace (`cargo build --workspace`).

use anyhow::{Context, Result, bail, ensure};
use hw_tests::cluster::program;
use hw_tests::command::{self, Finished};
use hw_tests::netns::Netns;
use hw_tests::process::Daemon;
use hw_tests::run::Run;
use hw_tests::testpmd::{Config, Testpmd};
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const BURSTS: u64 = 2;

/// An agent in a namespace, whose guests listen on their sockets, so that they outlive it.
struct Host {
    root: PathBuf,
    agent: Option<Daemon>,
    netns: Netns,
    run: Run,
}

impl Host {
    fn start() -> Result<Host> {
        let run = Run::start()?;
        let root = run.subdir("xvio")?;
        let netns = Netns::new(&run, "xvio")?;
        command::output(
            netns
                .command("sysctl")
                .args(["-qw", "net.ipv6.conf.default.disable_ipv6=1"]),
            LIMIT,
        )?;
        std::fs::create_dir_all(root.join("etc/ferrovia"))?;
        std::fs::write(
            root.join("etc/ferrovia/agent.toml"),
            "host = \"xvio\"\n[dataplane]\nworkers = 2\nmemory_mb = 256\nbuffers = 8192\nhugepages = \"never\"\n",
        )?;
        let mut host = Host {
            root,
            agent: None,
            netns,
            run,
        };
        host.wire()?;
        host.start_agent()?;
        Ok(host)
    }

    fn wire(&self) -> Result<()> {
        self.netns
            .ip(&["link", "add", "p0", "type", "veth", "peer", "name", "w0"])?;
        self.netns.ip(&["link", "set", "p0", "up"])?;
        self.netns.ip(&["link", "set", "w0", "up"])?;
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        let mut command = self.netns.command(program("ferrovia-agent")?);
        command.args(["run", "--root"]).arg(&self.root);
        let agent = Daemon::start(&self.run, "agent", &mut command)?;
        let answers = self.root.join("run/ferrovia/agent.sock");
        command::wait_for("the start of the agent", LIMIT, || {
            agent.check()?;
            UnixStream::connect(&answers)?;
            Ok(())
        })
        .with_context(|| format!("The agent's last words:\n{}", agent.log_tail(20)))?;
        self.agent = Some(agent);
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .context("The agent is not running")?
            .kill();
        Ok(())
    }

    fn cli(&self, args: &str) -> Result<Finished> {
        let mut command = Command::new(program("ferrovia")?);
        command.arg("--root").arg(&self.root).arg("xvio");
        command::run(command.args(args.split_whitespace()), LIMIT)
    }

    fn ok(&self, args: &str) -> Result<String> {
        let done = self.cli(args)?;
        ensure!(done.status.success(), "xvio {args}: {done:?}");
        Ok(done.stdout)
    }

    fn json(&self, args: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&format!("{args} -o json"))?)?)
    }

    fn refused(&self, args: &str, code: i32, said: &str) -> Result<()> {
        let done = self.cli(args)?;
        ensure!(
            done.status.code() == Some(code) && done.stderr.contains(said),
            "xvio {args}: {done:?}"
        );
        Ok(())
    }

    fn until(&self, relay: &str, state: &str) -> Result<Value> {
        command::wait_for(&format!("{relay} to be {state}"), LIMIT, || {
            let now = self.json(&format!("show {relay}"))?;
            if now["state"] == state {
                return Ok(now);
            }
            bail!("{} {}", now["state"], now["reason"])
        })
    }

    fn guest(&self, name: &str) -> Result<Testpmd> {
        let (own, peer) = if name == "a" { (1, 2) } else { (2, 1) };
        let mac = |last: u8| format!("52:54:00:00:00:{last:02x}");
        let guest = Testpmd::start(
            &self.run,
            Config {
                name: format!("testpmd-{name}"),
                socket: self.root.join(format!("run/ferrovia/vhost/{name}.sock")),
                server: true,
                queues: 1,
                packed: false,
                mac: mac(own),
                address: [10, 0, 0, own].into(),
                peer_mac: mac(peer),
                peer_address: [10, 0, 0, peer].into(),
                udp_port: 9,
            },
        )?;
        Ok(guest)
    }
}

/// Every packet that one sends arrives at the other.
fn one_way(from: &mut Testpmd, to: &mut Testpmd) -> Result<()> {
    to.receive()?;
    let before = to.stats()?;
    let sent = from.send(BURSTS)?;
    to.wait_received(before.rx_packets + sent)
}

#[test]
fn relays_are_made_watched_moved_and_removed_with_the_command() -> Result<()> {
    let mut host = Host::start()?;
    const A: &str = "add a --mac 52:54:00:00:00:01 --device net_af_packet1,iface=p0 --socket-mode agent-connects";
    const B: &str =
        "add b --mac 52:54:00:00:00:02 --device net_af_xdp1,iface=w0 --socket-mode agent-connects";
    ensure!(host.ok("list")?.contains("There are no relays."));
    for add in [A, B, A] {
        host.ok(add)?;
    }
    host.refused(&format!("{A} --mtu 1400"), 4, "other settings")?;
    host.refused("add c --mac 52:54:00:00:00:03 --device tap0", 2, "net_tap0")?;
    host.refused(
        "add c --mac 52:54:00:00:00:03 --device net_null1 --queue-size 100",
        2,
        "power of two",
    )?;
    host.refused("add c --mac 52:54:00:00:00:03", 2, "--vf")?;
    host.refused(
        "add c --mac 52:54:00:00:00:03 --vf 0000:7b:02.1",
        4,
        "0000:7b:02.1",
    )?;
    host.refused("show c", 3, "xvio list")?;
    let listed = host.json("list")?;
    ensure!(listed.as_array().map(Vec::len) == Some(2), "{listed}");

    let (mut a, mut b) = (host.guest("a")?, host.guest("b")?);
    let exchange = |a: &mut Testpmd, b: &mut Testpmd, when: &'static str| -> Result<()> {
        let both = one_way(a, b).and_then(|()| one_way(b, a));
        both.context(when)
    };
    host.until("a", "relaying")?;
    host.until("b", "relaying")?;
    exchange(&mut a, &mut b, "at first")?;
    let shown = host.json("show a")?;
    ensure!(shown["running"]["driver"] == "net_af_packet", "{shown}");
    let sent = BURSTS * 32;
    ensure!(
        shown["queues"][0]["from_guest"]["packets"] == sent,
        "{shown}"
    );
    ensure!(shown["queues"][0]["to_guest"]["packets"] == sent, "{shown}");
    ensure!(host.json("show b")?["running"]["driver"] == "net_af_xdp");

    for worker in [1, 0] {
        host.ok(&format!("move a --worker {worker}"))?;
        ensure!(host.json("show a")?["worker"] == worker);
        exchange(&mut a, &mut b, "after a move")?;
    }
    host.refused("move a --worker 7", 2, "0 to 1")?;
    let top = host.ok("top a --interval 0.2 --count 2")?;
    ensure!(
        top.matches("NAME").count() == 2 && top.contains("relaying"),
        "{top}"
    );

    host.kill_agent()?;
    host.start_agent()?;
    for relay in ["a", "b"] {
        host.until(relay, "relaying")?;
    }
    exchange(&mut a, &mut b, "after the agent was killed")?;

    host.netns.ip(&["link", "del", "p0"])?;
    host.until("a", "waiting-for-device")?;
    host.until("b", "waiting-for-device")?;
    ensure!(
        a.link()? && b.link()?,
        "the guests have a link all the time"
    );
    host.wire()?;
    for relay in ["a", "b"] {
        host.until(relay, "relaying")?;
    }
    exchange(&mut a, &mut b, "after the wire came back")?;

    for name in ["a", "b"] {
        host.ok(&format!("remove {name}"))?;
        ensure!(
            host.ok(&format!("remove {name}"))?
                .contains("There was no relay")
        );
    }
    ensure!(host.ok("list")?.contains("There are no relays."));
    Ok(())
}
