//! The executor against the reference, byte for byte, on DPDK's own packet buffers.

use super::*;
use crate::testbed;
use flow::reference::{self, Packet};
use flow::testing;
use proptest::prelude::*;

/// Keeps what is sent, as the reference does.
#[derive(Default)]
struct Kept {
    outputs: Vec<(PortId, Packet)>,
    given: usize,
}

impl Outputs for Kept {
    fn copy(&mut self, port: PortId, packet: &Mbuf, csum: Option<PartialCsum>) {
        self.outputs.push((
            port,
            Packet {
                bytes: packet.data().to_vec(),
                partial_csum: csum,
            },
        ));
    }

    fn give(&mut self, port: PortId, packet: Mbuf, csum: Option<PartialCsum>) {
        self.given += 1;
        self.copy(port, &packet, csum);
    }
}

fn run(actions: &[Action], packet: &Packet, parsed: &Parsed, pool: &Mempool) -> (Kept, Outcome) {
    let mut mbuf = pool.alloc().expect("a buffer is free");
    mbuf.append(packet.bytes.len())
        .expect("it fits")
        .copy_from_slice(&packet.bytes);
    let mut kept = Kept::default();
    let program = Program::new(actions.to_vec());
    let outcome = execute(&program, mbuf, packet.partial_csum, parsed, pool, &mut kept);
    (kept, outcome)
}

fn agree(actions: &[Action], packet: &Packet, parsed: &Parsed) -> Result<(), TestCaseError> {
    let pool = testbed::pool();
    let expected = reference::execute(actions, packet.clone());
    let (kept, outcome) = run(actions, packet, parsed, &pool);
    prop_assert_eq!(outcome, expected.outcome, "{:?}", actions);
    prop_assert_eq!(&kept.outputs, &expected.outputs, "{:?}", actions);
    let gives = matches!(actions.last(), Some(Action::Output(_))) && outcome == Outcome::Done;
    prop_assert_eq!(
        kept.given,
        usize::from(gives),
        "a last output takes the buffer itself"
    );
    Ok(())
}

/// Both ways a packet may have been parsed when it came in.
fn agree_as_parsed(actions: &[Action], packet: &Packet) -> Result<usize, TestCaseError> {
    let ways = [
        flow::parse(&packet.bytes, PortId(1)),
        flow::parse_tunnel(&packet.bytes, PortId(0)),
    ];
    let mut tried = 0;
    for parsed in ways.into_iter().flatten() {
        agree(actions, packet, &parsed)?;
        tried += 1;
    }
    Ok(tried)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_list_on_any_packet_is_the_reference(packet in testing::input(), actions in testing::actions()) {
        prop_assert!(agree_as_parsed(&actions, &packet)? > 0, "generated packets parse");
    }

    #[test]
    fn any_list_on_a_tunnel_packet_is_the_reference(bytes in testing::tunnel_packet(), actions in testing::actions()) {
        let decap: Vec<_> = std::iter::once(Action::DecapVxlan).chain(actions.iter().copied()).collect();
        let packet = Packet::complete(bytes);
        agree_as_parsed(&actions, &packet)?;
        agree_as_parsed(&decap, &packet)?;
    }

    #[test]
    fn damaged_packets_that_still_parse_are_the_reference(
        bytes in testing::hostile_packet(),
        actions in testing::actions(),
        partial in proptest::option::of((0..80usize, 0..40usize)),
    ) {
        let partial_csum = partial.map(|(start, offset)| PartialCsum { start, offset });
        agree_as_parsed(&actions, &Packet { bytes, partial_csum })?;
    }
}

/// Such a packet of the underlay parses there, and as a station's frame it does not.
#[test]
fn a_packet_of_the_underlay_with_much_behind_it_is_the_reference() {
    let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let mut ip = Ipv4Repr::new(src, dst, 253).emit(&[0; 20]);
    ip.resize(100, 0);
    let eth = EthernetRepr {
        dst: flow::MacAddr([2; 6]),
        src: flow::MacAddr([4; 6]),
        vlan: None,
        ethertype: ethertype::IPV4,
    };
    let packet = Packet::complete(eth.emit(&ip));
    let actions = [Action::DecTtl, Action::Output(PortId(1))];
    let tried = agree_as_parsed(&actions, &packet).expect("the same as the reference");
    assert_eq!(tried, 1, "as a packet of the underlay only");
}

#[test]
fn a_packet_without_headroom_moves_to_another_buffer() {
    let outer = Vxlan {
        eth_src: flow::MacAddr([2, 0, 0, 0, 0, 1]),
        eth_dst: flow::MacAddr([2, 0, 0, 0, 0, 2]),
        src: "2001:db8::1".parse().expect("an address"),
        dst: "2001:db8::2".parse().expect("an address"),
        src_port: 50_000,
        vni: 7,
        ttl: 64,
    };
    let packet = Packet::complete(vec![0x5a; 60]);
    let parsed = flow::parse(&packet.bytes, PortId(1)).expect("an unknown EtherType parses");
    let actions = [
        Action::EncapVxlan(outer),
        Action::EncapVxlan(outer),
        Action::EncapVxlan(outer),
        Action::Output(PortId(1)),
    ];
    agree(&actions, &packet, &parsed).expect("the same as the reference");
}

#[test]
fn a_packet_that_outgrows_its_buffer_is_dropped_for_want_of_one() {
    let eal = testbed::eal();
    let pool = Mempool::new(eal, "small", 64, 1600, None).expect("a pool");
    let packet = Packet::complete(vec![0x5a; 1590]);
    let parsed = flow::parse(&packet.bytes, PortId(1)).expect("an unknown EtherType parses");
    let actions: Vec<_> = std::iter::repeat_n(Action::PushVlan(1), 40)
        .chain([Action::Output(PortId(1))])
        .collect();
    let (kept, outcome) = run(&actions, &packet, &parsed, &pool);
    assert_eq!(outcome, Outcome::Dropped(DropReason::NoBuffer));
    assert!(kept.outputs.is_empty());
    assert_eq!(pool.available(), 64, "no buffer leaks");
}
