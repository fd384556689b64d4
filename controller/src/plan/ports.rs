//! Ports, and the addresses and MACs they get.

use std::net::IpAddr;
use std::sync::Arc;

use api::v1;
use uuid::Uuid;

use crate::mac::Mac;
use crate::plan::{check_revision, fields, find, hosts, networks, next_revision};
use crate::records::{Host, Network, Port, Subnet};
use crate::refusal::Refusal;
use crate::state::{Change, State};
use crate::store::Plan;
use crate::views;

const MAX_ADDRESSES: usize = 32;
const MAX_QUEUE_PAIRS: u32 = 64;
const DEFAULT_QUEUE_SIZE: u32 = 1024;
/// Tries to find a free MAC. Each fails with probability ports / 2^46.
const MAC_PROBES: u32 = 64;

/// Finds a port by id or name.
///
/// # Errors
/// Not found.
pub fn port<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Port>, Refusal> {
    let id = find(
        "port",
        state.port_names(),
        |id| state.port(id).is_some(),
        reference,
    )?;
    state.port(id).ok_or_else(|| {
        Refusal::internal(format!(
            "Port {id} is in an index only; restart the controller"
        ))
    })
}

fn check_name(state: &State, name: &str) -> Result<(), Refusal> {
    fields::name("port", name)?;
    if state.port_names().contains_key(name) {
        return Err(Refusal::taken(format!(
            "Port {name} exists already; choose another name or use that port"
        )));
    }
    Ok(())
}

fn check_placement(host: &Host, network: &Network) -> Result<(), Refusal> {
    match views::mtu_problem(host, network) {
        Some(problem) => Err(Refusal::precondition(problem)),
        None => Ok(()),
    }
}

fn virtio(name: &str, asked: Option<v1::VirtioOptions>) -> Result<v1::VirtioOptions, Refusal> {
    let mut options = asked.unwrap_or_default();
    if options.queue_pairs == 0 {
        options.queue_pairs = 1;
    }
    if options.queue_size == 0 {
        options.queue_size = DEFAULT_QUEUE_SIZE;
    }
    if options.queue_pairs > MAX_QUEUE_PAIRS {
        return Err(Refusal::invalid(format!(
            "Port {name} cannot have {} queue pairs; use 1 to {MAX_QUEUE_PAIRS}",
            options.queue_pairs
        )));
    }
    if !options.queue_size.is_power_of_two() || !(64..=32768).contains(&options.queue_size) {
        return Err(Refusal::invalid(format!(
            "Port {name} cannot have {} descriptors a ring; use a power of two from 64 to 32768",
            options.queue_size
        )));
    }
    options.mode = match v1::SocketMode::try_from(options.mode) {
        Ok(v1::SocketMode::Unspecified | v1::SocketMode::AgentListens) => {
            v1::SocketMode::AgentListens as i32
        }
        Ok(v1::SocketMode::AgentConnects) => v1::SocketMode::AgentConnects as i32,
        Err(_) => {
            return Err(Refusal::invalid(format!(
                "Port {name} asks for socket mode {}, which this controller does not know; use a known one or a newer controller",
                options.mode
            )));
        }
    };
    Ok(options)
}

/// Checks what only a port with a VF can ask for.
fn vf_options(request: &v1::CreatePortRequest) -> Result<(), Refusal> {
    let name = &request.name;
    let sriov = request.binding == v1::Binding::Sriov as i32;
    if request.standby && !sriov {
        return Err(Refusal::invalid(format!(
            "Port {name} asks for a standby, which only binding sriov has; use that binding or leave it out"
        )));
    }
    let from_pool = sriov || request.binding == v1::Binding::Xvio as i32;
    if !request.pool.is_empty() && !from_pool {
        return Err(Refusal::invalid(format!(
            "Port {name} asks for a pool, which only bindings sriov and xvio have; use one of them or leave it out"
        )));
    }
    if request.pool.is_empty() {
        return Ok(());
    }
    fields::name("pool", &request.pool)
}

