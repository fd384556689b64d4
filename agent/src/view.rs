//! What the agent shows of itself: an immutable picture, replaced whole after each change, which the
//! local API and the controller's stream read.

use crate::desired::{self, Desired};
use crate::topology;
use api::v1;
use flow::PortId;
use std::collections::BTreeMap;
use std::sync::Arc;
use vrouter::VRouter;

/// The picture.
#[derive(Clone, Debug)]
pub struct View {
    /// Ports by id.
    pub ports: BTreeMap<String, PortView>,
    /// Relays, and ports of binding xvio, by id.
    pub relays: BTreeMap<String, RelayView>,
    /// The version of the controller's state that has been applied.
    pub applied_version: u64,
    /// The networks' names by VNI, for flows.
    pub networks: BTreeMap<u32, String>,
    /// The router that the workers have.
    pub router: Arc<VRouter>,
}

impl Default for View {
    fn default() -> Self {
        View {
            ports: BTreeMap::new(),
            relays: BTreeMap::new(),
            applied_version: 0,
            networks: BTreeMap::new(),
            router: Arc::new(topology::empty(0)),
        }
    }
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortView {
    /// The port with its status.
    pub port: v1::Port,
    /// Its number, where it has been in the data plane.
    pub number: Option<PortId>,
    /// VNI of its network.
    pub vni: u32,
    /// Virtio features of the connected guest.
    pub features: u64,
    /// Queue pairs that run.
    pub active_queue_pairs: u16,
}

/// One relay.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayView {
    /// As the API shows it, without what is counted.
    pub relay: v1::Relay,
    /// Its number in the data plane.
    pub number: Option<PortId>,
    /// Its rings' counters.
    pub rings: Rings,
}

/// Counters of rings, which are the same as long as the rings are.
#[derive(Clone, Debug)]
pub struct Rings(pub Vec<xvio::PairCounters>);

impl PartialEq for Rings {
    fn eq(&self, other: &Rings) -> bool {
        let same = |(a, b): (&xvio::PairCounters, &xvio::PairCounters)| Arc::ptr_eq(&a.tx, &b.tx);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

impl View {
    /// The port with this name or id.
    pub fn find(&self, reference: &str) -> Option<&PortView> {
        let by_name = || self.ports.values().find(|view| view.port.name == reference);
        self.ports.get(reference).or_else(by_name)
    }

    /// The port with this number.
    pub fn by_number(&self, number: PortId) -> Option<&PortView> {
        self.ports.values().find(|view| view.number == Some(number))
    }
}

/// What is the same of every kind of port.
fn named(id: &str, name: &str, network: &str, desired: &Desired, host: &str) -> v1::Port {
    let known = desired.networks.get(network);
    v1::Port {
        id: id.to_owned(),
        name: name.to_owned(),
        network: network.to_owned(),
        network_name: known.map(|n| n.name.clone()).unwrap_or_default(),
        host_name: host.to_owned(),
        ..v1::Port::default()
    }
}

/// A port of the desired state as the API shows it, without its status.
pub fn api_port(id: &str, port: &desired::Port, desired: &Desired, host: &str) -> v1::Port {
    let mode = match port.mode {
        desired::SocketMode::Server => v1::SocketMode::AgentListens,
        desired::SocketMode::Client => v1::SocketMode::AgentConnects,
    };
    v1::Port {
        mac: port.mac.to_string(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        binding: match port.relay {
            Some(_) => v1::Binding::Xvio.into(),
            None => v1::Binding::Virtio.into(),
        },
        pool: port
            .relay
            .as_ref()
            .and_then(|relay| relay.pool.clone())
            .unwrap_or_default(),
        virtio: Some(v1::VirtioOptions {
            queue_pairs: port.queue_pairs.into(),
            queue_size: port.queue_size.into(),
            mode: mode.into(),
        }),
        ..named(id, &port.name, &port.network, desired, host)
    }
}

/// A port with a VF as the API shows it, without its status and without what its standby has.
pub fn api_vf_port(id: &str, port: &desired::VfPort, desired: &Desired, host: &str) -> v1::Port {
    v1::Port {
        mac: port.mac.to_string(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        binding: v1::Binding::Sriov.into(),
        pool: port.pool.clone().unwrap_or_default(),
        standby: port.standby,
        owner: port.owner.clone(),
        ..named(id, &port.name, &port.network, desired, host)
    }
}

/// Names of virtio-net feature bits (virtio 1.2, 5.1.3 and 6), separated by spaces.
pub fn feature_names(bits: u64) -> String {
    const NAMES: [(u32, &str); 15] = [
        (0, "csum"),
        (1, "guest-csum"),
        (3, "mtu"),
        (5, "mac"),
        (7, "guest-tso4"),
        (8, "guest-tso6"),
        (11, "host-tso4"),
        (12, "host-tso6"),
        (15, "mrg-rxbuf"),
        (16, "status"),
        (22, "mq"),
        (28, "indirect-desc"),
        (29, "event-idx"),
        (32, "version-1"),
        (34, "packed"),
    ];
    let named = NAMES
        .iter()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| *name);
    named.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names() {
        assert_eq!(
            feature_names(1 << 32 | 1 << 15 | 1),
            "csum mrg-rxbuf version-1"
        );
        assert_eq!(feature_names(0), "");
    }

    #[test]
    fn a_port_is_found_by_id_and_by_name() {
        let mut view = View::default();
        let port = v1::Port {
            id: "1".into(),
            name: "web".into(),
            ..Default::default()
        };
        view.ports.insert(
            "1".into(),
            PortView {
                port,
                number: Some(PortId(4)),
                ..Default::default()
            },
        );
        assert!(view.find("1").is_some() && view.find("web").is_some());
        assert!(view.find("db").is_none());
        assert!(view.by_number(PortId(4)).is_some());
    }
}
