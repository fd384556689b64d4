//! Properties of the rings, seen through the public interface from the guest's side: whatever
//! chains a driver makes, packets arrive byte for byte; whatever garbage it makes, only its own
//! queue stops.

mod guest;

use guest::*;
use proptest::prelude::*;
use vhost::VhostBackend;
use xvio::{PartialCsum, QueuePair, SendError, TxBurst};

const SIZE: u16 = 64;

/// Packets of 14 to 3000 bytes that can be told apart.
fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// Cuts `len` bytes into buffers at the fractions given, one after the other from `at` on.
fn cut(at: u64, len: usize, cuts: &[usize]) -> Vec<Buffer> {
    let mut points: Vec<usize> = cuts.iter().map(|c| c % len).filter(|c| *c > 0).collect();
    points.extend([0, len]);
    points.sort_unstable();
    points.dedup();
    let piece = |w: &[usize]| (at + w[0] as u64, (w[1] - w[0]) as u32);
    points.windows(2).map(piece).collect()
}

#[derive(Debug, Clone)]
struct Frame {
    len: usize,
    cuts: Vec<usize>,
    indirect: bool,
    /// Lies across the border of the two regions.
    crossing: bool,
}

fn frame() -> impl Strategy<Value = Frame> {
    let cuts = prop::collection::vec(0usize..3012, 0..6);
    (14usize..3000, cuts, any::<bool>(), any::<bool>()).prop_map(
        |(len, cuts, indirect, crossing)| Frame {
            len,
            cuts,
            indirect,
            crossing,
        },
    )
}

fn features() -> impl Strategy<Value = u64> {
    let optional = [MRG_RXBUF, EVENT_IDX, PACKED, IN_ORDER];
    prop::collection::vec(any::<bool>(), optional.len()).prop_map(move |wanted| {
        let wanted = wanted.iter().zip(optional);
        wanted.fold(
            INDIRECT,
            |all, (yes, bit)| if *yes { all | bit } else { all },
        )
    })
}

/// Powers of two for split rings, any size for packed ones.
fn size(features: u64, pick: usize) -> u16 {
    match features & PACKED {
        0 => [4, 32, SIZE][pick % 3],
        _ => [1, 2, 5, 61, SIZE][pick % 5],
    }
}

fn one_pair(features: u64) -> (Port, QueuePair, Guest) {
    one_pair_of(features, SIZE)
}

