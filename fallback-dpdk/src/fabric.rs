//! The way out of a worker: its ports' transmit sides, and the rings to the other workers.
//!
//! Packets are staged for each output and leave once a burst ([`Fabric::flush`]): one transmit call
//! for each device, one publish and at most one notification for each guest ring, one publish for
//! each other worker.

use crate::counters::{PortBlock, WorkerBlock};
use crate::execute::Outputs;
use crate::ring::Producer;
use crate::wake::Doorbell;
use dpdk::{Mbuf, MbufBurst, Mempool, TxQueue};
use flow::{DropReason, PartialCsum, PortId};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use xvio::{GuestRx, SendError};

/// How often a device is offered the rest of a burst before it is dropped.
const TX_ATTEMPTS: usize = 3;

/// A packet on its way to another worker's port.
pub(crate) struct Handoff {
    pub(crate) port: PortId,
    pub(crate) packet: Mbuf,
    pub(crate) csum: Option<PartialCsum>,
    pub(crate) hash: u32,
}

/// The way to another worker.
pub(crate) struct Link {
    pub(crate) ring: Producer<Handoff>,
    pub(crate) doorbell: Arc<Doorbell>,
}

/// The transmit side of a port.
pub(crate) enum Exit {
    /// A guest's receive rings.
    Vhost {
        /// One for each queue pair.
        rings: Vec<GuestRx>,
        /// Those that run, by index.
        active: Vec<u16>,
    },
    /// A device's transmit queue, with the packets of the present burst.
    Ethdev {
        /// The queue.
        queue: TxQueue,
        /// Not yet sent.
        staged: Box<MbufBurst>,
    },
}

impl Exit {
    /// Looks which rings of a guest run.
    pub(crate) fn refresh(&mut self) {
        if let Exit::Vhost { rings, active } = self {
            running(rings, active);
        }
    }
}

/// Which of the rings run.
fn running(rings: &[GuestRx], active: &mut Vec<u16>) {
    active.clear();
    let running = rings.iter().enumerate().filter(|(_, ring)| ring.ready());
    active.extend(running.map(|(index, _)| index as u16));
}

struct Output {
    exit: Exit,
    block: Arc<PortBlock>,
    /// There is something to flush.
    dirty: bool,
}

#[derive(Clone, Copy)]
enum Route {
    /// The port is ours, in this slot.
    Here(usize),
    /// Another worker has it.
    There(usize),
}

/// A hasher for small numbers that the agent hands out: one multiplication.
#[derive(Default)]
pub(crate) struct PortHasher(u64);

impl Hasher for PortHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}

/// See the module's documentation.
pub(crate) struct Fabric {
    pub(crate) pool: Mempool,
    routes: HashMap<PortId, Route, BuildHasherDefault<PortHasher>>,
    outputs: Vec<Option<Output>>,
    dirty: Vec<usize>,
    links: Vec<Option<Link>>,
    links_dirty: bool,
    stats: Arc<WorkerBlock>,
}

impl Fabric {
    /// `links` is indexed by worker; `None` for the worker itself.
    pub(crate) fn new(pool: Mempool, links: Vec<Option<Link>>, stats: Arc<WorkerBlock>) -> Self {
        Fabric {
            pool,
            routes: HashMap::default(),
            outputs: Vec::new(),
            dirty: Vec::new(),
            links,
            links_dirty: false,
            stats,
        }
    }

    /// Takes the transmit side of a port.
    pub(crate) fn adopt(&mut self, id: PortId, mut exit: Exit, block: Arc<PortBlock>) {
        exit.refresh();
        let output = Some(Output {
            exit,
            block,
            dirty: false,
        });
        let slot = match self.outputs.iter().position(Option::is_none) {
            Some(slot) => {
                self.outputs[slot] = output;
                slot
            }
            None => {
                self.outputs.push(output);
                self.outputs.len() - 1
            }
        };
        self.dirty.reserve(self.outputs.len());
        self.routes.insert(id, Route::Here(slot));
    }

    /// Gives the transmit side of a port back. Packets staged for it are dropped.
    pub(crate) fn release(&mut self, id: PortId) -> Option<Exit> {
        self.flush();
        let Some(Route::Here(slot)) = self.routes.get(&id).copied() else {
            return None;
        };
        self.routes.remove(&id);
        self.outputs.get_mut(slot)?.take().map(|output| output.exit)
    }

