//! The walk through a chain's descriptors, direct and indirect, which both layouts have in common: each
//! descriptor is read once and judged, and its buffer is translated into a [`Batch`].

use std::sync::Arc;

use crate::memory::{GuestMemory, Translator};
use crate::ring::{
    Batch, Broken, Chain, DESCRIPTOR, Direction, INDIRECT, MAX_CHAIN, MAX_PIECES, MAX_SIZE, NEXT,
    RingConfig, WRITE,
};

/// A descriptor as it was read, once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    /// `next` (split) or `id` (packed), and `flags`; in the other order in the two layouts.
    pub(crate) flags: u16,
    pub(crate) other: u16,
}

impl Descriptor {
    /// From a split ring or a table: flags, then next.
    #[inline]
    pub(crate) fn split(raw: [u64; 2]) -> Self {
        Descriptor {
            address: raw[0],
            len: raw[1] as u32,
            flags: (raw[1] >> 32) as u16,
            other: (raw[1] >> 48) as u16,
        }
    }

    /// From a packed ring or a table: id, then flags.
    #[inline]
    pub(crate) fn packed(raw: [u64; 2]) -> Self {
        Descriptor {
            address: raw[0],
            len: raw[1] as u32,
            flags: (raw[1] >> 48) as u16,
            other: (raw[1] >> 32) as u16,
        }
    }
}

/// What both layouts need for taking chains apart.
#[derive(Debug)]
pub(crate) struct Walker {
    pub(crate) memory: Translator,
    pub(crate) direction: Direction,
    pub(crate) indirect: bool,
}

impl Walker {
    pub(crate) fn new(memory: Arc<GuestMemory>, config: &RingConfig) -> Self {
        Walker {
            memory: Translator::new(memory),
            direction: config.direction,
            indirect: config.indirect,
        }
    }

    /// The chain of a single descriptor in one region, as nearly all are. False when it is not
    /// such a one: nothing was added then.
    #[inline]
    pub(crate) fn simple(&mut self, d: Descriptor, id: u16, at: u16, batch: &mut Batch) -> bool {
        let want = match self.direction {
            Direction::Read => 0,
            Direction::Write => WRITE,
        };
        if d.flags & (NEXT | INDIRECT | WRITE) != want || d.len == 0 {
            return false;
        }
        let Some(segment) = self.memory.whole(d.address, d.len) else {
            return false;
        };
        if self.direction == Direction::Read {
            // The virtio-net header, which is looked at next.
            segment.prefetch();
        }
        let mut chain = batch.begin(id, at);
        if !batch.push_segment(segment) {
            return false;
        }
        chain.count = 1;
        chain.len = d.len.into();
        batch.push_chain(chain);
        true
    }

    /// Begins a chain that is not simple.
    pub(crate) fn begin(&self, id: u16, at: u16, limit: u32, batch: &Batch) -> Walk {
        Walk {
            chain: batch.begin(id, at),
            steps: 0,
            pieces: 0,
            limit: MAX_CHAIN.min(limit),
            first_listed: batch.segments_len,
        }
    }

    /// Adds a descriptor of the ring: a buffer, or a whole indirect table. True when nothing more
    /// is to be read of this chain.
    pub(crate) fn add(
        &mut self,
        walk: &mut Walk,
        d: Descriptor,
        packed: bool,
        batch: &mut Batch,
    ) -> Result<bool, Broken> {
        if d.flags & INDIRECT != 0 {
            if !self.indirect {
                return Err(Broken::IndirectNotNegotiated);
            }
            if d.flags & NEXT != 0 {
                return Err(Broken::IndirectNested);
            }
            walk.step()?;
            self.table(walk, d.address, d.len, packed, batch)?;
            return Ok(true);
        }
        walk.step()?;
        self.buffer(walk, d, batch)
    }

