//! One test per way a guest can be wrong in a ring: the queue stops with a reason (or the packet is
//! dropped and counted), its neighbour goes on, and a reset by the driver brings it back.

mod guest;

use guest::*;
use vhost::vhost_user::VhostUserFrontend;
use xvio::{QueuePair, SendError, TxBurst};

const SIZE: u16 = 64;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT_FLAG: u16 = 4;

struct Bed {
    port: Port,
    pairs: Vec<QueuePair>,
    guest: Guest,
    burst: TxBurst,
}

impl Bed {
    fn new(features: u64) -> Bed {
        let mut port = Port::new(2);
        let pairs = port.backend.take_queues();
        let mut guest = Guest::connect(&port.socket, features | MQ, 2, SIZE);
        guest.start();
        Bed {
            port,
            pairs,
            guest,
            burst: TxBurst::new(),
        }
    }

    /// Writes descriptors from 0 on into the ring and offers descriptor 0.
    fn offer(&mut self, ring: usize, descriptors: &[(u64, u32, u16, u16)]) {
        let (ring, memory) = self.guest.ring(ring);
        for (i, d) in descriptors.iter().enumerate() {
            Ring::write_desc(memory, ring.desc(), i as u16, *d);
        }
        ring.offer(memory, 0);
        ring.expose(memory);
    }

    fn poll(&mut self, pair: usize) -> usize {
        let n = self.pairs[pair].tx.poll(&mut self.burst);
        self.pairs[pair].tx.complete(&mut self.burst);
        n
    }

    /// The neighbour still moves packets both ways.
    fn assert_neighbour_works(&mut self) {
        let (ring, memory) = self.guest.ring(3);
        memory.write(HIGH, &[0; 72]);
        ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
        ring.expose(memory);
        assert_eq!(self.poll(1), 1);
        let (ring, memory) = self.guest.ring(3);
        assert_eq!(ring.take_used(memory).len(), 1);
        let (ring, memory) = self.guest.ring(2);
        ring.add(memory, &[(HIGH, 2000)], true, false).unwrap();
        ring.expose(memory);
        self.pairs[1].rx.send(&[&[9; 60]], None).unwrap();
        self.pairs[1].rx.flush();
        let (ring, memory) = self.guest.ring(2);
        assert_eq!(ring.take_used(memory), [(0, 72)]);
    }

    /// The ring is reported with the reason, alone, and works again after a reset.
    fn assert_broken(mut self, ring: u16, reason: &str) {
        let status = self.port.wait("broken", |s| !s.broken_queues.is_empty());
        let [(index, text)] = &status.broken_queues[..] else {
            panic!("{status:?}");
        };
        assert_eq!(*index, ring);
        assert!(text.contains(reason), "{text:?} has no {reason:?}");
        assert_eq!(status.active_queue_pairs, 1);
        assert_eq!(self.poll(0), 0);
        self.assert_neighbour_works();
        // Enabling what is enabled is not a reset.
        self.guest
            .frontend
            .set_vring_enable(ring.into(), true)
            .unwrap();
        assert!(!self.port.backend.status().broken_queues.is_empty());
        self.guest.restart_ring(ring.into());
        self.port.wait("repaired", |s| {
            s.broken_queues.is_empty() && s.active_queue_pairs == 2
        });
        let (r, memory) = self.guest.ring(1);
        *r = Ring::new(1, SIZE);
        memory.write(HIGH, &[0; 72]);
        self.guest.restart_ring(1);
        let (r, memory) = self.guest.ring(1);
        r.add(memory, &[(HIGH, 72)], false, false).unwrap();
        r.expose(memory);
        assert_eq!(self.poll(0), 1);
        self.guest.memory.assert_untouched_outside();
    }

    /// A chain from the guest that breaks its queue.
    fn breaks(features: u64, descriptors: &[(u64, u32, u16, u16)], reason: &str) {
        let mut bed = Bed::new(features);
        bed.offer(1, descriptors);
        assert_eq!(bed.poll(0), 0);
        bed.assert_broken(1, reason);
    }
}

