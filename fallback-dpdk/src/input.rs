//! The way into a worker: the receive sides of its ports.
//!
//! A burst of packets is taken into private buffers (a guest's memory is read once, and its
//! descriptors go back at once), parsed, and hashed. What comes out is the buffers and, for each, what
//! its headers say or why it is dropped.

use crate::bucket::Allowance;
use crate::counters::PortBlock;
use crate::relay::Far;
use crate::uplink_doorbell::UplinkDoorbell;
use crate::wake::Bed;
use dpdk::{BURST, Mbuf, MbufBurst, Mempool, RxQueue};
use flow::wire::{icmp, protocol, tcp, udp};
use flow::{DropReason, Parsed, PartialCsum, PortId};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use xvio::{GuestTx, TxBurst};

/// Without an interrupt or a doorbell a device is looked at this often, in milliseconds.
const TIMER_MS: u16 = 1;
/// A guest that connects, or changes its rings, is noticed within this time.
const CHANGES_MS: u16 = 20;

/// The transmit ring of a guest, and its kick as it is registered.
pub(crate) struct GuestQueue {
    tx: GuestTx,
    kick: Option<(u64, OwnedFd)>,
}

/// What wakes a sleeping worker when a device has a packet.
pub(crate) enum DeviceWake {
    /// Nothing: look again soon.
    Timer,
    /// The queue's interrupt.
    Interrupt(OwnedFd),
    /// A packet socket on the kernel interface behind the device.
    Doorbell(UplinkDoorbell),
}

/// A device's receive queue.
pub(crate) struct DeviceQueue {
    pub(crate) rx: RxQueue,
    pub(crate) wake: DeviceWake,
}

/// The receive side of a port.
pub(crate) enum Source {
    /// A guest's transmit rings.
    Vhost(Vec<GuestQueue>),
    /// A device's receive queue.
    Ethdev(DeviceQueue),
}

impl Source {
    pub(crate) fn vhost(rings: impl Iterator<Item = GuestTx>) -> Self {
        Source::Vhost(rings.map(|tx| GuestQueue { tx, kick: None }).collect())
    }

    /// How many queues there are to poll.
    pub(crate) fn queues(&self) -> usize {
        match self {
            Source::Vhost(queues) => queues.len(),
            Source::Ethdev(_) => 1,
        }
    }
}

/// A port as its worker polls it.
pub(crate) struct Input {
    pub(crate) id: PortId,
    pub(crate) source: Source,
    pub(crate) block: Arc<PortBlock>,
    pub(crate) allowance: Allowance,
    pub(crate) slow_path_rate: u32,
    /// The queue to look at first in the next turn.
    pub(crate) next_queue: usize,
    /// The device that a relayed guest's packets go to and come from, instead of the router.
    pub(crate) far: Option<Box<Far>>,
}

/// What is known of one packet of a burst.
pub(crate) type Judged = Result<Known, DropReason>;

/// A packet that has a key.
pub(crate) struct Known {
    pub(crate) parsed: Parsed,
    pub(crate) hash: u32,
    pub(crate) csum: Option<PartialCsum>,
}

/// A burst on its way through a worker. The memory is reused.
pub(crate) struct Burst {
    pub(crate) packets: MbufBurst,
    /// One for each packet.
    pub(crate) judged: Vec<Judged>,
    pub(crate) guest: Box<TxBurst>,
}

impl Burst {
    pub(crate) fn new() -> Self {
        Burst {
            packets: MbufBurst::new(),
            judged: Vec::with_capacity(BURST),
            guest: Box::new(TxBurst::new()),
        }
    }
}

impl Input {
    /// Whether this is the way to the other hosts.
    pub(crate) fn is_uplink(&self) -> bool {
        self.id == PortId::UPLINK
    }

    /// Takes a burst from one queue. Returns how many packets the queue gave, lost ones included.
    pub(crate) fn take(
        &mut self,
        queue: usize,
        pool: &Mempool,
        burst: &mut Burst,
        hash: impl Fn(&flow::FlowKey) -> u32,
    ) -> usize {
        burst.packets.clear();
        burst.judged.clear();
        let uplink = self.is_uplink();
        let (id, block) = (self.id, &self.block);
        let mut bytes = 0;
        let judge = |data: &[u8], csum: Option<PartialCsum>| -> Judged {
            let parsed = if uplink {
                flow::parse_tunnel(data, id)?
            } else {
                flow::parse(data, id)?
            };
            if csum.is_some_and(|csum| !covers_payload_only(&parsed, csum)) {
                return Err(DropReason::Malformed);
            }
            Ok(Known {
                hash: hash(&parsed.key),
                parsed,
                csum,
            })
        };
        let taken = match &mut self.source {
            Source::Ethdev(device) => {
                let taken = device.rx.burst(&mut burst.packets);
                for packet in &burst.packets {
                    bytes += packet.len() as u64;
                    burst.judged.push(judge(packet.data(), None));
                }
                taken
            }
            Source::Vhost(queues) => {
                let Some(queue) = queues.get_mut(queue) else {
                    return 0;
                };
                let Burst {
                    packets,
                    judged,
                    guest,
                } = burst;
                queue.take(pool, guest, packets, block, |mbuf, copied, csum| {
                    bytes += mbuf.len() as u64;
                    judged.push(copied.and_then(|()| judge(mbuf.data(), csum)));
                })
            }
        };
        if taken > 0 {
            block.rx_packets.add(taken as u64);
            block.rx_bytes.add(bytes);
        }
        taken
    }