    /// An indirect table: chained by `next` (split), or all of it in order (packed).
    fn table(
        &mut self,
        walk: &mut Walk,
        address: u64,
        len: u32,
        packed: bool,
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        let entries = len / DESCRIPTOR as u32;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR as u32) || entries > u32::from(MAX_SIZE) {
            return Err(Broken::IndirectLength(len));
        }
        let whole = self.memory.whole(address, len);
        let table = whole.ok_or(Broken::Unmapped { address, len })?;
        walk.limit = MAX_CHAIN.min(walk.steps + entries);
        let mut index = 0;
        loop {
            walk.step()?;
            // SAFETY: the segment came from `self.memory`, which `self` keeps alive.
            let raw = unsafe { table.read16(DESCRIPTOR * index as usize) };
            let raw = raw.ok_or(Broken::IndirectLength(len))?;
            let mut d = if packed {
                Descriptor::packed(raw)
            } else {
                Descriptor::split(raw)
            };
            if d.flags & INDIRECT != 0 {
                return Err(Broken::IndirectNested);
            }
            if packed && self.direction == Direction::Read {
                // DPDK's driver (22.11) says WRITE of the header in its transmit tables, and means
                // nothing by it. It is only read.
                d.flags &= !WRITE;
            }
            if self.buffer(walk, d, batch)? {
                return Ok(());
            }
            if packed {
                index += 1;
                if index >= entries {
                    return Ok(());
                }
                continue;
            }
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            let next = d.other;
            if u32::from(next) >= entries {
                let size = entries;
                return Err(Broken::Next { next, size });
            }
            index = next.into();
        }
    }

    /// Adds one buffer, in several segments where it crosses regions. True when the rest of the
    /// chain need not be read: nothing is written beyond the segments listed.
    #[inline]
    fn buffer(
        &mut self,
        walk: &mut Walk,
        d: Descriptor,
        batch: &mut Batch,
    ) -> Result<bool, Broken> {
        match (self.direction, d.flags & WRITE != 0) {
            (Direction::Read, true) => return Err(Broken::Writable),
            (Direction::Write, false) => return Err(Broken::Readable),
            _ => {}
        }
        let (address, len) = (d.address, d.len);
        if len == 0 {
            return Err(Broken::ZeroLength);
        }
        walk.chain.len += u64::from(len);
        let mut done = 0;
        while done < len {
            walk.piece()?;
            let segment = address
                .checked_add(u64::from(done))
                .and_then(|at| self.memory.segment(at, len - done))
                .ok_or(Broken::Unmapped { address, len })?;
            done += segment.len() as u32;
            let listed = batch.segments_len - walk.first_listed;
            if listed < batch.per_chain && batch.push_segment(segment) {
                walk.chain.count += 1;
            } else {
                walk.chain.oversize = true;
            }
        }
        Ok(self.direction == Direction::Write && walk.chain.oversize)
    }

    /// Puts the finished chain into the batch.
    pub(crate) fn end(&self, walk: Walk, slots: u16, id: u16, batch: &mut Batch) {
        let Walk { mut chain, .. } = walk;
        chain.slots = slots;
        chain.id = id;
        batch.push_chain(chain);
    }

    /// Takes back what was listed of a chain that was not finished.
    pub(crate) fn abandon(&self, walk: &Walk, batch: &mut Batch) {
        batch.segments_len = walk.first_listed;
    }
}

/// A chain on its way into a batch.
#[derive(Debug)]
pub(crate) struct Walk {
    chain: Chain,
    /// Descriptors read.
    steps: u32,
    /// Pieces of their buffers.
    pieces: u32,
    limit: u32,
    first_listed: usize,
}

impl Walk {
    #[inline]
    fn step(&mut self) -> Result<(), Broken> {
        if self.steps >= self.limit {
            return Err(Broken::Chain { limit: self.limit });
        }
        self.steps += 1;
        Ok(())
    }

    #[inline]
    fn piece(&mut self) -> Result<(), Broken> {
        if self.pieces >= MAX_PIECES {
            return Err(Broken::Pieces);
        }
        self.pieces += 1;
        Ok(())
    }

    /// What the chain has cost, in descriptors or pieces, for the bound on a fetch.
    pub(crate) fn work(&self) -> u32 {
        self.steps.max(self.pieces)
    }
}
