//! Desired state as the controller sends it, kept as it came, and what the agent makes of it.
//!
//! Everything is checked again here: the controller is trusted to say what this host should have,
//! not to be free of mistakes. A port that cannot be understood is refused by itself, with a reason.

use crate::desired::{self, Desired, MAX_VNI, valid_name};
use api::v1;
use flow::MacAddr;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use v1::resource::Resource as Kind;

/// The resources of this host, by key, as of one version of one controller's store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// The store they came from.
    pub store_id: String,
    /// The version that was applied.
    pub version: u64,
    /// This host's own id.
    pub host_id: String,
    /// By key: `network/<id>`, `port/<id>`, `peer/<port id>`.
    pub by_key: BTreeMap<String, v1::Resource>,
}

/// A step of the controller cannot be applied to what the agent has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// An increment to another store's state.
    #[error(
        "The controller sent a change to store {got}, but this agent has the state of store {have}; it asks for everything anew"
    )]
    OtherStore {
        /// Of the step.
        got: String,
        /// Of the agent.
        have: String,
    },
}

impl Resources {
    /// What the hello tells the controller, so that only differences are sent.
    pub fn have(&self) -> Vec<v1::Have> {
        self.by_key
            .values()
            .map(|resource| v1::Have {
                key: resource.key.clone(),
                revision: resource.revision,
            })
            .collect()
    }

    /// Applies one step, whole or not at all. The same step twice changes nothing.
    pub fn apply(&mut self, step: v1::Desired) -> Result<(), StepError> {
        if !step.full && step.store_id != self.store_id {
            return Err(StepError::OtherStore {
                got: step.store_id,
                have: self.store_id.clone(),
            });
        }
        if step.full {
            self.by_key.clear();
        }
        for key in &step.deletes {
            self.by_key.remove(key);
        }
        for resource in step.upserts {
            self.by_key.insert(resource.key.clone(), resource);
        }
        self.store_id = step.store_id;
        self.version = step.version;
        if !step.host_id.is_empty() {
            self.host_id = step.host_id;
        }
        Ok(())
    }

    /// What all of it means.
    pub fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        let mut bad_networks: BTreeMap<&str, String> = BTreeMap::new();
        for resource in self.by_key.values() {
            if let Some(Kind::Network(network)) = &resource.resource {
                match self::network(network) {
                    Ok(checked) => {
                        desired.networks.insert(network.id.clone(), checked);
                    }
                    Err(why) => {
                        bad_networks.insert(&network.id, why);
                    }
                }
            }
        }
        for resource in self.by_key.values() {
            match &resource.resource {
                Some(Kind::Port(port)) => {
                    let network = match bad_networks.get(port.network.as_str()) {
                        Some(why) => Err(why.clone()),
                        None => Ok(()),
                    };
                    match network.and_then(|()| self::port(port)) {
                        Ok(checked) => desired.add(&port.id, checked),
                        Err(why) => {
                            desired
                                .refused
                                .insert(port.id.clone(), (port.name.clone(), why));
                        }
                    }
                }
                Some(Kind::Peer(peer)) => match self::peer(peer) {
                    Ok(checked) => {
                        desired.peers.insert(peer.port.clone(), checked);
                    }
                    Err(why) => tracing::warn!(peer = peer.port, why, "peer ignored"),
                },
                Some(Kind::Network(_)) | None => {}
            }
        }
        desired
    }

    /// The port resource with this id.
    pub fn port(&self, id: &str) -> Option<&v1::Port> {
        match self.by_key.get(&format!("port/{id}"))?.resource.as_ref()? {
            Kind::Port(port) => Some(port),
            _ => None,
        }
    }
}

fn network(network: &v1::Network) -> Result<desired::Network, String> {
    let name = &network.name;
    let of = format!("of network \"{name}\"");
    if network.vni == 0 || network.vni > MAX_VNI {
        return Err(format!(
            "The VNI {} {of} is not within 1 to {MAX_VNI}",
            network.vni
        ));
    }
    let mtu = match network.mtu {
        0 => None,
        mtu => Some(
            u16::try_from(mtu)
                .ok()
                .filter(|mtu| *mtu >= 576)
                .ok_or_else(|| format!("The MTU {mtu} {of} is not within 576 to 65535"))?,
        ),
    };
    let gateway_mac = match network.gateway_mac.as_str() {
        "" => desired::default_gateway_mac(network.vni),
        text => station(text, &of)?,
    };
    let mut subnets = Vec::new();
    for subnet in &network.subnets {
        let prefix = prefix(&subnet.cidr, &of)?;
        let gateway = match subnet.gateway.as_str() {
            "" => desired::first_address(&prefix),
            text => address(text, &of)?,
        };
        subnets.push(desired::Subnet {
            prefix,
            gateway,
            slaac: subnet.slaac,
        });
    }
    let dns = addresses(&network.dns, &of)?;
    let mut routes = Vec::new();
    for route in &network.routes {
        let destination = prefix(&route.destination, &of)?;
        routes.push(desired::Route {
            destination,
            next_hop: address(&route.next_hop, &of)?,
        });
    }
    Ok(desired::Network {
        name: name.clone(),
        vni: network.vni,
        mtu,
        gateway_mac,
        subnets,
        dns,
        routes,
        vlan: u16::try_from(network.vlan)
            .ok()
            .filter(|vlan| *vlan <= 4094)
            .ok_or_else(|| format!("The VLAN {} {of} is not within 1 to 4094", network.vlan))?,
    })
}

