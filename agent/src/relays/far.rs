//! The devices behind relayed guests.
//!
//! ```text
//!            guest connected, device there            guest gone, other device, device gone
//!   (none) ───────────────────────────────▶ started ─────────────────────────────────────▶ (none)
//!      ▲  └─▶ failed: tried again after a wait                                                │
//!      └──────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It belongs to the control thread and never waits: a device is started and ended on a thread of its own, one
//! for a relay at a time, and comes back as a [`Done`]. While a device runs it is looked at a few times a
//! second: the kernel that wants to remove a VF waits until nobody has it open any more.

use super::spec::argument;
use crate::ports::chain;
use fallback_dpdk::{Dataplane, Wake};
use flow::PortId;
use nix::net::if_::if_nametoindex;
use sriov_mgr::PciAddress;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often devices are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The first wait before a device that was refused is tried again; it doubles up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest.
const SLOWEST_RETRY: Duration = Duration::from_secs(30);

/// The device that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The guest's port in the data plane.
    pub number: PortId,
    /// DPDK's device string.
    pub device: String,
    /// Bytes of IP packet.
    pub mtu: u16,
}

/// A step that ended.
#[derive(Debug)]
pub struct Done {
    /// The relay or port.
    pub id: String,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Started(Wanted, Result<(String, Watch), String>),
    Ended,
}

/// How a relay's device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// None is wanted.
    Idle,
    /// It is being started or ended.
    Changing,
    /// It runs.
    Running,
    /// It does not, and why.
    Waiting(String),
}

/// What tells that a device is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watch {
    /// A VF: its PF lets go of it before the kernel waits for us.
    Vf(PciAddress),
    /// An interface of the kernel, by name and number.
    Interface(String, u32),
    /// Nothing does.
    Nothing,
}

impl Watch {
    /// Of a device that was started.
    fn of(device: &str) -> Watch {
        if let Some(vf) = vf_of(device) {
            return Watch::Vf(vf);
        }
        let name = argument(device, "iface");
        name.and_then(|name| {
            let index = if_nametoindex(name).ok()?;
            Some(Watch::Interface(name.to_owned(), index))
        })
        .unwrap_or(Watch::Nothing)
    }

    fn gone(&self) -> bool {
        match self {
            Watch::Vf(vf) => absent_vf(*vf).is_some(),
            Watch::Interface(name, index) => if_nametoindex(name.as_str()).ok() != Some(*index),
            Watch::Nothing => false,
        }
    }
}

fn vf_of(device: &str) -> Option<PciAddress> {
    dpdk::pci_address(device)?.parse().ok()
}

/// Why a VF cannot be had now.
fn absent_vf(vf: PciAddress) -> Option<String> {
    let place = PathBuf::from(format!("/sys/bus/pci/devices/{vf}"));
    if !place.join("physfn").exists() {
        return Some(format!("VF {vf} is gone"));
    }
    let driver = std::fs::read_link(place.join("driver"));
    let bound = driver.is_ok_and(|driver| driver.ends_with("vfio-pci"));
    (!bound).then(|| format!("VF {vf} is not bound to vfio-pci"))
}

/// Why a device cannot be started now, where that can be told without trying.
fn absent(device: &str) -> Option<String> {
    if let Some(vf) = vf_of(device) {
        return absent_vf(vf);
    }
    // This driver makes its interface.
    if device.starts_with("net_tap") {
        return None;
    }
    let name = argument(device, "iface")?;
    let there = if_nametoindex(name).is_ok();
    (!there).then(|| format!("Interface {name} is gone"))
}

struct Running {
    wanted: Wanted,
    watch: Watch,
    lost: bool,
}

#[derive(Default)]
struct Entry {
    wanted: Option<Wanted>,
    has: Option<Running>,
    /// A thread is at work for it.
    busy: bool,
    failure: Option<String>,
    tries: u32,
    retry_at: Option<Instant>,
}

/// All of them.
pub struct Fars {
    eal: dpdk::Eal,
    dataplane: Arc<Dataplane>,
    done: Arc<dyn Fn(Done) + Send + Sync>,
    entries: BTreeMap<String, Entry>,
    look_at: Option<Instant>,
}

impl Fars {
    /// None yet. `done` is called from the threads.
    pub fn new(
        eal: dpdk::Eal,
        dataplane: Arc<Dataplane>,
        done: Arc<dyn Fn(Done) + Send + Sync>,
    ) -> Fars {
        Fars {
            eal,
            dataplane,
            done,
            entries: BTreeMap::new(),
            look_at: None,
        }
    }

    /// How a relay's device is.
    pub fn side(&self, id: &str) -> Side {
        let Some(entry) = self.entries.get(id) else {
            return Side::Idle;
        };
        match (&entry.has, &entry.wanted, &entry.failure) {
            (Some(has), Some(wanted), _) if has.wanted == *wanted && !has.lost => Side::Running,
            (None, Some(_), Some(reason)) => Side::Waiting(reason.clone()),
            (None, None, _) => Side::Idle,
            _ => Side::Changing,
        }
    }

    /// Whether a device of this relay is open, or may be.
    pub fn holds(&self, id: &str) -> bool {
        let entry = self.entries.get(id);
        entry.is_some_and(|entry| entry.busy || entry.has.is_some())
    }

    /// When there is something to do although nothing was heard.
    pub fn next_due(&self) -> Option<Instant> {
        let idle = self.entries.values().filter(|entry| !entry.busy);
        let retry = idle.filter_map(|entry| entry.retry_at).min();
        self.look_at.into_iter().chain(retry).min()
    }

