//! All records with their indexes. Reading is by method, changing by [`State::apply`] alone.
//!
//! Two copies exist: the store's writer plans on one, readers see the other, which is a commit behind while a
//! commit is under way. Records are shared between them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::mac::Mac;
use crate::ranges::RangeSet;
use crate::records::{Host, Network, Port, Token, number};

/// One change of one record.
#[derive(Clone, Debug)]
pub enum Change {
    /// A host is new or different.
    PutHost(Arc<Host>),
    /// A host goes. It has no ports.
    DeleteHost(Uuid),
    /// A network is new or different.
    PutNetwork(Arc<Network>),
    /// A network goes. It has no ports.
    DeleteNetwork(Uuid),
    /// A port is new or different.
    PutPort(Arc<Port>),
    /// A port goes.
    DeletePort(Uuid),
    /// A token is new.
    PutToken(Arc<Token>),
    /// A token was used or is over.
    DeleteToken(u128),
}

/// The addresses of one network.
#[derive(Clone, Debug, Default)]
struct Addresses {
    v4: RangeSet,
    v6: RangeSet,
    owners: HashMap<IpAddr, Uuid>,
    macs: HashMap<Mac, Uuid>,
}

impl Addresses {
    fn family(&mut self, address: IpAddr) -> &mut RangeSet {
        if address.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        }
    }
}

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Made with the store; agents that know another one start anew.
    pub store_id: Uuid,
    /// Grows by one with every accepted request.
    pub revision: u64,
    hosts: HashMap<Uuid, Arc<Host>>,
    host_names: BTreeMap<String, Uuid>,
    networks: HashMap<Uuid, Arc<Network>>,
    network_names: BTreeMap<String, Uuid>,
    vnis: RangeSet,
    ports: HashMap<Uuid, Arc<Port>>,
    port_names: BTreeMap<String, Uuid>,
    network_ports: HashMap<Uuid, BTreeMap<String, Uuid>>,
    host_ports: HashMap<Uuid, BTreeMap<String, Uuid>>,
    /// Network → hosts with ports in it → how many.
    placement: HashMap<Uuid, HashMap<Uuid, usize>>,
    addresses: HashMap<Uuid, Addresses>,
    /// Port and gateway MACs of the whole controller → how many.
    macs: HashMap<Mac, usize>,
    tokens: HashMap<u128, Arc<Token>>,
}

impl State {
    /// A host by id.
    pub fn host(&self, id: Uuid) -> Option<&Arc<Host>> {
        self.hosts.get(&id)
    }

