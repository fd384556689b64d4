//! Nothing is lost, leaked or handed out twice, at whichever journal record the agent is killed.
//!
//! Every record of every operation is swept by `ferrovia-lab-vfs`, which runs the agent's manager with the real
//! kernel, helper processes and journal, in a process that SIGKILL ends after the record: see
//! [`crate::sriov_inside::sweep`]. The agent itself is killed at a few of them, since in software emulation its
//! start takes longer than a whole operation.

use super::agent_there::AgentThere;
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, Unit, check, same};
use serde_json::Value;

/// The program on the target.
const PROGRAM: &str = "ferrovia-lab-vfs";

/// Kills each operation after each record; all of them must have been killed at least so often.
fn sweep(lab: &Context, pf: &str, operations: &[(&str, u32)]) -> Outcome {
    let journal = format!("{}/journal", lab.scratch());
    let mut line = vec![PROGRAM, "sweep", &journal, pf];
    line.extend(operations.iter().map(|(name, _)| *name));
    let printed = lab.ok(&line)?;
    let deaths = printed.lines().filter_map(|line| {
        let (name, count) = line.split_once(" deaths ")?;
        Some((name.to_lowercase(), count.parse::<u32>().ok()?))
    });
    let deaths: Vec<(String, u32)> = deaths.collect();
    same("the number of operations", deaths.len(), operations.len())?;
    for ((name, count), (_, least)) in deaths.iter().zip(operations) {
        lab.measure(&format!("{name}_deaths"), f64::from(*count), Unit::Count);
        let found = format!("{name} was killed {count} times, and has at least {least} records");
        check(count >= least, found)?;
    }
    Ok(())
}

pub(super) fn partition(lab: &Context) -> Outcome {
    on_igb(lab, &[("partition", 5), ("recount", 6), ("reset", 3)])
}

pub(super) fn allocate_and_release(lab: &Context) -> Outcome {
    on_igb(lab, &[("allocate", 3), ("release", 4)])
}

fn on_igb(lab: &Context, operations: &[(&str, u32)]) -> Outcome {
    let pf = lab.pf()?;
    lab.ok(&["modprobe", "vfio-pci"])?;
    sweep(lab, &pf.address, operations)?;
    // A PF that was partitioned stays up.
    lab.ok(&["ip", "link", "set", &pf.interface, "down"])?;
    Ok(())
}

pub(super) fn eswitch(lab: &Context) -> Outcome {
    let bus = "/sys/bus/netdevsim";
    lab.shell_ok("[ -d /sys/bus/netdevsim ] || modprobe netdevsim")?;
    lab.shell_ok(&format!("echo '88 1' > {bus}/new_device"))?;
    let operations = [("switchdev", 4), ("legacy", 4), ("release", 4)];
    sweep(lab, "netdevsim/netdevsim88", &operations)?;
    lab.shell_ok(&format!("echo 88 > {bus}/del_device"))?;
    Ok(())
}

/// Two VFs of the first PF.
fn policy(lab: &Context) -> Result<String, Stop> {
    Ok(format!(
        "[[nic.policy]]\nname = \"tests\"\nselect = {{ address = [\"{}\"] }}\nnum_vfs = 2\npool = \"tests\"\n\
         driver = \"vfio\"\n",
        lab.pf()?.address
    ))
}

/// Who has which VF, as the agent says, after it was compared with the kernel.
fn owners(lab: &Context, agent: &AgentThere<'_>) -> Result<Vec<String>, Stop> {
    let printed = agent.ferrovia(&["-o", "json", "vf", "list"])?;
    let listed: Value = serde_json::from_str(&printed)
        .map_err(|error| Stop::fail(format!("`ferrovia vf list` printed no JSON: {error}")))?;
    let mut owners = Vec::new();
    for vf in listed.as_array().into_iter().flatten() {
        let word = |name: &str| vf[name].as_str().unwrap_or_default().to_owned();
        let (owner, address) = (word("owner"), word("address"));
        let link = format!("readlink /sys/bus/pci/devices/{address}/driver || true");
        let driver = lab.shell_ok(&link)?;
        let driver = driver.trim().rsplit('/').next().unwrap_or_default();
        let expected = if owner.is_empty() { "" } else { "vfio-pci" };
        same(&format!("the driver of {}", word("id")), driver, expected)?;
        if !owner.is_empty() {
            same(
                &format!("the phase of {owner}"),
                word("phase"),
                "in use".into(),
            )?;
            owners.push(owner);
        }
    }
    let count = lab.read(&format!("{}/sriov_numvfs", lab.pf()?.sysfs()))?;
    let shown = listed.as_array().map_or(0, Vec::len).to_string();
    same("the number of VFs that the agent shows", shown, count)?;
    owners.sort();
    Ok(owners)
}

/// The agent is killed while it partitions, while it hands out and while it takes back; each time the next one
/// has it right.
pub(super) fn agent(lab: &Context) -> Outcome {
    let policy = policy(lab)?;
    lab.ok(&["modprobe", "vfio-pci"])?;
    // In the middle of making the VFs; then again, in what the next start does about it.
    AgentThere::doomed(lab, &policy, 4)?.died()?;
    AgentThere::doomed(lab, &policy, 2)?.died()?;
    let agent = AgentThere::start(lab, &policy)?;
    agent.ferrovia(&["nic", "apply"])?;
    let none = Vec::<String>::new();
    same("the owners", owners(lab, &agent)?, none.clone())?;
    agent.kill()?;
    let doomed = AgentThere::doomed(lab, &policy, 2)?;
    doomed.answers()?;
    let _ = doomed.tried(&["vf", "allocate", "cli/one", "--pool", "tests"])?;
    doomed.died()?;
    let agent = AgentThere::start(lab, &policy)?;
    same("the owners", owners(lab, &agent)?, none)?;
    agent.allocate("cli/one", &[])?;
    agent.allocate("cli/two", &[])?;
    same(
        "the owners",
        owners(lab, &agent)?,
        vec!["cli/one".into(), "cli/two".into()],
    )?;
    agent.kill()?;
    let doomed = AgentThere::doomed(lab, &policy, 2)?;
    doomed.answers()?;
    let _ = doomed.tried(&["vf", "release", "cli/one"])?;
    doomed.died()?;
    let agent = AgentThere::start(lab, &policy)?;
    same("the owners", owners(lab, &agent)?, vec!["cli/two".into()])?;
    agent.release("cli/two")?;
    agent.end()
}
