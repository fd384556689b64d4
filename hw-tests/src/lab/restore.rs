//! Putting a target back as it was: what a test left is ended, removed or written back, in the order in which
//! the kernel allows it, and read again.

use super::snapshot::{Change, Snapshot, vf_object};
use super::target::{LinkError, Target, quoted};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// How long putting back may take: destroying VFs blocks for as long as somebody holds one.
const LIMIT: Duration = Duration::from_secs(120);

/// Puts the target back to `before`, and gives what is still different.
///
/// # Errors
/// When the target does not answer.
pub fn restore(target: &Target, before: &Snapshot) -> Result<Vec<Change>, LinkError> {
    let mut left = before.changes(&Snapshot::take(target)?);
    // Twice: a namespace that goes gives its NICs back a moment later.
    for _ in 0..2 {
        if left.is_empty() {
            break;
        }
        target.quiet(&script(target, before, &left), LIMIT)?;
        left = before.changes(&Snapshot::take(target)?);
    }
    Ok(left)
}

fn script(target: &Target, before: &Snapshot, changes: &[Change]) -> String {
    let mut script = String::from(PRELUDE);
    let came = |object: &str| {
        let object = object.to_owned();
        changes
            .iter()
            .filter(move |c| c.object == object && c.before.is_none())
            .map(|c| c.property.as_str())
            .collect::<Vec<_>>()
    };
    let pids = came("process");
    if !pids.is_empty() {
        let pids = quoted(&pids);
        let _ = writeln!(script, "kill -KILL {pids} 2>/dev/null; gone {pids}");
    }
    for name in came("namespace") {
        let _ = writeln!(script, "ip netns del {}", quoted(&[name]));
    }
    for name in came("link") {
        let _ = writeln!(script, "ip link del {}", quoted(&[name]));
    }
    for name in came("netdevsim") {
        let number: String = name.chars().filter(char::is_ascii_digit).collect();
        let _ = writeln!(script, "put /sys/bus/netdevsim/del_device {number}");
    }
    if let Some(pages) = before.get("huge pages", "number")
        && changes.iter().any(|c| c.object == "huge pages")
    {
        let _ = writeln!(script, "put /proc/sys/vm/nr_hugepages {}", quoted(&[pages]));
    }
    for nic in &target.facts().nics {
        nic_back(&nic.address, before, changes, &mut script);
    }
    script
}

/// Shell functions that everything below uses. A write may block in the kernel, hence the time limits.
const PRELUDE: &str = r#"
put() { timeout -s KILL 30 sh -c 'printf "%s\n" "$2" > "$1"' sh "$1" "$2"; }
gone() { n=0; while kill -0 "$@" 2>/dev/null && [ $n -lt 100 ]; do n=$((n+1)); sleep 0.05; done; }
bind() { # device, driver, override
  d=/sys/bus/pci/devices/$1
  now=$(basename "$(readlink $d/driver)" 2>/dev/null)
  put $d/driver_override "$3"
  [ "$now" = "$2" ] && return
  [ -n "$now" ] && put $d/driver/unbind $1
  [ -n "$2" ] && { put /sys/bus/pci/drivers/$2/bind $1 || put /sys/bus/pci/drivers_probe $1; }
}
iface() { n=0; while [ $n -lt 60 ]; do i=$(ls /sys/bus/pci/devices/$1/net 2>/dev/null | head -n 1)
  [ -n "$i" ] && { printf %s "$i"; return; }; n=$((n+1)); sleep 0.05; done; }
"#;

/// The lines that put one NIC and its VFs back.
fn nic_back(address: &str, before: &Snapshot, changes: &[Change], script: &mut String) {
    let of_vf = format!(" of {address}");
    let own: BTreeSet<&str> = changes
        .iter()
        .filter(|c| c.object == address)
        .map(|c| c.property.as_str())
        .collect();
    let vfs: Vec<&Change> = changes
        .iter()
        .filter(|c| c.object.starts_with("VF ") && c.object.ends_with(&of_vf))
        .collect();
    if own.is_empty() && vfs.is_empty() {
        return;
    }
    let sysfs = format!("/sys/bus/pci/devices/{address}");
    let was = |property: &str| before.get(address, property);
    if own.contains("driver") || own.contains("driver_override") {
        bind_back(address, was, script);
    }
    // VFs that came or went, or another driver: all are made anew, since only that is sure.
    let anew = own.contains("sriov_numvfs")
        || own.contains("eswitch")
        || own.contains("driver")
        || vfs.iter().any(|c| c.property == "pci");
    let count = was("sriov_numvfs").unwrap_or("0");
    if anew && was("sriov_numvfs").is_some() {
        let _ = writeln!(
            script,
            "for v in {sysfs}/virtfn*; do [ -e $v/driver ] && put $v/driver/unbind $(basename $(readlink $v)); done"
        );
        let _ = writeln!(script, "put {sysfs}/sriov_numvfs 0");
    }
    if own.contains("eswitch")
        && let Some(mode) = was("eswitch")
    {
        let mode = quoted(&[mode]);
        let _ = writeln!(
            script,
            "timeout -s KILL 30 devlink dev eswitch set pci/{address} mode {mode}"
        );
    }
    if own.contains("sriov_drivers_autoprobe")
        && let Some(probe) = was("sriov_drivers_autoprobe")
    {
        let _ = writeln!(
            script,
            "put {sysfs}/sriov_drivers_autoprobe {}",
            quoted(&[probe])
        );
    }
    if anew && count != "0" {
        let _ = writeln!(script, "put {sysfs}/sriov_numvfs {}", quoted(&[count]));
    }
    let _ = writeln!(script, "i=$(iface {address})");
    let touched = |vf: &str| anew || vfs.iter().any(|c| c.object == vf);
    for vf in 0..count.parse::<u64>().unwrap_or(0) {
        if touched(&vf_object(address, vf)) {
            vf_back(address, vf, before, script);
        }
    }
    if let Some(mac) = was("mac").filter(|_| own.contains("mac")) {
        let _ = writeln!(script, "ip link set dev $i address {}", quoted(&[mac]));
    }
    if let Some(mtu) = was("mtu").filter(|_| own.contains("mtu")) {
        let _ = writeln!(script, "ip link set dev $i mtu {}", quoted(&[mtu]));
    }
    if let Some(up) = was("up").filter(|_| own.contains("up") || own.contains("driver")) {
        let word = if up == "true" { "up" } else { "down" };
        let _ = writeln!(script, "ip link set dev $i {word}");
    }
}