    /// All hosts, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.values()
    }

    /// Names and ids of hosts, by name.
    pub fn host_names(&self) -> &BTreeMap<String, Uuid> {
        &self.host_names
    }

    /// A network by id.
    pub fn network(&self, id: Uuid) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    /// All networks, in no order.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// Names and ids of networks, by name.
    pub fn network_names(&self) -> &BTreeMap<String, Uuid> {
        &self.network_names
    }

    /// A port by id.
    pub fn port(&self, id: Uuid) -> Option<&Arc<Port>> {
        self.ports.get(&id)
    }

    /// Names and ids of ports, by name.
    pub fn port_names(&self) -> &BTreeMap<String, Uuid> {
        &self.port_names
    }

    /// A network's ports, by name; `None` without any.
    pub fn ports_in(&self, network: Uuid) -> Option<&BTreeMap<String, Uuid>> {
        self.network_ports.get(&network)
    }

    /// A host's ports, by name; `None` without any.
    pub fn ports_on(&self, host: Uuid) -> Option<&BTreeMap<String, Uuid>> {
        self.host_ports.get(&host)
    }

    /// The hosts with ports in a network.
    pub fn hosts_with(&self, network: Uuid) -> impl Iterator<Item = Uuid> {
        self.placement
            .get(&network)
            .into_iter()
            .flat_map(|hosts| hosts.keys().copied())
    }

    /// The networks that a host has ports in.
    pub fn networks_on(&self, host: Uuid) -> impl Iterator<Item = Uuid> {
        self.placement
            .iter()
            .filter(move |(_, hosts)| hosts.contains_key(&host))
            .map(|(network, _)| *network)
    }

    /// How many ports of a network are on a host.
    pub fn ports_at(&self, network: Uuid, host: Uuid) -> usize {
        self.placement
            .get(&network)
            .and_then(|hosts| hosts.get(&host))
            .copied()
            .unwrap_or_default()
    }

    /// The lowest free VNI.
    pub fn free_vni(&self) -> Option<u32> {
        let free = self.vnis.lowest_free(1, MAX_VNI.into())?;
        u32::try_from(free).ok()
    }

    /// The network with a VNI.
    pub fn network_of_vni(&self, vni: u32) -> Option<&Arc<Network>> {
        // Asked only when a request names one; networks are few.
        self.networks.values().find(|network| network.vni == vni)
    }

    /// The port that has an address in a network.
    pub fn address_owner(&self, network: Uuid, address: IpAddr) -> Option<&Arc<Port>> {
        self.port(*self.addresses.get(&network)?.owners.get(&address)?)
    }

    /// The lowest free address between two of one family. Gateways are never free.
    pub fn lowest_free(&self, network: Uuid, from: IpAddr, to: IpAddr) -> Option<IpAddr> {
        let addresses = self.addresses.get(&network)?;
        match from {
            IpAddr::V4(_) => {
                let free = addresses.v4.lowest_free(number(from), number(to))?;
                Some(IpAddr::V4(u32::try_from(free).ok()?.into()))
            }
            IpAddr::V6(_) => Some(IpAddr::V6(
                addresses.v6.lowest_free(number(from), number(to))?.into(),
            )),
        }
    }

    /// The port that has a MAC in a network.
    pub fn mac_owner(&self, network: Uuid, mac: Mac) -> Option<&Arc<Port>> {
        self.port(*self.addresses.get(&network)?.macs.get(&mac)?)
    }

    /// Whether any port or gateway of the controller has a MAC.
    pub fn mac_taken(&self, mac: Mac) -> bool {
        self.macs.contains_key(&mac)
    }

    /// A token by its key.
    pub fn token(&self, key: u128) -> Option<&Arc<Token>> {
        self.tokens.get(&key)
    }

    /// All tokens, in no order.
    pub fn tokens(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.tokens.values()
    }

    /// Makes one change. The changes of a request leave the indexes whole after each of them.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::PutHost(host) => {
                if let Some(old) = self.hosts.insert(host.id, host.clone()) {
                    self.host_names.remove(&old.name);
                }
                self.host_names.insert(host.name.clone(), host.id);
            }
            Change::DeleteHost(id) => {
                if let Some(old) = self.hosts.remove(id) {
                    self.host_names.remove(&old.name);
                }
            }
            Change::PutNetwork(network) => {
                self.remove_network(network.id);
                self.add_network(network);
            }
            Change::DeleteNetwork(id) => {
                self.remove_network(*id);
                self.addresses.remove(id);
            }
            Change::PutPort(port) => {
                self.remove_port(port.id);
                self.add_port(port);
            }
            Change::DeletePort(id) => self.remove_port(*id),
            Change::PutToken(token) => {
                self.tokens.insert(token.key(), token.clone());
            }
            Change::DeleteToken(key) => {
                self.tokens.remove(key);
            }
        }
    }

    fn add_network(&mut self, network: &Arc<Network>) {
        self.network_names.insert(network.name.clone(), network.id);
        self.vnis.insert(network.vni.into());
        *self.macs.entry(network.gateway_mac).or_default() += 1;
        let addresses = self.addresses.entry(network.id).or_default();
        for subnet in &network.subnets {
            addresses
                .family(subnet.gateway)
                .insert(number(subnet.gateway));
        }
        self.networks.insert(network.id, network.clone());
    }

    /// Its ports' addresses stay: a network is also replaced by this.
    fn remove_network(&mut self, id: Uuid) {
        let Some(old) = self.networks.remove(&id) else {
            return;
        };
        self.network_names.remove(&old.name);
        self.vnis.remove(old.vni.into());
        count_down(&mut self.macs, old.gateway_mac);
        if let Some(addresses) = self.addresses.get_mut(&id) {
            for subnet in &old.subnets {
                addresses
                    .family(subnet.gateway)
                    .remove(number(subnet.gateway));
            }
        }
    }

    fn add_port(&mut self, port: &Arc<Port>) {
        self.port_names.insert(port.name.clone(), port.id);
        self.network_ports
            .entry(port.network)
            .or_default()
            .insert(port.name.clone(), port.id);
        if let Some(host) = port.host {
            self.host_ports
                .entry(host)
                .or_default()
                .insert(port.name.clone(), port.id);
            *self
                .placement
                .entry(port.network)
                .or_default()
                .entry(host)
                .or_default() += 1;
        }
        let addresses = self.addresses.entry(port.network).or_default();
        for &address in &port.addresses {
            addresses.family(address).insert(number(address));
            addresses.owners.insert(address, port.id);
        }
        addresses.macs.insert(port.mac, port.id);
        *self.macs.entry(port.mac).or_default() += 1;
        self.ports.insert(port.id, port.clone());
    }

    fn remove_port(&mut self, id: Uuid) {
        let Some(old) = self.ports.remove(&id) else {
            return;
        };
        self.port_names.remove(&old.name);
        remove_name(&mut self.network_ports, old.network, &old.name);
        if let Some(host) = old.host {
            remove_name(&mut self.host_ports, host, &old.name);
            if let Some(hosts) = self.placement.get_mut(&old.network) {
                count_down(hosts, host);
                if hosts.is_empty() {
                    self.placement.remove(&old.network);
                }
            }
        }
        if let Some(addresses) = self.addresses.get_mut(&old.network) {
            for &address in &old.addresses {
                addresses.family(address).remove(number(address));
                addresses.owners.remove(&address);
            }
            addresses.macs.remove(&old.mac);
        }
        count_down(&mut self.macs, old.mac);
    }
}

/// The highest VXLAN network identifier (RFC 7348, 24 bits).
pub const MAX_VNI: u32 = (1 << 24) - 1;

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

fn remove_name(index: &mut HashMap<Uuid, BTreeMap<String, Uuid>>, of: Uuid, name: &str) {
    if let Some(names) = index.get_mut(&of) {
        names.remove(name);
        if names.is_empty() {
            index.remove(&of);
        }
    }
}
