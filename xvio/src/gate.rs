//! The gate between the worker that uses a ring and the message thread that changes it.
//!
//! ```text
//!              enter: 0 → BUSY                    close: |= CLOSED, then wait for !BUSY
//!   worker ────────────────────▶ inside     control ───────────────────────────▶ alone
//!          ◀────────────────────                    ◀───────────────────────────
//!              leave: &= !BUSY                    open: &= !CLOSED
//! ```
//!
//! One word holds both bits, so each side sees the other's in one atomic operation. A worker never
//! waits: a closed gate means "no ring now". The control side waits only for a worker that is
//! inside, which is for the length of one burst; a parked worker is outside. Once CLOSED is set no
//! worker can enter again, so the control side is not starved.
//!
//! Checked with loom in `tests/loom_gate.rs`.

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, Ordering},
};
use std::sync::Arc;
#[cfg(not(loom))]
use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, Ordering},
};

/// A worker is inside.
const BUSY: u32 = 1;
/// The control side has, or waits for, the value.
const CLOSED: u32 = 2;

/// A value that a worker may try to use and that the control side can always get.
#[derive(Debug)]
pub struct Gate<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time only: by the holder of BUSY or, with BUSY
// clear, by the holder of CLOSED. Acquire on taking and Release on giving back order the accesses.
unsafe impl<T: Send> Sync for Gate<T> {}
// SAFETY: moving the gate moves the value, which is Send.
unsafe impl<T: Send> Send for Gate<T> {}

impl<T> Gate<T> {
    /// An open gate around `value`.
    pub fn new(value: T) -> Self {
        Gate {
            state: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// The worker's way in: one compare-and-swap, never waits. `None` while the control side has
    /// the value (or another pass exists).
    pub fn enter(gate: &Arc<Self>) -> Option<Pass<T>> {
        gate.state
            .compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Pass {
                gate: Arc::clone(gate),
            })
    }

    /// The control side's way: no new pass is given, and this returns when the last one is back.
    /// `waiting` is called each time the worker was found inside (to yield, sleep or log).
    pub fn close(&self, mut waiting: impl FnMut()) -> Closed<'_, T> {
        // Only one control thread at a time; a second one waits for the first.
        while self.state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED != 0 {
            waiting();
        }
        while self.state.load(Ordering::Acquire) & BUSY != 0 {
            waiting();
        }
        Closed { gate: self }
    }
}

/// A worker is inside the gate: exclusive access until dropped.
#[derive(Debug)]
pub struct Pass<T> {
    gate: Arc<Gate<T>>,
}

impl<T> Pass<T> {
    /// Uses the value.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R {
        with_cell(&self.gate.value, f)
    }
}

impl<T> Drop for Pass<T> {
    fn drop(&mut self) {
        self.gate.state.fetch_and(!BUSY, Ordering::Release);
    }
}

/// The gate is closed and nobody is inside: exclusive access until dropped, which opens it.
#[derive(Debug)]
pub struct Closed<'a, T> {
    gate: &'a Gate<T>,
}

impl<T> Closed<'_, T> {
    /// Uses the value.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R {
        with_cell(&self.gate.value, f)
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        self.gate.state.fetch_and(!CLOSED, Ordering::Release);
    }
}

/// The one place where the cell is opened; callers hold BUSY or (CLOSED and not BUSY).
#[cfg(not(loom))]
#[inline]
fn with_cell<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(&mut T) -> R) -> R {
    // SAFETY: a `Pass` exists only while BUSY is its own (set from 0 by compare-and-swap), a
    // `Closed` only while CLOSED is its own and BUSY was seen clear after CLOSED was set (and BUSY
    // is only ever set from 0). Both take `&mut self`, so there is one `&mut T` at a time.
    f(unsafe { &mut *cell.get() })
}

#[cfg(loom)]
fn with_cell<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(&mut T) -> R) -> R {
    // SAFETY: as above; loom's cell panics when that reasoning is wrong.
    cell.with_mut(|value| f(unsafe { &mut *value }))
}
