//! From the guest to us: bursts out of a transmit ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::access::Segment;
use crate::features::F_CSUM;
use crate::gate::{Gate, Pass};
use crate::net_header::{self, Bad, ETH_HEADER, MAX_HEADER};
use crate::queue::{Queue, Running, Slot};
use crate::ring::{Batch, Broken, Chain, Used};
use crate::{BURST, CopyError, Counters, PartialCsum};

/// Segments one packet may have. Linux uses 19 descriptors at most.
const MAX_SEGMENTS: usize = 64;
/// Segments of a whole burst.
const BURST_SEGMENTS: usize = 512;
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
        burst.worked = false;
        // A guest may have dozens of rings that do not run: one load each.
        if !self.ready() {
            return 0;
        }
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
            burst.batch.clear();
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
            Some(running) => running.arm(),
            None => false,
        })
    }

    /// Asks for no more kicks (while polling).
    pub fn disarm(&mut self) {
        self.running(Running::disarm);
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
    first: u16,
    count: u16,
    /// Bytes of the virtio-net header.
    skip: u16,
    csum: Option<PartialCsum>,
    len: u32,
}

const NOWHERE: Place = Place {
    first: 0,
    count: 0,
    skip: 0,
    csum: None,
    len: 0,
};

/// Packets on their way from a guest. Reuse one per worker: it is about 10 KB large.
///
/// While it holds packets it holds the ring's gate, and with it the guest's memory; so complete it
/// before parking. Dropping it, or polling into it again, completes it.
#[derive(Debug)]
pub struct TxBurst {
    len: usize,
    places: [Place; BURST],
    /// All chains taken, those of dropped packets too.
    batch: Batch,
    /// How many of them go back: all, unless the ring broke.
    taken: usize,
    /// The last poll took chains, or stopped the ring.
    worked: bool,
    pass: Option<Pass<Slot>>,
}

