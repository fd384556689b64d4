//! The device as the message thread sees it: what was negotiated, the memory table, and the set-up
//! of each vring. A ring runs when all of it is there; every change goes through the ring's gate.
//!
//! ```text
//!                SET_VRING_KICK            enabled, size, addresses,
//!   stopped ───────────────────▶ started ─────── memory, features ──────▶ running
//!      ▲                            │  ▲                                   │  │
//!      └────── GET_VRING_BASE ──────┘  └──────── disabled, or a part ──────┘  │
//!      ▲                                         is missing                   │
//!      └───── reset, GET_VRING_BASE, disable ◀── broken ◀──── bad content ────┘
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::features::{
    F_EVENT_IDX, F_GUEST_CSUM, F_IN_ORDER, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, F_RING_PACKED,
    header_len,
};
use crate::memory::GuestMemory;
use crate::queue::{Notifier, Queue, Running, Slot};
use crate::ring::{Direction, Ring as Vring, RingConfig};

/// What the frontend has said about the kick descriptor of a ring.
#[derive(Debug, Default)]
pub(crate) enum KickSetup {
    #[default]
    Unset,
    /// None: the device is to poll.
    Polling,
    Fd(Arc<OwnedFd>),
}

/// Addresses of a ring's parts in the frontend's address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

/// What the frontend has said about one ring, in any order.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    pub(crate) size: Option<u32>,
    pub(crate) addresses: Option<Addresses>,
    /// Where to go on. 32 bits, as the message has it (packed rings need them).
    pub(crate) base: u32,
    pub(crate) kick: KickSetup,
    pub(crate) call: Option<Arc<Notifier>>,
    pub(crate) err: Option<Arc<Notifier>>,
    pub(crate) enabled: bool,
}

/// One ring, control side.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) queue: Arc<Queue>,
    pub(crate) setup: Setup,
    /// Stopped for its content; stays so until the driver stops, disables or resets it.
    broken: bool,
    /// Even vrings receive (we write), odd ones transmit (virtio 1.2, 5.1.2).
    to_guest: bool,
}

/// The device behind one socket.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) rings: Vec<Ring>,
    pub(crate) memory: Arc<GuestMemory>,
    /// Accepted features, once SET_FEATURES came.
    pub(crate) features: Option<u64>,
    pub(crate) protocol: u64,
    /// The virtio device status the frontend has set.
    pub(crate) status: u8,
    /// Counts changes of the rings, so that the status is told even when it reads the same.
    pub(crate) changes: u64,
}

impl Device {
    pub(crate) fn new(rings: u16, alarm: &Arc<EventFd>) -> Self {
        let ring = |index: u16| Ring {
            queue: Arc::new(Queue::new(Arc::clone(alarm))),
            setup: Setup::default(),
            broken: false,
            to_guest: index.is_multiple_of(2),
        };
        Device {
            rings: (0..rings).map(ring).collect(),
            memory: Arc::default(),
            features: None,
            protocol: 0,
            status: 0,
            changes: 0,
        }
    }

    /// Changes a ring's set-up with the ring stopped, and lets it run again if it can.
    pub(crate) fn change(&mut self, index: usize, f: impl FnOnce(&mut Setup)) {
        let (features, memory) = (self.features, Arc::clone(&self.memory));
        if let Some(ring) = self.rings.get_mut(index) {
            ring.change(features, &memory, f);
            self.changes += 1;
        }
    }

    /// Replaces the memory table; every ring is resolved anew. When this returns, no worker uses
    /// the old mappings and they are gone.
    pub(crate) fn set_memory(&mut self, memory: GuestMemory) {
        let memory = Arc::new(memory);
        for ring in &mut self.rings {
            ring.change(self.features, &memory, |_| {});
        }
        self.memory = memory;
        self.changes += 1;
    }

    /// Accepts features; running rings go on under the new ones.
    pub(crate) fn set_features(&mut self, features: u64) {
        self.features = Some(features);
        for ring in &mut self.rings {
            ring.change(self.features, &self.memory, |_| {});
        }
        self.changes += 1;
    }

    /// Stops a ring; where it stopped.
    pub(crate) fn stop(&mut self, index: usize) -> u32 {
        self.change(index, |setup| setup.kick = KickSetup::Unset);
        self.rings.get_mut(index).map_or(0, |ring| {
            ring.forgive();
            ring.setup.base
        })
    }

    /// The driver has reset the device: every ring stops and forgets where it was. Interrupt
    /// descriptors stay: QEMU sets them once.
    pub(crate) fn reset_rings(&mut self) {
        for index in 0..self.rings.len() {
            self.change(index, |setup| {
                *setup = Setup {
                    call: setup.call.take(),
                    err: setup.err.take(),
                    ..Setup::default()
                };
            });
            self.rings[index].forgive();
        }
        self.status = 0;
    }

