//! Ports of the drivers that need no hardware, and what their states allow.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dpdk::{BURST, Error, Mbuf, MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue};

use crate::{pool, shared_eal, unique, wait_for};

/// A started port with its first queues.
struct Running {
    rx: RxQueue,
    tx: TxQueue,
    port: Port,
}

fn running(devargs: &str, config: &PortConfig) -> Running {
    let port = Port::attach(shared_eal(), devargs).unwrap();
    port.configure(config).unwrap();
    port.start().unwrap();
    Running {
        rx: port.rx_queue(0).unwrap(),
        tx: port.tx_queue(0).unwrap(),
        port,
    }
}

fn frame(pool: &Mempool, len: usize, seed: u8) -> Mbuf {
    let mut mbuf = pool.alloc().unwrap();
    for (index, byte) in mbuf.append(len).unwrap().iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add(seed);
    }
    mbuf
}

fn send(tx: &mut TxQueue, mbuf: Mbuf) {
    let mut burst = MbufBurst::new();
    burst.push(mbuf).unwrap();
    wait_for("room to send", || tx.burst(&mut burst) == 1);
}

fn receive(rx: &mut RxQueue) -> Mbuf {
    let mut burst = MbufBurst::new();
    wait_for("a packet", || rx.burst(&mut burst) > 0);
    assert_eq!(burst.len(), 1);
    burst.pop().unwrap()
}

#[test]
fn null_receives_full_bursts_and_counts_them() {
    let pool = pool(512, 2048);
    let mut null = running(
        &format!("net_null{},size=100", unique()),
        &PortConfig::new(pool.clone()),
    );
    assert_eq!(null.port.driver(), "net_null");
    let mut burst = MbufBurst::new();
    for round in 1..=10_u64 {
        assert_eq!(null.rx.burst(&mut burst), BURST);
        assert_eq!(null.rx.burst(&mut burst), 0, "no room, no packets");
        assert!(burst.iter().all(|mbuf| mbuf.len() == 100));
        assert_eq!(null.tx.burst(&mut burst), BURST);
        assert!(burst.is_empty());
        let stats = null.port.stats();
        assert_eq!(
            (stats.rx_packets, stats.tx_packets),
            (round * BURST as u64, round * BURST as u64)
        );
    }
    null.port.reset_stats().unwrap();
    assert_eq!(null.port.stats().rx_packets, 0);
    drop(null);
    assert_eq!(pool.available(), 512);
}

#[test]
fn ring_gives_back_what_it_was_given() {
    let pool = pool(256, 2048);
    let mut ring = running(
        &format!("net_ring{}", unique()),
        &PortConfig::new(pool.clone()),
    );
    for len in [60, 61, 1514] {
        let sent = frame(&pool, len, 7);
        let expected = sent.data().to_vec();
        send(&mut ring.tx, sent);
        assert_eq!(receive(&mut ring.rx).data(), expected);
    }
    drop(ring);
    assert_eq!(pool.available(), 256);
}

#[test]
fn what_a_ring_has_no_room_for_stays_in_the_burst_in_order() {
    let pool = pool(4096, 256);
    let mut ring = running(
        &format!("net_ring{}", unique()),
        &PortConfig {
            mtu: 200,
            ..PortConfig::new(pool.clone())
        },
    );
    let mut sent = 0_u32;
    let mut burst = MbufBurst::new();
    loop {
        while !burst.is_full() {
            let mut mbuf = pool.alloc().unwrap();
            mbuf.append(4).unwrap().copy_from_slice(&sent.to_be_bytes());
            burst.push(mbuf).unwrap();
            sent += 1;
        }
        if ring.tx.burst(&mut burst) < BURST {
            break;
        }
    }
    assert!(!burst.is_empty(), "the ring took everything");
    let first_left = sent - burst.len() as u32;
    for (index, mbuf) in burst.iter().enumerate() {
        assert_eq!(mbuf.data(), (first_left + index as u32).to_be_bytes());
    }
    let mut expected = 0_u32;
    let mut out = MbufBurst::new();
    while ring.rx.burst(&mut out) > 0 {
        for mbuf in out.drain() {
            assert_eq!(mbuf.data(), expected.to_be_bytes());
            expected += 1;
        }
    }
    assert_eq!(expected, first_left);
}

