//! Other programs that are set up to change a PF: NetworkManager and systemd-networkd set the number of
//! VFs whenever they bring an interface up, the SR-IOV network operator whenever it reconciles. Whoever comes
//! last wins, so the operator is told before it happens.

use crate::kernel::PfState;
use crate::plan::SecondOwner;
use std::fs;
use std::path::{Path, PathBuf};

/// A section of a key file: its name, and its keys with values.
type Section = (String, Vec<(String, String)>);

const NETWORK_MANAGER: [&str; 3] = [
    "etc/NetworkManager/system-connections",
    "run/NetworkManager/system-connections",
    "usr/lib/NetworkManager/system-connections",
];

const NETWORKD: [&str; 3] = [
    "etc/systemd/network",
    "run/systemd/network",
    "usr/lib/systemd/network",
];

/// Where the operator's daemon keeps what it has applied, a file for each PF.
const OPERATOR: &str = "etc/sriov-operator/pci";

/// Every program of the system under `root` that is set up to change one of `pfs`.
pub(crate) fn find(root: &Path, pfs: &[PfState]) -> Vec<SecondOwner> {
    let mut found = Vec::new();
    if pfs.is_empty() {
        return found;
    }
    for file in files(root, &NETWORK_MANAGER) {
        network_manager(&file, pfs, &mut found);
    }
    for file in files(root, &NETWORKD) {
        networkd(&file, pfs, &mut found);
    }
    for pf in pfs {
        let file = root.join(OPERATOR).join(pf.device.name());
        if fs::exists(&file).unwrap_or(false) {
            let why = format!(
                "sriov-network-operator has partitioned it ({}); take it out of the operator's policies, or call it \
                 external here",
                file.display()
            );
            found.push(owner(pf, "sriov-network-operator", why));
        }
    }
    found
}

fn owner(pf: &PfState, program: &str, why: String) -> SecondOwner {
    SecondOwner {
        device: pf.device.clone(),
        program: program.into(),
        why,
    }
}

fn files(root: &Path, folders: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(root.join(folder)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect();
    files.sort();
    files
}

fn sections(file: &Path) -> Vec<Section> {
    let Ok(text) = fs::read_to_string(file) else {
        return Vec::new();
    };
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            sections.push((name.to_owned(), Vec::new()));
        } else if !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
            && let Some((_, keys)) = sections.last_mut()
        {
            keys.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sections
}

fn values<'a>(sections: &'a [Section], section: &str, key: &str) -> Vec<&'a str> {
    sections
        .iter()
        .filter(|(name, _)| name == section)
        .flat_map(|(_, keys)| keys)
        .filter(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
        .collect()
}

/// NetworkManager: `[sriov] total-vfs=`, of the interface in `[connection] interface-name=`.
fn network_manager(file: &Path, pfs: &[PfState], found: &mut Vec<SecondOwner>) {
    let sections = sections(file);
    let counts = values(&sections, "sriov", "total-vfs");
    let Some(count) = counts.last() else {
        return;
    };
    let names = values(&sections, "connection", "interface-name");
    for pf in pfs {
        let Some(interface) = pf.interface.as_deref() else {
            continue;
        };
        // A connection without a name is taken for any interface.
        if names.is_empty() || names.contains(&interface) {
            let why = format!(
                "NetworkManager sets {count} VFs when it activates {interface} ({}, section [sriov]); remove the \
                 section, or call the PF external here",
                file.display()
            );
            found.push(owner(pf, "NetworkManager", why));
        }
    }
}

/// systemd-networkd: `[SR-IOV]` of a .network file, `SR-IOVVirtualFunctions=` of a .link file.
fn networkd(file: &Path, pfs: &[PfState], found: &mut Vec<SecondOwner>) {
    let sections = sections(file);
    let counts = !values(&sections, "Link", "SR-IOVVirtualFunctions").is_empty();
    let settings = sections.iter().any(|(name, _)| name == "SR-IOV");
    if !counts && !settings {
        return;
    }
    let words = |key| -> Vec<String> {
        let lists = values(&sections, "Match", key);
        let words = lists.iter().flat_map(|list| list.split_whitespace());
        words.map(str::to_owned).collect()
    };
    let names = [words("Name"), words("OriginalName")].concat();
    let (drivers, paths) = (words("Driver"), words("Path"));
    for pf in pfs {
        let interface = pf.interface.as_deref().unwrap_or_default();
        let driver = pf.driver.as_deref().unwrap_or_default();
        let path = format!("pci-{}", pf.device);
        let fits = |patterns: &[String], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| glob(pattern, text))
        };
        if fits(&names, interface) && fits(&drivers, driver) && fits(&paths, &path) {
            let what = if counts {
                "number of VFs"
            } else {
                "VF settings"
            };
            let why = format!(
                "systemd-networkd sets the {what} of {interface} ({}); remove that, or call the PF external here",
                file.display()
            );
            found.push(owner(pf, "systemd-networkd", why));
        }
    }
}

/// Shell patterns as systemd.link(5) has them: `*` and `?`; a leading `!` turns the meaning round.
fn glob(pattern: &str, text: &str) -> bool {
    if let Some(pattern) = pattern.strip_prefix('!') {
        return !glob(pattern, text);
    }
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on when the text after a star does not fit.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}
