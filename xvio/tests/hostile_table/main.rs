//! The table of what has broken other vhost-user devices, row by row: a hostile frontend does it, the
//! queue or the connection it was done to stops, and a well-behaved guest beside it loses nothing.
//! A thousand rounds leave no descriptor and no mapping behind.
//!
//! Finer tests of the same classes are in `hostile.rs`, `frontends.rs` and `migration.rs`.

#[path = "../guest/mod.rs"]
mod guest;
mod memory;
mod messages;
mod rings;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use guest::raw::message;
use guest::*;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use xvio::{QueuePair, TxBurst};

/// Entries of a ring.
pub(crate) const SIZE: u16 = 64;
const NEED_REPLY: u32 = 8;

/// A row of the table: where it is from, and what the hostile side does.
type Row = (&'static str, fn(&mut Bed));

macro_rules! rows {
    ($($name:ident: $source:literal, $attack:path;)*) => {
        $(
            #[doc = $source]
            #[test]
            fn $name() {
                Bed::new().suffers(($source, $attack));
            }
        )*
        const ROWS: &[Row] = &[$(($source, $attack)),*];
    };
}

rows! {
    surplus_descriptors_on_any_message: "CVE-2019-14818", messages::surplus_descriptors;
    the_size_of_a_ring_set_again_and_again: "CVE-2019-14818", messages::size_again_and_again;
    a_dirty_log_whose_end_overflows: "CVE-2020-10722", messages::log_overflow;
    a_ring_number_with_bits_above_the_sixteenth: "CVE-2020-10723", messages::ring_numbers;
    the_257th_queue: "DPDK 7cc4f260bf", messages::the_257th_queue;
    in_flight_memory_asked_for_again_and_again: "CVE-2020-10726", messages::inflight_again;
    in_flight_queues_out_of_range: "DPDK 6442c329b9, af74f7db38", messages::inflight_range;
    a_ring_that_outgrows_its_in_flight_table: "CVE-2026-86565", messages::outgrown_table;
    kicks_and_enables_without_an_address: "own list", messages::kick_without_address;
    a_flood_of_messages: "own list", messages::flood;
    a_part_of_a_message_and_the_end: "own list", messages::part_of_a_message;
    regions_that_overlap_wrap_or_leave_their_file: "CVE-2026-86561, own list", memory::bad_regions;
    rings_that_cross_regions: "CVE-2018-1059", memory::rings_across_regions;
    memory_replaced_under_a_burst: "DPDK 04c27cb673, 0b2a2ca350", memory::replaced_under_a_burst;
    memory_truncated_under_us: "own list", memory::truncated;
    a_frontend_that_dies_in_a_burst: "own list", memory::dies_in_a_burst;
    buffers_outside_of_the_memory: "CVE-2018-1059", rings::outside;
    a_bad_address_with_length_0: "CVE-2020-10725, CVE-2016-6490", rings::length_0;
    chains_no_longer_than_the_header: "CVE-2022-2132", rings::shorter_than_header;
    a_header_in_many_pieces: "CVE-2022-2132", rings::header_in_pieces;
    checksums_beyond_the_packet: "CVE-2024-11614, DPDK 285e6b8b18", rings::checksum_beyond;
    segments_of_size_0_and_unasked_for: "DPDK 7023f3e532, CVE-2026-100236", rings::segmentation;
    chains_that_are_loops_or_leave_the_ring: "DPDK 38e6400387, 6ec1778134", rings::loops;
    receive_buffers_smaller_than_a_header: "CVE-2026-86566", rings::runt_receive_buffers;
    indirect_tables_without_end_or_length: "QEMU #3984, CVE-2026-93683", rings::indirect;
    an_available_index_beyond_the_ring: "Firecracker #3149", rings::index_jump;
    tiny_receive_buffers_without_end: "CVE-2019-3900", rings::tiny_receive_buffers;
    buffers_in_more_pieces_than_descriptors: "own list", rings::many_pieces;
}

/// A port with its hostile frontend, and another of the same worker with a well-behaved guest.
pub(crate) struct Bed {
    pub(crate) port: Port,
    pub(crate) pair: QueuePair,
    pub(crate) burst: TxBurst,
    /// A file that the hostile side sends descriptors of.
    pub(crate) file: File,
    neighbour: Neighbour,
}

impl Bed {
    fn new() -> Bed {
        let mut port = Port::new(1);
        let pair = port.backend.take_queues().remove(0);
        let file = File::create(port.dir.path().join("sent")).unwrap();
        Bed {
            port,
            pair,
            burst: TxBurst::new(),
            file,
            neighbour: Neighbour::new(),
        }
    }

    /// One row, with traffic of the neighbour before, and after.
    fn suffers(&mut self, (source, attack): Row) {
        self.neighbour.exchange();
        attack(self);
        self.neighbour.exchange();
        // The hostile side is gone, and the next one is served.
        self.port.wait(source, |s| !s.connected);
        assert!(!self.pair.tx.ready() && !self.pair.rx.ready(), "{source}");
        let sent = self.port.dir.path().join("sent");
        assert_eq!(open_files(|path| path == sent), 1, "{source}");
    }

    /// A bare connection with all protocol features.
    pub(crate) fn connect(&self) -> Hostile {
        let stream = UnixStream::connect(&self.port.socket).unwrap();
        let time = Some(Duration::from_secs(10));
        stream.set_read_timeout(time).unwrap();
        stream.set_write_timeout(time).unwrap();
        let mut hostile = Hostile { stream };
        let offered = hostile.ask(15, &[]).unwrap();
        hostile.tell(16, &offered, &[]);
        hostile
    }

    /// A guest of the test fixture on the hostile port, started.
    pub(crate) fn guest(&self, features: u64) -> Guest {
        let mut guest = Guest::connect(&self.port.socket, features, 1, SIZE);
        guest.start();
        guest
    }

    /// Polls, and completes; how many packets there were.
    pub(crate) fn poll(&mut self) -> usize {
        let count = self.pair.tx.poll(&mut self.burst);
        self.pair.tx.complete(&mut self.burst);
        count
    }

    /// The ring was stopped for this reason.
    pub(crate) fn assert_stopped(&self, ring: u16, reason: &str) {
        let broken = |s: &xvio::Status| {
            let mut all = s.broken_queues.iter();
            all.any(|(index, text)| *index == ring && text.contains(reason))
        };
        self.port.wait(reason, broken);
    }
}

/// Files of this process that are open, by their links.
pub(crate) fn open_files(wanted: impl Fn(&std::path::Path) -> bool) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| wanted(&link)))
        .count()
}

