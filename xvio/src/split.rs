//! The split ring (virtio 1.2, 2.7): descriptor table, available ring, used ring.
//!
//! The three parts are translated once, with their lengths, when the ring starts ([`Area`]); each
//! change of memory table, size or address makes a new `SplitRing`. The available index is read
//! once for many chains, and used entries are published together. Everything read is copied first
//! and judged then; what makes no sense is a [`Broken`].

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::access::Area;
use crate::memory::GuestMemory;
use crate::ring::{
    Batch, Broken, DESCRIPTOR, Descriptor, INDIRECT, MAX_SIZE, MAX_STEPS, NEXT, RingConfig, Used,
    Walk, Walker,
};
use crate::sigbus;

/// Descriptors that are read before the first of them is looked at, so that the waits for their
/// cache lines overlap.
const BULK: usize = 32;

/// A running split ring.
#[derive(Debug)]
pub(crate) struct SplitRing {
    pub(crate) walker: Walker,
    desc: Area,
    avail: Area,
    used: Area,
    size: u16,
    event_idx: bool,
    in_order: bool,
    /// The next available entry to fetch.
    next: u16,
    /// The available index as last read.
    avail_idx: u16,
    /// The descriptor that will probably be named next.
    likely: u16,
    /// The used index as the driver sees it.
    used_idx: u16,
    /// The driver was never notified: do it the first time in any case.
    first: bool,
    /// Losses of memory, of any guest, that were looked into.
    losses: u64,
}

