//! Rows about what is in the rings, in both layouts where both have it.

use crate::guest::*;
use crate::{Bed, SIZE};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use xvio::SendError;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;
const PACKED: u64 = 1 << 34;
/// Bit 7 of a packed descriptor's flags: available, in the ring's first lap.
const AVAIL: u16 = 0x80;
/// The wrap counter of VRING_BASE.
const WRAP: u16 = 0x8000;
/// A place for an indirect table.
const TABLE: u64 = LOW + 0x8_0000;

/// A descriptor: address, length, flags, and what follows (of the ring's entries, on split).
type Descriptor = (u64, u32, u16, u16);

fn write(memory: &Memory, at: u64, d: Descriptor, packed: bool) {
    let (address, len, flags, next) = d;
    let mut raw = address.to_le_bytes().to_vec();
    raw.extend(len.to_le_bytes());
    let (first, second) = if packed { (0, flags) } else { (flags, next) };
    raw.extend(first.to_le_bytes());
    raw.extend(second.to_le_bytes());
    memory.write(at, &raw);
}

/// A guest that offers the chain that begins at descriptor 0 in the ring, in one of the layouts.
fn offer(
    bed: &Bed,
    features: u64,
    ring: usize,
    chain: &[Descriptor],
    table: &[Descriptor],
) -> Guest {
    let packed = features & PACKED != 0;
    let mut guest = Guest::connect(&bed.port.socket, features, 1, SIZE);
    guest
        .frontend
        .set_mem_table(&guest.memory.regions())
        .unwrap();
    for index in 0..2 {
        guest.start_ring(index, if packed { WRAP } else { 0 });
    }
    let (place, avail) = (guest.rings[ring].desc(), guest.rings[ring].avail());
    let memory = &guest.memory;
    for (at, d) in (0..).zip(table) {
        write(memory, TABLE + 16 * at, *d, packed);
    }
    // The first one last, so that nothing is seen too early.
    for (at, mut d) in chain.iter().copied().enumerate().rev() {
        d.2 |= if packed { AVAIL } else { 0 };
        write(memory, place + 16 * at as u64, d, packed);
    }
    if !packed {
        memory.write(avail + 2, &1u16.to_le_bytes());
    }
    guest
}

