//! Scenarios: what comes of a frame, on two hosts that run the real router and the reference
//! executor.

mod dhcp4;
mod dhcp6;
mod explain;
mod frames;
mod icmp;
mod neighbours;
mod reach;
mod spoof;
mod topology;
mod tunnel;
mod world;
