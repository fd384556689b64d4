//! The reading half of the control side: events, flows, counters, traces.
//!
//! Counters are read where the workers write them. Flows are copied out by the workers themselves, a
//! bounded number of slots between two bursts.

use crate::Error;
use crate::control::Dataplane;
use crate::counters::{Counters, WorkerStats};
use crate::message::{Command, WorkerHandle};
use crate::record::{Event, FlowDump, FlowFilter, Trace};
use flow::{DropReason, PortId};
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;

impl Dataplane {
    /// What the packet path tells the control side. There is one receiver: `None` after the first
    /// call.
    pub fn events(&self) -> Option<Receiver<Event>> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// At most `limit` of the flows that match.
    ///
    /// # Errors
    /// A worker has ended.
    pub fn flows(&self, filter: &FlowFilter, limit: usize) -> Result<FlowDump, Error> {
        let mut dump = FlowDump {
            total: self.flow_count(),
            ..FlowDump::default()
        };
        for handle in &self.handles {
            let mut from = 0;
            loop {
                // One more than is asked for says whether there are more.
                let room = (limit - dump.flows.len()).saturating_add(1);
                let filter = filter.clone();
                let slice = handle.ask(|reply| Command::Dump {
                    from,
                    limit: room,
                    filter,
                    reply,
                })?;
                dump.flows.extend(slice.flows);
                if dump.flows.len() > limit {
                    dump.flows.truncate(limit);
                    dump.truncated = true;
                    return Ok(dump);
                }
                match slice.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        Ok(dump)
    }

    fn flow_count(&self) -> usize {
        self.handles
            .iter()
            .map(|handle| handle.block.flows.get() as usize)
            .sum()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let state = self.state();
        let ports: Vec<_> = state
            .ports
            .iter()
            .map(|(id, port)| (*id, port.read()))
            .collect();
        let mut drops: [u64; DropReason::COUNT] =
            std::array::from_fn(|n| state.gone_drops.get(n).copied().unwrap_or(0));
        let orphans = self.handles.iter().map(|handle| handle.orphans.read());
        for block in ports.iter().map(|(_, block)| block.clone()).chain(orphans) {
            for (total, count) in drops.iter_mut().zip(block.drops) {
                *total += count;
            }
        }
        let of_workers =
            |count: fn(&WorkerHandle) -> u64| self.handles.iter().map(count).sum::<u64>();
        Counters {
            hits: state.gone_hits + ports.iter().map(|(_, port)| port.hits).sum::<u64>(),
            misses: state.gone_misses + ports.iter().map(|(_, port)| port.misses).sum::<u64>(),
            drops,
            ports,
            flows: self.flow_count(),
            capacity: self.config.flow_capacity / self.config.workers * self.config.workers,
            evicted: of_workers(|handle| handle.block.evicted.get()),
            expired: of_workers(|handle| handle.block.expired.get()),
            buffers_free: self.pool.available(),
            buffers: self.config.buffers,
        }
    }

    /// What each worker does.
    pub fn workers(&self) -> Vec<WorkerStats> {
        let state = self.state();
        let stats = self.handles.iter().map(|handle| {
            let ports = state
                .ports
                .iter()
                .filter(|(_, port)| port.worker == handle.index);
            WorkerStats {
                index: handle.index,
                core: handle.core,
                ports: ports.map(|(id, _)| *id).collect(),
                loops: handle.block.loops.get(),
                busy_cycles: handle.block.busy.get(),
                idle_cycles: handle.block.idle.get(),
                asleep_cycles: handle.block.asleep.get(),
                cycles_hz: dpdk::cycles_hz(),
                sleeps: handle.block.sleeps.get(),
                handed_off: handle.block.handed_off.get(),
                recompiled: handle.block.recompiled.get(),
                flows: handle.block.flows.get() as usize,
                events_lost: handle.block.events_lost.get(),
                epoch: handle.block.epoch.get(),
                panics: handle.block.panics.get(),
            }
        });
        stats.collect()
    }

    /// What would happen to a packet that comes in at a port, by the code that would do it. Nothing
    /// is sent or installed.
    ///
    /// # Errors
    /// There is no such port.
    pub fn trace(&self, in_port: PortId, packet: &[u8]) -> Result<Trace, Error> {
        let (worker, router) = {
            let state = self.state();
            let port = state
                .ports
                .get(&in_port)
                .ok_or(Error::NoSuchPort(in_port))?;
            (port.worker, state.router.clone())
        };
        let uplink = in_port == PortId::UPLINK;
        let parsed = if uplink {
            flow::parse_tunnel(packet, in_port)
        } else {
            flow::parse(packet, in_port)
        };
        let mut trace = Trace {
            key: parsed.map(|parsed| parsed.key),
            installed: None,
            steps: Vec::new(),
            verdict: None,
            execution: None,
        };
        let Ok(parsed) = parsed else { return Ok(trace) };
        trace.installed = self
            .handle(worker)?
            .ask(|reply| Command::Lookup(parsed.key, reply))?;
        let Some(router) = router else {
            trace
                .steps
                .push("No router has been published yet.".to_owned());
            return Ok(trace);
        };
        let explanation = router.explain(&parsed, packet);
        let actions = match &explanation.verdict {
            vrouter::Verdict::Flow { actions, .. } | vrouter::Verdict::Once { actions } => {
                Some(actions)
            }
            _ => None,
        };
        trace.execution = actions.map(|actions| {
            flow::reference::execute(actions, flow::reference::Packet::complete(packet.to_vec()))
        });
        trace.steps = explanation.steps;
        trace.verdict = Some(explanation.verdict);
        Ok(trace)
    }
}
