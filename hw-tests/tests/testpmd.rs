//! DPDK's own virtio driver, unmodified, on the ports of an agent that runs alone from its file: in client and
//! in server mode, with one and two queue pairs, and after either side was killed and started again.
//!
//! Needs root and the programs of the workspace (`cargo build --workspace`).

use anyhow::{Context, Result, ensure};
use hw_tests::alone::Alone;
use hw_tests::testpmd::{Config, Testpmd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bursts of 32 packets on each queue: at most 128 packets, which any ring of 256 can hold.
const BURSTS: u64 = 2;

/// Each testpmd polls: more than two at a time would only wait for each other.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An agent, and what the guests on its two ports are like.
struct Host {
    alone: Alone,
    queues: u16,
    packed: bool,
}

impl Host {
    fn start(mode: &'static str, queues: u16, packed: bool) -> Result<Host> {
        Ok(Host {
            alone: Alone::start(mode, queues)?,
            queues,
            packed,
        })
    }

    /// A testpmd on each of the two ports, both with a link.
    fn guests(&self) -> Result<(Testpmd, Testpmd)> {
        let mut a = self.testpmd(self.guest("a"))?;
        let mut b = self.testpmd(self.guest("b"))?;
        a.wait_link()?;
        b.wait_link()?;
        Ok((a, b))
    }

    fn testpmd(&self, config: Config) -> Result<Testpmd> {
        Testpmd::start(self.alone.run(), config)
    }

    fn guest(&self, port: &str) -> Config {
        let (own, peer) = if port == "a" { (10, 11) } else { (11, 10) };
        Config {
            name: format!("testpmd-{port}"),
            socket: self.alone.socket(port),
            // One of the two makes the socket.
            server: self.alone.guests_listen(),
            queues: self.queues,
            packed: self.packed,
            mac: Alone::mac(own),
            address: [10, 0, 0, own].into(),
            peer_mac: Alone::mac(peer),
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
    let mut host = Host::start("server", queues, packed)?;
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("at first")?;

    let config = b.kill();
    let mut b = host.testpmd(config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd was killed")?;

    let config = b.quit()?;
    let mut b = host.testpmd(config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd had ended well")?;

    host.alone.kill_agent()?;
    host.alone.start_agent()?;
    a.kill();
    b.kill();
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("after the agent was killed")
}

/// Everything with the agent's sockets as clients: whoever was killed, the other goes on by itself.
fn with_the_agent_as_client(queues: u16, packed: bool) -> Result<()> {
    let _turn = one_at_a_time();
    let mut host = Host::start("client", queues, packed)?;
    let (mut a, mut b) = host.guests()?;
    exchange(&mut a, &mut b).context("at first")?;

    let config = b.kill();
    let mut b = host.testpmd(config)?;
    b.wait_link()?;
    exchange(&mut a, &mut b).context("after testpmd was killed")?;

    for time in 1..=3 {
        host.alone.kill_agent()?;
        host.alone.start_agent()?;
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
    let host = Host::start("server", 2, false)?;
    let mut b = host.testpmd(host.guest("b"))?;
    b.receive()?;
    let mut used = [false; 2];
    for udp_port in 9..25 {
        let mut a = host.testpmd(Config {
            udp_port,
            ..host.guest("a")
        })?;
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
    let host = Host::start("server", 1, false)?;
    let (a, mut b) = host.guests()?;
    let config = a.quit()?;
    b.receive()?;
    let mut spoofing = host.testpmd(Config {
        address: [10, 0, 0, 99].into(),
        ..config.clone()
    })?;
    spoofing.wait_link()?;
    spoofing.send(BURSTS)?;
    drop(spoofing);
    // An honest one after it: what had passed would have been counted before its packets.
    let mut honest = host.testpmd(config)?;
    honest.wait_link()?;
    one_way(&mut honest, &mut b)?;
    ensure!(b.stats()?.rx_packets == BURSTS * 32, "{:?}", b.stats()?);
    Ok(())
}