    /// Reaches a port through another worker from now on, or not at all.
    pub(crate) fn route(&mut self, id: PortId, worker: Option<usize>) {
        match worker {
            Some(worker) => self.routes.insert(id, Route::There(worker)),
            None => self.routes.remove(&id),
        };
    }

    /// Looks which rings of a port run.
    pub(crate) fn refresh(&mut self, id: PortId) {
        if let Some(Route::Here(slot)) = self.routes.get(&id)
            && let Some(Some(output)) = self.outputs.get_mut(*slot)
        {
            output.exit.refresh();
        }
    }

    /// How many rings of a guest of ours run.
    pub(crate) fn running_rings(&self, id: PortId) -> usize {
        let Some(Route::Here(slot)) = self.routes.get(&id) else {
            return 0;
        };
        match self.outputs.get(*slot) {
            Some(Some(Output {
                exit: Exit::Vhost { active, .. },
                ..
            })) => active.len(),
            _ => 0,
        }
    }

    /// The outputs of packets that came in at the port of `source`.
    pub(crate) fn outputs<'a>(&'a mut self, source: &'a PortBlock, hash: u32) -> Sending<'a> {
        Sending {
            fabric: self,
            source,
            hash,
        }
    }

    /// Sends a packet that came from another worker. It goes out here or nowhere.
    pub(crate) fn deliver(&mut self, item: Handoff, orphans: &PortBlock) {
        match self.routes.get(&item.port) {
            Some(Route::Here(_)) => {
                let Handoff {
                    port,
                    packet,
                    csum,
                    hash,
                } = item;
                self.outputs(orphans, hash).give(port, packet, csum);
            }
            _ => orphans.dropped(DropReason::NoSuchPort),
        }
    }

    /// After a panic, when nothing is known of what was staged: no ring stays held, no packet stays
    /// behind, and every output can be staged for again.
    pub(crate) fn recover(&mut self) {
        self.dirty.clear();
        for output in self.outputs.iter_mut().flatten() {
            output.dirty = false;
            match &mut output.exit {
                Exit::Vhost { rings, active } => {
                    rings.iter_mut().for_each(GuestRx::flush);
                    running(rings, active);
                }
                Exit::Ethdev { staged, .. } => staged.clear(),
            }
        }
        self.links_dirty = true;
        self.flush();
    }

    /// Sends everything staged. Call it after each burst.
    pub(crate) fn flush(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            let Some(Some(output)) = self.outputs.get_mut(slot) else {
                continue;
            };
            output.dirty = false;
            match &mut output.exit {
                Exit::Vhost { rings, active } => {
                    for index in active.iter() {
                        rings[usize::from(*index)].flush();
                    }
                }
                Exit::Ethdev { queue, staged } => transmit(queue, staged, &output.block),
            }
        }
        if std::mem::take(&mut self.links_dirty) {
            for link in self.links.iter_mut().flatten() {
                if link.ring.publish() {
                    link.doorbell.ring();
                }
            }
        }
    }

    fn stage(output: &mut Output, dirty: &mut Vec<usize>, slot: usize) {
        if !std::mem::replace(&mut output.dirty, true) {
            dirty.push(slot);
        }
    }
}

/// Offers the staged packets to the device; what it does not take is dropped.
pub(crate) fn transmit(queue: &mut TxQueue, staged: &mut MbufBurst, block: &PortBlock) {
    let bytes = |packets: &MbufBurst| {
        packets
            .iter()
            .map(|packet| packet.len() as u64)
            .sum::<u64>()
    };
    let (count, total) = (staged.len(), bytes(staged));
    for _ in 0..TX_ATTEMPTS {
        if staged.is_empty() {
            break;
        }
        queue.burst(staged);
    }
    block.tx_packets.add((count - staged.len()) as u64);
    block.tx_bytes.add(total - bytes(staged));
    for _ in 0..staged.len() {
        block.dropped(DropReason::TxRejected);
    }
    staged.clear();
}

/// The outputs of the packet that is being executed.
pub(crate) struct Sending<'a> {
    fabric: &'a mut Fabric,
    source: &'a PortBlock,
    hash: u32,
}

