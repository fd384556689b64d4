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

use crate::dirty::{Bitmap, Log};
use crate::features::{
    F_EVENT_IDX, F_GUEST_CSUM, F_IN_ORDER, F_INDIRECT_DESC, F_LOG_ALL, F_PROTOCOL_FEATURES,
    F_RING_PACKED, header_len,
};
use crate::hooks::{DirtyLog, Inflight};
use crate::inflight::Table;
use crate::memory::GuestMemory;
use crate::queue::{Notifier, Queue, Running, Slot};
use crate::ring::{Broken, DESCRIPTOR, Direction, Ring as Vring, RingConfig};

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
    /// Writes to the ring itself go into the dirty log.
    pub(crate) logged: bool,
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
    index: usize,
}

/// What all rings of a device have in common.
#[derive(Clone, Debug, Default)]
struct Common {
    /// Accepted features, once SET_FEATURES came.
    features: Option<u64>,
    memory: Arc<GuestMemory>,
    /// The dirty log of a migration, and whom to tell of it.
    log: Option<Arc<Bitmap>>,
    log_told: Option<Arc<Notifier>>,
    /// The in-flight table the frontend keeps.
    inflight: Option<Arc<Table>>,
}

/// The device behind one socket.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) rings: Vec<Ring>,
    common: Common,
    pub(crate) protocol: u64,
    /// The virtio device status the frontend has set.
    pub(crate) status: u8,
    /// Counts changes of the rings, so that the status is told even when it reads the same.
    pub(crate) changes: u64,
    /// The guest has moved here and does not say so itself: its MAC address.
    pub(crate) announce: Option<[u8; 6]>,
    /// Where requests of ours would go.
    pub(crate) backend_channel: Option<OwnedFd>,
}

impl Device {
    pub(crate) fn new(rings: u16, alarm: &Arc<EventFd>) -> Self {
        let ring = |index: u16| Ring {
            queue: Arc::new(Queue::new(Arc::clone(alarm))),
            setup: Setup::default(),
            broken: false,
            to_guest: index.is_multiple_of(2),
            index: index.into(),
        };
        Device {
            rings: (0..rings).map(ring).collect(),
            common: Common::default(),
            protocol: 0,
            status: 0,
            changes: 0,
            announce: None,
            backend_channel: None,
        }
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.common.memory
    }

    /// Accepted features, once SET_FEATURES came.
    pub(crate) fn features(&self) -> Option<u64> {
        self.common.features
    }

    /// Packed rings were negotiated.
    pub(crate) fn packed(&self) -> bool {
        self.common.features.unwrap_or(0) & F_RING_PACKED != 0
    }