fn port(port: &v1::Port) -> Result<desired::AnyPort, String> {
    let name = &port.name;
    let of = format!("of port \"{name}\"");
    if !valid_name(name) {
        return Err(format!("\"{name}\" cannot be a port's name"));
    }
    let id_is_safe = port.id.len() <= 64
        && !port.id.is_empty()
        && port
            .id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !id_is_safe {
        return Err(format!("The id {of} is not a UUID"));
    }
    match port.binding() {
        v1::Binding::Unspecified | v1::Binding::Virtio => {}
        v1::Binding::Xvio | v1::Binding::Sriov => {}
        v1::Binding::Tap => {
            return Err(format!(
                "This agent cannot bind port \"{name}\" as tap; create it with binding virtio, xvio or sriov"
            ));
        }
    }
    let vf = (port.binding() == v1::Binding::Sriov)
        .then(|| vf_port(port, &of))
        .transpose()?;
    let virtio = port.virtio.unwrap_or_default();
    let queue_pairs = match virtio.queue_pairs {
        0 => 1,
        n @ 1..=64 => n as u16,
        n => return Err(format!("{n} queue pairs {of} are not within 1 to 64")),
    };
    let queue_size = match virtio.queue_size {
        0 => 1024,
        n if n.is_power_of_two() && (64..=32_768).contains(&n) => n as u16,
        n => {
            return Err(format!(
                "The queue size {n} {of} is not a power of two within 64 to 32768"
            ));
        }
    };
    let mode = match virtio.mode() {
        v1::SocketMode::AgentConnects => desired::SocketMode::Client,
        v1::SocketMode::AgentListens | v1::SocketMode::Unspecified => desired::SocketMode::Server,
    };
    let virtio = desired::Port {
        name: name.clone(),
        network: port.network.clone(),
        mac: station(&port.mac, &of)?,
        addresses: addresses(&port.addresses, &of)?,
        queue_pairs,
        queue_size,
        mode,
        socket: None,
        relay: match port.binding() {
            v1::Binding::Xvio => Some(desired::Relayed {
                pool: pool(port, &of)?,
                device: None,
                owner: port.owner.clone(),
            }),
            _ => None,
        },
    };
    let routed = vf.as_ref().is_none_or(|vf| vf.standby);
    Ok(desired::AnyPort {
        virtio: routed.then_some(virtio),
        vf,
    })
}

fn pool(port: &v1::Port, of: &str) -> Result<Option<String>, String> {
    if port.pool.is_empty() {
        return Ok(None);
    }
    if !valid_name(&port.pool) {
        return Err(format!("\"{}\" {of} cannot be a pool's name", port.pool));
    }
    Ok(Some(port.pool.clone()))
}

fn vf_port(port: &v1::Port, of: &str) -> Result<desired::VfPort, String> {
    Ok(desired::VfPort {
        name: port.name.clone(),
        network: port.network.clone(),
        mac: station(&port.mac, of)?,
        addresses: addresses(&port.addresses, of)?,
        pool: pool(port, of)?,
        standby: port.standby,
        owner: port.owner.clone(),
    })
}

fn peer(peer: &v1::Peer) -> Result<desired::Peer, String> {
    let of = format!("of peer {}", peer.port);
    Ok(desired::Peer {
        network: peer.network.clone(),
        mac: station(&peer.mac, &of)?,
        addresses: addresses(&peer.addresses, &of)?,
        vtep: address(&peer.vtep, &of)?,
    })
}

fn station(text: &str, of: &str) -> Result<MacAddr, String> {
    let mac: Result<MacAddr, _> = text.parse();
    mac.ok()
        .filter(|mac| mac.is_station())
        .ok_or_else(|| format!("\"{text}\" {of} is not the MAC address of a station"))
}

fn address(text: &str, of: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\" {of} is not an IP address"))
}

