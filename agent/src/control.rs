//! The control thread: the one place that changes the data plane.
//!
//! ```text
//!   controller stream ──┐                              ┌─▶ ports (backends, data plane)
//!   file, SIGHUP ───────┤                              ├─▶ router (topology, epoch) ─▶ publish
//!   backends' changes ──┼─▶ Command ─▶ control thread ─┼─▶ underlay requests, advertisements
//!   data plane's events ┘                              ├─▶ state file
//!                                                      └─▶ View ─▶ local API, stream
//! ```
//!
//! It owns all state of the control side, so nothing is locked, and sleeps until a command comes or
//! the next deadline (a retry, a neighbour to ask, an advertisement) is due.

use crate::desired::Desired;
use crate::diff::{self, Attachment};
use crate::neighbours::Neighbours;
use crate::nics::Nics;
use crate::nics::vf_ports::{Done, VfPorts};
use crate::numbering::Numbers;
use crate::paths::Paths;
use crate::ports::{OnChange, Ports, chain};
use crate::relays::far::{Done as FarDone, Fars};
use crate::relays::spec::Spec;
use crate::relays::{Relays, is_relay};
use crate::state_file::{self, Saved};
use crate::topology;
use crate::view::{PortView, View};
use crate::wire::StepError;
use api::v1;
use fallback_dpdk::Dataplane;
use flow::{MacAddr, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use vrouter::{Underlay, VRouter};

/// How often router advertisements are sent unasked (RFC 4861 section 6.2.1 allows 4 to 1800 s).
const ADVERTISE_EVERY: Duration = Duration::from_secs(200);
/// A guest that has just connected hears another one this much later: its driver may not have had
/// its buffers ready for the first.
const ADVERTISE_AGAIN: Duration = Duration::from_secs(3);
/// Nothing is due: sleep this long.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

mod handle;
mod relays;
mod show;
mod vfs;

pub use handle::{Handle, Have};
pub use relays::RelayError;

/// The version that is applied after a step, or why the step cannot be.
pub type StepAnswer = Result<u64, StepError>;

/// What the control thread is asked.
enum Command {
    /// The file's state, of an agent that runs alone.
    Replace(Box<Desired>),
    /// A step of the controller.
    Step(Box<v1::Desired>, oneshot::Sender<StepAnswer>),
    /// What the agent has, for the hello.
    Have(oneshot::Sender<Have>),
    /// The store is another one: what came from the old one is not to be built upon.
    ForgetStore(oneshot::Sender<()>),
    /// A backend's status changed.
    PortChanged(String),
    /// A neighbour in the underlay answered.
    Learned(IpAddr, MacAddr),
    /// A packet waits for a neighbour in the underlay.
    Wanted(IpAddr),
    /// The VF of a port was handed out or given back, or not.
    VfDone(Box<Done>),
    /// NICs are managed now, or VFs may have come or gone: who has one.
    NicsMoved(Vec<String>),
    /// The relays of the file.
    FileRelays(BTreeMap<String, Spec>),
    /// A relay of the API.
    AddRelay(Box<Spec>, oneshot::Sender<Result<bool, RelayError>>),
    /// A relay of the API is not wanted any more.
    RemoveRelay(String, oneshot::Sender<Result<bool, RelayError>>),
    /// The device of a relay was started or ended, or not.
    FarDone(Box<FarDone>),
    /// Take everything down.
    Stop,
}

/// An answer that waits until its effect can be seen.
type Answer = Box<dyn FnOnce() + Send>;

/// What the control thread needs.
pub struct Parts {
    /// The host's name.
    pub host: String,
    /// Files.
    pub paths: Paths,
    /// DPDK, for the devices of relays.
    pub eal: dpdk::Eal,
    /// The data plane.
    pub dataplane: Arc<Dataplane>,
    /// The relays of the file.
    pub relays: BTreeMap<String, Spec>,
    /// Owner and group of sockets.
    pub ownership: crate::accounts::Ownership,
    /// Permissions of sockets.
    pub permissions: u32,
    /// The underlay, without neighbours.
    pub underlay: Option<Underlay>,
    /// Whether the desired state is kept in the state file (it comes from a controller).
    pub keep_state: bool,
    /// This host's NICs.
    pub nics: Nics,
    /// The pool of ports with a VF that name none.
    pub sriov_pool: Option<String>,
}

/// Starts the control thread. With `keep_state` it begins with the last known state.
pub fn start(mut parts: Parts) -> std::io::Result<(Handle, std::thread::JoinHandle<()>)> {
    let (commands, inbox) = mpsc::channel();
    let (view_out, view) = watch::channel(Arc::new(View::default()));
    let changed = commands.clone();
    let on_change: OnChange = Arc::new(move |id: &str| {
        let _ = changed.send(Command::PortChanged(id.to_owned()));
    });
    let ports = Ports::new(
        Arc::clone(&parts.dataplane),
        parts.ownership,
        parts.permissions,
        on_change,
    );
    let ended = commands.clone();
    let vf_ports = VfPorts::new(
        parts.nics.clone(),
        Arc::new(move |done| {
            let _ = ended.send(Command::VfDone(Box::new(done)));
        }),
    );
    let ended = commands.clone();
    let fars = Fars::new(
        parts.eal.clone(),
        Arc::clone(&parts.dataplane),
        Arc::new(move |done| {
            let _ = ended.send(Command::FarDone(Box::new(done)));
        }),
    );
    let relays = Relays {
        file: std::mem::take(&mut parts.relays),
        ..Relays::default()
    };
    let mut control = Control {
        ports,
        relays,
        fars,
        vf_ports,
        vf_owners: Vec::new(),
        trusted: false,
        view: view_out,
        saved: Saved::default(),
        desired: Desired::default(),
        refused: BTreeMap::new(),
        numbers: Numbers::default(),
        neighbours: Neighbours::default(),
        router: Arc::new(topology::empty(0)),
        epoch: 0,
        advertise_at: None,
        connected: BTreeSet::new(),
        shown: BTreeMap::new(),
        parts,
    };
    let thread = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            control.begin();
            control.run(&inbox);
        })?;
    Ok((Handle::new(commands, view), thread))
}

