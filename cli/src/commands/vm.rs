//! `ferrovia vm`: a port and a libvirt interface, made and undone together.

use super::port;
use crate::args::BindingKind;
use crate::args::{Global, Vm};
use crate::failure::Failure;
use crate::libvirt::{Domain, interfaces_xml};
use crate::{output::Row, views};
use api::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the owner of a port attached to a domain starts with.
const OWNER: &str = "vm/";

pub async fn run(global: &Global, command: Vm) -> Result<(), Failure> {
    match command {
        Vm::Attach {
            domain,
            network,
            name,
            host,
            mac,
            addresses,
            bound,
            rings,
            libvirt,
        } => {
            let domain = Domain::find(&libvirt.connect, &domain)?;
            // A VF works on the guest's memory by itself; a vhost-user device by us.
            if bound.binding != BindingKind::Sriov || bound.standby {
                domain.check_shared_memory()?;
            }
            let host = match host {
                Some(host) => host,
                None => this_host(global).await?,
            };
            let mut client = global.controller().await?;
            let request = v1::CreatePortRequest {
                name: name.unwrap_or_else(|| port_name(&domain.name, &network)),
                network,
                host,
                mac: mac.unwrap_or_default(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                binding: v1::Binding::from(bound.binding).into(),
                virtio: Some(rings.into()),
                owner: format!("{OWNER}{}", domain.name),
                pool: bound.pool.unwrap_or_default(),
                standby: bound.standby,
            };
            let created = client.create_port(request).await?.into_inner();
            let attached = async {
                let port = port::ready(&mut client, created.clone()).await?;
                domain.attach_all(&port.mac, &interfaces_xml(&port)?)?;
                Ok(port)
            };
            let attached = tokio::select! {
                result = attached => result,
                _ = tokio::signal::ctrl_c() => Err(Failure::other("Interrupted")),
            };
            match attached {
                Ok(port) => global.output.one(&views::Port::from(port)),
                Err(failure) => {
                    // Nothing half made stays: the port goes again.
                    let delete = v1::DeleteRequest {
                        r#ref: created.id,
                        revision: 0,
                    };
                    match client.delete_port(delete).await {
                        Ok(_) => Err(failure),
                        Err(status) => Err(failure.during(&format!(
                            "Port \"{}\" was made, could not be attached, and could not be deleted again ({}); \
                             delete it with `ferrovia port delete`",
                            created.name,
                            status.message()
                        ))),
                    }
                }
            }
        }
        Vm::Detach {
            domain,
            network,
            port: name,
            all,
            host,
            libvirt,
        } => {
            let domain = Domain::find(&libvirt.connect, &domain)?;
            // Another host's libvirt may have a domain of this name, with ports of its own.
            let host = match host {
                Some(host) => host,
                None => this_host(global).await?,
            };
            let mut client = global.controller().await?;
            let network = network.unwrap_or_default();
            let owner = format!("{OWNER}{}", domain.name);
            let mut ports = port::all(&mut client, &network, &host).await?;
            ports.retain(|p| {
                p.owner == owner && (all || name.as_ref().is_none_or(|n| *n == p.name))
            });
            if ports.is_empty() {
                return Err(Failure::not_found(format!(
                    "Domain \"{}\" has no such port on host \"{host}\"; `ferrovia vm list` shows what is attached",
                    domain.name
                )));
            }
            for port in ports {
                domain.detach(&port.mac)?;
                let delete = v1::DeleteRequest {
                    r#ref: port.id,
                    revision: 0,
                };
                client.delete_port(delete).await?;
                global.output.said(&format!(
                    "Port {} is detached from {} and deleted.",
                    port.name, domain.name
                ))?;
            }
            Ok(())
        }
        Vm::List => list(global).await,
    }
}

/// A domain with its ports.
#[derive(Serialize)]
struct VmView {
    domain: String,
    host: String,
    ports: Vec<String>,
    networks: Vec<String>,
    addresses: Vec<String>,
}

impl Row for VmView {
    const TITLES: &'static [&'static str] = &["DOMAIN", "HOST", "PORTS", "NETWORKS", "ADDRESSES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.domain.clone(),
            self.host.clone(),
            self.ports.join(" "),
            self.networks.join(" "),
            self.addresses.join(" "),
        ]
    }
}

async fn list(global: &Global) -> Result<(), Failure> {
    let mut client = global.controller().await?;
    let mut vms: BTreeMap<(String, String), VmView> = BTreeMap::new();
    for port in port::all(&mut client, "", "").await? {
        let Some(domain) = port.owner.strip_prefix(OWNER) else {
            continue;
        };
        let key = (domain.to_owned(), port.host_name.clone());
        let vm = vms.entry(key).or_insert_with(|| VmView {
            domain: domain.to_owned(),
            host: port.host_name.clone(),
            ports: Vec::new(),
            networks: Vec::new(),
            addresses: Vec::new(),
        });
        vm.ports.push(port.name);
        vm.networks.push(port.network_name);
        vm.addresses.extend(port.addresses);
    }
    global.output.list(&vms.into_values().collect::<Vec<_>>())
}

/// The host that this machine is, as its agent knows it.
async fn this_host(global: &Global) -> Result<String, Failure> {
    let asked = async {
        let info = global
            .agent()
            .await?
            .get_status(v1::Empty {})
            .await?
            .into_inner();
        Ok::<_, Failure>(info.host)
    };
    asked.await.map_err(|failure| {
        failure
            .during("Which host this machine is must be asked of its agent; give --host otherwise")
    })
}

/// `DOMAIN-NETWORK`, made to fit the rule for names: a to z, 0 to 9 and '-', from a letter, 63 at most.
fn port_name(domain: &str, network: &str) -> String {
    let name: String = format!("{domain}-{network}")
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    let name = if name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.to_owned()
    } else {
        format!("vm-{name}")
    };
    let name: String = name.chars().take(63).collect();
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_fit_the_rule_whatever_the_domain_is_called() {
        for (domain, expected) in [
            ("web-1", "web-1-blue"),
            ("Web_1", "web-1-blue"),
            ("9front", "vm-9front-blue"),
        ] {
            assert_eq!(port_name(domain, "blue"), expected);
        }
        assert_eq!(port_name(&"x".repeat(100), "blue").len(), 63);
        // Cut at the '-', which a name must not end with.
        assert_eq!(port_name(&"x".repeat(62), "blue"), "x".repeat(62));
    }
}
