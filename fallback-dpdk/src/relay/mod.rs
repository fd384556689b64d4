//! A relayed port: a guest whose packets go to and from a device of its own, usually a VF, and not
//! through the router. The NIC switches; the worker only carries.
//!
//! ```text
//!   guest's transmit ring q ──copy──▶ mbuf, checksum filled in ──▶ device queue q mod n
//!   guest's receive ring  ◀──copy──── mbuf ◀── device queue q (RSS: ring q; otherwise by flow)
//! ```
//!
//! A port is switched between its device and the router between two bursts, by one message
//! ([`Dataplane::relay`](crate::Dataplane::relay)). The guest's rings stay as they are, so it notices nothing:
//! a device that is lost is a switch to the router, its return a switch back. What other ports of this
//! host send to the guest reaches it either way, since the way out to its rings is the same.
//!
//! Packets of one flow keep their order: a device queue is served by one worker, and a flow keeps to
//! one queue and one ring.

mod control;

pub use control::Relay;
pub(crate) use control::Relayed;

use crate::counters::PortBlock;
use crate::fabric::transmit;
use crate::input::{Burst, DeviceQueue, Source};
use crate::wake::Bed;
use crate::worker::Worker;
use dpdk::{Mbuf, MbufBurst, TxQueue};
use flow::{DropReason, PortId};
use std::sync::Arc;

/// A device's transmit queue, with the packets of the present burst.
pub(crate) struct FarOutput {
    queue: TxQueue,
    staged: Box<MbufBurst>,
}

/// The device behind a relayed guest.
pub(crate) struct Far {
    pub(crate) rx: Vec<DeviceQueue>,
    tx: Vec<FarOutput>,
    /// The receive queue to look at first in the next turn.
    next: usize,
    /// The longest frame the device sends, bytes, with the Ethernet header.
    longest: usize,
    /// What went through the device: `tx` is towards it.
    pub(crate) block: Arc<PortBlock>,
}

impl Far {
    /// Of a device's queues; `longest` is the longest frame it sends.
    pub(crate) fn new(rx: Vec<DeviceQueue>, tx: Vec<TxQueue>, longest: usize) -> Far {
        let staged = |queue| FarOutput {
            queue,
            staged: Box::new(MbufBurst::new()),
        };
        Far {
            rx,
            tx: tx.into_iter().map(staged).collect(),
            next: 0,
            longest,
            block: Arc::default(),
        }
    }

    pub(crate) fn enter(&mut self, bed: &Bed, port: PortId) {
        for device in &mut self.rx {
            device.enter(bed, port);
        }
    }

    pub(crate) fn leave(&mut self, bed: &Bed) {
        for device in &mut self.rx {
            device.leave(bed);
        }
    }

    /// After a panic: packets that were staged are lost.
    pub(crate) fn forget_staged(&mut self) {
        for output in &mut self.tx {
            output.staged.clear();
        }
    }
}

impl Worker {
    /// Relays a port to another device, or no longer. What was there before comes back, with nothing
    /// staged; the new device where there is no such port.
    pub(crate) fn set_far(&mut self, port: PortId, far: Option<Box<Far>>) -> Option<Box<Far>> {
        let Some(input) = self.inputs.iter_mut().find(|input| input.id == port) else {
            return far;
        };
        let mut old = std::mem::replace(&mut input.far, far);
        if let Some(old) = &mut old {
            old.leave(&self.bed);
        }
        if let Some(far) = &mut input.far {
            far.enter(&self.bed, port);
        }
        old
    }

    /// One turn of a relayed port: a burst each way. Returns how many packets there were.
    pub(crate) fn relay(&mut self, slot: usize, burst: &mut Burst) -> usize {
        self.relay_out(slot, burst) + self.relay_in(slot, burst)
    }

    /// One burst of the guest, from the first of its rings that has one, beginning behind the last.
    fn relay_out(&mut self, slot: usize, burst: &mut Burst) -> usize {
        let input = &mut self.inputs[slot];
        let (Source::Vhost(queues), Some(far)) = (&mut input.source, &mut input.far) else {
            return 0;
        };
        let (count, first) = (queues.len(), input.next_queue);
        for index in (first..count).chain(0..first.min(count)) {
            let (mut bytes, mut place, mut bad) = (0, 0, [None; dpdk::BURST]);
            burst.packets.clear();
            let (packets, guest) = (&mut burst.packets, &mut burst.guest);
            let taken = queues[index].take(
                &self.pool,
                guest,
                packets,
                &input.block,
                |mbuf, copied, csum| {
                    bytes += mbuf.len() as u64;
                    let whole = copied.and_then(|()| {
                        if mbuf.len() > far.longest {
                            return Err(DropReason::TooBig);
                        }
                        csum.map_or(Ok(()), |csum| csum.fill(mbuf.data_mut()))
                    });
                    bad[place] = whole.err();
                    place += 1;
                },
            );
            if taken == 0 && !guest.worked() {
                continue;
            }
            input.next_queue = (index + 1) % count;
            if taken == 0 {
                // Nothing but bad packets: that was work too, and this guest's turn.
                return 0;
            }
            input.block.rx_packets.add(taken as u64);
            input.block.rx_bytes.add(bytes);
            let outputs = far.tx.len().max(1);
            let Some(output) = far.tx.get_mut(index % outputs) else {
                return taken;
            };
            for (packet, bad) in burst.packets.drain().zip(bad) {
                match bad {
                    Some(reason) => input.block.dropped(reason),
                    // The stage is empty and holds a burst.
                    None if output.staged.push(packet).is_err() => {
                        input.block.dropped(DropReason::TxRejected);
                    }
                    None => {}
                }
            }
            transmit(&mut output.queue, &mut output.staged, &far.block);
            return taken;
        }
        0
    }

    /// One burst of the device, from the first of its queues that has one.
    fn relay_in(&mut self, slot: usize, burst: &mut Burst) -> usize {
        let input = &mut self.inputs[slot];
        let Some(far) = &mut input.far else { return 0 };
        burst.packets.clear();
        let (count, first) = (far.rx.len(), far.next);
        let found = (first..count).chain(0..first).find_map(|queue| {
            let taken = far.rx[queue].rx.burst(&mut burst.packets);
            (taken > 0).then_some((queue, taken))
        });
        let Some((queue, taken)) = found else {
            return 0;
        };
        far.next = (queue + 1) % count;
        let rings = self.fabric.running_rings(input.id);
        let mut bytes = 0;
        for packet in burst.packets.drain() {
            bytes += packet.len() as u64;
            let hash = if rings <= 1 || count >= rings {
                // The NIC spread the flows over as many queues.
                queue as u32
            } else {
                spread(&packet, input.id, |key| self.table.hash(key))
            };
            let mut out = self.fabric.outputs(&far.block, hash);
            crate::execute::Outputs::give(&mut out, input.id, packet, None);
        }
        far.block.rx_packets.add(taken as u64);
        far.block.rx_bytes.add(bytes);
        self.fabric.flush();
        taken
    }
}

/// A number that all packets of a flow share; what has no flow (ARP) shares one.
fn spread(packet: &Mbuf, port: PortId, hash: impl Fn(&flow::FlowKey) -> u32) -> u32 {
    flow::parse(packet.data(), port).map_or(0, |parsed| hash(&parsed.key))
}