struct Control {
    parts: Parts,
    ports: Ports,
    relays: Relays,
    fars: Fars,
    vf_ports: VfPorts,
    /// Who had a VF at the last look.
    vf_owners: Vec<String>,
    /// The desired state is known, so that a port which is not in it is not wanted.
    trusted: bool,
    view: watch::Sender<Arc<View>>,
    saved: Saved,
    desired: Desired,
    /// Ports that cannot be in the topology, and why.
    refused: BTreeMap<String, String>,
    numbers: Numbers,
    neighbours: Neighbours,
    router: Arc<VRouter>,
    epoch: u64,
    advertise_at: Option<Instant>,
    /// Ports whose guest is connected, as of the last look.
    connected: BTreeSet<String>,
    shown: BTreeMap<String, PortView>,
}

impl Control {
    fn begin(&mut self) {
        if self.parts.keep_state {
            let path = self.parts.paths.state();
            match state_file::load(&path) {
                Ok(Some(saved)) => {
                    self.saved = saved;
                    self.desired = self.saved.resources.desired();
                    self.trusted = true;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "last known state is lost");
                    state_file::set_aside(&path);
                }
            }
        }
        self.load_relays();
        self.apply(Instant::now());
        self.show();
    }

    fn run(&mut self, inbox: &mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            let wait = self
                .next_due()
                .map_or(NOTHING_DUE, |at| at.saturating_duration_since(now));
            let mut next = match inbox.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.stop(),
            };
            // All that is there is taken before the picture is drawn again.
            let mut answers = Vec::new();
            while let Some(command) = next {
                match command {
                    Command::Stop => return self.stop(),
                    command => self.take(command, &mut answers),
                }
                next = inbox.try_recv().ok();
            }
            self.due(Instant::now());
            self.show();
            answers.into_iter().for_each(|answer| answer());
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let times = [
            self.ports.next_retry(),
            self.vf_ports.next_retry(),
            self.fars.next_due(),
            self.neighbours.next_due(),
            self.advertise_at,
        ];
        times.into_iter().flatten().min()
    }

    fn take(&mut self, command: Command, answers: &mut Vec<Answer>) {
        let now = Instant::now();
        match command {
            Command::Replace(desired) => {
                self.desired = *desired;
                self.ports.retry_all(now);
                self.vf_ports.retry_all();
                self.apply(now);
                self.trust(now);
            }
            Command::Step(step, reply) => {
                let answer = self.step(*step, now);
                answers.push(Box::new(move || drop(reply.send(answer))));
            }
            Command::Have(reply) => {
                let resources = &self.saved.resources;
                let have = Have {
                    store_id: resources.store_id.clone(),
                    have: resources.have(),
                };
                let _ = reply.send(have);
            }
            Command::ForgetStore(reply) => {
                self.saved.resources.store_id.clear();
                let _ = reply.send(());
            }
            Command::PortChanged(id) => self.port_changed(&id, now),
            Command::Learned(ip, mac) => {
                if self.neighbours.learned(ip, mac, now) {
                    tracing::info!(%ip, %mac, "underlay neighbour");
                    self.publish(now);
                }
            }
            Command::Wanted(ip) => self.neighbours.wanted(ip, now),
            Command::VfDone(done) => self.vf_ports.take(*done, now),
            Command::NicsMoved(owners) => {
                self.vf_owners = owners;
                self.vf_ports.look_again(now);
                self.find_leftovers(now);
            }
            Command::FileRelays(relays) => {
                self.relays.file = relays;
                self.ports.retry_all(now);
                self.apply(now);
            }
            Command::AddRelay(spec, reply) => {
                let answer = self.add_relay(*spec, now);
                answers.push(Box::new(move || drop(reply.send(answer))));
            }
            Command::RemoveRelay(name, reply) => {
                let answer = self.remove_relay(&name, now);
                answers.push(Box::new(move || drop(reply.send(answer))));
            }
            Command::FarDone(done) => {
                self.fars.take(*done, now);
                self.vf_ports.want(&self.wanted_vfs(), now);
            }
            Command::Stop => {}
        }
    }

    fn step(&mut self, step: v1::Desired, now: Instant) -> StepAnswer {
        let before = self.saved.resources.clone();
        self.saved.resources.apply(step)?;
        if self.saved.resources.by_key != before.by_key {
            self.desired = self.saved.resources.desired();
            self.ports.retry_all(now);
            self.vf_ports.retry_all();
            self.apply(now);
        }
        self.trust(now);
        if self.saved.resources != before {
            self.save();
        }
        Ok(self.saved.resources.version)
    }

    fn save(&self) {
        if !self.parts.keep_state {
            return;
        }
        if let Err(error) = state_file::save(&self.parts.paths.state(), &self.saved) {
            // Forwarding goes on; only a restart without the controller would not know this.
            tracing::error!(error = chain(&error), "state not saved");
        }
    }

    /// Whatever is due.
    fn due(&mut self, now: Instant) {
        if self.ports.next_retry().is_some_and(|at| at <= now) {
            self.apply(now);
        }
        if self.vf_ports.next_retry().is_some_and(|at| at <= now) {
            self.vf_ports.go_on(now);
        }
        self.far_sides(now);
        if let Some(underlay) = &self.parts.underlay {
            for target in self.neighbours.due(now) {
                let request = vrouter::underlay_arp_request(underlay, target);
                if let Err(error) = self.parts.dataplane.inject(PortId::UPLINK, request) {
                    tracing::debug!(error = chain(&error), %target, "request not sent");
                }
            }
        }
        if self.advertise_at.is_some_and(|at| at <= now) {
            self.advertise_at = Some(now + ADVERTISE_EVERY);
            self.advertise(&self.connected);
        }
    }

    /// Tells guests of their routers, unasked.
    fn advertise(&self, ids: &BTreeSet<String>) {
        let numbers: BTreeSet<PortId> = ids.iter().filter_map(|id| self.ports.number(id)).collect();
        if numbers.is_empty() {
            return;
        }
        for answer in self.router.router_advertisements() {
            if numbers.contains(&answer.port) {
                let _ = self.parts.dataplane.inject(answer.port, answer.packet);
            }
        }
    }

    fn port_changed(&mut self, id: &str, now: Instant) {
        if let Some(reason) = self.ports.given_up(id) {
            tracing::warn!(port = id, reason, "port failed");
            self.ports.give_up(id, reason, now);
            self.fars.closed(id);
            self.publish(now);
        }
        let running = self
            .ports
            .status(id)
            .is_some_and(|s| s.state == xvio::State::Running);
        if !running {
            self.connected.remove(id);
        } else if !is_relay(id) && self.connected.insert(id.to_owned()) {
            self.advertise(&BTreeSet::from([id.to_owned()]));
            let again = now + ADVERTISE_AGAIN;
            self.advertise_at = Some(self.advertise_at.map_or(again, |at| at.min(again)));
        }
    }

    /// Where a port's socket is. A controller's port keeps the file name of its first day, also when
    /// it is renamed: the guest's configuration has that path.
    fn socket(&mut self, id: &str, name: &str, own: Option<&PathBuf>) -> PathBuf {
        if let Some(path) = own {
            return self.parts.paths.relocate(path);
        }
        let sockets = &mut self.saved.sockets;
        if !sockets.contains_key(id) {
            let taken = sockets.values().any(|stem| stem == name)
                || self
                    .relays
                    .get(name)
                    .is_some_and(|(relay, _)| relay.socket.is_none());
            sockets.insert(
                id.to_owned(),
                if taken {
                    id.to_owned()
                } else {
                    name.to_owned()
                },
            );
        }
        self.parts
            .paths
            .vhost_dir()
            .join(format!("{}.sock", sockets[id]))
    }

    /// Makes what runs what is desired.
    fn apply(&mut self, now: Instant) {
        let sockets_before = self.saved.sockets.clone();
        let ids: Vec<String> = self.desired.ports.keys().cloned().collect();
        self.saved
            .sockets
            .retain(|id, _| self.desired.ports.contains_key(id));
        let wanted = |id: &str| self.desired.ports.contains_key(id) || self.relays.has_id(id);
        self.numbers.retain(wanted);
        self.ports.forget(wanted);
        let mut wanted = self.relay_attachments();
        for id in ids.iter().chain(wanted.keys()) {
            self.numbers.of(id);
        }
        // Ports that fit into no topology are not set up at all.
        let underlay = self.underlay();
        let whole = topology::build(&self.desired, &self.numbers, underlay.as_ref(), 0, &|_| {
            true
        });
        for note in &whole.notes {
            tracing::warn!(note, "left out");
        }
        self.refused = whole.refused;
        for id in &ids {
            if self.refused.contains_key(id) {
                continue;
            }
            let port = self.desired.ports[id].clone();
            let Some(network) = self.desired.networks.get(&port.network) else {
                continue;
            };
            let attachment = Attachment {
                mac: port.mac,
                mtu: topology::mtu_of(network, underlay.as_ref()),
                queue_pairs: port.queue_pairs,
                queue_size: port.queue_size,
                mode: port.mode,
                socket: self.socket(id, &port.name, port.socket.as_ref()),
            };
            wanted.insert(id.clone(), attachment);
        }
        let plan = diff::plan(&self.ports.attachments(), &wanted);
        if !plan.remove.is_empty() {
            let gone: BTreeSet<&String> = plan.remove.iter().collect();
            self.publish_with(now, &|id| !gone.contains(&id.to_owned()));
            for id in &plan.remove {
                self.ports.remove(id);
                self.fars.closed(id);
                self.connected.remove(id);
            }
        }
        for id in &plan.create {
            if !self.ports.may_try(id, now) {
                continue;
            }
            if let Some(number) = self.numbers.get(id) {
                // A relay has its name in its id.
                let name = self.desired.ports.get(id).map_or(id, |port| &port.name);
                self.ports.create(id, name, number, &wanted[id], now);
            }
        }
        self.vf_ports.want(&self.wanted_vfs(), now);
        self.publish(now);
        for id in &plan.create {
            self.port_changed(id, now);
        }
        if self.saved.sockets != sockets_before {
            self.save();
        }
    }

    fn underlay(&self) -> Option<Underlay> {
        let neighbours = self.neighbours.known();
        self.parts.underlay.clone().map(|underlay| Underlay {
            neighbours,
            ..underlay
        })
    }

    fn publish(&mut self, now: Instant) {
        self.publish_with(now, &|_| true);
    }

    /// Gives the workers a router of the desired state, with those ports that run.
    fn publish_with(&mut self, now: Instant, also: &dyn Fn(&str) -> bool) {
        self.epoch += 1;
        let underlay = self.underlay();
        let include = |id: &str| self.ports.runs(id) && also(id);
        let built = topology::build(
            &self.desired,
            &self.numbers,
            underlay.as_ref(),
            self.epoch,
            &include,
        );
        self.router = Arc::new(built.router);
        self.parts.dataplane.publish(Arc::clone(&self.router));
        let next_hops = self.router.underlay_next_hops();
        self.neighbours.set_targets(&next_hops, now);
    }

    fn stop(&mut self) {
        self.ports.clear();
        tracing::debug!("control stopped");
    }
}
