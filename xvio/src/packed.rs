//! The packed ring (virtio 1.2, 2.8): one ring of descriptors that the driver makes available and
//! the device overwrites with used ones, and an event suppression structure for each side.
//!
//! A descriptor is available when its AVAIL bit is the driver's wrap counter and its USED bit is
//! not. The first used descriptor of a batch is written last, so that the driver sees all or
//! nothing. As in `split.rs`, what is read is copied first and judged then.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

use crate::access::Area;
use crate::clock;
use crate::memory::GuestMemory;
use crate::ring::{
    Batch, Broken, DESCRIPTOR, Descriptor, Direction, INDIRECT, MAX_CHAIN, MAX_SIZE, MAX_STEPS,
    NEXT, RingConfig, Used, WRITE, Walk, Walker,
};
use crate::sigbus;

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
const ENABLE: u16 = VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const DISABLE: u16 = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const AT_DESCRIPTOR: u16 = VRING_PACKED_EVENT_FLAG_DESC as u16;
/// The wrap counter in VRING_BASE and in an event's offset.
const WRAP: u16 = 1 << 15;
/// An event suppression structure: offset and wrap counter, then flags.
const EVENT: usize = 4;
const EVENT_FLAGS: usize = 2;
/// As in `split.rs`.
const BULK: usize = 32;
/// How long an empty transmit ring is left alone after its first descriptor became available, in
/// cycles of the time-stamp counter: less than a microsecond. A driver shows each packet of a burst
/// by itself, four to a cache line, and whoever reads the line meanwhile takes it away from it.
const PATIENCE: u64 = 1200;
/// That is for floods: only when it gave something this many cycles ago at most. A packet that comes
/// by itself is taken at once.
const FLOOD: u64 = if cfg!(target_arch = "x86_64") {
    8000
} else {
    0
};

