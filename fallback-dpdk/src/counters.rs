//! Counters: one writer each, relaxed, on cache lines of their own; readers add them up.
//!
//! The block of a port is written by the port's worker only. A drop is charged to the port that sent
//! the packet, except where the receiver is the cause (its ring is full, it is down, its device
//! refused): then it is charged to the receiver, in whose counters an operator looks for it.

use flow::{DropReason, PortId};
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer: adding is a plain load and store, no bus lock.
#[derive(Default, Debug)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one port, as its worker writes them.
#[derive(Default, Debug)]
#[repr(align(128))]
pub(crate) struct PortBlock {
    pub(crate) rx_packets: Count,
    pub(crate) rx_bytes: Count,
    pub(crate) tx_packets: Count,
    pub(crate) tx_bytes: Count,
    pub(crate) hits: Count,
    pub(crate) misses: Count,
    drops: [Count; DropReason::COUNT],
}

impl PortBlock {
    pub(crate) fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    pub(crate) fn read(&self) -> PortCounters {
        PortCounters {
            rx_packets: self.rx_packets.get(),
            rx_bytes: self.rx_bytes.get(),
            tx_packets: self.tx_packets.get(),
            tx_bytes: self.tx_bytes.get(),
            hits: self.hits.get(),
            misses: self.misses.get(),
            drops: std::array::from_fn(|n| self.drops[n].get()),
        }
    }
}

/// The counters of one worker, as it writes them.
#[derive(Default, Debug)]
#[repr(align(128))]
pub(crate) struct WorkerBlock {
    pub(crate) loops: Count,
    pub(crate) busy: Count,
    pub(crate) idle: Count,
    pub(crate) asleep: Count,
    pub(crate) sleeps: Count,
    pub(crate) handed_off: Count,
    pub(crate) recompiled: Count,
    pub(crate) flows: Count,
    pub(crate) evicted: Count,
    pub(crate) expired: Count,
    pub(crate) events_lost: Count,
    pub(crate) epoch: Count,
    pub(crate) panics: Count,
}

/// What a port did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets that came in at the port.
    pub rx_packets: u64,
    /// Their bytes, Ethernet header included, no frame check sequence.
    pub rx_bytes: u64,
    /// Packets that left through the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that came in and had a flow.
    pub hits: u64,
    /// Packets that came in and went through the router.
    pub misses: u64,
    /// Packets dropped on the way, indexed by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
}

impl PortCounters {
    /// The reasons that occurred, with their counts.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.drops[*reason as usize]))
            .filter(|(_, count)| *count > 0)
    }
}

/// What the data plane of the host did.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Each port, by number.
    pub ports: Vec<(PortId, PortCounters)>,
    /// All drops, of removed ports too, indexed by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
    /// Packets that had a flow.
    pub hits: u64,
    /// Packets that went through the router.
    pub misses: u64,
    /// Flows in the tables now.
    pub flows: usize,
    /// The most flows that fit.
    pub capacity: usize,
    /// Flows displaced by newer ones.
    pub evicted: u64,
    /// Flows that aged out.
    pub expired: u64,
    /// Packet buffers that are free.
    pub buffers_free: u32,
    /// Packet buffers in all.
    pub buffers: u32,
}

/// What one worker does.
#[derive(Clone, Debug)]
pub struct WorkerStats {
    /// The worker's number, from 0.
    pub index: usize,
    /// The processor it is pinned to.
    pub core: Option<usize>,
    /// The ports it serves.
    pub ports: Vec<PortId>,
    /// Turns of its loop.
    pub loops: u64,
    /// TSC cycles in turns that moved packets.
    pub busy_cycles: u64,
    /// TSC cycles in turns that found nothing.
    pub idle_cycles: u64,
    /// TSC cycles asleep.
    pub asleep_cycles: u64,
    /// TSC cycles in a second.
    pub cycles_hz: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// Packets passed on to other workers.
    pub handed_off: u64,
    /// Flows compiled again because the router had changed.
    pub recompiled: u64,
    /// Flows in its table.
    pub flows: usize,
    /// Events that the control side did not take in time.
    pub events_lost: u64,
    /// The epoch of the router it uses; 0 before the first.
    pub epoch: u64,
    /// How often it came upon a bug, forgot its flows and went on.
    pub panics: u64,
}
