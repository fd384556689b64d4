//! The in-flight table: which chains were taken and not yet given back, written where it outlives
//! us (vhost-user specification, "Inflight I/O tracking").
//!
//! The frontend keeps the table's memory. When this process is killed, the next one gets the table
//! back (SET_INFLIGHT_FD), and knows what had been taken: a split ring tells most of that by its
//! used index, a packed ring by nothing but this table.
//!
//! ```text
//!   table = region of vring 0 │ region of vring 1 │ …          each aligned to 64 bytes
//!   region = header (version, positions) │ one entry for each descriptor
//!
//!   taken ──▶ entry: in flight, counter   used ──▶ entry linked into the batch
//!   published in the ring ──▶ entries of the batch: not in flight; position in the header
//! ```
//!
//! Killed between the ring's publication and the last step, the header still has the old position:
//! [`Record::recover_split`] and [`Record::recover_packed`] finish that step. The table is in the
//! frontend's hands, so nothing read from it is used before it was compared with the ring's size.
//!
//! Chains are given back in the order in which they were taken, here and in the rings, so those in
//! flight are the ones at the ring's used position, still where the driver put them.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::access::Area;
use crate::hooks::Inflight;
use crate::memory::{GuestMemory, MemoryError, RegionInfo};
use crate::ring::{Chain, DESCRIPTOR, Descriptor, Used};

/// Bytes before the entries, and of an entry: split, packed.
const SPLIT: (usize, usize) = (16, 16);
const PACKED: (usize, usize) = (32, 32);
/// The version of the layout; 0 is a region without a history.
const VERSION: u16 = 1;
/// Regions begin at cache lines, so that two workers do not write to the same one.
const ALIGN: usize = 64;

// Fields of both headers.
const H_VERSION: usize = 8;
const H_SIZE: usize = 10;
/// The wrap counter in VRING_BASE.
const WRAP: u16 = 1 << 15;
// Of the split header.
const H_LAST_BATCH: usize = 12;
const H_USED: usize = 14;
// Of the packed header: positions now, and as of the last publication.
const H_FREE: usize = 12;
const H_OLD_FREE: usize = 14;
const H_AT: usize = 16;
const H_OLD_AT: usize = 18;
/// Two bytes: the wrap counter now, and as of the last publication.
const H_WRAPS: usize = 20;
// Of a split entry: in flight, the one before in the batch.
const S_NEXT: usize = 6;
// Of a packed entry.
const P_NEXT: usize = 2;
const P_LAST: usize = 4;
const P_NUM: usize = 6;
const P_COUNTER: usize = 8;

/// Bytes of a table, at most: more than one has for all vrings there can be. Without this bound each
/// frontend could have us map as much again as its guest's memory may have.
const MAX_TABLE: u64 = 1 << 28;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("An in-flight table is for {got} vrings; the port has {max}")]
    Queues { got: u16, max: usize },
    #[error("An in-flight table is for vrings of {got} entries; 1 to {max} are allowed")]
    Size { got: u16, max: u16 },
    #[error("An in-flight table has {got} bytes; {wanted} are needed")]
    TooShort { got: u64, wanted: u64 },
    #[error("An in-flight table has {got:#x} bytes; no table has more than {MAX_TABLE:#x}")]
    TooLong { got: u64 },
    #[error("An in-flight table begins at byte {0} of its file, which is not a multiple of 8")]
    Alignment(u64),
    #[error("An in-flight table's memory was refused")]
    Memory(#[from] MemoryError),
    #[error("An in-flight table's memory cannot be made")]
    Make(#[source] std::io::Error),
}

/// What GET_INFLIGHT_FD and SET_INFLIGHT_FD say of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
}

impl Description {
    /// Both numbers are in range.
    fn check(&self, max_queues: usize, max_size: u16) -> Result<(), InflightError> {
        let (queues, size) = (self.queues, self.queue_size);
        if queues == 0 || usize::from(queues) > max_queues {
            return Err(InflightError::Queues {
                got: queues,
                max: max_queues,
            });
        }
        if size == 0 || size > max_size {
            return Err(InflightError::Size {
                got: size,
                max: max_size,
            });
        }
        Ok(())
    }
}

