//! XVIO: guests whose packets go to a device of their own, usually a VF, and not through the router.
//!
//! ```text
//!   agent.toml ─┐                                   ┌─▶ ports: the vhost-user socket, its place in a worker
//!   API, file ──┴▶ Spec ─┐                          │
//!                        ├─▶ control (relays.rs) ───┼─▶ nics::vf_ports: the VF, configured and on vfio-pci
//!   ports of binding ────┘                          │
//!   xvio                                            └─▶ Fars: the device behind the guest, while it is connected
//! ```
//!
//! A relay of its own has no network: while its device is away its packets are dropped. A port of binding xvio
//! goes through the router then, as a port of binding virtio does. The guest sees neither.
//!
//! | module | holds |
//! |---|---|
//! | [`spec`] | what a relay is, checked |
//! | [`kept`] | the relays of the API, on disk |
//! | [`far`] | the devices: started and ended by threads of their own, watched |
//! | [`service`] | the API |

pub mod far;
pub mod kept;
pub mod service;
pub mod spec;

use spec::{Origin, Spec};
use std::collections::BTreeMap;

/// What ids of relays start with. No port has such an id.
const ID: &str = "xvio/";

/// The id of a relay among the data plane's ports and the owners of VFs.
pub fn id_of(name: &str) -> String {
    format!("{ID}{name}")
}

/// Whether it is the id of a relay.
pub fn is_relay(id: &str) -> bool {
    id.starts_with(ID)
}

/// All relays of this host. One of the file goes before one of the API with its name.
#[derive(Clone, Debug, Default)]
pub struct Relays {
    /// Of agent.toml.
    pub file: BTreeMap<String, Spec>,
    /// Of the API.
    pub api: BTreeMap<String, Spec>,
}

impl Relays {
    /// The relay of this name, and where it comes from.
    pub fn get(&self, name: &str) -> Option<(&Spec, Origin)> {
        let file = self.file.get(name).map(|spec| (spec, Origin::File));
        file.or_else(|| self.api.get(name).map(|spec| (spec, Origin::Api)))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Spec, Origin)> {
        let file = self.file.values().map(|spec| (spec, Origin::File));
        let api = self
            .api
            .values()
            .filter(|s| !self.file.contains_key(&s.name));
        file.chain(api.map(|spec| (spec, Origin::Api)))
    }

    /// Whether a relay has this id.
    pub fn has_id(&self, id: &str) -> bool {
        id.strip_prefix(ID)
            .is_some_and(|name| self.get(name).is_some())
    }
}
