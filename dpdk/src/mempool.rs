//! Pools of packet buffers.
//!
//! An mbuf is one pointer and holds no reference to its pool, so the memory of a pool may not go
//! away under it. Hence a pool is never given back to DPDK: when the last handle of it is dropped,
//! it is put aside, and the next [`Mempool::new`] of the same shape gets it again once all its
//! buffers came home. A program that makes and drops pools does not grow.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::mbuf::Mbuf;
use crate::{Eal, Error, MbufBurst, ffi, log};

/// Bytes in front of a fresh packet, for headers to be put there (DPDK's `RTE_PKTMBUF_HEADROOM`).
pub const HEADROOM: u16 = 128;

/// Buffers that a registered thread keeps for itself at most.
const MOST_CACHED: u32 = 256;

static NEXT_NAME: AtomicU32 = AtomicU32::new(0);
static RETIRED: Mutex<Vec<Retired>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    count: u32,
    data_room: u16,
    numa: i32,
}

#[derive(Debug)]
struct Retired {
    pool: NonNull<ffi::RteMempool>,
    shape: Shape,
}

// SAFETY: a mempool may be used from any thread; see `Inner`.
unsafe impl Send for Retired {}

#[derive(Debug)]
struct Inner {
    pool: NonNull<ffi::RteMempool>,
    name: String,
    shape: Shape,
}

// SAFETY: DPDK's mempool functions are safe from any thread at once: registered threads use a cache
// that is their own (by lcore id), all others the multi-producer multi-consumer ring. The memory is
// never freed.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        RETIRED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Retired {
                pool: self.pool,
                shape: self.shape,
            });
    }
}

/// A pool of packet buffers, all of one size. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct Mempool {
    inner: Arc<Inner>,
}

impl Mempool {
    /// Makes a pool of `count` buffers that each hold `data_room` payload bytes after
    /// [`HEADROOM`] bytes of headroom, on NUMA node `numa` (any when `None`).
    ///
    /// A buffer costs about `data_room` + 330 bytes. Threads that are registered keep up to 1/16 of
    /// the pool (at most 256 buffers) in a cache each, so a pool should be well above what the
    /// queues hold.
    pub fn new(
        _eal: &Eal,
        name: &str,
        count: u32,
        data_room: u16,
        numa: Option<i32>,
    ) -> Result<Mempool, Error> {
        let shape = Shape {
            count,
            data_room,
            numa: numa.unwrap_or(-1),
        };
        let fail = |why: String| Error::Mempool {
            name: name.to_owned(),
            count,
            data_room,
            why,
        };
        if count == 0 || data_room == 0 {
            return Err(fail(
                "a pool needs at least one buffer of at least one byte".to_owned(),
            ));
        }
        if data_room > u16::MAX - HEADROOM {
            return Err(fail(format!(
                "the buffers may have {} bytes at most",
                u16::MAX - HEADROOM
            )));
        }
        if let Some(pool) = reuse(shape) {
            return Ok(Mempool {
                inner: Arc::new(Inner {
                    pool,
                    name: name.to_owned(),
                    shape,
                }),
            });
        }
        // DPDK wants 25 characters at most and no name twice, so it gets one of ours.
        let number = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
        let Ok(unique) = CString::new(format!("fv{number}")) else {
            return Err(Error::BadText(name.to_owned()));
        };
        let cache = (count / 16).min(MOST_CACHED);
        // SAFETY: an `Eal` exists, so the EAL runs; the name is NUL-terminated and copied by DPDK.
        let (pool, lines) = log::capture(|| unsafe {
            ffi::fv_pool_create(unique.as_ptr(), count, cache, data_room, shape.numa)
        });
        let Some(pool) = NonNull::new(pool) else {
            let code = ffi::errno();
            let mut why = log::reason(code, &lines);
            if code == libc::ENOMEM {
                let mb = (u64::from(count) * (u64::from(data_room) + 330)).div_ceil(1 << 20);
                why = format!(
                    "DPDK's memory has no room for about {mb} MB more; give it more (memory_mb) or make fewer buffers"
                );
            }
            return Err(fail(why));
        };
        Ok(Mempool {
            inner: Arc::new(Inner {
                pool,
                name: name.to_owned(),
                shape,
            }),
        })
    }

    /// One empty buffer, or `None` when the pool is empty.
    #[inline]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is valid for the program's life.
        let raw = unsafe { ffi::fv_mbuf_alloc(self.inner.pool.as_ptr()) };
        // SAFETY: a fresh mbuf has one segment, and nobody else has its pointer.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Adds `n` empty buffers to `out`, or as many as it has room for; none at all when the pool
    /// has fewer. Returns how many.
    #[inline]
    pub fn alloc_burst(&self, out: &mut MbufBurst, n: usize) -> usize {
        let room = out.spare();
        let n = n.min(room.len());
        // SAFETY: `room` has space for n pointers, and n ≤ 32; on success all n are written.
        let status = unsafe {
            ffi::fv_mbuf_alloc_bulk(self.inner.pool.as_ptr(), room.as_mut_ptr().cast(), n as u32)
        };
        if n == 0 || status != 0 {
            return 0;
        }
        // SAFETY: the call above initialised n mbufs after the present ones.
        unsafe { out.grow(n) };
        n
    }

    /// Buffers that are free, those in the caches of registered threads included. Counts: not for
    /// the packet path.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is valid for the program's life.
        unsafe { ffi::fv_pool_available(self.inner.pool.as_ptr()) }
    }

    /// How many buffers the pool was made with.
    pub fn size(&self) -> u32 {
        self.inner.shape.count
    }

    /// Payload bytes of one buffer (the headroom is on top).
    pub fn data_room(&self) -> u16 {
        self.inner.shape.data_room
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::RteMempool {
        self.inner.pool.as_ptr()
    }
}

fn reuse(shape: Shape) -> Option<NonNull<ffi::RteMempool>> {
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    let index = retired.iter().position(|old| {
        // SAFETY: a pool is valid for the program's life.
        old.shape == shape && unsafe { ffi::fv_pool_available(old.pool.as_ptr()) } == shape.count
    })?;
    Some(retired.swap_remove(index).pool)
}
