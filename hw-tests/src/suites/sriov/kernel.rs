//! What the kernel's own VF count does: the rules that everything above it stands on.
//! The contract: Linux, `drivers/pci/iov.c`, `sriov_numvfs_store`.

use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, check, same};

pub(super) fn above_total(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let count = format!("{}/sriov_numvfs", pf.sysfs());
    let before = lab.read(&count)?;
    let done = lab.write(&count, &(pf.total_vfs + 1).to_string())?;
    check(
        !done.ok(),
        format!(
            "{} took {} VFs, and can have {}",
            pf.address,
            pf.total_vfs + 1,
            pf.total_vfs
        ),
    )?;
    check(
        done.said().contains("out of range"),
        format!(
            "The kernel refused for another reason than the range: {}",
            done.said()
        ),
    )?;
    same("the VF count", lab.read(&count)?, before)
}

pub(super) fn in_place(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let count = format!("{}/sriov_numvfs", pf.sysfs());
    if lab.read(&count)? != "0" {
        return Err(Stop::skip(format!("{} has VFs already", pf.address)));
    }
    lab.shell_ok(&format!("echo 2 > {count}"))?;
    let done = lab.write(&count, "3")?;
    check(
        !done.ok(),
        "The kernel took another VF count while there are VFs",
    )?;
    check(
        done.said().contains("busy"),
        format!("The kernel refused for another reason: {}", done.said()),
    )?;
    same("the VF count", lab.read(&count)?.as_str(), "2")?;
    lab.shell_ok(&format!("echo 0 > {count}"))?;
    Ok(())
}
