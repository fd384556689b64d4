//! One packet buffer.
//!
//! An [`Mbuf`] has one segment, one owner and its memory for itself. Its bytes lie in one piece:
//!
//! ```text
//! buf_addr                data_off          data_off+len           buf_len
//!    |      headroom         |     data()        |     tailroom       |
//! ```

use std::ptr::NonNull;

use crate::mempool::HEADROOM;
use crate::{
    Mempool,
    ffi::{self, RteMbuf},
};

/// A packet. Dropping it gives the buffer back to its pool.
///
/// The memory of a pool comes zeroed from the kernel and stays mapped for the program's life, so the
/// bytes that [`Mbuf::append`] and [`Mbuf::prepend`] add are initialised, but hold what an earlier
/// packet left there: write all of them before the packet goes out.
#[repr(transparent)]
pub struct Mbuf {
    raw: NonNull<RteMbuf>,
}

// SAFETY: an Mbuf is the only owner of its buffer, and DPDK frees buffers from any thread.
unsafe impl Send for Mbuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `raw` is a valid mbuf with one segment and reference count 1 that nobody else uses, and it is
    /// owned by the result.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<RteMbuf>) -> Mbuf {
        Mbuf { raw }
    }

    #[inline]
    fn head(&self) -> &RteMbuf {
        // SAFETY: valid by the invariant of `from_raw`; the layout is asserted in C and Rust.
        unsafe { self.raw.as_ref() }
    }

    #[inline]
    fn head_mut(&mut self) -> &mut RteMbuf {
        // SAFETY: as in `head`, and `&mut self` is the only access.
        unsafe { self.raw.as_mut() }
    }

    /// The packet's bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let head = self.head();
        // SAFETY: DPDK keeps data_off + data_len ≤ buf_len, and so does every method here; the
        // buffer is mapped and initialised (see the type's description).
        unsafe {
            std::slice::from_raw_parts(
                head.buf_addr.add(usize::from(head.data_off)),
                usize::from(head.data_len),
            )
        }
    }

    /// The packet's bytes, to be changed.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let head = self.head_mut();
        // SAFETY: as in `data`; the buffer has no other owner.
        unsafe {
            std::slice::from_raw_parts_mut(
                head.buf_addr.add(usize::from(head.data_off)),
                usize::from(head.data_len),
            )
        }
    }

    /// The packet's length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.head().data_len)
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Free bytes in front of the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.head().data_off)
    }

    /// Free bytes behind the packet.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let head = self.head();
        usize::from(head.buf_len)
            .saturating_sub(usize::from(head.data_off) + usize::from(head.data_len))
    }

    /// Makes the packet `n` bytes longer at the front and returns those bytes; `None`, and nothing
    /// changed, when the headroom is smaller.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() {
            return None;
        }
        // Cannot overflow: n ≤ data_off, and data_off + data_len ≤ buf_len stays as it is.
        let by = n as u16;
        let head = self.head_mut();
        head.data_off -= by;
        head.data_len += by;
        head.pkt_len = u32::from(head.data_len);
        self.data_mut().get_mut(..n)
    }

    /// Takes `n` bytes off the front; `false`, and nothing changed, when there are fewer.
    #[inline]
    #[must_use = "nothing was trimmed when this is false"]
    pub fn trim_front(&mut self, n: usize) -> bool {
        if n > self.len() {
            return false;
        }
        let by = n as u16;
        let head = self.head_mut();
        head.data_off += by;
        head.data_len -= by;
        head.pkt_len = u32::from(head.data_len);
        true
    }

    /// Makes the packet `n` bytes longer at the end and returns those bytes; `None`, and nothing
    /// changed, when the tailroom is smaller.
    #[inline]
    pub fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.tailroom() {
            return None;
        }
        let old = self.len();
        let head = self.head_mut();
        head.data_len += n as u16;
        head.pkt_len = u32::from(head.data_len);
        self.data_mut().get_mut(old..)
    }

    /// Cuts the packet to `n` bytes; does nothing when it is not longer.
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        if n < self.len() {
            let head = self.head_mut();
            head.data_len = n as u16;
            head.pkt_len = u32::from(head.data_len);
        }
    }

    /// Empties the packet and puts its start back behind a whole headroom, for another use of the
    /// buffer.
    #[inline]
    pub fn reset(&mut self) {
        let head = self.head_mut();
        head.data_off = HEADROOM.min(head.buf_len);
        head.data_len = 0;
        head.pkt_len = 0;
        head.ol_flags = 0;
    }

    /// A copy in a buffer of `pool`; `None` when the pool is empty or its buffers are too small.
    #[inline]
    pub fn try_clone(&self, pool: &Mempool) -> Option<Mbuf> {
        let mut copy = pool.alloc()?;
        copy.append(self.len())?.copy_from_slice(self.data());
        Some(copy)
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the only owner gives the buffer back, once.
        unsafe { ffi::fv_mbuf_free(self.raw.as_ptr()) }
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len())
            .field("headroom", &self.headroom())
            .field("tailroom", &self.tailroom())
            .finish()
    }
}