    /// Changes a ring's set-up with the ring stopped, and lets it run again if it can.
    pub(crate) fn change(&mut self, index: usize, f: impl FnOnce(&mut Setup)) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.change(&self.common, f);
            self.changes += 1;
        }
    }

    /// Changes what all rings have in common; every ring is resolved anew. When this returns, no
    /// worker uses what was there before, and it is gone.
    fn change_all(&mut self, f: impl FnOnce(&mut Common)) {
        let mut common = self.common.clone();
        f(&mut common);
        for ring in &mut self.rings {
            ring.change(&common, |_| {});
        }
        self.common = common;
        self.changes += 1;
    }

    /// Replaces the memory table.
    pub(crate) fn set_memory(&mut self, memory: GuestMemory) {
        self.change_all(|common| common.memory = Arc::new(memory));
    }

    /// Accepts features; running rings go on under the new ones.
    pub(crate) fn set_features(&mut self, features: u64) {
        self.change_all(|common| common.features = Some(features));
    }

    /// Replaces the dirty log.
    pub(crate) fn set_log(&mut self, log: Arc<Bitmap>) {
        self.change_all(|common| common.log = Some(log));
    }

    /// Replaces the descriptor that is rung when the dirty log has grown.
    pub(crate) fn set_log_told(&mut self, told: Arc<Notifier>) {
        self.change_all(|common| common.log_told = Some(told));
    }

    /// Replaces the in-flight table.
    pub(crate) fn set_inflight(&mut self, table: Arc<Table>) {
        self.change_all(|common| common.inflight = Some(table));
    }

    /// Stops a ring; where it stopped.
    pub(crate) fn stop(&mut self, index: usize) -> u32 {
        self.change(index, |setup| setup.kick = KickSetup::Unset);
        let table = self.common.inflight.clone();
        let packed = self.packed();
        self.rings.get_mut(index).map_or(0, |ring| {
            ring.forgive();
            // Nothing is in flight in a ring that was stopped in order.
            if let (Some(table), Some(size)) = (table, ring.setup.size)
                && let Ok(record) = table.record(index, size, packed)
            {
                record.close();
            }
            ring.setup.base
        })
    }

    /// The driver has reset the device: every ring stops and forgets where it was. Interrupt
    /// descriptors stay: QEMU sets them once.
    pub(crate) fn reset_rings(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
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
        self.change_all(|common| *common = Common::default());
        self.protocol = 0;
        self.status = 0;
        self.announce = None;
        self.backend_channel = None;
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
    fn change(&mut self, common: &Common, f: impl FnOnce(&mut Setup)) {
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
        let running = match self.build(common, generation) {
            Ok(running) => running,
            Err(reason) => {
                self.queue.set_reason(Some(reason));
                None
            }
        };
        let ready = running.is_some();
        if ready {
            self.queue.set_reason(None);
        }
        closed.with(|slot: &mut Slot| slot.running = running);
        let guest_csum = common.features.unwrap_or(0) & F_GUEST_CSUM != 0;
        queue.guest_csum.store(guest_csum, Ordering::Release);
        queue.generation.store(generation, Ordering::Release);
        queue.ready.store(ready, Ordering::Release);
    }

    /// The ring as set up; `None` while something is missing, `Err` when it can never be right.
    fn build(&self, common: &Common, generation: u64) -> Result<Option<Running>, String> {
        let setup = &self.setup;
        let parts = (common.features, setup.size, setup.addresses);
        let (Some(features), Some(size), Some(at)) = parts else {
            return Ok(None);
        };
        let memory = &common.memory;
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
        let mut config = RingConfig {
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
        let inflight = match &common.inflight {
            Some(table) => Some(self.record(table, memory, &mut config)?),
            None => None,
        };
        let ring = Vring::new(Arc::clone(memory), &config).map_err(|e| e.to_string())?;
        let mut running = Running {
            ring,
            ahead: self.to_guest.then(Box::default),
            inflight,
            dirty: self.log(common, has(F_LOG_ALL)),
            features,
            header: header_len(features),
            call: setup.call.clone(),
            err: setup.err.clone(),
            kick,
            generation,
            broken: false,
        };
        if self.to_guest {
            // Nobody waits for receive buffers: a packet without one is dropped.
            running.disarm();
        }
        Ok(Some(running))
    }

    /// The ring's part of the in-flight table, brought in line with the ring; for a packed ring it
    /// says where to go on.
    fn record(
        &self,
        table: &Arc<Table>,
        memory: &GuestMemory,
        config: &mut RingConfig,
    ) -> Result<Box<dyn Inflight>, String> {
        let mut record = table.record(self.index, config.size, config.packed)?;
        let problem = |e: Broken| e.to_string();
        let size = config.size as usize;
        if config.packed {
            let length = DESCRIPTOR * size;
            let ring = RingConfig::area(memory, "descriptor ring", config.desc, length, 16);
            config.base = record.recover_packed(config.base, ring.map_err(problem)?);
        } else {
            let used = RingConfig::area(memory, "used ring", config.used, 4 + 8 * size, 4);
            let used = used.map_err(problem)?.load(2, Ordering::Acquire);
            let flying = record.recover_split(used);
            if !flying.is_empty() {
                tracing::debug!(vring = self.index, count = flying.len(), "in flight");
            }
        }
        Ok(Box::new(record))
    }

    /// The dirty log, if this ring's writes are to be in it. Writes to buffers and to the ring go
    /// there under the feature; under the flag alone more is marked than was asked for, which costs
    /// a page copied once more.
    fn log(&self, common: &Common, all: bool) -> Option<Arc<dyn DirtyLog>> {
        let wanted = all || self.setup.logged;
        let bitmap = common.log.as_ref().filter(|_| wanted)?;
        Some(Arc::new(Log {
            bitmap: Arc::clone(bitmap),
            told: common.log_told.clone(),
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
