//! Executing arbitrary action lists on arbitrary bytes with the reference executor: no panic, and
//! the promises of the action list hold.
#![no_main]

mod mend;

use flow::reference::{Execution, Outcome, Packet, execute};
use flow::{Action, DropReason, MacAddr, PartialCsum, PortId, Vxlan};
use libfuzzer_sys::fuzz_target;
use mend::mend_ipv4;
use std::net::IpAddr;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let flags = input.byte();
    let count = input.byte() % 17;
    let actions: Vec<Action> = (0..count).map(|_| input.action()).collect();
    let partial_csum = (flags & 1 != 0).then(|| PartialCsum {
        start: usize::from(input.word()),
        offset: usize::from(input.word()),
    });
    let mut packet = input.0.to_vec();
    if flags & 2 != 0 {
        mend_ipv4(&mut packet, 14);
    }
    check(&actions, &packet, partial_csum);
    encap_then_decap_is_nothing(&packet, input.vxlan());
});

fn check(actions: &[Action], packet: &[u8], partial_csum: Option<PartialCsum>) {
    let run = execute(
        actions,
        Packet {
            bytes: packet.to_vec(),
            partial_csum,
        },
    );
    let sends = actions
        .iter()
        .filter(|a| matches!(a, Action::Output(_)))
        .count();
    assert!(run.outputs.len() <= sends);
    if run.outcome == Outcome::Done {
        assert_eq!(run.outputs.len(), sends);
    }
    // What one step left, the rest of the list continues from: no state but the packet.
    if partial_csum.is_none()
        && let Some((first, rest)) = actions.split_first()
        && !rest.is_empty()
        && !matches!(first, Action::Output(_) | Action::Drop(_))
    {
        let step = execute(
            &[*first, Action::Output(PortId(0))],
            Packet::complete(packet.to_vec()),
        );
        match step.outcome {
            Outcome::Done => {
                let (_, left) = step.outputs[0].clone();
                assert_eq!(run, execute(rest, left));
            }
            outcome => assert_eq!(
                run,
                Execution {
                    outputs: vec![],
                    outcome
                }
            ),
        }
    }
}

fn encap_then_decap_is_nothing(packet: &[u8], outer: Vxlan) {
    let list = [
        Action::EncapVxlan(outer),
        Action::DecapVxlan,
        Action::Output(PortId(1)),
    ];
    let run = execute(&list, Packet::complete(packet.to_vec()));
    match run.outcome {
        Outcome::Done => assert_eq!(run.outputs[0].1.bytes, packet),
        other => assert_eq!(other, Outcome::Dropped(DropReason::BadAction)),
    }
}

/// Takes values off the front of the fuzzer's bytes; zero when they run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = self.0.len().min(N);
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        out
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn mac(&mut self) -> MacAddr {
        MacAddr(self.take())
    }

    fn ip(&mut self) -> IpAddr {
        if self.byte() & 1 == 0 {
            IpAddr::from(self.take::<4>())
        } else {
            IpAddr::from(self.take::<16>())
        }
    }

    fn vxlan(&mut self) -> Vxlan {
        Vxlan {
            eth_src: self.mac(),
            eth_dst: self.mac(),
            src: self.ip(),
            dst: self.ip(),
            src_port: self.word(),
            vni: u32::from_be_bytes(self.take()) >> 7,
            ttl: self.byte(),
        }
    }

    fn action(&mut self) -> Action {
        match self.byte() % 14 {
            0 => Action::SetEthSrc(self.mac()),
            1 => Action::SetEthDst(self.mac()),
            2 => Action::SetIpSrc(self.ip()),
            3 => Action::SetIpDst(self.ip()),
            4 => Action::SetPortSrc(self.word()),
            5 => Action::SetPortDst(self.word()),
            6 => Action::DecTtl,
            7 => Action::CheckMtu(self.word()),
            8 => Action::PushVlan(self.word()),
            9 => Action::PopVlan,
            10 => Action::EncapVxlan(self.vxlan()),
            11 => Action::DecapVxlan,
            12 => Action::Output(PortId(u32::from(self.byte()))),
            _ => {
                let reasons = DropReason::ALL;
                Action::Drop(reasons[usize::from(self.byte()) % reasons.len()])
            }
        }
    }
}
