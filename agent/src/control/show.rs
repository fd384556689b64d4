//! The picture that the control thread draws of itself: every port with its status.

use super::Control;
use crate::desired;
use crate::nics::vf_ports::State;
use crate::view::{PortView, View, api_port, api_vf_port};
use api::v1;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Control {
    /// Draws the picture, where it has changed.
    pub(super) fn show(&mut self) {
        let mut shown = BTreeMap::new();
        for (id, port) in &self.desired.ports {
            let network = self.desired.networks.get(&port.network);
            let status = self.ports.status(id);
            let mut view = PortView {
                port: api_port(id, port, &self.desired, &self.parts.host),
                number: self.numbers.get(id),
                vni: network.map_or(0, |n| n.vni),
                features: status.as_ref().map_or(0, |s| s.features),
                active_queue_pairs: status.as_ref().map_or(0, |s| s.active_queue_pairs),
            };
            let mut state = self.port_status(id, status.as_ref());
            if let Some(stem) = self.saved.sockets.get(id) {
                let path = self.parts.paths.vhost_dir().join(format!("{stem}.sock"));
                state.socket = path.display().to_string();
            } else if let Some(own) = &port.socket {
                state.socket = self.parts.paths.relocate(own).display().to_string();
            }
            if let Some(relay) = &port.relay
                && state.state() == v1::PortState::Ready
            {
                let has_vf = relay.device.is_none();
                self.relay_status(id, has_vf, network.map_or(0, |n| n.vlan), &mut state);
            }
            view.port.status = Some(state);
            shown.insert(id.clone(), view);
        }
        for (id, port) in &self.desired.vf_ports {
            let view = self.vf_view(id, port, shown.remove(id));
            shown.insert(id.clone(), view);
        }
        for (id, (name, reason)) in &self.desired.refused {
            let mut port = v1::Port {
                id: id.clone(),
                name: name.clone(),
                ..v1::Port::default()
            };
            port.status = Some(failed(reason));
            shown.insert(
                id.clone(),
                PortView {
                    port,
                    ..PortView::default()
                },
            );
        }
        let (version, before) = (self.saved.resources.version, self.view.borrow().clone());
        let same_router = Arc::ptr_eq(&before.router, &self.router);
        let relays = self.relay_views();
        let same = shown == self.shown && before.relays == relays;
        if !same || before.applied_version != version || !same_router {
            self.shown = shown.clone();
            let networks = self
                .desired
                .networks
                .values()
                .map(|n| (n.vni, n.name.clone()))
                .collect();
            let router = Arc::clone(&self.router);
            let view = View {
                ports: shown,
                relays,
                applied_version: version,
                networks,
                router,
            };
            self.view.send_replace(Arc::new(view));
        }
    }

    /// What a port of binding xvio that is ready shows of its VF: without one, the router carries it.
    fn relay_status(&self, id: &str, has_vf: bool, vlan: u16, status: &mut v1::PortStatus) {
        if let State::Ready(given) = self.vf_ports.state(id) {
            status.vf = given.vf;
            status.vlan = vlan.into();
        }
        let (state, reason) = self.relay_state(id, has_vf, true);
        let away = matches!(
            state,
            v1::RelayState::RelayOnSoftwarePath | v1::RelayState::RelayWaitingForVf
        );
        if away && !reason.is_empty() && status.reason.is_empty() {
            status.reason = format!("On the software path: {reason}");
        }
    }

    fn port_status(&self, id: &str, status: Option<&xvio::Status>) -> v1::PortStatus {
        if let Some(reason) = self.refused.get(id) {
            return failed(reason);
        }
        match (status, self.ports.failure(id)) {
            (Some(status), _) => {
                let broken = status.broken_queues.first();
                v1::PortStatus {
                    state: v1::PortState::Ready.into(),
                    reason: broken
                        .map(|(ring, why)| format!("Ring {ring} was stopped: {why}"))
                        .unwrap_or_default(),
                    guest_connected: status.connected,
                    ..Default::default()
                }
            }
            (None, Some(reason)) => failed(reason),
            (None, None) => v1::PortStatus {
                state: v1::PortState::Pending.into(),
                ..Default::default()
            },
        }
    }

    /// A port with a VF, beside its standby where it has one.
    fn vf_view(&self, id: &str, port: &desired::VfPort, standby: Option<PortView>) -> PortView {
        let network = self.desired.networks.get(&port.network);
        let mut view = standby.unwrap_or_default();
        let of_standby = view.port.status.take();
        view.vni = network.map_or(0, |n| n.vni);
        let mut status = self.vf_status(id, port);
        if let Some(other) = of_standby {
            status = both(status, other);
        }
        let virtio = view.port.virtio.take();
        view.port = api_vf_port(id, port, &self.desired, &self.parts.host);
        view.port.virtio = virtio;
        view.port.status = Some(status);
        view
    }
}

/// The status of a VF with a standby: as good as the worse of the two.
fn both(vf: v1::PortStatus, standby: v1::PortStatus) -> v1::PortStatus {
    let rank = |status: &v1::PortStatus| match status.state() {
        v1::PortState::Failed => 0,
        v1::PortState::Unspecified | v1::PortState::Pending => 1,
        v1::PortState::Ready => 2,
    };
    let worse = if rank(&standby) < rank(&vf) {
        &standby
    } else {
        &vf
    };
    let reasons: Vec<&str> = [vf.reason.as_str(), standby.reason.as_str()]
        .into_iter()
        .filter(|reason| !reason.is_empty())
        .collect();
    v1::PortStatus {
        state: worse.state,
        reason: reasons.join("; "),
        socket: standby.socket.clone(),
        guest_connected: standby.guest_connected,
        vf: vf.vf.clone(),
        vlan: vf.vlan,
    }
}

pub(super) fn failed(reason: &str) -> v1::PortStatus {
    v1::PortStatus {
        state: v1::PortState::Failed.into(),
        reason: reason.to_owned(),
        ..v1::PortStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: v1::PortState, reason: &str, vf: &str, socket: &str) -> v1::PortStatus {
        v1::PortStatus {
            state: state.into(),
            reason: reason.into(),
            vf: vf.into(),
            socket: socket.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pair_is_ready_when_both_are() {
        let vf = status(v1::PortState::Ready, "", "0000:3b:02.1", "");
        let standby = status(v1::PortState::Ready, "", "", "/s");
        let pair = both(vf.clone(), standby);
        assert_eq!(pair.state(), v1::PortState::Ready);
        assert_eq!(
            (pair.vf.as_str(), pair.socket.as_str()),
            ("0000:3b:02.1", "/s")
        );
        let pair = both(vf, status(v1::PortState::Failed, "No socket", "", ""));
        assert_eq!(pair.state(), v1::PortState::Failed);
        assert_eq!(pair.reason, "No socket");
    }
}
