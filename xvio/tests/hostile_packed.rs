//! What a guest can do wrong in a packed ring, one test each: as in `hostile.rs`, the queue stops with a
//! reason, its neighbour goes on, and a reset by the driver brings it back.

mod guest;

use guest::*;
use proptest::prelude::*;
use vhost::VhostBackend;
use xvio::{QueuePair, SendError, TxBurst};

const SIZE: u16 = 60;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE: u16 = 4;
/// Available and used, in the first round through the ring.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Address, length, buffer ID, flags.
type Descriptor = (u64, u32, u16, u16);

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
        let mut guest = Guest::connect(&port.socket, features | PACKED | MQ, 2, SIZE);
        guest.start();
        Bed {
            port,
            pairs,
            guest,
            burst: TxBurst::new(),
        }
    }

    /// Writes descriptors from 0 on into the ring.
    fn put(&mut self, ring: usize, descriptors: &[Descriptor]) {
        let (ring, memory) = self.guest.ring(ring);
        for (i, d) in descriptors.iter().enumerate() {
            Ring::write_desc(memory, ring.desc(), i as u16, *d);
        }
    }

    /// Polls until the ring had time enough to be looked at.
    fn poll(&mut self, pair: usize) -> usize {
        let mut all = 0;
        for _ in 0..3 {
            all += self.pairs[pair].tx.poll(&mut self.burst);
            self.pairs[pair].tx.complete(&mut self.burst);
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
        all
    }

    fn one_from(&mut self, ring: usize, pair: usize) {
        let (r, memory) = self.guest.ring(ring);
        memory.write(HIGH, &[0; 72]);
        r.add(memory, &[(HIGH, 72)], false, false).unwrap();
        r.expose(memory);
        assert_eq!(self.poll(pair), 1);
        let (r, memory) = self.guest.ring(ring);
        assert_eq!(r.take_used(memory).len(), 1);
    }

    fn assert_neighbour_works(&mut self) {
        self.one_from(3, 1);
        let (ring, memory) = self.guest.ring(2);
        ring.add(memory, &[(HIGH, 2000)], true, false).unwrap();
        ring.expose(memory);
        self.pairs[1].rx.send(&[&[9; 60]], None).unwrap();
        self.pairs[1].rx.flush();
        let (ring, memory) = self.guest.ring(2);
        assert_eq!(ring.take_used(memory)[0].1, 72);
    }

    fn assert_broken(mut self, ring: u16, reason: &str) {
        let status = self.port.wait("broken", |s| !s.broken_queues.is_empty());
        let [(index, text)] = &status.broken_queues[..] else {
            panic!("{status:?}");
        };
        assert_eq!(*index, ring);
        assert!(text.contains(reason), "{text:?} has no {reason:?}");
        assert_eq!(self.poll(0), 0);
        self.assert_neighbour_works();
        self.guest.restart_ring(ring.into());
        self.port.wait("repaired", |s| {
            s.broken_queues.is_empty() && s.active_queue_pairs == 2
        });
        self.guest.restart_ring(1);
        self.one_from(1, 0);
        self.guest.memory.assert_untouched_outside();
    }

    fn breaks(features: u64, descriptors: &[Descriptor], reason: &str) {
        let mut bed = Bed::new(features);
        bed.put(1, descriptors);
        assert_eq!(bed.poll(0), 0);
        bed.assert_broken(1, reason);
    }
}

#[test]
fn an_indirect_table_of_length_0() {
    let table = LOW + 0x1_4000;
    Bed::breaks(INDIRECT, &[(table, 0, 0, AVAIL | TABLE)], "0 bytes");
    Bed::breaks(INDIRECT, &[(table, 17, 0, AVAIL | TABLE)], "multiple of 16");
    Bed::breaks(
        INDIRECT,
        &[(table, u32::MAX - 15, 0, AVAIL | TABLE)],
        "too long",
    );
    Bed::breaks(0, &[(table, 16, 0, AVAIL | TABLE)], "without negotiating");
    let nested = AVAIL | TABLE | NEXT;
    Bed::breaks(INDIRECT, &[(table, 16, 0, nested)], "followed by another");
    Bed::breaks(
        INDIRECT,
        &[(END, 16, 0, AVAIL | TABLE)],
        "not in shared memory",
    );
}

#[test]
fn an_indirect_table_in_a_table_and_one_of_empty_buffers() {
    let table = LOW + 0x1_4000;
    for (entry, reason) in [
        ((table, 16, 0, TABLE), "inside an indirect table"),
        ((HIGH, 0, 0, 0), "length 0"),
        ((END, 72, 0, 0), "not in shared memory"),
    ] {
        let mut bed = Bed::new(INDIRECT);
        Ring::write_desc(&bed.guest.memory, table, 0, entry);
        bed.put(1, &[(table, 16, 0, AVAIL | TABLE)]);
        assert_eq!(bed.poll(0), 0);
        bed.assert_broken(1, reason);
    }
}

