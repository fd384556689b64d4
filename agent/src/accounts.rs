//! Who owns the sockets: accounts and groups by name or number, and directories for them.

use nix::unistd::{Gid, Group, Uid, User, chown};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Debian's account for QEMU under libvirt.
const QEMU_USER: &str = "libvirt-qemu";
/// And its group.
const QEMU_GROUP: &str = "kvm";

/// Owner and group of the vhost-user sockets; `None`: the agent's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// User number.
    pub owner: Option<u32>,
    /// Group number.
    pub group: Option<u32>,
}

/// An account or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such account.
    #[error("There is no {kind} \"{name}\" on this host; create it or change {key}")]
    Unknown {
        /// "account" or "group".
        kind: &'static str,
        /// As configured.
        name: String,
        /// Where it is configured.
        key: &'static str,
    },
    /// A directory cannot be made as it has to be.
    #[error(
        "{path} cannot be made or given its owner and mode; run the agent as root, or create it beforehand"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Looks up what the configuration names; its defaults where the host has them.
pub fn ownership(owner: Option<&str>, group: Option<&str>) -> Result<Ownership, AccountError> {
    // Only root can give files away; anybody else keeps them unless told to try.
    let root = Uid::effective().is_root();
    let owner = match owner {
        Some(name) => Some(user(name, "owner of [sockets]")?),
        None if root => by_user_name(QEMU_USER),
        None => None,
    };
    let group = match group {
        Some(name) => Some(self::group(name, "group of [sockets]")?),
        None if root => by_group_name(QEMU_GROUP),
        None => None,
    };
    Ok(Ownership { owner, group })
}

fn by_user_name(name: &str) -> Option<u32> {
    User::from_name(name)
        .ok()
        .flatten()
        .map(|user| user.uid.as_raw())
}

fn by_group_name(name: &str) -> Option<u32> {
    Group::from_name(name)
        .ok()
        .flatten()
        .map(|group| group.gid.as_raw())
}

fn user(name: &str, key: &'static str) -> Result<u32, AccountError> {
    let number = name.parse().ok().or_else(|| by_user_name(name));
    number.ok_or_else(|| AccountError::Unknown {
        kind: "account",
        name: name.to_owned(),
        key,
    })
}

/// A group by name or number.
pub fn group(name: &str, key: &'static str) -> Result<u32, AccountError> {
    let number = name.parse().ok().or_else(|| by_group_name(name));
    number.ok_or_else(|| AccountError::Unknown {
        kind: "group",
        name: name.to_owned(),
        key,
    })
}

/// Makes a directory, with those above it, and gives it a mode.
pub fn directory(path: &Path, mode: u32, group: Option<u32>) -> Result<(), AccountError> {
    let make = || {
        std::fs::create_dir_all(path)?;
        if let Some(group) = group {
            chown(path, None, Some(Gid::from_raw(group)))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    make().map_err(|source| AccountError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// The directory of the vhost-user sockets: QEMU's group may enter, and create its own sockets there
/// (client mode), but not remove those of others (sticky). Nobody else sees it.
pub fn vhost_directory(path: &Path, ownership: Ownership) -> Result<(), AccountError> {
    let mode = if ownership.group.is_some() {
        0o1770
    } else {
        0o700
    };
    directory(path, mode, ownership.group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_accounts() {
        assert_eq!(user("root", "owner").unwrap(), 0);
        assert_eq!(user("1234", "owner").unwrap(), 1234);
        assert_eq!(group("root", "group").unwrap(), 0);
        let error = ownership(Some("fv-nobody-here"), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"fv-nobody-here\"") && error.contains("owner of"),
            "{error}"
        );
    }

    #[test]
    fn the_socket_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vhost");
        vhost_directory(&path, Ownership::default()).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o700);
        let own = nix::unistd::getgid().as_raw();
        vhost_directory(
            &path,
            Ownership {
                owner: None,
                group: Some(own),
            },
        )
        .unwrap();
        assert_eq!(mode(), 0o1770);
    }
}
