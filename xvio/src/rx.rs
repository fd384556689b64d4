//! From us to the guest: packets into a receive ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::access::Segment;
use crate::features::{F_GUEST_CSUM, F_MRG_RXBUF};
use crate::gate::{Gate, Pass};
use crate::net_header::{self, MAX_HEADER, Sum};
use crate::queue::{Queue, Running, Slot};
use crate::ring::{Batch, Broken, Chain, Used};
use crate::{Counters, PartialCsum, SendError, TxPacket};

/// Segments one packet may take, and with MRG_RXBUF also buffers: the bound on the work for one
/// packet when a guest provides tiny buffers.
const MAX_SEGMENTS: usize = 128;
/// Buffers that are fetched at a time: their cache lines come while others are written to.
const FETCH: usize = 32;
/// How many packets ahead a buffer's cache lines are asked for.
const PREFETCH: usize = 10;
/// Buffers given back at a time, at most. A packet's buffers are given back together.
const SHADOW: usize = 2 * MAX_SEGMENTS;

/// A guest's receive ring.
#[derive(Debug)]
pub struct GuestRx {
    queue: Arc<Queue>,
    /// Held from the first packet sent to the flush.
    pass: Option<Pass<Slot>>,
}

/// The state of a receive ring between the ring itself and the packets.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Buffers fetched; the first `taken` of them hold packets.
    batch: Batch,
    taken: usize,
    /// Used entries that are not yet given back.
    shadow: [Used; SHADOW],
    waiting: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead {
            batch: Batch::new(MAX_SEGMENTS + FETCH, 4 * MAX_SEGMENTS, MAX_SEGMENTS),
            taken: 0,
            shadow: [Used::NONE; SHADOW],
            waiting: 0,
        }
    }
}

impl Ahead {
    /// Starts fetching the cache lines of the buffer whose turn comes in a few packets. Not those
    /// of all buffers at once: a processor has a few dozen requests under way at most.
    #[inline]
    fn prefetch(&self) {
        if let Some(chain) = self.batch.chains().get(self.taken + PREFETCH)
            && let Some(segment) = self.batch.of(chain).first()
        {
            segment.prefetch_write();
        }
    }
}

/// How sending one packet ended.
enum Outcome {
    Sent,
    Refused(SendError),
    Broken(Broken),
}

impl From<Broken> for Outcome {
    fn from(why: Broken) -> Self {
        Outcome::Broken(why)
    }
}

/// What is sent.
trait Payload {
    fn len(&self) -> usize;
    /// Writes all of it.
    fn write(&self, cursor: &mut Cursor<'_>);
    /// Writes all of it to one segment that has room for it, from `at` on.
    fn write_at(&self, segment: &Segment, at: usize);
}

impl Payload for &[&[u8]] {
    #[inline]
    fn len(&self) -> usize {
        self.iter().map(|part| part.len()).sum()
    }

    #[inline]
    fn write(&self, cursor: &mut Cursor<'_>) {
        for part in *self {
            cursor.write(part);
        }
    }

    #[inline]
    fn write_at(&self, segment: &Segment, mut at: usize) {
        for part in *self {
            // SAFETY: as in `Cursor::write`.
            at += unsafe { segment.copy_in(at, part) };
        }
    }
}

/// A head of our own, and the rest of a packet in its sender's memory.
struct Forwarded<'a> {
    head: &'a [u8],
    packet: TxPacket<'a>,
    from: usize,
}

impl Payload for Forwarded<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.head.len() + self.packet.len() - self.from
    }

    #[inline]
    fn write(&self, cursor: &mut Cursor<'_>) {
        cursor.write(self.head);
        cursor.copy(self.packet.segments(), self.packet.skip() + self.from);
    }

    #[inline]
    fn write_at(&self, segment: &Segment, mut at: usize) {
        // SAFETY: as in `Cursor::write`.
        at += unsafe { segment.copy_in(at, self.head) };
        if self.from == self.packet.len() {
            return;
        }
        let mut skip = self.packet.skip() + self.from;
        for source in self.packet.segments() {
            // SAFETY: as in `Cursor::copy`.
            let n = unsafe { source.copy_across(skip, segment, at, source.len()) };
            skip = (skip + n).saturating_sub(source.len());
            at += n;
        }
    }
}

