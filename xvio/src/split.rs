//! The split ring (virtio 1.2, 2.7): descriptor table, available ring, used ring.
//!
//! The three parts are translated once, with their lengths, when the ring starts ([`Area`]); each
//! change of memory table, size or address makes a new `SplitRing`. The available index is read
//! once for many chains, used entries are written ahead of the index and published together.
//! Everything read is copied first and judged then; what makes no sense is a [`Broken`].

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};

use crate::access::{Area, Segment};
use crate::memory::GuestMemory;
use crate::sigbus;

/// The largest split ring (virtio 1.2, 2.7).
pub(crate) const MAX_SIZE: u16 = 1 << 15;
/// Descriptors in one chain, at most, direct and indirect together. Drivers use a few dozen.
const MAX_CHAIN: u32 = 1024;
const DESCRIPTOR: usize = 16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Why a ring was stopped: it contains, or is, what no correct driver makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("Ring size {0} is not a power of two between 1 and {MAX_SIZE}")]
    Size(u32),
    #[error("The {part} at {address:#x} is not {align}-byte aligned")]
    Alignment {
        part: &'static str,
        address: u64,
        align: usize,
    },
    #[error("The {part} at {address:#x}, {len} bytes, is not inside one shared memory region")]
    NotMapped {
        part: &'static str,
        address: u64,
        len: usize,
    },
    #[error("The available index went from {from} to {to} in a ring of {size}")]
    AvailJump { from: u16, to: u16, size: u16 },
    #[error("The available ring names descriptor {head} in a ring of {size}")]
    Head { head: u16, size: u16 },
    #[error("A descriptor's next is {next} in a table of {size}")]
    Next { next: u16, size: u32 },
    #[error("A chain has more than {limit} descriptors, or is a loop")]
    Chain { limit: u32 },
    #[error("A descriptor has length 0")]
    ZeroLength,
    #[error("A buffer at guest address {address:#x}, {len} bytes, is not in shared memory")]
    Unmapped { address: u64, len: u32 },
    #[error("A chain to be read from contains a descriptor to be written to")]
    Writable,
    #[error("A chain to be written to contains a descriptor to be read from")]
    Readable,
    #[error("An indirect descriptor was used without negotiating VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    #[error("An indirect descriptor inside an indirect table, or followed by another")]
    IndirectNested,
    #[error("An indirect table of {0} bytes is not a multiple of 16, or too long")]
    IndirectLength(u32),
    #[error("A chain of {len} bytes is shorter than the {header}-byte virtio-net header")]
    ShorterThanHeader { len: u64, header: usize },
    #[error("The guest's memory is gone: its file was truncated, or has no pages left")]
    MemoryLost,
}

/// Which way a chain's buffers must point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads.
    Read,
    /// The device writes.
    Write,
}

/// Room for the segments of several chains; never grows.
#[derive(Debug)]
pub(crate) struct Segments {
    list: Box<[Segment]>,
    len: usize,
}

impl Segments {
    pub(crate) fn new(capacity: usize) -> Self {
        Segments {
            list: vec![Segment::EMPTY; capacity].into_boxed_slice(),
            len: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn room(&self) -> usize {
        self.list.len() - self.len
    }

    #[inline]
    pub(crate) fn get(&self, first: usize, count: usize) -> &[Segment] {
        self.list[..self.len]
            .get(first..first + count)
            .unwrap_or(&[])
    }

    #[inline]
    fn push(&mut self, segment: Segment) -> bool {
        match self.list.get_mut(self.len) {
            Some(place) => {
                *place = segment;
                self.len += 1;
                true
            }
            None => false,
        }
    }
}

/// One chain, taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// What goes into the used ring.
    pub(crate) head: u16,
    /// Its segments in the [`Segments`] given to [`SplitRing::chain`].
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Bytes of all its buffers that were read.
    pub(crate) len: u64,
    /// It has more segments than allowed; only the first ones are listed. To be written to: the
    /// rest was not read.
    pub(crate) oversize: bool,
    /// Descriptors read, for bounding the work of one poll.
    pub(crate) steps: u32,
}

/// Where the rings of a vring are and how they are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitConfig {
    pub(crate) size: u32,
    /// Addresses in the frontend's address space.
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// The next available entry to take, as the frontend says.
    pub(crate) base: u16,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
}

