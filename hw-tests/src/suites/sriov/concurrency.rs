//! Eight clients of one agent allocate and release VFs at the same time: none is handed out twice, none leaks, and
//! the kernel is as the journal says in the end.
//!
//! 20 seconds; `FERROVIA_LAB_CLIENTS_S` says how many others.

use super::agent_there::AgentThere;
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, Unit, check, same};
use crate::sriov_inside::clients::Report;
use serde_json::Value;

const CLIENTS: usize = 8;
const SECONDS: u64 = 20;
/// Fewer than clients, so that they take them from each other.
const VFS: u32 = 5;

fn json<T: serde::de::DeserializeOwned>(what: &str, printed: &str) -> Result<T, Stop> {
    serde_json::from_str(printed)
        .map_err(|error| Stop::fail(format!("{what} printed {printed}: {error}")))
}

pub(super) fn clients(lab: &Context) -> Outcome {
    let seconds = std::env::var("FERROVIA_LAB_CLIENTS_S").ok();
    let seconds = seconds
        .and_then(|text| text.parse().ok())
        .unwrap_or(SECONDS);
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, VFS)?;
    let (count, time) = (CLIENTS.to_string(), seconds.to_string());
    let line = [
        "ferrovia-lab-vfs",
        "clients",
        &agent.socket(),
        &count,
        &time,
    ];
    let report: Report = json("The clients' program", &lab.ok(&line)?)?;
    check(report.wrong.is_empty(), report.wrong.join("; "))?;
    let rounds = format!("There were too few rounds to show anything: {report:?}");
    check(report.released >= CLIENTS as u64, rounds)?;
    check(report.none_free > 0, "The clients never wanted the same VF")?;
    // That all are out at one moment is chance: VFs that are being given or taken back are in nobody's hands.
    check(
        (2..=VFS as usize).contains(&report.most),
        format!(
            "{} of {VFS} VFs were out at once, and must be at least 2 for this to show anything",
            report.most
        ),
    )?;
    let rate = report.allocated as f64 / seconds as f64;
    lab.measure("allocations", rate, Unit::OperationsPerSecond);

    let listed: Value = json(
        "`ferrovia vf list`",
        &agent.ferrovia(&["-o", "json", "vf", "list"])?,
    )?;
    let shown = lab.ok(&[
        "ip",
        "-json",
        "-details",
        "link",
        "show",
        "dev",
        &pf.interface,
    ])?;
    let shown: Value = json("`ip -json`", &shown)?;
    let mut kept = Vec::new();
    for vf in listed.as_array().into_iter().flatten() {
        let word = |name: &str| vf[name].as_str().unwrap_or_default().to_owned();
        let (id, owner) = (word("id"), word("owner"));
        let index = vf["index"].as_u64().unwrap_or(u64::MAX) as usize;
        let kernel = &shown[0]["vfinfo_list"][index];
        let vlan = kernel["vlan_list"][0]["vlan"].as_u64().unwrap_or(0);
        let mac = kernel["address"].as_str().or(kernel["mac"].as_str());
        let mac = mac.unwrap_or_default().to_owned();
        let number = owner.strip_prefix("cli/client-");
        let number = number.and_then(|number| number.parse::<u64>().ok());
        let expected = number.map_or(0, |number| 100 + number);
        same(&format!("the VLAN of {id} in the kernel"), vlan, expected)?;
        if !owner.is_empty() {
            same(
                &format!("the phase of {id}"),
                word("phase"),
                "in use".into(),
            )?;
            kept.push((owner, id, mac));
        }
    }
    kept.sort();
    same("who has which VF with which MAC", &kept, &report.kept)?;
    for (owner, _, _) in &kept {
        agent.release(owner)?;
    }
    agent.end()
}