/// The lines that put one VF back, by what `ip link` calls its attributes.
fn vf_back(pf: &str, vf: u64, before: &Snapshot, script: &mut String) {
    let object = vf_object(pf, vf);
    let was = |property: &str| before.get(&object, property);
    let mut set = |words: &[&str]| {
        let _ = writeln!(script, "ip link set dev $i vf {vf} {}", quoted(words));
    };
    let on = |value: &str| if value == "true" { "on" } else { "off" };
    // iproute2 has called it both.
    if let Some(mac) = was("address").or(was("mac")) {
        set(&["mac", mac]);
    }
    if let Some(vlan) =
        was("vlan_list").and_then(|list| serde_json::from_str::<serde_json::Value>(list).ok())
    {
        let tag = vlan[0]["vlan"].as_u64().unwrap_or(0).to_string();
        let qos = vlan[0]["qos"].as_u64().unwrap_or(0).to_string();
        match vlan[0]["protocol"].as_str() {
            Some("802.1ad") => set(&["vlan", &tag, "qos", &qos, "proto", "802.1ad"]),
            _ => set(&["vlan", &tag, "qos", &qos]),
        }
    }
    if let Some(value) = was("spoofchk") {
        set(&["spoofchk", on(value)]);
    }
    if let Some(value) = was("trust") {
        set(&["trust", on(value)]);
    }
    if let Some(value) = was("query_rss_en") {
        set(&["query_rss", on(value)]);
    }
    if let Some(value) = was("link_state") {
        set(&["state", value]);
    }
    if let Some(rate) =
        was("rate").and_then(|rate| serde_json::from_str::<serde_json::Value>(rate).ok())
    {
        let number = |key: &str| rate[key].as_u64().unwrap_or(0).to_string();
        set(&[
            "max_tx_rate",
            &number("max_tx"),
            "min_tx_rate",
            &number("min_tx"),
        ]);
    }
    let address = format!("$(basename $(readlink /sys/bus/pci/devices/{pf}/virtfn{vf}))");
    bind_back(&address, was, script);
}

/// The line that gives a function, named in shell, the driver and the override that it had.
fn bind_back<'a>(address: &str, was: impl Fn(&str) -> Option<&'a str>, script: &mut String) {
    let driver = was("driver").unwrap_or_default();
    let over = was("driver_override")
        .filter(|o| *o != "(null)")
        .unwrap_or_default();
    let (driver, over) = (quoted(&[driver]), quoted(&[over]));
    let _ = writeln!(script, "bind {address} {driver} {over}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eswitch_mode_changes_while_there_are_no_vfs_and_their_attributes_come_last() {
        let before = Snapshot::read(
            "0000:3b:00.0\tsriov_numvfs\t1\n0000:3b:00.0\teswitch\tlegacy\n0000:3b:00.0\tdriver\tice\n\
             0000:3b:00.0\t@link\t[{\"ifname\":\"e0\",\"vfinfo_list\":[{\"vf\":0,\"address\":\"02:00:00:00:00:09\",\
             \"vlan_list\":[{\"vlan\":7,\"protocol\":\"802.1ad\"}]}]}]\n",
        );
        let after =
            Snapshot::read("0000:3b:00.0\tsriov_numvfs\t1\n0000:3b:00.0\teswitch\tswitchdev\n");
        let mut script = String::new();
        nic_back(
            "0000:3b:00.0",
            &before,
            &before.changes(&after),
            &mut script,
        );
        let place = |part: &str| {
            script
                .find(part)
                .unwrap_or_else(|| panic!("{part} is not in {script}"))
        };
        let places = [
            "driver/unbind",
            "sriov_numvfs 0",
            "devlink dev eswitch set pci/0000:3b:00.0 mode legacy",
            "sriov_numvfs 1",
            "vf 0 mac 02:00:00:00:00:09",
            "vf 0 vlan 7 qos 0 proto 802.1ad",
        ]
        .map(place);
        assert!(places.is_sorted(), "{script}");
    }
}
