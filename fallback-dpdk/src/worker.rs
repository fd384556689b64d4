//! A worker: one thread that polls its ports, looks flows up, executes them, and sleeps when there is
//! nothing to do.
//!
//! ```text
//!   ports ──burst──▶ parse ─▶ flow table ──hit──▶ execute ─▶ staged by output ──flush──▶ ports
//!     ▲                           │ miss                          ▲                 └──▶ other workers
//!     └── kicks, doorbells        └──▶ router ─▶ install ─────────┘
//! ```
//!
//! Everything a worker changes is its own: ports, flow table, staged packets. What it shares is
//! immutable (the router), written by one side (counters) or a ring with two ends. On the way of a
//! packet that has a flow there is no lock, no allocation, and no system call but the doorbell of a
//! receiver that asked for it.

use crate::bucket::{Allowance, TokenBucket};
use crate::config::Config;
use crate::counters::{PortBlock, WorkerBlock};
use crate::execute::execute;
use crate::fabric::{Fabric, Handoff};
use crate::idle::BackOff;
use crate::input::{Burst, Input, Known};
use crate::message::{Command, DumpSlice, Mailbox, PortParts};
use crate::record::{Event, FlowRecord};
use crate::ring::Consumer;
use crate::slow_path::keep_for_punt;
use crate::table::FlowTable;
use crate::wake::{Bed, Doorbell, Woken};
use dpdk::{BURST, Mbuf, Mempool, cycles};
use flow::PortId;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use vrouter::VRouter;

/// Slots of the flow table that a turn which moved packets looks at for ageing, at most.
const SWEEP_BUSY: u64 = 16;
/// The same for a turn with nothing else to do.
const SWEEP_IDLE: u64 = 4096;
/// Slots of one slice of a flow dump.
const DUMP_SLOTS: usize = 512;
/// Flows of a port that is leaving which are forgotten in one turn.
const PURGE: usize = 256;
/// The longest sleep, in milliseconds: ageing goes on.
const LONGEST_SLEEP_MS: u16 = 250;
/// Sleeps of one millisecond after an event: a doorbell hears of a packet before the device's driver
/// does, and on a loaded host the driver may be late by more than the worker polls on.
const RESTLESS: u8 = 3;
/// First packets a second that the guests of a worker may send together, in ceilings of one guest:
/// half of them shared out evenly, half for whoever asks.
const GUESTS_TOGETHER: u32 = 4;
/// How often unresolved next hops are told, a second, and how many at once.
const UNRESOLVED_RATE: u32 = 10;

/// What a worker is made of, made outside of its thread.
pub(crate) struct Setup {
    pub(crate) index: usize,
    pub(crate) config: Config,
    pub(crate) fabric: Fabric,
    pub(crate) inbound: Vec<Consumer<Handoff>>,
    pub(crate) mailbox: Mailbox,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) bed: Bed,
    pub(crate) block: Arc<WorkerBlock>,
    pub(crate) orphans: Arc<PortBlock>,
    pub(crate) events: SyncSender<Event>,
}

/// A port that is leaving: its flows are forgotten a few at a time.
pub(crate) struct Leaving {
    parts: Box<PortParts>,
    reply: SyncSender<Option<Box<PortParts>>>,
}

/// See the module's documentation.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) hz: u64,
    idle_ticks: u64,
    /// First packets a second of one guest.
    guest_rate: u32,
    /// What the guests' first packets have in common; see `bucket.rs`.
    spare: TokenBucket,
    pub(crate) pool: Mempool,
    pub(crate) table: FlowTable,
    pub(crate) fabric: Fabric,
    pub(crate) inputs: Vec<Input>,
    pub(crate) leaving: Vec<Leaving>,
    inbound: Vec<Consumer<Handoff>>,
    mailbox: Mailbox,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) bed: Bed,
    pub(crate) block: Arc<WorkerBlock>,
    pub(crate) orphans: Arc<PortBlock>,
    pub(crate) events: SyncSender<Event>,
    pub(crate) router: Option<Arc<VRouter>>,
    pub(crate) epoch: u64,
    pub(crate) unresolved: Arc<[IpAddr]>,
    pub(crate) tell_unresolved: TokenBucket,
    /// The packet that may stop with a punt, as it came in.
    pub(crate) original: Box<[u8]>,
    swept: u64,
    back_off: BackOff,
    /// So many sleeps are short: an event may run ahead of its packet.
    restless: u8,
}

