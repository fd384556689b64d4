//! The dirty log of a live migration: one bit for each page of guest memory that we wrote.
//!
//! While a guest is moved, the frontend copies its memory again and again, each time only the pages
//! that changed since. It learns of the guest's own writes by itself; ours are told here, in a
//! bitmap that it shares (SET_LOG_BASE) and empties as it goes. A page that we write and do not
//! mark arrives old at the destination, so every write to guest memory is followed by a mark:
//! packet data under `VHOST_F_LOG_ALL`, the ring's own parts under the flag of SET_VRING_ADDR.
//!
//! The order is what makes it right: first the write, then the mark. The frontend does the reverse
//! (takes the bit, then reads the page), so it sees the write, or the bit once more.

use std::fs::File;
use std::sync::Arc;

use crate::access::Area;
use crate::hooks::DirtyLog;
use crate::memory::{GuestMemory, MemoryError, RegionInfo};
use crate::queue::Notifier;

/// Bytes of guest memory behind one bit (`VHOST_LOG_PAGE`, vhost-user specification, "Migration").
const PAGE: u64 = 4096;

/// A migration's bitmap, as the frontend shares it.
#[derive(Debug)]
pub(crate) struct Bitmap {
    bits: Area,
    /// Bytes of the bitmap.
    len: u64,
}

impl Bitmap {
    /// Maps `size` bytes at `offset` of the frontend's file. The file is judged as guest memory is;
    /// `offset` is used here, once, and nowhere else.
    pub(crate) fn map(file: File, offset: u64, size: u64) -> Result<Bitmap, MemoryError> {
        Ok(Bitmap {
            bits: shared_area(file, offset, size)?,
            len: size,
        })
    }

    /// Marks the pages of `len` bytes that were written at guest address `guest`. Pages beyond the
    /// bitmap have no bit: the frontend does not migrate them.
    fn mark(&self, guest: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let (first, last) = (guest / PAGE, guest.saturating_add(last) / PAGE);
        for page in first..=last {
            if page / 8 >= self.len {
                return;
            }
            self.bits.set_bits((page / 8) as usize, 1 << (page % 8));
        }
    }
}

/// The dirty log of a ring.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) bitmap: Arc<Bitmap>,
    /// Rung after the log has grown, if the frontend wants that (SET_LOG_FD).
    pub(crate) told: Option<Arc<Notifier>>,
}

impl DirtyLog for Log {
    fn written(&self, guest: u64, len: u64) {
        self.bitmap.mark(guest, len);
    }

    fn settled(&self) {
        // A system call, and so not for each of a packet's pieces, whose number is the guest's choice.
        if let Some(told) = &self.told {
            told.notify();
        }
    }
}

/// Bytes of a file that a frontend shares beside its guest's memory; with the same checks.
pub(crate) fn shared_area(file: File, offset: u64, size: u64) -> Result<Area, MemoryError> {
    let whole = RegionInfo {
        guest: 0,
        size,
        user: 0,
        offset,
    };
    let memory = GuestMemory::default().with(whole, file)?;
    let area = usize::try_from(size)
        .ok()
        .and_then(|size| memory.area_at_user(0, size));
    area.ok_or(MemoryError::Empty { guest: 0 })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(len: u64) -> File {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"xvio-log", flags).unwrap());
        file.set_len(len).unwrap();
        file
    }

    /// The pages marked in the bitmap that begins at `offset`.
    fn marked(file: &File, offset: u64, len: usize) -> Vec<u64> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let bit = |page: &u64| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0;
        (0..8 * len as u64).filter(bit).collect()
    }

    #[test]
    fn each_page_touched_is_marked_and_no_other() {
        let file = file(0x2000);
        let log = Bitmap::map(file.try_clone().unwrap(), 0, 8).unwrap();
        for (guest, len, pages) in [
            (0u64, 0u64, vec![]),
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (3 * 4096 + 7, 4096, vec![3, 4]),
            (9 * 4096, 3 * 4096, vec![9, 10, 11]),
            (63 * 4096, 4096, vec![63]),
            // Beyond the bitmap: not even the bytes after it in the same page of the file.
            (64 * 4096, 4096, vec![]),
            (63 * 4096, 8192, vec![63]),
            (u64::MAX, 1, vec![]),
            (u64::MAX - 1, u64::MAX, vec![]),
        ] {
            file.write_all_at(&[0; 0x2000], 0).unwrap();
            log.mark(guest, len);
            assert_eq!(marked(&file, 0, 0x2000), pages, "{guest:#x}, {len:#x}");
        }
    }

    #[test]
    fn the_offset_in_the_file_is_applied_once() {
        let file = file(0x3000);
        for offset in [8, 0x1000, 0x1010, 0x2ff8] {
            file.write_all_at(&[0; 0x3000], 0).unwrap();
            let log = Bitmap::map(file.try_clone().unwrap(), offset, 8).unwrap();
            log.mark(4096, 1);
            assert_eq!(marked(&file, 0, 0x3000), [8 * offset + 1]);
        }
    }

    #[test]
    fn a_bitmap_that_is_not_in_its_file_is_refused() {
        for (offset, size) in [
            (0, 0),
            (0, 0x1001),
            (0x1000, 1),
            (u64::MAX, 1),
            (u64::MAX - 7, 16),
            (8, u64::MAX - 7),
        ] {
            assert!(
                Bitmap::map(file(0x1000), offset, size).is_err(),
                "{offset:#x}, {size:#x}"
            );
        }
    }

    #[test]
    fn a_log_that_is_truncated_ends_nobody() {
        let file = file(0x2000);
        let log = Bitmap::map(file.try_clone().unwrap(), 0, 0x2000).unwrap();
        file.set_len(0).unwrap();
        log.mark(0, 1 << 28);
    }
}
