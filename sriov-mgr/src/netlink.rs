//! The kernel's list of network interfaces, through rtnetlink.

use crate::inventory::Error;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, State};
use serde::{Deserialize, Serialize};

/// RFC 2863 operational state of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Ready to pass packets.
    Up,
    /// Cannot pass packets: no carrier, or taken down.
    Down,
    /// The driver does not say, or a state in between.
    Unknown,
}

/// What netlink says of one interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<String>,
    pub(crate) mtu: u32,
    pub(crate) state: LinkState,
    pub(crate) carrier: Option<bool>,
}

/// All interfaces of this network namespace.
pub(crate) async fn links() -> Result<Vec<Link>, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
    let connection = tokio::spawn(connection);
    let links = handle
        .link()
        .get()
        .execute()
        .map_ok(read)
        .try_collect::<Vec<Link>>()
        .await;
    connection.abort();
    links.map_err(|error| Error::Netlink(std::io::Error::other(error)))
}

fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        state: LinkState::Unknown,
        carrier: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = Some(carrier == 1),
            LinkAttribute::Address(bytes) if bytes.len() == 6 => {
                let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
                link.mac = Some(hex.join(":"));
            }
            LinkAttribute::OperState(State::Up) => link.state = LinkState::Up,
            LinkAttribute::OperState(State::Down | State::LowerLayerDown | State::NotPresent) => {
                link.state = LinkState::Down;
            }
            _ => {}
        }
    }
    link
}