#[test]
fn a_transmit_table_that_says_write_as_dpdk_s_does() {
    let table = LOW + 0x1_4000;
    let mut bed = Bed::new(INDIRECT);
    bed.guest.memory.write(HIGH, &[0; 72]);
    Ring::write_desc(&bed.guest.memory, table, 0, (HIGH, 12, 0, WRITE));
    Ring::write_desc(&bed.guest.memory, table, 1, (HIGH + 12, 60, 1, 0));
    bed.put(1, &[(table, 32, 0, AVAIL | TABLE)]);
    assert_eq!(bed.poll(0), 1);
    bed.assert_neighbour_works();
}

#[test]
fn buffers_of_length_0_and_outside_of_memory() {
    Bed::breaks(0, &[(HIGH, 0, 0, AVAIL)], "length 0");
    Bed::breaks(0, &[(0, 0, 0, AVAIL)], "length 0");
    for (address, len) in [(0, 100), (END - 50, 100), (u64::MAX, 2), (HIGH, u32::MAX)] {
        Bed::breaks(0, &[(address, len, 0, AVAIL)], "not in shared memory");
    }
    Bed::breaks(0, &[(HIGH, 72, 0, AVAIL | WRITE)], "to be written to");
    Bed::breaks(0, &[(HIGH, 11, 0, AVAIL)], "shorter than the 12-byte");
}

#[test]
fn a_chain_all_around_the_ring_and_one_that_goes_on_at_what_is_not_available() {
    let all: Vec<Descriptor> = (0..SIZE).map(|_| (HIGH, 100, 0, AVAIL | NEXT)).collect();
    Bed::breaks(0, &all, "descriptors, or is a loop");
    Bed::breaks(0, &[(HIGH, 100, 0, AVAIL | NEXT)], "not available");
    // Available in the round before this one.
    let stale = [(HIGH, 100, 0, AVAIL | NEXT), (HIGH, 100, 0, USED)];
    Bed::breaks(0, &stale, "descriptor 1, which is not available");
}

#[test]
fn wrap_counters_that_are_played_with() {
    // Both bits, none, and those of another round: nothing is available, nothing breaks.
    for flags in [0, AVAIL | USED, USED] {
        let mut bed = Bed::new(0);
        bed.put(1, &[(HIGH, 72, 0, flags)]);
        assert_eq!(bed.poll(0), 0);
        assert!(!bed.pairs[0].tx.arm());
        assert!(bed.port.backend.status().broken_queues.is_empty());
        bed.guest.restart_ring(1);
        bed.one_from(1, 0);
    }
    // A ring that is available all over, in both rounds: the work of a poll is bounded, and what was
    // overwritten by used descriptors is not available any more.
    let mut bed = Bed::new(0);
    bed.guest.memory.write(HIGH, &[0; 72]);
    let all: Vec<Descriptor> = (0..SIZE).map(|_| (HIGH, 72, 999, AVAIL)).collect();
    bed.put(1, &all);
    assert_eq!(bed.poll(0), usize::from(SIZE));
    assert_eq!(bed.poll(0), 0);
    assert!(bed.port.backend.status().broken_queues.is_empty());
    bed.assert_neighbour_works();
}

#[test]
fn buffer_ids_are_only_handed_back() {
    // An ID beyond the ring means nothing to the device: it comes back as it was.
    let mut bed = Bed::new(0);
    bed.guest.memory.write(HIGH, &[0; 72]);
    bed.put(1, &[(HIGH, 72, 0xffff, AVAIL)]);
    assert_eq!(bed.poll(0), 1);
    let (ring, memory) = bed.guest.ring(1);
    let used = memory.read(ring.desc() + 8, 8);
    assert_eq!(used, [0, 0, 0, 0, 0xff, 0xff, 0x80, 0x80]);
    bed.assert_neighbour_works();
}

#[test]
fn receive_buffers_that_make_no_sense() {
    for (descriptor, reason) in [
        ((HIGH, 2000, 0, AVAIL), "to be read from"),
        ((HIGH, 11, 0, AVAIL | WRITE), "shorter than the 12-byte"),
        ((END - 8, 2000, 0, AVAIL | WRITE), "not in shared memory"),
        ((HIGH, 0, 0, AVAIL | WRITE), "length 0"),
    ] {
        let mut bed = Bed::new(MRG_RXBUF);
        bed.put(0, &[descriptor]);
        let rx = &mut bed.pairs[0].rx;
        assert_eq!(rx.send(&[&[0; 60]], None), Err(SendError::Down));
        bed.assert_broken(0, reason);
    }
}

