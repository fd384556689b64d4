//! The relays that came over the API, on disk beside the agent's state.

use super::spec::{Origin, Spec};
use api::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The version of the file's layout.
const VERSION: u32 = 1;

/// The kept relays cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file system.
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
    /// The text is not what was written.
    #[error("{path} is damaged: {why}; it is set aside, add its relays again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    relays: Vec<One>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    socket: String,
    agent_connects: bool,
    queue_pairs: u32,
    queue_size: u32,
    mtu: u32,
    mac: String,
    vlan: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vf: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

impl From<&Spec> for One {
    fn from(spec: &Spec) -> One {
        let spec = spec.to_api();
        let agent_connects = spec.mode() == v1::SocketMode::AgentConnects;
        let (vf, device) = match spec.far {
            Some(v1::relay_spec::Far::Vf(address)) => (Some(address), None),
            Some(v1::relay_spec::Far::Device(device)) => (None, Some(device)),
            None => (None, None),
        };
        One {
            name: spec.name,
            socket: spec.socket,
            agent_connects,
            queue_pairs: spec.queue_pairs,
            queue_size: spec.queue_size,
            mtu: spec.mtu,
            mac: spec.mac,
            vlan: spec.vlan,
            vf,
            device,
        }
    }
}

impl One {
    fn spec(self) -> Result<Spec, String> {
        let mode = if self.agent_connects {
            v1::SocketMode::AgentConnects
        } else {
            v1::SocketMode::AgentListens
        };
        let vf = self.vf.map(v1::relay_spec::Far::Vf);
        let asked = v1::RelaySpec {
            name: self.name,
            socket: self.socket,
            mode: mode.into(),
            queue_pairs: self.queue_pairs,
            queue_size: self.queue_size,
            mtu: self.mtu,
            mac: self.mac,
            vlan: self.vlan,
            far: vf.or(self.device.map(v1::relay_spec::Far::Device)),
        };
        Spec::from_api(&asked, Origin::Api)
    }
}

/// Reads them; none where there is no file.
pub fn load(path: &Path) -> Result<BTreeMap<String, Spec>, KeepError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => {
            return Err(KeepError::Io {
                path: path.to_owned(),
                what: "read",
                source,
            });
        }
    };
    let damaged = |why: String| KeepError::Damaged {
        path: path.to_owned(),
        why,
    };
    let kept: Kept = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if kept.version != VERSION {
        let why = format!("it has version {}, not {VERSION}", kept.version);
        return Err(damaged(why));
    }
    let specs = kept.relays.into_iter().map(|one| {
        let spec = one.spec().map_err(damaged)?;
        Ok((spec.name.clone(), spec))
    });
    specs.collect()
}

/// Writes them. When this returns, they are on disk.
pub fn save(path: &Path, relays: &BTreeMap<String, Spec>) -> Result<(), KeepError> {
    let io = |source| KeepError::Io {
        path: path.to_owned(),
        what: "written",
        source,
    };
    let kept = Kept {
        version: VERSION,
        relays: relays.values().map(One::from).collect(),
    };
    let text = serde_json::to_string_pretty(&kept).map_err(|error| io(error.into()))?;
    let write = || {
        let beside = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, far: v1::relay_spec::Far) -> (String, Spec) {
        let asked = v1::RelaySpec {
            name: name.into(),
            mac: "02:00:00:00:00:01".into(),
            mode: v1::SocketMode::AgentConnects.into(),
            far: Some(far),
            ..Default::default()
        };
        (
            name.to_owned(),
            Spec::from_api(&asked, Origin::Api).unwrap(),
        )
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xvio-relays.json");
        assert!(load(&path).unwrap().is_empty());
        let relays = BTreeMap::from([
            spec("a", v1::relay_spec::Far::Vf("0000:3b:02.1".into())),
            spec("b", v1::relay_spec::Far::Device("net_tap0".into())),
        ]);
        save(&path, &relays).unwrap();
        assert_eq!(load(&path).unwrap(), relays);
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left beside it");
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("02:00", "03:00"),
            text[..text.len() / 2].to_owned(),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(load(&path), Err(KeepError::Damaged { .. })));
        }
    }
}
