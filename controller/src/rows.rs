//! Records as bytes in the store: protobuf, so that later versions can add fields.
//!
//! The API's own messages are the rows where they hold everything; the rest is declared here.

use std::net::IpAddr;

use api::token::Role;
use api::v1;
use prost::Message;
use uuid::Uuid;

use crate::records::{Host, Network, Port, Route, Subnet, Token};
use crate::views;

/// A row that cannot be read. The store is from a later version or was damaged.
#[derive(Debug, thiserror::Error)]
#[error(
    "The {kind} row {key:x} cannot be read: {what}; restore the store's file from a backup or use the version that wrote it"
)]
pub struct BadRow {
    kind: &'static str,
    key: u128,
    what: &'static str,
}

#[derive(Clone, PartialEq, Message)]
struct HostRow {
    #[prost(message, optional, tag = "1")]
    host: Option<v1::Host>,
    #[prost(bool, tag = "2")]
    vtep_given: bool,
    #[prost(uint64, tag = "3")]
    vtep_revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct TokenRow {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(bool, tag = "2")]
    operator: bool,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    host: String,
    #[prost(int64, tag = "5")]
    expires: i64,
}

/// A record that has a row.
pub trait Row: Sized {
    /// Its bytes.
    fn to_row(&self) -> Vec<u8>;
    /// Reads the row with this key.
    ///
    /// # Errors
    /// [`BadRow`] when the bytes are not such a record.
    fn from_row(key: u128, bytes: &[u8]) -> Result<Self, BadRow>;
}

fn optional<T: std::str::FromStr>(text: &str) -> Result<Option<T>, &'static str> {
    if text.is_empty() {
        Ok(None)
    } else {
        required(text).map(Some)
    }
}

fn required<T: std::str::FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse()
        .map_err(|_| "a field has no value that it could have")
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, &'static str> {
    texts.iter().map(|text| required(text)).collect()
}

macro_rules! row {
    ($record:ty, $kind:literal, $message:ty, $self:ident => $to:expr, $row:ident => $from:expr) => {
        impl Row for $record {
            fn to_row(&self) -> Vec<u8> {
                let $self = self;
                $to.encode_to_vec()
            }

            fn from_row(key: u128, bytes: &[u8]) -> Result<Self, BadRow> {
                let read = || -> Result<Self, &'static str> {
                    let $row =
                        <$message>::decode(bytes).map_err(|_| "it is not a protobuf message")?;
                    $from
                };
                read().map_err(|what| BadRow {
                    kind: $kind,
                    key,
                    what,
                })
            }
        }
    };
}

row!(Host, "host", HostRow,
    host => HostRow {
        host: Some(views::host(host, None)),
        vtep_given: host.vtep_given,
        vtep_revision: host.vtep_revision,
    },
    row => {
        let host = row.host.ok_or("it holds no host")?;
        Ok(Host {
            id: required(&host.id)?,
            revision: host.revision,
            vtep: optional(&host.vtep)?,
            vtep_given: row.vtep_given,
            vtep_revision: row.vtep_revision,
            underlay_mtu: host.underlay_mtu,
            name: host.name,
        })
    }
);

row!(Network, "network", v1::Network,
    network => views::network(network),
    row => Ok(Network {
        id: required(&row.id)?,
        revision: row.revision,
        vni: row.vni,
        mtu: row.mtu,
        subnets: row.subnets.iter().map(|subnet| Ok(Subnet {
            prefix: required(&subnet.cidr)?,
            gateway: required(&subnet.gateway)?,
            slaac: subnet.slaac,
        })).collect::<Result<_, &'static str>>()?,
        dns: addresses(&row.dns)?,
        routes: row.routes.iter().map(|route| Ok(Route {
            destination: required(&route.destination)?,
            next_hop: required(&route.next_hop)?,
        })).collect::<Result<_, &'static str>>()?,
        gateway_mac: required(&row.gateway_mac)?,
        vlan: row.vlan,
        name: row.name,
    })
);

row!(Port, "port", v1::Port,
    port => views::bare_port(port),
    row => {
        let virtio = row.virtio.ok_or("it holds no virtio options")?;
        Ok(Port {
            id: required(&row.id)?,
            revision: row.revision,
            network: required(&row.network)?,
            host: optional::<Uuid>(&row.host)?,
            mac: required(&row.mac)?,
            addresses: addresses(&row.addresses)?,
            binding: row.binding,
            queue_pairs: virtio.queue_pairs,
            queue_size: virtio.queue_size,
            socket_mode: virtio.mode,
            name: row.name,
            owner: row.owner,
            pool: row.pool,
            standby: row.standby,
        })
    }
);

row!(Token, "token", TokenRow,
    token => TokenRow {
        hash: token.hash.to_vec(),
        operator: token.role == Role::Operator,
        name: token.name.clone(),
        host: token.host.map(|host| host.to_string()).unwrap_or_default(),
        expires: token.expires,
    },
    row => Ok(Token {
        hash: row.hash.try_into().map_err(|_| "its hash has not 32 bytes")?,
        role: if row.operator { Role::Operator } else { Role::Host },
        host: optional(&row.host)?,
        name: row.name,
        expires: row.expires,
    })
);
