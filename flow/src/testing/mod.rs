//! Generators of packets and action lists for property tests (feature `testing`).
//!
//! Every home of flows is tested with the same ones: `packet()` for well-formed frames,
//! `hostile_packet()` for damaged ones, `actions()` for lists, `input()` for packets as a port hands
//! them over, with and without a partial checksum. They are boxed: unboxed, the tree of so many
//! alternatives is larger than a test thread's stack.

mod lists;
mod spec;

pub use lists::{action, actions, mac, vxlan};
pub use spec::{Body, Extension, Network, PacketSpec};

use crate::action::Action;
use crate::reference::{Packet, execute};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// A well-formed frame: ARP, IPv4 or IPv6 with TCP, UDP, ICMP or something else, tagged or not,
/// with options, extension headers, fragments and padding; one in eight is a VXLAN packet.
pub fn packet() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        7 => PacketSpec::any().prop_map(|spec| spec.build()),
        1 => tunnel_packet(),
    ]
    .boxed()
}

/// A well-formed VXLAN packet as it arrives on the uplink.
pub fn tunnel_packet() -> BoxedStrategy<Vec<u8>> {
    let parts = (vxlan(), PacketSpec::any());
    parts
        .prop_map(|(outer, inner)| {
            let list = [
                Action::EncapVxlan(outer),
                Action::Output(Default::default()),
            ];
            let run = execute(&list, Packet::complete(inner.build()));
            run.outputs
                .into_iter()
                .next()
                .expect("a generated frame fits a tunnel")
                .1
                .bytes
        })
        .boxed()
}

/// A packet as a port hands it over: one in three leaves its checksum to be filled in.
pub fn input() -> BoxedStrategy<Packet> {
    prop_oneof![
        1 => PacketSpec::any().prop_map(|spec| spec.build_partial()),
        2 => packet().prop_map(Packet::complete),
    ]
    .boxed()
}

#[derive(Clone, Debug)]
enum Damage {
    Truncate(Index),
    Set(Index, u8),
    Flip(Index, u8),
    SetNear(usize, u8),
    Extend(Vec<u8>),
    Remove(Index),
}

fn damage() -> BoxedStrategy<Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::Truncate),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        // Most of what matters is in the first bytes.
        (12..60usize, any::<u8>()).prop_map(|(at, byte)| Damage::SetNear(at, byte)),
        vec(any::<u8>(), 1..40).prop_map(Damage::Extend),
        any::<Index>().prop_map(Damage::Remove),
    ]
    .boxed()
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        if let Damage::Extend(more) = self {
            bytes.extend_from_slice(&more);
            return;
        }
        if bytes.is_empty() {
            return;
        }
        match self {
            Damage::Truncate(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Set(at, byte) => *at.get_mut(bytes) = byte,
            Damage::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
            Damage::SetNear(at, byte) => {
                let last = bytes.len() - 1;
                bytes[at.min(last)] = byte;
            }
            Damage::Extend(_) => {}
            Damage::Remove(at) => {
                bytes.remove(at.index(bytes.len()));
            }
        }
    }
}

/// A damaged frame, half of them with the IPv4 checksum mended so that the damage gets further; or
/// plain noise. It may be well-formed by luck.
pub fn hostile_packet() -> BoxedStrategy<Vec<u8>> {
    let damaged =
        (packet(), vec(damage(), 1..4), any::<bool>()).prop_map(|(mut bytes, damages, mend)| {
            damages
                .into_iter()
                .for_each(|damage| damage.apply(&mut bytes));
            if mend {
                mend_ipv4_header(&mut bytes);
            }
            bytes
        });
    prop_oneof![9 => damaged, 1 => vec(any::<u8>(), 0..300)].boxed()
}

/// Makes the checksum of an untagged frame's IPv4 header right, if it has a header.
fn mend_ipv4_header(bytes: &mut [u8]) {
    let Some(header) = bytes.get_mut(14..) else {
        return;
    };
    let length = header
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    if (20..=header.len()).contains(&length) {
        header[10..12].fill(0);
        let sum = crate::checksum::checksum(&header[..length]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
