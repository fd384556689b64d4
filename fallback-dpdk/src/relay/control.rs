//! The control side of relays: giving a guest's port a device, taking it back, looking at it.

use super::Far;
use crate::Error;
use crate::control::{Dataplane, State, Wake};
use crate::counters::{PortBlock, PortCounters};
use crate::input::{DeviceQueue, DeviceWake, interrupt_of};
use crate::message::Command;
use crate::uplink_doorbell::UplinkDoorbell;
use dpdk::{Mempool, PortConfig};
use flow::{DropReason, PortId};
use std::sync::Arc;

/// Ethernet header and two VLAN tags, before what the MTU counts.
const FRAME_OVERHEAD: usize = 14 + 8;

/// Buffers that a queue pair of a device may hold: its receive ring is full of them, and a device that
/// has stopped sending keeps those in its transmit ring.
fn held_by_a_queue(ring_size: u16) -> u32 {
    2 * u32::from(ring_size)
}

/// The longest MTU of an AF_XDP device here: a buffer with its headers fits half a page.
const XDP_MTU: u16 = 1500;
/// Payload bytes of its buffers: 2048 together with DPDK's 64 + 128 bytes of headers and 128 of headroom.
const XDP_ROOM: u16 = 2048 - 64 - 128 - dpdk::HEADROOM;
/// Its buffers: what the driver's two rings hold, and as many on their way.
const XDP_BUFFERS: u32 = 8192;

/// What the control side keeps of a relay.
pub(crate) struct Relayed {
    /// Dropped after its queues: it stops and closes the device.
    device: dpdk::Port,
    queues: u16,
    /// Its buffers are everybody's; otherwise it has a pool of its own.
    shares_buffers: bool,
    block: Arc<PortBlock>,
}

impl Relayed {
    /// What was dropped on the way to and from the device.
    pub(crate) fn drops(&self) -> [u64; DropReason::COUNT] {
        self.block.read().drops
    }
}

/// A port's relay, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// DPDK's name of the device: a PCI address, or the name of a virtual device.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// Queues in use each way.
    pub queues: u16,
    /// Whether it has a link.
    pub link: dpdk::Link,
    /// What went through it: `tx` is from the guest to the device, `rx` from the device to the guest.
    pub counters: PortCounters,
}

/// Queues that are counted as starting, until they are held or given up.
struct Reserved<'d> {
    plane: &'d Dataplane,
    queues: u16,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.plane.state();
        state.starting = state.starting.saturating_sub(self.queues.into());
    }
}

impl Dataplane {
    /// Relays a guest's port: from its next burst on, the guest's packets go to `device` and the
    /// device's to the guest, and none of them through the router. The device becomes the data plane's.
    /// It gets as many queues each way as the guest may have queue pairs and the device has, with the
    /// MTU it has, and is started. It gets fewer where the devices of all relays together could hold
    /// more than half of the buffers: a device that hangs takes those of its rings along.
    ///
    /// # Errors
    /// There is no such port, it is no guest's, it is relayed already, not even one queue has buffers
    /// enough, or DPDK refuses the device; it is closed then, and the port goes on as before.
    pub fn relay(&self, id: PortId, device: dpdk::Port, wake: Option<Wake>) -> Result<(), Error> {
        let mtu = device.mtu();
        self.relay_with(id, device, wake, mtu)
    }

    /// As [`Dataplane::relay`], with an MTU.
    ///
    /// # Errors
    /// As there, and the device cannot have that MTU.
    pub fn relay_with(
        &self,
        id: PortId,
        device: dpdk::Port,
        wake: Option<Wake>,
        mtu: u16,
    ) -> Result<(), Error> {
        // A device may take its time to start; nobody else waits for it meanwhile.
        let pool = self.pool_of(&device, mtu)?;
        let queues = self.queues_for(id, &device, pool.is_none())?;
        let mut reserved = Reserved {
            plane: self,
            queues: if pool.is_none() { queues } else { 0 },
        };
        let wanted = wake.unwrap_or(Wake::Interrupt);
        let config = PortConfig {
            mtu,
            rx_queues: queues,
            tx_queues: queues,
            rx_interrupts: wanted == Wake::Interrupt,
            // A VF may not have everybody's frames, and has no use for them.
            promiscuous: dpdk::pci_address(device.devargs()).is_none(),
            ..PortConfig::new(pool.as_ref().unwrap_or(&self.pool).clone())
        };
        self.bring_up(&device, config)?;
        check_mtu(&device, mtu)?;
        let far = Box::new(far(&device, queues, &wanted, mtu)?);
        let block = Arc::clone(&far.block);
        let mut state = self.state();
        let (_, worker) = self.relayable(&state, id)?;
        let refused = self
            .handle(worker)?
            .ask(|reply| Command::Relay(id, Some(far), reply))?;
        if refused.is_some() {
            return Err(Error::NoSuchPort(id));
        }
        let relay = Relayed {
            device,
            queues,
            shares_buffers: pool.is_none(),
            block,
        };
        // From here on the relay holds them.
        let held = std::mem::take(&mut reserved.queues);
        state.starting = state.starting.saturating_sub(held.into());
        if let Some(record) = state.ports.get_mut(&id) {
            record.relay = Some(relay);
        }
        Ok(())
    }

