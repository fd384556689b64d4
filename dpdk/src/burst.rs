//! Up to 32 packets that travel together.

use std::mem::MaybeUninit;

use crate::ffi;
use crate::mbuf::Mbuf;

/// Packets in a burst, at most.
pub const BURST: usize = 32;

/// A list of at most [`BURST`] packets without heap memory. Its array is what DPDK's burst functions
/// read and write: an [`Mbuf`] is exactly one mbuf pointer.
pub struct MbufBurst {
    // Invariant: the first `len` are initialised.
    mbufs: [MaybeUninit<Mbuf>; BURST],
    len: usize,
}

const _: () = assert!(
    size_of::<Mbuf>() == size_of::<*mut ffi::RteMbuf>()
        && size_of::<Option<Mbuf>>() == size_of::<Mbuf>()
);

impl MbufBurst {
    /// An empty burst.
    #[inline]
    pub const fn new() -> MbufBurst {
        MbufBurst {
            mbufs: [const { MaybeUninit::uninit() }; BURST],
            len: 0,
        }
    }

    /// Packets in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further packet fits.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len == BURST
    }

    /// Adds a packet at the end; gives it back when the burst is full.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        match self.mbufs.get_mut(self.len) {
            Some(place) => {
                place.write(mbuf);
                self.len += 1;
                Ok(())
            }
            None => Err(mbuf),
        }
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        // SAFETY: it was initialised, and is outside of `len` now, so it is taken once.
        Some(unsafe { self.mbufs[last].assume_init_read() })
    }

    /// The packets.
    #[inline]
    pub fn as_slice(&self) -> &[Mbuf] {
        // SAFETY: the first `len` are initialised; MaybeUninit<Mbuf> has Mbuf's layout.
        unsafe { std::slice::from_raw_parts(self.mbufs.as_ptr().cast(), self.len) }
    }

    /// The packets, to be changed.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [Mbuf] {
        // SAFETY: as in `as_slice`.
        unsafe { std::slice::from_raw_parts_mut(self.mbufs.as_mut_ptr().cast(), self.len) }
    }

    /// The packets, one after the other.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Mbuf> {
        self.as_slice().iter()
    }

    /// The packets, one after the other, to be changed.
    #[inline]
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Mbuf> {
        self.as_mut_slice().iter_mut()
    }

    /// Takes all packets out, first one first. Those not asked for are freed when the iterator is
    /// dropped.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_> {
        let end = std::mem::take(&mut self.len);
        Drain {
            burst: self,
            next: 0,
            end,
        }
    }

    /// Frees all packets, in one call.
    #[inline]
    pub fn clear(&mut self) {
        self.free_front(self.len);
    }

    /// Frees the first `n` packets (or all there are); the rest moves to the front.
    #[inline]
    pub fn free_front(&mut self, n: usize) {
        let n = n.min(self.len);
        if n > 0 {
            // SAFETY: the first n are initialised mbuf pointers; `forget_front` gives up their
            // ownership right after.
            unsafe { ffi::fv_mbuf_free_bulk(self.as_raw(), n as u32) };
            self.forget_front(n);
        }
    }

    /// The array as DPDK sees it.
    #[inline]
    pub(crate) fn as_raw(&mut self) -> *mut *mut ffi::RteMbuf {
        self.mbufs.as_mut_ptr().cast()
    }

    /// The places that are free.
    #[inline]
    pub(crate) fn spare(&mut self) -> &mut [MaybeUninit<Mbuf>] {
        &mut self.mbufs[self.len..]
    }

    /// Counts `n` more packets that were written to [`MbufBurst::spare`].
    ///
    /// # Safety
    /// The first `n` places of `spare` hold mbufs that now belong to the burst.
    #[inline]
    pub(crate) unsafe fn grow(&mut self, n: usize) {
        debug_assert!(self.len + n <= BURST);
        self.len += n;
    }

    /// Gives up the first `n` packets, which now belong to someone else; the rest moves to the
    /// front.
    #[inline]
    pub(crate) fn forget_front(&mut self, n: usize) {
        let n = n.min(self.len);
        let rest = self.len - n;
        if rest > 0 {
            let first = self.mbufs.as_mut_ptr();
            // SAFETY: both ranges are inside the array; the moved-from places are beyond `len` after
            // this or overwritten.
            unsafe { std::ptr::copy(first.add(n), first, rest) };
        }
        self.len = rest;
    }
}

impl Default for MbufBurst {
    fn default() -> Self {
        MbufBurst::new()
    }
}

impl Drop for MbufBurst {
    #[inline]
    fn drop(&mut self) {
        self.clear();
    }
}

impl std::fmt::Debug for MbufBurst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl std::ops::Index<usize> for MbufBurst {
    type Output = Mbuf;
    fn index(&self, index: usize) -> &Mbuf {
        &self.as_slice()[index]
    }
}

impl std::ops::IndexMut<usize> for MbufBurst {
    fn index_mut(&mut self, index: usize) -> &mut Mbuf {
        &mut self.as_mut_slice()[index]
    }
}

impl<'a> IntoIterator for &'a MbufBurst {
    type Item = &'a Mbuf;
    type IntoIter = std::slice::Iter<'a, Mbuf>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut MbufBurst {
    type Item = &'a mut Mbuf;
    type IntoIter = std::slice::IterMut<'a, Mbuf>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// See [`MbufBurst::drain`].
pub struct Drain<'a> {
    // Its `len` is 0 while this lives: leaking the iterator leaks packets and nothing worse.
    burst: &'a mut MbufBurst,
    next: usize,
    end: usize,
}

impl Iterator for Drain<'_> {
    type Item = Mbuf;

    #[inline]
    fn next(&mut self) -> Option<Mbuf> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: places next..end are initialised and are read once each.
        let mbuf = unsafe { self.burst.mbufs[self.next].assume_init_read() };
        self.next += 1;
        Some(mbuf)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    #[inline]
    fn drop(&mut self) {
        for mbuf in self.by_ref() {
            drop(mbuf);
        }
    }
}