/// A running split ring.
#[derive(Debug)]
pub(crate) struct SplitRing {
    memory: Arc<GuestMemory>,
    desc: Area,
    avail: Area,
    used: Area,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// The next available entry to take.
    last_avail: u16,
    /// The available index as last read.
    avail_idx: u16,
    /// The next used entry to write.
    used_next: u16,
    /// The used index as the driver sees it.
    used_published: u16,
    /// The driver was never notified: do it the first time in any case.
    first: bool,
    /// The memory region of the last buffer.
    hint: usize,
    /// Losses of memory, of any guest, that were looked into.
    losses: u64,
}

impl SplitRing {
    /// Resolves a ring. Entries that were used already are told by the used index in memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, config: &SplitConfig) -> Result<Self, Broken> {
        let size = u16::try_from(config.size)
            .ok()
            .filter(|s| s.is_power_of_two() && *s <= MAX_SIZE)
            .ok_or(Broken::Size(config.size))?;
        let n = usize::from(size);
        let event = if config.event_idx { 2 } else { 0 };
        let area = |part, address: u64, len, align: usize| {
            let unaligned = Broken::Alignment {
                part,
                address,
                align,
            };
            if !address.is_multiple_of(align as u64) {
                return Err(unaligned);
            }
            match memory.area_at_user(address, len) {
                None => Err(Broken::NotMapped { part, address, len }),
                Some(area) if !area.is_aligned_to(align) => Err(unaligned),
                Some(area) => Ok(area),
            }
        };
        let desc = area("descriptor table", config.desc, DESCRIPTOR * n, 16)?;
        let avail = area("available ring", config.avail, 4 + 2 * n + event, 2)?;
        let used = area("used ring", config.used, 4 + 8 * n + event, 4)?;
        let used_idx = used.load(2, Ordering::Acquire);
        // What was taken is always given back before a ring stops, so the used index is where to go
        // on. A frontend that outlived a killed backend may know no better than to say 0.
        if config.base != used_idx {
            tracing::debug!(
                base = config.base,
                used_idx,
                "the frontend's ring index is not the ring's; going on from the ring's"
            );
        }
        Ok(SplitRing {
            memory,
            desc,
            avail,
            used,
            size,
            event_idx: config.event_idx,
            indirect: config.indirect,
            last_avail: used_idx,
            avail_idx: used_idx,
            used_next: used_idx,
            used_published: used_idx,
            first: true,
            hint: 0,
            losses: 0,
        })
    }

    /// Some of the guest's memory was taken away.
    pub(crate) fn memory_lost(&self) -> bool {
        self.memory.lost()
    }

    /// The next available entry to take: what GET_VRING_BASE answers.
    pub(crate) fn base(&self) -> u16 {
        self.last_avail
    }

    /// Reads the available index; how many chains can be taken.
    #[inline]
    pub(crate) fn refresh(&mut self) -> Result<u16, Broken> {
        let to = self.avail.load(2, Ordering::Acquire);
        if sigbus::losses() != self.losses {
            self.losses = sigbus::losses();
            if self.memory.lost() {
                return Err(Broken::MemoryLost);
            }
        }
        let pending = to.wrapping_sub(self.last_avail);
        if pending > self.size {
            return Err(Broken::AvailJump {
                from: self.last_avail,
                to,
                size: self.size,
            });
        }
        self.avail_idx = to;
        Ok(pending)
    }

    /// How many chains can be taken as of the last [`SplitRing::refresh`].
    #[inline]
    pub(crate) fn available(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.last_avail)
    }

    /// Takes `count` chains for good.
    #[inline]
    pub(crate) fn advance(&mut self, count: u16) {
        self.last_avail = self.last_avail.wrapping_add(count);
    }

    /// Takes apart the chain `ahead` entries after the next one, which must be available, without
    /// advancing. At most `max` of its segments are put into `out`.
    pub(crate) fn chain(
        &mut self,
        ahead: u16,
        direction: Direction,
        max: usize,
        out: &mut Segments,
    ) -> Result<Chain, Broken> {
        let slot = self.last_avail.wrapping_add(ahead) & (self.size - 1);
        let head = self
            .avail
            .load(4 + 2 * usize::from(slot), Ordering::Relaxed);
        let size = self.size;
        if head >= size {
            return Err(Broken::Head { head, size });
        }
        let mut chain = Chain {
            head,
            first: out.len,
            count: 0,
            len: 0,
            oversize: false,
            steps: 0,
        };
        let mut limit = MAX_CHAIN.min(u32::from(size));
        let mut table: Option<Segment> = None;
        let mut entries = u32::from(size);
        let mut index = head;
        loop {
            if chain.steps >= limit {
                return Err(Broken::Chain { limit });
            }
            chain.steps += 1;
            let at = DESCRIPTOR * usize::from(index);
            let raw = match &table {
                None => self.desc.read16(at),
                // SAFETY: the segment came from `self.memory`, which `self` keeps alive.
                Some(table) => unsafe { table.read16(at) }.ok_or(Broken::Next {
                    next: index,
                    size: entries,
                })?,
            };
            let (address, len) = (raw[0], raw[1] as u32);
            let (flags, next) = ((raw[1] >> 32) as u16, (raw[1] >> 48) as u16);
            if flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(Broken::IndirectNotNegotiated);
                }
                if table.is_some() || flags & NEXT != 0 {
                    return Err(Broken::IndirectNested);
                }
                let count = len / DESCRIPTOR as u32;
                if len == 0 || len % DESCRIPTOR as u32 != 0 || count > u32::from(MAX_SIZE) {
                    return Err(Broken::IndirectLength(len));
                }
                let whole = self.memory.segment(address, len, &mut self.hint);
                let whole = whole.filter(|s| s.len() == len as usize);
                table = Some(whole.ok_or(Broken::Unmapped { address, len })?);
                entries = count;
                limit = MAX_CHAIN.min(chain.steps + count);
                index = 0;
                continue;
            }
            match (direction, flags & WRITE != 0) {
                (Direction::Read, true) => return Err(Broken::Writable),
                (Direction::Write, false) => return Err(Broken::Readable),
                _ => {}
            }
            self.buffer(address, len, max, &mut chain, out)?;
            // Nothing is written beyond the segments listed, so the rest is not even read.
            let enough = direction == Direction::Write && chain.oversize;
            if flags & NEXT == 0 || enough {
                return Ok(chain);
            }
            if u32::from(next) >= entries {
                return Err(Broken::Next {
                    next,
                    size: entries,
                });
            }
            index = next;
        }
    }

    /// Adds one buffer to a chain, in several segments where it crosses regions.
    #[inline]
    fn buffer(
        &mut self,
        address: u64,
        len: u32,
        max: usize,
        chain: &mut Chain,
        out: &mut Segments,
    ) -> Result<(), Broken> {
        if len == 0 {
            return Err(Broken::ZeroLength);
        }
        chain.len += u64::from(len);
        let mut done = 0;
        while done < len {
            let segment = address
                .checked_add(u64::from(done))
                .and_then(|at| self.memory.segment(at, len - done, &mut self.hint))
                .ok_or(Broken::Unmapped { address, len })?;
            done += segment.len() as u32;
            if chain.count < max && out.push(segment) {
                chain.count += 1;
            } else {
                chain.oversize = true;
            }
        }
        Ok(())
    }

    /// Writes a used entry: the driver sees it with the next [`SplitRing::publish`].
    #[inline]
    pub(crate) fn push_used(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.used_next & (self.size - 1));
        self.used.write_pair(4 + 8 * slot, u32::from(head), len);
        self.used_next = self.used_next.wrapping_add(1);
    }

    /// Shows the driver all used entries written so far; true when it wants to be notified.
    pub(crate) fn publish(&mut self) -> Option<bool> {
        let (old, new) = (self.used_published, self.used_next);
        if old == new {
            return None;
        }
        self.used.store(2, new, Ordering::Release);
        self.used_published = new;
        // The index must be visible before the driver's wish is read: the driver does the same in
        // the other order, so that one of the two sees the other (virtio 1.2, 2.7.10).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self
                .avail
                .load(4 + 2 * usize::from(self.size), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.avail.load(0, Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        };
        Some(std::mem::take(&mut self.first) || wanted)
    }

    /// Asks the driver to kick at its next chain; true when there is one already (or the index is
    /// broken, which the next poll will report).
    pub(crate) fn arm(&mut self) -> bool {
        if self.event_idx {
            let at = 4 + 8 * usize::from(self.size);
            self.used.store(at, self.last_avail, Ordering::Relaxed);
        } else {
            self.used.store(0, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again; see `publish`.
        fence(Ordering::SeqCst);
        self.avail.load(2, Ordering::Acquire) != self.last_avail
    }

    /// Asks the driver not to kick. With EVENT_IDX there is nothing to do: the event index lies
    /// behind as soon as work is taken.
    pub(crate) fn disarm(&mut self) {
        if !self.event_idx {
            let flag = VRING_USED_F_NO_NOTIFY as u16;
            self.used.store(0, flag, Ordering::Relaxed);
        }
    }
}
