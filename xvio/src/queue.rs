//! One vring as the worker and the message thread share it: the gate, the running ring inside it,
//! and the descriptors that go with it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::Counters;
use crate::doorbell;
use crate::gate::Gate;
use crate::hooks::{DirtyLog, Inflight};
use crate::ring::{Broken, Chain, Ring, Used};
use crate::rx::Ahead;

/// An eventfd of the frontend's that we write to.
#[derive(Debug)]
pub(crate) struct Notifier(pub(crate) OwnedFd);

impl Notifier {
    /// Adds one to the eventfd; never waits.
    pub(crate) fn notify(&self) {
        doorbell::ring(self.0.as_fd());
    }
}

/// What is behind a ring's gate.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The ring, while it runs (or is broken: then nobody uses it until it is set up anew).
    pub(crate) running: Option<Running>,
    pub(crate) counters: Arc<Counters>,
}

/// A ring that was set up completely.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) ring: Ring,
    /// The buffers of a receive ring that were fetched and not yet used.
    pub(crate) ahead: Option<Box<Ahead>>,
    /// Told of every chain that is taken and given back.
    pub(crate) inflight: Option<Box<dyn Inflight>>,
    /// Told of every write to the guest's memory.
    pub(crate) dirty: Option<Arc<dyn DirtyLog>>,
    /// Accepted virtio features.
    pub(crate) features: u64,
    /// Length of the virtio-net header.
    pub(crate) header: usize,
    pub(crate) call: Option<Arc<Notifier>>,
    pub(crate) err: Option<Arc<Notifier>>,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) generation: u64,
    /// It contained what no driver makes; it is not touched any more.
    pub(crate) broken: bool,
}

/// One vring, shared between its worker and the message thread.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) gate: Arc<Gate<Slot>>,
    pub(crate) counters: Arc<Counters>,
    /// The ring runs and is not broken.
    pub(crate) ready: AtomicBool,
    /// The driver takes packets with partial checksums.
    pub(crate) guest_csum: AtomicBool,
    /// Changes whenever the ring does.
    pub(crate) generation: AtomicU64,
    /// Why it does not run although it should.
    reason: Mutex<Option<String>>,
    /// Wakes the message thread, which then tells everybody.
    alarm: Arc<EventFd>,
}

impl Queue {
    pub(crate) fn new(alarm: Arc<EventFd>) -> Self {
        let counters = Arc::new(Counters::default());
        Queue {
            gate: Arc::new(Gate::new(Slot {
                running: None,
                counters: Arc::clone(&counters),
            })),
            counters,
            ready: AtomicBool::new(false),
            guest_csum: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            reason: Mutex::new(None),
            alarm,
        }
    }

    /// Why the ring does not run although it should.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sets or clears the reason.
    pub(crate) fn set_reason(&self, reason: Option<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Stops this ring, from the worker's side, for what it contains. Once in a ring's life, so
    /// the lock, the text and the system calls do not matter.
    #[cold]
    pub(crate) fn break_ring(&self, running: &mut Running, why: Broken) {
        running.broken = true;
        // Lost memory reads as zeros, which look like many a mistake.
        let why = match running.ring.memory_lost() {
            true => Broken::MemoryLost,
            false => why,
        };
        self.ready.store(false, Ordering::Release);
        self.counters.broken.add(1);
        self.set_reason(Some(why.to_string()));
        if let Some(err) = &running.err {
            err.notify();
        }
        let _ = self.alarm.write(1);
    }
}

impl Running {
    /// Notes that chains were taken.
    #[inline]
    pub(crate) fn take(&mut self, chains: &[Chain]) {
        if let Some(inflight) = &mut self.inflight {
            for chain in chains {
                inflight.taken(chain);
            }
        }
    }

    /// Gives buffers back to the driver and notifies it as it wishes. `together`: nothing was
    /// written to them.
    pub(crate) fn give_back(&mut self, used: &[Used], together: bool, counters: &Counters) {
        if let Some(inflight) = &mut self.inflight {
            inflight.returning(used);
        }
        if let Some(dirty) = &self.dirty {
            // What is written is known before and told after.
            let places = self.ring.used_places(used);
            let wanted = self.ring.give_back(used, together);
            for (guest, len) in places.into_iter().flatten() {
                dirty.written(guest, len);
            }
            dirty.settled();
            self.notify(wanted, counters);
        } else {
            let wanted = self.ring.give_back(used, together);
            self.notify(wanted, counters);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.returned(self.ring.base());
        }
    }

    #[inline]
    fn notify(&self, wanted: Option<bool>, counters: &Counters) {
        match wanted {
            Some(true) => {
                if let Some(call) = &self.call {
                    call.notify();
                    counters.kicks.add(1);
                }
            }
            Some(false) => counters.suppressed.add(1),
            None => {}
        }
    }

    /// Asks for kicks; see [`Ring::arm`].
    pub(crate) fn arm(&mut self) -> bool {
        let work = self.ring.arm();
        self.log_wish();
        work
    }

    /// Asks for no kicks.
    pub(crate) fn disarm(&mut self) {
        self.ring.disarm();
        self.log_wish();
    }

    fn log_wish(&self) {
        if let Some(dirty) = &self.dirty {
            let (guest, len) = self.ring.wish_place();
            dirty.written(guest, len);
            dirty.settled();
        }
    }
}