impl Worker {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup {
            index,
            config,
            fabric,
            inbound,
            mailbox,
            doorbell,
            bed,
            block,
            orphans,
            events,
        } = setup;
        let (hz, now) = (dpdk::cycles_hz().max(1), cycles());
        let idle_ticks = u128::from(hz) * config.flow_idle.as_nanos() / 1_000_000_000;
        Worker {
            index,
            hz,
            idle_ticks: u64::try_from(idle_ticks).unwrap_or(u64::MAX).max(1),
            guest_rate: config.slow_path_rate,
            spare: common(config.slow_path_rate, hz, now),
            pool: fabric.pool.clone(),
            table: FlowTable::new(config.flow_capacity / config.workers.max(1)),
            fabric,
            inputs: Vec::new(),
            leaving: Vec::new(),
            inbound,
            mailbox,
            doorbell,
            bed,
            block,
            orphans,
            events,
            router: None,
            epoch: 0,
            unresolved: Arc::new([]),
            tell_unresolved: TokenBucket::new(UNRESOLVED_RATE, 1, hz, now),
            original: vec![0; usize::from(u16::MAX)].into(),
            swept: now,
            back_off: BackOff::new(hz, now),
            restless: 0,
        }
    }

    /// Works until it is told to stop.
    pub(crate) fn work(&mut self, burst: &mut Burst) {
        let mut turn_began = cycles();
        loop {
            if self.mailbox.has_mail() && !self.read_mail() {
                return;
            }
            let moved = self.turn(burst, turn_began);
            let now = cycles();
            self.sweep(now, moved > 0);
            self.block.loops.add(1);
            let spent = now.saturating_sub(turn_began);
            turn_began = now;
            if moved > 0 {
                self.block.busy.add(spent);
                self.back_off.worked(now);
            } else {
                self.block.idle.add(spent);
                if self.leaving.is_empty() && self.back_off.tired(now) {
                    self.sleep(burst, now);
                    turn_began = cycles();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// Polls everything once. Returns how many packets there were.
    fn turn(&mut self, burst: &mut Burst, now: u64) -> usize {
        let mut moved = 0;
        for slot in 0..self.inputs.len() {
            self.fabric.refresh(self.inputs[slot].id);
            moved += if self.inputs[slot].far.is_some() {
                self.relay(slot, burst)
            } else {
                self.serve_port(slot, burst, now)
            };
        }
        // Another worker polls a burst of each of its ports in a turn: as much is taken from it here,
        // so that its packets are not dropped for want of turns.
        moved + self.take_handed_off(BURST * self.inputs.len().max(1))
    }

    /// Sends what other workers handed over, at most so many of each.
    fn take_handed_off(&mut self, most: usize) -> usize {
        let mut moved = 0;
        for ring in &mut self.inbound {
            for _ in 0..most {
                let Some(item) = ring.pop() else { break };
                self.fabric.deliver(item, &self.orphans);
                moved += 1;
            }
        }
        if moved > 0 {
            self.fabric.flush();
        }
        moved
    }

    /// Whether a packet of this port may go through the router now.
    pub(crate) fn may_ask(&mut self, slot: usize, now: u64) -> bool {
        let input = &mut self.inputs[slot];
        input.allowance.take(&mut self.spare, now)
    }

    /// The certain share of each guest, after their number has changed.
    fn share_out(&mut self) {
        let now = cycles();
        let guests = self.inputs.iter().filter(|input| !input.is_uplink());
        let guests = u32::try_from(guests.count()).unwrap_or(u32::MAX).max(1);
        let together = self.guest_rate.saturating_mul(GUESTS_TOGETHER / 2);
        for input in &mut self.inputs {
            // The uplink brings all other hosts' packets and has its ceiling for itself.
            if !input.is_uplink() {
                let share = (together / guests).clamp(1, input.slow_path_rate.max(1));
                input.allowance.set_share(share, self.hz, now);
            }
        }
    }

    /// One burst of a port, from the first of its queues that has one, beginning behind the last: a guest
    /// with many queues gets no more turns than one with a single queue.
    fn serve_port(&mut self, slot: usize, burst: &mut Burst, now: u64) -> usize {
        let queues = self.inputs[slot].source.queues();
        let first = self.inputs[slot].next_queue;
        for queue in (first..queues).chain(0..first.min(queues)) {
            let taken = self.serve(slot, queue, burst, now);
            // A guest's queue of nothing but bad packets was work too, and its turn. (A device has one
            // queue: there it makes no difference.)
            if taken > 0 || burst.guest.worked() {
                self.inputs[slot].next_queue = (queue + 1) % queues;
                return taken;
            }
        }
        0
    }

    /// One burst of one queue, from its ring to the outputs.
    fn serve(&mut self, slot: usize, queue: usize, burst: &mut Burst, now: u64) -> usize {
        let table = &self.table;
        let input = &mut self.inputs[slot];
        let taken = input.take(queue, &self.fabric.pool, burst, |key| {
            let hash = table.hash(key);
            table.prefetch(hash);
            hash
        });
        if taken == 0 {
            return 0;
        }
        for known in burst.judged.iter().flatten() {
            table.prefetch_entry(known.hash);
        }
        let Burst {
            packets, judged, ..
        } = burst;
        for (packet, judged) in packets.drain().zip(judged.drain(..)) {
            match judged {
                Ok(known) => self.forward(slot, packet, &known, now),
                Err(reason) => self.inputs[slot].block.dropped(reason),
            }
        }
        self.fabric.flush();
        taken
    }

    fn forward(&mut self, slot: usize, packet: Mbuf, known: &Known, now: u64) {
        let Some(handle) = self.table.find(known.hash, &known.parsed.key) else {
            return self.miss(slot, packet, known, None, now);
        };
        if self.table.get(handle).epoch != self.epoch {
            return self.miss(slot, packet, known, Some(handle), now);
        }
        self.inputs[slot].block.hits.add(1);
        self.table.touch(handle, now, packet.len() as u64);
        let program = &self.table.get(handle).program;
        let block = &self.inputs[slot].block;
        let kept = keep_for_punt(program, &packet, known, known.csum, &mut self.original);
        let mut outputs = self.fabric.outputs(block, known.hash);
        let outcome = execute(
            program,
            packet,
            known.csum,
            &known.parsed,
            &self.pool,
            &mut outputs,
        );
        self.ended(slot, outcome, known, kept, now);
    }

    /// The input port in a slot.
    pub(crate) fn input(&mut self, slot: usize) -> &mut Input {
        &mut self.inputs[slot]
    }

    /// Reads all messages. False when the last one was to stop.
    fn read_mail(&mut self) -> bool {
        while let Some(command) = self.mailbox.take() {
            match command {
                Command::Publish(router, unresolved) => {
                    self.epoch = router.epoch();
                    self.block.epoch.set(self.epoch);
                    // The control side holds the old router too: nothing large is freed here.
                    self.router = Some(router);
                    self.unresolved = unresolved;
                }
                Command::Adopt(parts, reply) => {
                    self.adopt(*parts);
                    let _ = reply.send(());
                }
                Command::Route(port, worker, reply) => {
                    self.fabric.route(port, worker);
                    let _ = reply.send(());
                }
                Command::Release(port, reply) => self.release(port, reply),
                Command::Relay(port, far, reply) => {
                    let _ = reply.send(self.set_far(port, far));
                }
                Command::Inject(port, packet) => {
                    let orphans = Arc::clone(&self.orphans);
                    self.send_new(port, &packet, &orphans, 0);
                    self.fabric.flush();
                }
                Command::Dump {
                    from,
                    limit,
                    filter,
                    reply,
                } => {
                    let _ = reply.send(self.dump(from, limit, &filter));
                }
                Command::Lookup(key, reply) => {
                    let found = self.table.find(self.table.hash(&key), &key);
                    let record = found.map(|handle| self.record(self.table.get(handle)));
                    let _ = reply.send(record);
                }
                Command::Stop => return false,
                #[cfg(test)]
                Command::Panic(port) => {
                    let orphans = Arc::clone(&self.orphans);
                    self.send_new(port, &[0; 60], &orphans, 0);
                    panic!("a test asked for it");
                }
            }
        }
        true
    }

    fn record(&self, entry: &crate::table::Entry) -> FlowRecord {
        FlowRecord::new(entry, self.index, cycles(), self.hz)
    }

    fn dump(&self, from: usize, limit: usize, filter: &crate::record::FlowFilter) -> DumpSlice {
        let mut flows = Vec::new();
        let end = self.table.slots().min(from.saturating_add(DUMP_SLOTS));
        for slot in from..end {
            if flows.len() >= limit {
                return DumpSlice {
                    flows,
                    next: Some(slot),
                };
            }
            if let Some(entry) = self.table.at(slot)
                && filter.matches(&entry.key, &entry.program.actions)
            {
                flows.push(self.record(entry));
            }
        }
        DumpSlice {
            flows,
            next: (end < self.table.slots()).then_some(end),
        }
    }

    fn adopt(&mut self, parts: PortParts) {
        let PortParts {
            id,
            source,
            exit,
            block,
            slow_path_rate,
            far,
        } = parts;
        self.table.add_port(id);
        self.fabric.adopt(id, exit, Arc::clone(&block));
        let mut input = Input {
            id,
            source,
            block,
            allowance: Allowance::new(slow_path_rate, slow_path_rate, self.hz, cycles()),
            slow_path_rate,
            next_queue: 0,
            far,
        };
        input.enter(&self.bed);
        self.inputs.push(input);
        self.share_out();
    }

    fn release(&mut self, port: PortId, reply: SyncSender<Option<Box<PortParts>>>) {
        let Some(slot) = self.inputs.iter().position(|input| input.id == port) else {
            let _ = reply.send(None);
            return;
        };
        // What is still on its way to this port goes to it, and not to the next one of its number:
        // the other workers have let go of the port, so this is all there is.
        self.take_handed_off(usize::from(u16::MAX));
        let mut input = self.inputs.swap_remove(slot);
        input.leave(&self.bed);
        self.share_out();
        let Some(exit) = self.fabric.release(port) else {
            let _ = reply.send(None);
            return;
        };
        let Input {
            id,
            source,
            block,
            slow_path_rate,
            far,
            ..
        } = input;
        let parts = Box::new(PortParts {
            id,
            source,
            exit,
            block,
            slow_path_rate,
            far,
        });
        self.leaving.push(Leaving { parts, reply });
    }

    /// Ages the table: all of it in a quarter of the idle time, a few slots at a time.
    fn sweep(&mut self, now: u64, busy: bool) {
        if let Some(port) = self.leaving.last().map(|leaving| leaving.parts.id)
            && self.table.remove_port(port, PURGE)
            && let Some(Leaving { parts, reply }) = self.leaving.pop()
        {
            let _ = reply.send(Some(parts));
        }
        self.block.flows.set(self.table.len() as u64);
        self.block.evicted.set(self.table.evicted);
        let pace = (self.idle_ticks / 4 / (self.table.slots() as u64).max(1)).max(1);
        let due = now.saturating_sub(self.swept) / pace;
        if due == 0 {
            return;
        }
        let budget = due.min(if busy { SWEEP_BUSY } else { SWEEP_IDLE });
        // What could not be done in this turn stays due, but no more than one round of it.
        self.swept = (self.swept + budget * pace).max(now.saturating_sub(self.idle_ticks / 4));
        self.table.sweep(now, self.idle_ticks, budget as usize);
        self.block.flows.set(self.table.len() as u64);
        self.block.expired.set(self.table.expired);
    }

    fn sleep(&mut self, burst: &mut Burst, began: u64) {
        self.block.flows.set(self.table.len() as u64);
        self.doorbell.about_to_sleep();
        let mut longest = LONGEST_SLEEP_MS;
        let mut work = self.mailbox.has_mail() || self.inbound.iter().any(|ring| !ring.is_empty());
        for input in &mut self.inputs {
            match input.arm(&self.bed) {
                Ok(millis) => longest = longest.min(millis),
                Err(_) => work = true,
            }
        }
        // A packet may have come before its device was armed.
        work = work || self.turn(burst, began) > 0;
        if !work {
            if let Some(rest) = self.restless.checked_sub(1) {
                self.restless = rest;
                longest = longest.min(1);
            }
            let why = self.bed.sleep(longest);
            let now = cycles();
            if why == Woken::Event {
                self.restless = RESTLESS;
            }
            self.block.sleeps.add(1);
            self.block.asleep.add(now.saturating_sub(began));
            self.back_off.woke(why, now.saturating_sub(began), now);
        }
        self.doorbell.awake();
        for input in &mut self.inputs {
            input.disarm();
        }
    }
}

/// What a worker's guests share beyond their certain part.
fn common(guest_rate: u32, hz: u64, now: u64) -> TokenBucket {
    let rate = guest_rate.saturating_mul(GUESTS_TOGETHER / 2);
    TokenBucket::new(rate, (rate / 16).max(64), hz, now)
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
