//! From us to the guest: packets into a receive ring.

use std::sync::Arc;

use crate::{Counters, PartialCsum, SendError};

/// A guest's receive ring.
#[derive(Debug)]
pub struct GuestRx {
    counters: Arc<Counters>,
}

impl GuestRx {
    /// Writes one packet, the concatenation of `parts`, into the guest's buffers. The guest sees it
    /// with the next [`GuestRx::flush`]. With `csum`, the guest is told to treat the checksum as
    /// not filled in; if it cannot ([`GuestRx::guest_csum`]), it is filled in on the way.
    pub fn send(&mut self, parts: &[&[u8]], csum: Option<PartialCsum>) -> Result<(), SendError> {
        let _ = (parts, csum);
        Err(SendError::Down)
    }

    /// Publishes the packets sent since the last flush and notifies the guest unless it asked not
    /// to be. Call it before parking: until then the ring is held.
    pub fn flush(&mut self) {}

    /// The guest takes packets whose checksum is not filled in.
    pub fn guest_csum(&self) -> bool {
        false
    }

    /// True while the ring runs.
    pub fn ready(&self) -> bool {
        false
    }

    /// This ring's counters; readable by anybody, any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}
