//! `ferrovia port`, and what `vm` needs of ports.

use super::PAGE;
use crate::args::{BindingKind, Global, Port, Rings, SocketMode};
use crate::failure::Failure;
use crate::{libvirt, output, views};
use api::v1;
use api::v1::controller_client::ControllerClient;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// How long an agent may take to make a port ready.
const READY: Duration = Duration::from_secs(30);

pub async fn run(global: &Global, command: Port) -> Result<(), Failure> {
    if let Port::List { local: true, .. } = command {
        let ports = global
            .agent()
            .await?
            .list_local_ports(v1::Empty {})
            .await?
            .into_inner()
            .ports;
        let ports: Vec<_> = ports.into_iter().map(views::LocalPort::from).collect();
        return global.output.list(&ports);
    }
    let mut client = global.controller().await?;
    let port = match command {
        Port::List { network, host, .. } => {
            let ports = all(
                &mut client,
                network.as_deref().unwrap_or(""),
                host.as_deref().unwrap_or(""),
            )
            .await?;
            let ports: Vec<_> = ports.into_iter().map(views::Port::from).collect();
            return global.output.list(&ports);
        }
        Port::Delete { port, seen } => {
            let request = v1::DeleteRequest {
                r#ref: port.clone(),
                revision: seen.revision,
            };
            client.delete_port(request).await?;
            return global.output.said(&format!("Port {port} is deleted."));
        }
        Port::Xml { port } => {
            let port = client
                .get_port(v1::GetRequest { r#ref: port })
                .await?
                .into_inner();
            return output::print(&libvirt::interfaces_xml(&port)?.join("\n"));
        }
        Port::Show { port } => client
            .get_port(v1::GetRequest { r#ref: port })
            .await?
            .into_inner(),
        Port::Create {
            name,
            network,
            host,
            mac,
            addresses,
            bound,
            rings,
            owner,
            wait,
        } => {
            let request = v1::CreatePortRequest {
                name,
                network,
                host: host.unwrap_or_default(),
                mac: mac.unwrap_or_default(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                binding: v1::Binding::from(bound.binding).into(),
                virtio: Some(rings.into()),
                owner,
                pool: bound.pool.unwrap_or_default(),
                standby: bound.standby,
            };
            let port = client.create_port(request).await?.into_inner();
            if wait {
                let name = port.name.clone();
                ready(&mut client, port).await.map_err(|failure| {
                    failure.then(&format!(
                        "the port is kept and is made ready when it can be; `ferrovia port delete {name}` removes it"
                    ))
                })?
            } else {
                port
            }
        }
        Port::Update {
            port,
            name,
            host,
            owner,
            seen,
        } => {
            let request = v1::UpdatePortRequest {
                r#ref: port,
                revision: seen.revision,
                name,
                host,
                owner,
            };
            client.update_port(request).await?.into_inner()
        }
    };
    global.output.one(&views::Port::from(port))
}

/// Every port of a network and a host; empty references mean any.
pub async fn all(
    client: &mut ControllerClient<Channel>,
    network: &str,
    host: &str,
) -> Result<Vec<v1::Port>, Failure> {
    let mut ports = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListPortsRequest {
            page_size: PAGE,
            page_token,
            network: network.to_owned(),
            host: host.to_owned(),
        };
        let page = client.list_ports(request).await?.into_inner();
        ports.extend(page.ports);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(ports);
        }
    }
}

/// Waits until the port's agent says that it is ready.
pub async fn ready(
    client: &mut ControllerClient<Channel>,
    mut port: v1::Port,
) -> Result<v1::Port, Failure> {
    if port.host.is_empty() {
        return Err(Failure::usage(format!(
            "Port \"{}\" is on no host, so nobody will make it ready; give --host",
            port.name
        )));
    }
    let until = Instant::now() + READY;
    loop {
        let status = port.status.clone().unwrap_or_default();
        match status.state() {
            v1::PortState::Ready => return Ok(port),
            v1::PortState::Failed => {
                return Err(Failure::other(format!(
                    "Port \"{}\" failed on host \"{}\": {}",
                    port.name, port.host_name, status.reason
                )));
            }
            _ if Instant::now() > until => {
                return Err(Failure::unreachable(format!(
                    "The agent of host \"{}\" did not make port \"{}\" ready within {} s; `ferrovia host show {}` \
                     tells whether it is connected",
                    port.host_name,
                    port.name,
                    READY.as_secs(),
                    port.host_name
                )));
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        port = client
            .get_port(v1::GetRequest { r#ref: port.id })
            .await?
            .into_inner();
    }
}

impl From<BindingKind> for v1::Binding {
    fn from(kind: BindingKind) -> Self {
        match kind {
            BindingKind::Virtio => v1::Binding::Virtio,
            BindingKind::Xvio => v1::Binding::Xvio,
            BindingKind::Sriov => v1::Binding::Sriov,
        }
    }
}

impl From<Rings> for v1::VirtioOptions {
    fn from(rings: Rings) -> Self {
        let mode = match rings.socket_mode {
            SocketMode::AgentListens => v1::SocketMode::AgentListens,
            SocketMode::AgentConnects => v1::SocketMode::AgentConnects,
        };
        v1::VirtioOptions {
            queue_pairs: rings.queue_pairs,
            queue_size: rings.queue_size,
            mode: mode.into(),
        }
    }
}
