//! Records as API messages.

use api::v1;
use uuid::Uuid;

use crate::live::Live;
use crate::records::{Host, Network, Port};
use crate::state::State;

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

/// A host, with its status where there is one.
pub fn host(host: &Host, status: Option<v1::HostStatus>) -> v1::Host {
    v1::Host {
        id: host.id.to_string(),
        name: host.name.clone(),
        revision: host.revision,
        vtep: host.vtep.map(|vtep| vtep.to_string()).unwrap_or_default(),
        underlay_mtu: host.underlay_mtu,
        status,
    }
}

/// A network.
pub fn network(network: &Network) -> v1::Network {
    v1::Network {
        id: network.id.to_string(),
        name: network.name.clone(),
        revision: network.revision,
        vni: network.vni,
        mtu: network.mtu,
        subnets: network
            .subnets
            .iter()
            .map(|subnet| v1::Subnet {
                cidr: subnet.prefix.to_string(),
                gateway: subnet.gateway.to_string(),
                slaac: subnet.slaac,
            })
            .collect(),
        dns: texts(&network.dns),
        routes: network
            .routes
            .iter()
            .map(|route| v1::Route {
                destination: route.destination.to_string(),
                next_hop: route.next_hop.to_string(),
            })
            .collect(),
        gateway_mac: network.gateway_mac.to_string(),
        vlan: network.vlan,
    }
}

/// A port without what is looked up elsewhere: status and names.
pub fn bare_port(port: &Port) -> v1::Port {
    v1::Port {
        id: port.id.to_string(),
        name: port.name.clone(),
        revision: port.revision,
        network: port.network.to_string(),
        host: port.host.map(|host| host.to_string()).unwrap_or_default(),
        mac: port.mac.to_string(),
        addresses: texts(&port.addresses),
        binding: port.binding,
        virtio: Some(v1::VirtioOptions {
            queue_pairs: port.queue_pairs,
            queue_size: port.queue_size,
            mode: port.socket_mode,
        }),
        status: None,
        network_name: String::new(),
        host_name: String::new(),
        owner: port.owner.clone(),
        pool: port.pool.clone(),
        standby: port.standby,
    }
}

/// A port with its status and names.
pub fn port(state: &State, live: &Live, port: &Port) -> v1::Port {
    v1::Port {
        status: Some(port_status(state, live, port)),
        network_name: state
            .network(port.network)
            .map(|network| network.name.clone())
            .unwrap_or_default(),
        host_name: port
            .host
            .and_then(|host| state.host(host))
            .map(|host| host.name.clone())
            .unwrap_or_default(),
        ..bare_port(port)
    }
}

/// What is known of a port: ready only by its agent's word for the port as it is now.
pub fn port_status(state: &State, live: &Live, port: &Port) -> v1::PortStatus {
    let pending = |reason: String| v1::PortStatus {
        state: v1::PortState::Pending as i32,
        reason,
        ..Default::default()
    };
    let Some(host) = port.host.and_then(|host| state.host(host)) else {
        return pending(format!(
            "Port {} is on no host; update it with one",
            port.name
        ));
    };
    let agent = live.agent(host.id);
    let report = agent.and_then(|agent| agent.reports.get(&port.id));
    if let Some(problem) = state
        .network(port.network)
        .and_then(|network| mtu_problem(host, network))
    {
        return v1::PortStatus {
            state: v1::PortState::Failed as i32,
            reason: problem,
            ..report.cloned().unwrap_or_default()
        };
    }
    match (agent, report) {
        (Some(agent), _) if !agent.connected => pending(format!(
            "The agent of host {} is not connected; start it or look at its log",
            host.name
        )),
        (None, _) => pending(format!(
            "The agent of host {} has not connected yet; start it",
            host.name
        )),
        (Some(agent), Some(report)) if agent.applied >= port.revision => report.clone(),
        _ => pending(format!(
            "The agent of host {} has not answered yet",
            host.name
        )),
    }
}

/// Why a network's packets do not fit a host's underlay, if so.
pub fn mtu_problem(host: &Host, network: &Network) -> Option<String> {
    let largest = host.largest_mtu()?;
    (network.mtu > largest).then(|| {
        format!(
            "Network {} has MTU {}, which needs an underlay MTU of {}, but host {} has {}; set the network's MTU to {largest} or less, or raise the underlay's",
            network.name,
            network.mtu,
            network.mtu + host.encapsulation(),
            host.name,
            host.underlay_mtu,
        )
    })
}

/// A host's status.
pub fn host_status(state: &State, live: &Live, host: &Host) -> v1::HostStatus {
    let mut status = live
        .agent(host.id)
        .map(|agent| v1::HostStatus {
            connected: agent.connected,
            agent_version: agent.version.clone(),
            applied_version: agent.applied,
            desired_version: agent.desired,
            last_seen_ms: agent.last_seen_ms,
            homes: agent.homes.clone(),
            problems: agent.problems.clone(),
        })
        .unwrap_or_default();
    let mut networks: Vec<Uuid> = state.networks_on(host.id).collect();
    networks.sort_unstable();
    status.problems.extend(
        networks
            .into_iter()
            .filter_map(|id| mtu_problem(host, state.network(id)?)),
    );
    status
}
