//! `ferrovia host`.

use super::PAGE;
use crate::args::{Global, Host};
use crate::failure::Failure;
use crate::views;
use api::v1;

pub async fn run(global: &Global, command: Host) -> Result<(), Failure> {
    let mut client = global.controller().await?;
    let host = match command {
        Host::List => {
            let mut hosts = Vec::new();
            let mut page_token = String::new();
            loop {
                let page = v1::ListRequest {
                    page_size: PAGE,
                    page_token,
                };
                let page = client.list_hosts(page).await?.into_inner();
                hosts.extend(page.hosts.into_iter().map(views::Host::from));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return global.output.list(&hosts);
                }
            }
        }
        Host::Delete { host, seen } => {
            let request = v1::DeleteRequest {
                r#ref: host.clone(),
                revision: seen.revision,
            };
            client.delete_host(request).await?;
            return global.output.said(&format!("Host {host} is deleted."));
        }
        Host::Show { host } => client.get_host(v1::GetRequest { r#ref: host }).await?,
        Host::Create { name, vtep } => {
            let vtep = vtep.map(|ip| ip.to_string()).unwrap_or_default();
            client
                .create_host(v1::CreateHostRequest { name, vtep })
                .await?
        }
        Host::Update {
            host,
            name,
            vtep,
            seen,
        } => {
            let request = v1::UpdateHostRequest {
                r#ref: host,
                revision: seen.revision,
                name,
                vtep: vtep.map(|ip| ip.to_string()),
            };
            client.update_host(request).await?
        }
    };
    global.output.one(&views::Host::from(host.into_inner()))
}
