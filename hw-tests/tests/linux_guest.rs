//! A real Linux guest on ports of `xvio`: bulk TCP both ways under each set of features, jumbo frames over four
//! queues, a reboot, and an agent that is killed ten times under load. Every byte is checked.
//!
//! Needs root, QEMU, and the programs of the workspace (`cargo build --workspace`).

use anyhow::{Context, Result, ensure};
use hw_tests::accel::Accel;
use hw_tests::alone::Alone;
use hw_tests::command;
use hw_tests::image::Image;
use hw_tests::interruption::measure;
use hw_tests::netns::Netns;
use hw_tests::qemu::{Nic, Parts, Qemu};
use hw_tests::run::Run;
use hw_tests::stream::Streams;
use hw_tests::switch::{Port, Switch};
use std::time::Duration;

const ADDRESS: &str = "10.9.0.1";
const LIMIT: Duration = Duration::from_secs(60);

fn parts(run: &Run, name: &str, nic: Nic, cpus: u32) -> Result<Parts> {
    let image = Image::make(run)?;
    Ok(Parts {
        name: name.into(),
        accel: Accel::probe(&image),
        image,
        memory_mb: 128,
        cpus,
        nic,
    })
}

/// A guest on a port of a switch in this process, with these properties of its device: TCP both ways, and once
/// more after a reboot.
fn exchange(properties: &[&str], queues: u16, mtu: u16, reboot: bool) -> Result<()> {
    let run = Run::start()?;
    let netns = Netns::new(&run, "peer")?;
    let socket = run.subdir("ports")?.join("0.sock");
    let port = Port {
        socket: &socket,
        client: false,
        queues,
    };
    let switch = Switch::start(&netns, &format!("{ADDRESS}/24"), mtu, &[port])?;
    let nic = Nic {
        socket: socket.clone(),
        listens: false,
        mac: "52:54:00:09:00:02".into(),
        queues,
        properties: properties.iter().map(|p| (*p).to_owned()).collect(),
    };
    let mut guest = Qemu::boot(&run, &parts(&run, "vm", nic, queues.into())?)?;
    let transfer = |guest: &mut Qemu| {
        guest.expect(&format!(
            "ip link set eth0 mtu {mtu}; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up"
        ))?;
        guest.expect(&format!("ping -c 1 -W 10 -s {} {ADDRESS}", mtu - 28))?;
        let streams = Streams::listen(&netns)?;
        guest.expect(&Streams::command(ADDRESS))?;
        streams.wait(4 << 20, LIMIT)?;
        println!(
            "{properties:?}, {queues} queues, MTU {mtu}: {} MiB from the guest, {} MiB to it",
            streams.received() >> 20,
            streams.sent() >> 20
        );
        let sum = streams.end()?;
        let guests = guest.expect("sleep 1; cat /tmp/down.sum")?;
        ensure!(
            guests.starts_with(&sum),
            "The guest received {guests}, and {sum} was sent"
        );
        ensure!(
            switch.status(0).active_queue_pairs == queues,
            "{:?}",
            switch.status(0)
        );
        Ok(())
    };
    transfer(&mut guest)?;
    if reboot {
        // The same QEMU and the same port: the driver resets the device and begins anew.
        guest.reboot()?;
        transfer(&mut guest).context("After a reboot")?;
    }
    Ok(())
}

#[test]
fn tcp_with_all_features_and_again_after_a_reboot() -> Result<()> {
    exchange(&[], 1, 1500, true)
}

#[test]
fn tcp_without_checksum_offload_and_merged_buffers() -> Result<()> {
    exchange(
        &["csum=off", "guest_csum=off", "mrg_rxbuf=off"],
        1,
        1500,
        false,
    )
}

#[test]
fn tcp_with_jumbo_frames_over_four_queues() -> Result<()> {
    exchange(&["host_mtu=9000"], 4, 9000, false)
}

/// A guest on a port of the agent.
fn guest(agent: &Alone, port: &str, last: u8) -> Result<Qemu> {
    let nic = Nic {
        socket: agent.socket(port),
        listens: agent.guests_listen(),
        mac: Alone::mac(last),
        queues: 1,
        properties: Vec::new(),
    };
    let mut guest = Qemu::boot(agent.run(), &parts(agent.run(), port, nic, 1)?)?;
    guest.expect(&format!(
        "ip addr add 10.0.0.{last}/24 dev eth0; ip link set eth0 up"
    ))?;
    Ok(guest)
}

/// How much the guest has sent.
fn pieces(guest: &mut Qemu) -> Result<u32> {
    let count = guest.expect("cat /tmp/count 2>/dev/null || echo 0")?;
    count.trim().parse().context("The number of pieces")
}

/// TCP from a to b through the agent, which is killed again and again meanwhile.
fn agent_killed_under_load(mode: &'static str, kills: u32) -> Result<()> {
    let mut agent = Alone::start(mode, 1)?;
    let mut a = guest(&agent, "a", 10)?;
    let mut b = guest(&agent, "b", 11)?;
    a.expect("ping -c 1 -W 10 10.0.0.11")?;
    a.expect("dd if=/dev/urandom of=/tmp/piece bs=64k count=1 2>/dev/null")?;
    // Without an end of its input: it would be the end of the connection for both.
    b.expect("(sleep 600 | nc -l -p 5001 | sha256sum > /tmp/sum) >/dev/null 2>&1 &")?;
    // A piece at a time until it is told to stop; then how many, and the sum of them.
    a.expect(
        "(n=0; while [ ! -e /tmp/stop ]; do cat /tmp/piece; n=$((n+1)); echo $n > /tmp/count; \
         usleep 10000; done | nc 10.0.0.11 5001 >/dev/null 2>&1; touch /tmp/done) >/dev/null 2>&1 &",
    )?;
    a.expect("(ping -i 0.1 10.0.0.11 > /tmp/ping.log 2>&1 &)")?;
    for kill in 1..=kills {
        // Killed while the stream flows, which it does again before the next time.
        let until = pieces(&mut a)? + 8;
        command::wait_for("the stream going on", LIMIT, || {
            let now = pieces(&mut a)?;
            ensure!(now >= until, "{now} of {until} pieces, before kill {kill}");
            Ok(())
        })?;
        agent.kill_agent()?;
        agent.start_agent()?;
    }
    a.expect("ping -c 1 -W 10 10.0.0.11; sleep 1; touch /tmp/stop; killall -INT ping; sleep 1")?;
    command::wait_for("the end of the stream", LIMIT, || {
        a.expect("test -e /tmp/done").map(drop)
    })?;
    let count = pieces(&mut a)?;
    let sent = a.expect(&format!(
        "for i in $(seq {count}); do cat /tmp/piece; done | sha256sum"
    ))?;
    let received = b.expect("sleep 1; cat /tmp/sum")?;
    ensure!(sent == received, "{sent} was sent, {received} received");
    let seen = measure(&a.expect("cat /tmp/ping.log")?, Duration::from_millis(100))?;
    println!(
        "{mode}: {} KiB of TCP through an agent killed {kills} times, longest gap {:?}, {} pings lost",
        count * 64,
        seen.longest,
        seen.lost
    );
    Ok(())
}

#[test]
fn agent_as_server_killed_ten_times_under_load() -> Result<()> {
    agent_killed_under_load("server", 10)
}

#[test]
fn agent_as_client_killed_under_load() -> Result<()> {
    agent_killed_under_load("client", 3)
}
