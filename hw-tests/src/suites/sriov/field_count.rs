//! What goes wrong when the number of VFs changes, seen in the field: R1 to R3, R10, R18, R19, R21. The same cases
//! with faults that no machine of the lab has are `sriov-mgr/tests/field_cases`.

use super::agent_there::{AgentThere, policy};
use super::raw::{self, MENDS};
use crate::lab::Context;
use crate::lab::facts::Nic;
use crate::lab::suite::{Outcome, Stop, check, same};
use serde_json::Value;

/// The driver program that holds a VF open.
const DRIVER: &str = "ferrovia-vf-traffic";

fn json(printed: &str) -> Result<Value, Stop> {
    serde_json::from_str(printed)
        .map_err(|error| Stop::fail(format!("This is no JSON: {printed}: {error}")))
}

/// What `nic show` says of a PF.
fn shown(agent: &AgentThere<'_>, pf: &Nic) -> Result<Value, Stop> {
    json(&agent.ferrovia(&["-o", "json", "nic", "show", &pf.address])?)
}

/// Nothing is to be done, which may take until the agent has looked.
fn settles(lab: &Context, agent: &AgentThere<'_>) -> Outcome {
    lab.wait_for("That nothing is to be done", MENDS, || {
        let plan = agent.ferrovia(&["nic", "plan"])?;
        Ok(plan.contains("Nothing is to be done").then_some(()))
    })
}

/// Removing VFs blocks while somebody holds one open: refused with the holder's name, and with force only
/// that PF is wedged, until the holder is gone.
pub(super) fn r01(lab: &Context) -> Outcome {
    let pfs: Vec<&Nic> = lab.facts().pfs().collect();
    let (pf, other) = (pfs[0], pfs[1]);
    let limit = "[nic]\ndeadline_s = 5\n";
    let both = policy("tests", &pf.address, 2) + &policy("others", &other.address, 1);
    let agent = AgentThere::start(lab, &(limit.to_owned() + &both))?;
    agent.ferrovia(&["nic", "apply"])?;
    let held = agent.allocate("cli/held", &["--driver", "vfio"])?;
    let holder = lab.spawn("holder", &[DRIVER, "hold", &held.address])?;
    lab.wait_for("That a VF is held open", MENDS, || {
        Ok(holder.log()?.contains("holding").then_some(()))
    })?;
    agent.want(&pf.address, 0)?;
    let refused = agent.refused(&["nic", "apply"])?;
    check(
        refused.contains(&holder.pid().to_string()) && refused.contains("force"),
        format!("The refusal does not name the holder, or the way out: {refused}"),
    )?;
    same("the number of VFs", raw::links(lab, pf)?, 2)?;

    let wedged = agent.refused(&["nic", "apply", "--force"])?;
    check(
        wedged.contains("wedged"),
        format!("It is not said that the PF is wedged: {wedged}"),
    )?;
    let said = shown(&agent, pf)?["managed"]["wedged"].to_string();
    check(said.len() > 2, "`nic show` does not say that it is wedged")?;
    let again = agent.refused(&["nic", "apply", "--force"])?;
    check(
        again.contains("wedged"),
        format!("A wedged PF is not refused: {again}"),
    )?;
    // The agent goes on: the other PF's VFs are handed out and taken back.
    let owner = "cli/other";
    agent.ferrovia(&[
        "vf", "allocate", owner, "--pool", "others", "--driver", "vfio",
    ])?;
    agent.release(owner)?;

    holder.kill()?;
    raw::links_become(lab, pf, 0)?;
    settles(lab, &agent)?;
    let said = shown(&agent, pf)?["managed"]["wedged"].to_string();
    same(
        "what `nic show` says of a PF that answers again",
        said.as_str(),
        "\"\"",
    )?;
    agent.ferrovia(&["nic", "reset", &other.address])?;
    agent.stop()
}

