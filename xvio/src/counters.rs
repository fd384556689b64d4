//! Counters of one ring. One worker writes, anybody reads at any time; no lock and no atomic
//! read-modify-write on the packet path.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one ring has done since the backend started.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Count,)* }

        /// The values of [`Counters`] at one moment (each value by itself is exact).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CountersSnapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// All values now.
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Packets moved.
    packets,
    /// Their bytes, without the virtio-net header.
    bytes,
    /// Bursts that moved at least one packet.
    bursts,
    /// Interrupts sent to the guest (writes to its call eventfd).
    kicks,
    /// Interrupts the guest had asked not to get.
    suppressed,
    /// Packets lost because the guest had no buffers (to the guest).
    full,
    /// Packets lost because the ring was not running (to the guest).
    down,
    /// Packets longer than the guest's buffers can hold (to the guest).
    too_long,
    /// Frames shorter than an Ethernet header (from the guest).
    runt,
    /// Packets whose checksum request points outside of them (from the guest).
    bad_csum,
    /// Packets that want segmentation, which was not offered (from the guest).
    gso_not_offered,
    /// Packets in more pieces, or longer, than one packet may be (from the guest).
    oversize,
    /// Times the ring was stopped for what it contained.
    broken,
}

/// One counter: written by one thread, read by any.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `n`; only from the one thread that owns the ring, so a plain load and store suffice.
    pub(crate) fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(value, Ordering::Relaxed);
    }
}
