//! The control thread's part in relays: which there are, their sockets, which device each guest is to have now,
//! and how each of them is.

use super::Control;
use crate::desired;
use crate::diff::Attachment;
use crate::nics::vf_ports::{State, Wanted as WantedVf};
use crate::ports::chain;
use crate::relays::far::{Side, Wanted};
use crate::relays::spec::{Far, Origin, Spec};
use crate::relays::{id_of, kept};
use crate::topology;
use crate::view::{RelayView, Rings, feature_names};
use api::v1::{self, RelayState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// A relay was not added or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// Another one has its name.
    #[error("{0}")]
    Taken(String),
    /// Something it needs is not to be had, or it is not the API's to remove.
    #[error("{0}")]
    Refused(String),
    /// It could not be kept, and so is not used.
    #[error("{0}")]
    Keep(String),
}

/// Most relays of the API.
const MOST: usize = 1024;

impl Control {
    /// The relays that were kept; a damaged file is set aside.
    pub(super) fn load_relays(&mut self) {
        let path = self.parts.paths.relays();
        match kept::load(&path) {
            Ok(relays) => self.relays.api = relays,
            Err(error) => {
                tracing::error!(error = chain(&error), "relays of the API are lost");
                // The next one that is kept must not write over those that could not be read.
                crate::state_file::set_aside(&path);
            }
        }
        for name in self.relays.api.keys() {
            if self.relays.file.contains_key(name) {
                tracing::error!(
                    relay = name,
                    "agent.toml has a relay of this name; the API's is not used"
                );
            }
        }
    }

    pub(super) fn relay_socket(&self, spec: &Spec) -> PathBuf {
        match &spec.socket {
            Some(path) => self.parts.paths.relocate(path),
            None => self
                .parts
                .paths
                .vhost_dir()
                .join(format!("{}.sock", spec.name)),
        }
    }

    /// What the relays' backends are made of, by id.
    pub(super) fn relay_attachments(&self) -> BTreeMap<String, Attachment> {
        let relays = self.relays.iter();
        relays
            .map(|(spec, _)| {
                let attachment = Attachment {
                    mac: spec.mac,
                    mtu: spec.mtu,
                    queue_pairs: spec.queue_pairs,
                    queue_size: spec.queue_size,
                    mode: spec.mode,
                    socket: self.relay_socket(spec),
                };
                (id_of(&spec.name), attachment)
            })
            .collect()
    }

    /// The ports of binding xvio, with their networks.
    fn relayed_ports(&self) -> impl Iterator<Item = (&String, &desired::Port, &desired::Network)> {
        let ports = self.desired.ports.iter();
        let relayed = ports.filter(|(_, port)| port.relay.is_some());
        relayed.filter_map(|(id, port)| Some((id, port, self.desired.networks.get(&port.network)?)))
    }

    /// VFs of relays and of ports of binding xvio. One whose device is still open stays wanted.
    pub(super) fn add_relayed_vfs(&self, wanted: &mut BTreeMap<String, WantedVf>) {
        for (spec, _) in self.relays.iter() {
            let Far::Vf(address) = spec.far else { continue };
            let want = WantedVf {
                mac: spec.mac,
                vlan: spec.vlan,
                pool: None,
                device: Some(address),
                guest: String::new(),
            };
            wanted.insert(id_of(&spec.name), want);
        }
        for (id, port, network) in self.relayed_ports() {
            let relay = port.relay.as_ref();
            if relay.is_some_and(|relay| relay.device.is_some()) {
                continue;
            }
            let pool = relay.and_then(|relay| relay.pool.clone());
            let want = WantedVf {
                mac: port.mac,
                vlan: network.vlan,
                pool: pool.or_else(|| self.parts.sriov_pool.clone()),
                device: None,
                guest: relay.map(|relay| relay.owner.clone()).unwrap_or_default(),
            };
            wanted.insert(id.clone(), want);
        }
        for (id, before) in self.vf_ports.wanted() {
            if !wanted.contains_key(id) && self.fars.holds(id) {
                wanted.insert(id.to_owned(), before.clone());
            }
        }
    }