impl GuestRx {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        GuestRx { queue, pass: None }
    }

    /// Writes one packet, the concatenation of `parts`, into the guest's buffers. The guest sees it
    /// with the next [`GuestRx::flush`] at the latest. With `csum`, the guest is told to treat the
    /// checksum as not filled in; if it cannot ([`GuestRx::guest_csum`]), it is filled in on the
    /// way.
    pub fn send(&mut self, parts: &[&[u8]], csum: Option<PartialCsum>) -> Result<(), SendError> {
        self.put(&parts, csum)
    }

    /// Writes one packet that is still in its sender's memory: `head`, which is ours, and after it
    /// the bytes of `packet` from `from` on, copied once, from one guest to the other. `head` is
    /// the judged (and perhaps changed) copy of the first `from` bytes, which may have become
    /// longer or shorter ([`TxPacket::head`]). Otherwise as [`GuestRx::send`].
    ///
    /// # Panics
    /// When `from` lies beyond the packet.
    pub fn forward(
        &mut self,
        head: &[u8],
        packet: TxPacket<'_>,
        from: usize,
        csum: Option<PartialCsum>,
    ) -> Result<(), SendError> {
        let len = packet.len();
        assert!(from <= len, "byte {from} of a packet of {len}");
        self.put(&Forwarded { head, packet, from }, csum)
    }

    #[inline]
    fn put(&mut self, payload: &impl Payload, csum: Option<PartialCsum>) -> Result<(), SendError> {
        let counters = &self.queue.counters;
        if self.pass.is_none() {
            self.pass = Gate::enter(&self.queue.gate);
        }
        let Some(pass) = self.pass.as_mut() else {
            counters.down.add(1);
            return Err(SendError::Down);
        };
        let queue = &*self.queue;
        let sent = pass.with(|slot| {
            let running = slot.running.as_mut().filter(|r| !r.broken);
            let Some(running) = running else {
                return Err(SendError::Down);
            };
            match write(running, payload, csum, counters) {
                Outcome::Sent => Ok(()),
                Outcome::Refused(why) => Err(why),
                Outcome::Broken(why) => {
                    queue.break_ring(running, why);
                    Err(SendError::Down)
                }
            }
        });
        match sent {
            Ok(()) => {
                counters.packets.add(1);
                counters.bytes.add(payload.len() as u64);
            }
            Err(SendError::Full) => counters.full.add(1),
            Err(SendError::TooLong) => counters.too_long.add(1),
            Err(SendError::Down) => {
                counters.down.add(1);
                // Packets before a broken one are shown to the guest; and nobody waits for us.
                self.flush();
            }
        }
        sent
    }

    /// Publishes the packets sent since the last flush and notifies the guest unless it asked not
    /// to be. Call it before parking: until then the ring is held.
    pub fn flush(&mut self) {
        if let Some(mut pass) = self.pass.take() {
            let counters = &self.queue.counters;
            pass.with(|slot| {
                if let Some(running) = slot.running.as_mut() {
                    publish(running, counters);
                }
            });
        }
    }

    /// The guest takes packets whose checksum is not filled in.
    pub fn guest_csum(&self) -> bool {
        self.queue.guest_csum.load(Ordering::Acquire)
    }

    /// True while the ring runs.
    pub fn ready(&self) -> bool {
        self.queue.ready.load(Ordering::Acquire)
    }

    /// This ring's counters; readable by anybody, any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.queue.counters)
    }
}

