//! From the guest to us: bursts out of a transmit ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::access::Segment;
use crate::features::F_CSUM;
use crate::gate::{Gate, Pass};
use crate::net_header::{self, Bad, MAX_HEADER};
use crate::queue::{Queue, Running, Slot};
use crate::split::{Broken, Chain, Direction, Segments};
use crate::{BURST, CopyError, Counters, PartialCsum};

/// Bytes of a packet that are copied to private memory when it is taken.
pub(crate) const HEADER_COPY: usize = 256;
/// Segments one packet may have. Linux uses 19 descriptors at most.
const MAX_SEGMENTS: usize = 64;
/// Segments of a whole burst.
const BURST_SEGMENTS: usize = 512;
/// A poll ends early after this many descriptors: long chains cost others nothing.
const MAX_STEPS: u32 = 2048;
/// The longest packet: 64 KiB of IP with an Ethernet header and two tags.
const MAX_PACKET: u64 = 65_535 + 22;

/// A guest's transmit ring.
#[derive(Debug)]
pub struct GuestTx {
    queue: Arc<Queue>,
    /// The descriptor last handed out by `kick`, so that it can be borrowed.
    kick: Option<Arc<OwnedFd>>,
}

/// The descriptor a guest kicks. It is an eventfd of the guest's: register a duplicate
/// (`fd.try_clone_to_owned()`) edge-triggered (`EPOLLET`), never read it (the guest could make the
/// read block), and replace it when the generation changes.
#[derive(Clone, Copy, Debug)]
pub struct Kick<'a> {
    /// Changes with every change of the ring; the same generation means the same descriptor.
    pub generation: u64,
    /// The eventfd.
    pub fd: BorrowedFd<'a>,
}

impl GuestTx {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        GuestTx { queue, kick: None }
    }

    /// Takes up to [`crate::BURST`] packets from the ring into `burst`; the number of them. The
    /// burst is completed first if it still holds packets. Packets the guest got wrong are counted
    /// and given back on the way, so 0 does not mean that the ring is empty: [`GuestTx::arm`] says.
    pub fn poll(&mut self, burst: &mut TxBurst) -> usize {
        burst.finish();
        let Some(mut pass) = Gate::enter(&self.queue.gate) else {
            return 0;
        };
        let queue = &*self.queue;
        pass.with(|slot| {
            if let Some(running) = slot.running.as_mut().filter(|r| !r.broken)
                && let Err(why) = burst.fill(running, &queue.counters)
            {
                queue.break_ring(running, why);
            }
        });
        if burst.taken == 0 {
            return 0;
        }
        burst.pass = Some(pass);
        if burst.len == 0 {
            // Nothing but bad packets: give them back at once.
            burst.finish();
        }
        burst.len
    }

    /// Gives the descriptors back in one publish and notifies the guest unless it asked not to be.
    pub fn complete(&mut self, burst: &mut TxBurst) {
        burst.finish();
    }

    /// The descriptor the guest kicks when there is new work, if it gave one and the ring runs.
    pub fn kick(&mut self) -> Option<Kick<'_>> {
        let (kick, generation) = self.running(|r| (r.kick.clone(), r.generation))?;
        self.kick = kick;
        let fd = self.kick.as_ref()?.as_fd();
        Some(Kick { generation, fd })
    }

    /// Asks for kicks before parking. True when work arrived meanwhile, or the ring is just being
    /// changed: poll again instead. False also when the ring does not run
    /// ([`crate::Backend::on_change`] tells when it does).
    pub fn arm(&mut self) -> bool {
        let Some(mut pass) = Gate::enter(&self.queue.gate) else {
            return true;
        };
        pass.with(|slot| match slot.running.as_mut().filter(|r| !r.broken) {
            Some(running) => running.ring.arm(),
            None => false,
        })
    }

    /// Asks for no more kicks (while polling).
    pub fn disarm(&mut self) {
        self.running(|r| r.ring.disarm());
    }

    /// True while the ring runs.
    pub fn ready(&self) -> bool {
        self.queue.ready.load(Ordering::Acquire)
    }

    /// Changes whenever the ring does; one load, for noticing that [`GuestTx::kick`] has to be
    /// asked again.
    pub fn generation(&self) -> u64 {
        self.queue.generation.load(Ordering::Acquire)
    }

    /// This ring's counters; readable by anybody, any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.queue.counters)
    }

    fn running<R>(&self, f: impl FnOnce(&mut Running) -> R) -> Option<R> {
        let mut pass = Gate::enter(&self.queue.gate)?;
        pass.with(|slot| slot.running.as_mut().filter(|r| !r.broken).map(f))
    }
}

