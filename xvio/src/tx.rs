//! From the guest to us: bursts out of a transmit ring.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{CopyError, Counters, PartialCsum};

/// A guest's transmit ring.
#[derive(Debug)]
pub struct GuestTx {
    counters: Arc<Counters>,
}

/// The descriptor a guest kicks. It is an eventfd of the guest's: register a duplicate
/// (`fd.try_clone_to_owned()`) edge-triggered (`EPOLLET`), never read it, and replace it when the
/// generation changes.
#[derive(Clone, Copy, Debug)]
pub struct Kick<'a> {
    /// Changes with every change of the ring; the same generation means the same descriptor.
    pub generation: u64,
    /// The eventfd.
    pub fd: BorrowedFd<'a>,
}

impl GuestTx {
    /// Takes up to [`crate::BURST`] packets from the ring into `burst`; the number of them. The
    /// burst is completed first if it still holds packets.
    pub fn poll(&mut self, burst: &mut TxBurst) -> usize {
        self.complete(burst);
        0
    }

    /// Gives the descriptors back in one publish and notifies the guest unless it asked not to be.
    pub fn complete(&mut self, burst: &mut TxBurst) {
        burst.len = 0;
    }

    /// The descriptor the guest kicks when there is new work, if it gave one and the ring runs.
    pub fn kick(&mut self) -> Option<Kick<'_>> {
        None
    }

    /// Asks for kicks before parking. True when work arrived meanwhile (or the ring changed): poll
    /// again instead.
    pub fn arm(&mut self) -> bool {
        false
    }

    /// Asks for no more kicks (while polling).
    pub fn disarm(&mut self) {}

    /// True while the ring runs.
    pub fn ready(&self) -> bool {
        false
    }

    /// This ring's counters; readable by anybody, any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

/// Packets on their way from a guest. Reuse one per worker; it is large.
#[derive(Debug, Default)]
pub struct TxBurst {
    len: usize,
}

impl TxBurst {
    /// An empty burst.
    pub fn new() -> Self {
        Self::default()
    }

    /// Packets in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No packet in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Packet `index`; panics when there is no such packet.
    pub fn packet(&self, index: usize) -> TxPacket<'_> {
        assert!(index < self.len);
        TxPacket { _burst: self }
    }
}

/// One packet of a burst, without its virtio-net header.
#[derive(Clone, Copy, Debug)]
pub struct TxPacket<'a> {
    _burst: &'a TxBurst,
}

impl<'a> TxPacket<'a> {
    /// Bytes, at least 14.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        0
    }

    /// A private copy of the packet's first bytes (all of them up to 256): judge these.
    pub fn header(&self) -> &'a [u8] {
        &[]
    }

    /// The checksum the guest leaves to us; within the packet.
    pub fn csum(&self) -> Option<PartialCsum> {
        None
    }

    /// Copies the whole packet; `dst` must be exactly [`TxPacket::len`] bytes long. The first bytes
    /// come from the private copy, so what was judged is what is copied.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<(), CopyError> {
        let _ = dst;
        Ok(())
    }
}
