//! A guest's memory: the regions a frontend shares, mapped, and the way from its addresses to ours.
//!
//! An [`Area`] keeps its pointer and its length together and keeps the mapping alive; its accesses
//! are bounds-checked. A [`Segment`] is an area's short-lived sibling for packet data, valid while
//! the [`GuestMemory`] it came from is.
//!
//! Memory that is taken away after it was mapped reads as zeros and is marked (`sigbus.rs`).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{FileOffset, MmapRegion};

use crate::access::{Area, Segment};
use crate::sigbus::Guarded;

/// Regions a frontend may have, by whichever message it adds them.
pub(crate) const MAX_REGIONS: usize = 64;
/// The largest page a shared file is likely to be made of; larger block sizes are not believed.
const MAX_BLOCK: u64 = 1 << 30;
/// Bytes of all regions of one guest together: a part of our address space that others can spare.
const MAX_TOTAL: u64 = 1 << 44;
/// `f_type` of hugetlbfs in `statfs(2)`.
const HUGETLBFS_MAGIC: i64 = 0x958458f6;
/// `f_type` of file systems that are the kernel's own: tmpfs (and memfd), hugetlbfs, ramfs, ext4,
/// XFS, Btrfs, F2FS, bcachefs, ZFS. In any other, an access could wait for a process or a host of
/// the frontend's choice (FUSE, network), or reach a device (sysfs).
const FILE_SYSTEMS: [i64; 9] = [
    0x01021994,
    HUGETLBFS_MAGIC,
    0x858458f6,
    0xef53,
    0x58465342,
    0x9123683e,
    0xf2f52010,
    0xca451a4e,
    0x2fc12fc1,
];

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("Memory region at guest address {guest:#x} has length 0")]
    Empty { guest: u64 },
    #[error("Memory region at guest address {guest:#x}, length {size:#x}, wraps around")]
    Wraps { guest: u64, size: u64 },
    #[error("Memory regions at guest addresses {first:#x} and {second:#x} overlap")]
    Overlap { first: u64, second: u64 },
    #[error("More than {MAX_REGIONS} memory regions")]
    TooMany,
    #[error(
        "Memory region at guest address {guest:#x} ends at byte {end:#x} of a file of {file:#x} bytes"
    )]
    BeyondFile { guest: u64, end: u64, file: u64 },
    #[error("Memory region at guest address {guest:#x} comes with a descriptor that is no file")]
    NotAFile { guest: u64 },
    #[error("All memory regions together have more than {MAX_TOTAL:#x} bytes")]
    TooLarge,
    #[error(
        "Memory region at guest address {guest:#x} is on a file system of type {kind:#x}; use a memfd, tmpfs, hugetlbfs, or a local disk"
    )]
    FileSystem { guest: u64, kind: i64 },
    #[error("Memory region at guest address {guest:#x} cannot be mapped: {reason}")]
    Map { guest: u64, reason: String },
    #[error("There is no memory region at guest address {guest:#x} with length {size:#x}")]
    NoSuchRegion { guest: u64, size: u64 },
}

/// One region as a message describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionInfo {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    /// Address in the frontend's own address space; ring addresses are given in these.
    pub(crate) user: u64,
    /// Where the region begins in its file.
    pub(crate) offset: u64,
}

impl RegionInfo {
    fn check(&self) -> Result<(), MemoryError> {
        let (guest, size) = (self.guest, self.size);
        if size == 0 {
            return Err(MemoryError::Empty { guest });
        }
        let fits = |start: u64| start.checked_add(size).is_some();
        if !fits(guest) || !fits(self.user) || !fits(self.offset) || size > isize::MAX as u64 {
            return Err(MemoryError::Wraps { guest, size });
        }
        Ok(())
    }

    fn overlaps(&self, other: &RegionInfo) -> bool {
        let cross = |a: u64, b: u64| a < b + other.size && b < a + self.size;
        cross(self.guest, other.guest) || cross(self.user, other.user)
    }
}

