//! A vring of either layout, as the burst interface uses it: chains are fetched in bulk into a
//! [`Batch`], and given back in bulk as [`Used`] entries with one publish.
//!
//! ```text
//!   fetch ──▶ Batch: chains + segments ──▶ tx.rs / rx.rs ──▶ Used entries ──▶ give_back
//!              (private copies, judged)      (payload)                        (one publish)
//! ```
//!
//! The two layouts are `split.rs` and `packed.rs`; what they have in common is here: the description
//! of a chain, and the reasons to stop a ring; the walk through its descriptors is `walk.rs`. Chains are always
//! given back in the order in which they were fetched, whether VIRTIO_F_IN_ORDER was negotiated or
//! not; so where the used entries end is where a ring goes on after it was stopped.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::access::{Area, Segment};
use crate::memory::GuestMemory;
use crate::packed::PackedRing;
use crate::split::SplitRing;
pub(crate) use crate::walk::{Descriptor, Walk, Walker};

/// The largest ring (virtio 1.2, 2.7 and 2.8).
pub(crate) const MAX_SIZE: u16 = 1 << 15;
/// Descriptors in one chain, at most, direct and indirect together. Drivers use a few dozen.
pub(crate) const MAX_CHAIN: u32 = 1024;
/// Pieces of one chain, at most: its buffers, cut where they cross from one memory region into the
/// next. A guest of many small regions makes dozens of one descriptor.
pub(crate) const MAX_PIECES: u32 = 2 * MAX_CHAIN;
/// A fetch ends early after this many descriptors or pieces: long chains cost others nothing.
pub(crate) const MAX_STEPS: u32 = 2048;
/// Bytes of a descriptor, in both layouts and in indirect tables.
pub(crate) const DESCRIPTOR: usize = 16;
pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Why a ring was stopped: it contains, or is, what no correct driver makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("Ring size {0} is not a power of two between 1 and {MAX_SIZE}")]
    Size(u32),
    #[error("Ring size {0} is not between 1 and {MAX_SIZE}")]
    PackedSize(u32),
    #[error("The ring is to go on at descriptor {index} of {size}")]
    Base { index: u16, size: u16 },
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
    #[error("A chain goes on at descriptor {index}, which is not available")]
    NotAvailable { index: u16 },
    #[error("A chain has more than {limit} descriptors, or is a loop")]
    Chain { limit: u32 },
    #[error("A chain's buffers are in more than {MAX_PIECES} pieces")]
    Pieces,
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

/// Where the parts of a vring are and how they are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingConfig {
    pub(crate) size: u32,
    /// Addresses in the frontend's address space: descriptors, driver area, device area.
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// Where to go on, as the frontend says.
    pub(crate) base: u32,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    /// A batch of buffers may be given back with one used entry (virtio 1.2, 2.7.9 and 2.8.7).
    pub(crate) in_order: bool,
    pub(crate) packed: bool,
    pub(crate) direction: Direction,
}

impl RingConfig {
    /// Resolves a part of the ring.
    pub(crate) fn area(
        memory: &GuestMemory,
        part: &'static str,
        address: u64,
        len: usize,
        align: usize,
    ) -> Result<Area, Broken> {
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
    }
}

/// One chain, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// What goes into the used entry: the head (split) or the buffer ID (packed).
    pub(crate) id: u16,
    /// Where it begins in the ring: in the available ring (split) or the descriptor ring (packed).
    pub(crate) at: u16,
    /// Entries of the ring that it takes: 1 on split.
    pub(crate) slots: u16,
    /// Its segments in the [`Batch`].
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// It has more segments than are listed. To be written to: the rest was not read.
    pub(crate) oversize: bool,
    /// Bytes of all its buffers that were read.
    pub(crate) len: u64,
}

impl Chain {
    const NONE: Chain = Chain {
        id: 0,
        at: 0,
        slots: 0,
        first: 0,
        count: 0,
        oversize: false,
        len: 0,
    };
}

/// One buffer on its way back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u16,
    pub(crate) slots: u16,
    /// Bytes written to it.
    pub(crate) len: u32,
}

impl Used {
    pub(crate) const NONE: Used = Used {
        id: 0,
        slots: 0,
        len: 0,
    };
}

/// Fetched chains and their segments; never grows.
#[derive(Debug)]
pub(crate) struct Batch {
    chains: Box<[Chain]>,
    len: usize,
    segments: Box<[Segment]>,
    pub(crate) segments_len: usize,
    /// Segments one chain may have here.
    pub(crate) per_chain: usize,
}

impl Batch {
    pub(crate) fn new(chains: usize, segments: usize, per_chain: usize) -> Self {
        debug_assert!(per_chain <= segments && segments <= usize::from(u16::MAX));
        Batch {
            chains: vec![Chain::NONE; chains].into_boxed_slice(),
            len: 0,
            segments: vec![Segment::EMPTY; segments].into_boxed_slice(),
            segments_len: 0,
            per_chain,
        }
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.segments_len = 0;
    }

    /// The chains fetched.
    #[inline]
    pub(crate) fn chains(&self) -> &[Chain] {
        &self.chains[..self.len]
    }

