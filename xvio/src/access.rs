//! The only raw accesses to guest memory: [`Area`] for the parts of a ring, [`Segment`] for packet
//! data. Both are made by [`GuestMemory`](crate::memory::GuestMemory), which knows what is mapped.
//!
//! Nothing here hands out references into shared memory: the guest may write at any moment, so
//! values are read once, volatile or atomically, into private memory.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::sigbus::Guarded;

/// A fixed piece of shared memory that is accessed often: a part of a ring. Accesses out of bounds
/// read 0 or do nothing, which cannot happen when the ring's lengths were computed right.
#[derive(Debug)]
pub(crate) struct Area {
    ptr: NonNull<u8>,
    len: usize,
    /// The guest's address of its first byte.
    guest: u64,
    /// Keeps the bytes mapped.
    _mapping: Arc<Guarded>,
}

// SAFETY: all accesses are volatile, atomic or raw copies that assume nothing about concurrent
// writers; the mapping is owned along with the pointer.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// The `len` bytes at `ptr`.
    ///
    /// # Safety
    /// They must lie in `mapping`.
    pub(crate) unsafe fn new(
        ptr: NonNull<u8>,
        len: usize,
        guest: u64,
        mapping: Arc<Guarded>,
    ) -> Area {
        Area {
            ptr,
            len,
            guest,
            _mapping: mapping,
        }
    }

    /// The guest's address of the byte at `offset`.
    pub(crate) fn guest(&self, offset: usize) -> u64 {
        self.guest + offset as u64
    }

    /// The 16-bit place at `offset`, for atomic access.
    #[inline]
    fn place(&self, offset: usize) -> Option<&AtomicU16> {
        if offset.checked_add(2)? > self.len {
            return None;
        }
        // SAFETY: in bounds as just checked.
        let ptr = unsafe { self.ptr.add(offset) }.cast::<u16>();
        if !ptr.is_aligned() {
            return None;
        }
        // SAFETY: aligned, mapped as long as `self` is, and only ever accessed atomically or with
        // volatile copies by this process.
        Some(unsafe { AtomicU16::from_ptr(ptr.as_ptr()) })
    }

    /// Reads a little-endian 16-bit value once.
    #[inline]
    pub(crate) fn load(&self, offset: usize, order: Ordering) -> u16 {
        self.place(offset)
            .map_or(0, |p| u16::from_le(p.load(order)))
    }

    /// Writes a little-endian 16-bit value.
    #[inline]
    pub(crate) fn store(&self, offset: usize, value: u16, order: Ordering) {
        if let Some(p) = self.place(offset) {
            p.store(value.to_le(), order);
        }
    }

    /// Reads the 16 bytes at `offset` once, into private memory.
    #[inline]
    pub(crate) fn read16(&self, offset: usize) -> [u64; 2] {
        match offset.checked_add(16) {
            // SAFETY: in bounds as just checked, and mapped as long as `self` is.
            Some(end) if end <= self.len => unsafe { read16_volatile(self.ptr.add(offset)) },
            _ => [0; 2],
        }
    }

    /// Reads the 16 bytes at `offset`, which must be 8-aligned, as two little-endian numbers: the
    /// second one first, and the first one not before it.
    #[inline]
    pub(crate) fn read16_back(&self, offset: usize) -> [u64; 2] {
        let second = self.place64(offset.wrapping_add(8));
        let second = second.map_or(0, |p| u64::from_le(p.load(Ordering::Acquire)));
        let first = self.place64(offset);
        let first = first.map_or(0, |p| u64::from_le(p.load(Ordering::Relaxed)));
        [first, second]
    }

    /// Writes a little-endian 64-bit value at `offset`, which must be 8-aligned.
    #[inline]
    pub(crate) fn store64(&self, offset: usize, value: u64, order: Ordering) {
        if let Some(p) = self.place64(offset) {
            p.store(value.to_le(), order);
        }
    }

    /// The 64-bit place at `offset`, for atomic access.
    #[inline]
    fn place64(&self, offset: usize) -> Option<&AtomicU64> {
        if offset.checked_add(8)? > self.len {
            return None;
        }
        // SAFETY: in bounds as just checked.
        let ptr = unsafe { self.ptr.add(offset) }.cast::<u64>();
        if !ptr.is_aligned() {
            return None;
        }
        // SAFETY: aligned, mapped as long as `self` is, and only ever accessed atomically or with
        // volatile copies by this process.
        Some(unsafe { AtomicU64::from_ptr(ptr.as_ptr()) })
    }

    /// Writes two 32-bit values, little-endian, at `offset`, which must be 4-aligned.
    #[inline]
    pub(crate) fn write_pair(&self, offset: usize, first: u32, second: u32) {
        let fits = offset.checked_add(8).is_some_and(|end| end <= self.len);
        if !fits {
            return;
        }
        // SAFETY: in bounds as just checked.
        let ptr = unsafe { self.ptr.add(offset) }.cast::<u32>();
        if ptr.is_aligned() {
            // SAFETY: in bounds for two values, aligned, mapped as long as `self` is.
            unsafe {
                ptr.write_volatile(first.to_le());
                ptr.add(1).write_volatile(second.to_le());
            }
        }
    }

    /// Sets bits of the byte at `offset`, in one step with whoever else changes it.
    #[inline]
    pub(crate) fn set_bits(&self, offset: usize, bits: u8) {
        if offset < self.len {
            // SAFETY: in bounds as just checked, mapped as long as `self` is, and only ever
            // accessed atomically or with volatile copies by this process.
            let byte =
                unsafe { std::sync::atomic::AtomicU8::from_ptr(self.ptr.add(offset).as_ptr()) };
            byte.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// Asks the processor to fetch the line of the byte at `offset`, to be read.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize) {
        prefetch(self.ptr.as_ptr().wrapping_add(offset));
    }

    /// Asks the processor to fetch the line of the byte at `offset`, to be written.
    #[inline]
    pub(crate) fn prefetch_write(&self, offset: usize) {
        prefetch_write(self.ptr.as_ptr().wrapping_add(offset));
    }

    /// The alignment of its first byte, as far as `align` (a power of two) is concerned.
    pub(crate) fn is_aligned_to(&self, align: usize) -> bool {
        self.ptr.as_ptr().addr().is_multiple_of(align)
    }
}