fn one_pair_of(features: u64, size: u16) -> (Port, QueuePair, Guest) {
    let mut port = Port::new(1);
    let pair = port.backend.take_queues().remove(0);
    let mut guest = Guest::connect(&port.socket, features, 1, size);
    guest.start();
    (port, pair, guest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_valid_chain_from_the_guest_arrives_byte_for_byte(
        frames in prop::collection::vec(frame(), 1..120),
        features in features(),
        pick in 0usize..16,
    ) {
        let size = size(features, pick);
        let (_port, mut pair, mut guest) = one_pair_of(features, size);
        let mut burst = TxBurst::new();
        let (ring, memory) = guest.ring(1);
        let mut waiting = std::collections::VecDeque::new();
        let mut outstanding = std::collections::HashSet::new();
        let mut frames = frames.into_iter().enumerate().peekable();
        while frames.peek().is_some() || !waiting.is_empty() {
            while let Some((n, frame)) = frames.peek() {
                let bytes = payload(frame.len, *n as u8);
                let slot = (waiting.len() % 30) as u64 * 4096;
                let at = if frame.crossing && waiting.is_empty() {
                    HIGH - 12 - frame.len as u64 / 2
                } else {
                    HIGH + 0x1_0000 + slot
                };
                let chain = cut(at, 12 + frame.len, &frame.cuts);
                if waiting.len() >= 30 { break; }
                let indirect = frame.indirect || chain.len() > usize::from(size);
                let Some(head) = ring.add(memory, &chain, false, indirect) else { break };
                memory.write(at, &[0; 12]);
                memory.write(at + 12, &bytes);
                outstanding.insert(head);
                waiting.push_back(bytes);
                frames.next();
            }
            ring.expose(memory);
            let before = waiting.len();
            // A packed ring that was empty is left alone for a moment after its first packet.
            let polls = (0..100_000).map(|_| pair.tx.poll(&mut burst));
            let count = { polls }.find(|count| *count > 0).unwrap_or(0);
            prop_assert!(count > 0 && count <= before);
            for packet in burst.iter() {
                let expected = waiting.pop_front().unwrap();
                let mut got = vec![0; packet.len()];
                packet.copy_to(&mut got).unwrap();
                prop_assert_eq!(&got, &expected);
                let mut head = [0; 256];
                prop_assert_eq!(packet.head(&mut head), &expected[..expected.len().min(256)]);
                prop_assert!(packet.copy_to(&mut got[1..]).is_err());
            }
            prop_assert!(ring.take_used(memory).is_empty(), "given back before complete");
            pair.tx.complete(&mut burst);
            let used = ring.take_used(memory);
            prop_assert_eq!(used.len(), count);
            for (head, len) in used {
                prop_assert!(outstanding.remove(&head));
                prop_assert_eq!(len, 0);
            }
        }
        prop_assert!(outstanding.is_empty());
        guest.memory.assert_untouched_outside();
    }

    #[test]
    fn every_packet_reaches_the_guest_byte_for_byte(
        lengths in prop::collection::vec(14usize..3000, 1..100),
        buffers in prop::collection::vec((64usize..1600, prop::collection::vec(0usize..1600, 0..3), any::<bool>()), 1..8),
        features in features(),
        parts in prop::collection::vec(0usize..3000, 0..3),
        pick in 0usize..16,
    ) {
        let size = size(features, pick);
        let (_port, mut pair, mut guest) = one_pair_of(features, size);
        let mergeable = features & MRG_RXBUF != 0;
        let (ring, memory) = guest.ring(0);
        let mut posted = std::collections::HashMap::new();
        let mut fresh = 0usize;
        let mut expected = std::collections::VecDeque::new();
        for (n, len) in lengths.iter().enumerate() {
            // The guest keeps its ring filled.
            loop {
                let (length, cuts, indirect) = &buffers[fresh % buffers.len()];
                let at = BUFFERS + 0x9_0000 + (fresh % 128) as u64 * 0x1000;
                let chain = cut(at, *length, cuts);
                let indirect = *indirect || chain.len() > usize::from(size);
                let Some(head) = ring.add(memory, &chain, true, indirect) else { break };
                posted.insert(head, chain);
                fresh += 1;
            }
            ring.expose(memory);
            let packet = payload(*len, n as u8);
            let (a, rest) = packet.split_at(parts.first().copied().unwrap_or(0) % len);
            let (b, c) = rest.split_at(parts.get(1).copied().unwrap_or(0) % rest.len());
            match pair.rx.send(&[a, b, c], None) {
                Ok(()) => expected.push_back(packet),
                Err(SendError::TooLong) => prop_assert!(!mergeable),
                Err(SendError::Full) => {
                    // Packets not flushed yet hold buffers; direct chains take several descriptors.
                    prop_assert!(!expected.is_empty() || posted.len() <= usize::from(size));
                }
                Err(SendError::Down) => prop_assert!(false, "down"),
            }
            if n % 3 == 0 || n + 1 == lengths.len() {
                pair.rx.flush();
                let mut used = ring.take_used(memory).into_iter();
                while let Some((head, len)) = used.next() {
                    let want = expected.pop_front().expect("a packet that was not sent");
                    let mut got = collect(memory, &posted.remove(&head).unwrap(), len as usize);
                    let count = u16::from_le_bytes([got[10], got[11]]);
                    prop_assert!(count == 1 || mergeable);
                    for _ in 1..count {
                        let (head, len) = used.next().expect("num_buffers says more");
                        got.extend(collect(memory, &posted.remove(&head).unwrap(), len as usize));
                    }
                    prop_assert_eq!(&got[..10], &[0; 10]);
                    prop_assert_eq!(&got[12..], &want[..]);
                }
                prop_assert!(expected.is_empty());
            }
        }
        guest.memory.assert_untouched_outside();
    }

    #[test]
    fn garbage_in_a_ring_breaks_that_queue_only(
        noise in prop::collection::vec(any::<u8>(), 256..2048),
        plausible in prop::collection::vec((LOW - 64..END + 64, 0u32..5000, 0u16..8, 0u16..SIZE + 2), 1..64),
        heads in prop::collection::vec(0u16..SIZE + 1, 1..64),
        jump in 0u16..80,
        raw in any::<bool>(),
        direction in 0usize..2,
    ) {
        let mut port = Port::new(2);
        let mut pairs = port.backend.take_queues();
        let mut guest = Guest::connect(&port.socket, INDIRECT | MRG_RXBUF | MQ, 2, SIZE);
        guest.start();
        let mut burst = TxBurst::new();
        for round in 0..3u16 {
            let (ring, memory) = guest.ring(direction);
            if raw {
                memory.write(ring.desc(), &noise);
            } else {
                for (i, d) in plausible.iter().enumerate() {
                    Ring::write_desc(memory, ring.desc(), i as u16, *d);
                }
            }
            for head in &heads {
                ring.offer(memory, *head);
            }
            ring.avail_idx = jump.wrapping_mul(round + 1);
            ring.expose(memory);
            for _ in 0..4 {
                let n = pairs[0].tx.poll(&mut burst);
                for i in 0..n {
                    let packet = burst.packet(i);
                    let mut bytes = vec![0; packet.len()];
                    packet.copy_to(&mut bytes).unwrap();
                    if let Some(c) = packet.csum() {
                        prop_assert!(usize::from(c.start) + usize::from(c.offset) + 2 <= packet.len());
                    }
                }
                let _ = pairs[0].rx.send(&[&bytes_of(60)], Some(PartialCsum { start: 34, offset: 6 }));
                pairs[0].rx.flush();
                pairs[0].tx.complete(&mut burst);
            }
        }
        guest.memory.assert_untouched_outside();
        for (ring, _) in port.backend.status().broken_queues {
            // A guest that lets its receive ring point into its transmit ring breaks both.
            prop_assert!(ring < 2 && (direction == 0 || ring == 1));
        }
        // The guest wrote garbage into its own memory, and the device its packets where it was told
        // to; so the other pair starts with clean rings, and must work.
        for index in 2..4 {
            guest.restart_ring(index);
        }
        let (ring, memory) = guest.ring(3);
        memory.write(HIGH, &[0; 72]);
        ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
        ring.expose(memory);
        prop_assert_eq!(pairs[1].tx.poll(&mut burst), 1);
        pairs[1].tx.complete(&mut burst);
        prop_assert_eq!(guest.ring(3).0.used_seen, 0);
        // And the broken one comes back when the driver resets it.
        guest.restart_ring(direction);
        port.wait("no broken queue", |s| s.broken_queues.is_empty() && s.active_queue_pairs == 2);
    }
}

fn bytes_of(len: usize) -> Vec<u8> {
    payload(len, 7)
}

fn collect(memory: &Memory, chain: &[Buffer], len: usize) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::new();
    for (at, size) in chain {
        all.extend(memory.read(*at, *size as usize));
    }
    all.truncate(len);
    assert_eq!(all.len(), len, "used length beyond the buffer");
    all
}

