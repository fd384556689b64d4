//! Tests of a worker that runs in the test's own thread, turn by turn.

use super::*;
use crate::control::tests::silent_port;
use crate::fabric::Exit;
use crate::input::{DeviceQueue, DeviceWake, Source};
use crate::message::WorkerHandle;
use crate::ring::{Producer, ring};
use crate::testbed::pool;
use dpdk::MbufBurst;
use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype, protocol};
use flow::{Action, PartialCsum};
use std::sync::mpsc::{Receiver, sync_channel};

/// A worker without a thread, its mailbox's other end, and a ring into it.
fn worker() -> (
    Worker,
    WorkerHandle,
    Producer<crate::fabric::Handoff>,
    Receiver<Event>,
) {
    let doorbell = Arc::new(Doorbell::new().unwrap());
    let (handle, mailbox) = WorkerHandle::new(0, None, Arc::clone(&doorbell));
    let (producer, consumer) = ring(256);
    let (events, receiver) = sync_channel(16);
    let worker = Worker::new(Setup {
        index: 0,
        config: Config::default(),
        fabric: Fabric::new(pool(), vec![None], Arc::clone(&handle.block)),
        inbound: vec![consumer],
        mailbox,
        bed: Bed::new(&doorbell).unwrap(),
        doorbell,
        block: Arc::clone(&handle.block),
        orphans: Arc::clone(&handle.orphans),
        events,
    });
    (worker, handle, producer, receiver)
}

/// Gives the worker a port that receives nothing and sends into the void.
fn adopt(worker: &mut Worker, port: &dpdk::Port, id: u32) -> Arc<PortBlock> {
    let block = Arc::new(PortBlock::default());
    worker.adopt(PortParts {
        id: PortId(id),
        source: Source::Ethdev(DeviceQueue {
            rx: port.rx_queue(0).unwrap(),
            wake: DeviceWake::Timer,
        }),
        exit: Exit::Ethdev {
            queue: port.tx_queue(0).unwrap(),
            staged: Box::new(MbufBurst::new()),
        },
        block: Arc::clone(&block),
        slow_path_rate: 1000,
        far: None,
    });
    block
}

fn hand_over(ring: &mut Producer<Handoff>, port: u32, count: usize) {
    for _ in 0..count {
        let mut packet = pool().alloc().unwrap();
        packet.append(60).unwrap().fill(0);
        let item = Handoff {
            port: PortId(port),
            packet,
            csum: None,
            hash: 0,
        };
        assert!(ring.push(item).is_ok());
    }
    ring.publish();
}

#[test]
fn packets_for_a_port_that_leaves_never_reach_the_next_one_of_its_number() {
    let (mut worker, handle, mut ring, _events) = worker();
    let (first, second) = (silent_port(), silent_port());
    let old = adopt(&mut worker, &first, 2);
    hand_over(&mut ring, 2, 100);
    let (reply, answer) = sync_channel(1);
    handle.tell(Command::Release(PortId(2), reply)).unwrap();
    assert!(worker.read_mail());
    worker.sweep(cycles(), false);
    assert!(answer.try_recv().unwrap().is_some(), "it was released");
    let new = adopt(&mut worker, &second, 2);
    let mut burst = Burst::new();
    for _ in 0..10 {
        worker.turn(&mut burst, cycles());
    }
    assert_eq!(new.tx_packets.get(), 0);
    assert_eq!(old.tx_packets.get(), 100);
}

#[test]
fn a_turn_takes_as_much_from_another_worker_as_from_its_own_ports() {
    let (mut worker, _handle, mut ring, _events) = worker();
    let ports = [silent_port(), silent_port(), silent_port()];
    let mut blocks = Vec::new();
    for (port, id) in ports.iter().zip(1..) {
        blocks.push(adopt(&mut worker, port, id));
    }
    hand_over(&mut ring, 1, 3 * BURST + 1);
    assert_eq!(worker.turn(&mut Burst::new(), cycles()), 3 * BURST);
    assert_eq!(blocks[0].tx_packets.get(), 3 * BURST as u64);
}

#[test]
fn an_icmp_error_quotes_a_complete_checksum() {
    let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let udp = UdpRepr {
        src: std::net::IpAddr::V4(src),
        dst: std::net::IpAddr::V4(dst),
        src_port: 1,
        dst_port: 2,
    };
    let ip = Ipv4Repr {
        ttl: 1,
        ..Ipv4Repr::new(src, dst, protocol::UDP)
    };
    let eth = EthernetRepr {
        dst: flow::MacAddr([2; 6]),
        src: flow::MacAddr([4; 6]),
        vlan: None,
        ethertype: ethertype::IPV4,
    };
    let complete = eth.emit(&ip.emit(&udp.emit(b"quoted")));
    // What a driver leaves in the field: the sum of the pseudo header.
    let mut partial = complete.clone();
    let pseudo =
        flow::checksum::pseudo_header(udp.src, udp.dst, protocol::UDP, complete.len() - 34);
    let sum = !pseudo.finish();
    partial[40..42].copy_from_slice(&sum.to_be_bytes());
    let csum = PartialCsum {
        start: 34,
        offset: 6,
    };
    let mut packet = pool().alloc().unwrap();
    packet
        .append(partial.len())
        .unwrap()
        .copy_from_slice(&partial);
    let known = Known {
        parsed: flow::parse(packet.data(), PortId(1)).unwrap(),
        hash: 0,
        csum: Some(csum),
    };
    let program = crate::table::Program::new(vec![Action::DecTtl, Action::Output(PortId(2))]);
    let mut original = [0; 2048];
    let kept = keep_for_punt(&program, &packet, &known, known.csum, &mut original).unwrap();
    assert_eq!(&original[..kept], complete);
    assert_eq!(packet.data(), partial, "the packet itself is as it was");
}