/// A packet to be sent: shared, or the output's to keep.
enum Sent<'p> {
    Copy(&'p Mbuf),
    Whole(Mbuf),
}

impl Sent<'_> {
    fn data(&self) -> &[u8] {
        match self {
            Sent::Copy(packet) => packet.data(),
            Sent::Whole(packet) => packet.data(),
        }
    }

    fn own(self, pool: &Mempool) -> Option<Mbuf> {
        match self {
            Sent::Copy(packet) => packet.try_clone(pool),
            Sent::Whole(packet) => Some(packet),
        }
    }
}

impl Sending<'_> {
    fn send(&mut self, port: PortId, packet: Sent<'_>, csum: Option<PartialCsum>) {
        let fabric = &mut *self.fabric;
        let slot = match fabric.routes.get(&port) {
            Some(Route::Here(slot)) => *slot,
            Some(Route::There(worker)) => {
                let worker = *worker;
                return self.hand_off(worker, port, packet, csum);
            }
            None => return self.source.dropped(DropReason::NoSuchPort),
        };
        let Some(Some(output)) = fabric.outputs.get_mut(slot) else {
            return self.source.dropped(DropReason::NoSuchPort);
        };
        match &mut output.exit {
            Exit::Vhost { rings, active } => {
                if active.is_empty() {
                    // Its rings may have started since this turn began.
                    running(rings, active);
                }
                let Some(index) = active.get(self.hash as usize % active.len().max(1)) else {
                    return output.block.dropped(DropReason::PortDown);
                };
                let ring = &mut rings[usize::from(*index)];
                let data = packet.data();
                match ring.send(&[data], csum.and_then(for_guest)) {
                    Ok(()) => {
                        output.block.tx_packets.add(1);
                        output.block.tx_bytes.add(data.len() as u64);
                    }
                    Err(SendError::Full) => output.block.dropped(DropReason::RingFull),
                    Err(SendError::Down) => output.block.dropped(DropReason::PortDown),
                    Err(SendError::TooLong) => output.block.dropped(DropReason::TooBig),
                }
            }
            Exit::Ethdev { queue, staged } => {
                let Some(mut packet) = packet.own(&fabric.pool) else {
                    return self.source.dropped(DropReason::NoBuffer);
                };
                if let Some(csum) = csum
                    && let Err(reason) = csum.fill(packet.data_mut())
                {
                    return self.source.dropped(reason);
                }
                if staged.is_full() {
                    transmit(queue, staged, &output.block);
                }
                if staged.push(packet).is_err() {
                    output.block.dropped(DropReason::TxRejected);
                }
            }
        }
        Fabric::stage(output, &mut fabric.dirty, slot);
    }

    fn hand_off(
        &mut self,
        worker: usize,
        port: PortId,
        packet: Sent<'_>,
        csum: Option<PartialCsum>,
    ) {
        let Some(Some(link)) = self.fabric.links.get_mut(worker) else {
            return self.source.dropped(DropReason::NoSuchPort);
        };
        let Some(packet) = packet.own(&self.fabric.pool) else {
            return self.source.dropped(DropReason::NoBuffer);
        };
        match link.ring.push(Handoff {
            port,
            packet,
            csum,
            hash: self.hash,
        }) {
            Ok(()) => {
                self.fabric.links_dirty = true;
                self.fabric.stats.handed_off.add(1);
            }
            Err(_) => self.source.dropped(DropReason::HandoffFull),
        }
    }
}

impl Outputs for Sending<'_> {
    fn copy(&mut self, port: PortId, packet: &Mbuf, csum: Option<PartialCsum>) {
        self.send(port, Sent::Copy(packet), csum);
    }

    fn give(&mut self, port: PortId, packet: Mbuf, csum: Option<PartialCsum>) {
        self.send(port, Sent::Whole(packet), csum);
    }
}

/// The same request in the ring's terms. Packets are shorter than 64 KiB.
fn for_guest(csum: PartialCsum) -> Option<xvio::PartialCsum> {
    let start = u16::try_from(csum.start).ok()?;
    Some(xvio::PartialCsum {
        start,
        offset: u16::try_from(csum.offset).ok()?,
    })
}