    /// Gives each guest that is connected its device, and takes it from those that are not.
    pub(super) fn far_sides(&mut self, now: Instant) {
        let mut wanted = BTreeMap::new();
        for (spec, _) in self.relays.iter() {
            let id = id_of(&spec.name);
            let device = match &spec.far {
                Far::Device(device) => Some(device.clone()),
                Far::Vf(_) => self.vf_of(&id),
            };
            self.add_wanted(&mut wanted, id, device, spec.mtu);
        }
        for (id, port, network) in self.relayed_ports() {
            let mtu = topology::mtu_of(network, self.parts.underlay.as_ref());
            let device = port.relay.as_ref().and_then(|relay| relay.device.clone());
            let device = device.or_else(|| self.vf_of(id));
            self.add_wanted(&mut wanted, id.clone(), device, mtu);
        }
        if self.fars.want(wanted, now) {
            // Where it was a VF, the manager is asked what became of it.
            self.vf_ports.look_again(now);
        }
    }

    fn add_wanted(
        &self,
        wanted: &mut BTreeMap<String, Wanted>,
        id: String,
        device: Option<String>,
        mtu: u16,
    ) {
        let connected = self.ports.status(&id).is_some_and(|s| s.connected);
        if let (true, Some(device), Some(number)) = (connected, device, self.ports.number(&id)) {
            let want = Wanted {
                number,
                device,
                mtu,
            };
            wanted.insert(id, want);
        }
    }

    fn vf_of(&self, id: &str) -> Option<String> {
        match self.vf_ports.state(id) {
            State::Ready(given) if dpdk::pci_address(&given.vf).is_some() => Some(given.vf),
            _ => None,
        }
    }

    /// Adds a relay of the API. False: it is there already.
    pub(super) fn add_relay(&mut self, spec: Spec, now: Instant) -> Result<bool, RelayError> {
        let name = spec.name.clone();
        if let Some((have, _)) = self.relays.get(&name) {
            if *have == spec {
                return Ok(false);
            }
            return Err(RelayError::Taken(format!(
                "There is a relay \"{name}\" with other settings; remove it first, or choose another name"
            )));
        }
        if self.relays.api.len() >= MOST {
            return Err(RelayError::Refused(format!(
                "This host has {MOST} relays of the API, which is the most; remove some first"
            )));
        }
        self.free_for(&spec)?;
        self.relays.api.insert(name.clone(), spec);
        if let Err(error) = self.keep_relays() {
            self.relays.api.remove(&name);
            return Err(error);
        }
        self.apply(now);
        let Some(reason) = self.ports.failure(&id_of(&name)).map(str::to_owned) else {
            return Ok(true);
        };
        self.relays.api.remove(&name);
        self.apply(now);
        self.keep_relays()?;
        Err(RelayError::Refused(reason))
    }

    /// Whether nobody of ours has what a relay needs for itself.
    fn free_for(&self, spec: &Spec) -> Result<(), RelayError> {
        let socket = self.relay_socket(spec);
        let refused = |why: String| Err(RelayError::Refused(why));
        for (id, other) in self.ports.attachments() {
            if other.socket == socket {
                let whose = match id.strip_prefix("xvio/") {
                    Some(relay) => format!("relay \"{relay}\""),
                    None => format!("port {id}"),
                };
                return refused(format!(
                    "Socket {} is that of {whose}; give the relay another",
                    socket.display()
                ));
            }
        }
        for (other, _) in self.relays.iter() {
            let same = match (&other.far, &spec.far) {
                (Far::Vf(a), Far::Vf(b)) => a == b,
                (a, b) => a.device_name().is_some() && a.device_name() == b.device_name(),
            };
            if same {
                return refused(format!(
                    "{} is the far side of relay \"{}\"; remove that, or take another",
                    spec.far.shown(),
                    other.name
                ));
            }
        }
        Ok(())
    }

    /// Removes a relay of the API. False: there is none.
    pub(super) fn remove_relay(&mut self, name: &str, now: Instant) -> Result<bool, RelayError> {
        if self.relays.file.contains_key(name) {
            return Err(RelayError::Refused(format!(
                "Relay \"{name}\" is in agent.toml; remove it there and reload the agent"
            )));
        }
        let Some(spec) = self.relays.api.remove(name) else {
            return Ok(false);
        };
        if let Err(error) = self.keep_relays() {
            self.relays.api.insert(name.to_owned(), spec);
            return Err(error);
        }
        self.apply(now);
        Ok(true)
    }

    fn keep_relays(&self) -> Result<(), RelayError> {
        let path = self.parts.paths.relays();
        kept::save(&path, &self.relays.api).map_err(|error| RelayError::Keep(chain(&error)))
    }