/// The kernel refuses another count in place: it changes by way of none. Four clients and another program
/// that all want to set it leave one state that everybody agrees on.
pub(super) fn r02(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 2)?;
    same("the number of VFs", raw::links(lab, pf)?, 2)?;
    agent.want(&pf.address, 4)?;
    // A client whose write comes after the other program's is refused: no failure here.
    let script = format!(
        "for client in 1 2 3 4; do ferrovia --root {} nic apply > /dev/null 2>&1 & clients=\"$clients $!\"; done\n\
         n=0; while [ $n -lt 60 ]; do echo 3 > {}/sriov_numvfs; n=$((n+1)); sleep 0.05; done 2> /dev/null\n\
         wait $clients; true",
        agent.root(),
        pf.sysfs()
    );
    lab.shell_ok(&script)?;
    let count = raw::links(lab, pf)?;
    let said = lab.read(&format!("{}/sriov_numvfs", pf.sysfs()))?;
    same("the kernel's VF count", said, count.to_string())?;
    let ownership = shown(&agent, pf)?["managed"]["ownership"].clone();
    let plan = agent.ferrovia(&["nic", "plan"])?;
    if count == 4 {
        same("whose the VFs are", ownership.as_str(), Some("ours"))?;
        check(
            plan.contains("Nothing is to be done"),
            format!("There is still something to do: {plan}"),
        )?;
        return agent.end();
    }
    lab.note("The other program was between our two writes.");
    same("the number of the other program's VFs", count, 3)?;
    check(
        plan.contains("adopt"),
        format!("VFs of somebody else are not told: {plan}"),
    )?;
    raw::set_count(lab, pf, 0)?;
    agent.stop()
}

/// When `nic apply` returns, every VF is there with its link and its address, and can be handed out.
pub(super) fn r03(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let most = pf.total_vfs.min(7);
    let agent = AgentThere::with_vfs(lab, 1)?;
    for count in [most, 1, most] {
        agent.want(&pf.address, count)?;
        // In one script: nothing happens between the end of the one and the look of the other.
        let printed = lab.shell_ok(&format!(
            "ferrovia --root {} nic apply > /dev/null && ls -d {}/virtfn*/physfn | wc -l",
            agent.root(),
            pf.sysfs()
        ))?;
        same(
            "the number of links when `nic apply` returned",
            printed.trim(),
            &count.to_string(),
        )?;
    }
    let listed = json(&agent.ferrovia(&["-o", "json", "vf", "list"])?)?;
    let with_address = listed.as_array().into_iter().flatten();
    let with_address =
        with_address.filter(|vf| vf["address"].as_str().is_some_and(|a| !a.is_empty()));
    same(
        "the number of VFs with an address",
        with_address.count(),
        most as usize,
    )?;
    agent.end()
}

/// A VF whose interface is in a network namespace would vanish when the count changes: refused with the
/// namespace's name; with force it comes back with its MAC and VLAN, in the namespace of its PF.
pub(super) fn r10(lab: &Context) -> Outcome {
    const MAC: &str = "02:00:00:00:00:10";
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 2)?;
    let asked = ["--driver", "kernel", "--mac", MAC, "--vlan", "42"];
    let vf = agent.allocate("vm/blue", &asked)?;
    let namespace = lab.named("blue");
    let net = format!("/sys/bus/pci/devices/{}/net", vf.address);
    let moved = format!(
        "ip netns add {namespace} && ip link set dev $(ls {net}) netns {namespace} && \
         ip -n {namespace} -brief link"
    );
    lab.shell_ok(&moved)?;
    agent.want(&pf.address, 3)?;
    let plan = agent.ferrovia(&["nic", "plan"])?;
    let refused = agent.refused(&["nic", "apply"])?;
    for said in [&plan, &refused] {
        check(
            said.contains(&namespace) && said.contains("vm/blue"),
            format!("The namespace or the owner is not named: {said}"),
        )?;
    }
    same("the number of VFs", raw::links(lab, pf)?, 2)?;
    agent.ferrovia(&["nic", "apply", "--force"])?;
    same("the number of VFs", raw::links(lab, pf)?, 3)?;
    let now = raw::vf(lab, pf, vf.index())?;
    same("the MAC of the VF that came back", now.mac(), MAC)?;
    same("its VLAN", now.vlan(), 42)?;
    lab.wait_for("That its interface is there again", MENDS, || {
        let done = lab.exec(&["ls", &net])?;
        Ok((done.ok() && !done.stdout.trim().is_empty()).then_some(()))
    })?;
    lab.ok(&["ip", "netns", "del", &namespace])?;
    agent.release("vm/blue")?;
    agent.end()
}