#[test]
fn indexes_wrap_at_65536_with_every_kind_of_notification() {
    for features in [0, EVENT_IDX] {
        let (_port, mut pair, mut guest) = one_pair(features);
        let base = 0xfff0u16;
        for index in 0..2 {
            guest.frontend.get_vring_base(index).unwrap();
            let (ring, memory) = guest.ring(index);
            (ring.avail_idx, ring.used_seen) = (base, base);
            ring.expose(memory);
            memory.write(ring.used() + 2, &base.to_le_bytes());
            guest.start_ring(index, base);
        }
        let mut burst = TxBurst::new();
        for n in 0..64u16 {
            let next = base.wrapping_add(n);
            let wish = |ring: &Ring, memory: &Memory| {
                let at = ring.avail() + 4 + 2 * u64::from(SIZE);
                memory.write(at, &next.to_le_bytes());
            };
            let (ring, memory) = guest.ring(1);
            wish(ring, memory);
            assert!(!pair.tx.arm());
            if features == EVENT_IDX {
                assert_eq!(memory.u16(ring.used() + 4 + 8 * u64::from(SIZE)), next);
            }
            memory.write(HIGH, &[0; 72]);
            ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
            ring.expose(memory);
            assert!(pair.tx.arm());
            assert_eq!(pair.tx.poll(&mut burst), 1);
            pair.tx.complete(&mut burst);
            assert_eq!((ring.take_used(memory).len(), ring.interrupts()), (1, 1));
            let (ring, memory) = guest.ring(0);
            wish(ring, memory);
            ring.add(memory, &[(HIGH, 100)], true, false).unwrap();
            ring.expose(memory);
            pair.rx.send(&[&[3; 60]], None).unwrap();
            pair.rx.flush();
            assert_eq!((ring.take_used(memory).len(), ring.interrupts()), (1, 1));
        }
        for index in 0..2 {
            let end = u32::from(base.wrapping_add(64));
            assert_eq!(guest.frontend.get_vring_base(index).unwrap(), end);
        }
    }
}

