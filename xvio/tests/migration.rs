//! The dirty log of a live migration, as the frontend sees it: started, stopped, started again; each
//! page that the device wrote is marked, and a copy made from the marks is the guest's memory.

mod guest;

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest::raw::message;
use guest::*;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proptest::prelude::*;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
use xvio::{QueuePair, TxBurst};

const LOG_ALL: u64 = 1 << 26;
const PAGE: u64 = 4096;
/// Bytes of a bitmap for all of the guest's memory.
const BITMAP: u64 = END / PAGE / 8;
/// Where the bitmap is in its file.
const OFFSET: u64 = 0x3000;
const SIZE: u16 = 64;

/// A guest in migration, and its bitmap.
struct Moving {
    _port: Port,
    pair: QueuePair,
    guest: Guest,
    features: u64,
    log: File,
}

fn memfd(len: u64) -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = File::from(nix::sys::memfd::memfd_create(c"xvio-test", flags).unwrap());
    file.set_len(len).unwrap();
    file
}

impl Moving {
    fn new(features: u64) -> Moving {
        let mut port = Port::new(1);
        let pair = port.backend.take_queues().remove(0);
        let mut guest = Guest::connect(&port.socket, features, 1, SIZE);
        guest.start();
        Moving {
            _port: port,
            pair,
            guest,
            features: features | VERSION_1 | PROTOCOL,
            log: memfd(0x8000),
        }
    }

    fn base(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: BITMAP,
            mmap_offset: OFFSET,
            mmap_handle: self.log.as_raw_fd(),
        }
    }

    /// What QEMU says when a migration begins (vhost_dev_set_log): the bitmap, the feature, and the
    /// flag of each ring.
    fn start_log(&self) {
        let f = &self.guest.frontend;
        f.set_log_base(0, Some(self.base())).unwrap();
        f.set_features(self.features | LOG_ALL).unwrap();
        for ring in 0..2 {
            self.set_flag(ring, true);
        }
    }

    /// And when it has ended, or failed.
    fn stop_log(&self) {
        let f = &self.guest.frontend;
        f.set_features(self.features).unwrap();
        for ring in 0..2 {
            self.set_flag(ring, false);
        }
    }

    fn set_flag(&self, index: usize, on: bool) {
        const USER: u64 = 0x7000_0000_0000;
        let ring = &self.guest.rings[index];
        let at = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: u32::from(on),
            desc_table_addr: ring.desc() + USER,
            used_ring_addr: ring.used() + USER,
            avail_ring_addr: ring.avail() + USER,
            log_addr: on.then_some(ring.used()),
        };
        self.guest.frontend.set_vring_addr(index, &at).unwrap();
    }

    /// Takes the marks, as the frontend does in each round. Nothing beside the bitmap was written.
    fn marked(&self) -> Vec<u64> {
        let mut file = vec![0; 0x8000];
        self.log.read_exact_at(&mut file, 0).unwrap();
        self.log.write_all_at(&vec![0; file.len()], 0).unwrap();
        let (before, rest) = file.split_at(OFFSET as usize);
        let (bits, after) = rest.split_at(BITMAP as usize);
        assert!(before.iter().chain(after).all(|byte| *byte == 0));
        let bit = |page: &u64| bits[(page / 8) as usize] & (1 << (page % 8)) != 0;
        (0..END / PAGE).filter(bit).collect()
    }

    /// One packet of `len` bytes to the guest, into a buffer at `at`.
    fn receives(&mut self, at: u64, len: usize) {
        let (ring, memory) = self.guest.ring(0);
        ring.add(memory, &[(at, len as u32 + 12)], true, false)
            .unwrap();
        ring.expose(memory);
        self.pair.rx.send(&[&vec![7; len]], None).unwrap();
        self.pair.rx.flush();
        let (ring, memory) = self.guest.ring(0);
        assert_eq!(ring.take_used(memory).len(), 1);
    }

    /// One packet from the guest.
    fn sends(&mut self) {
        let (ring, memory) = self.guest.ring(1);
        memory.write(HIGH, &[0; 72]);
        ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
        ring.expose(memory);
        let mut burst = TxBurst::new();
        assert_eq!(self.pair.tx.poll(&mut burst), 1);
        self.pair.tx.complete(&mut burst);
        let (ring, memory) = self.guest.ring(1);
        assert_eq!(ring.take_used(memory).len(), 1);
    }

    fn used_page(&self, ring: usize) -> u64 {
        self.guest.rings[ring].used() / PAGE
    }
}

