//! The control side: starting the workers, moving ports in and out, publishing routers, reading.
//!
//! Every method may be called from any thread. Changes of ports are serialised by one lock that no
//! worker ever takes; a method that waits for a worker waits for one turn of its loop.

use crate::Error;
use crate::config::Config;
use crate::counters::{PortBlock, PortCounters};
use crate::fabric::{Exit, Fabric, Handoff, Link};
use crate::input::{DeviceQueue, DeviceWake, Source, interrupt_of};
use crate::message::{Command, PortParts, WorkerHandle};
use crate::record::Event;
use crate::relay::Relayed;
use crate::ring::{Consumer, Producer, ring};
use crate::uplink_doorbell::UplinkDoorbell;
use crate::wake::{Bed, Doorbell};
use crate::worker::{Setup, Worker};
use dpdk::{BURST, Eal, MbufBurst, Mempool, PortConfig};
use flow::{DropReason, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use vrouter::VRouter;

/// The uplink may send this many times the first packets of a guest's port: it brings those of all
/// other hosts.
const UPLINK_RATE: u32 = 8;

/// How a worker that sleeps learns that a device has a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The device's receive interrupt; looked at every millisecond where it has none.
    Interrupt,
    /// Packets on this kernel interface of the caller's network namespace, for drivers that have no
    /// interrupt (af_packet).
    Interface(String),
    /// Looked at every millisecond.
    Timer,
}

pub(crate) struct PortRecord {
    pub(crate) worker: usize,
    pub(crate) block: Arc<PortBlock>,
    /// Dropped after its queues: it stops and closes the device.
    device: Option<dpdk::Port>,
    /// Queue pairs, of a guest's port.
    pub(crate) queue_pairs: Option<u16>,
    /// The device its packets are relayed to.
    pub(crate) relay: Option<Relayed>,
    /// What its former devices dropped.
    pub(crate) gone_drops: [u64; DropReason::COUNT],
}

impl PortRecord {
    /// What it did, with what its devices dropped: counters do not go back when a device ends.
    pub(crate) fn read(&self) -> PortCounters {
        let mut all = self.block.read();
        let none = [0; DropReason::COUNT];
        let now = self.relay.as_ref().map_or(none, Relayed::drops);
        for (total, (gone, now)) in all.drops.iter_mut().zip(self.gone_drops.iter().zip(now)) {
            *total += gone + now;
        }
        all
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) ports: BTreeMap<PortId, PortRecord>,
    /// What removed ports counted.
    pub(crate) gone_drops: Vec<u64>,
    pub(crate) gone_hits: u64,
    pub(crate) gone_misses: u64,
    /// Queues of devices that are being started and will share the buffers.
    pub(crate) starting: u32,
    /// The router in use, and older ones that a worker may still hold.
    pub(crate) router: Option<Arc<VRouter>>,
    retired: Vec<Arc<VRouter>>,
}

/// The software home of flows: workers, their ports and tables.
///
/// Dropping it ends the workers, and stops and closes the devices it was given.
pub struct Dataplane {
    pub(crate) config: Config,
    pub(crate) eal: Eal,
    pub(crate) pool: Mempool,
    pub(crate) handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    pub(crate) events: Mutex<Option<Receiver<Event>>>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataplane")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Makes the buffers and starts the workers, which have no ports and no router yet.
    ///
    /// # Errors
    /// A configuration that cannot work, buffers that DPDK has no memory for, a thread that could
    /// not be made.
    pub fn start(eal: Eal, config: Config) -> Result<Dataplane, Error> {
        check(&config)?;
        let pool = Mempool::new(
            &eal,
            "packets",
            config.buffers,
            config.max_frame,
            config.numa,
        )
        .map_err(|source| Error::Dpdk {
            what: "make the packet buffers".to_owned(),
            source,
        })?;
        let (sender, receiver) = sync_channel(config.events.max(1));
        let mut plane = Dataplane {
            eal: eal.clone(),
            pool,
            handles: Vec::new(),
            threads: Vec::new(),
            events: Mutex::new(Some(receiver)),
            state: Mutex::new(State {
                gone_drops: vec![0; DropReason::COUNT],
                ..State::default()
            }),
            config,
        };
        let mut doorbells = Vec::new();
        for worker in 0..plane.config.workers {
            let step = "make its eventfd";
            doorbells.push(Arc::new(Doorbell::new().map_err(|source| {
                Error::Worker {
                    worker,
                    step,
                    source,
                }
            })?));
        }
        for (index, (links, inbound)) in mesh(&plane.config, &doorbells).into_iter().enumerate() {
            // A failure drops `plane`, which ends the workers that run already.
            plane.spawn(index, links, inbound, &doorbells[index], &sender, &eal)?;
        }
        Ok(plane)
    }