    /// The pool of a device that cannot do with everybody's. The kernel takes no buffer longer than a page for
    /// AF_XDP, and a whole pool for each device.
    fn pool_of(&self, device: &dpdk::Port, mtu: u16) -> Result<Option<Mempool>, Error> {
        if device.driver() != "net_af_xdp" {
            return Ok(None);
        }
        if mtu > XDP_MTU {
            return Err(Error::Mtu {
                device: device.name().to_owned(),
                wanted: mtu,
                most: XDP_MTU,
            });
        }
        let pool = Mempool::new(&self.eal, "af_xdp", XDP_BUFFERS, XDP_ROOM, None);
        pool.map(Some).map_err(|source| Error::Dpdk {
            what: format!("make the packet buffers of {}", device.name()),
            source,
        })
    }

    /// How many queues each way a device gets. Those that share the buffers are counted as starting.
    fn queues_for(
        &self,
        id: PortId,
        device: &dpdk::Port,
        shares_buffers: bool,
    ) -> Result<u16, Error> {
        let mut state = self.state();
        let (pairs, _) = self.relayable(&state, id)?;
        let (most_rx, most_tx) = device.max_queues();
        let wanted = pairs.min(most_rx).min(most_tx).max(1);
        if !shares_buffers {
            return Ok(wanted);
        }
        let queue = held_by_a_queue(PortConfig::new(self.pool.clone()).ring_size);
        let relays = state.ports.values().filter_map(|port| port.relay.as_ref());
        let sharing = relays.filter(|relay| relay.shares_buffers);
        let held: u32 = sharing.map(|relay| u32::from(relay.queues)).sum();
        // Others may be about to start theirs.
        let held = held + state.starting;
        let left = (self.config.buffers / 2 / queue).saturating_sub(held);
        if left == 0 {
            return Err(Error::Buffers {
                port: id,
                device: device.name().to_owned(),
                queue,
                all: self.config.buffers,
            });
        }
        let queues = wanted.min(u16::try_from(left).unwrap_or(u16::MAX));
        state.starting += u32::from(queues);
        Ok(queues)
    }

    /// Queue pairs and worker of a port that can be relayed.
    fn relayable(&self, state: &State, id: PortId) -> Result<(u16, usize), Error> {
        let record = state.ports.get(&id).ok_or(Error::NoSuchPort(id))?;
        if let Some(relay) = &record.relay {
            let device = relay.device.name().to_owned();
            return Err(Error::Relayed { port: id, device });
        }
        let pairs = record.queue_pairs.ok_or(Error::NotAGuest(id))?;
        Ok((pairs, record.worker))
    }

    /// Ends a port's relay: from its next burst on, its packets go through the router. When this
    /// returns the device is stopped and closed. Whether there was one.
    ///
    /// # Errors
    /// There is no such port, or its worker is gone.
    pub fn unrelay(&self, id: PortId) -> Result<bool, Error> {
        let mut state = self.state();
        let record = state.ports.get_mut(&id).ok_or(Error::NoSuchPort(id))?;
        let Some(relay) = record.relay.take() else {
            return Ok(false);
        };
        let queues = self
            .handle(record.worker)
            .and_then(|owner| owner.ask(|reply| Command::Relay(id, None, reply)));
        for (total, count) in record.gone_drops.iter_mut().zip(relay.drops()) {
            *total += count;
        }
        // Nobody waits for a device that takes its time to end. Queues first, then the device.
        drop(state);
        let done = queues.map(drop);
        drop(relay);
        done.map(|()| true)
    }

    /// A port's relay, where it has one.
    pub fn relayed(&self, id: PortId) -> Option<Relay> {
        let state = self.state();
        let relay = state.ports.get(&id)?.relay.as_ref()?;
        Some(Relay {
            device: relay.device.name().to_owned(),
            driver: relay.device.driver().to_owned(),
            queues: relay.queues,
            link: relay.device.link(),
            counters: relay.block.read(),
        })
    }
}

/// A device that was brought to less than the MTU would lose what is longer, and nobody would know why.
fn check_mtu(device: &dpdk::Port, wanted: u16) -> Result<(), Error> {
    let most = device.mtu();
    // This driver names the MTU of plain Ethernet and moves whatever fits its ring.
    if most >= wanted || device.driver() == "net_af_packet" {
        return Ok(());
    }
    Err(Error::Mtu {
        device: device.name().to_owned(),
        wanted,
        most,
    })
}

/// The worker's part of a started device.
fn far(device: &dpdk::Port, queues: u16, wake: &Wake, mtu: u16) -> Result<Far, Error> {
    let fail = |what: &str| {
        let what = format!("{what} of {}", device.name());
        move |source| Error::Dpdk { what, source }
    };
    let (mut rx, mut tx) = (Vec::new(), Vec::new());
    for queue in 0..queues {
        let queue_rx = device
            .rx_queue(queue)
            .map_err(fail("take a receive queue"))?;
        let wake = match wake {
            // One socket hears of the packets of all queues.
            Wake::Interface(interface) if queue == 0 => {
                DeviceWake::Doorbell(UplinkDoorbell::new(interface)?)
            }
            Wake::Interrupt => {
                interrupt_of(&queue_rx).map_or(DeviceWake::Timer, DeviceWake::Interrupt)
            }
            Wake::Interface(_) | Wake::Timer => DeviceWake::Timer,
        };
        rx.push(DeviceQueue { rx: queue_rx, wake });
        tx.push(
            device
                .tx_queue(queue)
                .map_err(fail("take a transmit queue"))?,
        );
    }
    Ok(Far::new(rx, tx, usize::from(mtu) + FRAME_OVERHEAD))
}
