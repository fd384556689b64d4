//! Generators of actions and what is in them. Addresses and ports come from small pools as often as
//! from the whole range, so that generated keys and lists meet.

use crate::action::{Action, Vxlan};
use crate::ids::{MacAddr, PortId};
use crate::reason::DropReason;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A station's MAC.
pub fn mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        (1..6u8).prop_map(|n| MacAddr([2, 0, 0, 0, 0, n])),
        any::<[u8; 5]>().prop_map(|[a, b, c, d, e]| MacAddr([2, a, b, c, d, e])),
    ]
}

pub(super) fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        (1..6u8).prop_map(|n| Ipv4Addr::new(10, 0, 0, n)),
        any::<u32>().prop_map(Ipv4Addr::from),
    ]
}

pub(super) fn ipv6() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![
        (1..6u16).prop_map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)),
        any::<u128>()
            .prop_map(Ipv6Addr::from)
            .prop_filter("the parser refuses mapped addresses", |ip| ip
                .to_ipv4_mapped()
                .is_none()),
    ]
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![ipv4().prop_map(IpAddr::V4), ipv6().prop_map(IpAddr::V6)]
}

pub(super) fn port() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![53, 80, 443, 4789]), any::<u16>()]
}

/// Outer headers that fit: one family, 24 bits of VNI.
pub fn vxlan() -> BoxedStrategy<Vxlan> {
    let addresses = prop_oneof![
        (ipv4(), ipv4()).prop_map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b))),
        (ipv6(), ipv6()).prop_map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b))),
    ];
    (
        mac(),
        mac(),
        addresses,
        49152u16..,
        0..1u32 << 24,
        any::<u8>(),
    )
        .prop_map(|(eth_src, eth_dst, (src, dst), src_port, vni, ttl)| Vxlan {
            eth_src,
            eth_dst,
            src,
            dst,
            src_port,
            vni,
            ttl,
        })
        .boxed()
}

/// One action, one in some dozens impossible on any packet.
pub fn action() -> BoxedStrategy<Action> {
    let mixed = (vxlan(), ip(), any::<u32>());
    prop_oneof![
        2 => mac().prop_map(Action::SetEthSrc),
        2 => mac().prop_map(Action::SetEthDst),
        2 => ip().prop_map(Action::SetIpSrc),
        2 => ip().prop_map(Action::SetIpDst),
        1 => port().prop_map(Action::SetPortSrc),
        1 => port().prop_map(Action::SetPortDst),
        2 => Just(Action::DecTtl),
        1 => (prop_oneof![0..200u16, 1200..1600u16, Just(9000u16)]).prop_map(Action::CheckMtu),
        1 => any::<u16>().prop_map(Action::PushVlan),
        1 => Just(Action::PopVlan),
        2 => vxlan().prop_map(Action::EncapVxlan),
        1 => mixed.prop_map(|(outer, dst, vni)| Action::EncapVxlan(Vxlan { dst, vni, ..outer })),
        1 => Just(Action::DecapVxlan),
        6 => output(),
        1 => select(DropReason::ALL).prop_map(Action::Drop),
    ]
    .boxed()
}

fn output() -> impl Strategy<Value = Action> {
    (0..4u32).prop_map(|port| Action::Output(PortId(port)))
}

/// An action list: anything of up to eight steps, or what the virtual router makes.
pub fn actions() -> BoxedStrategy<Vec<Action>> {
    let routed = (mac(), mac(), 60..2000u16, any::<bool>(), vxlan(), output()).prop_map(
        |(src, dst, mtu, tunnel, outer, output)| {
            let mut list = vec![
                Action::DecTtl,
                Action::CheckMtu(mtu),
                Action::SetEthSrc(src),
                Action::SetEthDst(dst),
            ];
            if tunnel {
                list.push(Action::EncapVxlan(outer));
            }
            list.push(output);
            list
        },
    );
    let flood = vec((vxlan(), output(), output()), 1..4).prop_map(|copies| {
        let mut list = Vec::new();
        for (outer, local, uplink) in copies {
            list.extend([local, Action::EncapVxlan(outer), uplink, Action::DecapVxlan]);
        }
        list
    });
    let from_tunnel = (mac(), output())
        .prop_map(|(dst, output)| vec![Action::DecapVxlan, Action::SetEthDst(dst), output]);
    prop_oneof![
        4 => vec(action(), 0..9),
        2 => routed,
        1 => flood,
        1 => from_tunnel,
        1 => output().prop_map(|output| vec![output]),
    ]
    .boxed()
}
