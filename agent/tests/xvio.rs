//! Relays of the real program: DPDK's virtio-user in this process plays the guests, and the far sides of two
//! relays are the two ends of one wire. Needs root and `ip`.

mod support;

use api::v1::{self, RelayState};
use dpdk::{Eal, EalConfig, Hugepages, MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::{BLUE, Host, PATIENCE, is_ready, status_of};
use tonic::Code;

const HEAD: &str =
    "host = \"h1\"\n[dataplane]\nmemory_mb = 160\nbuffers = 8192\nhugepages = \"never\"\n";

static NEXT: AtomicU32 = AtomicU32::new(0);

fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| {
        let config = EalConfig {
            memory_mb: Some(256),
            hugepages: Hugepages::Never,
            ..EalConfig::default()
        };
        Eal::init(&config).unwrap()
    })
}

/// A guest: queues before the port they are of, as that is the order in which they go.
struct Guest {
    queues: Vec<(RxQueue, TxQueue)>,
    pool: Mempool,
    number: u8,
    port: Port,
}

impl Guest {
    fn new(socket: &Path, number: u8, queues: u16) -> Guest {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let device = format!(
            "net_virtio_user{serial},path={},mac=52:54:00:00:00:{number:02x},queues={queues},queue_size=256",
            socket.display()
        );
        let pool = Mempool::new(eal(), &format!("guest{serial}"), 2048, 2048, None).unwrap();
        let port = Port::attach(eal(), &device).unwrap();
        let config = PortConfig {
            rx_queues: queues,
            tx_queues: queues,
            ..PortConfig::new(pool.clone())
        };
        port.configure(&config).unwrap();
        port.start().unwrap();
        let queues = (0..queues).map(|n| (port.rx_queue(n).unwrap(), port.tx_queue(n).unwrap()));
        Guest {
            queues: queues.collect(),
            pool,
            number,
            port,
        }
    }

