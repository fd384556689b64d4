//! What one host has to know: its ports, their networks, and these networks' ports on other hosts.
//!
//! Everything here is a function of the state, for one resource at a time. A session keeps which revision it
//! sent of each, so that after a change only what may differ is looked at ([`touched`]), and only what does
//! differ is sent.

use std::fmt;

use api::v1;
use uuid::Uuid;

use crate::records::Port;
use crate::state::{Change, State};
use crate::views;

/// The name of a resource on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A network.
    Network(Uuid),
    /// A port of the host.
    Port(Uuid),
    /// A port of another host.
    Peer(Uuid),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Network(id) => write!(f, "network/{id}"),
            Key::Port(id) => write!(f, "port/{id}"),
            Key::Peer(id) => write!(f, "peer/{id}"),
        }
    }
}

/// What may have changed for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// The network itself.
    Network(Uuid),
    /// One port, here or elsewhere.
    Port(Uuid),
    /// The network and every port in it: the host's first port in it came, or its last went.
    Whole(Uuid),
}

/// The resource with a key, as a host needs it now, with the network it belongs to; `None` when the host does
/// not need it.
pub fn resource(state: &State, host: Uuid, key: Key) -> Option<(Uuid, v1::Resource)> {
    let (network, revision, resource) = match key {
        Key::Network(id) => {
            let network = state.network(id).filter(|_| state.ports_at(id, host) > 0)?;
            (
                id,
                network.revision,
                v1::resource::Resource::Network(views::network(network)),
            )
        }
        Key::Port(id) => {
            let port = state.port(id).filter(|port| port.host == Some(host))?;
            (
                port.network,
                port.revision,
                v1::resource::Resource::Port(views::bare_port(port)),
            )
        }
        Key::Peer(id) => {
            let port = state.port(id).filter(|port| port.is_routed())?;
            let there = port
                .host
                .filter(|&there| there != host)
                .and_then(|there| state.host(there))?;
            let vtep = there
                .vtep
                .filter(|_| state.ports_at(port.network, host) > 0)?;
            let revision = port.revision.max(there.vtep_revision);
            (
                port.network,
                revision,
                v1::resource::Resource::Peer(peer(port, vtep.to_string())),
            )
        }
    };
    Some((
        network,
        v1::Resource {
            key: key.to_string(),
            revision,
            resource: Some(resource),
        },
    ))
}

fn peer(port: &Port, vtep: String) -> v1::Peer {
    v1::Peer {
        port: port.id.to_string(),
        network: port.network.to_string(),
        mac: port.mac.to_string(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        vtep,
    }
}

/// Every key of a network that a host may need. Networks come before their ports.
pub fn keys_in(state: &State, network: Uuid) -> impl Iterator<Item = Key> {
    let ports = state
        .ports_in(network)
        .into_iter()
        .flat_map(|ports| ports.values());
    std::iter::once(Key::Network(network))
        .chain(ports.flat_map(|&port| [Key::Port(port), Key::Peer(port)]))
}

/// Every key that a host may need.
pub fn keys_of(state: &State, host: Uuid) -> impl Iterator<Item = Key> {
    state
        .networks_on(host)
        .flat_map(move |network| keys_in(state, network))
}

/// Whom a change may concern, seen from the state before it. Ask once before and once after applying it, and
/// take both answers.
pub fn touched(state: &State, change: &Change) -> Vec<(Uuid, Touched)> {
    match change {
        Change::PutHost(host) => {
            if state
                .host(host.id)
                .is_some_and(|old| old.vtep == host.vtep && old.vtep_revision == host.vtep_revision)
            {
                return Vec::new();
            }
            let ports = state
                .ports_on(host.id)
                .into_iter()
                .flat_map(|ports| ports.values());
            ports
                .filter_map(|&port| state.port(port))
                .flat_map(|port| {
                    state
                        .hosts_with(port.network)
                        .map(|other| (other, Touched::Port(port.id)))
                })
                .collect()
        }
        Change::PutNetwork(network) => state
            .hosts_with(network.id)
            .map(|host| (host, Touched::Network(network.id)))
            .collect(),
        Change::PutPort(port) => {
            let mut touched = around(state, port.id);
            // Where it goes: that host may be new to the network.
            if let Some(host) = port.host {
                let here = state
                    .port(port.id)
                    .is_some_and(|old| old.host == Some(host));
                if !here && state.ports_at(port.network, host) == 0 {
                    touched.push((host, Touched::Whole(port.network)));
                }
                touched.extend(
                    state
                        .hosts_with(port.network)
                        .map(|host| (host, Touched::Port(port.id))),
                );
            }
            touched
        }
        Change::DeletePort(id) => around(state, *id),
        Change::DeleteHost(_)
        | Change::DeleteNetwork(_)
        | Change::PutToken(_)
        | Change::DeleteToken(_) => Vec::new(),
    }
}

/// Who knows a port that is about to change or go.
fn around(state: &State, port: Uuid) -> Vec<(Uuid, Touched)> {
    let Some(port) = state.port(port) else {
        return Vec::new();
    };
    let mut touched: Vec<_> = state
        .hosts_with(port.network)
        .map(|host| (host, Touched::Port(port.id)))
        .collect();
    if let Some(host) = port
        .host
        .filter(|&host| state.ports_at(port.network, host) == 1)
    {
        touched.push((host, Touched::Whole(port.network)));
    }
    touched
}
