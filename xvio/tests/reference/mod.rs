//! A vhost-user network device as simple as it can be, on `vhost-user-backend` and `virtio-queue`: it
//! waits for a kick, takes one packet at a time, and sends it back with its MAC addresses swapped.
//! Nothing in it is shared with `xvio`, so where the two disagree one of them is wrong.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// The virtio-net header with `num_buffers`.
const HEADER: usize = 12;
/// Where `num_buffers` is in it.
const BUFFERS: usize = 10;
const MRG_RXBUF: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;

type Memory = GuestMemoryMmap<()>;
type Vring = VringRwLock<GuestMemoryAtomic<Memory>>;

/// The device.
#[derive(Debug)]
pub struct Reference {
    pairs: usize,
    memory: GuestMemoryAtomic<Memory>,
    features: u64,
}

/// Serves one frontend after the other on a new socket, for ever.
pub fn serve(socket: &Path, pairs: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut listener = Listener::new(socket, true)?;
    loop {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let device = Arc::new(Mutex::new(Reference {
            pairs,
            memory: memory.clone(),
            features: 0,
        }));
        let mut daemon = VhostUserDaemon::new("reference".to_owned(), device, memory)
            .map_err(|e| e.to_string())?;
        daemon.start(&mut listener).map_err(|e| e.to_string())?;
        // A frontend that goes in the middle of a message is no reason to end.
        let _ = daemon.wait();
    }
}

impl VhostUserBackendMut for Reference {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2 * self.pairs
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        const PROTOCOL_FEATURES: u64 = 1 << 30;
        1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
            | 1 << virtio_net::VIRTIO_NET_F_MQ
            | MRG_RXBUF
            | PROTOCOL_FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        self.features = features;
    }

    fn protocol_features(&self) -> Protocol {
        Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        // Even vrings receive: new buffers there are used when the next packet comes.
        let index = usize::from(event);
        if index.is_multiple_of(2) {
            return Ok(());
        }
        let (Some(from), Some(to)) = (vrings.get(index), vrings.get(index - 1)) else {
            return Ok(());
        };
        loop {
            from.disable_notification().map_err(io::Error::other)?;
            self.transmit(from, to)?;
            if !from.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl Reference {
    /// Takes all packets there are.
    fn transmit(&self, from: &Vring, to: &Vring) -> io::Result<()> {
        let memory = self.memory.memory();
        loop {
            let chain = from
                .get_mut()
                .get_queue_mut()
                .pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { return Ok(()) };
            let head = chain.head_index();
            let mut packet = Vec::new();
            let reader = chain.reader(&memory).map_err(io::Error::other);
            reader?.read_to_end(&mut packet)?;
            if packet.len() >= HEADER + 14 {
                packet.drain(..HEADER);
                let (destination, rest) = packet.split_at_mut(6);
                destination.swap_with_slice(&mut rest[..6]);
                self.receive(&memory, to, &packet)?;
            }
            give_back(from, head, 0)?;
        }
    }

    /// Sends a packet to the guest, or drops it when there is no room.
    fn receive(
        &self,
        memory: &GuestMemoryLoadGuard<Memory>,
        to: &Vring,
        packet: &[u8],
    ) -> io::Result<()> {
        let need = HEADER + packet.len();
        let (mut chains, mut room) = (Vec::new(), 0);
        let begin = to.queue_next_avail();
        while room < need && (chains.is_empty() || self.features & MRG_RXBUF != 0) {
            let chain = to
                .get_mut()
                .get_queue_mut()
                .pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let writer = chain.writer(memory).map_err(io::Error::other)?;
            room += writer.available_bytes();
            chains.push((head, writer));
        }
        if room < need {
            to.set_queue_next_avail(begin);
            return Ok(());
        }
        let mut bytes = vec![0; HEADER];
        bytes[BUFFERS..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        bytes.extend_from_slice(packet);
        let mut rest = &bytes[..];
        for (head, mut writer) in chains {
            let count = rest.len().min(writer.available_bytes());
            writer.write_all(&rest[..count])?;
            rest = &rest[count..];
            give_back(to, head, count as u32)?;
        }
        Ok(())
    }
}

/// One used entry, and a notification if the guest wants it.
fn give_back(vring: &Vring, head: u16, len: u32) -> io::Result<()> {
    vring.add_used(head, len).map_err(io::Error::other)?;
    if vring.needs_notification().map_err(io::Error::other)? {
        vring.signal_used_queue()?;
    }
    Ok(())
}
