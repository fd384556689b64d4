//! Ports of binding sriov and xvio, and relays: a VF each, asked of the manager under the name `port/<id>` or
//! `xvio/<relay>`, and given back when nobody wants the port any more.
//!
//! ```text
//!             wanted                  given                    differs, or unwanted
//!   (nothing) ──────▶ being allocated ─────▶ ready ───────────────────────▶ being released ─▶ (nothing)
//!                        ▲     │ refused                                        │ refused (still in use)
//!                        └─ failed, tried again after a wait ◀──────────────────┘
//! ```
//!
//! It belongs to the control thread and never waits: each step on a NIC runs on a thread of its own, one for a
//! port at a time, and comes back as a [`Done`]. Names outlive the agent: asked again after a restart, the
//! manager gives the same VF; VFs whose port is not wanted any more are found among its allocations.

use super::{Nics, shown};
use crate::ports::chain;
use crate::relays::is_relay;
use flow::MacAddr;
use sriov_mgr::kernel::Vlan;
use sriov_mgr::policy::VfDriver;
use sriov_mgr::{Device, PciAddress, Request, VfChoice};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the manager's owners that are ports start with.
const OWNER: &str = "port/";

/// The manager's owner of a port's or relay's VF.
fn owner_of(id: &str) -> String {
    if is_relay(id) {
        id.to_owned()
    } else {
        format!("{OWNER}{id}")
    }
}

/// The port or relay that an owner is.
fn id_of(owner: &str) -> Option<&str> {
    if is_relay(owner) {
        Some(owner)
    } else {
        owner.strip_prefix(OWNER)
    }
}
/// The first wait before a failed step is tried again; it doubles up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest.
const SLOWEST_RETRY: Duration = Duration::from_secs(60);

/// What a port wants of its VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The guest's MAC.
    pub mac: MacAddr,
    /// VLAN, 1 to 4094; 0: none.
    pub vlan: u16,
    /// Pool; `None`: any.
    pub pool: Option<String>,
    /// This VF and no other.
    pub device: Option<PciAddress>,
    /// Whose it is, such as "vm/web-1": VFs of one guest are spread over PFs.
    pub guest: String,
}

impl Wanted {
    /// Whether a VF that was given for `other` will do.
    fn fits(&self, other: &Wanted) -> bool {
        (self.mac, self.vlan, &self.pool, self.device)
            == (other.mac, other.vlan, &other.pool, other.device)
    }
}

/// What a port has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// PCI address, or PF and number where VFs are no functions.
    pub vf: String,
    /// VLAN that is set on it.
    pub vlan: u16,
    /// Its PF.
    pub pf: Device,
    /// What is not as one would expect.
    pub notes: Vec<String>,
}

/// A step that ended.
#[derive(Debug)]
pub struct Done {
    /// The port.
    pub id: String,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Allocated(Wanted, Result<Given, String>),
    Released(Result<(), String>),
}

/// How a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Something is being done for it.
    Pending,
    /// It has its VF.
    Ready(Given),
    /// It has none, and why.
    Failed(String),
}

#[derive(Debug, Default)]
struct Port {
    wanted: Option<Wanted>,
    /// What it has, as it was wanted then.
    has: Option<(Wanted, Given)>,
    /// It may have a VF although nobody here knows: of an earlier agent, or after a step that failed.
    maybe: bool,
    /// What it has may be another VF by now: it is asked for again.
    stale: bool,
    /// A thread is at work for it.
    busy: bool,
    failure: Option<String>,
    tries: u32,
    retry_at: Option<Instant>,
}

/// All of them.
pub struct VfPorts {
    nics: Nics,
    done: Arc<dyn Fn(Done) + Send + Sync>,
    ports: BTreeMap<String, Port>,
}

impl VfPorts {
    /// None yet. `done` is called from the threads.
    pub fn new(nics: Nics, done: Arc<dyn Fn(Done) + Send + Sync>) -> Self {
        VfPorts {
            nics,
            done,
            ports: BTreeMap::new(),
        }
    }

    /// How a port is.
    pub fn state(&self, id: &str) -> State {
        match self.ports.get(id) {
            Some(Port {
                has: Some((wanted, given)),
                wanted: now,
                ..
            }) if now.as_ref().is_some_and(|now| now.fits(wanted)) => State::Ready(given.clone()),
            Some(Port {
                failure: Some(reason),
                ..
            }) => State::Failed(reason.clone()),
            _ => State::Pending,
        }
    }

    /// What each wants.
    pub fn wanted(&self) -> impl Iterator<Item = (&str, &Wanted)> {
        let ports = self.ports.iter();
        ports.filter_map(|(id, port)| Some((id.as_str(), port.wanted.as_ref()?)))
    }

    /// When the next failed step is due.
    pub fn next_retry(&self) -> Option<Instant> {
        let idle = self.ports.values().filter(|port| !port.busy);
        idle.filter_map(|port| port.retry_at).min()
    }

    /// Begins whatever leads to what is wanted.
    pub fn want(&mut self, wanted: &BTreeMap<String, Wanted>, now: Instant) {
        for (id, port) in &mut self.ports {
            port.wanted = wanted.get(id).cloned();
        }
        for (id, wanted) in wanted {
            let port = self.ports.entry(id.clone()).or_default();
            port.wanted = Some(wanted.clone());
        }
        self.go_on(now);
    }

    /// Failed steps may be tried at once: the desired state has changed.
    pub fn retry_all(&mut self) {
        for port in self.ports.values_mut() {
            port.retry_at = None;
        }
    }