/// A mapped region.
#[derive(Clone, Debug)]
struct Region {
    info: RegionInfo,
    mapping: Arc<Guarded>,
    /// The region's first byte; inside `mapping`, with `info.size` bytes after it.
    host: NonNull<u8>,
}

impl Region {
    fn map(info: RegionInfo, file: File) -> Result<Region, MemoryError> {
        info.check()?;
        let guest = info.guest;
        let not_a_file = |_| MemoryError::NotAFile { guest };
        // First, since asking anything else could wait already.
        let kind = file_system(&file);
        if !FILE_SYSTEMS.contains(&kind) {
            return Err(MemoryError::FileSystem { guest, kind });
        }
        let meta = file.metadata().map_err(not_a_file)?;
        if !meta.is_file() {
            return Err(MemoryError::NotAFile { guest });
        }
        let end = info.offset + info.size;
        if end > meta.len() {
            return Err(MemoryError::BeyondFile {
                guest,
                end,
                file: meta.len(),
            });
        }
        // Huge pages are mapped and unmapped in whole pages only, and a region may begin in the
        // middle of one (QEMU's memory above the VGA hole does).
        let block = block_size(kind, &meta);
        let start = info.offset - info.offset % block;
        let rounded = end.checked_next_multiple_of(block).unwrap_or(end);
        let stop = if rounded <= meta.len() { rounded } else { end };
        let failed = |reason: String| MemoryError::Map { guest, reason };
        let length = usize::try_from(stop - start).map_err(|e| failed(e.to_string()))?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, start), length)
            .map_err(|e| failed(e.to_string()))?;
        let mapping = Guarded::new(mapping)
            .ok_or_else(|| failed("all guests together have too many regions".to_owned()))?;
        let delta = (info.offset - start) as usize;
        // SAFETY: the mapping is `stop - start` bytes long, `start <= offset` and
        // `offset + size <= stop`, so the sum stays inside.
        let host = unsafe { mapping.as_ptr().add(delta) };
        let host = NonNull::new(host).ok_or_else(|| failed("it is at address 0".to_owned()))?;
        Ok(Region {
            info,
            mapping: Arc::new(mapping),
            host,
        })
    }
}

/// The type of the file system a file is in; 0 when it cannot be told.
fn file_system(file: &File) -> i64 {
    // SAFETY: an all-zero `statfs` is a valid value of this plain C struct.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `fs` is a valid place for the answer.
    let known = unsafe { libc::fstatfs(file.as_raw_fd(), &mut fs) } == 0;
    #[allow(clippy::unnecessary_cast)] // the field's type differs between C libraries
    if known { fs.f_type as i64 } else { 0 }
}

/// The granularity in which the file can be mapped.
fn block_size(file_system: i64, meta: &std::fs::Metadata) -> u64 {
    let block = meta.blksize();
    if file_system == HUGETLBFS_MAGIC && block.is_power_of_two() && block <= MAX_BLOCK {
        block
    } else {
        4096
    }
}

/// All of a guest's memory that is shared with us. Immutable: a changed table is a new value, and
/// mappings live until the last user of the old one is gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestMemory {
    /// Sorted by guest address, not overlapping.
    regions: Vec<Region>,
}