#[test]
fn pcap_reads_the_file_and_writes_what_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (
        folder.path().join("in.pcap"),
        folder.path().join("out.pcap"),
    );
    let packets: Vec<Vec<u8>> = [60_usize, 300, 1514, 5000]
        .iter()
        .map(|len| (0..*len).map(|n| n as u8).collect())
        .collect();
    std::fs::write(&input, capture_file(&packets)).unwrap();
    // 5000 bytes come in three buffers of 2048.
    let pool = pool(256, 2048);
    let mut pcap = running(
        &format!(
            "net_pcap{},rx_pcap={},tx_pcap={}",
            unique(),
            input.display(),
            output.display()
        ),
        &PortConfig::new(pool.clone()),
    );
    let mut burst = MbufBurst::new();
    while pcap.rx.burst(&mut burst) > 0 {}
    assert_eq!(
        burst
            .iter()
            .map(|mbuf| mbuf.data().to_vec())
            .collect::<Vec<_>>(),
        packets[..3]
    );
    let stats = pcap.port.stats();
    assert_eq!(
        (stats.rx_segments_dropped, stats.rx_linearised),
        (1, 0),
        "a packet in several buffers that fits none"
    );
    pcap.tx.burst(&mut burst);
    assert!(burst.is_empty());
    drop(pcap);
    assert_eq!(pool.available(), 256);
    let written = std::fs::read(&output).unwrap();
    for packet in &packets[..3] {
        assert!(
            written.windows(packet.len()).any(|window| window == packet),
            "{} bytes",
            packet.len()
        );
    }
}

fn capture_file(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    // magic, version 2.4, zone, accuracy, longest packet, Ethernet
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for packet in packets {
        for word in [0, 0, packet.len() as u32, packet.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(packet);
    }
    file
}

#[test]
fn memif_carries_packets_between_two_ports() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let pool = pool(1024, 2048);
    let config = PortConfig {
        ring_size: 128,
        ..PortConfig::new(pool.clone())
    };
    let devargs = |role: &str| {
        format!(
            "net_memif{},role={role},id=0,socket={},socket-abstract=no,bsize=2048",
            unique(),
            socket.display()
        )
    };
    let mut server = running(&devargs("server"), &config);
    let mut client = running(&devargs("client"), &config);
    wait_for("the memif link", || {
        server.port.link().up && client.port.link().up
    });
    for len in [60, 600, 1514] {
        let sent = frame(&pool, len, 3);
        let expected = sent.data().to_vec();
        send(&mut client.tx, sent);
        assert_eq!(receive(&mut server.rx).data(), expected);
        // The client lends the server buffers to write to whenever it polls.
        let (mut out, mut back) = (MbufBurst::new(), MbufBurst::new());
        out.push(frame(&pool, len, 3)).unwrap();
        wait_for("the answer", || {
            server.tx.burst(&mut out);
            client.rx.burst(&mut back) > 0
        });
        assert_eq!(back[0].data(), expected);
    }
    // DPDK 22.11's driver takes a port whose other end has gone down in its interrupt thread, with no lock against
    // a close by us: both would free its rings. It says when it begins, not when it ends.
    drop(client);
    wait_for("the end of the memif link", || !server.port.link().up);
    std::thread::sleep(std::time::Duration::from_millis(200));
    drop(server);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn tap_is_an_interface_of_the_kernel() {
    let namespace = crate::namespace::Namespace::new();
    let iface = format!("fvt{}", unique());
    // The driver fills its whole ring at once.
    let pool = pool(2048, 2048);
    namespace.run(|| {
        let mut tap = running(
            &format!("net_tap{},iface={iface}", unique()),
            &PortConfig::new(pool.clone()),
        );
        let packets = packet_socket(&iface);
        let sent = {
            let mut mbuf = frame(&pool, 100, 9);
            // An experimental Ethernet type, so that nothing of the kernel's is mistaken for it.
            mbuf.data_mut()[12..14].copy_from_slice(&[0x88, 0xb5]);
            mbuf
        };
        let expected = sent.data().to_vec();
        send(&mut tap.tx, sent);
        assert_eq!(packets.receive(), expected);
        packets.send(&expected);
        let mut burst = MbufBurst::new();
        wait_for("the frame", || {
            burst.clear();
            tap.rx.burst(&mut burst);
            burst.iter().any(|mbuf| mbuf.data() == expected)
        });
    });
    assert_eq!(pool.available(), 2048);
}

/// A packet socket of the kernel on an interface, of our Ethernet type.
fn packet_socket(iface: &str) -> PacketSocket {
    let name = std::ffi::CString::new(iface).unwrap();
    // SAFETY: plain system calls with valid arguments; the descriptor is owned by the stream, whose
    // read and write are recv and send.
    unsafe {
        let protocol = 0x88b5_u16.to_be();
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
        assert!(fd >= 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        assert_eq!(
            libc::bind(
                fd,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32
            ),
            0
        );
        let stream: UnixStream = std::os::fd::FromRawFd::from_raw_fd(fd);
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        PacketSocket { stream }
    }
}

struct PacketSocket {
    stream: UnixStream,
}

impl PacketSocket {
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 10_000];
        let len = (&self.stream)
            .read(&mut buffer)
            .expect("a frame within 10 s");
        buffer.truncate(len);
        buffer
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!((&self.stream).write(frame).unwrap(), frame.len());
    }
}