fn binding(name: &str, asked: i32) -> Result<i32, Refusal> {
    match v1::Binding::try_from(asked) {
        Ok(v1::Binding::Unspecified) => Ok(v1::Binding::Virtio as i32),
        Ok(known) => Ok(known as i32),
        Err(_) => Err(Refusal::invalid(format!(
            "Port {name} asks for binding {asked}, which this controller does not know; use a known one or a newer controller"
        ))),
    }
}

/// Creates a port, with addresses from the network's subnets and a MAC where none are given.
///
/// # Errors
/// Anything wrong with a field; unknown network or host; taken name, MAC or address; a subnet without a free
/// address; a host whose underlay does not carry the network's MTU.
pub fn create(
    state: &State,
    plan: &mut Plan,
    request: &v1::CreatePortRequest,
) -> Result<Arc<Port>, Refusal> {
    let name = &request.name;
    check_name(state, name)?;
    let network = networks::network(state, &request.network)?;
    let host = (!request.host.is_empty())
        .then(|| hosts::host(state, &request.host))
        .transpose()?;
    if let Some(host) = host {
        check_placement(host, network)?;
    }
    fields::text("owner", &request.owner)?;
    let binding = binding(name, request.binding)?;
    vf_options(request)?;
    let virtio = virtio(name, request.virtio)?;
    let given = given_addresses(state, network, &request.addresses)?;
    let id = Uuid::new_v4();
    let (mac, addresses) = if request.mac.is_empty() {
        let free = (0..MAC_PROBES)
            .map(|probe| Mac::derived(id, probe))
            .filter(|mac| !state.mac_taken(*mac));
        let mut outcome = Err(Refusal::exhausted(format!(
            "No MAC is free for port {name}; delete ports that are not used"
        )));
        for mac in free {
            // A SLAAC address follows from the MAC, so a taken one means another MAC.
            outcome =
                addresses(state, network, name, mac, &given).map(|addresses| (mac, addresses));
            if !matches!(&outcome, Err(refusal) if refusal.code == tonic::Code::AlreadyExists) {
                break;
            }
        }
        outcome?
    } else {
        let mac = given_mac(state, network, &request.mac)?;
        (mac, addresses(state, network, name, mac, &given)?)
    };
    let port = Arc::new(Port {
        id,
        name: name.clone(),
        revision: next_revision(state),
        network: network.id,
        host: host.map(|host| host.id),
        mac,
        addresses,
        binding,
        queue_pairs: virtio.queue_pairs,
        queue_size: virtio.queue_size,
        socket_mode: virtio.mode,
        owner: request.owner.clone(),
        pool: request.pool.clone(),
        standby: request.standby,
    });
    plan.push(Change::PutPort(port.clone()));
    Ok(port)
}

fn given_mac(state: &State, network: &Network, text: &str) -> Result<Mac, Refusal> {
    let mac = fields::mac(text)?;
    if mac == network.gateway_mac {
        return Err(Refusal::taken(format!(
            "MAC {mac} is the gateway's in network {}; choose another",
            network.name
        )));
    }
    if let Some(other) = state.mac_owner(network.id, mac) {
        return Err(Refusal::taken(format!(
            "MAC {mac} is port {}'s in network {}; choose another or delete that port",
            other.name, network.name
        )));
    }
    Ok(mac)
}

/// Checks addresses that the caller gave.
fn given_addresses(
    state: &State,
    network: &Network,
    texts: &[String],
) -> Result<Vec<IpAddr>, Refusal> {
    fields::at_most("addresses", texts.len(), MAX_ADDRESSES)?;
    let mut given = Vec::new();
    for text in texts {
        let address = fields::address("address", text)?;
        let subnet = network
            .subnets
            .iter()
            .find(|subnet| subnet.prefix.contains(&address));
        let Some(subnet) = subnet else {
            let prefixes: Vec<String> = network
                .subnets
                .iter()
                .map(|subnet| subnet.prefix.to_string())
                .collect();
            return Err(Refusal::invalid(format!(
                "Address {address} is in no subnet of network {}, which has {}; use an address in one",
                network.name,
                if prefixes.is_empty() {
                    "none".into()
                } else {
                    prefixes.join(", ")
                }
            )));
        };
        let (first, last) = subnet.usable();
        if !(first..=last).contains(&address) || address == subnet.gateway {
            return Err(Refusal::invalid(format!(
                "Address {address} is the network, broadcast or gateway address of subnet {} in network {}; use another from {first} to {last}",
                subnet.prefix, network.name
            )));
        }
        check_free(state, network, address)?;
        if given.contains(&address) {
            return Err(Refusal::invalid(format!(
                "Address {address} is in the request twice; give it once"
            )));
        }
        given.push(address);
    }
    Ok(given)
}