impl SplitRing {
    /// Resolves a ring. Entries that were used already are told by the used index in memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, config: &RingConfig) -> Result<Self, Broken> {
        let size = u16::try_from(config.size)
            .ok()
            .filter(|s| s.is_power_of_two() && *s <= MAX_SIZE)
            .ok_or(Broken::Size(config.size))?;
        let n = usize::from(size);
        let event = if config.event_idx { 2 } else { 0 };
        let area = |part, address, len, align| RingConfig::area(&memory, part, address, len, align);
        let desc = area("descriptor table", config.desc, DESCRIPTOR * n, 16)?;
        let avail = area("available ring", config.avail, 4 + 2 * n + event, 2)?;
        let used = area("used ring", config.used, 4 + 8 * n + event, 4)?;
        let used_idx = used.load(2, Ordering::Acquire);
        // What was taken is always given back before a ring stops, so the used index is where to go
        // on. A frontend that outlived a killed backend may know no better than to say 0.
        if config.base != u32::from(used_idx) {
            tracing::debug!(
                base = config.base,
                used_idx,
                "the frontend's ring index is not the ring's; going on from the ring's"
            );
        }
        Ok(SplitRing {
            walker: Walker::new(memory, config),
            desc,
            avail,
            used,
            size,
            event_idx: config.event_idx,
            in_order: config.in_order,
            next: used_idx,
            avail_idx: used_idx,
            likely: 0,
            used_idx,
            first: true,
            losses: 0,
        })
    }

    /// The next entry to take after a stop.
    pub(crate) fn base(&self) -> u32 {
        self.used_idx.into()
    }

    /// The available ring's entry number `index`.
    #[inline]
    fn head(&self, index: u16) -> u16 {
        let slot = usize::from(index & (self.size - 1));
        self.avail.load(4 + 2 * slot, Ordering::Relaxed)
    }

    /// Reads the available index, unless enough is known to be there; how many chains there are.
    #[inline]
    fn pending(&mut self, want: usize) -> Result<usize, Broken> {
        let known = self.avail_idx.wrapping_sub(self.next);
        if usize::from(known) < want {
            let to = self.avail.load(2, Ordering::Acquire);
            // Of the last one given back, not the last one fetched: the driver may not have more
            // buffers with the device than the ring has entries.
            if to.wrapping_sub(self.used_idx) > self.size || to.wrapping_sub(self.next) > self.size
            {
                let (from, size) = (self.next, self.size);
                // What was there before is still good.
                return match known {
                    0 => Err(Broken::AvailJump { from, to, size }),
                    known => Ok(known.into()),
                };
            }
            self.avail_idx = to;
        }
        if sigbus::losses() != self.losses {
            self.losses = sigbus::losses();
            if self.walker.memory.memory().lost() {
                return Err(Broken::MemoryLost);
            }
        }
        Ok(usize::from(self.avail_idx.wrapping_sub(self.next)))
    }

    /// See [`crate::ring::Ring::fetch`].
    pub(crate) fn fetch(&mut self, want: usize, batch: &mut Batch) -> Result<(), Broken> {
        let want = want.min(batch.room());
        let mut left = self.pending(want)?.min(want);
        let mut steps = 0;
        while left > 0 {
            let count = left.min(BULK);
            // Drivers take descriptors one after the other: while the available ring's lines are on
            // their way, so are those of the descriptors that it is likely to name.
            for line in (0..count).step_by(4) {
                let likely = self.likely.wrapping_add(line as u16) & (self.size - 1);
                self.desc.prefetch(DESCRIPTOR * usize::from(likely));
            }
            let (mut heads, mut raws) = ([0u16; BULK], [[0u64; 2]; BULK]);
            for (i, (head, raw)) in heads[..count].iter_mut().zip(&mut raws).enumerate() {
                *head = self.head(self.next.wrapping_add(i as u16));
                *raw = self.desc.read16(DESCRIPTOR * usize::from(*head));
            }
            self.likely = heads[count - 1].wrapping_add(1);
            // Where the used entries of these will be.
            for entry in (0..count).step_by(8) {
                let slot = usize::from(self.next.wrapping_add(entry as u16) & (self.size - 1));
                self.used.prefetch_write(4 + 8 * slot);
            }
            for (&head, &raw) in heads[..count].iter().zip(&raws) {
                if !batch.takes_any() || steps >= MAX_STEPS {
                    return Ok(());
                }
                // A head beyond the table was read as zeros, whose length is 0.
                let (d, at) = (Descriptor::split(raw), self.next);
                steps += 1;
                if !self.walker.simple(d, head, at, batch) {
                    steps += self.chain(head, d, batch)?;
                }
                self.next = self.next.wrapping_add(1);
            }
            left -= count;
        }
        Ok(())
    }

    /// Takes apart a chain that is not a single descriptor; what that cost ([`Walk::work`]).
    fn chain(&mut self, head: u16, d: Descriptor, batch: &mut Batch) -> Result<u32, Broken> {
        let size = self.size;
        if head >= size {
            return Err(Broken::Head { head, size });
        }
        let mut walk = self.walker.begin(head, self.next, size.into(), batch);
        match self.follow(&mut walk, d, batch) {
            Ok(()) => {
                let work = walk.work();
                self.walker.end(walk, 1, head, batch);
                Ok(work)
            }
            Err(why) => {
                self.walker.abandon(&walk, batch);
                Err(why)
            }
        }
    }

    fn follow(
        &mut self,
        walk: &mut Walk,
        mut d: Descriptor,
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        loop {
            if self.walker.add(walk, d, false, batch)? {
                return Ok(());
            }
            if d.flags & (NEXT | INDIRECT) != NEXT {
                return Ok(());
            }
            let next = d.other;
            if next >= self.size {
                let size = self.size.into();
                return Err(Broken::Next { next, size });
            }
            d = Descriptor::split(self.desc.read16(DESCRIPTOR * usize::from(next)));
        }
    }

    /// See [`crate::ring::Ring::give_back`].
    #[inline]
    pub(crate) fn give_back(&mut self, used: &[Used], together: bool) -> bool {
        let old = self.used_idx;
        let new = old.wrapping_add(used.len() as u16);
        let slot = |index: u16| 4 + 8 * usize::from(index & (self.size - 1));
        match used {
            [.., last] if together && self.in_order => {
                // One entry, at the batch's first place, names its last buffer.
                self.used.write_pair(slot(old), last.id.into(), last.len);
            }
            _ => {
                let mut index = old;
                for entry in used {
                    self.used
                        .write_pair(slot(index), entry.id.into(), entry.len);
                    index = index.wrapping_add(1);
                }
            }
        }
        self.used.store(2, new, Ordering::Release);
        self.used_idx = new;
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
        std::mem::take(&mut self.first) || wanted
    }

    /// See [`crate::ring::Ring::arm`].
    pub(crate) fn arm(&mut self) -> bool {
        if self.event_idx {
            let at = 4 + 8 * usize::from(self.size);
            self.used.store(at, self.next, Ordering::Relaxed);
        } else {
            self.used.store(0, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again; see `give_back`.
        fence(Ordering::SeqCst);
        self.avail.load(2, Ordering::Acquire) != self.next
    }

    /// See [`crate::ring::Ring::disarm`]. With EVENT_IDX there is nothing to do: the event index
    /// lies behind as soon as work is taken.
    pub(crate) fn disarm(&mut self) {
        if !self.event_idx {
            let flag = VRING_USED_F_NO_NOTIFY as u16;
            self.used.store(0, flag, Ordering::Relaxed);
        }
    }

    /// See [`crate::ring::Ring::used_places`].
    pub(crate) fn used_places(&self, used: &[Used]) -> [Option<(u64, u64)>; 3] {
        let first = usize::from(self.used_idx & (self.size - 1));
        let until_end = used.len().min(usize::from(self.size) - first);
        let wrapped = used.len() - until_end;
        [
            Some((self.used.guest(4 + 8 * first), 8 * until_end as u64)),
            (wrapped > 0).then(|| (self.used.guest(4), 8 * wrapped as u64)),
            Some((self.used.guest(2), 2)),
        ]
    }

    /// See [`crate::ring::Ring::wish_place`].
    pub(crate) fn wish_place(&self) -> (u64, u64) {
        match self.event_idx {
            true => (self.used.guest(4 + 8 * usize::from(self.size)), 2),
            false => (self.used.guest(0), 2),
        }
    }
}
