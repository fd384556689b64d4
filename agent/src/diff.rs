//! What has to happen to the ports of this host: compares those that run with those that should.

use crate::desired::SocketMode;
use flow::MacAddr;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// All that a vhost-user backend is made of. A change of any of it needs another backend; everything
/// else of a port (its addresses, its network's routes) only needs another topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Told to the guest as its MAC.
    pub mac: MacAddr,
    /// Told to the guest as its MTU.
    pub mtu: u16,
    /// Queue pairs offered.
    pub queue_pairs: u16,
    /// Descriptors a ring.
    pub queue_size: u16,
    /// Who makes the socket.
    pub mode: SocketMode,
    /// The socket.
    pub socket: PathBuf,
}

/// Steps from what runs to what should, by port id. A port that needs another backend is in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To take down, first.
    pub remove: Vec<String>,
    /// To set up, afterwards.
    pub create: Vec<String>,
}

/// Compares `running` with `wanted`.
pub fn plan(running: &BTreeMap<String, Attachment>, wanted: &BTreeMap<String, Attachment>) -> Plan {
    let differs = |id: &String, other: &BTreeMap<String, Attachment>, this: &Attachment| {
        other.get(id).is_none_or(|that| that != this)
    };
    let remove = running.iter().filter(|(id, a)| differs(id, wanted, a));
    let create = wanted.iter().filter(|(id, a)| differs(id, running, a));
    Plan {
        remove: remove.map(|(id, _)| id.clone()).collect(),
        create: create.map(|(id, _)| id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attachments() -> impl Strategy<Value = BTreeMap<String, Attachment>> {
        let one = (0..3u8, 0..2u16, 1..3u16, any::<bool>(), 0..3u8).prop_map(
            |(mac, mtu, pairs, client, socket)| Attachment {
                mac: MacAddr([2, 0, 0, 0, 0, mac]),
                mtu: 1500 + mtu,
                queue_pairs: pairs,
                queue_size: 256,
                mode: if client {
                    SocketMode::Client
                } else {
                    SocketMode::Server
                },
                socket: PathBuf::from(format!("/s{socket}")),
            },
        );
        proptest::collection::btree_map("[a-e]", one, 0..6)
    }

    proptest! {
        #[test]
        fn the_plan_leads_from_one_to_the_other(
            running in attachments(),
            wanted in attachments(),
        ) {
            let steps = plan(&running, &wanted);
            let mut now = running.clone();
            for id in &steps.remove {
                prop_assert!(now.remove(id).is_some(), "{id} was not there");
            }
            for id in &steps.create {
                prop_assert!(now.insert(id.clone(), wanted[id].clone()).is_none(), "{id} was there");
            }
            prop_assert_eq!(&now, &wanted);
            prop_assert_eq!(plan(&now, &wanted), Plan::default(), "applying twice changes nothing");
        }

        #[test]
        fn what_is_equal_is_left_alone(running in attachments(), wanted in attachments()) {
            let steps = plan(&running, &wanted);
            for (id, attachment) in &running {
                if wanted.get(id) == Some(attachment) {
                    prop_assert!(!steps.remove.contains(id) && !steps.create.contains(id));
                }
            }
        }
    }
}
