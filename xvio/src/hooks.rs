//! What a ring tells others about: the chains it holds (for in-flight tracking) and what it writes
//! into the guest's memory (for dirty logging). Both are absent most of the time, and cost one
//! predictable branch a burst or packet then.

use std::fmt::Debug;

use crate::ring::{Chain, Used};

/// Keeps, outside of this process, which chains are with the device. Called inside the ring's
/// gate, by its worker; must not wait or allocate.
pub(crate) trait Inflight: Debug + Send {
    /// A chain was taken. On packed rings its descriptors are at `chain.at` and, `chain.slots` in
    /// all, after it; they are overwritten when it is given back.
    fn taken(&mut self, chain: &Chain);
    /// These chains, the oldest ones taken, are about to be given back: nothing is written yet.
    fn returning(&mut self, used: &[Used]);
    /// The driver sees them. `base` is where the ring goes on, as [`crate::ring::Ring::base`] has
    /// it.
    fn returned(&mut self, base: u32);
}

/// Notes which of the guest's pages were written. Called after the write, by any worker.
pub(crate) trait DirtyLog: Debug + Send + Sync {
    /// `len` bytes at guest address `guest` were written.
    fn written(&self, guest: u64, len: u64);
    /// All that belongs together was written: the frontend may be told, once.
    fn settled(&self);
}