    /// Gets ready for sleep: asks for kicks and interrupts. `Err` where there is work already,
    /// otherwise the longest time to sleep in milliseconds.
    pub(crate) fn arm(&mut self, bed: &Bed) -> Result<u16, AlreadyWork> {
        let mut most = u16::MAX;
        if let Some(far) = &mut self.far {
            for device in &mut far.rx {
                most = most.min(device.arm()?);
            }
        }
        match &mut self.source {
            Source::Vhost(queues) => {
                let mut longest = CHANGES_MS.min(most);
                for queue in queues {
                    longest = longest.min(queue.arm(bed)?);
                }
                Ok(longest)
            }
            Source::Ethdev(device) => device.arm(),
        }
    }

    /// Polls again: no more kicks.
    pub(crate) fn disarm(&mut self) {
        match &mut self.source {
            Source::Vhost(queues) => queues.iter_mut().for_each(|queue| queue.tx.disarm()),
            Source::Ethdev(device) => device.disarm(),
        }
        if let Some(far) = &mut self.far {
            far.rx.iter_mut().for_each(DeviceQueue::disarm);
        }
    }

    /// Makes the worker wake up for this port.
    pub(crate) fn enter(&mut self, bed: &Bed) {
        if let Source::Ethdev(device) = &mut self.source {
            device.enter(bed, self.id);
        }
        if let Some(far) = &mut self.far {
            far.enter(bed, self.id);
        }
    }

    /// The worker no longer wakes up for this port.
    pub(crate) fn leave(&mut self, bed: &Bed) {
        match &mut self.source {
            Source::Vhost(queues) => {
                for queue in queues {
                    queue.forget_kick(bed);
                }
            }
            Source::Ethdev(device) => device.leave(bed),
        }
        if let Some(far) = &mut self.far {
            far.leave(bed);
        }
    }
}

/// There is work: do not sleep.
#[derive(Debug)]
pub(crate) struct AlreadyWork;

impl DeviceQueue {
    /// Asks for an interrupt; the longest time to sleep, in milliseconds.
    fn arm(&mut self) -> Result<u16, AlreadyWork> {
        match &mut self.wake {
            DeviceWake::Timer => Ok(TIMER_MS),
            DeviceWake::Doorbell(doorbell) if doorbell.drain() => Ok(u16::MAX),
            DeviceWake::Doorbell(_) => Err(AlreadyWork),
            DeviceWake::Interrupt(_) => Ok(if self.rx.arm() { u16::MAX } else { TIMER_MS }),
        }
    }

    fn disarm(&mut self) {
        if matches!(self.wake, DeviceWake::Interrupt(_)) {
            self.rx.disarm();
        }
    }

    pub(crate) fn enter(&mut self, bed: &Bed, port: PortId) {
        let added = match &self.wake {
            DeviceWake::Timer => Ok(()),
            DeviceWake::Interrupt(fd) => bed.add(fd),
            DeviceWake::Doorbell(doorbell) => bed.add(doorbell),
        };
        if let Err(error) = added {
            tracing::warn!(%port, %error, "The port cannot wake its worker and is looked at every millisecond");
            self.wake = DeviceWake::Timer;
        }
    }

    pub(crate) fn leave(&mut self, bed: &Bed) {
        // Its descriptors stay open: it may enter another worker's set.
        match &self.wake {
            DeviceWake::Interrupt(fd) => bed.forget(fd),
            DeviceWake::Doorbell(doorbell) => bed.forget(doorbell),
            DeviceWake::Timer => {}
        }
    }
}

