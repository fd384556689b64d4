//! Ports on the kernel's interfaces: af_packet and af_xdp over a veth pair.

use std::process::Command;
use std::sync::PoisonError;

use dpdk::{
    MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue, af_packet_data_room, af_packet_devargs,
};

use crate::namespace::Namespace;
use crate::{ATTACH_OR_SPAWN, pool, shared_eal, spawn, unique, wait_for};

const MTU: u16 = 9000;

fn jumbo_pool() -> Mempool {
    pool(2048, af_packet_data_room(MTU) as u16)
}

fn start(devargs: &str, config: &PortConfig) -> Port {
    let eal = shared_eal();
    let port = {
        let _held = ATTACH_OR_SPAWN
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Port::attach(eal, devargs).unwrap()
    };
    port.configure(config).unwrap();
    port.start().unwrap();
    port
}

fn af_packet(iface: &str, pool: &Mempool) -> Port {
    let devargs = af_packet_devargs(&unique().to_string(), iface, MTU);
    start(
        &devargs,
        &PortConfig {
            mtu: MTU,
            ..PortConfig::new(pool.clone())
        },
    )
}

/// A frame of an experimental Ethernet type whose bytes tell its number.
fn fill(frame: &mut [u8], number: u32) {
    for (index, byte) in frame.iter_mut().enumerate() {
        *byte = (index as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(number)
            .to_le_bytes()[2];
    }
    frame[..14].copy_from_slice(&[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5,
    ]);
}

/// Sends frames of each length and expects the same bytes in the same order at the other end.
fn exchange(tx: &mut TxQueue, rx: &mut RxQueue, pool: &Mempool, lengths: &[usize]) {
    let (mut out, mut back) = (MbufBurst::new(), MbufBurst::new());
    for (number, len) in lengths.iter().enumerate() {
        let mut mbuf = pool.alloc().unwrap();
        fill(mbuf.append(*len).unwrap(), number as u32);
        let expected = mbuf.data().to_vec();
        out.push(mbuf).unwrap();
        wait_for("room to send", || tx.burst(&mut out) == 1);
        wait_for(&format!("the frame of {len} bytes"), || {
            rx.burst(&mut back) > 0
        });
        assert_eq!(back.len(), 1);
        assert!(
            back[0].data() == expected,
            "{len} bytes were sent, {} other ones came",
            back[0].len()
        );
        back.clear();
    }
}

#[test]
fn frames_of_every_length_cross_a_veth_pair_byte_for_byte() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", MTU);
    let pool = jumbo_pool();
    namespace.run(|| {
        let (a, b) = (af_packet("fva", &pool), af_packet("fvb", &pool));
        assert_eq!((a.driver(), a.link().up), ("net_af_packet", true));
        let kernel = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(kernel.contains("fva"), "the thread is in its namespace");
        let (mut a_rx, mut a_tx) = (a.rx_queue(0).unwrap(), a.tx_queue(0).unwrap());
        let (mut b_rx, mut b_tx) = (b.rx_queue(0).unwrap(), b.tx_queue(0).unwrap());
        let lengths: Vec<usize> = (60..=1600)
            .chain((1601..9014).step_by(97))
            .chain([8999, 9000, 9013, 9014])
            .collect();
        exchange(&mut a_tx, &mut b_rx, &pool, &lengths);
        exchange(&mut b_tx, &mut a_rx, &pool, &[60, 9014, 61, 9013]);
        let (sent, got) = (a.stats(), b.stats());
        assert_eq!(sent.tx_packets, lengths.len() as u64);
        assert_eq!(got.rx_packets, lengths.len() as u64);
        assert_eq!(got.rx_bytes, lengths.iter().sum::<usize>() as u64);
    });
    assert_eq!(pool.available(), pool.size());
}

