//! The real program with real virtio drivers: DPDK's virtio-user in this process plays the guests.

mod support;

use api::v1;
use dpdk::{Eal, EalConfig, Hugepages, MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue};
use flow::MacAddr;
use flow::wire::{
    ArpRepr, EthernetFrame, EthernetRepr, Ipv4Repr, UdpRepr, arp, ethertype, protocol,
};
use nix::sys::signal::Signal;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::{BLUE, HEAD, Host, PATIENCE, is_ready, port};

static NEXT: AtomicU32 = AtomicU32::new(0);

fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| {
        let config = EalConfig {
            memory_mb: Some(128),
            hugepages: Hugepages::Never,
            ..EalConfig::default()
        };
        Eal::init(&config).unwrap()
    })
}

/// A guest: queues before the port they are of, as that is the order in which they go.
struct Guest {
    rx: RxQueue,
    tx: TxQueue,
    pool: Mempool,
    mac: MacAddr,
    ip: Ipv4Addr,
    _port: Port,
}

impl Guest {
    /// Connects to a port's socket, or listens on it with `server`.
    fn new(socket: &Path, number: u8, server: bool) -> Guest {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, number]);
        let server = u8::from(server);
        let path = socket.display();
        let device = format!(
            "net_virtio_user{serial},path={path},mac={mac},queues=1,queue_size=256,server={server}"
        );
        let pool = Mempool::new(eal(), &format!("guest{serial}"), 1024, 2048, None).unwrap();
        let port = Port::attach(eal(), &device).unwrap();
        port.configure(&PortConfig::new(pool.clone())).unwrap();
        port.start().unwrap();
        let (rx, tx) = (port.rx_queue(0).unwrap(), port.tx_queue(0).unwrap());
        Guest {
            rx,
            tx,
            pool,
            mac,
            ip: Ipv4Addr::new(10, 0, 0, number),
            _port: port,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut mbuf = self.pool.alloc().unwrap();
        mbuf.append(frame.len()).unwrap().copy_from_slice(frame);
        let mut burst = MbufBurst::new();
        assert!(burst.push(mbuf).is_ok());
        self.tx.burst(&mut burst);
    }

    /// Frames that have come.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut burst = MbufBurst::new();
        self.rx.burst(&mut burst);
        burst.iter_mut().map(|mbuf| mbuf.data().to_vec()).collect()
    }

    fn arp_request(&self, target: Ipv4Addr) -> Vec<u8> {
        let request = ArpRepr {
            operation: arp::REQUEST,
            sender_mac: self.mac,
            sender_ip: self.ip,
            target_mac: MacAddr::ZERO,
            target_ip: target,
        };
        let dst = MacAddr::BROADCAST;
        EthernetRepr {
            dst,
            src: self.mac,
            vlan: None,
            ethertype: ethertype::ARP,
        }
        .emit(&request.emit())
    }

    fn datagram(&self, src: Ipv4Addr, to: &Guest, text: &[u8]) -> Vec<u8> {
        let udp = UdpRepr {
            src: src.into(),
            dst: to.ip.into(),
            src_port: 4000,
            dst_port: 4001,
        };
        let ip = Ipv4Repr::new(src, to.ip, protocol::UDP).emit(&udp.emit(text));
        EthernetRepr {
            dst: to.mac,
            src: self.mac,
            vlan: None,
            ethertype: ethertype::IPV4,
        }
        .emit(&ip)
    }
}

/// Sends again and again until what is sent has arrived.
fn until_arrived(
    what: &str,
    from: &mut Guest,
    frame: &[u8],
    mut arrived: impl FnMut(&mut Guest) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        from.send(frame);
        let next = Instant::now() + Duration::from_millis(50);
        while Instant::now() < next {
            if arrived(from) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Instant::now() < deadline, "{what} did not arrive");
    }
}

fn ends_with(guest: &mut Guest, text: &[u8]) -> bool {
    guest.receive().iter().any(|frame| frame.ends_with(text))
}

/// An ARP request for the gateway is answered.
fn reaches_gateway(guest: &mut Guest) {
    let request = guest.arp_request(Ipv4Addr::new(10, 0, 0, 1));
    until_arrived("the gateway's answer", guest, &request, |guest| {
        guest.receive().iter().any(|frame| {
            EthernetFrame::new_checked(frame.as_slice())
                .is_ok_and(|frame| frame.ethertype() == ethertype::ARP)
        })
    });
}