/// A PF of netdevsim with an agent.
const SIMULATED: &str = "netdevsim/netdevsim1";

fn simulated(lab: &Context, vfs: u32, more: &str) -> Result<(), Stop> {
    lab.shell_ok(&format!(
        "modprobe netdevsim && echo '1 1 1' > /sys/bus/netdevsim/new_device && {more} \
         echo {vfs} > /sys/bus/netdevsim/devices/netdevsim1/sriov_numvfs"
    ))?;
    Ok(())
}

fn simulated_away(lab: &Context) -> Outcome {
    lab.shell_ok("echo 1 > /sys/bus/netdevsim/del_device")?;
    Ok(())
}

/// The attributes of 256 VFs are more than a netlink message holds: every VF is listed all the same.
pub(super) fn r18(lab: &Context) -> Outcome {
    const VFS: u32 = 256;
    // It has room for 4 VFs unless it is told so.
    let more = format!(
        "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug; \
         echo {VFS} > /sys/kernel/debug/netdevsim/netdevsim1/max_vfs && "
    );
    simulated(lab, 0, &more)?;
    let mut agent_policy = policy("tests", SIMULATED, VFS);
    agent_policy.push_str("defaults = { vlan = 42 }\n");
    let agent = AgentThere::start(lab, &agent_policy)?;
    agent.ferrovia(&["nic", "apply"])?;
    let count = lab.read("/sys/bus/netdevsim/devices/netdevsim1/sriov_numvfs")?;
    same("the kernel's VF count", count.as_str(), "256")?;
    let interface = lab.shell_ok("ls /sys/bus/netdevsim/devices/netdevsim1/net")?;
    let last = (VFS - 1).to_string();
    let mac = "02:00:00:00:00:18";
    lab.ok(&[
        "ip",
        "link",
        "set",
        interface.trim(),
        "vf",
        &last,
        "mac",
        mac,
    ])?;
    let listed = json(&agent.ferrovia(&["-o", "json", "vf", "list"])?)?;
    let listed: Vec<&Value> = listed.as_array().into_iter().flatten().collect();
    same("the number of VFs listed", listed.len(), VFS as usize)?;
    let without = listed.iter().filter(|vf| vf["settings"]["mac"].is_null());
    same("the number of VFs without settings", without.count(), 0)?;
    let of_last = listed.iter().find(|vf| vf["index"] == VFS - 1);
    let of_last = of_last.map(|vf| vf["settings"]["mac"].clone());
    same("the MAC of the last VF", of_last, Some(Value::from(mac)))?;
    // A VF beyond the first message is handed out, set, read back and cleaned like any other.
    let id = format!("{SIMULATED}#{last}");
    let mac = "02:00:00:00:01:18";
    agent.ferrovia(&[
        "vf", "allocate", "cli/last", "--vf", &id, "--mac", mac, "--vlan", "7",
    ])?;
    agent.release("cli/last")?;
    agent.ferrovia(&["nic", "reset", SIMULATED])?;
    agent.stop()?;
    simulated_away(lab)
}

