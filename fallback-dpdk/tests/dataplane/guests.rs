//! Guests: vhost-user backends, driven by DPDK's virtio-user as the guest's driver.

use crate::wire::{eal, unique, wait_for};
use crate::world::*;
use dpdk::{MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue};
use fallback_dpdk::Config;
use flow::{DropReason, PortId};
use std::time::{Duration, Instant};
use xvio::{Backend, BackendConfig, Offer, SocketMode};

/// A guest: its driver's queues, and the backend that serves it.
pub struct Guest {
    rx: RxQueue,
    tx: TxQueue,
    pool: Mempool,
    // Dropped after the queues.
    _driver: Port,
    backend: Backend,
    _folder: tempfile::TempDir,
}

/// A port that waits for its guest.
pub fn waiting(world: &World, n: u8) -> (Backend, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = BackendConfig {
        name: format!("vm{n}"),
        socket: folder.path().join("guest.sock"),
        mode: SocketMode::Server,
        owner: None,
        group: None,
        permissions: 0o600,
        max_queue_pairs: 1,
        max_queue_size: 256,
        mac: mac(n).0,
        mtu: 1400,
        features: Offer::default(),
    };
    let mut backend = Backend::start(config).expect("the backend starts");
    world
        .plane
        .add_vhost(PortId(u32::from(n)), &mut backend)
        .expect("the port is added");
    (backend, folder)
}

impl Guest {
    pub fn new(world: &World, n: u8) -> Self {
        let (backend, folder) = waiting(world, n);
        let socket = folder.path().join("guest.sock");
        let devargs = format!(
            "net_virtio_user{}x{},path={},queues=1,queue_size=256",
            std::process::id(),
            unique(),
            socket.display()
        );
        let driver = Port::attach(&eal(), &devargs).expect("virtio-user connects");
        let pool = Mempool::new(&eal(), "guest", 1024, 2048, None).expect("a pool");
        driver
            .configure(&PortConfig::new(pool.clone()))
            .expect("virtio-user is configured");
        driver.start().expect("virtio-user starts");
        let (rx, tx) = (
            driver.rx_queue(0).expect("rx"),
            driver.tx_queue(0).expect("tx"),
        );
        let guest = Guest {
            rx,
            tx,
            pool,
            _driver: driver,
            backend,
            _folder: folder,
        };
        wait_for("the guest's rings", || {
            guest.backend.status().active_queue_pairs == 1
        });
        guest
    }

    pub fn send(&mut self, frame: &[u8]) {
        let mut burst = MbufBurst::new();
        let mut packet = self.pool.alloc().expect("a buffer");
        packet
            .append(frame.len())
            .expect("it fits")
            .copy_from_slice(frame);
        assert!(burst.push(packet).is_ok());
        let start = Instant::now();
        while !burst.is_empty() {
            self.tx.burst(&mut burst);
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the ring takes the packet"
            );
        }
    }

    pub fn recv_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        let start = Instant::now();
        let mut burst = MbufBurst::new();
        while self.rx.burst(&mut burst) == 0 {
            if start.elapsed() > time {
                return None;
            }
            std::thread::yield_now();
        }
        assert_eq!(burst.len(), 1);
        Some(burst[0].data().to_vec())
    }

    pub fn recv(&mut self) -> Vec<u8> {
        self.recv_within(Duration::from_secs(10))
            .expect("a packet arrives within 10 s")
    }
}

#[test]
fn guests_talk_to_each_other_and_to_another_host() {
    for workers in [1, 2] {
        let world = World::new(Config {
            workers,
            ..World::config()
        });
        let (mut one, mut two) = (Guest::new(&world, 1), Guest::new(&world, 2));
        let uplink = world.port(0);
        world.publish(topology(1, 2, true));
        for n in 0..50u8 {
            let packet = datagram(1, 2, 1000, &[n; 100]);
            one.send(&packet);
            assert_eq!(two.recv(), packet);
            let answer = datagram(2, 1, 1000, &[n; 1300]);
            two.send(&answer);
            assert_eq!(one.recv(), answer);
        }
        // After a pause the worker sleeps on the kick.
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(60));
            one.send(&datagram(1, 2, 1000, b"after a pause"));
            assert_eq!(two.recv(), datagram(1, 2, 1000, b"after a pause"));
        }
        one.send(&datagram(1, 101, 1000, b"far"));
        let outer = uplink.recv();
        let parsed = flow::parse_tunnel(&outer, PortId(0)).expect("a tunnel packet");
        assert_eq!(
            &outer[parsed.eth..parsed.end],
            datagram(1, 101, 1000, b"far")
        );
        let counters = world.counters();
        assert_eq!(counters.drops, [0; DropReason::COUNT]);
        assert_eq!((counters.misses, counters.hits), (3, 103));
    }
}

#[test]
fn a_removed_guest_leaves_no_trace_and_its_neighbour_goes_on() {
    let world = World::new(World::config());
    let (mut one, mut two) = (Guest::new(&world, 1), Guest::new(&world, 2));
    world.publish(topology(1, 2, true));
    one.send(&datagram(1, 2, 1000, b"hello"));
    two.recv();
    world
        .plane
        .remove_port(PortId(2))
        .expect("the port is removed");
    drop(two);
    one.send(&datagram(1, 2, 1000, b"nobody"));
    wait_for("the drop", || world.drops(DropReason::NoSuchPort) == 1);
    let mut three = Guest::new(&world, 2);
    one.send(&datagram(1, 2, 1000, b"again"));
    assert_eq!(three.recv(), datagram(1, 2, 1000, b"again"));
}
