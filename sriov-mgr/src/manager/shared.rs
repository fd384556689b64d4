//! What all calls of the manager share: the journal, the policies, and the locks.
//!
//! Locks, in the order in which they are taken:
//! 1. an owner's turn: one call at a time for one owner;
//! 2. a PF's lock: shared by calls about its VFs, alone for a change of the PF itself;
//! 3. the claims and the journal's own locks, held for a moment and never across a call of the kernel.

use super::{Error, Options};
use crate::device::{Device, VfId};
use crate::health::{Event, Seen};
use crate::journal::{JournalError, Record, Store};
use crate::kernel::{Kernel, KernelError, PfHealth, PfState, VfState};
use crate::life::choose::Source;
use crate::life::{Life, Patience};
use crate::policy::{Policy, Wanted, resolve};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// The manager's inside.
pub(crate) struct Shared {
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) store: Store,
    pub(crate) patience: Patience,
    pub(crate) root: PathBuf,
    policies: Mutex<Arc<Vec<Arc<Policy>>>>,
    pf_locks: Mutex<HashMap<Device, Arc<RwLock<()>>>>,
    turns: Mutex<HashSet<String>>,
    turn_over: Condvar,
    claims: Mutex<HashSet<VfId>>,
    listeners: Mutex<Vec<Sender<Event>>>,
    pub(crate) seen: Mutex<BTreeMap<Device, Seen>>,
    /// What each PF said of its errors when it was last asked.
    pub(crate) errors: Mutex<BTreeMap<Device, PfHealth>>,
}

/// What was left by a thread that panicked is whole: each of these is changed in one go.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn open(options: Options) -> Result<Shared, Error> {
        Ok(Shared {
            store: Store::open(&options.dir, options.crash)?,
            kernel: options.kernel,
            patience: options.patience,
            root: options.root,
            policies: Mutex::default(),
            pf_locks: Mutex::default(),
            turns: Mutex::default(),
            turn_over: Condvar::new(),
            claims: Mutex::default(),
            listeners: Mutex::default(),
            seen: Mutex::default(),
            errors: Mutex::default(),
        })
    }

    pub(crate) fn life(&self) -> Life<'_> {
        Life {
            kernel: &*self.kernel,
            patience: &self.patience,
        }
    }

    pub(crate) fn write(&self, record: Record) -> Result<(), JournalError> {
        self.store.write(record)
    }

    pub(crate) fn policies(&self) -> Arc<Vec<Arc<Policy>>> {
        lock(&self.policies).clone()
    }

    pub(crate) fn replace_policies(&self, policies: Vec<Policy>) {
        *lock(&self.policies) = Arc::new(policies.into_iter().map(Arc::new).collect());
    }

    pub(crate) fn wanted(&self, state: &PfState) -> Option<Wanted> {
        resolve(&self.policies(), state)
    }

    pub(crate) fn pf_lock(&self, pf: &Device) -> Arc<RwLock<()>> {
        lock(&self.pf_locks).entry(pf.clone()).or_default().clone()
    }

    /// Waits until no other call is about `owner`.
    pub(crate) fn turn(&self, owner: &str) -> Turn<'_> {
        let mut turns = lock(&self.turns);
        while turns.contains(owner) {
            let waited = self.turn_over.wait(turns);
            turns = waited.unwrap_or_else(PoisonError::into_inner);
        }
        turns.insert(owner.to_owned());
        Turn {
            shared: self,
            owner: owner.to_owned(),
        }
    }

    /// Keeps other calls from choosing `vf`, if none has chosen it.
    pub(crate) fn claim(&self, vf: &VfId) -> Option<Claim<'_>> {
        let free = lock(&self.claims).insert(vf.clone());
        // Not `then_some`: a claim that is made and dropped would take away the other call's.
        free.then(|| Claim {
            shared: self,
            vf: vf.clone(),
        })
    }

    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        lock(&self.listeners).push(sender);
        receiver
    }

    pub(crate) fn tell(&self, event: &Event) {
        lock(&self.listeners).retain(|listener| listener.send(event.clone()).is_ok());
    }

    /// Every PF that is there and answers; an error where none does and one fails. A NIC that fails is no
    /// reason to do without the others.
    pub(crate) fn pf_states(&self) -> Result<Vec<PfState>, KernelError> {
        let (mut states, mut failed) = (Vec::new(), None);
        for pf in self.kernel.pfs()? {
            match self.kernel.pf(&pf) {
                Ok(state) => states.push(state),
                // Gone since the list was made, or stuck.
                Err(KernelError::Gone { .. } | KernelError::Wedged { .. }) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if states.is_empty() => Err(error),
            _ => Ok(states),
        }
    }

    /// Every VF of `pf`; one by one where they do not fit into one answer (R18).
    pub(crate) fn vf_states(&self, pf: &Device) -> Result<Vec<VfState>, KernelError> {
        match self.kernel.vfs(pf) {
            Err(error) if matches!(error.errno(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                let count = self.kernel.pf(pf)?.num_vfs;
                (0..count).map(|index| self.kernel.vf(pf, index)).collect()
            }
            other => other,
        }
    }

    /// PFs whose VFs may be handed out: ours, and those that a policy calls external.
    pub(crate) fn sources(&self) -> Result<Vec<Source>, KernelError> {
        let mut sources = Vec::new();
        for state in self.pf_states()? {
            let wanted = self.wanted(&state);
            let external = wanted.as_ref().is_some_and(|wanted| wanted.external);
            let ours = self.store.read(|ledger| {
                let entry = ledger.pf(&state.device);
                entry.operation.is_none() && entry.ours(state.num_vfs)
            });
            let well = state.driver.is_some() && self.kernel.wedged(&state.device).is_none();
            if well && state.num_vfs > 0 && (ours || external) {
                sources.push(Source { state, wanted });
            }
        }
        Ok(sources)
    }
}

/// An owner's turn; over when it is dropped.
pub(crate) struct Turn<'a> {
    shared: &'a Shared,
    owner: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.shared.turns).remove(&self.owner);
        self.shared.turn_over.notify_all();
    }
}

/// A VF that a call has chosen and not yet written down.
pub(crate) struct Claim<'a> {
    shared: &'a Shared,
    vf: VfId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.shared.claims).remove(&self.vf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::FakeKernel;
    use std::time::Duration;

    #[test]
    fn a_vf_that_is_claimed_cannot_be_claimed_until_that_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path(), FakeKernel::builder().build());
        let shared = Arc::new(Shared::open(options).unwrap());
        let (done, wait) = channel();
        let claimed = Arc::clone(&shared);
        // In a thread: waiting for a lock of its own would be for ever.
        std::thread::spawn(move || {
            let vf = VfId {
                pf: "0000:01:00.0".parse().unwrap(),
                index: 0,
            };
            let first = claimed.claim(&vf);
            let refused = [claimed.claim(&vf).is_none(), claimed.claim(&vf).is_none()];
            let had = first.is_some();
            drop(first);
            done.send((had, refused, claimed.claim(&vf).is_some()))
        });
        let found = wait.recv_timeout(Duration::from_secs(30));
        assert_eq!(found, Ok((true, [true, true], true)));
    }
}
