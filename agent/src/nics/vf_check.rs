//! `CheckVf`: the self-test of a VF, in a process of its own that is given up when the device hangs.

use crate::ports::chain;
use api::v1;
use sriov_mgr::manager::VfView;
use sriov_mgr::vfio::{CheckRequest, Force, Step, StepResult, check_in_child};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;
use tonic::Status;

/// The hidden verb of `ferrovia-agent` behind which [`sriov_mgr::vfio::serve_check`] is.
pub const VERB: &str = "vfio-check";

/// How long all steps together may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Checks a VF. One that somebody has open is left alone: a check resets it.
pub fn run(vf: &VfView, force: &[String]) -> Result<v1::CheckVfResponse, Status> {
    let function = vf.state.address.ok_or_else(|| {
        Status::failed_precondition(format!(
            "VF {} is no function of its own, so it cannot be given to a VM",
            vf.id
        ))
    })?;
    if !vf.holders.is_empty() {
        return Err(Status::failed_precondition(format!(
            "VF {} is in use by {}, and a check would reset it; end that use first",
            vf.id,
            vf.holders.join(", ")
        )));
    }
    let force = force
        .iter()
        .map(|name| name.parse::<Force>().map_err(Status::invalid_argument));
    let force: BTreeSet<Force> = force.collect::<Result<_, _>>()?;
    let request = CheckRequest {
        function,
        force: force.into_iter().collect(),
    };
    // Also when the program's file was replaced by an update meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB);
    let report = check_in_child(command, &request, DEADLINE, &mut |_| {});
    let report = report.map_err(|error| Status::internal(chain(&error)))?;
    Ok(v1::CheckVfResponse {
        vf: vf.id.to_string(),
        passed: report.passed(),
        steps: report.steps.iter().map(shown).collect(),
    })
}

fn shown(step: &Step) -> v1::VfCheckStep {
    let (result, detail) = match &step.result {
        StepResult::Passed { seen } => ("passed", seen.clone()),
        StepResult::Failed { why, advice } => ("failed", format!("{why}; {advice}")),
        StepResult::Skipped { why } => ("skipped", why.clone()),
    };
    v1::VfCheckStep {
        name: step.name.name().to_owned(),
        result: result.to_owned(),
        detail,
    }
}