    /// Begins whatever leads to what is wanted. Devices are looked at when it is time. True: one is gone.
    pub fn want(&mut self, wanted: BTreeMap<String, Wanted>, now: Instant) -> bool {
        for (id, entry) in &mut self.entries {
            if entry.wanted.as_ref() != wanted.get(id) {
                (entry.tries, entry.retry_at, entry.failure) = (0, None, None);
            }
            entry.wanted = wanted.get(id).cloned();
        }
        for (id, wanted) in wanted {
            self.entries.entry(id).or_default().wanted = Some(wanted);
        }
        let lost = self.look_at.is_some_and(|at| at <= now) && self.look();
        self.go_on(now);
        let watched = |entry: &Entry| {
            let has = entry.has.as_ref();
            has.is_some_and(|has| has.watch != Watch::Nothing)
        };
        if !self.entries.values().any(watched) {
            self.look_at = None;
        } else if self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK_EVERY);
        }
        lost
    }

    fn look(&mut self) -> bool {
        let mut any = false;
        for (id, entry) in &mut self.entries {
            if let Some(has) = &mut entry.has
                && !has.lost
                && has.watch.gone()
            {
                tracing::warn!(relay = id, device = has.wanted.device, "device gone");
                (has.lost, any) = (true, true);
            }
        }
        any
    }

    /// The port was taken out of the data plane, and its device with it.
    pub fn closed(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.has = None;
        }
    }

    /// Takes the outcome of a step.
    pub fn take(&mut self, done: Done, now: Instant) {
        let Some(entry) = self.entries.get_mut(&done.id) else {
            return;
        };
        entry.busy = false;
        match done.outcome {
            Outcome::Ended => entry.has = None,
            Outcome::Started(wanted, Ok((name, watch))) => {
                // The port may have been taken out meanwhile, and the device with it.
                let relay = self.dataplane.relayed(wanted.number);
                if relay.is_some_and(|relay| relay.device == name) {
                    tracing::info!(relay = done.id, device = name, "relaying");
                    (entry.failure, entry.tries, entry.retry_at) = (None, 0, None);
                    entry.has = Some(Running {
                        wanted,
                        watch,
                        lost: false,
                    });
                }
            }
            Outcome::Started(wanted, Err(reason)) => {
                if entry.failure.as_ref() != Some(&reason) {
                    tracing::warn!(relay = done.id, device = wanted.device, reason, "device");
                }
                let wait = (FIRST_RETRY * (1 << entry.tries.min(6))).min(SLOWEST_RETRY);
                entry.tries = entry.tries.saturating_add(1);
                entry.retry_at = Some(now + wait);
                entry.failure = Some(reason);
            }
        }
    }

    fn go_on(&mut self, now: Instant) {
        self.entries
            .retain(|_, entry| entry.busy || entry.has.is_some() || entry.wanted.is_some());
        for (id, entry) in &mut self.entries {
            if entry.busy {
                continue;
            }
            let step = match (&entry.has, &entry.wanted) {
                (Some(has), Some(wanted)) if has.wanted == *wanted && !has.lost => continue,
                (Some(has), _) => Step::End(has.wanted.number),
                (None, Some(_)) if entry.retry_at.is_some_and(|at| at > now) => continue,
                (None, Some(wanted)) => {
                    if let Some(reason) = absent(&wanted.device) {
                        entry.failure = Some(reason);
                        entry.retry_at = Some(now + LOOK_EVERY);
                        continue;
                    }
                    Step::Start(wanted.clone(), self.eal.clone())
                }
                (None, None) => continue,
            };
            let (dataplane, done, own) = (
                Arc::clone(&self.dataplane),
                Arc::clone(&self.done),
                id.clone(),
            );
            let started = std::thread::Builder::new()
                .name("relay".into())
                .spawn(move || {
                    let outcome = step.run(&dataplane);
                    done(Done { id: own, outcome });
                });
            match started {
                Ok(_) => entry.busy = true,
                Err(error) => {
                    entry.failure = Some(format!("The operating system refuses a thread: {error}"));
                    entry.retry_at = Some(now + FIRST_RETRY);
                }
            }
        }
    }
}

enum Step {
    Start(Wanted, dpdk::Eal),
    End(PortId),
}

impl Step {
    fn run(self, dataplane: &Dataplane) -> Outcome {
        match self {
            Step::Start(wanted, eal) => {
                let started = start(dataplane, &eal, &wanted);
                Outcome::Started(wanted, started)
            }
            Step::End(number) => {
                // A port that is gone took its device along.
                if let Err(error) = dataplane.unrelay(number) {
                    tracing::debug!(error = chain(&error), "a relay ended before its device");
                }
                Outcome::Ended
            }
        }
    }
}

fn start(
    dataplane: &Dataplane,
    eal: &dpdk::Eal,
    wanted: &Wanted,
) -> Result<(String, Watch), String> {
    let port = dpdk::Port::attach(eal, &wanted.device).map_err(|error| chain(&error))?;
    let name = port.name().to_owned();
    let wake = match (port.driver(), argument(&wanted.device, "iface")) {
        // This driver has no interrupt, but its interface can be listened to.
        ("net_af_packet", Some(interface)) => Wake::Interface(interface.to_owned()),
        // These have neither: what AF_XDP takes, nobody else hears of.
        ("net_af_xdp" | "net_null" | "net_ring", _) => Wake::Timer,
        _ => Wake::Interrupt,
    };
    let watch = Watch::of(&wanted.device);
    dataplane
        .relay_with(wanted.number, port, Some(wake), wanted.mtu)
        .map_err(|error| chain(&error))?;
    Ok((name, watch))
}