/// Where a packet of a burst is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its segments, the virtio-net header's bytes included.
    first: usize,
    count: usize,
    /// Bytes of the virtio-net header.
    skip: usize,
    len: usize,
    csum: Option<PartialCsum>,
}

const NOWHERE: Place = Place {
    first: 0,
    count: 0,
    skip: 0,
    len: 0,
    csum: None,
};

/// Packets on their way from a guest. Reuse one per worker: it is about 20 KB large.
///
/// While it holds packets it holds the ring's gate, and with it the guest's memory; so complete it
/// before parking. Dropping it, or polling into it again, completes it.
#[derive(Debug)]
pub struct TxBurst {
    len: usize,
    places: [Place; BURST],
    headers: Box<[[u8; HEADER_COPY]; BURST]>,
    /// Heads of all chains taken, those of dropped packets too.
    heads: [u16; BURST],
    taken: usize,
    segments: Segments,
    pass: Option<Pass<Slot>>,
}

impl Default for TxBurst {
    fn default() -> Self {
        TxBurst {
            len: 0,
            places: [NOWHERE; BURST],
            headers: Box::new([[0; HEADER_COPY]; BURST]),
            heads: [0; BURST],
            taken: 0,
            segments: Segments::new(BURST_SEGMENTS),
            pass: None,
        }
    }
}

impl TxBurst {
    /// An empty burst.
    pub fn new() -> Self {
        Self::default()
    }

    /// Packets in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No packet in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Packet `index`; panics when there is no such packet.
    pub fn packet(&self, index: usize) -> TxPacket<'_> {
        assert!(index < self.len, "packet {index} of {}", self.len);
        TxPacket { burst: self, index }
    }

    /// Its packets.
    pub fn iter(&self) -> impl Iterator<Item = TxPacket<'_>> {
        (0..self.len).map(|index| TxPacket { burst: self, index })
    }

    /// Takes chains from the ring. On `Err` the packets before the bad chain are in the burst.
    fn fill(&mut self, running: &mut Running, counters: &Counters) -> Result<(), Broken> {
        let pending = usize::from(running.ring.refresh()?).min(BURST);
        let (mut steps, mut bytes) = (0, 0);
        let mut outcome = Ok(());
        while self.taken < pending && steps < MAX_STEPS && self.segments.room() >= MAX_SEGMENTS {
            let (room, out) = (MAX_SEGMENTS, &mut self.segments);
            let chain = match running.ring.chain(0, Direction::Read, room, out) {
                Ok(chain) if chain.len >= running.header as u64 => chain,
                Ok(chain) => {
                    outcome = Err(Broken::ShorterThanHeader {
                        len: chain.len,
                        header: running.header,
                    });
                    break;
                }
                Err(why) => {
                    outcome = Err(why);
                    break;
                }
            };
            steps += chain.steps;
            running.ring.advance(1);
            self.heads[self.taken] = chain.head;
            self.taken += 1;
            self.take(&chain, running, counters);
        }
        for index in 0..self.len {
            // Prefetched by `take`; copied here so that the lines have time to arrive.
            bytes += self.copy_header(index, running, counters);
        }
        self.drop_bad();
        if self.len > 0 {
            counters.packets.add(self.len as u64);
            counters.bytes.add(bytes as u64);
            counters.bursts.add(1);
        }
        outcome
    }

    /// Notes a chain's place and starts fetching its first bytes.
    fn take(&mut self, chain: &Chain, running: &Running, counters: &Counters) {
        let len = chain.len - running.header as u64;
        if chain.oversize || len > MAX_PACKET {
            counters.oversize.add(1);
            return;
        }
        if let [first, rest @ ..] = self.segments.get(chain.first, chain.count) {
            first.prefetch();
            if let [second, ..] = rest {
                second.prefetch();
            }
        }
        self.places[self.len] = Place {
            first: chain.first,
            count: chain.count,
            skip: running.header,
            len: len as usize,
            csum: None,
        };
        self.len += 1;
    }

    /// Copies the first bytes of a packet and judges its virtio-net header; a bad packet is marked
    /// by an empty place. Returns the packet's length, 0 for a bad one.
    fn copy_header(&mut self, index: usize, running: &Running, counters: &Counters) -> usize {
        let place = self.places[index];
        let segments = self.segments.get(place.first, place.count);
        let mut net = [0; MAX_HEADER];
        gather(segments, 0, &mut net[..place.skip]);
        match net_header::judge(&net, place.len, running.features & F_CSUM != 0) {
            Ok(csum) => {
                let want = place.len.min(HEADER_COPY);
                gather(segments, place.skip, &mut self.headers[index][..want]);
                self.places[index].csum = csum;
                place.len
            }
            Err(bad) => {
                match bad {
                    Bad::Runt => counters.runt.add(1),
                    Bad::Gso => counters.gso_not_offered.add(1),
                    Bad::Csum => counters.bad_csum.add(1),
                }
                self.places[index].count = 0;
                0
            }
        }
    }

    /// Removes the places of bad packets; rare.
    fn drop_bad(&mut self) {
        let mut kept = 0;
        for index in 0..self.len {
            if self.places[index].count > 0 {
                if kept != index {
                    self.places[kept] = self.places[index];
                    self.headers.copy_within(index..=index, kept);
                }
                kept += 1;
            }
        }
        self.len = kept;
    }

    /// Gives everything back to the ring it came from.
    fn finish(&mut self) {
        let heads = &self.heads[..self.taken];
        if let Some(mut pass) = self.pass.take() {
            pass.with(|slot| {
                if let Some(running) = slot.running.as_mut() {
                    for &head in heads {
                        running.ring.push_used(head, 0);
                    }
                    running.publish(&slot.counters);
                }
            });
        }
        self.len = 0;
        self.taken = 0;
        self.segments.clear();
    }
}

