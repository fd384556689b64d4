//! The thread that opens the manager and keeps the NICs as the policies want them.

use super::{Nics, State, lock, policies, shown};
use crate::ports::chain;
use sriov_mgr::kernel::events::{KernelEvent, Watch};
use sriov_mgr::manager::{Applied, Error as ManagerError, Options, Recovered};
use sriov_mgr::policy::Policy;
use sriov_mgr::{Device, Event, Manager};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often the NICs are compared with what is wanted although nothing was heard.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A change of a NIC comes as many events; they are dealt with together once this long was quiet.
const QUIET: Duration = Duration::from_millis(300);
/// But not later than after so many.
const BURST: usize = 10_000;

/// What the thread is woken for.
pub(super) enum Wake {
    /// Something happened to a NIC.
    Look,
    /// The agent ends.
    Stop,
}

/// What the thread is started with.
pub struct Start {
    /// The manager's.
    pub options: Options,
    /// Those of agent.toml.
    pub file: Vec<Policy>,
    /// The kernel's events; without them the NICs are looked at now and then.
    pub watch: Option<Watch>,
    /// Told the owners of VFs when the manager is open, and when a VF may have gone or come.
    pub moved: Box<dyn Fn(Vec<String>) + Send>,
}

/// Starts it.
pub fn start(nics: &Nics, mut start: Start) -> std::io::Result<()> {
    let nics = nics.clone();
    let (waker, wakes) = mpsc::channel();
    *lock(&nics.0.waker) = Some(waker);
    // Listened to before the NICs are looked at for the first time: nothing is missed in between.
    let watch = start.watch.take();
    if let Some(watch) = watch {
        let nics = nics.clone();
        std::thread::Builder::new()
            .name("nic-changes".into())
            .spawn(move || listen(&nics, &watch))?;
    }
    std::thread::Builder::new()
        .name("nics".into())
        .spawn(move || keep(&nics, start, &wakes))?;
    Ok(())
}

fn keep(nics: &Nics, start: Start, wakes: &Receiver<Wake>) {
    let opened = Manager::open(start.options);
    let (manager, recovered) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let why = chain(&error);
            tracing::error!(error = why, "NICs are not managed");
            nics.decide(State::Closed(format!(
                "NICs are not managed on this host: {why}"
            )));
            (start.moved)(Vec::new());
            return;
        }
    };
    say(&recovered);
    let events = manager.subscribe();
    let told = nics.clone();
    let forwarded = std::thread::Builder::new()
        .name("nic-events".into())
        .spawn(move || forward(&told, &events));
    if let Err(error) = forwarded {
        tracing::error!(%error, "nobody will see the NICs' events");
    }
    nics.decide(State::Settling(manager.clone()));
    let any = take_policies(nics, start.file);
    let known = pfs(&manager).unwrap_or_default();
    if any {
        apply(&manager, None);
    }
    nics.decide(State::Open(manager.clone()));
    (start.moved)(owners(&manager));
    run(nics, &manager, wakes, &*start.moved, known);
}

/// Has the NICs looked at when the kernel says that one came, went, or changed its driver.
fn listen(nics: &Nics, watch: &Watch) {
    while let Ok(event) = watch.events.recv() {
        let matters = match &event {
            KernelEvent::Added(_) | KernelEvent::Removed(_) | KernelEvent::Lost => true,
            KernelEvent::Bound(device) | KernelEvent::Unbound(device) => !is_vf(device),
            // Carrier, addresses, and each setting of a VF that is made by us too.
            KernelEvent::Link { .. } | KernelEvent::LinkGone { .. } => false,
        };
        if matters && !nics.look() {
            return;
        }
    }
}

/// Whether it is a VF: each that is handed out or given back changes its driver.
fn is_vf(device: &Device) -> bool {
    let place = Path::new("/sys/bus/pci/devices").join(device.to_string());
    place.join("physfn").exists()
}

fn say(recovered: &Recovered) {
    for what in &recovered.done {
        tracing::info!(what, "after the restart");
    }
    for what in &recovered.open {
        tracing::warn!(what, "not finished after the restart; tried again");
    }
}

/// Sets the policies of both kinds, or where they do not fit together, those of the file. Whether any are set.
fn take_policies(nics: &Nics, file: Vec<Policy>) -> bool {
    let mut trouble = Vec::new();
    let api = policies::load(&nics.0.file).unwrap_or_else(|error| {
        trouble.push(chain(&error));
        Vec::new()
    });
    lock(&nics.0.policies).api = api.clone();
    let mut outcome = nics.set_file_policies(file.clone());
    if let Err(error) = &outcome
        && !api.is_empty()
    {
        trouble.push(format!(
            "The policies of the API are not in force: {}",
            chain(error)
        ));
        lock(&nics.0.policies).api.clear();
        outcome = nics.set_file_policies(file);
    }
    if let Err(error) = outcome {
        trouble.push(format!(
            "The policies of agent.toml are not in force: {}",
            chain(&error)
        ));
    }
    for problem in &trouble {
        tracing::error!(problem, "policies");
    }
    *lock(&nics.0.trouble) = trouble;
    !nics.policies().all().is_empty()
}

