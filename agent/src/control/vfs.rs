//! The control thread's part in ports with a VF: what they want, and whose VFs nobody wants any more.

use super::Control;
use super::show::failed;
use crate::desired::VfPort;
use crate::nics::vf_ports::{State, Wanted};
use api::v1;
use std::collections::BTreeMap;
use std::time::Instant;

impl Control {
    pub(super) fn wanted_vfs(&self) -> BTreeMap<String, Wanted> {
        let mut wanted = BTreeMap::new();
        for (id, port) in &self.desired.vf_ports {
            let Some(network) = self.desired.networks.get(&port.network) else {
                continue;
            };
            let pool = port.pool.clone().or_else(|| self.parts.sriov_pool.clone());
            let want = Wanted {
                mac: port.mac,
                vlan: network.vlan,
                pool,
                device: None,
                guest: port.owner.clone(),
            };
            wanted.insert(id.clone(), want);
        }
        self.add_relayed_vfs(&mut wanted);
        wanted
    }

    /// The desired state is known now: the first time, VFs of ports that are not in it are looked for.
    pub(super) fn trust(&mut self, now: Instant) {
        if !self.trusted {
            self.trusted = true;
            self.find_leftovers(now);
        }
    }

    /// An agent that does not know what it should have gives nothing back.
    pub(super) fn find_leftovers(&mut self, now: Instant) {
        if self.trusted {
            self.vf_ports.find_leftovers(&self.vf_owners, now);
        }
    }

    pub(super) fn vf_status(&self, id: &str, port: &VfPort) -> v1::PortStatus {
        if !self.desired.networks.contains_key(&port.network) {
            return failed(&format!(
                "Network {} of port \"{}\" is not known here",
                port.network, port.name
            ));
        }
        match self.vf_ports.state(id) {
            State::Pending => v1::PortStatus {
                state: v1::PortState::Pending.into(),
                ..Default::default()
            },
            State::Ready(given) => v1::PortStatus {
                state: v1::PortState::Ready.into(),
                reason: given.notes.join("; "),
                vf: given.vf,
                vlan: given.vlan.into(),
                ..Default::default()
            },
            State::Failed(reason) => failed(&reason),
        }
    }
}