    /// The frontend is gone: everything it gave us goes too.
    pub(crate) fn disconnect(&mut self) {
        for index in 0..self.rings.len() {
            self.change(index, |setup| *setup = Setup::default());
            self.rings[index].forgive();
        }
        self.set_memory(GuestMemory::default());
        self.features = None;
        self.protocol = 0;
        self.status = 0;
    }

    /// Rings that run.
    pub(crate) fn ready(&self, index: usize) -> bool {
        let ready = |ring: &Ring| ring.queue.ready.load(Ordering::Acquire);
        self.rings.get(index).is_some_and(ready)
    }
}

impl Ring {
    /// Takes the ring away from its worker, changes the set-up, and gives a ring back when the
    /// set-up is complete.
    fn change(
        &mut self,
        features: Option<u64>,
        memory: &Arc<GuestMemory>,
        f: impl FnOnce(&mut Setup),
    ) {
        let queue = Arc::clone(&self.queue);
        let mut waited = 0u32;
        let mut closed = queue.gate.close(|| wait(&mut waited));
        let was_enabled = self.setup.enabled;
        if let Some(old) = closed.with(|slot| slot.running.take()) {
            self.setup.base = old.ring.base();
            self.broken |= old.broken;
        }
        f(&mut self.setup);
        if was_enabled && !self.setup.enabled {
            self.forgive();
        }
        let generation = queue.generation.load(Ordering::Relaxed) + 1;
        let running = match self.build(features, memory, generation) {
            Ok(running) => running,
            Err(reason) => {
                if self.queue.reason().as_ref() != Some(&reason) {
                    tracing::warn!(reason, "a ring cannot run");
                }
                self.queue.set_reason(Some(reason));
                None
            }
        };
        let ready = running.is_some();
        if ready {
            self.queue.set_reason(None);
        }
        closed.with(|slot: &mut Slot| slot.running = running);
        let guest_csum = features.unwrap_or(0) & F_GUEST_CSUM != 0;
        queue.guest_csum.store(guest_csum, Ordering::Release);
        queue.generation.store(generation, Ordering::Release);
        queue.ready.store(ready, Ordering::Release);
    }

    /// The ring as set up; `None` while something is missing, `Err` when it can never be right.
    fn build(
        &self,
        features: Option<u64>,
        memory: &Arc<GuestMemory>,
        generation: u64,
    ) -> Result<Option<Running>, String> {
        let setup = &self.setup;
        let (Some(features), Some(size), Some(at)) = (features, setup.size, setup.addresses) else {
            return Ok(None);
        };
        // Without protocol features there is no SET_VRING_ENABLE and every ring is enabled.
        let enabled = setup.enabled || features & F_PROTOCOL_FEATURES == 0;
        let kick = match &setup.kick {
            KickSetup::Unset => return Ok(None),
            KickSetup::Polling => None,
            KickSetup::Fd(fd) => Some(Arc::clone(fd)),
        };
        if !enabled || self.broken || memory.len() == 0 {
            return Ok(None);
        }
        let has = |feature: u64| features & feature != 0;
        let config = RingConfig {
            size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            base: setup.base,
            event_idx: has(F_EVENT_IDX),
            indirect: has(F_INDIRECT_DESC),
            in_order: has(F_IN_ORDER),
            packed: has(F_RING_PACKED),
            direction: match self.to_guest {
                true => Direction::Write,
                false => Direction::Read,
            },
        };
        let mut ring = Vring::new(Arc::clone(memory), &config).map_err(|e| e.to_string())?;
        if self.to_guest {
            // Nobody waits for receive buffers: a packet without one is dropped.
            ring.disarm();
        }
        Ok(Some(Running {
            ring,
            ahead: self.to_guest.then(Box::default),
            inflight: None,
            dirty: None,
            features,
            header: header_len(features),
            call: setup.call.clone(),
            err: setup.err.clone(),
            kick,
            generation,
            broken: false,
        }))
    }

    /// The driver has stopped the ring: a later start is a new try.
    fn forgive(&mut self) {
        self.broken = false;
        self.queue.set_reason(None);
    }
}

/// How the message thread waits for a worker inside the gate: a burst takes microseconds.
fn wait(times: &mut u32) {
    *times = times.saturating_add(1);
    match *times {
        0..64 => std::hint::spin_loop(),
        64..256 => std::thread::yield_now(),
        20_256 => {
            tracing::warn!(
                "a worker has held a ring for about a second; a burst was not completed"
            );
        }
        _ => std::thread::sleep(Duration::from_micros(50)),
    }
}