    /// A frame to another guest, of an address that no router would let through.
    fn frame(&self, to: &Guest, text: &str) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, to.number];
        frame.extend([0x52, 0x54, 0, 0, 0, self.number, 0x88, 0xb5]);
        frame.extend(text.as_bytes());
        frame.resize(64, 0);
        frame
    }

    /// A datagram to a neighbour in the network `BLUE`, which any router of it lets through, arrives.
    fn talks(&mut self, to: &mut Guest, last: u8) {
        use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype, protocol};
        let (src, dst) = ([10, 0, 0, self.number].into(), [10, 0, 0, last].into());
        let udp = UdpRepr {
            src: std::net::IpAddr::V4(src),
            dst: std::net::IpAddr::V4(dst),
            src_port: 4000,
            dst_port: 4001,
        };
        let ip = Ipv4Repr::new(src, dst, protocol::UDP).emit(&udp.emit(b"through the router"));
        let frame = EthernetRepr {
            dst: flow::MacAddr([0x52, 0x54, 0, 0, 0, last]),
            src: flow::MacAddr([0x52, 0x54, 0, 0, 0, self.number]),
            vlan: None,
            ethertype: ethertype::IPV4,
        }
        .emit(&ip);
        self.gets_through(to, &frame, "a datagram");
    }

    fn send(&mut self, queue: usize, frame: &[u8]) {
        let mut mbuf = self.pool.alloc().unwrap();
        mbuf.append(frame.len()).unwrap().copy_from_slice(frame);
        let mut burst = MbufBurst::new();
        assert!(burst.push(mbuf).is_ok());
        self.queues[queue].1.burst(&mut burst);
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (rx, _) in &mut self.queues {
            let mut burst = MbufBurst::new();
            rx.burst(&mut burst);
            frames.extend(burst.iter_mut().map(|mbuf| mbuf.data().to_vec()));
        }
        frames
    }

    fn reaches(&mut self, other: &mut Guest, text: &str) {
        let frame = self.frame(other, text);
        self.gets_through(other, &frame, text);
    }

    /// Sends until the other has it, from each queue in turn.
    fn gets_through(&mut self, other: &mut Guest, frame: &[u8], what: &str) {
        let start = Instant::now();
        let mut queue = 0;
        loop {
            self.send(queue, frame);
            queue = (queue + 1) % self.queues.len();
            let next = Instant::now() + Duration::from_millis(20);
            while Instant::now() < next {
                if other.receive().iter().any(|got| got == frame) {
                    return;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            assert!(start.elapsed() < PATIENCE, "\"{what}\" did not arrive");
        }
    }
}

fn exchange(a: &mut Guest, b: &mut Guest, text: &str) {
    a.reaches(b, &format!("{text} there"));
    b.reaches(a, &format!("{text} and back"));
}

/// A network namespace; gone with what is in it when this is dropped.
struct Netns(String);

impl Netns {
    fn new() -> Netns {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Netns(format!("fvx{}-{serial}", std::process::id()));
        ip(&format!("netns add {}", netns.0));
        // No router solicitations between our frames.
        netns.exec("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        netns.exec("ip link set lo up");
        netns
    }

    /// One wire with the ends p0 and w0.
    fn wire(&self) {
        self.exec("ip link add p0 type veth peer name w0");
        self.exec("ip link set p0 up");
        self.exec("ip link set w0 up");
    }

    fn exec(&self, words: &str) {
        ip(&format!("netns exec {} {words}", self.0));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .output();
    }
}

fn ip(args: &str) {
    let mut command = Command::new("ip");
    let output = command.args(args.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {said}");
}

fn spec(name: &str, number: u8, device: &str) -> v1::RelaySpec {
    v1::RelaySpec {
        name: name.into(),
        mac: format!("52:54:00:00:00:{number:02x}"),
        far: Some(v1::relay_spec::Far::Device(device.into())),
        ..Default::default()
    }
}

fn relay(name: &str, number: u8, more: &str) -> String {
    format!("[[xvio.relay]]\nname = \"{name}\"\nmac = \"52:54:00:00:00:{number:02x}\"\n{more}\n")
}

async fn host(netns: &Netns, config: &str) -> Host {
    let mut host = Host::new(config);
    host.netns = Some(netns.0.clone());
    host.run().await;
    host
}

/// The relays' sockets are there. The agent answers a moment before.
async fn listening(host: &Host, relays: &[&str]) {
    for relay in relays {
        host.until_relay(relay, RelayState::RelayWaitingForGuest)
            .await;
    }
}

/// Two relays of the file, on the two ends of one wire.
fn two_relays() -> String {
    let a = relay("a", 1, "device = \"net_af_packet1,iface=p0\"");
    let b = relay(
        "b",
        2,
        "device = \"net_af_packet2,iface=w0\"\nqueue_pairs = 2",
    );
    format!("{HEAD}{a}{b}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_of_the_file_carry_packets_and_their_devices_run_only_with_a_guest() {
    let netns = Netns::new();
    netns.wire();
    let host = host(&netns, &two_relays()).await;
    let idle = host
        .until_relay("a", RelayState::RelayWaitingForGuest)
        .await;
    assert_eq!(idle.device, None);
    assert_eq!(idle.origin(), v1::RelayOrigin::RelayFromFile);
    for round in 0..3 {
        listening(&host, &["a", "b"]).await;
        let mut a = Guest::new(&host.socket("a"), 1, 1);
        let mut b = Guest::new(&host.socket("b"), 2, 2);
        host.until_relay("a", RelayState::RelayRelaying).await;
        host.until_relay("b", RelayState::RelayRelaying).await;
        exchange(&mut a, &mut b, &format!("round {round}"));
        let now = host.relay("a").await.unwrap();
        let device = now.device.unwrap();
        assert_eq!(device.driver, "net_af_packet");
        assert!(device.link_up && device.tx_packets > 0 && device.rx_packets > 0);
        let queue = &now.queues[0];
        let (from, to) = (queue.from_guest.as_ref(), queue.to_guest.as_ref());
        assert!(from.unwrap().packets >= device.tx_packets);
        assert!(to.unwrap().packets >= 1 && to.unwrap().bytes >= 64);
        assert_eq!(host.relay("b").await.unwrap().queues.len(), 2);
        drop((a, b));
        host.until_relay("a", RelayState::RelayWaitingForGuest)
            .await;
        // It ends with its guest, which takes a moment.
        let deadline = Instant::now() + PATIENCE;
        while host.relay("a").await.unwrap().device.is_some() {
            assert!(Instant::now() < deadline, "{}", host.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_of_the_api_survive_a_kill_and_bad_ones_change_nothing() {
    let netns = Netns::new();
    netns.wire();
    let config = format!("{HEAD}{BLUE}{}", support::port("p", 10, ""));
    let mut host = host(&netns, &config).await;
    host.until("the port", |ports| is_ready(ports, "p")).await;
    let mut api = host.relays().await;
    let a = spec("a", 1, "net_af_packet1,iface=p0");
    let b = spec("b", 2, "net_af_packet2,iface=w0");
    for spec in [&a, &b, &a] {
        let added = api.add_relay(spec.clone()).await.unwrap().into_inner();
        assert_eq!(added.state(), RelayState::RelayWaitingForGuest);
    }
    let refused = async |spec: v1::RelaySpec, code: Code, said: &str| {
        let name = spec.name.clone();
        let before = host.relay(&name).await;
        let status = host.relays().await.add_relay(spec).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(said), "{said} in {status}");
        assert_eq!(host.relay(&name).await, before);
    };
    let other = v1::RelaySpec {
        mtu: 1400,
        ..a.clone()
    };
    refused(other, Code::AlreadyExists, "other settings").await;
    let null = |name: &str| spec(name, 3, "net_null7");
    let port_socket = v1::RelaySpec {
        socket: host.socket("p").display().to_string(),
        ..null("c")
    };
    refused(port_socket, Code::FailedPrecondition, "port p").await;
    let taken = host.root.path().join("taken.sock");
    let _other = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let in_use = v1::RelaySpec {
        socket: taken.display().to_string(),
        ..null("c")
    };
    refused(
        in_use,
        Code::FailedPrecondition,
        "in use by another process",
    )
    .await;
    let same_device = spec("c", 3, "net_af_packet1,iface=w0");
    refused(same_device, Code::FailedPrecondition, "relay \"a\"").await;
    let vf = v1::RelaySpec {
        far: Some(v1::relay_spec::Far::Vf("0000:7b:02.1".into())),
        ..null("c")
    };
    refused(vf, Code::FailedPrecondition, "0000:7b:02.1").await;
    let queues = v1::RelaySpec {
        queue_pairs: 65,
        ..null("c")
    };
    refused(queues, Code::InvalidArgument, "1 to 64").await;
    let file = spec("c", 3, "net_pcap0,tx_pcap=/tmp/x");
    refused(file, Code::InvalidArgument, "agent.toml").await;

    let (mut one, mut two) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 1),
    );
    exchange(&mut one, &mut two, "before the kill");
    drop((one, two));
    host.end(Signal::SIGKILL);
    host.run().await;
    listening(&host, &["a", "b"]).await;
    let (mut one, mut two) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 1),
    );
    exchange(&mut one, &mut two, "after the kill");
    let mut api = host.relays().await;
    assert_eq!(
        host.relay("a").await.unwrap().origin(),
        v1::RelayOrigin::RelayFromApi
    );
    for existed in [true, false] {
        let gone = v1::RelayRequest { name: "a".into() };
        let gone = api.remove_relay(gone).await.unwrap().into_inner();
        assert_eq!(gone.existed, existed);
    }
    assert!(!host.socket("a").exists());
    drop((one, two));
    host.end(Signal::SIGKILL);
    host.run().await;
    listening(&host, &["b"]).await;
    assert!(host.relay("a").await.is_none() && host.relay("b").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_goes_is_named_and_its_return_is_noticed_without_the_guest() {
    let netns = Netns::new();
    netns.wire();
    let host = host(&netns, &two_relays()).await;
    listening(&host, &["a", "b"]).await;
    let (mut a, mut b) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 2),
    );
    exchange(&mut a, &mut b, "at first");
    for round in 0..3 {
        netns.exec("ip link del p0");
        for (name, interface) in [("a", "p0"), ("b", "w0")] {
            let away = host
                .until_relay(name, RelayState::RelayWaitingForDevice)
                .await;
            assert_eq!(away.reason, format!("Interface {interface} is gone"));
            assert_eq!(away.device, None);
            assert!(away.guest_connected && away.active_queue_pairs > 0);
        }
        assert!(a.port.link().up && b.port.link().up, "no link flap");
        let lost = a.frame(&b, "into the void");
        a.send(0, &lost);
        netns.wire();
        host.until_relay("a", RelayState::RelayRelaying).await;
        host.until_relay("b", RelayState::RelayRelaying).await;
        exchange(&mut a, &mut b, &format!("round {round}"));
        assert!(a.port.link().up && b.port.link().up, "no link flap");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_is_a_far_side_and_an_mtu_it_cannot_have_is_named() {
    let netns = Netns::new();
    let a = relay("a", 1, "device = \"net_tap0,iface=fvtap0\"");
    let b = relay("b", 2, "device = \"net_af_packet2,iface=fvtap0\"");
    let c = relay("c", 3, "device = \"net_tap1,iface=fvtap1\"\nmtu = 9000");
    let host = host(&netns, &format!("{HEAD}{a}{b}{c}")).await;
    listening(&host, &["a", "b", "c"]).await;
    let mut b = Guest::new(&host.socket("b"), 2, 1);
    let away = host
        .until_relay("b", RelayState::RelayWaitingForDevice)
        .await;
    assert_eq!(away.reason, "Interface fvtap0 is gone");
    let mut a = Guest::new(&host.socket("a"), 1, 1);
    host.until_relay("a", RelayState::RelayRelaying).await;
    netns.exec("ip link set fvtap0 up");
    host.until_relay("b", RelayState::RelayRelaying).await;
    exchange(&mut a, &mut b, "through a tap");
    let _c = Guest::new(&host.socket("c"), 3, 1);
    let refused = host
        .until_relay("c", RelayState::RelayWaitingForDevice)
        .await;
    assert!(refused.reason.contains("MTU of 9000"), "{}", refused.reason);
    exchange(&mut a, &mut b, "undisturbed");
    drop(a);
    host.until_relay("a", RelayState::RelayWaitingForGuest)
        .await;
    let away = host
        .until_relay("b", RelayState::RelayWaitingForDevice)
        .await;
    assert_eq!(
        away.reason, "Interface fvtap0 is gone",
        "it was the guest's"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_moves_between_workers_while_it_runs() {
    let netns = Netns::new();
    netns.wire();
    let config = two_relays().replace("[dataplane]\n", "[dataplane]\nworkers = 2\n");
    let host = host(&netns, &config).await;
    listening(&host, &["a", "b"]).await;
    let (mut a, mut b) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 2),
    );
    exchange(&mut a, &mut b, "at first");
    let mut api = host.relays().await;
    for worker in [1, 0, 1] {
        let name = "a".to_owned();
        let moved = api.move_relay(v1::MoveRelayRequest { name, worker }).await;
        assert_eq!(moved.unwrap().into_inner().worker, worker as i32);
        exchange(&mut a, &mut b, &format!("on worker {worker}"));
    }
    for (name, worker, code) in [("a", 2, Code::InvalidArgument), ("z", 0, Code::NotFound)] {
        let name = name.to_owned();
        let refused = api.move_relay(v1::MoveRelayRequest { name, worker }).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_brings_and_takes_relays() {
    let netns = Netns::new();
    netns.wire();
    let host = host(&netns, &two_relays()).await;
    listening(&host, &["a", "b"]).await;
    let (mut a, mut b) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 2),
    );
    exchange(&mut a, &mut b, "at first");
    let c = relay("c", 3, "device = \"net_null3\"");
    host.configure(&format!("{}{c}", two_relays()));
    host.signal(Signal::SIGHUP);
    host.until_relay("c", RelayState::RelayWaitingForGuest)
        .await;
    exchange(&mut a, &mut b, "undisturbed");
    let file = v1::RelayRequest { name: "c".into() };
    let refused = host.relays().await.remove_relay(file).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    host.configure(&two_relays());
    host.signal(Signal::SIGHUP);
    let deadline = Instant::now() + PATIENCE;
    while host.relay("c").await.is_some() {
        assert!(Instant::now() < deadline, "{}", host.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!host.socket("c").exists());
    exchange(&mut a, &mut b, "undisturbed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_binding_xvio_without_a_vf_is_on_the_software_path_and_says_so() {
    let netns = Netns::new();
    let port = support::port("web", 10, "binding = \"xvio\"\npool = \"tenants\"");
    let host = host(&netns, &format!("{HEAD}{BLUE}{port}")).await;
    host.until("ready", |ports| is_ready(ports, "web")).await;
    // The NICs are looked at first.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let relay = host.until_relay("web", RelayState::RelayWaitingForVf).await;
        if !relay.reason.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{}", host.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _guest = Guest::new(&host.socket("web"), 10, 1);
    let relay = host
        .until_relay("web", RelayState::RelayOnSoftwarePath)
        .await;
    assert_eq!(relay.origin(), v1::RelayOrigin::RelayOfPort);
    assert_eq!(relay.network, "blue");
    assert!(relay.reason.contains("\"tenants\""), "{}", relay.reason);
    let status = status_of(&host.ports().await, "web").unwrap();
    assert_eq!(status.state(), v1::PortState::Ready);
    assert!(
        status.reason.starts_with("On the software path: "),
        "{status:?}"
    );
    let remove = v1::RelayRequest { name: "web".into() };
    let refused = host.relays().await.remove_relay(remove).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

/// A device below a port of a network: while it is away the router carries the port, the guest goes on with what
/// it has, and a conversation with a neighbour on the router survives all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_goes_on_through_the_router_while_its_device_is_away() {
    let netns = Netns::new();
    netns.wire();
    let web = support::port(
        "web",
        10,
        "binding = \"xvio\"\ndevice = \"net_af_packet1,iface=p0\"",
    );
    let far = relay("far", 12, "device = \"net_af_packet2,iface=w0\"");
    let db = support::port("db", 11, "");
    let host = host(&netns, &format!("{HEAD}{far}{BLUE}{web}{db}")).await;
    host.until("ready", |ports| {
        is_ready(ports, "web") && is_ready(ports, "db")
    })
    .await;
    listening(&host, &["far"]).await;
    let mut web = Guest::new(&host.socket("web"), 10, 1);
    let mut db = Guest::new(&host.socket("db"), 11, 1);
    let mut far = Guest::new(&host.socket("far"), 12, 1);
    for round in 0..3 {
        host.until_relay("web", RelayState::RelayRelaying).await;
        host.until_relay("far", RelayState::RelayRelaying).await;
        exchange(&mut web, &mut far, &format!("by the device, round {round}"));
        db.talks(&mut web, 10);

        netns.exec("ip link del p0");
        let away = host
            .until_relay("web", RelayState::RelayOnSoftwarePath)
            .await;
        assert_eq!(away.reason, "Interface p0 is gone");
        assert!(away.guest_connected && away.active_queue_pairs == 1);
        assert!(web.port.link().up, "no link flap");
        web.talks(&mut db, 11);
        db.talks(&mut web, 10);
        let status = status_of(&host.ports().await, "web").unwrap();
        assert_eq!(status.reason, "On the software path: Interface p0 is gone");
        netns.wire();
    }
    host.until_relay("web", RelayState::RelayRelaying).await;
    exchange(&mut web, &mut far, "at last");
    assert!(web.port.link().up, "no link flap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_the_counters_of_relays_and_ports() {
    let netns = Netns::new();
    netns.wire();
    let ports = support::port("web", 10, "");
    let config = format!(
        "{}[metrics]\nlisten = \"127.0.0.1:9690\"\n{BLUE}{ports}",
        two_relays()
    );
    let host = host(&netns, &config).await;
    listening(&host, &["a", "b"]).await;
    let (mut a, mut b) = (
        Guest::new(&host.socket("a"), 1, 1),
        Guest::new(&host.socket("b"), 2, 2),
    );
    exchange(&mut a, &mut b, "counted");
    let text = get(&netns, "/metrics");
    for wanted in [
        "HTTP/1.1 200 OK",
        "ferrovia_relay_state{relay=\"a\",state=\"relaying\"} 1",
        "ferrovia_relay_guest_connected{relay=\"b\"} 1",
        "ferrovia_relay_ring_packets_total{relay=\"a\",queue=\"0\",direction=\"from_guest\"}",
        "ferrovia_relay_device_packets_total{relay=\"a\",device=\"net_af_packet1\",direction=\"tx\"}",
        "ferrovia_port_packets_total{port=\"web\",network=\"blue\",direction=\"rx\"} 0",
        "ferrovia_worker_cycles_total{worker=\"0\",state=\"busy\"}",
        "# EOF",
    ] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(get(&netns, "/").starts_with("HTTP/1.1 404"));
}

/// What the agent's HTTP server answers, over the namespace's loopback.
fn get(netns: &Netns, path: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/9690; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let mut command = Command::new("ip");
    let command = command.args(["netns", "exec", &netns.0, "bash", "-c", &script]);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}
