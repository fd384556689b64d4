//! `ferrovia vf check` on real VFs: what works is seen to work, and every obstacle is named with the way out.

use super::agent_there::AgentThere;
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, check};
use serde_json::Value;

/// Steps of the check, with their result.
fn steps(printed: &str) -> Result<Vec<(String, String)>, Stop> {
    let report: Value = serde_json::from_str(printed)
        .map_err(|error| Stop::fail(format!("`ferrovia vf check` printed {printed}: {error}")))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = report["steps"].as_array().cloned().unwrap_or_default();
    Ok(steps
        .iter()
        .map(|step| (text(&step["name"]), text(&step["result"])))
        .collect())
}

pub(super) fn check_passes(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/check", &["--driver", "vfio"])?;
    let printed = agent.ferrovia(&["-o", "json", "vf", "check", &vf.address])?;
    let steps = steps(&printed)?;
    check(
        steps.len() >= 9,
        format!("There are only {} steps: {printed}", steps.len()),
    )?;
    let bad: Vec<_> = steps
        .iter()
        .filter(|(_, result)| result != "passed")
        .collect();
    check(bad.is_empty(), format!("Steps that did not pass: {bad:?}"))?;
    agent.release("cli/check")?;
    agent.end()
}

/// What a check that must fail prints.
fn failed(agent: &AgentThere<'_>, vf: &str) -> Result<String, Stop> {
    let done = agent.tried(&["vf", "check", vf])?;
    check(
        !done.ok(),
        format!("The check of {vf} passed: {}", done.stdout),
    )?;
    Ok(done.stdout + &done.stderr)
}

pub(super) fn wrong_driver_is_named(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/check", &["--driver", "kernel"])?;
    let said = failed(&agent, &vf.address)?;
    check(
        said.contains("not to vfio-pci") && said.contains(&vf.address),
        format!("The wrong driver is not named: {said}"),
    )?;
    agent.release("cli/check")?;
    agent.end()
}

pub(super) fn holder_is_named(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/check", &["--driver", "vfio"])?;
    let link = format!("/sys/bus/pci/devices/{}/iommu_group", vf.address);
    let group = lab.ok(&["readlink", &link])?;
    let group = group
        .trim()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let open = format!("exec 9<>/dev/vfio/{group}; exec sleep 1000");
    let holder = lab.spawn("holder", &["sh", "-c", &open])?;
    let said = failed(&agent, &vf.address)?;
    check(
        said.contains(&format!("(pid {})", holder.pid())),
        format!("The holder is not named: {said}"),
    )?;
    holder.kill()?;
    agent.release("cli/check")?;
    agent.end()
}

/// With interrupts remapped and an IOMMU there, the two dangerous permissions do no harm, and are told.
pub(super) fn needless_permissions_are_told(lab: &Context) -> Outcome {
    // The second is there only in a kernel with CONFIG_VFIO_NOIOMMU; Debian's has not.
    const UNSAFE: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    const NO_IOMMU: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/check", &["--driver", "vfio"])?;
    let mut allowed = vec![UNSAFE];
    if lab.exec(&["test", "-e", NO_IOMMU])?.ok() {
        allowed.push(NO_IOMMU);
    }
    for file in &allowed {
        lab.shell_ok(&format!("echo Y > {file}"))?;
    }
    let printed = agent.ferrovia(&["vf", "check", &vf.address])?;
    for file in &allowed {
        lab.shell_ok(&format!("echo N > {file}"))?;
        let name = file.rsplit('/').next().unwrap_or_default();
        check(
            printed.contains(name),
            format!("{name} is not told: {printed}"),
        )?;
    }
    agent.release("cli/check")?;
    agent.end()
}