// SAFETY: the pointers lead into shared mappings kept alive by `mapping`; all accesses through them
// are volatile, atomic or raw copies that assume nothing about concurrent writers.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps a whole table. On failure nothing stays mapped.
    pub(crate) fn map(table: Vec<(RegionInfo, File)>) -> Result<GuestMemory, MemoryError> {
        let mut memory = GuestMemory::default();
        for (info, file) in table {
            memory = memory.with(info, file)?;
        }
        Ok(memory)
    }

    /// This memory and one region more.
    pub(crate) fn with(&self, info: RegionInfo, file: File) -> Result<GuestMemory, MemoryError> {
        info.check()?;
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let total: u64 = self.regions.iter().map(|r| r.info.size).sum();
        if total + info.size > MAX_TOTAL {
            return Err(MemoryError::TooLarge);
        }
        if let Some(other) = self.regions.iter().find(|r| r.info.overlaps(&info)) {
            return Err(MemoryError::Overlap {
                first: other.info.guest,
                second: info.guest,
            });
        }
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.info.guest < info.guest);
        regions.insert(at, Region::map(info, file)?);
        Ok(GuestMemory { regions })
    }

    /// This memory without one region, which must match in address and length.
    pub(crate) fn without(&self, info: RegionInfo) -> Result<GuestMemory, MemoryError> {
        let mut regions = self.regions.clone();
        let same = |r: &Region| {
            r.info.guest == info.guest && r.info.size == info.size && r.info.user == info.user
        };
        match regions.iter().position(same) {
            Some(at) => drop(regions.remove(at)),
            None => {
                return Err(MemoryError::NoSuchRegion {
                    guest: info.guest,
                    size: info.size,
                });
            }
        }
        Ok(GuestMemory { regions })
    }

    /// The number of regions.
    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Some of it was taken away.
    pub(crate) fn lost(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.lost())
    }

    /// `len` bytes at an address of the frontend's own address space, inside one region.
    pub(crate) fn area_at_user(&self, user: u64, len: usize) -> Option<Area> {
        let region = self
            .regions
            .iter()
            .find(|r| user >= r.info.user && user - r.info.user < r.info.size)?;
        let offset = user - region.info.user;
        if len as u64 > region.info.size - offset {
            return None;
        }
        // SAFETY: `offset + len <= info.size`, the bytes after `host` that are mapped.
        Some(unsafe {
            let ptr = region.host.add(offset as usize);
            let guest = region.info.guest + offset;
            Area::new(ptr, len, guest, Arc::clone(&region.mapping))
        })
    }

    /// The region that a guest address is in.
    fn region_of(&self, guest: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.info.guest <= guest);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (guest - region.info.guest < region.info.size).then_some(region)
    }

    /// The guest's address of a segment's first byte (for dirty logging; not fast).
    pub(crate) fn guest_of(&self, segment: &Segment) -> Option<u64> {
        let inside = |r: &&Region| {
            let offset = segment.host().checked_sub(r.host.as_ptr().addr());
            offset.is_some_and(|offset| (offset as u64) < r.info.size)
        };
        let region = self.regions.iter().find(inside)?;
        let offset = segment.host() - region.host.as_ptr().addr();
        Some(region.info.guest + offset as u64)
    }
}

/// From guest addresses to segments. The region of the last one is at hand: nearly always the next
/// one is in it too, and then this is a subtraction and a comparison.
#[derive(Debug)]
pub(crate) struct Translator {
    memory: Arc<GuestMemory>,
    /// The region at hand; empty at first.
    start: u64,
    size: u64,
    host: NonNull<u8>,
}

// SAFETY: `host` leads into a mapping of `memory`, which is owned along with it; see there.
unsafe impl Send for Translator {}
// SAFETY: as above.
unsafe impl Sync for Translator {}

