//! Guests: vhost-user backends of this crate's neighbour, driven by DPDK's virtio-user.