/// The transmit ring stops for it, in both layouts.
fn stops(bed: &mut Bed, features: u64, chain: &[Descriptor], table: &[Descriptor], reason: &str) {
    for layout in [0, PACKED] {
        let guest = offer(bed, features | layout, 1, chain, table);
        assert_eq!(bed.poll(), 0);
        bed.assert_stopped(1, reason);
        assert_eq!(bed.poll(), 0);
        guest.memory.assert_untouched_outside();
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
}

/// The packet is dropped, its buffer given back, and the ring goes on.
fn drops(bed: &mut Bed, features: u64, header: &[u8], len: u32) {
    let before = bed.pair.tx.counters().snapshot();
    for layout in [0, PACKED] {
        let guest = offer(bed, features | layout, 1, &[], &[]);
        guest.memory.write(HIGH, header);
        let place = guest.rings[1].desc();
        let flags = if layout == 0 { 0 } else { AVAIL };
        write(&guest.memory, place, (HIGH, len, flags, 0), layout != 0);
        assert_eq!(bed.poll(), 0);
        assert!(bed.pair.tx.ready());
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
    let after = bed.pair.tx.counters().snapshot();
    assert_eq!(after.packets, before.packets);
}

pub(crate) fn outside(bed: &mut Bed) {
    for (address, len) in [
        (0, 100),
        (LOW - 1, 100),
        (END - 50, 100),
        (END, 1),
        (u64::MAX - 50, 100),
        (HIGH, u32::MAX),
    ] {
        let chain = [(address, len, 0, 0)];
        stops(bed, 0, &chain, &[], "not in shared memory");
    }
    let tail = [(HIGH, 100, NEXT, 1), (END, 100, 0, 0)];
    stops(bed, 0, &tail, &[], "not in shared memory");
}

pub(crate) fn length_0(bed: &mut Bed) {
    for address in [0, HIGH, END, u64::MAX] {
        stops(bed, 0, &[(address, 0, 0, 0)], &[], "length 0");
    }
    let endless = [(HIGH, 0, NEXT, 1), (HIGH, 0, NEXT, 0)];
    stops(bed, 0, &endless, &[], "length 0");
}

pub(crate) fn shorter_than_header(bed: &mut Bed) {
    stops(bed, 0, &[(HIGH, 11, 0, 0)], &[], "shorter than the 12-byte");
    let chain = [(HIGH, 1, NEXT, 1), (HIGH, 10, 0, 0)];
    stops(bed, 0, &chain, &[], "shorter than the 12-byte");
}

pub(crate) fn header_in_pieces(bed: &mut Bed) {
    for layout in [0, PACKED] {
        let mut chain: Vec<Descriptor> =
            (0..12).map(|i| (HIGH + i, 1, NEXT, i as u16 + 1)).collect();
        chain.push((HIGH + 12, 60, 0, 0));
        let guest = offer(bed, layout, 1, &chain, &[]);
        assert_eq!(
            bed.poll(),
            1,
            "a header in twelve pieces is unusual, and allowed"
        );
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
}

fn net_header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> Vec<u8> {
    let mut header = vec![flags, gso, 0, 0];
    for value in [size, start, offset, 0] {
        header.extend(value.to_le_bytes());
    }
    header
}

pub(crate) fn checksum_beyond(bed: &mut Bed) {
    for (start, offset) in [
        (60, 0),
        (34, 25),
        (0xffff, 0xffff),
        (34, 0xffff),
        (0xffff, 2),
    ] {
        let header = net_header(1, 0, 0, start, offset);
        drops(bed, CSUM, &header, 72);
    }
}

pub(crate) fn segmentation(bed: &mut Bed) {
    // Not negotiated here, so every such packet is dropped, and nothing is divided by its size.
    for gso in [1, 3, 4, 5, 0x81, 0xff] {
        for size in [0, 1, 0xffff] {
            drops(bed, CSUM, &net_header(1, gso, size, 34, 16), 72);
        }
    }
}

pub(crate) fn loops(bed: &mut Bed) {
    let guest = offer(
        bed,
        0,
        1,
        &[(HIGH, 100, NEXT, 1), (HIGH, 100, NEXT, 0)],
        &[],
    );
    assert_eq!(bed.poll(), 0);
    bed.assert_stopped(1, "loop");
    drop(guest);
    bed.port.wait("gone", |s| !s.connected);
    for next in [SIZE, SIZE + 1, 0xffff] {
        let guest = offer(bed, 0, 1, &[(HIGH, 100, NEXT, next)], &[]);
        assert_eq!(bed.poll(), 0);
        bed.assert_stopped(1, "next is");
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
    // A chain as long as the packed ring, whose last descriptor goes on.
    let all = [(HIGH, 100, NEXT, 0); SIZE as usize];
    let guest = offer(bed, PACKED, 1, &all, &[]);
    assert_eq!(bed.poll(), 0);
    bed.port.wait("stopped", |s| {
        s.broken_queues.iter().any(|(ring, _)| *ring == 1)
    });
    drop(guest);
    bed.port.wait("gone", |s| !s.connected);
}

/// Sends one packet to the guest; what came of it.
fn send(bed: &mut Bed, len: usize) -> Result<(), SendError> {
    let sent = bed.pair.rx.send(&[&vec![7; len]], None);
    bed.pair.rx.flush();
    sent
}

pub(crate) fn runt_receive_buffers(bed: &mut Bed) {
    for layout in [0, PACKED] {
        for (descriptor, reason) in [
            ((HIGH, 11, WRITE, 0), "shorter than the 12-byte"),
            ((HIGH, 1, WRITE, 0), "shorter than the 12-byte"),
            ((HIGH, 0, WRITE, 0), "length 0"),
            ((END - 4, 100, WRITE, 0), "not in shared memory"),
            ((HIGH, 100, 0, 0), "to be read from"),
        ] {
            let guest = offer(bed, MRG_RXBUF | layout, 0, &[descriptor], &[]);
            assert!(send(bed, 60).is_err());
            bed.assert_stopped(0, reason);
            guest.memory.assert_untouched_outside();
            drop(guest);
            bed.port.wait("gone", |s| !s.connected);
        }
    }
}

pub(crate) fn indirect(bed: &mut Bed) {
    for (len, reason) in [
        (0, "table of 0 bytes"),
        (17, "not a multiple of 16"),
        (0xffff_fff0, "too long"),
    ] {
        let chain = [(TABLE, len, INDIRECT_FLAG, 0)];
        stops(bed, INDIRECT, &chain, &[], reason);
    }
    let itself = [(TABLE, 16, INDIRECT_FLAG, 0)];
    stops(bed, INDIRECT, &itself, &itself, "inside an indirect table");
    stops(
        bed,
        INDIRECT,
        &[(END, 16, INDIRECT_FLAG, 0)],
        &[],
        "not in shared memory",
    );
    stops(bed, 0, &itself, &[], "without negotiating");
    stops(
        bed,
        INDIRECT,
        &[(TABLE, 16, INDIRECT_FLAG | NEXT, 1)],
        &[],
        "followed by another",
    );
    let guest = offer(
        bed,
        INDIRECT,
        1,
        &[(TABLE, 32, INDIRECT_FLAG, 0)],
        &[(HIGH, 100, NEXT, 0)],
    );
    assert_eq!(bed.poll(), 0);
    bed.assert_stopped(1, "loop");
    drop(guest);
    bed.port.wait("gone", |s| !s.connected);
}

pub(crate) fn index_jump(bed: &mut Bed) {
    for index in [SIZE + 1, 0x8000, 0xffff] {
        let guest = bed.guest(0);
        let at = guest.rings[1].avail() + 2;
        guest.memory.write(at, &index.to_le_bytes());
        assert_eq!(bed.poll(), 0);
        bed.assert_stopped(1, "available index");
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
}

pub(crate) fn tiny_receive_buffers(bed: &mut Bed) {
    let mut guest = bed.guest(MRG_RXBUF);
    let (ring, memory) = guest.ring(0);
    for i in 0..u64::from(SIZE) {
        ring.add(memory, &[(HIGH + 16 * i, 13)], true, false)
            .unwrap();
    }
    ring.expose(memory);
    // 64 buffers of 13 bytes hold less than this: it is refused after so many and no more.
    assert!(send(bed, 1500).is_err());
    assert_eq!(send(bed, 14), Ok(()));
    let (ring, memory) = guest.ring(0);
    assert_eq!(ring.take_used(memory).len(), 2);
}

/// Regions of a page each: a descriptor for all of them is a buffer in as many pieces.
const PAGES: u64 = 30;

/// A guest whose high memory is cut into such regions.
fn cut_up(bed: &Bed, layout: u64) -> Guest {
    let guest = offer(bed, INDIRECT | layout, 1, &[], &[]);
    let whole = guest.memory.regions();
    let page = |n: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: HIGH + 0x1000 * n,
        memory_size: 0x1000,
        userspace_addr: whole[1].userspace_addr + 0x1000 * n,
        mmap_offset: HIGH_OFFSET + 0x1000 * n,
        ..whole[1]
    };
    let mut regions = vec![whole[0]];
    regions.extend((0..PAGES).map(page));
    guest.frontend.set_mem_table(&regions).unwrap();
    guest
}

pub(crate) fn many_pieces(bed: &mut Bed) {
    let buffer = (HIGH, 0x1000 * PAGES as u32);
    for layout in [0, PACKED] {
        // Too many in one chain.
        let guest = cut_up(bed, layout);
        for at in 0..100 {
            let entry = (buffer.0, buffer.1, NEXT, at as u16 + 1);
            write(&guest.memory, TABLE + 16 * at, entry, layout != 0);
        }
        let flags = INDIRECT_FLAG | if layout == 0 { 0 } else { AVAIL };
        let place = guest.rings[1].desc();
        write(&guest.memory, place, (TABLE, 1600, flags, 0), layout != 0);
        assert_eq!(bed.poll(), 0);
        bed.assert_stopped(1, "pieces");
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);

        // Many in each of many chains: a poll ends after a few of them.
        let mut guest = cut_up(bed, layout);
        let (ring, memory) = guest.ring(1);
        for _ in 0..9 {
            ring.add(memory, &[buffer; 32], false, true).unwrap();
        }
        ring.expose(memory);
        let before = bed.pair.tx.counters().snapshot().oversize;
        for polls in 1..=3 {
            assert_eq!(bed.poll(), 0);
            assert!(bed.burst.worked(), "it was given something to do");
            let oversize = bed.pair.tx.counters().snapshot().oversize;
            assert_eq!(oversize - before, 3 * polls, "of 960 pieces each");
        }
        let (ring, memory) = guest.ring(1);
        assert_eq!(ring.take_used(memory).len(), 9);
        assert_eq!(bed.poll(), 0);
        assert!(!bed.burst.worked());
        drop(guest);
        bed.port.wait("gone", |s| !s.connected);
    }
}