#[test]
fn an_available_index_beyond_the_ring() {
    let mut bed = Bed::new(0);
    let (ring, memory) = bed.guest.ring(1);
    memory.write(ring.avail() + 2, &(SIZE + 1).to_le_bytes());
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "available index went from 0 to 65");
}

#[test]
fn an_available_index_that_goes_back() {
    let mut bed = Bed::new(0);
    let (ring, memory) = bed.guest.ring(1);
    memory.write(ring.avail() + 2, &0xffffu16.to_le_bytes());
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "available index");
}

#[test]
fn a_head_beyond_the_table() {
    let mut bed = Bed::new(0);
    let (ring, memory) = bed.guest.ring(1);
    ring.offer(memory, SIZE);
    ring.expose(memory);
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "names descriptor 64");
}

#[test]
fn chains_that_make_no_sense() {
    let loops = [(HIGH, 100, NEXT, 1), (HIGH, 100, NEXT, 0)];
    Bed::breaks(0, &loops, "loop");
    Bed::breaks(0, &[(HIGH, 100, NEXT, 0)], "loop");
    Bed::breaks(0, &[(HIGH, 100, NEXT, SIZE)], "next is 64");
    Bed::breaks(0, &[(HIGH, 0, 0, 0)], "length 0");
    Bed::breaks(0, &[(HIGH, 72, NEXT, 1), (0, 0, NEXT, 0)], "length 0");
    Bed::breaks(
        0,
        &[(HIGH, 72, NEXT, 1), (HIGH, 72, WRITE, 0)],
        "to be written to",
    );
    Bed::breaks(0, &[(HIGH, 11, 0, 0)], "shorter than the 12-byte");
}

#[test]
fn buffers_that_are_not_in_shared_memory() {
    for (address, len) in [
        (0, 100),
        (LOW - 1, 100),
        (END, 1),
        (END - 50, 100),
        (u64::MAX, 100),
        (u64::MAX - 50, 100),
        (HIGH, u32::MAX),
    ] {
        Bed::breaks(0, &[(address, len, 0, 0)], "not in shared memory");
    }
}

#[test]
fn indirect_tables_that_make_no_sense() {
    let table = LOW + 0x1_4000;
    Bed::breaks(0, &[(table, 16, INDIRECT_FLAG, 0)], "without negotiating");
    Bed::breaks(
        INDIRECT,
        &[(table, 0, INDIRECT_FLAG, 0)],
        "table of 0 bytes",
    );
    Bed::breaks(
        INDIRECT,
        &[(table, 17, INDIRECT_FLAG, 0)],
        "not a multiple of 16",
    );
    Bed::breaks(
        INDIRECT,
        &[(table, 0xffff_fff0, INDIRECT_FLAG, 0)],
        "too long",
    );
    Bed::breaks(
        INDIRECT,
        &[(table, 16, INDIRECT_FLAG | NEXT, 1)],
        "followed by another",
    );
    Bed::breaks(
        INDIRECT,
        &[(END, 16, INDIRECT_FLAG, 0)],
        "not in shared memory",
    );
    // The table itself may not cross from one region to the next.
    Bed::breaks(
        INDIRECT,
        &[(HIGH - 16, 32, INDIRECT_FLAG, 0)],
        "not in shared memory",
    );
    // A descriptor table that contains itself, and one whose next leaves it.
    let mut bed = Bed::new(INDIRECT);
    Ring::write_desc(&bed.guest.memory, table, 0, (table, 16, INDIRECT_FLAG, 0));
    bed.offer(1, &[(table, 16, INDIRECT_FLAG, 0)]);
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "inside an indirect table");
    let mut bed = Bed::new(INDIRECT);
    Ring::write_desc(&bed.guest.memory, table, 0, (HIGH, 100, NEXT, 2));
    bed.offer(1, &[(table, 32, INDIRECT_FLAG, 0)]);
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "next is 2 in a table of 2");
    let mut bed = Bed::new(INDIRECT);
    Ring::write_desc(&bed.guest.memory, table, 0, (HIGH, 100, NEXT, 0));
    bed.offer(1, &[(table, 32, INDIRECT_FLAG, 0)]);
    assert_eq!(bed.poll(0), 0);
    bed.assert_broken(1, "loop");
}