/// A router advertisement comes unasked (ICMPv6 type 134, after 14 and 40 bytes of headers).
fn hears_a_router(guest: &mut Guest) {
    let deadline = Instant::now() + PATIENCE;
    while !guest
        .receive()
        .iter()
        .any(|f| f[12..14] == [0x86, 0xdd] && f.get(54) == Some(&134))
    {
        assert!(Instant::now() < deadline, "no router advertisement");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn exchange(a: &mut Guest, b: &mut Guest, text: &str) {
    let there = a.datagram(a.ip, b, format!("{text}, there").as_bytes());
    let back = b.datagram(b.ip, a, format!("{text}, back").as_bytes());
    until_arrived(text, a, &there, |_| {
        ends_with(b, format!("{text}, there").as_bytes())
    });
    until_arrived(text, b, &back, |_| {
        ends_with(a, format!("{text}, back").as_bytes())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_guests_talk_and_the_agent_says_so_also_after_kill_9() {
    let ports = format!(
        "{}{}",
        port("a", 10, ""),
        port("b", 11, "mode = \"client\"")
    );
    let mut host = Host::start(&format!("{HEAD}{BLUE}{ports}")).await;
    host.until("ready", |ports| {
        is_ready(ports, "a") && is_ready(ports, "b")
    })
    .await;

    let mut a = Guest::new(&host.socket("a"), 10, false);
    let mut b = Guest::new(&host.socket("b"), 11, true);
    host.until("both connected", |ports| {
        ports.iter().all(|port| {
            port.port
                .as_ref()
                .unwrap()
                .status
                .as_ref()
                .unwrap()
                .guest_connected
                && port.features.contains("version-1")
                && port.active_queue_pairs == 1
        })
    })
    .await;
    hears_a_router(&mut a);
    reaches_gateway(&mut a);
    exchange(&mut a, &mut b, "hello");

    let spoofed = a.datagram(Ipv4Addr::new(10, 0, 0, 99), &b, b"who am I");
    a.send(&spoofed);
    host.until("the spoofed packet is counted", |ports| {
        ports.iter().any(|port| {
            let drops = port
                .counters
                .as_ref()
                .map(|c| c.drops.as_slice())
                .unwrap_or_default();
            drops
                .iter()
                .any(|drop| drop.reason == "spoofed-ip" && drop.packets == 1)
        })
    })
    .await;

    let request = v1::ListFlowsRequest {
        port: "a".into(),
        limit: 0,
    };
    let flows = host
        .client()
        .await
        .list_flows(request)
        .await
        .unwrap()
        .into_inner()
        .flows;
    let udp = flows
        .iter()
        .find(|f| f.in_port == "a" && f.key.contains("10.0.0.10:4000 > 10.0.0.11:4001"));
    let udp = udp.unwrap_or_else(|| panic!("{flows:#?}"));
    assert_eq!(
        (udp.home.as_str(), udp.network.as_str()),
        ("software", "blue")
    );
    assert!(udp.packets >= 1 && udp.actions.contains("output="));
    let shown = host.ports().await;
    let counters = shown[0].counters.clone().unwrap();
    assert!(
        counters.tx_packets >= 2 && counters.rx_packets >= 2,
        "{counters:?}"
    );

    host.end(Signal::SIGKILL);
    host.run().await;
    host.until("ready again", |ports| {
        is_ready(ports, "a") && is_ready(ports, "b")
    })
    .await;
    // New connections, as libvirt's `reconnect` makes them; the agent finds b's by itself.
    drop((a, b));
    let mut a = Guest::new(&host.socket("a"), 10, false);
    let mut b = Guest::new(&host.socket("b"), 11, true);
    exchange(&mut a, &mut b, "again");
}

/// Two network namespaces with a veth between them; they go when this does.
struct Wire {
    names: [String; 2],
}

fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Wire {
    fn new(addresses: [&str; 2], mtu: u16) -> Wire {
        let pid = std::process::id();
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = [1, 2].map(|end| format!("fva{pid}-{serial}-{end}"));
        let wire = Wire { names };
        for name in &wire.names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        let [one, two] = &wire.names;
        ip(&format!(
            "link add eth1 netns {one} mtu {mtu} type veth peer name eth1 netns {two} mtu {mtu}"
        ));
        for (name, address) in wire.names.iter().zip(addresses) {
            ip(&format!("-n {name} address add {address} dev eth1 nodad"));
            ip(&format!("-n {name} link set eth1 up"));
        }
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

async fn two_hosts(addresses: [&str; 2]) {
    let wire = Wire::new(addresses, 1600);
    let vtep = |end: usize| addresses[end].split('/').next().unwrap();
    let config = |own: u8, other: u8, vtep: &str| {
        let peer = format!(
            "[[peer]]\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:{other:02x}\"\n\
             addresses = [\"10.0.0.{other}\"]\nvtep = \"{vtep}\"\n"
        );
        let guest = port("guest", own, "");
        format!("{HEAD}[underlay]\ninterface = \"eth1\"\n{BLUE}{guest}{peer}")
    };
    let mut one = Host::new(&config(10, 11, vtep(1)));
    let mut two = Host::new(&config(11, 10, vtep(0)));
    one.netns = Some(wire.names[0].clone());
    two.netns = Some(wire.names[1].clone());
    one.run().await;
    two.run().await;
    for host in [&one, &two] {
        host.until("ready", |ports| is_ready(ports, "guest")).await;
    }
    let info = one.status().await;
    assert_eq!((info.vtep.as_str(), info.underlay_mtu), (vtep(0), 1600));
    let mut a = Guest::new(&one.socket("guest"), 10, false);
    let mut b = Guest::new(&two.socket("guest"), 11, false);
    exchange(&mut a, &mut b, "across");
    let counters = one
        .client()
        .await
        .get_counters(v1::Empty {})
        .await
        .unwrap()
        .into_inner();
    let uplink = counters.uplink.unwrap();
    assert!(
        uplink.tx_packets >= 1 && uplink.rx_packets >= 1,
        "{uplink:?}"
    );

    // The kernel does not answer VXLAN with "port unreachable".
    let unreachable = Command::new("ip")
        .args(["netns", "exec", &wire.names[0], "cat", "/proc/net/snmp"])
        .output()
        .unwrap();
    let text = String::from_utf8(unreachable.stdout).unwrap();
    assert_eq!(snmp(&text, "Icmp:", "OutDestUnreachs"), 0, "{text}");

    // With guests and an uplink, and nothing to do.
    let share = one.cpu_share(Duration::from_secs(4)).await;
    assert!(
        share < 0.03,
        "an idle agent uses {:.1} % of a core",
        share * 100.0
    );

    // The other host is killed and comes back: traffic goes on.
    two.end(Signal::SIGKILL);
    two.run().await;
    two.until("ready again", |ports| is_ready(ports, "guest"))
        .await;
    drop(b);
    let mut b = Guest::new(&two.socket("guest"), 11, false);
    exchange(&mut a, &mut b, "after the kill");
}

/// A counter of `/proc/net/snmp`.
fn snmp(text: &str, line: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|l| l.starts_with(line));
    let names = lines.next().unwrap().split_whitespace();
    let values = lines.next().unwrap().split_whitespace();
    names
        .zip(values)
        .find(|(n, _)| *n == name)
        .unwrap()
        .1
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_two_hosts_talk_through_vxlan() {
    two_hosts(["192.0.2.1/24", "192.0.2.2/24"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_two_hosts_talk_through_vxlan_over_ipv6() {
    two_hosts(["2001:db8::1/64", "2001:db8::2/64"]).await;
}

#[tokio::test]
async fn a_vxlan_port_in_use_is_a_clear_error() {
    let wire = Wire::new(["192.0.2.1/24", "192.0.2.2/24"], 1500);
    ip(&format!(
        "-n {} link add vx0 type vxlan id 7 dstport 4789 local 192.0.2.1 dev eth1",
        wire.names[0]
    ));
    ip(&format!("-n {} link set vx0 up", wire.names[0]));
    let mut host = Host::new(&format!("{HEAD}[underlay]\ninterface = \"eth1\"\n"));
    host.netns = Some(wire.names[0].clone());
    let output = host.command("run").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("UDP port 4789 of 192.0.2.1 is taken"),
        "{text}"
    );
}
