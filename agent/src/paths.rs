//! Where the agent's files are. One root directory relocates all of them, so that several agents run
//! on one machine.

use std::path::{Path, PathBuf};

/// The agent's files below one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// All files below `root`; `/` for a normal installation.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Paths { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path as a configuration file gives it: what is in one of Ferrovia's own directories moves
    /// below the root, any other path is what it says.
    pub fn relocate(&self, path: &Path) -> PathBuf {
        let ours = ["/etc/ferrovia", "/var/lib/ferrovia", "/run/ferrovia"];
        match path.strip_prefix("/") {
            Ok(rest) if ours.iter().any(|dir| path.starts_with(dir)) => self.root.join(rest),
            _ => path.to_owned(),
        }
    }

    /// `/etc/ferrovia`.
    pub fn config_dir(&self) -> PathBuf {
        self.root.join("etc/ferrovia")
    }

    /// `/etc/ferrovia/agent.toml`.
    pub fn config(&self) -> PathBuf {
        self.config_dir().join("agent.toml")
    }

    /// `/var/lib/ferrovia`: what survives a reboot.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/ferrovia")
    }

    /// The last known desired state.
    pub fn state(&self) -> PathBuf {
        self.state_dir().join("agent-state")
    }

    /// The journal of the VFs.
    pub fn sriov_dir(&self) -> PathBuf {
        self.state_dir().join("sriov")
    }

    /// The NIC policies that came over the local API.
    pub fn nic_policies(&self) -> PathBuf {
        self.state_dir().join("nic-policies.json")
    }

    /// The relays that came over the local API.
    pub fn relays(&self) -> PathBuf {
        self.state_dir().join("xvio-relays.json")
    }

    /// `/run/ferrovia`: sockets and the lock.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run/ferrovia")
    }

    /// The directory of the vhost-user sockets.
    pub fn vhost_dir(&self) -> PathBuf {
        self.run_dir().join("vhost")
    }

    /// The local API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    /// Held as long as an agent runs below this root.
    pub fn lock(&self) -> PathBuf {
        self.run_dir().join("agent.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_every_file() {
        let paths = Paths::new("/tmp/h1");
        assert_eq!(paths.config(), Path::new("/tmp/h1/etc/ferrovia/agent.toml"));
        assert_eq!(paths.vhost_dir(), Path::new("/tmp/h1/run/ferrovia/vhost"));
        let token = paths.relocate(Path::new("/etc/ferrovia/token"));
        assert_eq!(token, Path::new("/tmp/h1/etc/ferrovia/token"));
        assert_eq!(
            paths.relocate(Path::new("/srv/token")),
            Path::new("/srv/token")
        );
        assert_eq!(
            Paths::new("/").state(),
            Path::new("/var/lib/ferrovia/agent-state")
        );
    }
}