    fn spawn(
        &mut self,
        index: usize,
        links: Vec<Option<Link>>,
        inbound: Vec<Consumer<Handoff>>,
        doorbell: &Arc<Doorbell>,
        events: &SyncSender<Event>,
        eal: &Eal,
    ) -> Result<(), Error> {
        let fail = |step: &'static str| {
            move |source| Error::Worker {
                worker: index,
                step,
                source,
            }
        };
        let core = match self.config.cores.as_deref() {
            Some(cores) if !cores.is_empty() => Some(cores[index % cores.len()]),
            _ => None,
        };
        let (handle, mailbox) = WorkerHandle::new(index, core, Arc::clone(doorbell));
        let setup = Setup {
            index,
            config: self.config.clone(),
            fabric: Fabric::new(self.pool.clone(), links, Arc::clone(&handle.block)),
            inbound,
            mailbox,
            doorbell: Arc::clone(doorbell),
            bed: Bed::new(doorbell).map_err(fail("make its epoll set"))?,
            block: Arc::clone(&handle.block),
            orphans: Arc::clone(&handle.orphans),
            events: events.clone(),
        };
        let eal = eal.clone();
        let (ready, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("fv-worker-{index}"))
            .spawn(move || {
                if let Err(error) = pin(core) {
                    let _ = ready.send(Err(error));
                    return;
                }
                // Without registration buffers come from the shared ring: slower, not wrong.
                let _guard = eal.register_thread().inspect_err(|error| {
                tracing::warn!(worker = index, %error, "The worker has no buffer cache of its own");
            });
                let worker = Worker::new(setup);
                let _ = ready.send(Ok(()));
                worker.run();
            });
        self.threads.push(thread.map_err(fail("start its thread"))?);
        self.handles.push(handle);
        match started.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(fail("be pinned to its core")(error)),
            Err(_) => Err(Error::WorkerGone { worker: index }),
        }
    }

    /// Where received packets are put: for a device that the caller configures.
    pub fn mempool(&self) -> &Mempool {
        &self.pool
    }

    /// Serves all queue pairs of a vhost-user backend.
    ///
    /// # Errors
    /// The port exists, or the backend's queues were taken before.
    pub fn add_vhost(&self, id: PortId, backend: &mut xvio::Backend) -> Result<(), Error> {
        let mut state = self.state();
        if state.ports.contains_key(&id) {
            return Err(Error::PortExists(id));
        }
        let (tx, rx): (Vec<_>, Vec<_>) = backend
            .take_queues()
            .into_iter()
            .map(|pair| (pair.tx, pair.rx))
            .unzip();
        if tx.is_empty() {
            return Err(Error::NoQueues(id));
        }
        let exit = Exit::Vhost {
            active: Vec::with_capacity(rx.len()),
            rings: rx,
        };
        self.adopt(&mut state, id, Source::vhost(tx.into_iter()), exit, None)
    }

    /// Serves the first queue pair of a device, which becomes the data plane's. A device that is not
    /// started yet is configured with one queue each way and the MTU it has, and started.
    ///
    /// # Errors
    /// The port exists, DPDK refuses the device, or the interface to wake for does not exist.
    pub fn add_ethdev(
        &self,
        id: PortId,
        port: dpdk::Port,
        wake: Option<Wake>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        if state.ports.contains_key(&id) {
            return Err(Error::PortExists(id));
        }
        let name = port.name().to_owned();
        let fail = |what: &str| {
            let what = format!("{what} of {name}");
            move |source| Error::Dpdk { what, source }
        };
        let wanted = wake.unwrap_or(Wake::Interrupt);
        let rx = match port.rx_queue(0) {
            Ok(queue) => queue,
            Err(_) => {
                let config = PortConfig {
                    mtu: port.mtu(),
                    rx_interrupts: wanted == Wake::Interrupt,
                    ..PortConfig::new(self.pool.clone())
                };
                self.bring_up(&port, config)?;
                port.rx_queue(0).map_err(fail("take the receive queue"))?
            }
        };
        let queue = port.tx_queue(0).map_err(fail("take the transmit queue"))?;
        let wake = match &wanted {
            Wake::Interface(interface) => DeviceWake::Doorbell(UplinkDoorbell::new(interface)?),
            Wake::Interrupt => interrupt_of(&rx).map_or(DeviceWake::Timer, DeviceWake::Interrupt),
            Wake::Timer => DeviceWake::Timer,
        };
        let exit = Exit::Ethdev {
            queue,
            staged: Box::new(MbufBurst::new()),
        };
        let source = Source::Ethdev(DeviceQueue { rx, wake });
        self.adopt(&mut state, id, source, exit, Some(port))
    }

    /// Configures and starts a device; without interrupts where it has none.
    pub(crate) fn bring_up(&self, port: &dpdk::Port, config: PortConfig) -> Result<(), Error> {
        let fail = |what: &str| {
            let what = format!("{what} {}", port.name());
            move |source| Error::Dpdk { what, source }
        };
        if port.configure(&config).is_err() || port.start().is_err() {
            let polled = PortConfig {
                rx_interrupts: false,
                ..config
            };
            port.configure(&polled).map_err(fail("configure"))?;
            port.start().map_err(fail("start"))?;
        }
        Ok(())
    }

    fn adopt(
        &self,
        state: &mut State,
        id: PortId,
        source: Source,
        exit: Exit,
        device: Option<dpdk::Port>,
    ) -> Result<(), Error> {
        let load = |worker: usize| {
            state
                .ports
                .values()
                .filter(|port| port.worker == worker)
                .count()
        };
        let worker = (0..self.handles.len())
            .min_by_key(|worker| load(*worker))
            .unwrap_or(0);
        let queue_pairs = match &source {
            Source::Vhost(queues) => u16::try_from(queues.len()).ok(),
            Source::Ethdev(_) => None,
        };
        let block = Arc::new(PortBlock::default());
        let rate = self.config.slow_path_rate;
        let slow_path_rate = if id == PortId::UPLINK {
            rate.saturating_mul(UPLINK_RATE)
        } else {
            rate
        };
        let parts = PortParts {
            id,
            source,
            exit,
            block: Arc::clone(&block),
            slow_path_rate,
            far: None,
        };
        self.handle(worker)?
            .ask(|reply| Command::Adopt(Box::new(parts), reply))?;
        state.ports.insert(
            id,
            PortRecord {
                worker,
                block,
                device,
                queue_pairs,
                relay: None,
                gone_drops: [0; DropReason::COUNT],
            },
        );
        self.route(id, Some(worker), worker)
    }

    /// Tells all workers but the owner where a port is, also where one of them is gone.
    pub(crate) fn route(&self, id: PortId, to: Option<usize>, owner: usize) -> Result<(), Error> {
        let others = self.handles.iter().filter(|handle| handle.index != owner);
        others
            .map(|handle| handle.ask(|reply| Command::Route(id, to, reply)))
            .fold(Ok(()), Result::and)
    }

    /// Takes a port out. When this returns no worker touches it any more: its flows are gone, a
    /// guest's rings can be unmapped, and a device is closed.
    ///
    /// # Errors
    /// There is no such port.
    pub fn remove_port(&self, id: PortId) -> Result<(), Error> {
        let mut state = self.state();
        let record = state.ports.remove(&id).ok_or(Error::NoSuchPort(id))?;
        let routed = self.route(id, None, record.worker);
        // Queues first, then the device. The owner lets go even where another worker is gone.
        let released = self
            .handle(record.worker)
            .and_then(|owner| owner.ask(|reply| Command::Release(id, reply)))
            .map(drop);
        let done = routed.and(released);
        let last = record.read();
        for (total, count) in state.gone_drops.iter_mut().zip(last.drops) {
            *total += count;
        }
        state.gone_hits += last.hits;
        state.gone_misses += last.misses;
        // Nobody waits for a device that takes its time to end.
        drop(state);
        drop((record.device, record.relay));
        done
    }

    /// The ports, by number.
    pub fn ports(&self) -> Vec<PortId> {
        self.state().ports.keys().copied().collect()
    }

    /// Has all workers use this router from their next burst on. Flows of an older epoch are compiled
    /// again when their next packet comes; their counters go on.
    pub fn publish(&self, router: Arc<VRouter>) {
        let unresolved: Arc<[IpAddr]> = {
            let underlay = router.topology().underlay.as_ref();
            let known: BTreeSet<IpAddr> = underlay
                .iter()
                .flat_map(|u| u.neighbours.iter().map(|(ip, _)| *ip))
                .collect();
            router
                .underlay_next_hops()
                .into_iter()
                .filter(|ip| !known.contains(ip))
                .collect()
        };
        let mut state = self.state();
        for handle in &self.handles {
            let told = handle.tell(Command::Publish(
                Arc::clone(&router),
                Arc::clone(&unresolved),
            ));
            if let Err(error) = told {
                tracing::error!(%error, "A worker did not get the new router");
            }
        }
        if let Some(old) = state.router.replace(router) {
            state.retired.push(old);
        }
        // A worker that lets go of a router is never its last holder: that is here, and frees it here.
        state.retired.retain(|router| Arc::strong_count(router) > 1);
    }

    /// Sends a packet out of a port.
    ///
    /// # Errors
    /// There is no such port, or the packet is longer than a buffer.
    pub fn inject(&self, out: PortId, packet: Vec<u8>) -> Result<(), Error> {
        let max = usize::from(self.config.max_frame);
        if packet.len() > max {
            return Err(Error::TooLong {
                length: packet.len(),
                max,
            });
        }
        let worker = self
            .state()
            .ports
            .get(&out)
            .ok_or(Error::NoSuchPort(out))?
            .worker;
        self.handle(worker)?.tell(Command::Inject(out, packet))
    }

    pub(crate) fn handle(&self, worker: usize) -> Result<&WorkerHandle, Error> {
        self.handles.get(worker).ok_or(Error::WorkerGone { worker })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for handle in &self.handles {
            // A worker that is gone needs no message.
            let _ = handle.tell(Command::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A worker had panicked");
            }
        }
    }
}