/// A place in the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    #[inline]
    fn after(self, slots: u16, size: u16) -> Position {
        let index = u32::from(self.index) + u32::from(slots);
        match index.checked_sub(size.into()) {
            Some(index) => Position {
                index: index as u16,
                wrap: !self.wrap,
            },
            None => Position {
                index: index as u16,
                wrap: self.wrap,
            },
        }
    }

    /// As VRING_BASE and events have it.
    fn encode(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// A descriptor with these flags is available here.
    #[inline]
    fn is_available(self, flags: u16) -> bool {
        let wanted = if self.wrap { AVAIL } else { USED };
        flags & (AVAIL | USED) == wanted
    }

    /// Flags of a used descriptor here.
    #[inline]
    fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// A running packed ring.
#[derive(Debug)]
pub(crate) struct PackedRing {
    pub(crate) walker: Walker,
    desc: Area,
    driver: Area,
    device: Area,
    size: u16,
    event_idx: bool,
    in_order: bool,
    /// The next descriptor to fetch.
    next: Position,
    /// The next descriptor to give back.
    used: Position,
    /// The driver was never notified: do it the first time in any case.
    first: bool,
    /// Losses of memory, of any guest, that were looked into.
    losses: u64,
    /// The ring was found empty.
    empty: bool,
    /// When its first descriptor was seen to be available in a flood; 0: not yet.
    seen: u64,
    /// When it last gave something and was found empty.
    emptied: u64,
}

impl PackedRing {
    /// Resolves a ring. It goes on where `base` says; the used half of it says the same, since
    /// what was taken is always given back before a ring stops.
    pub(crate) fn new(memory: Arc<GuestMemory>, config: &RingConfig) -> Result<Self, Broken> {
        let size = u16::try_from(config.size)
            .ok()
            .filter(|s| (1..=MAX_SIZE).contains(s))
            .ok_or(Broken::PackedSize(config.size))?;
        let area = |part, address, len, align| RingConfig::area(&memory, part, address, len, align);
        let length = DESCRIPTOR * usize::from(size);
        let desc = area("descriptor ring", config.desc, length, 16)?;
        let driver = area("driver's event structure", config.avail, EVENT, 4)?;
        let device = area("device's event structure", config.used, EVENT, 4)?;
        let base = config.base as u16;
        let next = Position {
            index: base & !WRAP,
            wrap: base & WRAP != 0,
        };
        if next.index >= size {
            let index = next.index;
            return Err(Broken::Base { index, size });
        }
        Ok(PackedRing {
            walker: Walker::new(memory, config),
            desc,
            driver,
            device,
            size,
            event_idx: config.event_idx,
            in_order: config.in_order,
            next,
            used: next,
            first: true,
            losses: 0,
            empty: true,
            seen: 0,
            emptied: 0,
        })
    }

    /// Where to go on after a stop; both halves say the same.
    pub(crate) fn base(&self) -> u32 {
        let half = u32::from(self.used.encode());
        half << 16 | half
    }

    /// Reads the descriptor at `index`: the flags first, then the rest.
    #[inline]
    fn read(&self, index: u16) -> [u64; 2] {
        self.desc.read16_back(DESCRIPTOR * usize::from(index))
    }

    /// Descriptors that are with the device and not yet given back.
    fn held(&self) -> u16 {
        let (next, used) = (self.next, self.used);
        if next.wrap == used.wrap {
            next.index - used.index
        } else {
            self.size - used.index + next.index
        }
    }

    /// See [`crate::ring::Ring::fetch`].
    pub(crate) fn fetch(&mut self, want: usize, batch: &mut Batch) -> Result<(), Broken> {
        if sigbus::losses() != self.losses {
            self.losses = sigbus::losses();
            if self.walker.memory.memory().lost() {
                return Err(Broken::MemoryLost);
            }
        }
        if self.empty && self.walker.direction == Direction::Read && self.too_early() {
            return Ok(());
        }
        let mut left = want.min(batch.room());
        let mut steps = 0;
        self.empty = false;
        while left > 0 {
            // To the end of the ring at most: then the wrap counter changes.
            let straight = usize::from(self.size - self.next.index);
            let count = left.min(BULK).min(straight);
            let mut raws = [[0u64; 2]; BULK];
            let mut ready = 0;
            for raw in &mut raws[..count] {
                *raw = self.read(self.next.index + ready);
                if !self.next.is_available(Descriptor::packed(*raw).flags) {
                    break;
                }
                ready += 1;
            }
            if ready == 0 {
                self.empty = true;
                return Ok(());
            }
            // They are overwritten when they go back; in order, all but the first of a burst are not.
            let lines = match self.in_order && self.walker.direction == Direction::Read {
                true => 1,
                false => ready,
            };
            for line in (0..lines).step_by(4) {
                let at = usize::from(self.next.index + line);
                self.desc.prefetch_write(DESCRIPTOR * at);
            }
            let mut index = 0;
            while index < usize::from(ready) {
                if !batch.takes_any() || steps >= MAX_STEPS {
                    return Ok(());
                }
                // A driver never has more descriptors with the device than there are.
                if self.held() >= self.size {
                    return Ok(());
                }
                let (d, at) = (Descriptor::packed(raws[index]), self.next.index);
                steps += 1;
                left -= 1;
                if self.walker.simple(d, d.other, at, batch) {
                    self.next = self.next.after(1, self.size);
                    index += 1;
                    continue;
                }
                let (slots, work) = self.chain(d, batch)?;
                steps += work;
                self.next = self.next.after(slots, self.size);
                if left == 0 {
                    return Ok(());
                }
                index += usize::from(slots);
            }
            if usize::from(ready) < count {
                self.empty = true;
                self.emptied = clock::cycles();
                return Ok(());
            }
        }
        Ok(())
    }

    /// The ring was empty and has nothing yet, or not for long enough to be worth a look.
    #[inline]
    fn too_early(&mut self) -> bool {
        let now = clock::cycles();
        if self.seen != 0 {
            // Differences only: the counter begins anew when the host was suspended or moved, and
            // a ring waits for less than a microsecond all the same.
            let early = now.wrapping_sub(self.seen) < PATIENCE;
            if !early {
                self.seen = 0;
            }
            return early;
        }
        let flags = Descriptor::packed(self.read(self.next.index)).flags;
        if !self.next.is_available(flags) {
            return true;
        }
        let flood = now.wrapping_sub(self.emptied) < FLOOD;
        if flood {
            self.seen = now.max(1);
        }
        flood
    }

    /// Takes apart a chain that is not a single descriptor; the descriptors of the ring that it
    /// takes, and what it cost ([`Walk::work`]).
    fn chain(&mut self, d: Descriptor, batch: &mut Batch) -> Result<(u16, u32), Broken> {
        let limit = u32::from(self.size - self.held());
        let mut walk = self.walker.begin(d.other, self.next.index, limit, batch);
        match self.follow(&mut walk, d, batch) {
            Ok((slots, id)) => {
                // Of a chain to be written to, the rest is not looked into, but its descriptors are read.
                let work = walk.work().max(slots.into());
                self.walker.end(walk, slots, id, batch);
                Ok((slots, work))
            }
            Err(why) => {
                self.walker.abandon(&walk, batch);
                Err(why)
            }
        }
    }

    /// Follows a chain through the ring: its slots and its buffer ID, which is in the last one.
    fn follow(
        &mut self,
        walk: &mut Walk,
        mut d: Descriptor,
        batch: &mut Batch,
    ) -> Result<(u16, u16), Broken> {
        let (mut at, mut slots, mut enough) = (self.next, 1, false);
        let most = (self.size - self.held()).min(MAX_CHAIN as u16);
        loop {
            if !enough {
                enough = self.walker.add(walk, d, true, batch)?;
            }
            if d.flags & (NEXT | INDIRECT) != NEXT {
                return Ok((slots, d.other));
            }
            if slots >= most {
                let limit = most.into();
                return Err(Broken::Chain { limit });
            }
            at = at.after(1, self.size);
            d = Descriptor::packed(self.read(at.index));
            slots += 1;
            if !at.is_available(d.flags) {
                return Err(Broken::NotAvailable { index: at.index });
            }
        }
    }

    /// See [`crate::ring::Ring::give_back`].
    #[inline]
    pub(crate) fn give_back(&mut self, used: &[Used], together: bool) -> bool {
        let (old, kind) = (self.used, self.kind());
        let word = |at: Position, entry: &Used| {
            let (len, id) = (u64::from(entry.len), u64::from(entry.id));
            len | id << 32 | u64::from(at.used() | kind) << 48
        };
        let place = |at: Position| DESCRIPTOR * usize::from(at.index) + 8;
        let Some((first, rest)) = used.split_first() else {
            return false;
        };
        let mut at = old.after(first.slots, self.size);
        let mut shown = first;
        if together && self.in_order {
            // One used descriptor, at the batch's first place, names its last buffer.
            for entry in rest {
                at = at.after(entry.slots, self.size);
                shown = entry;
            }
        } else {
            for entry in rest {
                self.desc
                    .store64(place(at), word(at, entry), Ordering::Relaxed);
                at = at.after(entry.slots, self.size);
            }
        }
        self.desc
            .store64(place(old), word(old, shown), Ordering::Release);
        self.used = at;
        // The descriptors must be visible before the driver's wish is read (virtio 1.2, 2.8.21.3).
        fence(Ordering::SeqCst);
        let wanted = self.wanted(old);
        std::mem::take(&mut self.first) || wanted
    }

    /// The WRITE flag of a used descriptor says that its length means something.
    #[inline]
    fn kind(&self) -> u16 {
        match self.walker.direction {
            Direction::Read => 0,
            Direction::Write => WRITE,
        }
    }

    /// The driver wants to hear of what was given back since `old`.
    #[inline]
    fn wanted(&self, old: Position) -> bool {
        match self.driver.load(EVENT_FLAGS, Ordering::Relaxed) {
            DISABLE => false,
            AT_DESCRIPTOR if self.event_idx => {
                // The offset was written before the flags.
                fence(Ordering::Acquire);
                let at = self.driver.load(0, Ordering::Relaxed);
                let mut event = i32::from(at & !WRAP);
                let (new, old) = (self.used, i32::from(old.index));
                // All three on one line that ends at `new`.
                if (at & WRAP != 0) != new.wrap {
                    event -= i32::from(self.size);
                }
                let new = i32::from(new.index);
                let begin = if new <= old {
                    old - i32::from(self.size)
                } else {
                    old
                };
                (begin..new).contains(&event)
            }
            _ => true,
        }
    }

    /// See [`crate::ring::Ring::arm`].
    pub(crate) fn arm(&mut self) -> bool {
        if self.event_idx {
            self.device.store(0, self.next.encode(), Ordering::Relaxed);
            self.device
                .store(EVENT_FLAGS, AT_DESCRIPTOR, Ordering::Release);
        } else {
            self.device.store(EVENT_FLAGS, ENABLE, Ordering::Relaxed);
        }
        // The wish must be visible before the descriptor is read again; see `give_back`.
        fence(Ordering::SeqCst);
        let flags = Descriptor::packed(self.read(self.next.index)).flags;
        self.next.is_available(flags)
    }

    /// See [`crate::ring::Ring::disarm`].
    pub(crate) fn disarm(&mut self) {
        self.device.store(EVENT_FLAGS, DISABLE, Ordering::Relaxed);
    }

    /// See [`crate::ring::Ring::used_places`].
    pub(crate) fn used_places(&self, used: &[Used]) -> [Option<(u64, u64)>; 3] {
        let slots: usize = used.iter().map(|entry| usize::from(entry.slots)).sum();
        let first = usize::from(self.used.index);
        let until_end = slots.min(usize::from(self.size) - first);
        let wrapped = (slots - until_end) * DESCRIPTOR;
        let place = |slot: usize| self.desc.guest(DESCRIPTOR * slot);
        [
            Some((place(first), (DESCRIPTOR * until_end) as u64)),
            (wrapped > 0).then(|| (place(0), wrapped as u64)),
            None,
        ]
    }

    /// See [`crate::ring::Ring::wish_place`].
    pub(crate) fn wish_place(&self) -> (u64, u64) {
        (self.device.guest(0), EVENT as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::RegionInfo;

    const SIZE: u16 = 4096;
    /// Where the event structures are, and a buffer.
    const EVENTS: u64 = 0x1_0000;
    const BUFFER: u64 = 0x1_1000;

    /// A ring in which the first `count` descriptors are available: one chain of buffers.
    fn ring(direction: Direction, count: usize) -> PackedRing {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"xvio-test", flags).unwrap());
        file.set_len(0x1_2000).unwrap();
        let write = match direction {
            Direction::Read => 0,
            Direction::Write => WRITE,
        };
        for at in 0..count {
            let next = if at + 1 < count { NEXT } else { 0 };
            let rest = 100 | u64::from(AVAIL | write | next) << 48;
            let place = (DESCRIPTOR * at) as u64;
            file.write_all_at(&BUFFER.to_le_bytes(), place).unwrap();
            file.write_all_at(&rest.to_le_bytes(), place + 8).unwrap();
        }
        let whole = RegionInfo {
            guest: 0,
            size: 0x1_2000,
            user: 0,
            offset: 0,
        };
        let memory = GuestMemory::default().with(whole, file).unwrap();
        let config = RingConfig {
            size: SIZE.into(),
            desc: 0,
            avail: EVENTS,
            used: EVENTS + 8,
            base: u32::from(WRAP),
            event_idx: false,
            indirect: false,
            in_order: false,
            packed: true,
            direction,
        };
        PackedRing::new(Arc::new(memory), &config).unwrap()
    }

    #[test]
    fn a_chain_is_as_long_in_a_large_ring_as_anywhere() {
        let most = MAX_CHAIN as usize;
        for direction in [Direction::Read, Direction::Write] {
            let mut batch = Batch::new(32, 512, 128);
            assert_eq!(ring(direction, most).fetch(32, &mut batch), Ok(()));
            assert_eq!(batch.chains().len(), 1);
            assert_eq!(usize::from(batch.chains()[0].slots), most);
            for count in [most + 1, 3000] {
                let mut batch = Batch::new(32, 512, 128);
                let fetched = ring(direction, count).fetch(32, &mut batch);
                assert_eq!(fetched, Err(Broken::Chain { limit: MAX_CHAIN }));
                assert_eq!(batch.chains().len(), 0);
            }
        }
    }

    #[test]
    fn a_counter_that_begins_anew_holds_no_ring_up() {
        let mut ring = ring(Direction::Read, 1);
        let mut batch = Batch::new(32, 512, 64);
        // As it is left in a flood, by a counter that was far ahead of today's.
        let ahead = clock::cycles() + (1 << 60);
        (ring.seen, ring.emptied) = (ahead, ahead);
        assert_eq!(ring.fetch(32, &mut batch), Ok(()));
        assert_eq!(batch.chains().len(), 1);
    }
}
