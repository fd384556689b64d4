//! A PF and its VFs as sysfs, `ip` and `devlink` show them: the other side that the manager's word is compared with.

use crate::command;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use sriov_mgr::Device;
use std::fs;
use std::path::PathBuf;

/// A PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// `sriov_drivers_autoprobe`; true where the device has none.
    pub autoprobe: bool,
    /// Mode of its eswitch; empty where it has none.
    pub eswitch: String,
    /// Representors of VFs.
    pub representors: usize,
    /// Its VFs, by number.
    pub vfs: Vec<Vf>,
}

/// A VF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vf {
    /// MAC address as `ip` writes it.
    pub mac: String,
    /// VLAN; 0: none.
    pub vlan: u64,
    /// Whether it is trusted.
    pub trust: bool,
    /// The driver bound to it; empty: none.
    pub driver: String,
    /// `driver_override`; empty: none.
    pub driver_override: String,
}

/// A device's folder in sysfs.
pub fn folder(pf: &Device) -> PathBuf {
    PathBuf::from(format!("/sys/bus/{}/devices/{}", pf.bus(), pf.name()))
}

/// Its first interface that is no representor.
pub fn interface(pf: &Device) -> Result<String> {
    let net = folder(pf).join("net");
    let mut names: Vec<String> = fs::read_dir(&net)
        .with_context(|| format!("{} cannot be read", net.display()))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            let port = fs::read_to_string(net.join(name).join("phys_port_name"));
            !port.is_ok_and(|port| port.starts_with("pf"))
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .next()
        .with_context(|| format!("{pf} has no interface"))
}

/// What there is now.
pub fn read(pf: &Device) -> Result<Truth> {
    let dir = folder(pf);
    let text = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().trim_matches('\0').replace("(null)", "")
    };
    let count: usize = text(dir.join("sriov_numvfs")).parse().unwrap_or(0);
    let link = interface(pf)?;
    let shown = command::words(&["ip", "-json", "-details", "link", "show", "dev", &link])?;
    let shown: Value = serde_json::from_str(&shown).context("`ip -json` printed no JSON")?;
    let listed = shown[0]["vfinfo_list"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if listed.len() != count {
        bail!(
            "sysfs says that {pf} has {count} VFs, and `ip` shows {}",
            listed.len()
        );
    }
    let vfs = listed.iter().enumerate().map(|(index, vf)| {
        let function = dir.join(format!("virtfn{index}"));
        let driver = fs::read_link(function.join("driver")).unwrap_or_default();
        Vf {
            mac: vf["address"]
                .as_str()
                .or(vf["mac"].as_str())
                .unwrap_or_default()
                .to_owned(),
            vlan: vf["vlan_list"][0]["vlan"].as_u64().unwrap_or(0),
            trust: vf["trust"].as_bool().unwrap_or(false),
            driver: driver
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            driver_override: text(function.join("driver_override")),
        }
    });
    let (eswitch, representors) = match pf.pci() {
        Some(_) => (String::new(), 0),
        None => eswitch(pf)?,
    };
    Ok(Truth {
        autoprobe: text(dir.join("sriov_drivers_autoprobe")) != "0",
        eswitch,
        representors,
        vfs: vfs.collect(),
    })
}

fn eswitch(pf: &Device) -> Result<(String, usize)> {
    let handle = format!("{}/{}", pf.bus(), pf.name());
    let shown = command::words(&["devlink", "-j", "dev", "eswitch", "show", &handle])?;
    let shown: Value = serde_json::from_str(&shown).context("`devlink -j` printed no JSON")?;
    let mode = shown["dev"][&handle]["mode"].as_str().unwrap_or_default();
    let ports = command::words(&["devlink", "port"])?;
    let of_vfs = |line: &&str| line.starts_with(&handle) && line.contains("flavour pcivf");
    Ok((mode.to_owned(), ports.lines().filter(of_vfs).count()))
}