#[test]
fn receive_buffers_that_make_no_sense() {
    for (descriptor, reason) in [
        ((HIGH, 2000, 0, 0), "to be read from"),
        ((HIGH, 11, WRITE, 0), "shorter than the 12-byte"),
        ((END - 8, 2000, WRITE, 0), "not in shared memory"),
        ((HIGH, 0, WRITE, 0), "length 0"),
    ] {
        let mut bed = Bed::new(MRG_RXBUF);
        bed.offer(0, &[descriptor]);
        let rx = &mut bed.pairs[0].rx;
        assert_eq!(rx.send(&[&[0; 60]], None), Err(SendError::Down));
        assert_eq!(rx.send(&[&[0; 60]], None), Err(SendError::Down));
        bed.assert_broken(0, reason);
    }
}

#[test]
fn packets_before_a_bad_chain_are_delivered() {
    let mut bed = Bed::new(0);
    let (ring, memory) = bed.guest.ring(1);
    memory.write(HIGH, &[0; 72]);
    ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
    ring.offer(memory, 999);
    ring.expose(memory);
    assert_eq!(bed.poll(0), 1);
    let (ring, memory) = bed.guest.ring(1);
    assert_eq!(ring.take_used(memory).len(), 1);
    bed.assert_broken(1, "names descriptor 999");
}

#[test]
fn bad_packets_are_dropped_and_counted_and_the_queue_goes_on() {
    let mut bed = Bed::new(CSUM);
    let (ring, memory) = bed.guest.ring(1);
    let header = |flags: u8, gso: u8, start: u16, offset: u16| {
        let mut h = vec![flags, gso, 0, 0, 0, 0];
        h.extend(start.to_le_bytes());
        h.extend(offset.to_le_bytes());
        h.extend([0, 0]);
        h
    };
    let cases: [(Vec<u8>, u32); 6] = [
        (header(0, 0, 0, 0), 13),
        (header(0, 0, 0, 0), 60),
        (header(1, 0, 34, 25), 60),
        (header(1, 0, 34, 24), 60),
        (header(0, 1, 0, 0), 60),
        (header(1, 0, 0xffff, 0xffff), 60),
    ];
    for (i, (header, len)) in cases.iter().enumerate() {
        let at = HIGH + 0x100 * i as u64;
        memory.write(at, header);
        // The header is split over three descriptors.
        let chain = [(at, 5), (at + 5, 5), (at + 10, len + 2)];
        ring.add(memory, &chain, false, false).unwrap();
    }
    // A packet in more pieces than any driver uses.
    let pieces: Vec<Buffer> = (0..45).map(|i| (HIGH + 0x1000 + i, 1)).collect();
    ring.expose(memory);
    assert_eq!(bed.poll(0), 2);
    let (ring, memory) = bed.guest.ring(1);
    assert_eq!(ring.take_used(memory).len(), 6);
    memory.write(HIGH + 0x1000, &[0; 45]);
    ring.add(memory, &pieces, false, false).unwrap();
    ring.expose(memory);
    assert_eq!(bed.poll(0), 1, "45 pieces are many but allowed");
    let counters = bed.pairs[0].tx.counters().snapshot();
    assert_eq!(
        (counters.runt, counters.bad_csum, counters.gso_not_offered),
        (1, 2, 1)
    );
    assert_eq!((counters.packets, counters.bytes), (3, 60 + 60 + 33));
    assert!(bed.port.backend.status().broken_queues.is_empty());
}