/// Reads 16 bytes, each once, as two little-endian numbers.
///
/// # Safety
/// The 16 bytes must be mapped.
#[inline]
unsafe fn read16_volatile(ptr: NonNull<u8>) -> [u64; 2] {
    let wide = ptr.cast::<u64>();
    if wide.is_aligned() {
        // SAFETY: mapped as the caller promises, aligned as just checked.
        let raw = unsafe { [wide.read_volatile(), wide.add(1).read_volatile()] };
        raw.map(u64::from_le)
    } else {
        // SAFETY: mapped as the caller promises; bytes have no alignment.
        let raw = u128::from_le_bytes(unsafe { ptr.cast::<[u8; 16]>().read_volatile() });
        [raw as u64, (raw >> 64) as u64]
    }
}

/// Copies `n` bytes. Short lengths, which most are, without a call: in two pieces that may overlap.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    /// The first and the last `N` bytes of `n`, which is not less than `N`.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: `N <= n`, so both pieces are inside what the caller vouches for.
        unsafe {
            let first = from.cast::<[u8; N]>().read_unaligned();
            let last = from.add(n - N).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(first);
            to.add(n - N).cast::<[u8; N]>().write_unaligned(last);
        }
    }
    // SAFETY: each arm's `N` is not more than `n`; otherwise as the caller promises.
    unsafe {
        match n {
            65..=128 => ends::<64>(from, to, n),
            33..=64 => ends::<32>(from, to, n),
            16..=32 => ends::<16>(from, to, n),
            8..=15 => ends::<8>(from, to, n),
            _ => std::ptr::copy_nonoverlapping(from, to, n),
        }
    }
}

/// Keeps the compiler from reading the source of a copy again in place of the copy: after this it
/// must assume that all memory it does not own has changed.
#[inline]
fn settle(copy: &mut [u8]) {
    #[cfg(not(miri))]
    // SAFETY: no instructions; only the compiler's knowledge of memory is affected.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) copy.as_mut_ptr(), options(nostack, preserves_flags));
    }
    #[cfg(miri)]
    std::hint::black_box(copy);
}

