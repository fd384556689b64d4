//! An idle data plane costs almost nothing, and the first packet after a pause is quick.

use crate::guests::{Guest, waiting};
use crate::world::*;
use std::time::{Duration, Instant};

/// Seconds of processor time that the workers of the calling process used so far. Workers of other
/// tests are told apart by the names of their threads' plane: this test runs in a process of its own.
fn worker_seconds() -> f64 {
    let mut ticks = 0.0;
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    for task in tasks.flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else {
            continue;
        };
        if name.starts_with("fv-worker") {
            let spent = stat
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<f64>().ok());
            ticks += spent.unwrap_or(0.0) / 1e9;
        }
    }
    ticks
}

/// Runs a test again in a child process, so that no other test's workers count. True in the parent,
/// where it is done then.
fn ran_alone(test: &str) -> bool {
    const CHILD: &str = "FERROVIA_TEST_IDLE_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let program = std::env::current_exe().expect("this test's program");
    let status = std::process::Command::new(program)
        .args(["--exact", &format!("idle::{test}"), "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("the child starts");
    assert!(status.success());
    true
}

/// A hundred ports: 28 guests (DPDK has 32 ports in a process), and the others wait for theirs.
#[test]
fn a_hundred_idle_ports_cost_little() {
    if ran_alone("a_hundred_idle_ports_cost_little") {
        return;
    }
    let world = World::new(World::config());
    world.publish(topology(1, 100, true));
    let mut guests: Vec<_> = (1..=28).map(|n| Guest::new(&world, n)).collect();
    let _waiting: Vec<_> = (29..=100).map(|n| waiting(&world, n)).collect();
    guests[0].send(&datagram(1, 28, 1000, b"awake"));
    guests[27].recv();
    std::thread::sleep(Duration::from_millis(300));
    let (before, start) = (worker_seconds(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (worker_seconds() - before) / start.elapsed().as_secs_f64();
    println!("idle, a hundred ports: {:.2} % of a core", share * 100.0);
    assert!(share < 0.03, "{share}");
}

#[test]
fn an_idle_worker_costs_little_and_wakes_at_once() {
    if ran_alone("an_idle_worker_costs_little_and_wakes_at_once") {
        return;
    }
    let world = World::new(World::config());
    let (uplink, one) = (world.port(0), world.port(1));
    world.publish(topology(1, 1, true));
    let measure = |what: &str| {
        std::thread::sleep(Duration::from_millis(300));
        let (before, start) = (worker_seconds(), Instant::now());
        let sleeps = world.plane.workers()[0].sleeps;
        std::thread::sleep(Duration::from_secs(3));
        let share = (worker_seconds() - before) / start.elapsed().as_secs_f64();
        let sleeps = world.plane.workers()[0].sleeps - sleeps;
        println!(
            "{what}: {:.2} % of a core, {} sleeps a second",
            share * 100.0,
            sleeps / 3
        );
        share
    };
    let timer = measure("idle, one port looked at every millisecond");
    world
        .plane
        .remove_port(flow::PortId(1))
        .expect("the port is removed");
    let doorbell = measure("idle, uplink with a doorbell");
    let (mut guest, mut neighbour) = (Guest::new(&world, 1), Guest::new(&world, 2));
    world.publish(topology(2, 2, true));
    let guests = measure("idle, uplink with a doorbell and two connected guests");
    let mut kicked = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(63));
        let start = Instant::now();
        guest.send(&datagram(1, 2, 1000, b"after a pause"));
        neighbour.recv();
        kicked.push(start.elapsed());
    }
    kicked.sort();
    println!(
        "first packet between guests after a pause: median {:?}",
        kicked[10]
    );
    assert!(guests < 0.03, "{guests}");
    // The timer is the last resort, and unoptimised builds on busy machines need a margin.
    assert!(timer < 0.06, "{timer}");
    assert!(doorbell < 0.01, "{doorbell}");
    drop(one);
    // The doorbell wakes: an ARP request for our address after a pause.
    let request = {
        let arp = flow::wire::ArpRepr {
            operation: 1,
            sender_mac: PEER_HOST_MAC,
            sender_ip: PEER_VTEP,
            target_mac: flow::MacAddr::ZERO,
            target_ip: VTEP,
        };
        let eth = flow::wire::EthernetRepr {
            dst: flow::MacAddr::BROADCAST,
            src: PEER_HOST_MAC,
            vlan: None,
            ethertype: flow::wire::ethertype::ARP,
        };
        eth.emit(&arp.emit())
    };
    let mut times = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(60));
        let start = Instant::now();
        uplink.send(&request);
        uplink.recv();
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "first packet after a pause: median {:?}, slowest {:?}",
        times[10], times[19]
    );
    // Without the doorbell it would take up to the 250 ms of the longest sleep.
    assert!(times[10] < Duration::from_millis(20), "{times:?}");
}