#[test]
fn a_packet_longer_than_any_packet_is_dropped_and_counted() {
    let mut bed = Bed::new(0);
    bed.offer(1, &[(HIGH, 0x2_0000, 0, 0)]);
    assert_eq!(bed.poll(0), 0);
    assert_eq!(bed.pairs[0].tx.counters().snapshot().oversize, 1);
    let (ring, memory) = bed.guest.ring(1);
    assert_eq!(memory.u16(ring.used() + 2), 1, "given back at once");
    assert!(bed.port.backend.status().broken_queues.is_empty());
}

#[test]
fn memory_truncated_under_us_hurts_only_its_owner() {
    let mut bed = Bed::new(MRG_RXBUF);
    // Another port of the same process.
    let mut other = Bed::new(0);
    let (ring, memory) = bed.guest.ring(0);
    ring.add(memory, &[(HIGH, 2000)], true, false).unwrap();
    ring.expose(memory);
    let (ring, memory) = bed.guest.ring(1);
    ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
    ring.add(memory, &[(HIGH + 0x1000, 72)], false, false)
        .unwrap();
    ring.expose(memory);
    // The buffers go first: the rings are still there.
    bed.guest.memory.file.set_len(HIGH_OFFSET).unwrap();
    bed.poll(0);
    assert_eq!(bed.poll(0), 0);
    let _ = bed.pairs[0].rx.send(&[&[1; 60]], None);
    assert_eq!(
        bed.pairs[0].rx.send(&[&[1; 60]], None),
        Err(SendError::Down)
    );
    let status = bed.port.wait("broken", |s| s.broken_queues.len() == 2);
    for (_, reason) in &status.broken_queues {
        assert!(reason.contains("memory is gone"), "{reason}");
    }
    // Then the rings go too.
    bed.guest.memory.file.set_len(0).unwrap();
    assert_eq!(bed.poll(1), 0);
    bed.pairs[1].rx.flush();
    assert_eq!(
        bed.pairs[1].rx.send(&[&[1; 60]], None),
        Err(SendError::Down)
    );
    other.assert_neighbour_works();
    // The frontend comes back with memory that is there.
    drop(bed.guest);
    bed.port.wait("gone", |s| !s.connected);
    bed.guest = Guest::connect(&bed.port.socket, MQ, 2, SIZE);
    bed.guest.start();
    bed.assert_neighbour_works();
    assert!(bed.port.backend.status().broken_queues.is_empty());
}

#[test]
fn a_call_descriptor_that_blocks_holds_no_worker_up() {
    let mut bed = Bed::new(0);
    let (ring, memory) = bed.guest.ring(1);
    memory.write(HIGH, &[0; 72]);
    ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
    ring.expose(memory);
    // The flags are the frontend's too.
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(std::os::fd::AsFd::as_fd(&Raw(&ring.call)), flags).unwrap();
    ring.call.write(u64::MAX - 1).unwrap();
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let taken = bed.poll(0);
        let _ = done.send((taken, bed));
    });
    let (taken, mut bed) = wait
        .recv_timeout(std::time::Duration::from_secs(10))
        .expect("the worker hangs");
    assert_eq!(taken, 1);
    bed.assert_neighbour_works();
}

/// An eventfd as `AsFd`.
struct Raw<'a>(&'a vmm_sys_util::eventfd::EventFd);

impl std::os::fd::AsFd for Raw<'_> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: borrowed no longer than the eventfd.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self.0)) }
    }
}

