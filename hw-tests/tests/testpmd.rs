//! DPDK's own virtio driver, unmodified, on the ports of an agent that runs alone from its file: in client and
//! in server mode, with one and two queue pairs, and after either side was killed and started again.
//!
//! Needs root and the programs of the workspace (`cargo build --workspace`).

use anyhow::{Context, Result, ensure};
use hw_tests::cluster::program;
use hw_tests::command;
use hw_tests::process::Daemon;
use hw_tests::run::Run;
use hw_tests::testpmd::{Config, Testpmd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Bursts of 32 packets on each queue: at most 128 packets, which any ring of 256 can hold.
const BURSTS: u64 = 2;

/// Each testpmd polls: more than two at a time would only wait for each other.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An agent without a controller and without an underlay, with the ports `a` and `b` in one network.
struct Alone {
    root: PathBuf,
    mode: &'static str,
    queues: u16,
    packed: bool,
    agent: Option<Daemon>,
    run: Run,
}

impl Alone {
    fn start(mode: &'static str, queues: u16, packed: bool) -> Result<Alone> {
        let run = Run::start()?;
        let root = run.subdir("alone")?;
        let port = |name: &str, last: u8| {
            format!(
                "[[port]]\nname = \"{name}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:{last:02x}\"\n\
                 addresses = [\"10.0.0.{last}\"]\nqueue_pairs = {queues}\nmode = \"{mode}\"\n"
            )
        };
        let text = format!(
            "host = \"alone\"\n[dataplane]\nworkers = 1\nmemory_mb = 192\nhugepages = \"never\"\n\
             [[network]]\nname = \"blue\"\nvni = 100\nsubnets = [{{ cidr = \"10.0.0.0/24\" }}]\n{}{}",
            port("a", 10),
            port("b", 11)
        );
        std::fs::create_dir_all(root.join("etc/ferrovia"))?;
        std::fs::write(root.join("etc/ferrovia/agent.toml"), text)?;
        let mut alone = Alone {
            root,
            mode,
            queues,
            packed,
            agent: None,
            run,
        };
        alone.start_agent()?;
        Ok(alone)
    }

    fn start_agent(&mut self) -> Result<()> {
        let mut command = Command::new(program("ferrovia-agent")?);
        command.args(["run", "--root"]).arg(&self.root);
        let agent = Daemon::start(&self.run, "agent", &mut command)?;
        let answers = self.root.join("run/ferrovia/agent.sock");
        let sockets = [self.socket("a"), self.socket("b")];
        let wait_for_sockets = self.mode == "server";
        command::wait_for("the start of the agent", LIMIT, || {
            agent.check()?;
            UnixStream::connect(&answers)?;
            if wait_for_sockets {
                for socket in &sockets {
                    // A killed agent's socket file is still there; only a connection tells it from a new one.
                    UnixStream::connect(socket)
                        .with_context(|| format!("\"{}\" is not served", socket.display()))?;
                }
            }
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

    fn socket(&self, port: &str) -> PathBuf {
        self.root.join(format!("run/ferrovia/vhost/{port}.sock"))
    }

    /// A testpmd on each of the two ports, both with a link.
    fn guests(&self) -> Result<(Testpmd, Testpmd)> {
        let mut a = Testpmd::start(&self.run, self.guest("a"))?;
        let mut b = Testpmd::start(&self.run, self.guest("b"))?;
        a.wait_link()?;
        b.wait_link()?;
        Ok((a, b))
    }

    fn guest(&self, port: &str) -> Config {
        let (own, peer) = if port == "a" { (10, 11) } else { (11, 10) };
        let mac = |last: u8| format!("52:54:00:00:00:{last:02x}");
        Config {
            name: format!("testpmd-{port}"),
            socket: self.socket(port),
            // One of the two makes the socket.
            server: self.mode == "client",
            queues: self.queues,
            packed: self.packed,
            mac: mac(own),
            address: [10, 0, 0, own].into(),
            peer_mac: mac(peer),
            peer_address: [10, 0, 0, peer].into(),
            udp_port: 9,
        }
    }
}

/// All packets that one sends arrive at the other, both ways.
fn exchange(a: &mut Testpmd, b: &mut Testpmd) -> Result<()> {
    a.receive()?;
    b.receive()?;
    for _ in 0..2 {
        one_way(a, b)?;
        one_way(b, a)?;
    }
    Ok(())
}

fn one_way(from: &mut Testpmd, to: &mut Testpmd) -> Result<()> {
    let before = to.stats()?;
    let sent = from.send(BURSTS)?;
    to.wait_received(before.rx_packets + sent)?;
    let after = to.stats()?;
    ensure!(
        (after.rx_bytes - before.rx_bytes, after.rx_lost) == (sent * 64, before.rx_lost),
        "{sent} packets of 64 bytes were sent: {before:?}, {after:?}"
    );
    Ok(())
}

/// Everything with the agent's sockets as servers. DPDK's driver does not connect again when the agent goes,
/// so it is started again as well; QEMU in this place would reconnect.
fn with_the_agent_as_server(queues: u16, packed: bool) -> Result<()> {
    let _turn = one_at_a_time();
    let mut host = Alone::start("server", queues, packed)?;
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("at first")?;

    let config = b.kill();
    let mut b = Testpmd::start(&host.run, config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd was killed")?;

    let config = b.quit()?;
    let mut b = Testpmd::start(&host.run, config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd had ended well")?;

    host.kill_agent()?;
    host.start_agent()?;
    a.kill();
    b.kill();
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("after the agent was killed")
}

/// Everything with the agent's sockets as clients: whoever was killed, the other goes on by itself.
fn with_the_agent_as_client(queues: u16, packed: bool) -> Result<()> {
    let _turn = one_at_a_time();
    let mut host = Alone::start("client", queues, packed)?;
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("at first")?;

    let config = b.kill();
    let mut b = Testpmd::start(&host.run, config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd was killed")?;

    for time in 1..=3 {
        host.kill_agent()?;
        host.start_agent()?;
        a.wait_link()?;
        b.wait_link()?;
        exchange(&mut a, &mut b)
            .with_context(|| format!("after the agent was killed {time} times"))?;
    }
    Ok(())
}

#[test]
fn agent_as_server_one_queue_pair() -> Result<()> {
    with_the_agent_as_server(1, false)
}

#[test]
fn agent_as_server_two_queue_pairs() -> Result<()> {
    with_the_agent_as_server(2, false)
}

#[test]
fn agent_as_client_one_queue_pair() -> Result<()> {
    with_the_agent_as_client(1, false)
}

#[test]
fn agent_as_client_two_queue_pairs() -> Result<()> {
    with_the_agent_as_client(2, false)
}

#[test]
fn agent_as_server_two_queue_pairs_packed() -> Result<()> {
    with_the_agent_as_server(2, true)
}

#[test]
fn agent_as_client_two_queue_pairs_packed() -> Result<()> {
    with_the_agent_as_client(2, true)
}

#[test]
fn flows_are_spread_over_the_receive_queues_and_stay_on_theirs() -> Result<()> {
    let _turn = one_at_a_time();
    let host = Alone::start("server", 2, false)?;
    let mut b = Testpmd::start(&host.run, host.guest("b"))?;
    b.receive()?;
    let mut used = [false; 2];
    for udp_port in 9..25 {
        let mut a = Testpmd::start(
            &host.run,
            Config {
                udp_port,
                ..host.guest("a")
            },
        )?;
        a.wait_link()?;
        let before = [b.received_on(0)?, b.received_on(1)?];
        one_way(&mut a, &mut b)?;
        let flow: Vec<usize> = (0..2)
            .filter(|queue| {
                b.received_on(*queue as u16)
                    .is_ok_and(|now| now > before[*queue])
            })
            .collect();
        ensure!(
            flow.len() == 1,
            "the flow of UDP port {udp_port} arrived on the queues {flow:?}"
        );
        used[flow[0]] = true;
        if used == [true; 2] {
            return Ok(());
        }
    }
    anyhow::bail!("16 flows arrived on the queues {used:?}")
}

#[test]
fn packets_with_a_foreign_source_address_do_not_pass() -> Result<()> {
    let _turn = one_at_a_time();
    let host = Alone::start("server", 1, false)?;
    let (a, mut b) = host.guests()?;
    let config = a.quit()?;
    b.receive()?;
    let mut spoofing = Testpmd::start(
        &host.run,
        Config {
            address: [10, 0, 0, 99].into(),
            ..config.clone()
        },
    )?;
    spoofing.wait_link()?;
    spoofing.send(BURSTS)?;
    drop(spoofing);
    // An honest one after it: what had passed would have been counted before its packets.
    let mut honest = Testpmd::start(&host.run, config)?;
    honest.wait_link()?;
    one_way(&mut honest, &mut b)?;
    ensure!(b.stats()?.rx_packets == BURSTS * 32, "{:?}", b.stats()?);
    Ok(())
}
