//! From us to the guest: packets into a receive ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::access::Segment;
use crate::features::{F_GUEST_CSUM, F_MRG_RXBUF};
use crate::gate::{Gate, Pass};
use crate::net_header::{self, MAX_HEADER};
use crate::queue::{Queue, Running, Slot};
use crate::split::{Broken, Chain, Direction, Segments};
use crate::{Counters, PartialCsum, SendError};

/// Segments one packet may take, and with MRG_RXBUF also buffers: the bound on the work for one
/// packet when a guest provides tiny buffers.
const MAX_SEGMENTS: usize = 128;

/// A guest's receive ring.
#[derive(Debug)]
pub struct GuestRx {
    queue: Arc<Queue>,
    /// Held from the first packet sent to the flush.
    pass: Option<Pass<Slot>>,
    segments: Segments,
    /// The chains of the packet being sent: head and bytes.
    chains: Box<[(u16, u64); MAX_SEGMENTS]>,
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

impl GuestRx {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        GuestRx {
            queue,
            pass: None,
            segments: Segments::new(MAX_SEGMENTS),
            chains: Box::new([(0, 0); MAX_SEGMENTS]),
        }
    }

    /// Writes one packet, the concatenation of `parts`, into the guest's buffers. The guest sees it
    /// with the next [`GuestRx::flush`]. With `csum`, the guest is told to treat the checksum as
    /// not filled in; if it cannot ([`GuestRx::guest_csum`]), it is filled in on the way.
    pub fn send(&mut self, parts: &[&[u8]], csum: Option<PartialCsum>) -> Result<(), SendError> {
        let counters = &self.queue.counters;
        if self.pass.is_none() {
            self.pass = Gate::enter(&self.queue.gate);
        }
        let Some(pass) = self.pass.as_mut() else {
            counters.down.add(1);
            return Err(SendError::Down);
        };
        let (queue, segments, chains) = (&*self.queue, &mut self.segments, &mut self.chains);
        let sent = pass.with(|slot| {
            let running = slot.running.as_mut().filter(|r| !r.broken);
            let Some(running) = running else {
                return Err(SendError::Down);
            };
            match write(running, parts, csum, segments, &mut chains[..]) {
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
                counters.bytes.add(total(parts) as u64);
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
                    let (before, other) = (counters.kicks.get(), counters.suppressed.get());
                    running.publish(counters);
                    if counters.kicks.get() != before || counters.suppressed.get() != other {
                        counters.bursts.add(1);
                    }
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

fn total(parts: &[&[u8]]) -> usize {
    parts.iter().map(|p| p.len()).sum()
}

/// Finds buffers for a packet, writes it, and writes its used entries.
fn write(
    running: &mut Running,
    parts: &[&[u8]],
    csum: Option<PartialCsum>,
    segments: &mut Segments,
    chains: &mut [(u16, u64)],
) -> Outcome {
    let need = running.header + total(parts);
    segments.clear();
    let count = match collect(running, need, segments, chains) {
        Ok(count) => count,
        Err(outcome) => return outcome,
    };
    let guest_csum = running.features & F_GUEST_CSUM != 0;
    let mut cursor = Cursor::new(segments.get(0, MAX_SEGMENTS - segments.room()));
    let header: [u8; MAX_HEADER] = net_header::emit(csum.filter(|_| guest_csum), count as u16);
    cursor.write(&header[..running.header]);
    for part in parts {
        cursor.write(part);
    }
    if let Some(csum) = csum.filter(|_| !guest_csum) {
        let at = usize::from(csum.start) + usize::from(csum.offset);
        if at + 2 <= need - running.header {
            let value = net_header::checksum(parts, csum.start.into());
            let mut patch = Cursor::new(cursor.segments);
            patch.skip(running.header + at);
            patch.write(&value.to_be_bytes());
        }
    }
    let mut left = need as u64;
    for &(head, len) in chains.iter().take(count) {
        let used = len.min(left);
        left -= used;
        running.ring.push_used(head, used as u32);
    }
    running.ring.advance(count as u16);
    Outcome::Sent
}

/// Takes apart as many chains as `need` bytes take, without advancing; how many.
fn collect(
    running: &mut Running,
    need: usize,
    segments: &mut Segments,
    chains: &mut [(u16, u64)],
) -> Result<usize, Outcome> {
    let mergeable = running.features & F_MRG_RXBUF != 0;
    let ring = &mut running.ring;
    let (mut got, mut count) = (0u64, 0usize);
    loop {
        if count >= usize::from(ring.available()) && count >= usize::from(ring.refresh()?) {
            return Err(Outcome::Refused(SendError::Full));
        }
        let room = segments.room();
        let chain: Chain = ring.chain(count as u16, Direction::Write, room, segments)?;
        let first_too_short = count == 0 && chain.len < running.header as u64;
        if first_too_short {
            return Err(Outcome::Broken(Broken::ShorterThanHeader {
                len: chain.len,
                header: running.header,
            }));
        }
        chains[count] = (chain.head, chain.len);
        count += 1;
        got += chain.len;
        // A chain in too many pieces may still have room enough in those that were listed.
        let listed: usize = if chain.oversize {
            segments
                .get(0, MAX_SEGMENTS - segments.room())
                .iter()
                .map(Segment::len)
                .sum()
        } else {
            usize::try_from(got).unwrap_or(usize::MAX)
        };
        if listed >= need {
            return Ok(count);
        }
        if chain.oversize && count == 1 {
            // Shorter packets would fit, but no driver makes such a chain.
            let limit = MAX_SEGMENTS as u32;
            return Err(Outcome::Broken(Broken::Chain { limit }));
        }
        if !mergeable || chain.oversize || count == chains.len() || segments.room() == 0 {
            return Err(Outcome::Refused(SendError::TooLong));
        }
    }
}

/// Writes consecutive bytes over segments.
struct Cursor<'a> {
    segments: &'a [Segment],
    index: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
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

    fn write(&mut self, mut bytes: &[u8]) {
        while let Some(segment) = self.segments.get(self.index)
            && !bytes.is_empty()
        {
            // SAFETY: `write` runs inside the gate of the ring whose memory the segments are in,
            // and that ring keeps the memory alive.
            let n = unsafe { segment.copy_in(self.offset, bytes) };
            bytes = &bytes[n..];
            self.offset += n;
            if self.offset == segment.len() {
                self.index += 1;
                self.offset = 0;
            }
        }
    }
}
