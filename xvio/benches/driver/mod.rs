//! A driver in this process: as simple as it can be, one descriptor a packet, in order.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use xvio::{Backend, BackendConfig, Offer, QueuePair, SocketMode, TxBurst};

/// `VIRTIO_F_RING_PACKED`.
pub const PACKED: u64 = 1 << 34;
/// `VIRTIO_F_IN_ORDER`.
pub const IN_ORDER: u64 = 1 << 35;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL: u64 = 1 << 30;
const MRG_RXBUF: u64 = 1 << 15;
const SIZE: u16 = 256;
const MEMORY: u64 = 4 << 20;
/// Where the rings are (one page each for descriptors, available, used), and the buffers.
const RINGS: u64 = 0;
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 2048;
const WRITE: u16 = 2;

/// One guest with one queue pair.
pub struct Driver {
    /// The device's side.
    pub pair: QueuePair,
    memory: Arc<GuestMemoryMmap>,
    packed: bool,
    /// Of the receive and the transmit ring: how many descriptors were ever made available.
    made: [u64; 2],
    _port: Backend,
    _frontend: Frontend,
    _folder: tempfile::TempDir,
    _events: Vec<EventFd>,
}

impl Driver {
    /// Connected, and with both rings running.
    pub fn new(features: u64) -> Driver {
        let folder = tempfile::tempdir().expect("a folder");
        let mut port = Backend::start(BackendConfig {
            name: "bench".to_owned(),
            socket: folder.path().join("port.sock"),
            mode: SocketMode::Server,
            owner: None,
            group: None,
            permissions: 0o600,
            max_queue_pairs: 1,
            max_queue_size: SIZE,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 9000,
            features: Offer::default(),
        })
        .expect("a port");
        let pair = port.take_queues().remove(0);
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = nix::sys::memfd::memfd_create(c"xvio-bench", flags).expect("memory");
        let file = std::fs::File::from(file);
        file.set_len(MEMORY).expect("memory");
        let handle = file.as_raw_fd();
        let offset = Some(FileOffset::new(file.try_clone().expect("memory"), 0));
        let ranges = [(GuestAddress(0), MEMORY as usize, offset)];
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).expect("memory");

        let mut frontend =
            Frontend::connect(folder.path().join("port.sock"), 2).expect("a connection");
        frontend.set_owner().expect("set_owner");
        let offered = frontend.get_features().expect("features");
        let wanted = features | VERSION_1 | PROTOCOL | MRG_RXBUF;
        assert_eq!(wanted & !offered, 0);
        frontend.set_features(wanted).expect("set_features");
        frontend.get_protocol_features().expect("protocol features");
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
            .expect("protocol features");
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: MEMORY,
            mmap_offset: 0,
            mmap_handle: handle,
        };
        frontend.set_mem_table(&[region]).expect("memory table");
        let packed = features & PACKED != 0;
        let mut events = Vec::new();
        for ring in 0..2usize {
            let at = MEMORY + RINGS + 0x1_0000 * ring as u64;
            let data = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: at,
                avail_ring_addr: at + 0x4000,
                used_ring_addr: at + 0x8000,
                log_addr: None,
            };
            let event = || EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
            let (kick, call) = (event(), event());
            frontend.set_vring_num(ring, SIZE).expect("vring num");
            frontend
                .set_vring_base(ring, u16::from(packed) << 15)
                .expect("vring base");
            frontend.set_vring_addr(ring, &data).expect("vring addr");
            frontend.set_vring_call(ring, &call).expect("vring call");
            frontend.set_vring_kick(ring, &kick).expect("vring kick");
            frontend.set_vring_enable(ring, true).expect("vring enable");
            events.extend([kick, call]);
            // No interrupts: the flag of the available ring, or of the driver's event structure.
            let (place, flag) = if packed { (2, 1u16) } else { (0, 1u16) };
            let place = GuestAddress(at - MEMORY + 0x4000 + place);
            memory.write_obj(flag, place).expect("in memory");
        }
        let end = Instant::now() + Duration::from_secs(10);
        while port.status().active_queue_pairs == 0 {
            assert!(Instant::now() < end, "{:?}", port.status());
            std::thread::sleep(Duration::from_millis(1));
        }
        Driver {
            pair,
            memory: Arc::new(memory),
            packed,
            made: [0; 2],
            _port: port,
            _frontend: frontend,
            _folder: folder,
            _events: events,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory
            .write_obj(value, GuestAddress(at))
            .expect("in memory");
    }

    /// Makes `count` descriptors available.
    fn make(&mut self, ring: usize, count: usize, len: u32, flags: u16) {
        let base = RINGS + 0x1_0000 * ring as u64;
        for _ in 0..count {
            let n = self.made[ring];
            let (slot, round) = (n % u64::from(SIZE), n / u64::from(SIZE));
            let address = BUFFERS + BUFFER * (slot + u64::from(SIZE) * ring as u64);
            let at = base + 16 * slot;
            self.put(address, at);
            self.put(len, at + 8);
            if self.packed {
                let bits = if round.is_multiple_of(2) {
                    1u16 << 7
                } else {
                    1 << 15
                };
                self.put(slot as u16, at + 12);
                self.put(flags | bits, at + 14);
            } else {
                self.put(flags, at + 12);
                self.put(slot as u16, base + 0x4000 + 4 + 2 * slot);
            }
            self.made[ring] = n + 1;
        }
        if !self.packed {
            self.put(self.made[ring] as u16, base + 0x4000 + 2);
        }
    }

    /// Packets of `size` bytes, with a virtio-net header of zeros.
    pub fn transmit(&mut self, count: usize, size: usize) {
        self.make(1, count, 12 + size as u32, 0);
        let start = Instant::now();
        // Not so soon after the last burst that a packed ring is given time to fill.
        while start.elapsed() < Duration::from_micros(5) {
            std::hint::spin_loop();
        }
    }

    /// Empty buffers.
    pub fn receive(&mut self, count: usize) {
        self.make(0, count, BUFFER as u32, WRITE);
    }

    /// One poll, as a worker would.
    pub fn poll(&mut self, burst: &mut TxBurst) -> usize {
        self.pair.tx.poll(burst)
    }
}
