//! The last known desired state, on disk: what makes the agent forward without its controller, also
//! after its own restart.
//!
//! One protobuf message behind a magic line and a checksum. It is replaced whole: written beside,
//! synced, renamed, and the directory synced, so that a crash leaves the old one or the new one.

use crate::wire::Resources;
use api::v1;
use prost::Message;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"ferrovia agent state 1\n";

/// What survives a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// What the controller wants.
    pub resources: Resources,
    /// The socket file's stem for each port id, so that a renamed port keeps its socket.
    pub sockets: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedMessage {
    #[prost(message, optional, tag = "1")]
    desired: Option<v1::Desired>,
    #[prost(btree_map = "string, string", tag = "2")]
    sockets: BTreeMap<String, String>,
}

/// The state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{path} cannot be {what}; the agent must be able to read and write it")]
    Io {
        /// The file.
        path: PathBuf,
        /// "read" or "written".
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in it is not what was written.
    #[error(
        "{path} is damaged; it is set aside, and everything is fetched anew from the controller"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the state; `None` where there is none yet.
pub fn load(path: &Path) -> Result<Option<Saved>, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateError::Io {
                path: path.to_owned(),
                what: "read",
                source,
            });
        }
    };
    let damaged = || StateError::Damaged {
        path: path.to_owned(),
    };
    let body = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (sum, body) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
    if u64::from_be_bytes(*sum) != checksum(body) {
        return Err(damaged());
    }
    let message = SavedMessage::decode(body).map_err(|_| damaged())?;
    let mut saved = Saved {
        sockets: message.sockets,
        ..Default::default()
    };
    if let Some(mut desired) = message.desired {
        desired.full = true;
        saved.resources.apply(desired).map_err(|_| damaged())?;
    }
    Ok(Some(saved))
}

/// Moves a damaged file out of the way, for whoever wants to look at it.
pub fn set_aside(path: &Path) {
    let _ = std::fs::rename(path, path.with_extension("damaged"));
}

/// Writes the state. When this returns, it is on disk.
pub fn save(path: &Path, saved: &Saved) -> Result<(), StateError> {
    let resources = &saved.resources;
    let message = SavedMessage {
        desired: Some(v1::Desired {
            version: resources.version,
            store_id: resources.store_id.clone(),
            full: true,
            upserts: resources.by_key.values().cloned().collect(),
            deletes: Vec::new(),
            host_id: resources.host_id.clone(),
        }),
        sockets: saved.sockets.clone(),
    };
    let body = message.encode_to_vec();
    write(path, &body).map_err(|source| StateError::Io {
        path: path.to_owned(),
        what: "written",
        source,
    })
}

fn write(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(MAGIC)?;
    file.write_all(&checksum(body).to_be_bytes())?;
    file.write_all(body)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// FNV-1a, 64 bits: finds damage, not malice (the file is the agent's own, mode 0600).
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| {
        (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn saved() -> Saved {
        let mut saved = Saved::default();
        saved.sockets.insert("id".into(), "web-1".into());
        let network = v1::Network {
            id: "n".into(),
            vni: 7,
            ..Default::default()
        };
        let resource = v1::Resource {
            key: "network/n".into(),
            revision: 3,
            resource: Some(v1::resource::Resource::Network(network)),
        };
        saved
            .resources
            .apply(v1::Desired {
                version: 9,
                store_id: "s".into(),
                full: true,
                upserts: vec![resource],
                deletes: vec![],
                host_id: "h".into(),
            })
            .unwrap();
        saved
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent-state");
        assert!(load(&path).unwrap().is_none());
        save(&path, &saved()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(saved()));
        save(&path, &Saved::default()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(Saved::default()));
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left beside it");
    }

    #[test]
    fn a_full_directory_or_a_missing_one_is_an_error_and_keeps_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let error = save(&dir.path().join("no/agent-state"), &saved()).unwrap_err();
        assert!(error.to_string().contains("cannot be written"), "{error}");
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0usize..200, bit in 0u8..8) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("agent-state");
            save(&path, &saved()).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, &bytes).unwrap();
            let found = load(&path);
            prop_assert!(matches!(found, Err(StateError::Damaged { .. })), "{:?}", found);
            std::fs::write(&path, &bytes[..at]).unwrap();
            let found = load(&path);
            prop_assert!(matches!(found, Err(StateError::Damaged { .. })), "{:?}", found);
        }
    }
}