#[test]
fn a_new_flow_is_counted_in_the_turn_that_made_it() {
    let (mut worker, handle, _ring, _events) = worker();
    let port = silent_port();
    adopt(&mut worker, &port, 1);
    let key = flow::FlowKey {
        in_port: PortId(1),
        ..flow::parse(&[0x5a; 60], PortId(1)).unwrap().key
    };
    let program = crate::table::Program::new(vec![Action::Drop(flow::DropReason::Malformed)]);
    let hash = worker.table.hash(&key);
    let now = cycles();
    assert!(worker.table.insert(hash, key, 1, program, now).is_some());
    worker.sweep(now, true);
    assert_eq!(handle.block.flows.get(), 1);
}

/// A guest of two queue pairs on the worker, and its driver.
struct TwoQueues {
    queues: [dpdk::TxQueue; 2],
    packets: Mempool,
    counters: Vec<Arc<xvio::Counters>>,
    // Dropped after the queues.
    _driver: dpdk::Port,
    _backend: xvio::Backend,
    _folder: tempfile::TempDir,
}

impl TwoQueues {
    fn new(worker: &mut Worker, serial: u32) -> TwoQueues {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("guest.sock");
        let mut backend = xvio::Backend::start(xvio::BackendConfig {
            name: "vm".to_owned(),
            socket: socket.clone(),
            mode: xvio::SocketMode::Server,
            owner: None,
            group: None,
            permissions: 0o600,
            max_queue_pairs: 2,
            max_queue_size: 256,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            features: xvio::Offer::default(),
        })
        .unwrap();
        let pairs = backend
            .take_queues()
            .into_iter()
            .map(|pair| (pair.tx, pair.rx));
        let (tx, rings): (Vec<_>, Vec<_>) = pairs.unzip();
        let counters = tx.iter().map(xvio::GuestTx::counters).collect();
        worker.adopt(PortParts {
            id: PortId(1),
            source: Source::vhost(tx.into_iter()),
            exit: Exit::Vhost {
                active: Vec::with_capacity(rings.len()),
                rings,
            },
            block: Arc::default(),
            slow_path_rate: 1000,
            far: None,
        });
        let devargs = format!(
            "net_virtio_user{}x{serial},path={},queues=2,queue_size=256",
            std::process::id(),
            socket.display()
        );
        let driver = dpdk::Port::attach(crate::testbed::eal(), &devargs).unwrap();
        let packets = Mempool::new(crate::testbed::eal(), "guest", 1024, 2048, None).unwrap();
        driver
            .configure(&dpdk::PortConfig {
                rx_queues: 2,
                tx_queues: 2,
                ..dpdk::PortConfig::new(packets.clone())
            })
            .unwrap();
        driver.start().unwrap();
        let start = std::time::Instant::now();
        while backend.status().active_queue_pairs < 2 {
            assert!(start.elapsed().as_secs() < 20, "{:?}", backend.status());
            std::thread::yield_now();
        }
        TwoQueues {
            queues: [driver.tx_queue(0).unwrap(), driver.tx_queue(1).unwrap()],
            packets,
            counters,
            _driver: driver,
            _backend: backend,
            _folder: folder,
        }
    }

    /// Two bursts of packets of `len` bytes from each queue.
    fn send(&mut self, len: usize) {
        for queue in &mut self.queues {
            for _ in 0..2 {
                let mut burst = MbufBurst::new();
                assert_eq!(self.packets.alloc_burst(&mut burst, BURST), BURST);
                for packet in &mut burst {
                    packet.append(len).unwrap().fill(0x5a);
                }
                assert_eq!(queue.burst(&mut burst), BURST);
            }
        }
    }

    fn taken(&self, count: impl Fn(&xvio::Counters) -> u64) -> Vec<u64> {
        self.counters.iter().map(|c| count(c)).collect()
    }
}

#[test]
fn a_guest_gets_one_burst_a_turn_however_many_queues_it_fills() {
    let (mut worker, _handle, _ring, _events) = worker();
    let mut guest = TwoQueues::new(&mut worker, 7);
    guest.send(60);
    let mut burst = Burst::new();
    for expected in [[32, 0], [32, 32], [64, 32], [64, 64]] {
        assert_eq!(worker.turn(&mut burst, cycles()), BURST);
        assert_eq!(guest.taken(|c| c.packets.get()), expected);
    }
    assert_eq!(worker.turn(&mut burst, cycles()), 0);
}

#[test]
fn a_guest_gets_no_more_turns_for_packets_that_are_none() {
    let (mut worker, _handle, _ring, _events) = worker();
    let mut guest = TwoQueues::new(&mut worker, 8);
    guest.send(13);
    let mut burst = Burst::new();
    for expected in [[32, 0], [32, 32], [64, 32], [64, 64]] {
        assert_eq!(worker.turn(&mut burst, cycles()), 0);
        assert_eq!(guest.taken(|c| c.runt.get()), expected);
    }
}
