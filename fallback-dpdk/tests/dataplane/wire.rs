//! Wires: veth pairs in a network namespace of the test, one end for the data plane, the other for a
//! packet socket of the test.

use dpdk::{Eal, EalConfig, Hugepages};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// DPDK, once in the process, without hugepages.
pub fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| {
        let config = EalConfig {
            program: "fallback-dpdk-test".to_owned(),
            memory_mb: Some(256),
            hugepages: Hugepages::Never,
            ..EalConfig::default()
        };
        Eal::init(&config).expect("DPDK starts without hugepages")
    })
    .clone()
}

/// A number that no other test of this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits for something that other threads bring about.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "waited 20 s for {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A namespace, gone again when it is dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Self {
        let name = format!("fvfb{}-{}", std::process::id(), unique());
        ip(&["netns", "add", &name]);
        Namespace { name }
    }

    /// Runs `body` in a thread that is in the namespace.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file =
                    File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                body()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Takes a wire's interfaces away.
    pub fn cut(&self, name: &str) {
        ip(&["-n", &self.name, "link", "delete", &format!("p{name}")]);
    }

    /// A wire: the DPDK device on one end, the test's socket on the other.
    pub fn wire(&self, name: &str) -> (dpdk::Port, Wire) {
        let (ours, theirs) = (format!("p{name}"), format!("w{name}"));
        ip(&[
            "-n", &self.name, "link", "add", &ours, "type", "veth", "peer", "name", &theirs,
        ]);
        for iface in [&ours, &theirs] {
            // No router solicitations between our frames.
            self.run(|| {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{iface}/disable_ipv6"), "1")
                    .expect("IPv6 can be switched off")
            });
            ip(&["-n", &self.name, "link", "set", iface, "up"]);
        }
        for iface in [&ours, &theirs] {
            wait_for("the veth pair to come up", || {
                ip(&["-n", &self.name, "-o", "link", "show", iface]).contains("state UP")
            });
        }
        let devargs =
            dpdk::af_packet_devargs(&format!("{}x{}", std::process::id(), unique()), &ours, 1500);
        self.run(|| {
            let port = dpdk::Port::attach(&eal(), &devargs).expect("af_packet attaches to a veth");
            (port, Wire::new(&theirs))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The far end of a device.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    fn new(iface: &str) -> Self {
        let socket = nix::sys::socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        let index = nix::net::if_::if_nametoindex(iface).expect("the interface exists");
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is whole and its length given.
        let status = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(status, 0, "bind to {iface}");
        Wire { socket }
    }

    pub fn send(&self, frame: &[u8]) {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).expect("the wire takes the frame");
    }

    /// Whether the wire took the frame.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT).is_ok()
    }

    /// A frame, if there is one.
    pub fn try_recv<'a>(&self, into: &'a mut [u8]) -> Option<&'a [u8]> {
        let length = recv(self.socket.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT).ok()?;
        into.get(..length)
    }

    /// The next frame within this time.
    pub fn recv_within(&self, time: Duration) -> Option<Vec<u8>> {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.try_recv(&mut buffer) {
                return Some(frame.to_vec());
            }
            if start.elapsed() > time {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// The next frame.
    pub fn recv(&self) -> Vec<u8> {
        self.recv_within(Duration::from_secs(10))
            .expect("a frame arrives within 10 s")
    }

    /// No frame comes.
    pub fn quiet(&self) {
        let frame = self.recv_within(Duration::from_millis(150));
        assert!(frame.is_none(), "unexpected frame {frame:02x?}");
    }
}