#[test]
fn a_burst_of_frames_arrives_whole_and_in_order() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", MTU);
    let pool = jumbo_pool();
    namespace.run(|| {
        let (a, b) = (af_packet("fva", &pool), af_packet("fvb", &pool));
        let (mut tx, mut rx) = (a.tx_queue(0).unwrap(), b.rx_queue(0).unwrap());
        let (mut out, mut back) = (MbufBurst::new(), MbufBurst::new());
        let mut expected = 0;
        for round in 0..50_u32 {
            for number in round * 32..round * 32 + 32 {
                let mut mbuf = pool.alloc().unwrap();
                fill(mbuf.append(64 + number as usize * 5).unwrap(), number);
                out.push(mbuf).unwrap();
            }
            wait_for("all to be sent", || {
                tx.burst(&mut out);
                out.is_empty()
            });
            wait_for("all to arrive", || {
                rx.burst(&mut back);
                for mbuf in back.drain() {
                    let mut frame = vec![0; 64 + expected as usize * 5];
                    fill(&mut frame, expected);
                    assert!(mbuf.data() == frame, "frame {expected}");
                    expected += 1;
                }
                expected == round * 32 + 32
            });
        }
    });
}

#[test]
fn the_link_follows_the_interface() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", MTU);
    let pool = jumbo_pool();
    namespace.run(|| {
        let port = af_packet("fva", &pool);
        assert!(port.link().up);
        namespace.ip(&["link", "set", "fva", "down"]);
        wait_for("the link to go down", || !port.link().up);
    });
}

#[test]
fn a_program_that_is_started_meanwhile_does_not_inherit_the_sockets() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", MTU);
    let pool = jumbo_pool();
    namespace.run(|| {
        let port = af_packet("fva", &pool);
        // The last column of all lines but the first.
        let sockets = std::fs::read_to_string("/proc/thread-self/net/packet").unwrap();
        let sockets: Vec<String> = sockets
            .lines()
            .skip(1)
            .filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().last()?)))
            .collect();
        assert!(!sockets.is_empty(), "the port has a packet socket");
        let mut child = spawn(Command::new("sleep").arg("60"));
        let inherited: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", child.id()))
            .unwrap()
            .filter_map(|fd| {
                Some(
                    std::fs::read_link(fd.ok()?.path())
                        .ok()?
                        .display()
                        .to_string(),
                )
            })
            .filter(|target| sockets.contains(target))
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(inherited, [""; 0]);
        drop(port);
    });
}

#[test]
fn attaching_and_detaching_af_packet_leaks_nothing() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", MTU);
    let pool = jumbo_pool();
    namespace.run(|| {
        let descriptors = || {
            std::fs::read_dir("/proc/thread-self/fd")
                .unwrap()
                .filter(|fd| {
                    let target =
                        std::fs::read_link(fd.as_ref().unwrap().path()).unwrap_or_default();
                    target.to_string_lossy().starts_with("socket:")
                })
                .count()
        };
        // Other tests open sockets meanwhile, so the sum is only bounded.
        let before = descriptors();
        for _ in 0..40 {
            let (a, b) = (af_packet("fva", &pool), af_packet("fvb", &pool));
            let (mut tx, mut rx) = (a.tx_queue(0).unwrap(), b.rx_queue(0).unwrap());
            exchange(&mut tx, &mut rx, &pool, &[60, 9014]);
            drop((a, b, tx, rx));
            assert_eq!(pool.available(), pool.size());
        }
        let after = descriptors();
        assert!(
            after < before + 40,
            "{before} sockets before, {after} after"
        );
    });
}

#[test]
fn af_xdp_carries_frames_between_the_ends_of_a_veth_pair() {
    let namespace = Namespace::new();
    namespace.veth("fva", "fvb", 1500);
    let pool = pool(8192, 2048);
    namespace.run(|| {
        let config = PortConfig {
            mtu: 1500,
            ..PortConfig::new(pool.clone())
        };
        let xdp = start(&format!("net_af_xdp{},iface=fva", unique()), &config);
        let plain = start(
            &af_packet_devargs(&unique().to_string(), "fvb", 1500),
            &PortConfig {
                mtu: 1500,
                ..PortConfig::new(pool.clone())
            },
        );
        let (mut xdp_rx, mut xdp_tx) = (xdp.rx_queue(0).unwrap(), xdp.tx_queue(0).unwrap());
        let (mut rx, mut tx) = (plain.rx_queue(0).unwrap(), plain.tx_queue(0).unwrap());
        exchange(&mut tx, &mut xdp_rx, &pool, &[60, 100, 1514]);
        exchange(&mut xdp_tx, &mut rx, &pool, &[60, 100, 1514]);
    });
}