impl Drop for GuestRx {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Gives back the buffers that were written to.
fn publish(running: &mut Running, counters: &Counters) {
    let Some(mut ahead) = running.ahead.take() else {
        return;
    };
    let waiting = std::mem::take(&mut ahead.waiting);
    if waiting > 0 {
        running.give_back(&ahead.shadow[..waiting], false, counters);
        counters.bursts.add(1);
    }
    running.ahead = Some(ahead);
}

/// Finds buffers for a packet, writes it, and notes its used entries.
#[inline]
fn write(
    running: &mut Running,
    payload: &impl Payload,
    csum: Option<PartialCsum>,
    counters: &Counters,
) -> Outcome {
    let need = running.header + payload.len();
    if let Some(ahead) = running.ahead.as_mut()
        && let Some(&chain) = ahead.batch.chains().get(ahead.taken)
        && (chain.count, chain.oversize) == (1, false)
        && chain.len >= need as u64
        && csum.is_none()
        && running.header == MAX_HEADER
        && ahead.waiting < SHADOW
    {
        // Nearly every packet: one buffer in one piece, nothing to be filled in.
        let segments = ahead.batch.of(&chain);
        if let [only] = segments {
            // SAFETY: as in `Cursor::write`.
            unsafe { only.put_front(0, u32::from(1u16) << 16) };
            payload.write_at(only, MAX_HEADER);
        }
        ahead.shadow[ahead.waiting] = Used {
            id: chain.id,
            slots: chain.slots,
            len: need as u32,
        };
        ahead.waiting += 1;
        ahead.taken += 1;
        ahead.prefetch();
        if running.inflight.is_some() || running.dirty.is_some() {
            tell(running, 1, need);
        }
        return Outcome::Sent;
    }
    write_any(running, payload, csum, need, counters)
}

/// The same for all other packets.
#[inline(never)]
fn write_any(
    running: &mut Running,
    payload: &impl Payload,
    csum: Option<PartialCsum>,
    need: usize,
    counters: &Counters,
) -> Outcome {
    let count = match collect(running, need) {
        Ok(count) => count,
        Err(outcome) => return outcome,
    };
    if running
        .ahead
        .as_ref()
        .is_some_and(|a| a.waiting + count > SHADOW)
    {
        publish(running, counters);
    }
    let (features, header) = (running.features, running.header);
    let Some(ahead) = running.ahead.as_mut() else {
        return Outcome::Refused(SendError::Down);
    };
    let chains = &ahead.batch.chains()[ahead.taken..ahead.taken + count];
    let segments = span(&ahead.batch, chains);
    let mut cursor = Cursor::new(segments);
    let guest_csum = features & F_GUEST_CSUM != 0;
    let net: [u8; MAX_HEADER] = net_header::emit(csum.filter(|_| guest_csum), count as u16);
    cursor.write(&net[..header]);
    payload.write(&mut cursor);
    if let Some(csum) = csum.filter(|_| !guest_csum) {
        fill_in(segments, header, need, csum);
    }
    let mut left = need as u64;
    for chain in chains {
        let used = chain.len.min(left);
        left -= used;
        ahead.shadow[ahead.waiting] = Used {
            id: chain.id,
            slots: chain.slots,
            len: used as u32,
        };
        ahead.waiting += 1;
    }
    ahead.taken += count;
    ahead.prefetch();
    if running.inflight.is_some() || running.dirty.is_some() {
        tell(running, count, need);
    }
    Outcome::Sent
}

/// Tells in-flight tracking and dirty logging about the packet just written.
#[cold]
fn tell(running: &mut Running, count: usize, need: usize) {
    let Some(ahead) = &running.ahead else { return };
    let chains = &ahead.batch.chains()[ahead.taken - count..ahead.taken];
    if let Some(inflight) = &mut running.inflight {
        for chain in chains {
            inflight.taken(chain);
        }
    }
    if let Some(dirty) = &running.dirty {
        let mut left = need;
        for segment in span(&ahead.batch, chains) {
            let len = segment.len().min(left);
            left -= len;
            if len > 0
                && let Some(guest) = running.ring.memory().guest_of(segment)
            {
                dirty.written(guest, len as u64);
            }
        }
    }
}

/// The segments of chains that follow each other.
#[inline]
fn span<'a>(batch: &'a Batch, chains: &[Chain]) -> &'a [Segment] {
    match chains {
        [first, .., last] => batch.segments(first.first, last.first + last.count - first.first),
        [only] => batch.of(only),
        [] => &[],
    }
}

/// Fills the checksum of a written packet in, over the bytes as they lie in the guest's memory.
#[cold]
fn fill_in(segments: &[Segment], header: usize, need: usize, csum: PartialCsum) {
    let at = usize::from(csum.start) + usize::from(csum.offset);
    if at + 2 > need - header {
        return;
    }
    let mut cursor = Cursor::new(segments);
    cursor.skip(header + usize::from(csum.start));
    let (mut sum, mut left) = (Sum::new(), need - header - usize::from(csum.start));
    let mut chunk = [0; 256];
    while left > 0 {
        let want = left.min(chunk.len());
        let got = cursor.read(&mut chunk[..want]);
        sum.add(&chunk[..got]);
        left = if got == 0 { 0 } else { left - got };
    }
    let mut patch = Cursor::new(segments);
    patch.skip(header + at);
    patch.write(&sum.finish().to_be_bytes());
}

