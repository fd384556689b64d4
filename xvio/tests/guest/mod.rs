//! A guest for tests: memory in a memfd, the driver's side of split rings, and the `vhost` crate's
//! frontend to introduce them to the device. Memory is read and written through the file, so no
//! test needs `unsafe`.
#![allow(dead_code)] // each test file uses a part

pub mod raw;
mod ring;

pub use ring::Ring;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use xvio::{Backend, BackendConfig, Offer, SocketMode, Status};

pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL: u64 = 1 << 30;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const CSUM: u64 = 1;
pub const GUEST_CSUM: u64 = 2;
pub const MQ: u64 = 1 << 22;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;

/// Two regions that follow each other for the guest but not in the file.
pub const LOW: u64 = 0x10_0000;
pub const HIGH: u64 = 0x20_0000;
pub const REGION: u64 = 0x10_0000;
pub const END: u64 = HIGH + REGION;
/// Where the high region is in the file; the bytes before and after it belong to nobody.
pub const HIGH_OFFSET: u64 = 0x20_0000;
const FILE: u64 = 0x40_0000;
const USER: u64 = 0x7000_0000_0000;
const CANARY: u8 = 0xa5;
/// Buffers for packets, up to [`END`].
pub const BUFFERS: u64 = 0x16_0000;

/// Guest memory.
pub struct Memory {
    pub file: File,
}

impl Memory {
    pub fn new() -> Self {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let fd: OwnedFd = nix::sys::memfd::memfd_create(c"xvio-test", flags).unwrap();
        let file = File::from(fd);
        file.set_len(FILE).unwrap();
        let canary = vec![CANARY; REGION as usize];
        file.write_all_at(&canary, REGION).unwrap();
        file.write_all_at(&canary, HIGH_OFFSET + REGION).unwrap();
        Memory { file }
    }

    /// Nothing outside of the regions was written.
    pub fn assert_untouched_outside(&self) {
        let mut bytes = vec![0; REGION as usize];
        for offset in [REGION, HIGH_OFFSET + REGION] {
            self.file.read_exact_at(&mut bytes, offset).unwrap();
            assert!(
                bytes.iter().all(|b| *b == CANARY),
                "bytes after {offset:#x}"
            );
        }
    }

    /// Runs of bytes: file offset and length.
    fn pieces(address: u64, len: usize) -> Vec<(u64, usize)> {
        assert!(
            address >= LOW && address + len as u64 <= END,
            "{address:#x}"
        );
        if address >= HIGH {
            return vec![(address - HIGH + HIGH_OFFSET, len)];
        }
        let first = len.min((HIGH - address) as usize);
        let mut pieces = vec![(address - LOW, first)];
        if first < len {
            pieces.push((HIGH_OFFSET, len - first));
        }
        pieces
    }

    pub fn write(&self, address: u64, mut bytes: &[u8]) {
        for (offset, len) in Self::pieces(address, bytes.len()) {
            self.file.write_all_at(&bytes[..len], offset).unwrap();
            bytes = &bytes[len..];
        }
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for (offset, len) in Self::pieces(address, len) {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, offset).unwrap();
            all.extend(bytes);
        }
        all
    }

    pub fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |guest: u64, offset: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: guest,
            memory_size: REGION,
            userspace_addr: guest + USER,
            mmap_offset: offset,
            mmap_handle: self.file.as_raw_fd(),
        };
        vec![region(LOW, 0), region(HIGH, HIGH_OFFSET)]
    }
}

/// One buffer of a chain: guest address and length.
pub type Buffer = (u64, u32);

/// A whole guest on a backend.
pub struct Guest {
    pub memory: Memory,
    pub frontend: Frontend,
    pub rings: Vec<Ring>,
}

impl Guest {
    /// Connects and negotiates, without any ring.
    pub fn connect(socket: &Path, features: u64, pairs: usize, size: u16) -> Guest {
        let frontend = Frontend::connect(socket, 2 * pairs as u64).unwrap();
        let mut guest = Guest::with_frontend(frontend, pairs, size);
        guest.negotiate(features);
        guest
    }

    /// A guest that has said nothing yet.
    pub fn with_frontend(frontend: Frontend, pairs: usize, size: u16) -> Guest {
        Guest {
            memory: Memory::new(),
            frontend,
            rings: (0..2 * pairs).map(|i| Ring::new(i, size)).collect(),
        }
    }

    /// Agrees on features, of the device and of the protocol.
    pub fn negotiate(&mut self, features: u64) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = features | VERSION_1 | PROTOCOL;
        assert_eq!(wanted & !offered, 0, "offered {offered:#x}");
        let protocol = frontend.get_protocol_features().unwrap();
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        frontend.set_protocol_features(protocol & known).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted).unwrap();
        for ring in &mut self.rings {
            ring.packed = features & PACKED != 0;
            ring.in_order = features & IN_ORDER != 0;
        }
    }

    /// Shares the memory and starts all rings.
    pub fn start(&mut self) {
        self.frontend.set_mem_table(&self.memory.regions()).unwrap();
        for index in 0..self.rings.len() {
            let base = self.rings[index].first_base();
            self.start_ring(index, base);
        }
    }

    pub fn start_ring(&mut self, index: usize, base: u16) {
        let ring = &self.rings[index];
        let at = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.desc() + USER,
            used_ring_addr: ring.used() + USER,
            avail_ring_addr: ring.avail() + USER,
            log_addr: None,
        };
        let f = &mut self.frontend;
        f.set_vring_num(index, ring.size).unwrap();
        f.set_vring_base(index, base).unwrap();
        f.set_vring_addr(index, &at).unwrap();
        f.set_vring_call(index, &ring.call).unwrap();
        f.set_vring_kick(index, &ring.kick).unwrap();
        f.set_vring_enable(index, true).unwrap();
        ring.interrupts();
    }

    /// Stops a ring, empties it, and starts it anew.
    pub fn restart_ring(&mut self, index: usize) {
        self.frontend.get_vring_base(index).unwrap();
        let old = &self.rings[index];
        let new = Ring::with(index, old.size, old.packed, old.in_order);
        let (desc, base) = (new.desc(), new.first_base());
        self.rings[index] = new;
        self.memory.write(desc, &[0; 0x1_0000]);
        self.start_ring(index, base);
    }

    pub fn ring(&mut self, index: usize) -> (&mut Ring, &Memory) {
        (&mut self.rings[index], &self.memory)
    }
}

/// A backend in a directory of its own.
pub struct Port {
    pub backend: Backend,
    pub socket: PathBuf,
    pub dir: tempfile::TempDir,
}

pub fn config(dir: &Path, pairs: u16) -> BackendConfig {
    BackendConfig {
        name: "test".to_owned(),
        socket: dir.join("port.sock"),
        mode: SocketMode::Server,
        owner: None,
        group: None,
        permissions: 0o600,
        max_queue_pairs: pairs,
        max_queue_size: 1024,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 9000,
        features: Offer::default(),
    }
}

impl Port {
    pub fn new(pairs: u16) -> Port {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), pairs);
        Port {
            socket: config.socket.clone(),
            backend: Backend::start(config).unwrap(),
            dir,
        }
    }

    pub fn wait(&self, what: &str, f: impl Fn(&Status) -> bool) -> Status {
        wait_for(&self.backend, what, f)
    }
}

/// Waits until the status is as wished; everything here takes milliseconds.
pub fn wait_for(backend: &Backend, what: &str, f: impl Fn(&Status) -> bool) -> Status {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = backend.status();
        if f(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