fn addresses(list: &[String], of: &str) -> Result<Vec<IpAddr>, String> {
    list.iter().map(|text| address(text, of)).collect()
}

fn prefix(text: &str, of: &str) -> Result<IpNet, String> {
    let net: Result<IpNet, _> = text.parse();
    net.map(|net| net.trunc())
        .map_err(|_| format!("\"{text}\" {of} is not a prefix"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(id: &str, vni: u32) -> v1::Resource {
        v1::Resource {
            key: format!("network/{id}"),
            revision: 1,
            resource: Some(Kind::Network(v1::Network {
                id: id.into(),
                name: format!("net-{id}"),
                vni,
                subnets: vec![v1::Subnet {
                    cidr: "10.0.0.0/24".into(),
                    ..Default::default()
                }],
                ..Default::default()
            })),
        }
    }

    fn port(id: &str, network: &str, mac: &str) -> v1::Resource {
        v1::Resource {
            key: format!("port/{id}"),
            revision: 1,
            resource: Some(Kind::Port(v1::Port {
                id: id.into(),
                name: format!("port-{id}"),
                network: network.into(),
                mac: mac.into(),
                addresses: vec!["10.0.0.10".into()],
                ..Default::default()
            })),
        }
    }

    fn step(version: u64, full: bool, upserts: Vec<v1::Resource>, deletes: &[&str]) -> v1::Desired {
        v1::Desired {
            version,
            store_id: "s".into(),
            full,
            upserts,
            deletes: deletes.iter().map(|k| (*k).to_owned()).collect(),
            host_id: "h".into(),
        }
    }

    #[test]
    fn steps_add_replace_and_delete() {
        let mut have = Resources::default();
        let both = vec![network("n", 1), port("p", "n", "02:00:00:00:00:01")];
        have.apply(step(3, true, both, &[])).unwrap();
        assert_eq!(have.have().len(), 2);
        have.apply(step(4, false, vec![network("m", 2)], &["port/p"]))
            .unwrap();
        let before = have.clone();
        have.apply(step(4, false, vec![network("m", 2)], &["port/p"]))
            .unwrap();
        assert_eq!(have, before, "twice changes nothing");
        assert_eq!(have.version, 4);
        assert_eq!(have.desired().networks.len(), 2);
        have.apply(step(5, true, vec![network("m", 2)], &[]))
            .unwrap();
        assert_eq!(have.desired().networks.len(), 1, "full replaces all");
    }

    #[test]
    fn a_change_to_another_store_is_refused_and_changes_nothing() {
        let mut have = Resources::default();
        have.apply(step(1, true, vec![network("n", 1)], &[]))
            .unwrap();
        let before = have.clone();
        let mut other = step(2, false, vec![], &["network/n"]);
        other.store_id = "t".into();
        assert!(have.apply(other).is_err());
        assert_eq!(have, before);
    }

    #[test]
    fn a_vf_is_no_port_of_the_router_unless_it_has_a_standby() {
        let mut have = Resources::default();
        let vf = |id: &str, mac: &str, standby: bool| {
            let mut resource = port(id, "n", mac);
            if let Some(Kind::Port(port)) = &mut resource.resource {
                port.binding = v1::Binding::Sriov.into();
                port.standby = standby;
                port.pool = "tenants".into();
            }
            resource
        };
        let all = vec![
            network("n", 1),
            vf("a", "02:00:00:00:00:01", false),
            vf("b", "02:00:00:00:00:02", true),
        ];
        have.apply(step(1, true, all, &[])).unwrap();
        let desired = have.desired();
        assert_eq!(desired.ports.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(desired.vf_ports.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(desired.vf_ports["a"].pool.as_deref(), Some("tenants"));
        assert!(desired.vf_ports["b"].standby && desired.refused.is_empty());
    }

    #[test]
    fn one_bad_port_leaves_the_others() {
        let mut have = Resources::default();
        let mut tap = port("t", "n", "02:00:00:00:00:03");
        if let Some(Kind::Port(port)) = &mut tap.resource {
            port.binding = v1::Binding::Tap.into();
        }
        let all = vec![
            network("n", 1),
            network("bad", 0),
            port("a", "n", "02:00:00:00:00:01"),
            port("b", "n", "rubbish"),
            port("c", "bad", "02:00:00:00:00:02"),
            tap,
        ];
        have.apply(step(1, true, all, &[])).unwrap();
        let desired = have.desired();
        assert_eq!(desired.ports.keys().collect::<Vec<_>>(), ["a"]);
        assert!(
            desired.refused["b"]
                .1
                .contains("\"rubbish\" of port \"port-b\"")
        );
        assert!(desired.refused["c"].1.contains("VNI 0"));
        assert!(desired.refused["t"].1.contains("as tap"));
    }
}
