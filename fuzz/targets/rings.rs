//! Arbitrary bytes as the content of a guest's rings, of both layouts: whatever they say, nothing outside
//! of the guest's memory is touched, no poll goes on for ever, and the port is there for the next guest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
use xvio::{Backend, BackendConfig, Offer, PartialCsum, QueuePair, SocketMode, TxBurst};

const SIZE: u16 = 16;
/// The guest's memory: the rings first, and buffers that may lie in them.
const MEMORY: u64 = 0x1_0000;
/// Belongs to nobody: before and after the guest's memory in the file.
const MARGIN: u64 = 0x1000;
/// Bytes of one ring: both fit into one input of the usual length.
const RINGS: usize = 0x400;
const F: [u64; 5] = [1 << 15, 1 << 28, 1 << 29, 1 << 34, 1 << 35];

/// A port whose guest says hello anew for each input.
struct World {
    port: Backend,
    pair: QueuePair,
    burst: TxBurst,
    folder: std::path::PathBuf,
    file: std::fs::File,
}

impl World {
    fn new() -> World {
        let folder = std::env::temp_dir().join(format!("fuzz-rings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("memory");
        // In /tmp, which may be a disk: deleted at once, as a memfd would be.
        let open = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&file);
        let open = open.expect("a file");
        std::fs::remove_file(&file).expect("a file");
        open.set_len(MEMORY + 2 * MARGIN).expect("a file");
        let mut port = Backend::start(BackendConfig {
            name: "fuzz".to_owned(),
            socket: folder.join("port.sock"),
            mode: SocketMode::Server,
            owner: None,
            group: None,
            permissions: 0o600,
            max_queue_pairs: 1,
            max_queue_size: 1024,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 9000,
            features: Offer::default(),
        })
        .expect("a port");
        World {
            pair: port.take_queues().remove(0),
            port,
            burst: TxBurst::new(),
            folder,
            file: open,
        }
    }

    /// One guest, from connection to end.
    fn guest(&mut self, features: u64, noise: &[u8]) -> Option<()> {
        let mut f = Frontend::connect(self.folder.join("port.sock"), 2).ok()?;
        f.set_owner().ok()?;
        let features = f.get_features().ok()? & features | 1 << 32 | 1 << 30;
        f.set_features(features).ok()?;
        let _ = f.get_protocol_features().ok()?;
        f.set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
            .ok()?;
        f.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        self.file.write_all_at(&[0xa5; MARGIN as usize], 0).ok()?;
        self.file
            .write_all_at(&[0xa5; MARGIN as usize], MARGIN + MEMORY)
            .ok()?;
        self.file.write_all_at(&[0; MEMORY as usize], MARGIN).ok()?;
        f.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: MEMORY,
            mmap_offset: MARGIN,
            mmap_handle: self.file.as_raw_fd(),
        }])
        .ok()?;
        let events = [(); 4].map(|()| EventFd::new(0).expect("an eventfd"));
        for ring in 0..2usize {
            let at = MEMORY + (ring * RINGS) as u64;
            f.set_vring_num(ring, SIZE).ok()?;
            f.set_vring_base(ring, if features & 1 << 34 != 0 { 1 << 15 } else { 0 })
                .ok()?;
            f.set_vring_addr(
                ring,
                &VringConfigData {
                    queue_max_size: SIZE,
                    queue_size: SIZE,
                    flags: 0,
                    desc_table_addr: at,
                    avail_ring_addr: at + 0x100,
                    used_ring_addr: at + 0x200,
                    log_addr: None,
                },
            )
            .ok()?;
            f.set_vring_call(ring, &events[2 * ring]).ok()?;
            f.set_vring_kick(ring, &events[2 * ring + 1]).ok()?;
            f.set_vring_enable(ring, true).ok()?;
        }
        // What is in the rings comes after they run: the guest writes at any time.
        for chunk in noise.chunks(2 * RINGS) {
            self.file.write_all_at(chunk, MARGIN).ok()?;
            self.work();
        }
        let mut margin = [0; MARGIN as usize];
        for at in [0, MARGIN + MEMORY] {
            self.file.read_exact_at(&mut margin, at).ok()?;
            assert!(
                margin.iter().all(|b| *b == 0xa5),
                "bytes outside of the guest's memory"
            );
        }
        Some(())
    }

    fn work(&mut self) {
        for _ in 0..3 {
            let count = self.pair.tx.poll(&mut self.burst);
            let mut head = [0; 128];
            for index in 0..count {
                let packet = self.burst.packet(index);
                let mut all = vec![0; packet.len()];
                packet.copy_to(&mut all).expect("the length is right");
                let head = packet.head(&mut head);
                if let Some(csum) = packet.csum() {
                    assert!(usize::from(csum.start) + usize::from(csum.offset) + 2 <= packet.len());
                }
                let _ = self
                    .pair
                    .rx
                    .forward(head, packet, head.len(), packet.csum());
            }
            let csum = PartialCsum {
                start: 34,
                offset: 6,
            };
            let _ = self.pair.rx.send(&[&[7; 14], &[8; 300]], Some(csum));
            self.pair.rx.flush();
            self.pair.tx.complete(&mut self.burst);
            self.pair.tx.arm();
            self.pair.tx.disarm();
        }
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, noise)) = bytes.split_first() else {
        return;
    };
    let bits = F.iter().enumerate().filter(|(n, _)| first & 1 << n != 0);
    let features = bits.fold(0, |all, (_, bit)| all | bit);
    WORLD.with_borrow_mut(|world| {
        // The connection before may still be on its way out: then there is a next time.
        let _ = world.guest(features, noise);
        let _ = world.port.status();
    });
});
