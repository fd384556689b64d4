//! What a packet that has a flow costs: TSC cycles from its device to the other one, one worker.
//!
//! `cargo xtask bench flood [-- MILLISECONDS]`. No root, no guests, no NIC: the packets come from a
//! capture file that DPDK replays for ever (`net_pcap`), and leave into `net_null`. The column
//! "device" is what taking and freeing the same packets costs without the data plane; "flow" is the
//! difference: parsing, look-up, actions, staging. On a machine that does other things as well, the
//! lowest of the windows is the one to compare.

use dpdk::{Eal, EalConfig, Hugepages, MbufBurst, Port, PortConfig};
use fallback_dpdk::{Config, Dataplane, Wake};
use flow::reference::{Packet, execute};
use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype, protocol};
use flow::{Action, MacAddr, PortId, Vxlan};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vrouter::{Network, NetworkId, Peer, Subnet, Topology, Underlay, VRouter};

const UPLINK_MAC: MacAddr = MacAddr([2, 0xaa, 0, 0, 0, 1]);
const PEER_MAC: MacAddr = MacAddr([2, 0xaa, 0, 0, 0, 2]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0xbb, 0, 0, 0, 1]);
const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PEER_VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const VNI: u32 = 100;
/// The station on the other host.
const PEER: u8 = 101;
/// Packets in a capture file at least, so that a burst is a burst.
const FEWEST: usize = 256;
const FLOWS: [usize; 3] = [1, 1024, 16_384];
const SIZES: [usize; 2] = [64, 1400];
const WINDOWS: u32 = 20;

/// One thing that is done to packets.
struct Case {
    name: &'static str,
    from: PortId,
    to: PortId,
    /// The packet with this source port, this long.
    packet: fn(u16, usize) -> Vec<u8>,
}

const CASES: [Case; 4] = [
    Case {
        name: "switch",
        from: PortId(1),
        to: PortId(2),
        packet: |port, size| station_frame(1, mac(2), address(1, 2), port, size),
    },
    Case {
        name: "route",
        from: PortId(1),
        to: PortId(2),
        packet: |port, size| station_frame(1, GATEWAY_MAC, address(2, 2), port, size),
    },
    Case {
        name: "encap",
        from: PortId(1),
        to: PortId::UPLINK,
        packet: |port, size| station_frame(1, mac(PEER), address(1, PEER), port, size),
    },
    Case {
        name: "decap",
        from: PortId::UPLINK,
        to: PortId(1),
        packet: |port, size| tunnelled(station_frame(PEER, mac(1), address(1, 1), port, size)),
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let time = match std::env::args().nth(1) {
        Some(text) => Duration::from_millis(text.parse()?),
        None => Duration::from_secs(1),
    };
    let eal = Eal::init(&EalConfig {
        program: "bench_flood".to_owned(),
        memory_mb: Some(256),
        hugepages: Hugepages::Auto,
        ..EalConfig::default()
    })?;
    let plane = Dataplane::start(
        eal.clone(),
        Config {
            buffers: 40_000,
            max_frame: 2048,
            flow_capacity: 65_536,
            slow_path_rate: 10_000_000,
            ..Config::default()
        },
    )?;
    plane.publish(Arc::new(VRouter::new(topology())?));
    let files = Files::new()?;
    println!("cycles a packet, lowest (median) of {WINDOWS} windows; one worker");
    println!(
        "{:<8}{:>6}{:>8}{:>9}{:>17}{:>7}{:>9}",
        "path", "bytes", "flows", "device", "whole", "flow", "Mpps"
    );
    let mut number = 0;
    for case in &CASES {
        for size in SIZES {
            for flows in FLOWS {
                number += 1;
                let file = files.capture(number, case, size, flows)?;
                let run = Run {
                    eal: &eal,
                    plane: &plane,
                    number,
                    file: &file,
                };
                let device = run.device(time / 4)?;
                let (lowest, median) = run.whole(case, flows, time)?;
                let mpps = dpdk::cycles_hz() as f64 / lowest / 1e6;
                println!(
                    "{:<8}{size:>6}{flows:>8}{device:>9.0}{lowest:>8.0} ({median:>6.0}){:>7.0}{mpps:>9.2}",
                    case.name,
                    lowest - device
                );
            }
        }
    }
    Ok(())
}

/// One measurement.
struct Run<'a> {
    eal: &'a Eal,
    plane: &'a Dataplane,
    number: u32,
    file: &'a Path,
}

