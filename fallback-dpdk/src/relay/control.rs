//! The control side of relays: giving a guest's port a device, taking it back, looking at it.

use super::Far;
use crate::Error;
use crate::control::{Dataplane, Wake};
use crate::counters::{PortBlock, PortCounters};
use crate::input::{DeviceQueue, DeviceWake, interrupt_of};
use crate::message::Command;
use crate::uplink_doorbell::UplinkDoorbell;
use dpdk::PortConfig;
use flow::PortId;
use std::sync::Arc;

/// Ethernet header and two VLAN tags, before what the MTU counts.
const FRAME_OVERHEAD: usize = 14 + 8;

/// Buffers that a queue pair of a device may hold: its receive ring is full of them, and a device that
/// has stopped sending keeps those in its transmit ring.
fn held_by_a_queue(ring_size: u16) -> u32 {
    2 * u32::from(ring_size)
}

/// What the control side keeps of a relay.
pub(crate) struct Relayed {
    /// Dropped after its queues: it stops and closes the device.
    device: dpdk::Port,
    queues: u16,
    block: Arc<PortBlock>,
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
        let mut state = self.state();
        let record = state.ports.get(&id).ok_or(Error::NoSuchPort(id))?;
        if let Some(relay) = &record.relay {
            let device = relay.device.name().to_owned();
            return Err(Error::Relayed { port: id, device });
        }
        let pairs = record.queue_pairs.ok_or(Error::NotAGuest(id))?;
        let (most_rx, most_tx) = device.max_queues();
        let queue = held_by_a_queue(PortConfig::new(self.pool.clone()).ring_size);
        let relays = state.ports.values().filter_map(|port| port.relay.as_ref());
        let held: u32 = relays.map(|relay| u32::from(relay.queues)).sum();
        let left = (self.config.buffers / 2 / queue).saturating_sub(held);
        if left == 0 {
            return Err(Error::Buffers {
                port: id,
                device: device.name().to_owned(),
                queue,
                all: self.config.buffers,
            });
        }
        let left = u16::try_from(left).unwrap_or(u16::MAX);
        let queues = pairs.min(most_rx).min(most_tx).clamp(1, left);
        let wanted = wake.unwrap_or(Wake::Interrupt);
        self.bring_up(&device, queues, wanted == Wake::Interrupt)?;
        let far = Box::new(far(&device, queues, &wanted)?);
        let block = Arc::clone(&far.block);
        let owner = self.handle(record.worker)?;
        let refused = owner.ask(|reply| Command::Relay(id, Some(far), reply))?;
        if refused.is_some() {
            return Err(Error::NoSuchPort(id));
        }
        let relay = Relayed {
            device,
            queues,
            block,
        };
        if let Some(record) = state.ports.get_mut(&id) {
            record.relay = Some(relay);
        }
        Ok(())
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
        // Queues first, then the device.
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

/// The worker's part of a started device.
fn far(device: &dpdk::Port, queues: u16, wake: &Wake) -> Result<Far, Error> {
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
    Ok(Far::new(rx, tx, usize::from(device.mtu()) + FRAME_OVERHEAD))
}