    /// `count` segments from `first` on.
    #[inline]
    pub(crate) fn segments(&self, first: u16, count: u16) -> &[Segment] {
        let (first, end) = (usize::from(first), usize::from(first) + usize::from(count));
        self.segments[..self.segments_len]
            .get(first..end)
            .unwrap_or(&[])
    }

    /// The segments of a chain.
    #[inline]
    pub(crate) fn of(&self, chain: &Chain) -> &[Segment] {
        self.segments(chain.first, chain.count)
    }

    /// Chains that fit in.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.chains.len() - self.len
    }

    /// There is room for the segments of any chain.
    #[inline]
    pub(crate) fn takes_any(&self) -> bool {
        self.segments.len() - self.segments_len >= self.per_chain
    }

    /// Forgets the first `count` chains and moves the others to the front.
    pub(crate) fn forget_front(&mut self, count: usize) {
        let first = match self.chains().get(count) {
            Some(chain) => chain.first,
            None => return self.clear(),
        };
        self.chains.copy_within(count..self.len, 0);
        self.len -= count;
        self.segments
            .copy_within(usize::from(first)..self.segments_len, 0);
        self.segments_len -= usize::from(first);
        for chain in &mut self.chains[..self.len] {
            chain.first -= first;
        }
    }

    /// Begins a chain.
    #[inline]
    pub(crate) fn begin(&self, id: u16, at: u16) -> Chain {
        Chain {
            id,
            at,
            slots: 1,
            first: self.segments_len as u16,
            ..Chain::NONE
        }
    }

    #[inline]
    pub(crate) fn push_segment(&mut self, segment: Segment) -> bool {
        match self.segments.get_mut(self.segments_len) {
            Some(place) => {
                *place = segment;
                self.segments_len += 1;
                true
            }
            None => false,
        }
    }

    #[inline]
    pub(crate) fn push_chain(&mut self, chain: Chain) {
        if let Some(place) = self.chains.get_mut(self.len) {
            *place = chain;
            self.len += 1;
        }
    }
}

/// A running ring.
#[derive(Debug)]
pub(crate) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// Resolves a ring.
    pub(crate) fn new(memory: Arc<GuestMemory>, config: &RingConfig) -> Result<Self, Broken> {
        Ok(if config.packed {
            Ring::Packed(PackedRing::new(memory, config)?)
        } else {
            Ring::Split(SplitRing::new(memory, config)?)
        })
    }

    /// Some of the guest's memory was taken away.
    pub(crate) fn memory_lost(&self) -> bool {
        self.memory().lost()
    }

    /// The memory its buffers are in.
    pub(crate) fn memory(&self) -> &GuestMemory {
        match self {
            Ring::Split(ring) => ring.walker.memory.memory(),
            Ring::Packed(ring) => ring.walker.memory.memory(),
        }
    }

    /// Where the ring goes on once all chains fetched were given back or forgotten: what
    /// GET_VRING_BASE answers. Split: the available index. Packed: the place in the ring in bits 0
    /// to 14 and the wrap counter in bit 15, for the available and again, 16 bits up, for the used
    /// descriptors.
    pub(crate) fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => ring.base(),
            Ring::Packed(ring) => ring.base(),
        }
    }

    /// Fetches up to `want` chains more into `batch`. On `Err` the chains before the bad one are in
    /// it.
    #[inline]
    pub(crate) fn fetch(&mut self, want: usize, batch: &mut Batch) -> Result<(), Broken> {
        match self {
            Ring::Split(ring) => ring.fetch(want, batch),
            Ring::Packed(ring) => ring.fetch(want, batch),
        }
    }

    /// Gives buffers back, in the order in which they were fetched, and shows them to the driver;
    /// whether it wants to be notified, or `None` when there was nothing.
    /// `together`: nothing was written to them, so that one entry may stand for all.
    #[inline]
    pub(crate) fn give_back(&mut self, used: &[Used], together: bool) -> Option<bool> {
        if used.is_empty() {
            return None;
        }
        Some(match self {
            Ring::Split(ring) => ring.give_back(used, together),
            Ring::Packed(ring) => ring.give_back(used, together),
        })
    }

    /// Asks the driver to kick at its next chain; true when there is one already (or the ring is
    /// broken, which the next poll will report).
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => ring.arm(),
        }
    }

    /// Asks the driver not to kick.
    pub(crate) fn disarm(&mut self) {
        match self {
            Ring::Split(ring) => ring.disarm(),
            Ring::Packed(ring) => ring.disarm(),
        }
    }

    /// The guest addresses that giving these buffers back writes to, for dirty logging: two runs of
    /// entries, and the index.
    pub(crate) fn used_places(&self, used: &[Used]) -> [Option<(u64, u64)>; 3] {
        match self {
            Ring::Split(ring) => ring.used_places(used),
            Ring::Packed(ring) => ring.used_places(used),
        }
    }

    /// The guest address that [`Ring::arm`] and [`Ring::disarm`] write to.
    pub(crate) fn wish_place(&self) -> (u64, u64) {
        match self {
            Ring::Split(ring) => ring.wish_place(),
            Ring::Packed(ring) => ring.wish_place(),
        }
    }
}