/// Asks the processor to fetch a line, to be read.
#[inline]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it does not access memory as far as the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks the processor to fetch a line, to be written.
#[inline]
fn prefetch_write(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it does not access memory as far as the program can see.
    // Processors that do not know this one do nothing.
    unsafe {
        std::arch::asm!(
            "prefetchw byte ptr [{0}]",
            in(reg) line,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// How far a prefetch reaches: the virtio-net header, and a short packet's payload behind it.
const PREFETCH: usize = 64;

/// A piece of packet data in guest memory, in bounds of one region. Valid while the
/// guest memory it came from lives: its users hold the gate, and the ring inside holds the
/// memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    ptr: NonNull<u8>,
    len: u32,
}

// SAFETY: a segment is only an address; whoever dereferences it (`copy_out`, `copy_in`) vouches for
// the mapping.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// The `len` bytes at `ptr`; an address only, see [`Segment::copy_out`].
    #[inline]
    pub(crate) fn new(ptr: NonNull<u8>, len: u32) -> Segment {
        Segment { ptr, len }
    }

    /// A segment of nothing.
    pub(crate) const EMPTY: Segment = Segment {
        ptr: NonNull::dangling(),
        len: 0,
    };

    /// Bytes in it.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Its first byte, as an address of this process.
    #[inline]
    pub(crate) fn host(&self) -> usize {
        self.ptr.as_ptr().addr()
    }

    /// Asks the processor to fetch the first line, to be read.
    #[inline]
    pub(crate) fn prefetch(&self) {
        self.prefetch_at(0);
    }

    /// Asks the processor to fetch the line after the first one, if there is one, to be read.
    #[inline]
    pub(crate) fn prefetch_next(&self) {
        self.prefetch_at(self.len().saturating_sub(1).min(PREFETCH));
    }

    #[inline]
    fn prefetch_at(&self, offset: usize) {
        prefetch(self.ptr.as_ptr().wrapping_add(offset));
    }

    /// Asks the processor to fetch the lines of the first [`PREFETCH`] bytes, to be written.
    #[inline]
    pub(crate) fn prefetch_write(&self) {
        let first = self.ptr.as_ptr();
        prefetch_write(first);
        prefetch_write(first.wrapping_add(self.len().saturating_sub(1).min(PREFETCH)));
    }

    /// Reads the 16 bytes at `offset` once; `None` when they are not all in the segment.
    ///
    /// # Safety
    /// As for [`Segment::copy_out`].
    #[inline]
    pub(crate) unsafe fn read16(&self, offset: usize) -> Option<[u64; 2]> {
        if offset.checked_add(16)? > self.len() {
            return None;
        }
        // SAFETY: in bounds as just checked, mapped as the caller promises.
        Some(unsafe { read16_volatile(self.ptr.add(offset)) })
    }

    /// Reads the first 8 bytes once, as a little-endian number; 0 when there are fewer.
    ///
    /// # Safety
    /// As for [`Segment::copy_out`].
    #[inline]
    pub(crate) unsafe fn read_front(&self) -> u64 {
        if self.len() < 8 {
            return 0;
        }
        let ptr = self.ptr.cast::<u64>();
        if ptr.is_aligned() {
            // SAFETY: in bounds as just checked, mapped as the caller promises, aligned.
            return u64::from_le(unsafe { ptr.read_volatile() });
        }
        let mut copy = [0; 8];
        // SAFETY: mapped as the caller promises.
        unsafe { self.copy_out(0, &mut copy) };
        u64::from_le_bytes(copy)
    }

    /// Writes the first 12 bytes, two little-endian numbers; nothing when there are fewer.
    ///
    /// # Safety
    /// As for [`Segment::copy_out`].
    #[inline]
    pub(crate) unsafe fn put_front(&self, first: u64, second: u32) {
        if self.len() >= 12 {
            // SAFETY: in bounds as just checked, mapped as the caller promises.
            unsafe {
                let ptr = self.ptr.as_ptr();
                ptr.cast::<u64>().write_unaligned(first.to_le());
                ptr.add(8).cast::<u32>().write_unaligned(second.to_le());
            }
        }
    }

    /// Copies bytes from `offset` on into `dst`; as many as both have. Returns how many.
    ///
    /// # Safety
    /// The guest memory this segment came from must still be alive.
    #[inline]
    pub(crate) unsafe fn copy_out(&self, offset: usize, dst: &mut [u8]) -> usize {
        let n = self.len().saturating_sub(offset).min(dst.len());
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped as the caller promises; `dst` is private memory,
            // so the two do not overlap. A guest that writes meanwhile garbles its own packet only.
            unsafe { copy(self.ptr.as_ptr().add(offset), dst.as_mut_ptr(), n) };
            settle(&mut dst[..n]);
        }
        n
    }

    /// Copies from `src` to the bytes from `offset` on; as many as both have. Returns how many.
    ///
    /// # Safety
    /// As for [`Segment::copy_out`].
    #[inline]
    pub(crate) unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> usize {
        let n = self.len().saturating_sub(offset).min(src.len());
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped as the caller promises; `src` is private memory.
            unsafe { copy(src.as_ptr(), self.ptr.as_ptr().add(offset), n) };
        }
        n
    }

    /// Copies `len` bytes from `offset` on to the bytes of `to` from `at` on; as many as both have.
    /// The two may be the same memory (a guest that sends to itself). Returns how many.
    ///
    /// # Safety
    /// As for [`Segment::copy_out`], for both.
    #[inline]
    pub(crate) unsafe fn copy_across(
        &self,
        offset: usize,
        to: &Segment,
        at: usize,
        len: usize,
    ) -> usize {
        let n = self.len().saturating_sub(offset);
        let n = n.min(to.len().saturating_sub(at)).min(len);
        if n > 0 {
            // SAFETY: in bounds of both, mapped as the caller promises. Guests that write meanwhile
            // garble this packet only.
            unsafe {
                std::ptr::copy(self.ptr.as_ptr().add(offset), to.ptr.as_ptr().add(at), n);
            }
        }
        n
    }
}