#[test]
fn a_base_and_a_size_that_a_ring_cannot_have() {
    let mut bed = Bed::new(0);
    bed.guest.frontend.get_vring_base(1).unwrap();
    bed.guest.start_ring(1, 0x8000 | SIZE);
    assert_eq!(bed.poll(0), 0);
    assert_eq!(bed.port.backend.status().active_queue_pairs, 1);
    bed.guest.restart_ring(1);
    bed.one_from(1, 0);
    assert!(bed.guest.frontend.set_vring_num(1, 0).is_err());
    assert!(bed.guest.frontend.set_vring_num(1, 1025).is_err());
    bed.assert_neighbour_works();
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let mut bed = Bed::new(0);
    for round in 0..200u32 {
        bed.one_from(1, 0);
        if round % 7 == 0 {
            let base = bed.guest.frontend.get_vring_base(1).unwrap();
            let place = bed.guest.ring(1).0.place();
            assert_eq!(base, u32::from(place) << 16 | u32::from(place));
            bed.guest.start_ring(1, place);
        }
    }
}

#[test]
fn interrupts_and_kicks_are_asked_for_at_a_descriptor() {
    let mut bed = Bed::new(EVENT_IDX);
    // The first one is always told.
    bed.one_from(1, 0);
    bed.guest.ring(1).0.interrupts();
    for round in 0..150u16 {
        let (ring, memory) = bed.guest.ring(1);
        let place = ring.place();
        let (at, wrap) = (place & 0x7fff, place & 0x8000);
        // Suppressed; always; at this descriptor; at the next one; at the one before.
        let next = if at + 1 == SIZE {
            (0, wrap ^ 0x8000)
        } else {
            (at + 1, wrap)
        };
        let before = if at == 0 {
            (SIZE - 1, wrap ^ 0x8000)
        } else {
            (at - 1, wrap)
        };
        let (event, flags, told) = match round % 5 {
            0 => (0, 1, 0),
            1 => (0, 0, 1),
            2 => (place, 2, 1),
            3 => (next.0 | next.1, 2, 0),
            _ => (before.0 | before.1, 2, 0),
        };
        memory.write(ring.avail(), &u16::to_le_bytes(event));
        memory.write(ring.avail() + 2, &u16::to_le_bytes(flags));
        assert!(!bed.pairs[0].tx.arm());
        let (ring, memory) = bed.guest.ring(1);
        assert_eq!(memory.u16(ring.used()), place, "kick at the next one");
        assert_eq!(memory.u16(ring.used() + 2), 2);
        bed.one_from(1, 0);
        assert_eq!(bed.guest.ring(1).0.interrupts(), told, "round {round}");
    }
    bed.pairs[0].tx.disarm();
    let (ring, memory) = bed.guest.ring(1);
    assert_eq!(memory.u16(ring.used() + 2), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn garbage_in_a_packed_ring_breaks_that_queue_only(
        plausible in prop::collection::vec(
            (LOW - 64..END + 64, 0u32..5000, 0u16..SIZE + 2,
             prop::sample::select(vec![AVAIL, AVAIL | NEXT, AVAIL | WRITE, AVAIL | WRITE | NEXT, AVAIL | TABLE, USED, AVAIL | USED, 0xffff])),
            1..60),
        noise in prop::collection::vec(any::<u8>(), 64..960),
        raw in any::<bool>(),
        direction in 0usize..2,
        in_order in any::<bool>(),
    ) {
        let mut bed = Bed::new(INDIRECT | MRG_RXBUF | if in_order { IN_ORDER } else { 0 });
        for _ in 0..3 {
            let (ring, memory) = bed.guest.ring(direction);
            match raw {
                true => memory.write(ring.desc(), &noise),
                false => for (i, d) in plausible.iter().enumerate() {
                    Ring::write_desc(memory, ring.desc(), i as u16, *d);
                },
            }
            bed.poll(0);
            let _ = bed.pairs[0].rx.send(&[&[7; 60]], None);
            bed.pairs[0].rx.flush();
        }
        bed.guest.memory.assert_untouched_outside();
        for (ring, _) in bed.port.backend.status().broken_queues {
            prop_assert!(ring < 2 && (direction == 0 || ring == 1));
        }
        for index in 0..4 {
            bed.guest.restart_ring(index);
        }
        bed.port.wait("no broken queue", |s| s.broken_queues.is_empty() && s.active_queue_pairs == 2);
        bed.assert_neighbour_works();
        bed.one_from(1, 0);
    }
}