#[test]
fn what_the_device_writes_is_marked_while_logging_is_on_and_only_then() {
    let mut moving = Moving::new(MRG_RXBUF);
    moving.receives(HIGH, 100);
    assert_eq!(moving.marked(), [0u64; 0]);
    for _round in 0..3 {
        moving.start_log();
        moving.marked();
        moving.sends();
        assert_eq!(moving.marked(), [moving.used_page(1)]);
        // From the last bytes of a page, over two whole ones, to the first byte of another; and from
        // the low region into the high one.
        for (at, len, pages) in [
            (HIGH + 0x1000, 100, vec![0x201]),
            (HIGH + 0x1fff, 2 * 4096 - 11, vec![0x201, 0x202, 0x203]),
            (HIGH - 0x800, 4096 - 12, vec![0x1ff, 0x200]),
            (END - 0x1000, 4096 - 12, vec![0x2ff]),
        ] {
            moving.receives(at, len);
            let mut wanted = vec![moving.used_page(0)];
            wanted.extend(pages);
            assert_eq!(moving.marked(), wanted, "{at:#x} {len}");
        }
        moving.stop_log();
        moving.marked();
        moving.receives(HIGH, 100);
        moving.sends();
        assert_eq!(moving.marked(), [0u64; 0]);
    }
}