fn check_free(state: &State, network: &Network, address: IpAddr) -> Result<(), Refusal> {
    match state.address_owner(network.id, address) {
        Some(other) => Err(Refusal::taken(format!(
            "Address {address} is port {}'s in network {}; choose another or delete that port",
            other.name, network.name
        ))),
        None => Ok(()),
    }
}

/// The port's addresses: those given, or one from each subnet.
fn addresses(
    state: &State,
    network: &Network,
    port: &str,
    mac: Mac,
    given: &[IpAddr],
) -> Result<Vec<IpAddr>, Refusal> {
    if given.is_empty() {
        network
            .subnets
            .iter()
            .map(|subnet| allocate(state, network, port, subnet, mac))
            .collect()
    } else {
        Ok(given.to_vec())
    }
}

fn allocate(
    state: &State,
    network: &Network,
    port: &str,
    subnet: &Subnet,
    mac: Mac,
) -> Result<IpAddr, Refusal> {
    let (first, last) = subnet.usable();
    if let (true, IpAddr::V6(prefix)) = (subnet.slaac, subnet.prefix.addr()) {
        let address = IpAddr::V6(mac.eui64(prefix));
        if address == subnet.gateway {
            return Err(Refusal::taken(format!(
                "MAC {mac} makes {address}, the gateway's address in network {}; choose another MAC",
                network.name
            )));
        }
        check_free(state, network, address)?;
        return Ok(address);
    }
    state.lowest_free(network.id, first, last).ok_or_else(|| {
        Refusal::exhausted(format!(
            "Subnet {} of network {} has no free address for port {port}; delete ports that are not used or add a subnet",
            subnet.prefix, network.name
        ))
    })
}

/// Renames, moves or re-labels a port.
///
/// # Errors
/// Not found, stale, taken name, unknown host, a host whose underlay does not carry the network's MTU.
pub fn update(
    state: &State,
    plan: &mut Plan,
    request: &v1::UpdatePortRequest,
) -> Result<Arc<Port>, Refusal> {
    let old = port(state, &request.r#ref)?;
    check_revision("port", &old.name, request.revision, old.revision)?;
    let mut new = Port::clone(old);
    if let Some(name) = request.name.as_ref().filter(|name| **name != old.name) {
        check_name(state, name)?;
        new.name.clone_from(name);
    }
    match request.host.as_deref() {
        None => {}
        Some("") => new.host = None,
        Some(reference) => {
            let host = hosts::host(state, reference)?;
            if old.host != Some(host.id) {
                check_placement(host, networks::network(state, &old.network.to_string())?)?;
            }
            new.host = Some(host.id);
        }
    }
    if let Some(owner) = &request.owner {
        fields::text("owner", owner)?;
        new.owner.clone_from(owner);
    }
    if new == **old {
        return Ok(old.clone());
    }
    new.revision = next_revision(state);
    let new = Arc::new(new);
    plan.push(Change::PutPort(new.clone()));
    Ok(new)
}

/// Deletes a port.
///
/// # Errors
/// Not found, stale.
pub fn delete(state: &State, plan: &mut Plan, request: &v1::DeleteRequest) -> Result<(), Refusal> {
    let old = port(state, &request.r#ref)?;
    check_revision("port", &old.name, request.revision, old.revision)?;
    plan.push(Change::DeletePort(old.id));
    Ok(())
}
