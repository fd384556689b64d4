//! The way to the control thread, for everybody else.

use super::{Command, RelayError, StepAnswer};
use crate::desired::Desired;
use crate::relays::spec::Spec;
use crate::view::View;
use api::v1;
use flow::MacAddr;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc;
use tokio::sync::{oneshot, watch};

/// What the agent has.
#[derive(Clone, Debug, Default)]
pub struct Have {
    /// Of which store.
    pub store_id: String,
    /// Keys and revisions.
    pub have: Vec<v1::Have>,
}

/// The way to the control thread.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, view: watch::Receiver<Arc<View>>) -> Handle {
        Handle { commands, view }
    }

    /// Replaces the whole desired state by that of a file.
    pub fn replace(&self, desired: Desired) {
        let _ = self.commands.send(Command::Replace(Box::new(desired)));
    }

    /// Applies a step of the controller; the version that is applied then. `None`: the agent stops.
    pub async fn step(&self, step: v1::Desired) -> Option<StepAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Step(Box::new(step), reply))
            .ok()?;
        answer.await.ok()
    }

    /// What the agent has.
    pub async fn have(&self) -> Option<Have> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Have(reply)).ok()?;
        answer.await.ok()
    }

    /// Forgets which store the state came from, so that the next hello asks for everything.
    pub async fn forget_store(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::ForgetStore(reply)).ok()?;
        answer.await.ok()
    }

    /// The agent's picture of itself, and its changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Tells of an answer of a neighbour.
    pub fn learned(&self, ip: IpAddr, mac: MacAddr) {
        let _ = self.commands.send(Command::Learned(ip, mac));
    }

    /// Tells of a packet that waits for a neighbour.
    pub fn wanted(&self, ip: IpAddr) {
        let _ = self.commands.send(Command::Wanted(ip));
    }

    /// Tells that VFs may have come or gone, and who has one now.
    pub fn nics_moved(&self, owners: Vec<String>) {
        let _ = self.commands.send(Command::NicsMoved(owners));
    }

    /// Replaces the relays of the file.
    pub fn file_relays(&self, relays: BTreeMap<String, Spec>) {
        let _ = self.commands.send(Command::FileRelays(relays));
    }

    /// Adds a relay of the API; false: it was there. `None`: the agent stops.
    pub async fn add_relay(&self, spec: Spec) -> Option<Result<bool, RelayError>> {
        let (reply, answer) = oneshot::channel();
        let spec = Box::new(spec);
        self.commands.send(Command::AddRelay(spec, reply)).ok()?;
        answer.await.ok()
    }

    /// Removes a relay of the API; false: there was none. `None`: the agent stops.
    pub async fn remove_relay(&self, name: String) -> Option<Result<bool, RelayError>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::RemoveRelay(name, reply)).ok()?;
        answer.await.ok()
    }

    /// Takes everything down and ends the thread.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}
