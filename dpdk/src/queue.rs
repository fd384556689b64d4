//! Receive and transmit queues: what a worker polls.

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::burst::MbufBurst;
use crate::ffi;
use crate::port::Shared;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    Rx,
    Tx,
}

/// One receive queue. One thread at a time polls it; it may move between threads.
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<Shared>,
    queue: u16,
    _not_sync: PhantomData<Cell<()>>,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<Shared>, queue: u16) -> RxQueue {
        RxQueue {
            port,
            queue,
            _not_sync: PhantomData,
        }
    }

    /// Adds received packets to `out`, as many as are there and fit. Returns how many.
    ///
    /// A packet always lies in one buffer. A driver that chains buffers (memif, tap, pcap with
    /// packets longer than the pool's buffers) has its packets copied together where they fit the
    /// first buffer, and dropped where not; see [`crate::PortStats`] for both counts.
    #[inline]
    pub fn burst(&mut self, out: &mut MbufBurst) -> usize {
        let room = out.spare();
        let count = room.len() as u16;
        if count == 0 {
            return 0;
        }
        let (mut linearised, mut dropped) = (0_u64, 0_u64);
        // SAFETY: the port is started while a queue of it exists; this is the only RxQueue of the
        // queue, and `&mut self` the only caller. `room` takes `count` pointers.
        let received = unsafe {
            ffi::fv_rx_burst(
                self.port.id,
                self.queue,
                room.as_mut_ptr().cast(),
                count,
                &raw mut linearised,
                &raw mut dropped,
            )
        };
        if linearised | dropped != 0 {
            self.port
                .linearised
                .fetch_add(linearised, Ordering::Relaxed);
            self.port
                .segments_dropped
                .fetch_add(dropped, Ordering::Relaxed);
        }
        let received = usize::from(received).min(usize::from(count));
        // SAFETY: DPDK wrote `received` single-segment mbufs there that belong to us now.
        unsafe { out.grow(received) };
        received
    }

    /// The file descriptor that becomes readable when a packet arrives after [`RxQueue::arm`]; only
    /// for ports configured with interrupts, and drivers that have one for each queue.
    pub fn event_fd(&self) -> Option<RawFd> {
        // SAFETY: the port is started while a queue of it exists.
        let fd = unsafe { ffi::fv_rx_event_fd(self.port.id, self.queue) };
        Some(fd).filter(|fd| *fd >= 0)
    }

    /// Asks for an event; `false` when the device has none. Poll once more after this: a packet may
    /// have arrived before.
    pub fn arm(&mut self) -> bool {
        // SAFETY: as in `event_fd`.
        unsafe { ffi::fv_rx_event_arm(self.port.id, self.queue, 1) == 0 }
    }

    /// Asks for no more events.
    pub fn disarm(&mut self) {
        // SAFETY: as in `event_fd`. A device without interrupts refuses, and nothing is to be done.
        let _ = unsafe { ffi::fv_rx_event_arm(self.port.id, self.queue, 0) };
    }

    /// The queue's index.
    pub fn index(&self) -> u16 {
        self.queue
    }
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        self.port.give_back(Direction::Rx, self.queue);
    }
}

/// One transmit queue. One thread at a time uses it; it may move between threads.
#[derive(Debug)]
pub struct TxQueue {
    port: Arc<Shared>,
    queue: u16,
    _not_sync: PhantomData<Cell<()>>,
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Shared>, queue: u16) -> TxQueue {
        TxQueue {
            port,
            queue,
            _not_sync: PhantomData,
        }
    }

    /// Sends packets from the front of `packets`; those that the queue has no room for stay. Returns
    /// how many were taken.
    #[inline]
    pub fn burst(&mut self, packets: &mut MbufBurst) -> usize {
        let count = packets.len();
        if count == 0 {
            return 0;
        }
        // SAFETY: the port is started while a queue of it exists; this is the only TxQueue of the
        // queue, and `&mut self` the only caller. The first `count` pointers are mbufs we own.
        let sent =
            unsafe { ffi::fv_tx_burst(self.port.id, self.queue, packets.as_raw(), count as u16) };
        let sent = usize::from(sent).min(count);
        // Those belong to the driver now.
        packets.forget_front(sent);
        sent
    }

    /// The queue's index.
    pub fn index(&self) -> u16 {
        self.queue
    }
}

impl Drop for TxQueue {
    fn drop(&mut self) {
        self.port.give_back(Direction::Tx, self.queue);
    }
}