type Ends = (Vec<Option<Link>>, Vec<Consumer<Handoff>>);

/// Slots of each hand-off ring: packets that wait for slow workers hold no more than half of the
/// buffers, so that these guests' neighbours still have some.
fn handoff_depth(config: &Config) -> usize {
    let rings = config.workers * (config.workers - 1);
    let most = (config.buffers as usize / 2) / rings.max(1);
    // Rings round up to a power of two.
    let most = (most + 1).next_power_of_two() / 2;
    config.handoff.next_power_of_two().min(most.max(BURST))
}

/// A ring from each worker to each other: what each one sends into and takes from.
fn mesh(config: &Config, doorbells: &[Arc<Doorbell>]) -> Vec<Ends> {
    let (workers, depth) = (config.workers, handoff_depth(config));
    let mut ends: Vec<Ends> = (0..workers)
        .map(|_| ((0..workers).map(|_| None).collect(), Vec::new()))
        .collect();
    for from in 0..workers {
        for to in (0..workers).filter(|to| *to != from) {
            let (producer, consumer): (Producer<Handoff>, _) = ring(depth);
            ends[from].0[to] = Some(Link {
                ring: producer,
                doorbell: Arc::clone(&doorbells[to]),
            });
            ends[to].1.push(consumer);
        }
    }
    ends
}