/// Bytes of one vring's region.
fn region_len(queue_size: u16, packed: bool) -> usize {
    let (header, entry) = if packed { PACKED } else { SPLIT };
    (header + entry * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// Makes the memory of a table for a frontend to keep: empty, and nothing of it stays here.
pub(crate) fn make(
    asked: Description,
    packed: bool,
    max_queues: usize,
    max_size: u16,
) -> Result<(Description, File), InflightError> {
    asked.check(max_queues, max_size)?;
    let size = region_len(asked.queue_size, packed) as u64 * u64::from(asked.queues);
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let fd = nix::sys::memfd::memfd_create(c"xvio-inflight", flags)
        .map_err(|e| InflightError::Make(e.into()))?;
    let file = File::from(fd);
    file.set_len(size).map_err(InflightError::Make)?;
    let made = Description {
        size,
        offset: 0,
        ..asked
    };
    Ok((made, file))
}

/// A table that a frontend has given us.
#[derive(Debug)]
pub(crate) struct Table {
    memory: GuestMemory,
    queues: u16,
    queue_size: u16,
    /// Bytes of it.
    size: u64,
}

impl Table {
    /// Maps a table after its numbers were judged.
    pub(crate) fn map(
        file: File,
        said: Description,
        packed: bool,
        max_queues: usize,
        max_size: u16,
    ) -> Result<Table, InflightError> {
        said.check(max_queues, max_size)?;
        let wanted = region_len(said.queue_size, packed) as u64 * u64::from(said.queues);
        if said.size < wanted {
            return Err(InflightError::TooShort {
                got: said.size,
                wanted,
            });
        }
        if said.size > MAX_TABLE {
            return Err(InflightError::TooLong { got: said.size });
        }
        if !said.offset.is_multiple_of(8) {
            return Err(InflightError::Alignment(said.offset));
        }
        let whole = RegionInfo {
            guest: 0,
            size: said.size,
            user: 0,
            offset: said.offset,
        };
        Ok(Table {
            memory: GuestMemory::default().with(whole, file)?,
            queues: said.queues,
            queue_size: said.queue_size,
            size: said.size,
        })
    }

    /// The record of one vring; `Err` says why the ring cannot run with this table.
    pub(crate) fn record(
        self: &Arc<Self>,
        index: usize,
        size: u32,
        packed: bool,
    ) -> Result<Record, String> {
        let (queues, most) = (self.queues, self.queue_size);
        let len = region_len(most, packed);
        // Packed entries are larger: the features may have changed after the table was made.
        if index >= usize::from(queues) || ((index + 1) * len) as u64 > self.size {
            return Err(format!(
                "The frontend's in-flight table has no room for this vring: it is for {queues}"
            ));
        }
        let size = u16::try_from(size).ok().filter(|size| *size <= most);
        let Some(size) = size else {
            return Err(format!(
                "The vring has more entries than the {most} of the frontend's in-flight table"
            ));
        };
        let area = self.memory.area_at_user((index * len) as u64, len);
        let area = area.filter(|a| a.is_aligned_to(8));
        let area = area.ok_or_else(|| "The in-flight table is not aligned".to_owned())?;
        Ok(Record {
            area,
            size,
            entry: if packed { PACKED } else { SPLIT },
            counter: 1,
            batch: 0,
            taken: VecDeque::with_capacity(if packed { usize::from(size) } else { 0 }),
            freed: Vec::with_capacity(if packed { usize::from(size) } else { 0 }),
            ring: None,
            join: 0,
        })
    }
}

/// A descriptor of a packed ring, as it is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

/// One vring's region of the table, written by the vring's worker.
#[derive(Debug)]
pub(crate) struct Record {
    area: Area,
    /// Entries of the ring.
    size: u16,
    /// Bytes before the entries, and of one.
    entry: (usize, usize),
    /// Orders what is in flight.
    counter: u64,
    /// Split: chains given back and not yet published.
    batch: u16,
    /// Packed: the entries of the chains in flight, in order, and of those given back and not yet
    /// published. Both have room for the whole ring from the start.
    taken: VecDeque<u16>,
    freed: Vec<u16>,
    /// Packed: the descriptor ring.
    ring: Option<Area>,
    /// Packed: where what was given back meets the free list as of the last publication.
    join: u16,
}

impl Record {
    fn at(&self, index: u16) -> usize {
        self.entry.0 + self.entry.1 * usize::from(index)
    }

    fn get(&self, at: usize) -> u16 {
        self.area.load(at, Ordering::Acquire)
    }

    fn set(&self, at: usize, value: u16) {
        self.area.store(at, value, Ordering::Release);
    }

    fn write_pair(&self, at: usize, first: u64, second: u64) {
        self.area.store64(at, first, Ordering::Relaxed);
        self.area.store64(at + 8, second, Ordering::Relaxed);
    }

    /// The place of an index in the table; a bad one becomes 0, which exists.
    fn index(&self, value: u16) -> u16 {
        if value < self.size { value } else { 0 }
    }

    /// Whether the region holds the history of a ring of this size.
    fn has_history(&self) -> bool {
        self.get(H_VERSION) == VERSION && self.get(H_SIZE) == self.size
    }

    /// The ring was stopped in order: all that was taken was given back, and where it goes on is
    /// for the frontend to say.
    pub(crate) fn close(&self) {
        self.set(H_VERSION, 0);
    }

    // --- the split ring -------------------------------------------------------------------------

    /// Brings the region in line with the ring, whose used index is `used`; the chains in flight in
    /// the order in which they were taken, or none when the region's history is not this ring's.
    pub(crate) fn recover_split(&mut self, used: u16) -> Vec<u16> {
        let batch = used.wrapping_sub(self.get(H_USED));
        if !self.has_history() || batch > self.size {
            self.start_split(used);
            return Vec::new();
        }
        // Killed after the publication: those chains are the driver's again.
        let mut head = self.get(H_LAST_BATCH);
        for _ in 0..batch {
            if head >= self.size {
                break;
            }
            self.set(self.at(head), 0);
            head = self.get(self.at(head) + S_NEXT);
        }
        self.set(H_USED, used);
        let mut flying: Vec<(u64, u16)> = Vec::new();
        for head in 0..self.size {
            let [word, counter] = self.area.read16(self.at(head));
            if word as u8 != 0 {
                flying.push((counter, head));
            }
        }
        flying.sort_unstable();
        self.counter = flying.last().map_or(1, |(last, _)| last.wrapping_add(1));
        flying.into_iter().map(|(_, head)| head).collect()
    }

    fn start_split(&mut self, used: u16) {
        for head in 0..self.size {
            self.write_pair(self.at(head), 0, 0);
        }
        self.set(H_SIZE, self.size);
        self.set(H_LAST_BATCH, 0);
        self.set(H_USED, used);
        self.set(H_VERSION, VERSION);
    }

    /// A chain was taken from a split ring.
    #[inline]
    pub(crate) fn split_taken(&mut self, head: u16) {
        if head < self.size {
            let at = self.at(head);
            self.write_pair(at, 1, self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    /// A used entry was written, and is not yet published.
    #[inline]
    pub(crate) fn split_used(&mut self, head: u16) {
        if head < self.size {
            self.set(self.at(head) + S_NEXT, self.get(H_LAST_BATCH));
            self.set(H_LAST_BATCH, head);
            self.batch += 1;
        }
    }

    /// The ring's used index is published.
    #[inline]
    pub(crate) fn split_published(&mut self, used: u16) {
        let mut head = self.get(H_LAST_BATCH);
        for _ in 0..self.batch {
            if head >= self.size {
                break;
            }
            self.set(self.at(head), 0);
            head = self.get(self.at(head) + S_NEXT);
        }
        self.batch = 0;
        self.set(H_USED, used);
    }

    // --- the packed ring ------------------------------------------------------------------------

    /// Brings the region in line with the ring, and says where the ring goes on, as VRING_BASE does.
    /// `base` is what the frontend says, which counts when the region has no history. `ring` is
    /// the descriptor ring.
    pub(crate) fn recover_packed(&mut self, base: u32, ring: Area) -> u32 {
        let index = base as u16 & !WRAP;
        if index >= self.size {
            // Not a place in this ring, which says so when it starts.
            return base;
        }
        let flags = |at: u16| {
            let raw = ring.read16(DESCRIPTOR * usize::from(at));
            Descriptor::packed(raw).flags
        };
        let (at, wrap) = self.recover_position((index, base as u16 & WRAP != 0), flags);
        self.ring = Some(ring);
        let half = u32::from(at | if wrap { WRAP } else { 0 });
        half << 16 | half
    }

    /// Position and wrap counter of the next descriptor to be taken and used; `flags` reads the
    /// flags of a descriptor in the ring.
    fn recover_position(&mut self, base: (u16, bool), flags: impl Fn(u16) -> u16) -> (u16, bool) {
        let old = self.get(H_OLD_AT);
        if !self.has_history() || old >= self.size {
            self.start_packed(base);
            return base;
        }
        let wraps = self.get(H_WRAPS);
        if self.get(H_AT) != old || (wraps & 1) != (wraps >> 8 & 1) {
            // Killed around a publication. The ring's first descriptor of the batch tells which
            // side: available (7) equal to the wrap counter and used (15) not, or both equal.
            let wrap = wraps >> 8 & 1 != 0;
            let bits = flags(old);
            let available = (bits & 1 << 7 != 0) == wrap && (bits & 1 << 15 != 0) != wrap;
            if !available {
                self.set(H_OLD_FREE, self.get(H_FREE));
                self.set(H_OLD_AT, self.get(H_AT));
                self.set(H_WRAPS, (wraps & 1) | (wraps & 1) << 8);
            }
        }
        let (at, wraps) = (self.get(H_OLD_AT), self.get(H_WRAPS));
        let wrap = wraps >> 8 & 1 != 0;
        let at = self.index(at);
        // What is in flight is taken again from the ring, so the entries start afresh.
        self.start_packed((at, wrap));
        (at, wrap)
    }

    fn start_packed(&mut self, (at, wrap): (u16, bool)) {
        for entry in 0..self.size {
            self.clear(entry);
            self.set(self.at(entry) + P_NEXT, entry + 1);
        }
        let wrap = u16::from(wrap);
        self.set(H_SIZE, self.size);
        for (field, value) in [
            (H_FREE, 0),
            (H_OLD_FREE, 0),
            (H_AT, at),
            (H_OLD_AT, at),
            (H_WRAPS, wrap | wrap << 8),
            (H_VERSION, VERSION),
        ] {
            self.set(field, value);
        }
        self.taken.clear();
        self.freed.clear();
    }

    fn clear(&self, entry: u16) {
        self.set(self.at(entry), 0);
    }

    /// A chain was taken from a packed ring: its descriptors in the ring, one or more.
    pub(crate) fn packed_taken(&mut self, chain: impl ExactSizeIterator<Item = Noted>) {
        // Not from what was given back since the last publication: that may have to be undone.
        let first = self.index(self.get(H_OLD_FREE));
        let (mut entry, mut last) = (first, first);
        let base = self.at(first);
        self.set(base + P_NUM, chain.len() as u16);
        let counter = self.counter;
        self.counter = self.counter.wrapping_add(1);
        for half in 0..4 {
            self.set(base + P_COUNTER + 2 * half, (counter >> (16 * half)) as u16);
        }
        for noted in chain {
            let word =
                u64::from(noted.id) | u64::from(noted.flags) << 16 | u64::from(noted.len) << 32;
            let at = self.at(entry);
            self.write_pair(at + 16, word, noted.addr);
            last = entry;
            entry = self.index(self.get(at + P_NEXT));
        }
        self.set(base + P_LAST, last);
        self.set(base, 1);
        self.set(H_OLD_FREE, entry);
        match self.freed.is_empty() {
            true => self.set(H_FREE, entry),
            false => self.set(self.at(self.join) + P_NEXT, entry),
        }
        if self.taken.len() < usize::from(self.size) {
            self.taken.push_back(first);
        }
    }

    /// A used descriptor was written for the chain taken first, and is not yet visible.
    pub(crate) fn packed_used(&mut self) {
        let Some(entry) = self.taken.pop_front() else {
            return;
        };
        let at = self.at(entry);
        let last = self.index(self.get(at + P_LAST));
        self.set(self.at(last) + P_NEXT, self.get(H_FREE));
        self.set(H_FREE, entry);
        if self.freed.is_empty() {
            self.join = last;
        }
        let mut to = u32::from(self.get(H_AT)) + u32::from(self.get(at + P_NUM));
        if to >= u32::from(self.size) {
            to -= u32::from(self.size);
            self.set(H_WRAPS, self.get(H_WRAPS) ^ 1);
        }
        self.set(H_AT, self.index(to as u16));
        if self.freed.len() < usize::from(self.size) {
            self.freed.push(entry);
        }
    }

    /// The used descriptors are visible to the driver.
    pub(crate) fn packed_published(&mut self) {
        for index in 0..self.freed.len() {
            self.clear(self.freed[index]);
        }
        self.freed.clear();
        let wraps = self.get(H_WRAPS);
        self.set(H_OLD_FREE, self.get(H_FREE));
        self.set(H_OLD_AT, self.get(H_AT));
        self.set(H_WRAPS, (wraps & 1) | (wraps & 1) << 8);
    }
}

impl Inflight for Record {
    fn taken(&mut self, chain: &Chain) {
        let Some(ring) = self.ring.take() else {
            self.split_taken(chain.id);
            return;
        };
        let size = u32::from(self.size);
        let (at, slots) = (u32::from(chain.at), chain.slots.min(self.size));
        self.packed_taken((0..slots).map(|slot| {
            let place = (at + u32::from(slot)) % size;
            let d = Descriptor::packed(ring.read16(DESCRIPTOR * place as usize));
            Noted {
                addr: d.address,
                len: d.len,
                id: d.other,
                flags: d.flags,
            }
        }));
        self.ring = Some(ring);
    }

    fn returning(&mut self, used: &[Used]) {
        for entry in used {
            match self.ring {
                Some(_) => self.packed_used(),
                None => self.split_used(entry.id),
            }
        }
    }

    fn returned(&mut self, base: u32) {
        match self.ring {
            Some(_) => self.packed_published(),
            // All that was taken was given back, or is not yet counted as used.
            None => self.split_published(base as u16),
        }
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