#[test]
fn a_new_bitmap_takes_the_place_of_the_old_one() {
    let mut moving = Moving::new(MRG_RXBUF);
    moving.start_log();
    let old = std::mem::replace(&mut moving.log, memfd(0x8000));
    let base = moving.base();
    moving.guest.frontend.set_log_base(0, Some(base)).unwrap();
    old.write_all_at(&[0; 0x8000], 0).unwrap();
    moving.marked();
    moving.receives(HIGH, 100);
    assert_eq!(moving.marked(), [moving.used_page(0), 0x200]);
    let mut bytes = [1; 0x8000];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn an_eventfd_for_the_log_is_rung() {
    let mut moving = Moving::new(MRG_RXBUF);
    let told = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    moving.guest.frontend.set_log_fd(told.as_raw_fd()).unwrap();
    moving.start_log();
    let _ = told.read();
    moving.receives(HIGH, 100);
    assert!(told.read().is_ok());
    // Once for all the pieces of a packet: each is a system call of the worker.
    let (ring, memory) = moving.guest.ring(0);
    let pieces: Vec<_> = (0..40).map(|n| (HIGH + 0x1000 * n, 50)).collect();
    ring.add(memory, &pieces, true, false).unwrap();
    ring.expose(memory);
    moving.pair.rx.send(&[&[7; 1500]], None).unwrap();
    moving.pair.rx.flush();
    assert_eq!(told.read().unwrap(), 1);
    let (ring, memory) = moving.guest.ring(0);
    assert_eq!(ring.take_used(memory).len(), 1);
    moving.stop_log();
    let _ = told.read();
    moving.receives(HIGH, 100);
    assert!(told.read().is_err());
}

#[test]
fn bitmaps_that_make_no_sense_are_refused_and_the_guest_goes_on() {
    let mut moving = Moving::new(0);
    let none = File::open("/dev/null").unwrap();
    let log = memfd(0x8000);
    let stream = moving.guest.frontend.as_raw_fd();
    for (size, offset, file, reason) in [
        (u64::MAX, 1, &log, "not possible"),
        (0x1000, u64::MAX - 0xfff, &log, "not possible"),
        (0x1000, u64::MAX, &log, "not possible"),
        (1 << 40, 0, &log, "not possible"),
        (0, 0, &log, "length 0"),
        (0x8001, 0, &log, "of a file of"),
        (0x1000, 0x7001, &log, "of a file of"),
        (0x1000, 0, &none, "log was refused"),
    ] {
        // Beside the crate, which waits for another answer than that of a failure.
        let body = [u64::to_ne_bytes(size), u64::to_ne_bytes(offset)].concat();
        const NEED_REPLY: u32 = 8;
        let bytes = message(6, 1 | NEED_REPLY, &body);
        let rights = [ControlMessage::ScmRights(&[file.as_raw_fd()])];
        let piece = [IoSlice::new(&bytes)];
        sendmsg::<()>(stream, &piece, &rights, MsgFlags::empty(), None).unwrap();
        let mut answer = [0; 20];
        let n = nix::sys::socket::recv(stream, &mut answer, MsgFlags::MSG_WAITALL).unwrap();
        assert_eq!((n, answer[12]), (20, 1), "{size:#x} {offset:#x}");
        let port = &moving._port;
        port.wait(reason, |s| {
            s.last_error.as_ref().is_some_and(|e| e.contains(reason))
        });
    }
    let file = moving.guest.frontend.set_log_fd(log.as_raw_fd());
    assert!(file.is_err());
    moving.sends();
}

#[test]
fn a_bitmap_that_is_truncated_ends_nobody() {
    let mut moving = Moving::new(MRG_RXBUF);
    moving.start_log();
    moving.log.set_len(0).unwrap();
    moving.receives(HIGH, 1000);
    moving.sends();
    moving.stop_log();
    moving.sends();
}

#[test]
fn a_guest_that_does_not_announce_itself_is_announced_for() {
    let port = Port::new(1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    port.backend
        .on_move(Box::new(move |mac| keep.lock().unwrap().push(mac)));
    let guest = Guest::connect(&port.socket, 0, 1, 64);
    let rarp = |mac: [u8; 6]| {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        let flags = nix::sys::socket::MsgFlags::empty();
        let stream = guest.frontend.as_raw_fd();
        nix::sys::socket::send(stream, &message(19, 1, &body), flags).unwrap();
        // An answer to this one means that the one before was done.
        guest.frontend.get_features().unwrap();
    };
    let mac = [2, 3, 4, 5, 6, 7];
    rarp(mac);
    assert_eq!(*told.lock().unwrap(), [mac]);
    // A flood of them is no flood of calls.
    let start = std::time::Instant::now();
    for _ in 0..200 {
        rarp(mac);
    }
    let most = start.elapsed().as_millis() as usize / 10 + 2;
    assert!(told.lock().unwrap().len() <= most);
    std::thread::sleep(Duration::from_millis(20));
    rarp([2; 6]);
    assert_eq!(told.lock().unwrap().last(), Some(&[2; 6]));
}

/// A frame to the guest: the length of the packet, and of each of the buffers for it.
fn frames() -> impl Strategy<Value = Vec<(usize, u32)>> {
    prop::collection::vec((14usize..6000, 600u32..5000), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_copy_made_from_the_marks_is_the_guests_memory(
        rounds in prop::collection::vec(frames(), 1..4),
    ) {
        let mut moving = Moving::new(MRG_RXBUF);
        moving.start_log();
        // The first round copies everything; then only what was marked.
        let mut copy = moving.guest.memory.read(LOW, (END - LOW) as usize);
        let mut at = BUFFERS;
        for frames in rounds {
            for (len, buffer) in frames {
                let (ring, memory) = moving.guest.ring(0);
                for _ in 0..(len + 12).div_ceil(buffer as usize) {
                    if at + u64::from(buffer) > END {
                        at = BUFFERS;
                    }
                    ring.add(memory, &[(at, buffer)], true, false).unwrap();
                    at += u64::from(buffer);
                }
                ring.expose(memory);
                moving.pair.rx.send(&[&vec![len as u8 | 1; len]], None).unwrap();
                moving.pair.rx.flush();
                let (ring, memory) = moving.guest.ring(0);
                ring.take_used(memory);
            }
            moving.sends();
            let memory = &moving.guest.memory;
            // What the driver itself wrote the frontend knows from elsewhere: the rings, and the
            // packet that it sent.
            let mut pages = moving.marked();
            for ring in &moving.guest.rings {
                pages.extend([ring.desc() / PAGE, ring.avail() / PAGE]);
            }
            pages.push(HIGH / PAGE);
            for page in pages {
                let from = (page * PAGE - LOW) as usize;
                copy[from..from + PAGE as usize]
                    .copy_from_slice(&memory.read(page * PAGE, PAGE as usize));
            }
            prop_assert!(copy == memory.read(LOW, copy.len()), "the copy is not the memory");
        }
    }
}