impl GuestQueue {
    /// Copies a burst out of the ring into buffers, and gives the descriptors back. `each` hears of
    /// every packet that has a buffer: whether it was copied whole, and the checksum that is left to
    /// us. Returns how many the ring gave, lost ones included.
    pub(crate) fn take(
        &mut self,
        pool: &Mempool,
        guest: &mut TxBurst,
        packets: &mut MbufBurst,
        block: &PortBlock,
        mut each: impl FnMut(&mut Mbuf, Result<(), DropReason>, Option<PartialCsum>),
    ) -> usize {
        let taken = self.tx.poll(guest);
        if taken == 0 {
            return 0;
        }
        if pool.alloc_burst(packets, taken) < taken {
            packets.clear();
            for _ in 0..taken {
                block.dropped(DropReason::NoBuffer);
            }
        }
        for (index, mbuf) in packets.iter_mut().enumerate() {
            let packet = guest.packet(index);
            let copied = mbuf
                .append(packet.len())
                .ok_or(DropReason::TooBig)
                .and_then(|to| packet.copy_to(to).map_err(|_| DropReason::Malformed));
            let csum = packet.csum().map(|csum| PartialCsum {
                start: usize::from(csum.start),
                offset: usize::from(csum.offset),
            });
            each(mbuf, copied, csum);
        }
        self.tx.complete(guest);
        taken
    }

    fn arm(&mut self, bed: &Bed) -> Result<u16, AlreadyWork> {
        let ready = self.tx.ready();
        let kickable = self.register(bed);
        if !ready {
            return Ok(CHANGES_MS);
        }
        if self.tx.arm() {
            return Err(AlreadyWork);
        }
        // A driver may run its ring without kicks: then it has to be polled.
        Ok(if kickable { CHANGES_MS } else { TIMER_MS })
    }

    /// Brings the epoll set up to date with the ring's kick.
    fn register(&mut self, bed: &Bed) -> bool {
        let now = self.tx.generation();
        if self.kick.as_ref().is_some_and(|(known, _)| *known == now) {
            return true;
        }
        self.forget_kick(bed);
        let Some(kick) = self.tx.kick() else {
            return false;
        };
        let generation = kick.generation;
        let own = kick.fd.try_clone_to_owned();
        match own.and_then(|fd| bed.add(&fd).map(|()| fd)) {
            Ok(fd) => {
                self.kick = Some((generation, fd));
                true
            }
            Err(_) => false,
        }
    }

    fn forget_kick(&mut self, bed: &Bed) {
        if let Some((_, fd)) = self.kick.take() {
            bed.remove(fd);
        }
    }
}

/// A descriptor of our own for the interrupt of a queue.
pub(crate) fn interrupt_of(rx: &RxQueue) -> Option<OwnedFd> {
    let fd = rx.event_fd()?;
    // SAFETY: the queue keeps its descriptor open while it lives, and it is borrowed here.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.as_fd().try_clone_to_owned().ok()
}

/// Whether filling this checksum in leaves what the packet was judged by as it is: it is the
/// transport header's own checksum, or lies behind the transport header. Any other would let a guest
/// have its addresses or ports rewritten after the anti-spoofing check.
fn covers_payload_only(parsed: &Parsed, csum: PartialCsum) -> bool {
    let own = match parsed.key.protocol {
        protocol::TCP => Some(tcp::CHECKSUM),
        protocol::UDP => Some(udp::CHECKSUM),
        protocol::ICMP | protocol::ICMPV6 => Some(icmp::CHECKSUM),
        _ => None,
    };
    let is_own = csum.start == parsed.l4
        && own == Some(csum.offset)
        && parsed.l4 + csum.offset + 2 <= parsed.payload;
    is_own || csum.start >= parsed.payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::wire::{EthernetRepr, Ipv4Repr, UdpRepr, ethertype};

    #[test]
    fn a_guest_cannot_have_its_headers_rewritten_by_a_checksum() {
        let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let repr = UdpRepr {
            src: std::net::IpAddr::V4(src),
            dst: std::net::IpAddr::V4(dst),
            src_port: 1,
            dst_port: 2,
        };
        let ip = Ipv4Repr::new(src, dst, protocol::UDP).emit(&repr.emit(&[0; 100]));
        let eth = EthernetRepr {
            dst: flow::MacAddr([2; 6]),
            src: flow::MacAddr([4; 6]),
            vlan: None,
            ethertype: ethertype::IPV4,
        };
        let frame = eth.emit(&ip);
        let parsed = flow::parse(&frame, PortId(1)).unwrap();
        let allowed = |start, offset| covers_payload_only(&parsed, PartialCsum { start, offset });
        assert!(allowed(34, 6), "the datagram's own");
        assert!(allowed(42, 20), "of something the datagram carries");
        for (start, offset) in [
            (14, 12),
            (14, 10),
            (14, 20),
            (34, 0),
            (34, 2),
            (30, 10),
            (34, 16),
            (41, 3),
        ] {
            assert!(!allowed(start, offset), "start {start} offset {offset}");
        }
    }
}