/// A policy whose MTU is below the PF's is met already: nothing is done again and again.
pub(super) fn r19(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let interface = raw::interface(lab, pf)?;
    let file = format!("/sys/class/net/{interface}/mtu");
    let before = lab.read(&file)?;
    lab.ok(&["ip", "link", "set", &interface, "mtu", "9000"])?;
    let low = policy("tests", &pf.address, 1) + "mtu = 1500\n";
    let agent = AgentThere::start(lab, &low)?;
    agent.ferrovia(&["nic", "apply"])?;
    for _ in 0..2 {
        let plan = agent.ferrovia(&["nic", "plan"])?;
        check(
            plan.contains("Nothing is to be done") && plan.contains("keeps MTU 9000"),
            format!("It is not said that the larger MTU is kept: {plan}"),
        )?;
        let applied = agent.ferrovia(&["nic", "apply"])?;
        check(
            applied.contains("Nothing was to be done"),
            format!("Something was done again: {applied}"),
        )?;
        same("the MTU", lab.read(&file)?.as_str(), "9000")?;
    }
    agent.set_policies(&format!(
        r#"[{{"name": "large", "priority": 1, "select": {{"address": ["{}"]}}, "mtu": 9100}}]"#,
        pf.address
    ))?;
    agent.ferrovia(&["nic", "apply"])?;
    same("the larger MTU", lab.read(&file)?.as_str(), "9100")?;
    agent.ferrovia(&["nic", "reset", &pf.address])?;
    same("the MTU after a reset", lab.read(&file)?.as_str(), "9000")?;
    agent.stop()?;
    lab.ok(&["ip", "link", "set", &interface, "mtu", &before])?;
    Ok(())
}

/// Leaving switchdev takes the representors with their rules: refused with their names, done with force.
pub(super) fn r21(lab: &Context) -> Outcome {
    let mode = |lab: &Context| lab.ok(&["devlink", "dev", "eswitch", "show", SIMULATED]);
    simulated(lab, 0, "")?;
    let switchdev = policy("tests", SIMULATED, 2) + "eswitch = \"switchdev\"\n";
    let agent = AgentThere::start(lab, &switchdev)?;
    agent.ferrovia(&["nic", "apply"])?;
    let now = mode(lab)?;
    check(
        now.contains("mode switchdev"),
        format!("It is not in switchdev mode: {now}"),
    )?;
    let representors = || {
        let ports = lab.ok(&["devlink", "-j", "port", "show"])?;
        let ports = json(&ports)?;
        let ports = ports["port"].as_object().cloned().unwrap_or_default();
        let of_vfs = ports.values().filter(|port| port["flavour"] == "pcivf");
        let names = of_vfs.filter_map(|port| port["netdev"].as_str().map(str::to_owned));
        Ok::<_, Stop>(names.collect::<Vec<String>>())
    };
    let before = representors()?;
    same("the number of representors", before.len(), 2)?;
    // A rule on one of them, in what netdevsim calls hardware: it goes with the representor.
    let rule = format!(
        "modprobe cls_flower; modprobe act_gact; ethtool -K {0} hw-tc-offload on; tc qdisc add dev {0} clsact && \
         tc filter add dev {0} ingress protocol ip flower dst_ip 192.0.2.1 action drop && tc filter show dev {0} ingress",
        before[0]
    );
    let rules = lab.shell_ok(&rule)?;
    check(
        rules.contains("192.0.2.1"),
        format!("There is no rule: {rules}"),
    )?;
    agent.set_policies(&format!(
        r#"[{{"name": "back", "priority": 1, "select": {{"address": ["{SIMULATED}"]}}, "eswitch": "legacy"}}]"#
    ))?;
    let refused = agent.refused(&["nic", "apply"])?;
    for representor in &before {
        check(
            refused.contains(representor.as_str()) && refused.contains("rules"),
            format!("The refusal does not name {representor} and its rules: {refused}"),
        )?;
    }
    let now = mode(lab)?;
    check(
        now.contains("mode switchdev"),
        format!("It was left although that was refused: {now}"),
    )?;
    agent.ferrovia(&["nic", "apply", "--force"])?;
    let now = mode(lab)?;
    check(
        now.contains("mode legacy"),
        format!("It is not in legacy mode: {now}"),
    )?;
    same("the number of representors", representors()?.len(), 0)?;
    agent.ferrovia(&["nic", "reset", SIMULATED])?;
    agent.stop()?;
    simulated_away(lab)
}
