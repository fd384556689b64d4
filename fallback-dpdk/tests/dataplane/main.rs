//! The data plane on real devices: kernel interfaces through af_packet, and guests' rings through
//! vhost-user with DPDK's virtio-user as the guest.

mod forwarding;
mod guests;
mod hostile;
mod idle;
mod lifecycle;
mod relay;
mod wire;
mod world;