fn check(config: &Config) -> Result<(), Error> {
    let rule = |ok: bool, field, value: &dyn std::fmt::Display, rule| {
        if ok {
            Ok(())
        } else {
            Err(Error::Config {
                field,
                value: value.to_string(),
                rule,
            })
        }
    };
    rule(
        (1..=64).contains(&config.workers),
        "workers",
        &config.workers,
        "1 to 64 are possible",
    )?;
    rule(
        config.flow_capacity >= config.workers,
        "flow_capacity",
        &config.flow_capacity,
        "each worker needs room for one flow at least",
    )?;
    rule(
        config.max_frame >= 1514,
        "max_frame",
        &config.max_frame,
        "1514 is the least for Ethernet",
    )?;
    rule(
        config.slow_path_rate > 0,
        "slow_path_rate",
        &config.slow_path_rate,
        "it has to be at least 1",
    )?;
    rule(
        !config.flow_idle.is_zero(),
        "flow_idle",
        &config.flow_idle.as_secs(),
        "flows need some time to live",
    )
}

fn pin(core: Option<usize>) -> std::io::Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    Ok(nix::sched::sched_setaffinity(
        nix::unistd::Pid::from_raw(0),
        &set,
    )?)
}

#[cfg(test)]
#[path = "control_tests.rs"]
pub(crate) mod tests;
