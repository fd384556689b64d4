//! What happens to a packet that has no flow, or whose flow stops half-way: the router decides.
//!
//! It happens in the worker's thread, between two packets, and may allocate. How often is bounded, for
//! each port and for all guests of a worker together, so that guests that scan cost the others no more
//! than that; the share of a port that does not is kept for it (see `bucket.rs`). A flow
//! of an older router that is compiled again takes no token: there are no more of them than flows,
//! and no guest can make the router change.

use crate::counters::PortBlock;
use crate::execute::{Outputs, execute};
use crate::input::Known;
use crate::record::Event;
use crate::table::{Handle, Program};
use crate::worker::Worker;
use dpdk::Mbuf;
use flow::reference::Outcome;
use flow::{DropReason, PartialCsum, PortId, Punt};
use std::sync::Arc;
use vrouter::Verdict;

/// Unresolved next hops that are told at once.
const UNRESOLVED_AT_ONCE: usize = 64;

impl Worker {
    /// A packet without a flow, or with one (`stale`) that another router compiled.
    #[cold]
    pub(crate) fn miss(
        &mut self,
        slot: usize,
        mut packet: Mbuf,
        known: &Known,
        stale: Option<Handle>,
        now: u64,
    ) {
        let block = Arc::clone(&self.input(slot).block);
        block.misses.add(1);
        if stale.is_none() && !self.may_ask(slot, now) {
            return block.dropped(DropReason::RateLimited);
        }
        let Some(router) = self.router.clone() else {
            return block.dropped(DropReason::UnknownPort);
        };
        // The router reads checksums as they will be on the wire.
        if let Some(csum) = known.csum
            && let Err(reason) = csum.fill(packet.data_mut())
        {
            return block.dropped(reason);
        }
        let verdict = router.first_packet(&known.parsed, packet.data());
        let same = matches!(&verdict, Verdict::Flow { key, .. } if *key == known.parsed.key);
        if let Some(handle) = stale {
            self.block.recompiled.add(1);
            if !same {
                self.table.remove(handle);
            }
        }
        match verdict {
            Verdict::Flow { key, actions } => {
                let program = Program::new(actions);
                let hash = if same {
                    known.hash
                } else {
                    self.table.hash(&key)
                };
                let handle = self
                    .table
                    .insert(hash, key, self.epoch, program.clone(), now);
                if let Some(handle) = handle {
                    self.table.touch(handle, now, packet.len() as u64);
                }
                self.run_once(slot, &program, packet, known, now);
            }
            Verdict::Once { actions } => {
                self.run_once(slot, &Program::new(actions), packet, known, now);
            }
            other => self.consumed(&other, &block, known.hash, now),
        }
    }

    fn run_once(&mut self, slot: usize, program: &Program, packet: Mbuf, known: &Known, now: u64) {
        let block = Arc::clone(&self.input(slot).block);
        // The checksum is complete already.
        let kept = keep_for_punt(program, &packet, known, None, &mut self.original);
        let mut outputs = self.fabric.outputs(&block, known.hash);
        let outcome = execute(
            program,
            packet,
            None,
            &known.parsed,
            &self.pool,
            &mut outputs,
        );
        self.ended(slot, outcome, known, kept, now);
    }

    /// A verdict that does not execute the packet.
    fn consumed(&mut self, verdict: &Verdict, block: &PortBlock, hash: u32, now: u64) {
        match verdict {
            Verdict::Answer(answers) => {
                for answer in answers {
                    self.send_new(answer.port, &answer.packet, block, hash);
                }
            }
            Verdict::Learned { ip, mac } => self.tell(Event::Learned { ip: *ip, mac: *mac }),
            Verdict::Drop(reason) => {
                block.dropped(*reason);
                if *reason == DropReason::UnderlayUnresolved && self.tell_unresolved.take(now) {
                    let hops = Arc::clone(&self.unresolved);
                    for ip in hops.iter().take(UNRESOLVED_AT_ONCE) {
                        self.tell(Event::Unresolved { ip: *ip });
                    }
                }
            }
            // Neither a punt nor the callers above bring these here.
            Verdict::Flow { .. } | Verdict::Once { .. } => block.dropped(DropReason::BadAction),
        }
    }

    /// The list of a packet is done, or has stopped.
    pub(crate) fn ended(
        &mut self,
        slot: usize,
        outcome: Outcome,
        known: &Known,
        kept: Option<usize>,
        now: u64,
    ) {
        match outcome {
            Outcome::Done => {}
            Outcome::Dropped(reason) => self.input(slot).block.dropped(reason),
            Outcome::Punted(why) => self.punted(slot, why, known, kept, now),
        }
    }

    /// The packet is dropped, and its sender told where one is due.
    #[cold]
    fn punted(&mut self, slot: usize, why: Punt, known: &Known, kept: Option<usize>, now: u64) {
        let block = Arc::clone(&self.input(slot).block);
        block.dropped(match why {
            Punt::TtlExceeded => DropReason::TtlExceeded,
            Punt::TooBig => DropReason::TooBig,
        });
        // The packet is counted already; its sender hears of another one.
        if !self.may_ask(slot, now) {
            return;
        }
        let (Some(router), Some(length)) = (self.router.clone(), kept) else {
            return;
        };
        let verdict = router.punt(why, &known.parsed, &self.original[..length]);
        // The packet is counted as dropped already.
        if !matches!(verdict, Verdict::Drop(_)) {
            self.consumed(&verdict, &block, known.hash, now);
        }
    }

    /// Sends a packet that came from no port.
    pub(crate) fn send_new(&mut self, port: PortId, bytes: &[u8], source: &PortBlock, hash: u32) {
        let Some(mut packet) = self.pool.alloc() else {
            return source.dropped(DropReason::NoBuffer);
        };
        match packet.append(bytes.len()) {
            Some(to) => to.copy_from_slice(bytes),
            None => return source.dropped(DropReason::TooBig),
        }
        self.fabric.outputs(source, hash).give(port, packet, None);
    }

    /// Tells the control side, unless it is behind.
    fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.block.events_lost.add(1);
        }
    }
}

/// Keeps a copy of a packet that its list may hand back: an ICMP error quotes it as it came, with the
/// checksum that its sender has left to us. Returns the copy's length.
pub(crate) fn keep_for_punt(
    program: &Program,
    packet: &Mbuf,
    known: &Known,
    csum: Option<PartialCsum>,
    original: &mut [u8],
) -> Option<usize> {
    let (parsed, bytes) = (&known.parsed, packet.data());
    let ttl = if parsed.is_ipv4() {
        bytes.get(parsed.l3 + 8)
    } else if parsed.is_ipv6() {
        bytes.get(parsed.l3 + 7)
    } else {
        None
    };
    let dying = program.checks_ttl && ttl.is_some_and(|ttl| *ttl <= 1);
    if !dying && parsed.ip_len <= usize::from(program.smallest_mtu) {
        return None;
    }
    let original = original.get_mut(..bytes.len())?;
    original.copy_from_slice(bytes);
    if let Some(csum) = csum {
        csum.fill(original).ok()?;
    }
    Some(original.len())
}
