//! `smoke`: a few quick tests that show whether a target, and the way to it, are of any use.

use crate::lab::suite::{Outcome, Stop, Suite, Test, check, same};
use crate::lab::{Context, Need, Unit};

/// The suite.
pub const SUITE: Suite = Suite {
    name: "smoke",
    about: "The target answers, its NICs are seen, VFs come and go",
    tests: &[
        Test::new(
            "answers",
            "the target runs a command and gives back its output and exit code",
            answers,
        ),
        Test::new(
            "nic_list",
            "`ferrovia nic list` shows every NIC with its driver and VF count",
            nic_list,
        )
        .needs(&[Need::PciPfs(1), Need::Program("ferrovia")]),
        Test::new(
            "vfs_come_and_go",
            "VFs are created and destroyed through sysfs, with their PCI devices",
            vfs_come_and_go,
        )
        .needs(&[Need::Root, Need::Vfs(2)])
        .limit(120),
        Test::new(
            "vf_attributes",
            "a VF's MAC and VLAN that were set are read back",
            vf_attributes,
        )
        .needs(&[Need::Root, Need::Vfs(1)])
        .limit(120),
        Test::new(
            "netdevsim_ports",
            "a netdevsim device comes with its ports and goes",
            netdevsim_ports,
        )
        .needs(&[Need::Root, Need::Netdevsim, Need::Emulated]),
    ],
};

fn answers(lab: &Context) -> Outcome {
    let done = lab.shell("echo out; echo err >&2; exit 7")?;
    same("the exit code", done.code, 7)?;
    same(
        "the output",
        (done.stdout.trim(), done.stderr.trim()),
        ("out", "err"),
    )
}

fn nic_list(lab: &Context) -> Outcome {
    let printed = lab.ok(&["ferrovia", "nic", "list", "-o", "json"])?;
    let listed: serde_json::Value = serde_json::from_str(&printed).map_err(|error| {
        Stop::fail(format!(
            "`ferrovia nic list -o json` printed no JSON: {error}"
        ))
    })?;
    for nic in &lab.facts().nics {
        let row = listed
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["address"] == nic.address.as_str())
            .ok_or_else(|| {
                Stop::fail(format!("`ferrovia nic list` does not show {}", nic.address))
            })?;
        if nic.total_vfs > 0 {
            let text = row.to_string();
            let shown = text.contains(&format!("\"total_vfs\":{}", nic.total_vfs));
            check(
                shown,
                format!(
                    "{} has {} VFs, and the list says {text}",
                    nic.address, nic.total_vfs
                ),
            )?;
        }
        same(
            "the driver",
            row["driver"].as_str().unwrap_or_default(),
            nic.driver.as_str(),
        )?;
    }
    Ok(())
}

fn vfs_come_and_go(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let sysfs = pf.sysfs();
    let before = lab.read(&format!("{sysfs}/sriov_numvfs"))?;
    if before != "0" {
        return Err(Stop::skip(format!(
            "{} has {before} VFs already",
            pf.address
        )));
    }
    let create = lab.timed(&format!("echo 2 > {sysfs}/sriov_numvfs"))?;
    lab.measure("vf_create_ms", create / 2.0, Unit::Milliseconds);
    same(
        "the VF count",
        lab.read(&format!("{sysfs}/sriov_numvfs"))?.as_str(),
        "2",
    )?;
    let links = lab.shell_ok(&format!("ls -d {sysfs}/virtfn*/vendor | wc -l"))?;
    same("the number of VF devices", links.trim(), "2")?;
    let destroy = lab.timed(&format!("echo 0 > {sysfs}/sriov_numvfs"))?;
    lab.measure("vf_destroy_ms", destroy / 2.0, Unit::Milliseconds);
    let links = lab.shell_ok(&format!("ls -d {sysfs}/virtfn* 2>/dev/null | wc -l"))?;
    same("the number of VF devices", links.trim(), "0")
}

fn vf_attributes(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let (sysfs, link) = (pf.sysfs(), pf.interface.as_str());
    check(
        !link.is_empty(),
        format!("{} has no network interface", pf.address),
    )?;
    if lab.read(&format!("{sysfs}/sriov_numvfs"))? != "0" {
        return Err(Stop::skip(format!("{} has VFs already", pf.address)));
    }
    lab.shell_ok(&format!("echo 1 > {sysfs}/sriov_numvfs"))?;
    lab.ok(&[
        "ip",
        "link",
        "set",
        link,
        "vf",
        "0",
        "mac",
        "02:fe:00:00:00:01",
        "vlan",
        "42",
    ])?;
    let shown = lab.ok(&["ip", "-json", "-details", "link", "show", "dev", link])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)
        .map_err(|error| Stop::fail(format!("`ip -json` printed no JSON: {error}")))?;
    let vf = &shown[0]["vfinfo_list"][0];
    let mac = vf["mac"]
        .as_str()
        .or(vf["address"].as_str())
        .unwrap_or_default();
    same("the VF's MAC", mac, "02:fe:00:00:00:01")?;
    same(
        "the VF's VLAN",
        vf["vlan_list"][0]["vlan"].as_u64(),
        Some(42),
    )?;
    lab.shell_ok(&format!("echo 0 > {sysfs}/sriov_numvfs"))?;
    Ok(())
}

fn netdevsim_ports(lab: &Context) -> Outcome {
    let bus = "/sys/bus/netdevsim";
    lab.shell_ok("[ -d /sys/bus/netdevsim ] || modprobe netdevsim")?;
    let took = lab.timed(&format!("echo '77 2' > {bus}/new_device"))?;
    lab.measure("device_create_ms", took, Unit::Milliseconds);
    let ports = lab.shell_ok(&format!("ls {bus}/devices/netdevsim77/net | wc -l"))?;
    same("the number of ports", ports.trim(), "2")?;
    lab.shell_ok(&format!("echo 77 > {bus}/del_device"))?;
    check(
        !lab.shell(&format!("test -e {bus}/devices/netdevsim77"))?
            .ok(),
        "netdevsim77 is still there after it was deleted",
    )
}