impl Drop for TxBurst {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Copies the bytes from `offset` on into `dst`, as many as there are.
///
/// Only called while the gate is passed: `fill` runs inside it, and a burst with packets holds it.
#[inline]
fn gather(segments: &[Segment], mut offset: usize, dst: &mut [u8]) {
    let mut done = 0;
    for segment in segments {
        if done == dst.len() {
            break;
        }
        if offset >= segment.len() {
            offset -= segment.len();
            continue;
        }
        // SAFETY: the segments come from the memory of the ring behind the gate, which cannot
        // change while the gate is passed (see above).
        done += unsafe { segment.copy_out(offset, &mut dst[done..]) };
        offset = 0;
    }
}

/// One packet of a burst, without its virtio-net header.
#[derive(Clone, Copy, Debug)]
pub struct TxPacket<'a> {
    burst: &'a TxBurst,
    index: usize,
}

impl<'a> TxPacket<'a> {
    /// Bytes, at least 14.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.place().len
    }

    /// A private copy of the packet's first bytes (all of them up to 256): judge these.
    pub fn header(&self) -> &'a [u8] {
        &self.burst.headers[self.index][..self.len().min(HEADER_COPY)]
    }

    /// The checksum the guest leaves to us; within the packet.
    pub fn csum(&self) -> Option<PartialCsum> {
        self.place().csum
    }

    /// Copies the whole packet; `dst` must be exactly [`TxPacket::len`] bytes long. The first bytes
    /// come from the private copy, so what was judged is what is copied.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<(), CopyError> {
        let place = self.place();
        if dst.len() != place.len {
            return Err(CopyError::Length {
                wanted: place.len,
                got: dst.len(),
            });
        }
        let header = self.header();
        let (front, back) = dst.split_at_mut(header.len());
        front.copy_from_slice(header);
        if !back.is_empty() {
            let segments = self.burst.segments.get(place.first, place.count);
            gather(segments, place.skip + HEADER_COPY, back);
        }
        Ok(())
    }

    fn place(&self) -> &'a Place {
        &self.burst.places[self.index]
    }
}