#[test]
fn tiny_receive_buffers_bound_the_work() {
    let mut bed = Bed::new(MRG_RXBUF);
    let (ring, memory) = bed.guest.ring(0);
    for i in 0..64 {
        ring.add(memory, &[(HIGH + 16 * i, 13)], true, false)
            .unwrap();
    }
    ring.expose(memory);
    let rx = &mut bed.pairs[0].rx;
    assert_eq!(rx.send(&[&[0; 1500]], None), Err(SendError::Full));
    assert_eq!(rx.send(&[&[0; 14]], None), Ok(()));
    rx.flush();
    let (ring, memory) = bed.guest.ring(0);
    assert_eq!(ring.take_used(memory).len(), 2, "26 bytes in two buffers");
    assert_eq!(bed.pairs[0].rx.counters().snapshot().full, 1);
}

#[test]
fn a_full_ring_and_a_packet_too_long_leave_the_buffers_where_they_are() {
    let mut bed = Bed::new(0);
    let rx = &mut bed.pairs[0].rx;
    assert_eq!(rx.send(&[&[0; 60]], None), Err(SendError::Full));
    let (ring, memory) = bed.guest.ring(0);
    ring.add(memory, &[(HIGH, 100)], true, false).unwrap();
    ring.expose(memory);
    let rx = &mut bed.pairs[0].rx;
    assert_eq!(rx.send(&[&[0; 89]], None), Err(SendError::TooLong));
    assert_eq!(rx.send(&[&[1; 88]], None), Ok(()));
    assert_eq!(rx.send(&[&[1; 88]], None), Err(SendError::Full));
    rx.flush();
    let counters = rx.counters().snapshot();
    assert_eq!(
        (counters.packets, counters.full, counters.too_long),
        (1, 2, 1)
    );
}

#[test]
fn a_receive_chain_in_too_many_pieces_is_not_read_to_its_end() {
    let mut bed = Bed::new(INDIRECT | MRG_RXBUF);
    let table = LOW + 0x1_4000;
    // What lies beyond the 128 pieces allowed is wrong, and must not matter.
    for i in 0..400u16 {
        let flags = WRITE | if i < 399 { NEXT } else { 0 };
        let length = if i < 200 { 1 } else { 0 };
        Ring::write_desc(&bed.guest.memory, table, i, (HIGH, length, flags, i + 1));
    }
    bed.offer(0, &[(table, 400 * 16, INDIRECT_FLAG, 0)]);
    let rx = &mut bed.pairs[0].rx;
    assert_eq!(rx.send(&[&[0; 116]], None), Ok(()));
    rx.flush();
    let (ring, memory) = bed.guest.ring(0);
    assert_eq!(memory.u16(ring.used() + 2), 1);
    bed.offer(0, &[(table, 400 * 16, INDIRECT_FLAG, 0)]);
    assert_eq!(
        bed.pairs[0].rx.send(&[&[0; 117]], None),
        Err(SendError::Down)
    );
    bed.assert_broken(0, "more than 128");
}

#[test]
fn long_chains_end_a_poll_early_and_none_is_lost() {
    let mut bed = Bed::new(INDIRECT);
    let table = LOW + 0x1_4000;
    // 32 heads that share one indirect table of 800 one-byte buffers.
    for i in 0..800u16 {
        let flags = if i < 799 { NEXT } else { 0 };
        Ring::write_desc(&bed.guest.memory, table, i, (HIGH, 1, flags, i + 1));
    }
    let (ring, memory) = bed.guest.ring(1);
    for i in 0..32 {
        Ring::write_desc(memory, ring.desc(), i, (table, 800 * 16, INDIRECT_FLAG, 0));
        ring.offer(memory, i);
    }
    ring.expose(memory);
    assert_eq!(bed.poll(0), 0);
    let (ring, memory) = bed.guest.ring(1);
    assert_eq!(
        memory.u16(ring.used() + 2),
        3,
        "about 2048 descriptors a poll"
    );
    assert!(bed.pairs[0].tx.arm(), "there is more");
    for _ in 0..11 {
        bed.poll(0);
    }
    assert!(!bed.pairs[0].tx.arm());
    assert_eq!(bed.pairs[0].tx.counters().snapshot().oversize, 32);
}