/// Does what disturbs nobody, on those PFs or all; the rest waits for an operator.
fn apply(manager: &Manager, only: Option<&BTreeSet<Device>>) {
    let progress = |step: &sriov_mgr::manager::Progress| {
        tracing::info!(nic = %step.device, step = step.step, of = step.of, step.what, "partitioning");
    };
    let applied = match only {
        Some(pfs) => manager.apply_to(pfs, false, &progress),
        None => manager.apply(false, &progress),
    };
    match applied {
        Ok(applied) => say_applied(&applied),
        Err(error) => tracing::error!(error = chain(&error), "policies are not applied"),
    }
}

fn say_applied(applied: &Applied) {
    for done in &applied.done {
        tracing::info!(nic = %done.device, vfs = done.num_vfs, "as the policies want it");
    }
    for (list, what) in [
        (&applied.refused, "pending; `ferrovia nic plan` shows it"),
        (&applied.failed, "policies are not applied"),
    ] {
        for refusal in list {
            let nic = refusal.device.as_ref().map(ToString::to_string);
            tracing::warn!(nic, why = refusal.why, "{what}");
        }
    }
    for warning in &applied.warnings {
        tracing::warn!(why = warning.why, "policies");
    }
}

/// Passes the manager's events on to whoever watches.
fn forward(nics: &Nics, events: &Receiver<Event>) {
    while let Ok(event) = events.recv() {
        if moves_vfs(&event) {
            // Also when an operator did it: ports ask for their VFs again.
            nics.0.moved.store(true, Ordering::Release);
            nics.look();
        }
        let event = shown::event(&event);
        match event.kind.as_str() {
            "pf-gone" | "driver-gone" | "pf-wedged" | "health" | "vfs-gone" | "drift" | "lost"
            | "failed" => {
                tracing::warn!(event = event.kind, event.text, "NIC");
            }
            _ => tracing::info!(event = event.kind, event.text, "NIC"),
        }
        // Nobody watching is no error.
        let _ = nics.0.events.send(event);
    }
}

fn owners(manager: &Manager) -> Vec<String> {
    let all = manager.allocations().into_iter();
    all.map(|allocation| allocation.owner).collect()
}

fn pfs(manager: &Manager) -> Result<BTreeSet<Device>, ManagerError> {
    let views = manager.pfs()?;
    Ok(views.into_iter().map(|view| view.state.device).collect())
}

fn run(
    nics: &Nics,
    manager: &Manager,
    wakes: &Receiver<Wake>,
    moved: &dyn Fn(Vec<String>),
    mut known: BTreeSet<Device>,
) {
    let mut last_error = String::new();
    while wait(nics, manager, wakes) {
        match look(manager, &mut known) {
            Ok(is_new) => {
                last_error.clear();
                if nics.0.moved.swap(false, Ordering::AcqRel) || is_new {
                    moved(owners(manager));
                }
            }
            Err(error) => {
                let error = chain(&error);
                if error != last_error {
                    tracing::warn!(error, "NICs cannot be looked at");
                }
                last_error = error;
            }
        }
    }
}

/// Compares the NICs with what is wanted. On those that are new, what the policies want is done as at the
/// agent's start. Whether there are any.
fn look(manager: &Manager, known: &mut BTreeSet<Device>) -> Result<bool, ManagerError> {
    manager.reconcile()?;
    let now = pfs(manager)?;
    let new: BTreeSet<Device> = now.difference(known).cloned().collect();
    *known = now;
    for pf in &new {
        tracing::info!(nic = %pf, "there is a NIC that was not there before");
    }
    if !new.is_empty() {
        apply(manager, Some(&new));
    }
    Ok(!new.is_empty())
}

/// Sleeps until something happened, or until it is time to look anyhow: where there is no PF and no policy
/// there is nothing to look at. False: the agent ends.
fn wait(nics: &Nics, manager: &Manager, wakes: &Receiver<Wake>) -> bool {
    let idle = nics.policies().all().is_empty() && manager.pfs().is_ok_and(|pfs| pfs.is_empty());
    let first = if idle {
        wakes.recv().map_err(|_| RecvTimeoutError::Disconnected)
    } else {
        wakes.recv_timeout(LOOK_EVERY)
    };
    match first {
        Ok(Wake::Look) => {}
        Err(RecvTimeoutError::Timeout) => return true,
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
    }
    for _ in 0..BURST {
        match wakes.recv_timeout(QUIET) {
            Ok(Wake::Look) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// Whether a port's VF may be another one, or there again.
fn moves_vfs(event: &Event) -> bool {
    matches!(
        event,
        Event::PfBack { .. }
            | Event::PfAnswers { .. }
            | Event::VfsGone { .. }
            | Event::VfsMade { .. }
            | Event::Lost { .. }
    )
}
