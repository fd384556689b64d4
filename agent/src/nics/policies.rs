//! The policies of this host: those of agent.toml, and those that came over the API, which are kept in a
//! file beside the agent's state.

use serde::{Deserialize, Serialize};
use sriov_mgr::policy::Policy;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The version of the file's layout.
const VERSION: u32 = 1;

/// Both kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Of agent.toml.
    pub file: Vec<Policy>,
    /// Of the API.
    pub api: Vec<Policy>,
}

impl Policies {
    /// All of them.
    pub fn all(&self) -> Vec<Policy> {
        self.file.iter().chain(&self.api).cloned().collect()
    }

    /// The name that both kinds have, if any.
    pub fn clash(&self) -> Option<&str> {
        let names = self.api.iter().map(|policy| policy.name.as_str());
        names
            .into_iter()
            .find(|name| self.file.iter().any(|policy| policy.name == *name))
    }
}

/// The kept policies cannot be read or written.
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
    #[error("{path} is damaged: {why}; set the policies again over the API, or remove the file")]
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
    policies: Vec<Policy>,
}

/// Reads the policies that came over the API; none where there is no file.
pub fn load(path: &Path) -> Result<Vec<Policy>, KeepError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
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
    match kept.version {
        VERSION => Ok(kept.policies),
        other => Err(damaged(format!("it has version {other}, not {VERSION}"))),
    }
}

/// Writes them. When this returns, they are on disk.
pub fn save(path: &Path, policies: &[Policy]) -> Result<(), KeepError> {
    let io = |source| KeepError::Io {
        path: path.to_owned(),
        what: "written",
        source,
    };
    let kept = Kept {
        version: VERSION,
        policies: policies.to_vec(),
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

    fn policy(name: &str) -> Policy {
        Policy {
            name: name.into(),
            num_vfs: Some(4),
            ..Policy::default()
        }
    }

    #[test]
    fn what_was_kept_is_read_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nic-policies.json");
        assert_eq!(load(&path).unwrap(), []);
        save(&path, &[policy("a"), policy("b")]).unwrap();
        assert_eq!(load(&path).unwrap(), [policy("a"), policy("b")]);
        let text = std::fs::read_to_string(&path).unwrap();
        for damage in [
            &text[..text.len() / 2],
            "{}",
            "",
            "{\"version\":2,\"policies\":[]}",
        ] {
            std::fs::write(&path, damage).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("nic-policies.json is damaged"), "{error}");
        }
    }

    #[test]
    fn a_name_of_both_kinds_is_found() {
        let mut both = Policies {
            file: vec![policy("a")],
            api: vec![policy("b")],
        };
        assert_eq!(both.clash(), None);
        both.api.push(policy("a"));
        assert_eq!(both.clash(), Some("a"));
    }
}