    /// Takes the manager's owners: those that are ports which nobody wants were deleted while the agent was
    /// away, and their VFs are given back.
    pub fn find_leftovers(&mut self, owners: &[String], now: Instant) {
        for id in owners.iter().filter_map(|owner| id_of(owner)) {
            let port = self.ports.entry(id.to_owned()).or_default();
            port.maybe |= port.has.is_none();
        }
        self.go_on(now);
    }

    /// VFs may have gone or come: asks again for each, which changes nothing where all is well.
    pub fn look_again(&mut self, now: Instant) {
        for port in self.ports.values_mut() {
            port.stale = port.has.is_some();
            port.retry_at = None;
        }
        self.go_on(now);
    }

    /// Takes the outcome of a step, and begins the next.
    pub fn take(&mut self, done: Done, now: Instant) {
        let Some(port) = self.ports.get_mut(&done.id) else {
            return;
        };
        port.busy = false;
        let failure = match done.outcome {
            Outcome::Allocated(wanted, Ok(given)) => {
                tracing::info!(port = done.id, vf = given.vf, "VF handed out");
                port.has = Some((wanted, given));
                port.stale = false;
                None
            }
            Outcome::Allocated(_, Err(reason)) => {
                // It may have failed on the way; a release of nothing does no harm.
                (port.has, port.maybe, port.stale) = (None, true, false);
                Some(reason)
            }
            Outcome::Released(Ok(())) => {
                (port.has, port.maybe, port.stale) = (None, false, false);
                None
            }
            Outcome::Released(Err(reason)) => {
                // It may be half taken back. Who wants it again by now has to ask for it again.
                port.stale = port.has.is_some();
                Some(reason)
            }
        };
        match failure {
            None => (port.failure, port.tries, port.retry_at) = (None, 0, None),
            Some(reason) => {
                if port.failure.as_ref() != Some(&reason) {
                    tracing::warn!(port = done.id, reason, "VF");
                }
                let wait = (FIRST_RETRY * (1 << port.tries.min(6))).min(SLOWEST_RETRY);
                port.tries = port.tries.saturating_add(1);
                port.retry_at = Some(now + wait);
                port.failure = Some(reason);
            }
        }
        self.go_on(now);
    }

    /// Begins every step that can be begun.
    pub fn go_on(&mut self, now: Instant) {
        self.ports.retain(|_, port| {
            port.busy || port.wanted.is_some() || port.has.is_some() || port.maybe
        });
        let ids: Vec<String> = self.ports.keys().cloned().collect();
        for id in ids {
            let port = &self.ports[&id];
            if port.busy || port.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            let step = match (&port.wanted, &port.has) {
                // A VF with another MAC or VLAN is another VF: the old one is cleaned first.
                (Some(wanted), Some((had, _))) if !wanted.fits(had) => Step::Release,
                (Some(_), Some(_)) if !port.stale => continue,
                (Some(wanted), _) => {
                    Step::Allocate(wanted.clone(), self.pfs_of_guest(&id, &wanted.guest))
                }
                (None, _) => Step::Release,
            };
            self.begin(&id, step);
        }
    }

    /// PFs of the same guest's other ports: it survives the loss of one NIC when they are apart.
    fn pfs_of_guest(&self, id: &str, guest: &str) -> Vec<Device> {
        let same = |port: &Port| {
            let wanted = port.wanted.as_ref();
            !guest.is_empty() && wanted.is_some_and(|wanted| wanted.guest == guest)
        };
        let others = self.ports.iter();
        let others = others.filter(|(other, port)| *other != id && same(port));
        let pfs: BTreeSet<Device> = others
            .filter_map(|(_, port)| Some(port.has.as_ref()?.1.pf.clone()))
            .collect();
        pfs.into_iter().collect()
    }

    fn begin(&mut self, id: &str, step: Step) {
        let (nics, done, own) = (self.nics.clone(), Arc::clone(&self.done), id.to_owned());
        let started = std::thread::Builder::new()
            .name("vf-port".into())
            .spawn(move || {
                let outcome = step.run(&nics, &own);
                done(Done { id: own, outcome });
            });
        if let Some(port) = self.ports.get_mut(id) {
            match started {
                Ok(_) => port.busy = true,
                Err(error) => {
                    port.failure = Some(format!("The operating system refuses a thread: {error}"));
                    port.retry_at = Some(Instant::now() + FIRST_RETRY);
                }
            }
        }
    }
}

enum Step {
    Allocate(Wanted, Vec<Device>),
    Release,
}

impl Step {
    fn run(self, nics: &Nics, id: &str) -> Outcome {
        let owner = owner_of(id);
        match self {
            Step::Allocate(wanted, avoid_pfs) => {
                let request = Request {
                    owner,
                    pool: wanted.pool.clone(),
                    device: wanted.device.map(VfChoice::Address),
                    avoid_pfs,
                    mac: Some(wanted.mac.0),
                    vlan: Some(Vlan {
                        id: wanted.vlan,
                        ..Vlan::default()
                    }),
                    driver: Some(VfDriver::Vfio),
                    ..Request::default()
                };
                let given = nics.wait().and_then(|manager| {
                    let allocation = manager.allocate(&request).map_err(|e| chain(&e))?;
                    let shown = shown::allocation(&allocation);
                    Ok(Given {
                        vf: match shown.address.as_str() {
                            "" => shown.vf,
                            address => address.to_owned(),
                        },
                        vlan: wanted.vlan,
                        pf: allocation.vf.pf,
                        notes: shown.notes,
                    })
                });
                Outcome::Allocated(wanted, given)
            }
            Step::Release => {
                let released = nics.wait().and_then(|manager| {
                    let released = manager.release(&owner, false).map_err(|e| chain(&e))?;
                    for note in released.notes {
                        tracing::info!(port = id, note, "VF given back");
                    }
                    Ok(())
                });
                Outcome::Released(released)
            }
        }
    }
}