#[test]
fn states_are_kept() {
    let pool = pool(256, 2048);
    let port = Port::attach(shared_eal(), &format!("net_null{}", unique())).unwrap();
    assert!(matches!(
        port.start(),
        Err(Error::State {
            needed: "configured",
            ..
        })
    ));
    assert!(matches!(
        port.rx_queue(0),
        Err(Error::State {
            needed: "started",
            ..
        })
    ));
    port.stop().unwrap();
    let config = PortConfig::new(pool.clone());
    port.configure(&config).unwrap();
    port.start().unwrap();
    port.start().unwrap();
    assert!(matches!(
        port.configure(&config),
        Err(Error::State {
            needed: "stopped",
            ..
        })
    ));
    let queue = port.rx_queue(0).unwrap();
    assert!(
        matches!(port.rx_queue(0), Err(Error::Queue { .. })),
        "taken twice"
    );
    assert!(
        matches!(port.tx_queue(1), Err(Error::Queue { .. })),
        "beyond the last"
    );
    assert!(matches!(
        port.stop(),
        Err(Error::QueuesInUse { held: 1, .. })
    ));
    drop(queue);
    let again = port.rx_queue(0).unwrap();
    drop(again);
    port.stop().unwrap();
    port.configure(&config).unwrap();
    port.start().unwrap();
    assert!(port.link().up);
}

#[test]
fn a_queue_outlives_its_port_and_pool_handle() {
    let pool = pool(256, 2048);
    let Running { mut rx, tx, port } = running(
        &format!("net_null{},size=64", unique()),
        &PortConfig::new(pool.clone()),
    );
    let name = port.name().to_owned();
    drop((port, tx));
    let mut burst = MbufBurst::new();
    assert_eq!(rx.burst(&mut burst), BURST);
    assert!(
        matches!(Port::attach(shared_eal(), &name), Err(Error::Attached(_))),
        "still there while a queue is"
    );
    drop(rx);
    // Detached now: the name is free again.
    drop(Port::attach(shared_eal(), &name).unwrap());
    drop(burst);
    assert_eq!(pool.available(), 256);
}

#[test]
fn refusals_name_the_object_and_the_way_out() {
    let eal = shared_eal();
    let text = |devargs: &str| Port::attach(eal, devargs).unwrap_err().to_string();
    for (devargs, says) in [
        (
            "net_af_packet77,iface=fvmissing",
            "there is no network interface \"fvmissing\"",
        ),
        (
            "net_af_packet77,iface=an-interface-name",
            "1 to 15 characters",
        ),
        ("0000:ff:1f.7", "PCI list"),
        ("net_af_packet77", "its driver refused it"),
        ("no_such_driver0", "no driver of DPDK answers to this name"),
        (
            "net_pcap77,rx_pcap=/nonexistent/in.pcap",
            "/nonexistent/in.pcap",
        ),
    ] {
        let text = text(devargs);
        assert!(
            text.contains(says) && !text.contains('\n'),
            "{devargs}: {text}"
        );
    }
    assert!(matches!(Port::attach(eal, ""), Err(Error::BadText(_))));

    let name = format!("net_null{}", unique());
    let port = Port::attach(eal, &name).unwrap();
    assert!(matches!(Port::attach(eal, &name), Err(Error::Attached(_))));
    let pool = pool(64, 1514);
    let fails = |config: PortConfig| port.configure(&config).unwrap_err().to_string();
    let base = PortConfig::new(pool);
    assert!(
        fails(PortConfig {
            mtu: 9000,
            ..base.clone()
        })
        .contains("MTU 9000 needs buffers of 9018 bytes")
    );
    assert!(
        fails(PortConfig {
            rx_queues: 0,
            ..base.clone()
        })
        .contains("rx queues, 0 are asked for")
    );
    assert!(
        fails(PortConfig {
            tx_queues: 5000,
            ..base.clone()
        })
        .contains("tx queues, 5000 are asked for")
    );
    port.configure(&PortConfig { mtu: 1400, ..base }).unwrap();
}

#[test]
fn a_thousand_attachments_leak_no_buffer() {
    let pool = pool(512, 1024);
    let config = PortConfig {
        mtu: 1000,
        ..PortConfig::new(pool.clone())
    };
    let number = unique();
    for round in 0..1000 {
        let mut null = running(&format!("net_null{number}"), &config);
        let mut burst = MbufBurst::new();
        null.rx.burst(&mut burst);
        null.tx.burst(&mut burst);
        null.rx.burst(&mut burst);
        drop(null);
        drop(burst);
        assert_eq!(pool.available(), 512, "round {round}");
    }
}
