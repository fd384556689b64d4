//! `ferrovia network`.

use super::PAGE;
use crate::args::{Global, Network};
use crate::failure::Failure;
use crate::views;
use api::v1;
use std::net::IpAddr;

pub async fn run(global: &Global, command: Network) -> Result<(), Failure> {
    let request = match command {
        Network::List => return list(global).await,
        Network::Delete { network, seen } => {
            let request = v1::DeleteRequest {
                r#ref: network.clone(),
                revision: seen.revision,
            };
            global.controller().await?.delete_network(request).await?;
            return global
                .output
                .said(&format!("Network {network} is deleted."));
        }
        Network::Show { network } => {
            let get = v1::GetRequest { r#ref: network };
            let network = global.controller().await?.get_network(get).await?;
            return global
                .output
                .one(&views::Network::from(network.into_inner()));
        }
        Network::Create {
            name,
            subnets,
            dns,
            routes,
            mtu,
            vni,
            vlan,
        } => {
            let request = v1::CreateNetworkRequest {
                name,
                vni,
                mtu,
                subnets: parse_all(&subnets, subnet)?,
                dns: texts(dns),
                routes: parse_all(&routes, route)?,
                vlan,
            };
            let network = global.controller().await?.create_network(request).await?;
            return global
                .output
                .one(&views::Network::from(network.into_inner()));
        }
        Network::Update {
            network,
            name,
            mtu,
            subnets,
            dns,
            routes,
            vlan,
            seen,
        } => v1::UpdateNetworkRequest {
            r#ref: network,
            revision: seen.revision,
            name,
            mtu,
            set_subnets: subnets.is_some(),
            subnets: parse_all(&subnets.unwrap_or_default(), subnet)?,
            set_dns: dns.is_some(),
            dns: texts(dns.unwrap_or_default()),
            set_routes: routes.is_some(),
            routes: parse_all(&routes.unwrap_or_default(), route)?,
            vlan,
        },
    };
    let network = global.controller().await?.update_network(request).await?;
    global
        .output
        .one(&views::Network::from(network.into_inner()))
}

async fn list(global: &Global) -> Result<(), Failure> {
    let mut client = global.controller().await?;
    let mut networks = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = v1::ListRequest {
            page_size: PAGE,
            page_token,
        };
        let page = client.list_networks(page).await?.into_inner();
        networks.extend(page.networks.into_iter().map(views::Network::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return global.output.list(&networks);
        }
    }
}

fn texts(addresses: Vec<IpAddr>) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

fn parse_all<T>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| parse(text)).collect()
}

/// `10.1.0.0/24`, `10.1.0.0/24,gateway=10.1.0.254`, `fd00:1::/64,slaac`. The controller judges the prefix.
fn subnet(text: &str) -> Result<v1::Subnet, Failure> {
    let mut parts = text.split(',');
    let mut subnet = v1::Subnet {
        cidr: parts.next().unwrap_or_default().to_owned(),
        gateway: String::new(),
        slaac: false,
    };
    for option in parts {
        match option.split_once('=') {
            Some(("gateway", address)) => subnet.gateway = address.to_owned(),
            None if option == "slaac" => subnet.slaac = true,
            _ => {
                return Err(Failure::usage(format!(
                    "Subnet \"{text}\" has the unknown option \"{option}\"; write CIDR, CIDR,gateway=ADDRESS or CIDR,slaac"
                )));
            }
        }
    }
    Ok(subnet)
}

/// `10.9.0.0/16=10.1.0.7`.
fn route(text: &str) -> Result<v1::Route, Failure> {
    let Some((destination, next_hop)) = text.split_once('=') else {
        return Err(Failure::usage(format!(
            "Route \"{text}\" has no next hop; write CIDR=NEXTHOP, such as 10.9.0.0/16=10.1.0.7"
        )));
    };
    Ok(v1::Route {
        destination: destination.to_owned(),
        next_hop: next_hop.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_take_a_gateway_and_slaac() {
        let parsed = subnet("fd00::/64,gateway=fd00::9,slaac").unwrap();
        assert_eq!(
            (parsed.cidr.as_str(), parsed.gateway.as_str(), parsed.slaac),
            ("fd00::/64", "fd00::9", true)
        );
        assert!(
            subnet("10.0.0.0/8,vlan=3")
                .unwrap_err()
                .to_string()
                .contains("\"vlan=3\"")
        );
    }

    #[test]
    fn a_route_needs_a_next_hop() {
        assert_eq!(route("10.9.0.0/16=10.1.0.7").unwrap().next_hop, "10.1.0.7");
        assert!(
            route("10.9.0.0/16")
                .unwrap_err()
                .to_string()
                .contains("CIDR=NEXTHOP")
        );
    }
}
