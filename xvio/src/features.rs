//! The feature bits this device knows, and which of them are offered.
//!
//! Nothing is offered that has no handler: a frontend may use whatever it was offered, and an
//! unexpected message would end its connection.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

/// The vhost-user bit that says protocol features can be negotiated.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const F_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// The vhost bit for dirty logging: it is on while it is accepted.
pub(crate) const F_LOG_ALL: u64 = 1 << 26;
pub(crate) const F_RING_PACKED: u64 = 1 << virtio_config::VIRTIO_F_RING_PACKED;
pub(crate) const F_GUEST_ANNOUNCE: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
pub(crate) const F_MRG_RXBUF: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
pub(crate) const F_INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
pub(crate) const F_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
pub(crate) const F_IN_ORDER: u64 = 1 << virtio_config::VIRTIO_F_IN_ORDER;
pub(crate) const F_MQ: u64 = 1 << virtio_net::VIRTIO_NET_F_MQ;
pub(crate) const F_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
pub(crate) const F_GUEST_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
pub(crate) const F_MAC: u64 = 1 << virtio_net::VIRTIO_NET_F_MAC;
pub(crate) const F_MTU: u64 = 1 << virtio_net::VIRTIO_NET_F_MTU;
pub(crate) const F_STATUS: u64 = 1 << virtio_net::VIRTIO_NET_F_STATUS;

/// The optional features a port offers to its frontend. Everything else (VERSION_1, MAC, MTU,
/// STATUS, GUEST_ANNOUNCE, dirty logging, protocol features) is always offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `VIRTIO_NET_F_MRG_RXBUF`: a received packet may span several of the guest's buffers.
    pub mergeable: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a chain in a table of its own.
    pub indirect: bool,
    /// `VIRTIO_F_EVENT_IDX`: notifications at an index instead of on or off.
    pub event_idx: bool,
    /// `VIRTIO_F_RING_PACKED`: rings of the packed layout.
    pub packed: bool,
    /// `VIRTIO_F_IN_ORDER`: buffers are given back in the order in which they came.
    pub in_order: bool,
    /// `VIRTIO_NET_F_CSUM`: the guest may leave checksums to us.
    pub csum: bool,
    /// `VIRTIO_NET_F_GUEST_CSUM`: the guest takes packets whose checksum is not filled in.
    pub guest_csum: bool,
    /// `VIRTIO_NET_F_MQ` and the protocol feature of that name. Without it, one queue pair.
    pub multiqueue: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            mergeable: true,
            indirect: true,
            event_idx: true,
            packed: true,
            in_order: true,
            csum: true,
            guest_csum: true,
            multiqueue: true,
        }
    }
}

impl Offer {
    /// The virtio feature bits of GET_FEATURES.
    pub(crate) fn virtio(&self) -> u64 {
        let mut bits = F_VERSION_1
            | F_PROTOCOL_FEATURES
            | F_LOG_ALL
            | F_MAC
            | F_MTU
            | F_STATUS
            | F_GUEST_ANNOUNCE;
        for (wanted, bit) in [
            (self.mergeable, F_MRG_RXBUF),
            (self.indirect, F_INDIRECT_DESC),
            (self.event_idx, F_EVENT_IDX),
            (self.packed, F_RING_PACKED),
            (self.in_order, F_IN_ORDER),
            (self.csum, F_CSUM),
            (self.guest_csum, F_GUEST_CSUM),
            (self.multiqueue, F_MQ),
        ] {
            if wanted {
                bits |= bit;
            }
        }
        bits
    }

    /// The bits of GET_PROTOCOL_FEATURES.
    pub(crate) fn protocol(&self) -> u64 {
        let mut bits = Protocol::REPLY_ACK
            | Protocol::MTU
            | Protocol::STATUS
            | Protocol::LOG_SHMFD
            | Protocol::RARP
            | Protocol::BACKEND_REQ
            | Protocol::INFLIGHT_SHMFD
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::RESET_DEVICE;
        if self.multiqueue {
            bits |= Protocol::MQ;
        }
        bits.bits()
    }
}

/// The length of the virtio-net header under these features: 12 bytes with `num_buffers`
/// (VERSION_1 always has it, virtio 1.2, 5.1.6), 10 bytes for a legacy driver without MRG_RXBUF.
pub(crate) fn header_len(features: u64) -> usize {
    if features & (F_VERSION_1 | F_MRG_RXBUF) != 0 {
        12
    } else {
        10
    }
}