impl Translator {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Translator {
            memory,
            start: 0,
            size: 0,
            host: NonNull::dangling(),
        }
    }

    /// The memory it translates for.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// All `len` bytes at guest address `guest`, in one region; `None` when they are not.
    #[inline]
    pub(crate) fn whole(&mut self, guest: u64, len: u32) -> Option<Segment> {
        self.segment(guest, len).filter(|s| s.len() == len as usize)
    }

    /// The part of `len` bytes at guest address `guest` that lies in one region (the first one):
    /// shorter than `len` when the buffer goes on in the next region. `None` when unmapped.
    #[inline]
    pub(crate) fn segment(&mut self, guest: u64, len: u32) -> Option<Segment> {
        let mut offset = guest.wrapping_sub(self.start);
        if offset >= self.size {
            let region = self.memory.region_of(guest)?;
            (self.start, self.size, self.host) = (region.info.guest, region.info.size, region.host);
            offset = guest - self.start;
        }
        let len = u64::from(len).min(self.size - offset) as u32;
        // SAFETY: `offset < size`, so this is a byte of the mapping.
        let ptr = unsafe { self.host.add(offset as usize) };
        Some(Segment::new(ptr, len))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use super::*;

    fn file(len: u64) -> File {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"xvio-test", flags).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn region(guest: u64, size: u64, offset: u64) -> RegionInfo {
        let user = guest.wrapping_add(0x1000_0000);
        RegionInfo {
            guest,
            size,
            user,
            offset,
        }
    }

    #[test]
    fn impossible_regions_are_refused() {
        let memory = GuestMemory::default();
        let refused = |info: RegionInfo| memory.with(info, file(0x2000)).unwrap_err();
        assert!(matches!(
            refused(region(0, 0, 0)),
            MemoryError::Empty { .. }
        ));
        for wrapping in [
            region(u64::MAX - 0xfff, 0x2000, 0),
            region(0, 0x2000, u64::MAX - 0xfff),
            region(0, u64::MAX, 0),
            RegionInfo {
                user: u64::MAX,
                ..region(0, 0x1000, 0)
            },
        ] {
            assert!(matches!(refused(wrapping), MemoryError::Wraps { .. }));
        }
        for beyond in [region(0, 0x2001, 0), region(0, 0x1001, 0x1000)] {
            assert!(matches!(refused(beyond), MemoryError::BeyondFile { .. }));
        }
        assert!(memory.with(region(0, 0x2000, 0), file(0x2000)).is_ok());
    }

    #[test]
    fn regions_may_touch_but_not_overlap_in_either_address_space() {
        let memory = GuestMemory::default()
            .with(region(0x4000, 0x2000, 0), file(0x2000))
            .unwrap();
        for (guest, fits) in [
            (0x2000, true),
            (0x2001, false),
            (0x4800, false),
            (0x5fff, false),
            (0x6000, true),
        ] {
            let added = memory.with(region(guest, 0x2000, 0), file(0x2000));
            assert_eq!(added.is_ok(), fits, "{guest:#x}");
        }
        let same_user = RegionInfo {
            guest: 0x10_0000,
            ..region(0x4000, 0x1000, 0)
        };
        assert!(memory.with(same_user, file(0x2000)).is_err());
    }

    #[test]
    fn only_files_that_nobody_can_hold_back_are_mapped() {
        for path in ["/proc/self/maps", "/sys/kernel/uevent_seqnum"] {
            if let Ok(file) = File::open(path) {
                let refused = GuestMemory::default().with(region(0, 0x1000, 0), file);
                assert!(matches!(refused, Err(MemoryError::FileSystem { .. })));
            }
        }
    }

    #[test]
    fn one_guest_cannot_have_all_of_the_address_space() {
        let memory = GuestMemory::default();
        let half = region(0, MAX_TOTAL / 2, 0);
        let memory = memory.with(half, file(MAX_TOTAL)).unwrap();
        let more = |size| memory.with(region(1 << 45, size, 0), file(MAX_TOTAL));
        assert!(matches!(
            more(MAX_TOTAL / 2 + 1),
            Err(MemoryError::TooLarge)
        ));
        assert!(more(MAX_TOTAL / 2).is_ok());
    }

    #[test]
    fn memory_that_is_taken_away_reads_as_zeros_and_is_marked() {
        let (lost, kept) = (file(0x3000), file(0x1000));
        lost.write_all_at(&[7; 0x3000], 0).unwrap();
        kept.write_all_at(&[8; 0x1000], 0).unwrap();
        let memory = GuestMemory::default();
        let memory = memory
            .with(region(0x4000, 0x3000, 0), lost.try_clone().unwrap())
            .unwrap();
        let other = GuestMemory::default()
            .with(region(0x4000, 0x1000, 0), kept)
            .unwrap();
        let before = crate::sigbus::losses();
        lost.set_len(0x1000).unwrap();
        let mut bytes = [1; 2];
        let mut read = |memory: &GuestMemory, at| {
            let mut translator = Translator::new(Arc::new(memory.clone()));
            let segment = translator.segment(at, 2).unwrap();
            // SAFETY: `memory` is alive.
            unsafe { segment.copy_out(0, &mut bytes) };
            bytes
        };
        assert_eq!(read(&memory, 0x4000), [7; 2]);
        assert!(!memory.lost());
        assert_eq!(read(&memory, 0x5ffe), [0; 2]);
        assert!(memory.lost() && crate::sigbus::losses() > before);
        assert_eq!(read(&other, 0x4ffe), [8; 2]);
        assert!(!other.lost());
        drop(memory);
        // A place that is used again is not marked.
        let fresh = GuestMemory::default().with(region(0, 0x1000, 0), file(0x1000));
        assert!(!fresh.unwrap().lost());
    }

    #[test]
    fn there_is_a_limit_to_regions() {
        let mut memory = GuestMemory::default();
        for i in 0..MAX_REGIONS as u64 {
            memory = memory
                .with(region(i << 20, 0x1000, 0), file(0x1000))
                .unwrap();
        }
        let more = memory.with(region(1 << 40, 0x1000, 0), file(0x1000));
        assert!(matches!(more, Err(MemoryError::TooMany)));
        memory = memory.without(region(5 << 20, 0x1000, 0)).unwrap();
        assert!(
            memory
                .with(region(1 << 40, 0x1000, 0), file(0x1000))
                .is_ok()
        );
    }

    #[test]
    fn translation_knows_the_bounds_and_the_offset_in_the_file() {
        let file = file(0x3000);
        file.write_all_at(b"here", 0x1800).unwrap();
        // It begins in the middle of a page of the file.
        let info = region(0x4000, 0x1000, 0x1800);
        let memory = GuestMemory::default().with(info, file).unwrap();
        let mut translator = Translator::new(Arc::new(memory.clone()));
        let segment = translator.segment(0x4000, 4).unwrap();
        assert_eq!(memory.guest_of(&segment), Some(0x4000));
        let mut bytes = [0; 8];
        // SAFETY: `memory` is alive.
        assert_eq!(unsafe { segment.copy_out(0, &mut bytes) }, 4);
        assert_eq!(&bytes, b"here\0\0\0\0");
        let last = translator.segment(0x4fff, 100).unwrap();
        assert_eq!((last.len(), memory.guest_of(&last)), (1, Some(0x4fff)));
        assert!(translator.whole(0x4fff, 2).is_none());
        assert!(translator.segment(0x5000, 1).is_none());
        assert!(translator.segment(0x3fff, 1).is_none());
        assert_eq!(memory.guest_of(&Segment::EMPTY), None);
        drop(translator);
        assert!(memory.area_at_user(info.user, 0x1000).is_some());
        assert!(memory.area_at_user(info.user, 0x1001).is_none());
        assert!(memory.area_at_user(info.user + 0xfff, usize::MAX).is_none());
        assert!(memory.area_at_user(0x4000, 1).is_none());
        let area = memory.area_at_user(info.user, 16).unwrap();
        drop(memory);
        // An area keeps its bytes mapped, and its accesses stay inside of it.
        assert_eq!(area.load(0, Ordering::Relaxed), u16::from_le_bytes(*b"he"));
        area.store(16, 0xffff, Ordering::Relaxed);
        area.store(15, 0xffff, Ordering::Relaxed);
        area.write_pair(12, 1, 2);
        assert_eq!(area.load(usize::MAX, Ordering::Relaxed), 0);
        assert_eq!(area.read16(1), [0; 2]);
        assert_eq!(area.read16(0)[1], 0);
    }
}
