//! This host's NICs: the SR-IOV manager as a part of the agent.
//!
//! ```text
//!   agent.toml ─┐                       ┌─ service: the local API
//!   API's file ─┴▶ policies ─▶ Manager ─┼─ vf_ports: ports of binding sriov (control thread)
//!                                ▲      └─ keeper: opens it, applies what disturbs nobody, reconciles
//!   kernel's events, a timer ────┘
//! ```
//!
//! Whatever touches a NIC may take as long as the NIC pleases. So the manager is opened and kept by a thread
//! of its own, the API calls it from threads for blocking work, and each VF that is handed out or taken back
//! for a port has a thread for that time. The control thread waits for none of them.

pub mod asked;
mod keeper;
pub mod kernel;
pub mod policies;
pub mod service;
pub mod shown;
pub mod vf_check;
pub mod vf_ports;

pub use keeper::{Start, start};

use crate::ports::chain;
use api::v1;
use keeper::Wake;
use policies::Policies;
use sriov_mgr::Manager;
use sriov_mgr::policy::Policy;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::broadcast;

/// Events that a watcher may be behind before it misses some.
const EVENTS: usize = 1024;

/// Problems of policies that one answer holds.
const PROBLEMS: usize = 8;

/// What is said before the manager is open.
const OPENING: &str =
    "The NICs are still being looked at after the agent's start; try again in a moment";

/// The manager, as soon as it is there. Cheap to clone.
#[derive(Clone)]
pub struct Nics(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    decided: Condvar,
    policies: Mutex<Policies>,
    /// Where those of the API are kept.
    file: PathBuf,
    /// What is wrong with the policies, if anything: they are not in force.
    trouble: Mutex<Vec<String>>,
    events: broadcast::Sender<v1::NicEvent>,
    /// VFs may have gone or come since their owners were told.
    moved: AtomicBool,
    waker: Mutex<Option<Sender<Wake>>>,
}

#[derive(Clone)]
enum State {
    /// The journal is being read, and what was begun is being finished.
    Opening,
    /// It works, but is still made as the policies want it: VFs of ports are not there yet.
    Settling(Manager),
    /// It works.
    Open(Manager),
    /// It does not, and why.
    Closed(String),
}

/// The policies were not replaced.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// A name that agent.toml has too.
    #[error("There is a policy \"{0}\" in agent.toml; choose another name, or change that one")]
    Clash(String),
    /// Something in them is wrong.
    #[error("{0}")]
    Wrong(String),
    /// No manager.
    #[error("{0}")]
    NoManager(String),
    /// They could not be kept, and so are not used.
    #[error(transparent)]
    Keep(#[from] policies::KeepError),
}

impl Nics {
    /// Not open yet ([`start`]). The policies of the API are kept in `file`.
    pub fn new(file: PathBuf) -> Nics {
        Nics(Arc::new(Shared {
            state: Mutex::new(State::Opening),
            decided: Condvar::new(),
            policies: Mutex::default(),
            file,
            trouble: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            moved: AtomicBool::new(false),
            waker: Mutex::default(),
        }))
    }

    /// The manager, or why there is none (yet).
    pub fn manager(&self) -> Result<Manager, String> {
        match &*lock(&self.0.state) {
            State::Settling(manager) | State::Open(manager) => Ok(manager.clone()),
            State::Closed(why) => Err(why.clone()),
            State::Opening => Err(OPENING.to_owned()),
        }
    }

    /// The manager; waits until it is decided whether there is one, and until it has done what the policies
    /// of the start want.
    pub fn wait(&self) -> Result<Manager, String> {
        let busy = |state: &mut State| matches!(state, State::Opening | State::Settling(_));
        let state = self.0.decided.wait_while(lock(&self.0.state), busy);
        drop(state);
        self.manager()
    }

    /// What was closed stays so: the agent may end while its NICs are still being looked at.
    fn decide(&self, new: State) {
        let mut state = lock(&self.0.state);
        if !matches!(*state, State::Closed(_)) {
            *state = new;
        }
        drop(state);
        self.0.decided.notify_all();
    }

    /// Something happened to a NIC: it is looked at, after a moment of quiet. False: nobody looks any more.
    pub fn look(&self) -> bool {
        self.wake(Wake::Look)
    }

    /// Manages NICs no more. VFs stay with whoever has them.
    pub fn stop(&self) {
        self.wake(Wake::Stop);
        self.decide(State::Closed("The agent is stopping".to_owned()));
    }

    fn wake(&self, wake: Wake) -> bool {
        let waker = lock(&self.0.waker);
        waker.as_ref().is_some_and(|waker| waker.send(wake).is_ok())
    }

    /// What happens to NICs from now on.
    pub fn events(&self) -> broadcast::Receiver<v1::NicEvent> {
        self.0.events.subscribe()
    }

    /// The policies of both kinds.
    pub fn policies(&self) -> Policies {
        lock(&self.0.policies).clone()
    }

    /// What is wrong with the policies; they are not in force then.
    pub fn trouble(&self) -> Vec<String> {
        lock(&self.0.trouble).clone()
    }

    /// Replaces the policies of agent.toml. Those of the API stay; a set that does not fit together changes
    /// nothing.
    pub fn set_file_policies(&self, file: Vec<Policy>) -> Result<(), SetError> {
        let mut held = lock(&self.0.policies);
        let new = Policies {
            file,
            api: held.api.clone(),
        };
        self.take(&new)?;
        *held = new;
        Ok(())
    }

    /// Replaces the policies of the API, and keeps them.
    pub fn set_api_policies(&self, api: Vec<Policy>) -> Result<(), SetError> {
        let mut held = lock(&self.0.policies);
        let new = Policies {
            file: held.file.clone(),
            api,
        };
        self.take(&new)?;
        if let Err(error) = policies::save(&self.0.file, &new.api) {
            // What would be forgotten at the next start is not used now either.
            if let Err(back) = self.take(&held) {
                tracing::error!(error = chain(&back), "earlier policies are not in force");
            }
            return Err(error.into());
        }
        *held = new;
        Ok(())
    }

    fn take(&self, new: &Policies) -> Result<(), SetError> {
        if let Some(name) = new.clash() {
            return Err(SetError::Clash(name.to_owned()));
        }
        let manager = self.manager().map_err(SetError::NoManager)?;
        match manager.set_policies(new.all()) {
            Ok(()) => {
                lock(&self.0.trouble).clear();
                Ok(())
            }
            Err(problems) => {
                // Many policies may have many, and an error has its length.
                let more = problems.len().saturating_sub(PROBLEMS);
                let first = problems.iter().take(PROBLEMS).map(ToString::to_string);
                let more = (more > 0).then(|| format!("and {more} more"));
                let all: Vec<String> = first.chain(more).collect();
                Err(SetError::Wrong(all.join("; ")))
            }
        }
    }
}

/// What a mutex holds. Nobody panics while holding one, and if so, what is in it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
