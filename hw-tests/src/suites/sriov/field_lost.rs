//! What goes wrong when VFs or PFs are gone and come back, seen in the field: R11, R13, R14, R16. The same cases
//! with faults that no machine of the lab has are `sriov-mgr/tests/field_cases`.

use super::agent_there::{AgentThere, Given, policy};
use super::raw::{self, MENDS};
use crate::lab::Context;
use crate::lab::facts::Nic;
use crate::lab::suite::{Outcome, check, same};

const MAC: &str = "02:00:00:00:00:42";
/// What the owner of these tests asks for.
const ASKED: [&str; 6] = ["--driver", "vfio", "--mac", MAC, "--vlan", "42"];

/// The VF is as its owner asked for, which may take until the agent has looked.
fn comes_back(lab: &Context, pf: &Nic, vf: &Given) -> Outcome {
    lab.wait_for("That the VF is as its owner had it", MENDS, || {
        if !lab.exec(&["ls", &format!("{}/net", pf.sysfs())])?.ok() {
            return Ok(None);
        }
        let Ok(now) = raw::vf(lab, pf, vf.index()) else {
            return Ok(None);
        };
        let well =
            now.mac() == MAC && now.vlan() == 42 && raw::driver(lab, &vf.address)? == "vfio-pci";
        Ok(well.then_some(()))
    })
}

/// A VF's IOMMU group has another number when the VF is made anew after others: nothing keeps it.
pub(super) fn r11(lab: &Context) -> Outcome {
    let pfs: Vec<&Nic> = lab.facts().pfs().collect();
    let (pf, other) = (pfs[0], pfs[1]);
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/a", &ASKED)?;
    let before = raw::iommu_group(lab, &vf.address)?;
    // The lowest free number goes to whoever comes first.
    agent.want(&pf.address, 0)?;
    agent.release("cli/a")?;
    agent.ferrovia(&["nic", "apply"])?;
    raw::set_count(lab, other, 2)?;
    agent.want(&pf.address, 1)?;
    agent.ferrovia(&["nic", "apply"])?;
    let again = agent.allocate("cli/a", &ASKED)?;
    same("the VF", again.vf.as_str(), &vf.vf)?;
    let after = raw::iommu_group(lab, &vf.address)?;
    check(
        before != after,
        format!("The group is still {before}: this shows nothing"),
    )?;
    let shown = agent.ferrovia(&["-o", "json", "vf", "show", &vf.address])?;
    check(
        shown
            .replace(' ', "")
            .contains(&format!("\"iommu_group\":{after}")),
        format!("The group is not {after}: {shown}"),
    )?;
    let kept = lab.shell_ok(&format!(
        "grep -ril group {}/var/lib/ferrovia/sriov || true",
        agent.root()
    ))?;
    same("files of the journal with a group", kept.trim(), "")?;
    agent.release("cli/a")?;
    raw::set_count(lab, other, 0)?;
    agent.end()
}

/// All VFs vanish, as when a NIC starts anew: they are made again, the owner's VF is as it was, and it is known
/// to be another one.
pub(super) fn r13(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 3)?;
    let vf = agent.allocate("cli/a", &ASKED)?;
    raw::set_count(lab, pf, 0)?;
    raw::links_become(lab, pf, 3)?;
    comes_back(lab, pf, &vf)?;
    lab.wait_for("That all of it was told", MENDS, || {
        let log = agent.log()?;
        let told = ["vfs-gone", "vfs-made", "has again"];
        Ok(told.iter().all(|what| log.contains(what)).then_some(()))
    })?;
    agent.release("cli/a")?;
    // Others in their place are somebody else's: named, and left alone.
    lab.shell_ok(&format!(
        "echo 0 > {0}/sriov_numvfs; echo 5 > {0}/sriov_numvfs",
        pf.sysfs()
    ))?;
    lab.wait_for("That somebody else's VFs were told", MENDS, || {
        let plan = agent.ferrovia(&["nic", "plan"])?;
        Ok(plan.contains("adopt").then_some(()))
    })?;
    same("the number of VFs", raw::links(lab, pf)?, 5)?;
    // When they are gone, what the policy wants is made again.
    raw::set_count(lab, pf, 0)?;
    raw::links_become(lab, pf, 3)?;
    agent.end()
}

/// Somebody takes the VFs away and makes as many: what that wiped is set again.
pub(super) fn r14(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let trusting = policy("tests", &pf.address, 2) + "defaults = { trust = true }\n";
    lab.ok(&["ip", "link", "set", &pf.interface, "up"])?;
    let agent = AgentThere::start(lab, &trusting)?;
    agent.ferrovia(&["nic", "apply"])?;
    let vf = agent.allocate("cli/a", &ASKED)?;
    check(
        raw::vf(lab, pf, vf.index())?.trust(),
        "The VF is not trusted",
    )?;
    let forced = raw::driver_override(lab, &vf.address)?;
    let wiped = lab.shell_ok(&format!(
        "cd {}; echo 0 > sriov_numvfs; echo 2 > sriov_numvfs; cat virtfn{}/driver_override",
        pf.sysfs(),
        vf.index()
    ))?;
    lab.note(format!("Right after the cycle: {wiped}"));
    comes_back(lab, pf, &vf)?;
    check(
        raw::vf(lab, pf, vf.index())?.trust(),
        "The VF is not trusted again",
    )?;
    same(
        "the driver override",
        raw::driver_override(lab, &vf.address)?,
        forced,
    )?;
    same("the number of VFs", raw::links(lab, pf)?, 2)?;
    agent.release("cli/a")?;
    agent.end()
}

/// A PF that loses its driver, and one that is removed and found again, have no VFs then: they are made again.
pub(super) fn r16(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 2)?;
    let vf = agent.allocate("cli/a", &ASKED)?;
    let driver = raw::driver(lab, &pf.address)?;
    let driver = format!("/sys/bus/pci/drivers/{driver}");
    lab.shell_ok(&format!(
        "echo {0} > {driver}/unbind; echo {0} > {driver}/bind",
        pf.address
    ))?;
    raw::links_become(lab, pf, 2)?;
    comes_back(lab, pf, &vf)?;
    lab.shell_ok(&format!("echo 1 > {}/remove", pf.sysfs()))?;
    let gone = agent.tried(&["nic", "show", &pf.address])?;
    check(!gone.ok(), "A PF that was removed is still shown")?;
    lab.shell_ok("echo 1 > /sys/bus/pci/rescan")?;
    raw::links_become(lab, pf, 2)?;
    comes_back(lab, pf, &vf)?;
    agent.release("cli/a")?;
    agent.end()
}