/// Takes as many buffers as `need` bytes take, without consuming them; how many.
#[inline]
fn collect(running: &mut Running, need: usize) -> Result<usize, Outcome> {
    let (mut got, mut count, mut pieces) = (0u64, 0usize, 0usize);
    loop {
        let (header, features) = (running.header, running.features);
        let Some(ahead) = running.ahead.as_mut() else {
            return Err(Outcome::Refused(SendError::Down));
        };
        let Some(chain) = ahead.batch.chains().get(ahead.taken + count) else {
            fetch(running, count)?;
            continue;
        };
        if count == 0 && chain.len < header as u64 {
            return Err(Outcome::Broken(Broken::ShorterThanHeader {
                len: chain.len,
                header,
            }));
        }
        count += 1;
        pieces += usize::from(chain.count);
        // A chain in too many pieces may still have room enough in those that were listed.
        got += match chain.oversize {
            true => ahead.batch.of(chain).iter().map(|s| s.len() as u64).sum(),
            false => chain.len,
        };
        if got >= need as u64 {
            return match pieces <= MAX_SEGMENTS {
                true => Ok(count),
                false => Err(Outcome::Refused(SendError::TooLong)),
            };
        }
        if chain.oversize && count == 1 {
            // Shorter packets would fit, but no driver makes such a chain.
            let limit = MAX_SEGMENTS as u32;
            return Err(Outcome::Broken(Broken::Chain { limit }));
        }
        let mergeable = features & F_MRG_RXBUF != 0;
        if !mergeable || chain.oversize || pieces >= MAX_SEGMENTS {
            return Err(Outcome::Refused(SendError::TooLong));
        }
    }
}

/// Fetches more buffers behind the `count` that were collected; at least one.
fn fetch(running: &mut Running, count: usize) -> Result<(), Outcome> {
    let Some(ahead) = running.ahead.as_mut() else {
        return Err(Outcome::Refused(SendError::Down));
    };
    ahead.batch.forget_front(ahead.taken);
    ahead.taken = 0;
    let fetched = running.ring.fetch(FETCH, &mut ahead.batch);
    for chain in ahead.batch.chains().iter().skip(count).take(PREFETCH) {
        if let Some(segment) = ahead.batch.of(chain).first() {
            segment.prefetch_write();
        }
    }
    if ahead.batch.chains().len() > count {
        // If there is a bad one behind these, its turn comes.
        return Ok(());
    }
    fetched?;
    Err(Outcome::Refused(SendError::Full))
}

/// Goes over consecutive bytes in segments.
struct Cursor<'a> {
    segments: &'a [Segment],
    index: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn new(segments: &'a [Segment]) -> Self {
        Cursor {
            segments,
            index: 0,
            offset: 0,
        }
    }

    fn skip(&mut self, mut bytes: usize) {
        while let Some(segment) = self.segments.get(self.index) {
            let here = segment.len() - self.offset;
            if bytes < here {
                self.offset += bytes;
                return;
            }
            bytes -= here;
            self.index += 1;
            self.offset = 0;
        }
    }

    #[inline]
    fn advance(&mut self, segment: &Segment, bytes: usize) {
        self.offset += bytes;
        if self.offset == segment.len() {
            self.index += 1;
            self.offset = 0;
        }
    }

    #[inline]
    fn write(&mut self, mut bytes: &[u8]) {
        while let Some(segment) = self.segments.get(self.index)
            && !bytes.is_empty()
        {
            // SAFETY: this runs inside the gate of the ring whose memory the segments are in, and
            // that ring keeps the memory alive.
            let n = unsafe { segment.copy_in(self.offset, bytes) };
            bytes = &bytes[n..];
            self.advance(segment, n);
        }
    }

    /// Reads as many bytes as there are, or `bytes` takes; how many.
    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(segment) = self.segments.get(self.index)
            && done < bytes.len()
        {
            // SAFETY: as in `write`.
            let n = unsafe { segment.copy_out(self.offset, &mut bytes[done..]) };
            done += n;
            self.advance(segment, n);
        }
        done
    }

    /// Writes the bytes of other segments, from their byte `skip` on.
    #[inline]
    fn copy(&mut self, from: &[Segment], mut skip: usize) {
        for source in from {
            if skip >= source.len() {
                skip -= source.len();
                continue;
            }
            while let Some(segment) = self.segments.get(self.index)
                && skip < source.len()
            {
                // SAFETY: as in `write`, and the burst that `source` is of holds its own gate.
                let n = unsafe { source.copy_across(skip, segment, self.offset, source.len()) };
                skip += n;
                self.advance(segment, n);
            }
            skip = 0;
        }
    }
}