impl Run<'_> {
    fn source(&self, name: &str) -> Result<Port, Box<dyn Error>> {
        let devargs = format!(
            "net_pcap_{name}{},rx_pcap={},infinite_rx=1",
            self.number,
            self.file.display()
        );
        let port = Port::attach(self.eal, &devargs)?;
        port.configure(&PortConfig::new(self.plane.mempool().clone()))?;
        port.start()?;
        Ok(port)
    }

    /// Cycles a packet of the device alone.
    fn device(&self, time: Duration) -> Result<f64, Box<dyn Error>> {
        let port = self.source("alone")?;
        let mut queue = port.rx_queue(0)?;
        let _registered = self.eal.register_thread()?;
        let mut burst = MbufBurst::new();
        let mut lowest = f64::INFINITY;
        for _ in 0..WINDOWS {
            let (start, before, mut packets) = (Instant::now(), dpdk::cycles(), 0);
            while start.elapsed() < time / WINDOWS {
                for _ in 0..64 {
                    packets += queue.burst(&mut burst);
                    burst.clear();
                }
            }
            let spent = dpdk::cycles() - before;
            lowest = lowest.min(spent as f64 / packets.max(1) as f64);
        }
        Ok(lowest)
    }

    /// Cycles a packet from device to device: the lowest and the median of the windows.
    fn whole(
        &self,
        case: &Case,
        flows: usize,
        time: Duration,
    ) -> Result<(f64, f64), Box<dyn Error>> {
        let sink = Port::attach(self.eal, &format!("net_null{},no-rx=1", self.number))?;
        self.plane.add_ethdev(case.to, sink, Some(Wake::Timer))?;
        let source = self.source("flood")?;
        self.plane
            .add_ethdev(case.from, source, Some(Wake::Timer))?;
        let start = Instant::now();
        while self.plane.counters().flows < flows || self.hits(case.from) == 0 {
            if start.elapsed() > Duration::from_secs(10) {
                let counters = self.plane.counters();
                return Err(format!("{}: no flows: {counters:?}", case.name).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut windows = Vec::new();
        for _ in 0..WINDOWS {
            let (hits, busy) = (self.hits(case.from), self.plane.workers()[0].busy_cycles);
            std::thread::sleep(time / WINDOWS);
            let spent = self.plane.workers()[0].busy_cycles - busy;
            let packets = self.hits(case.from) - hits;
            windows.push(spent as f64 / packets.max(1) as f64);
        }
        let counters = self.plane.counters();
        let port = |id| counters.ports.iter().find(|(port, _)| *port == id);
        if let (Some((_, from)), Some((_, to))) = (port(case.from), port(case.to))
            && to.tx_packets + 4096 < from.hits
        {
            return Err(format!("{}: packets were lost: {counters:?}", case.name).into());
        }
        self.plane.remove_port(case.from)?;
        self.plane.remove_port(case.to)?;
        windows.sort_by(f64::total_cmp);
        Ok((windows[0], windows[windows.len() / 2]))
    }

    fn hits(&self, port: PortId) -> u64 {
        let ports = self.plane.counters().ports;
        ports
            .iter()
            .find(|(id, _)| *id == port)
            .map_or(0, |(_, counters)| counters.hits)
    }
}

/// Capture files in a folder of their own, gone in the end.
struct Files(PathBuf);

impl Files {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("ferrovia-flood-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Files(folder))
    }

    fn capture(
        &self,
        number: u32,
        case: &Case,
        size: usize,
        flows: usize,
    ) -> std::io::Result<PathBuf> {
        // The file header of libpcap: magic, version 2.4, time zone, accuracy, longest, Ethernet.
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
            bytes.extend(word.to_ne_bytes());
        }
        for n in 0..flows.max(FEWEST) {
            let packet = (case.packet)((1000 + n % flows) as u16, size);
            let length = packet.len() as u32;
            for word in [0, 0, length, length] {
                bytes.extend(u32::to_ne_bytes(word));
            }
            bytes.extend(packet);
        }
        let file = self.0.join(format!("{number}.pcap"));
        std::fs::write(&file, bytes)?;
        Ok(file)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn address(subnet: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, subnet, 0, n)
}

/// A datagram from a station, `size` bytes with its Ethernet header.
fn station_frame(from: u8, eth_dst: MacAddr, dst: Ipv4Addr, port: u16, size: usize) -> Vec<u8> {
    let src = address(1, from);
    let udp = UdpRepr {
        src: IpAddr::V4(src),
        dst: IpAddr::V4(dst),
        src_port: port,
        dst_port: 9,
    };
    let payload = vec![0; size.saturating_sub(14 + 20 + 8)];
    let eth = EthernetRepr {
        dst: eth_dst,
        src: mac(from),
        vlan: None,
        ethertype: ethertype::IPV4,
    };
    eth.emit(&Ipv4Repr::new(src, dst, protocol::UDP).emit(&udp.emit(&payload)))
}

/// As the other host sends it.
fn tunnelled(frame: Vec<u8>) -> Vec<u8> {
    let outer = Vxlan {
        eth_src: PEER_MAC,
        eth_dst: UPLINK_MAC,
        src: PEER_VTEP,
        dst: VTEP,
        src_port: 50_000,
        vni: VNI,
        ttl: 64,
    };
    let list = [Action::EncapVxlan(outer), Action::Output(PortId::UPLINK)];
    let run = execute(&list, Packet::complete(frame));
    run.outputs
        .into_iter()
        .next()
        .map_or_else(Vec::new, |(_, packet)| packet.bytes)
}

fn topology() -> Topology {
    let network = NetworkId(1);
    let subnet = |third: u8| Subnet {
        prefix: format!("10.{third}.0.0/24").parse().expect("a prefix"),
        gateway: IpAddr::V4(address(third, 254)),
        slaac: false,
    };
    Topology {
        epoch: 1,
        underlay: Some(Underlay {
            address: VTEP,
            prefix_len: 24,
            gateway: None,
            mac: UPLINK_MAC,
            mtu: 1600,
            neighbours: vec![(PEER_VTEP, PEER_MAC)],
            answer_arp: true,
        }),
        networks: vec![Network {
            id: network,
            name: "blue".to_owned(),
            vni: VNI,
            mtu: 1500,
            gateway_mac: GATEWAY_MAC,
            subnets: vec![subnet(1), subnet(2)],
            dns: vec![],
            routes: vec![],
        }],
        ports: (1..=2)
            .map(|n| vrouter::Port {
                id: PortId(u32::from(n)),
                name: format!("vm{n}"),
                network,
                mac: mac(n),
                addresses: vec![IpAddr::V4(address(1, n)), IpAddr::V4(address(2, n))],
            })
            .collect(),
        peers: vec![Peer {
            network,
            mac: mac(PEER),
            addresses: vec![IpAddr::V4(address(1, PEER))],
            vtep: PEER_VTEP,
        }],
    }
}