/// A connection that says what it likes.
pub(crate) struct Hostile {
    pub(crate) stream: UnixStream,
}

impl Hostile {
    /// Sends a message; errors do not matter, since the other side may have had enough.
    pub(crate) fn tell(&mut self, request: u32, body: &[u8], fds: &[RawFd]) {
        self.send(&message(request, 1, body), fds);
    }

    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let (piece, flags) = ([IoSlice::new(bytes)], MsgFlags::MSG_NOSIGNAL);
        let _ = sendmsg::<()>(self.stream.as_raw_fd(), &piece, rights, flags, None);
    }

    /// Sends a message and reads the answer; `None` when the connection has ended.
    pub(crate) fn ask(&mut self, request: u32, body: &[u8]) -> Option<Vec<u8>> {
        self.tell(request, body, &[]);
        self.answer()
    }

    fn answer(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).ok()?;
        let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
        let mut body = vec![0; size as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// Sends a message and asks for an acknowledgement; true when it is a good one.
    pub(crate) fn accepted(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> bool {
        self.send(&message(request, 1 | NEED_REPLY, body), fds);
        let answer = self.answer().expect("the connection goes on");
        answer.len() != 8 || answer == [0; 8]
    }
}

/// A well-behaved guest.
struct Neighbour {
    pair: QueuePair,
    burst: TxBurst,
    guest: Guest,
    /// Chains of its rings that are with the device: to the guest, from it.
    waiting: [VecDeque<u64>; 2],
    _port: Port,
}

impl Neighbour {
    fn new() -> Neighbour {
        let mut port = Port::new(1);
        let pair = port.backend.take_queues().remove(0);
        let mut guest = Guest::connect(&port.socket, MRG_RXBUF, 1, SIZE);
        guest.start();
        Neighbour {
            pair,
            burst: TxBurst::new(),
            guest,
            waiting: Default::default(),
            _port: port,
        }
    }

    /// Packets in both directions; every one arrives, as it was.
    fn exchange(&mut self) {
        for number in 0..8u64 {
            let at = HIGH + 0x1000 * number;
            let packet = vec![number as u8; 100];
            let (ring, memory) = self.guest.ring(1);
            memory.write(at, &[vec![0; 12], packet.clone()].concat());
            ring.add(memory, &[(at, 112)], false, false).unwrap();
            ring.expose(memory);
            let (ring, memory) = self.guest.ring(0);
            ring.add(memory, &[(at + 0x800, 0x800)], true, false)
                .unwrap();
            ring.expose(memory);
            self.waiting[0].push_back(at + 0x800);
        }
        assert_eq!(self.pair.tx.poll(&mut self.burst), 8);
        for packet in self.burst.iter() {
            let mut bytes = vec![0; packet.len()];
            packet.copy_to(&mut bytes).unwrap();
            self.pair.rx.send(&[&bytes], None).unwrap();
        }
        self.pair.tx.complete(&mut self.burst);
        self.pair.rx.flush();
        let (ring, memory) = self.guest.ring(1);
        assert_eq!(ring.take_used(memory).len(), 8);
        let (ring, memory) = self.guest.ring(0);
        let back = ring.take_used(memory);
        assert_eq!(back.len(), 8);
        for (number, (_, len)) in (0u8..).zip(back) {
            let at = self.waiting[0].pop_front().unwrap();
            assert_eq!(memory.read(at, len as usize)[12..], [number; 100]);
        }
    }
}

/// Not a test: a thousand rounds in a process of their own, when started by the test below. Other
/// tests of this program open and close files at the same time.
#[test]
fn rounds_process() {
    if std::env::var_os("XVIO_TEST_ROUNDS").is_none() {
        return;
    }
    let mut bed = Bed::new();
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("/memfd:")).count()
    };
    let held = || (open_files(|_| true), mappings());
    // Once each: what is made for good at the first time is there then.
    ROWS.iter().for_each(|row| bed.suffers(*row));
    let before = held();
    for row in ROWS.iter().cycle().take(1000) {
        bed.suffers(*row);
    }
    assert_eq!(held(), before, "descriptors and mappings");
    println!("1000 rounds, {before:?} descriptors and mappings before and after");
}

#[test]
fn a_thousand_rounds_leave_no_descriptor_and_no_mapping() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "rounds_process", "--nocapture"])
        .env("XVIO_TEST_ROUNDS", "1");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("1000 rounds"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}