impl Default for TxBurst {
    fn default() -> Self {
        TxBurst {
            len: 0,
            places: [NOWHERE; BURST],
            batch: Batch::new(BURST, BURST_SEGMENTS, MAX_SEGMENTS),
            taken: 0,
            worked: false,
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

    /// The last poll into it had work, be it with packets that the guest got wrong and that are not
    /// here: the guest has had its turn.
    pub fn worked(&self) -> bool {
        self.worked
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
        let mut outcome = running.ring.fetch(BURST, &mut self.batch);
        let chains = self.batch.chains();
        self.worked = !chains.is_empty() || outcome.is_err();
        if chains.is_empty() {
            return outcome;
        }
        running.take(chains);
        let (csum, header) = (running.features & F_CSUM != 0, running.header);
        let (mut len, mut bytes) = (0, 0);
        self.taken = chains.len();
        for (index, chain) in chains.iter().enumerate() {
            let (place, segments) = (&mut self.places[len], self.batch.of(chain));
            match locate(chain, segments, header, csum) {
                Ok(found) => {
                    bytes += u64::from(found.len);
                    *place = found;
                    len += 1;
                }
                Err(Refused::Bad(bad)) => match bad {
                    Bad::Runt => counters.runt.add(1),
                    Bad::Gso => counters.gso_not_offered.add(1),
                    Bad::Csum => counters.bad_csum.add(1),
                },
                Err(Refused::Oversize) => counters.oversize.add(1),
                Err(Refused::Broken(why)) => {
                    // The ring stops here, and goes on here should the driver mend it.
                    self.taken = index;
                    outcome = Err(why);
                    break;
                }
            }
        }
        self.len = len;
        if len > 0 {
            counters.packets.add(len as u64);
            counters.bytes.add(bytes);
            counters.bursts.add(1);
        }
        outcome
    }

    /// Gives everything back to the ring it came from.
    fn finish(&mut self) {
        if let Some(mut pass) = self.pass.take() {
            let mut used = [Used::NONE; BURST];
            let chains = &self.batch.chains()[..self.taken];
            for (entry, chain) in used.iter_mut().zip(chains) {
                (entry.id, entry.slots) = (chain.id, chain.slots);
            }
            let used = &used[..chains.len().min(BURST)];
            pass.with(|slot| {
                if let Some(running) = slot.running.as_mut() {
                    running.give_back(used, true, &slot.counters);
                }
            });
        }
        (self.len, self.taken) = (0, 0);
        self.batch.clear();
    }
}

impl Drop for TxBurst {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Why a chain is no packet.
enum Refused {
    Bad(Bad),
    Oversize,
    Broken(Broken),
}

/// Finds the packet in a chain and judges its virtio-net header from a private copy.
#[inline]
fn locate(
    chain: &Chain,
    segments: &[Segment],
    header: usize,
    csum_offered: bool,
) -> Result<Place, Refused> {
    if chain.len < (header + ETH_HEADER) as u64 {
        return Err(match chain.len < header as u64 {
            true => Refused::Broken(Broken::ShorterThanHeader {
                len: chain.len,
                header,
            }),
            false => Refused::Bad(Bad::Runt),
        });
    }
    let len = chain.len - header as u64;
    if chain.oversize || len > MAX_PACKET {
        return Err(Refused::Oversize);
    }
    let csum = match segments {
        [only] => {
            // The line behind the header's: it is copied next.
            only.prefetch_next();
            // SAFETY: the segments come from the ring behind the gate, which this runs in.
            let front = unsafe { only.read_front() };
            match net_header::is_plain(front) {
                true => None,
                false => judge(segments, header, len, csum_offered)?,
            }
        }
        _ => judge(segments, header, len, csum_offered)?,
    };
    Ok(Place {
        first: chain.first,
        count: chain.count,
        skip: header as u16,
        csum,
        len: len as u32,
    })
}

/// Judges a virtio-net header that is not plain, or in pieces, from a private copy.
#[inline(never)]
fn judge(
    segments: &[Segment],
    header: usize,
    len: u64,
    csum_offered: bool,
) -> Result<Option<PartialCsum>, Refused> {
    let mut net = [0; MAX_HEADER];
    gather(segments, 0, &mut net[..header]);
    net_header::judge(&net, len as usize, csum_offered).map_err(Refused::Bad)
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

/// One packet of a burst, without its virtio-net header. Its bytes are in the guest's memory, and
/// the guest may change them at any time: copy what is to be judged with [`TxPacket::head`] or
/// [`TxPacket::copy_to`], judge the copy, and send the copy on ([`crate::GuestRx::forward`]).
#[derive(Clone, Copy, Debug)]
pub struct TxPacket<'a> {
    burst: &'a TxBurst,
    index: usize,
}

impl<'a> TxPacket<'a> {
    /// Bytes, at least 14.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.place().len as usize
    }

    /// Copies the packet's first bytes to private memory, as many as it has and `buffer` takes.
    pub fn head<'b>(&self, buffer: &'b mut [u8]) -> &'b mut [u8] {
        let place = self.place();
        let want = buffer.len().min(place.len as usize);
        let head = &mut buffer[..want];
        gather(self.segments(), place.skip.into(), head);
        head
    }

    /// The checksum the guest leaves to us; within the packet.
    pub fn csum(&self) -> Option<PartialCsum> {
        self.place().csum
    }

    /// Copies the whole packet; `dst` must be exactly [`TxPacket::len`] bytes long. Judge the copy.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<(), CopyError> {
        let place = self.place();
        if dst.len() != place.len as usize {
            return Err(CopyError::Length {
                wanted: place.len as usize,
                got: dst.len(),
            });
        }
        gather(self.segments(), place.skip.into(), dst);
        Ok(())
    }

    /// The packet's segments; what [`TxPacket::skip`] says is not the packet's.
    #[inline]
    pub(crate) fn segments(&self) -> &'a [Segment] {
        let place = self.place();
        self.burst.batch.segments(place.first, place.count)
    }

    /// Bytes before the packet in its segments.
    #[inline]
    pub(crate) fn skip(&self) -> usize {
        self.place().skip.into()
    }

    #[inline]
    fn place(&self) -> &'a Place {
        &self.burst.places[self.index]
    }
}