    /// How a relay, or a port of binding xvio, is.
    pub(super) fn relay_state(&self, id: &str, has_vf: bool, routed: bool) -> (RelayState, String) {
        if let Some(reason) = self.ports.failure(id) {
            return (RelayState::RelayFailed, reason.to_owned());
        }
        let Some(status) = self.ports.status(id) else {
            return (RelayState::Unspecified, String::new());
        };
        let vf = match self.vf_ports.state(id) {
            _ if !has_vf => None,
            State::Ready(given) if dpdk::pci_address(&given.vf).is_none() => {
                Some(format!("{} is no PCI function of its own", given.vf))
            }
            State::Ready(_) => None,
            State::Pending => Some(String::new()),
            State::Failed(reason) => Some(reason),
        };
        if !status.connected {
            return match vf {
                Some(reason) => (RelayState::RelayWaitingForVf, reason),
                None => {
                    let last = status.last_error.unwrap_or_default();
                    (RelayState::RelayWaitingForGuest, last)
                }
            };
        }
        let broken = status.broken_queues.first();
        let broken = broken.map(|(ring, why)| format!("Ring {ring} was stopped: {why}"));
        match (self.fars.side(id), vf) {
            (Side::Running, _) => (RelayState::RelayRelaying, broken.unwrap_or_default()),
            (_, Some(reason)) if !routed => (RelayState::RelayWaitingForVf, reason),
            (Side::Changing | Side::Idle, None) => (RelayState::RelayStarting, String::new()),
            (Side::Waiting(reason), _) if !routed => (RelayState::RelayWaitingForDevice, reason),
            (_, Some(reason)) | (Side::Waiting(reason), None) => {
                (RelayState::RelayOnSoftwarePath, reason)
            }
        }
    }

    /// Every relay, and every port of binding xvio, for the picture.
    pub(super) fn relay_views(&self) -> BTreeMap<String, RelayView> {
        let mut views = BTreeMap::new();
        for (spec, origin) in self.relays.iter() {
            let id = id_of(&spec.name);
            let origin = match origin {
                Origin::File => v1::RelayOrigin::RelayFromFile,
                Origin::Api => v1::RelayOrigin::RelayFromApi,
            };
            let socket = self.relay_socket(spec).display().to_string();
            let shown = v1::RelaySpec {
                socket,
                ..spec.to_api()
            };
            let has_vf = matches!(spec.far, Far::Vf(_));
            let state = self.relay_state(&id, has_vf, false);
            views.insert(id.clone(), self.relay_view(&id, shown, origin, state));
        }
        for (id, port, network) in self.relayed_ports() {
            let mtu = topology::mtu_of(network, self.parts.underlay.as_ref());
            let shown = self.port_as_relay(id, port, network.vlan, mtu);
            let device = port.relay.as_ref().and_then(|relay| relay.device.as_ref());
            let state = self.relay_state(id, device.is_none(), true);
            let mut view = self.relay_view(id, shown, v1::RelayOrigin::RelayOfPort, state);
            view.relay.network = network.name.clone();
            views.insert(id.clone(), view);
        }
        views
    }

    fn port_as_relay(&self, id: &str, port: &desired::Port, vlan: u16, mtu: u16) -> v1::RelaySpec {
        let mode = match port.mode {
            desired::SocketMode::Server => v1::SocketMode::AgentListens,
            desired::SocketMode::Client => v1::SocketMode::AgentConnects,
        };
        let socket = self.ports.socket(id).map(|path| path.display().to_string());
        v1::RelaySpec {
            name: port.name.clone(),
            socket: socket.unwrap_or_default(),
            mode: mode.into(),
            queue_pairs: port.queue_pairs.into(),
            queue_size: port.queue_size.into(),
            mtu: mtu.into(),
            mac: port.mac.to_string(),
            vlan: vlan.into(),
            far: match port.relay.as_ref().and_then(|relay| relay.device.clone()) {
                Some(device) => Some(v1::relay_spec::Far::Device(device)),
                None => self.vf_of(id).map(v1::relay_spec::Far::Vf),
            },
        }
    }

    fn relay_view(
        &self,
        id: &str,
        spec: v1::RelaySpec,
        origin: v1::RelayOrigin,
        (state, reason): (RelayState, String),
    ) -> RelayView {
        let status = self.ports.status(id);
        let relay = v1::Relay {
            spec: Some(spec),
            origin: origin.into(),
            state: state.into(),
            reason,
            guest_connected: status.as_ref().is_some_and(|s| s.connected),
            active_queue_pairs: status.as_ref().map_or(0, |s| s.active_queue_pairs.into()),
            features: feature_names(status.map_or(0, |s| s.features)),
            ..v1::Relay::default()
        };
        RelayView {
            relay,
            number: self.ports.number(id),
            rings: Rings(self.ports.rings(id)),
        }
    }
}