#[test]
fn interrupts_are_sent_as_the_driver_wishes() {
    for event in [false, true] {
        let (_port, mut pair, mut guest) = one_pair(if event { EVENT_IDX } else { 0 });
        let mut burst = TxBurst::new();
        let (ring, memory) = guest.ring(1);
        let mut send = |ring: &mut Ring, wish: Option<u16>| {
            // No wish: suppressed.
            if event {
                let at = wish.unwrap_or(ring.used_seen.wrapping_sub(1000));
                memory.write(ring.avail() + 4 + 2 * u64::from(SIZE), &at.to_le_bytes());
            } else {
                memory.write(ring.avail(), &u16::from(wish.is_none()).to_le_bytes());
            }
            memory.write(HIGH, &[0; 72]);
            ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
            ring.expose(memory);
            assert_eq!(pair.tx.poll(&mut burst), 1);
            pair.tx.complete(&mut burst);
            ring.take_used(memory);
            ring.interrupts()
        };
        assert_eq!(send(ring, Some(0)), 1, "the first is always told");
        assert_eq!(send(ring, Some(1)), 1);
        assert_eq!(send(ring, None), 0, "suppressed, event {event}");
        let next = ring.used_seen;
        assert_eq!(send(ring, Some(next)), 1);
        let counters = pair.tx.counters().snapshot();
        assert_eq!((counters.kicks, counters.suppressed), (3, 1));
    }
}

#[test]
fn arming_asks_for_kicks_and_sees_work_that_came_meanwhile() {
    for event in [false, true] {
        let (_port, mut pair, mut guest) = one_pair(if event { EVENT_IDX } else { 0 });
        let mut burst = TxBurst::new();
        let (ring, memory) = guest.ring(1);
        let wants_kick = |ring: &Ring| {
            if event {
                memory.u16(ring.used() + 4 + 8 * u64::from(SIZE)) == ring.avail_idx
            } else {
                memory.u16(ring.used()) == 0
            }
        };
        pair.tx.disarm();
        assert!(event || !wants_kick(ring));
        assert!(!pair.tx.arm());
        assert!(wants_kick(ring));
        let kick = pair.tx.kick().expect("a kick descriptor");
        let (generation, fd) = (kick.generation, kick.fd.try_clone_to_owned().unwrap());
        assert_eq!(generation, pair.tx.generation());
        ring.kick.write(1).unwrap();
        let mut fds = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&fd),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(nix::poll::poll(&mut fds, 1000u16).unwrap(), 1);
        memory.write(HIGH, &[0; 72]);
        ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
        ring.expose(memory);
        assert!(pair.tx.arm(), "work arrived");
        assert_eq!(pair.tx.poll(&mut burst), 1);
        pair.tx.complete(&mut burst);
        assert!(!pair.tx.arm());
        assert!(wants_kick(ring));
    }
}

#[test]
fn a_partial_checksum_travels_or_is_filled_in() {
    for guest_csum in [false, true] {
        let (_port, mut pair, mut guest) = one_pair(if guest_csum { GUEST_CSUM } else { 0 });
        assert_eq!(pair.rx.guest_csum(), guest_csum);
        let (ring, memory) = guest.ring(0);
        ring.add(
            memory,
            &[(HIGH, 11), (HIGH + 11, 40), (HIGH + 51, 400)],
            true,
            false,
        )
        .unwrap();
        ring.expose(memory);
        let mut packet = bytes_of(75);
        packet[40..42].copy_from_slice(&[0x12, 0x34]);
        let csum = PartialCsum {
            start: 34,
            offset: 6,
        };
        pair.rx
            .send(&[&packet[..41], &packet[41..]], Some(csum))
            .unwrap();
        pair.rx.flush();
        assert_eq!(ring.take_used(memory), [(0, 87)]);
        let got = memory.read(HIGH, 87);
        if guest_csum {
            assert_eq!(&got[..12], &[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
            assert_eq!(&got[12..], &packet[..]);
        } else {
            assert_eq!(&got[..12], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            // The sum over what was covered, with the checksum in place and the pseudo header's
            // part (0x1234) added, is all ones.
            let mut sum = 0x1234u32;
            for pair in got[12 + 34..].chunks(2) {
                sum += u32::from(u16::from_be_bytes([
                    pair[0],
                    pair.get(1).copied().unwrap_or(0),
                ]));
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff);
        }
    }
}
