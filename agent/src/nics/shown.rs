//! What the manager says, as the API's messages.

use api::v1;
use sriov_mgr::kernel::{EswitchMode, PfState, VfLinkState, VfSettings, VlanProtocol};
use sriov_mgr::manager::{Applied, Ownership, PfDone, PfView, Progress, VfView};
use sriov_mgr::policy::{Policy, Selector, VfDefaults, VfDriver};
use sriov_mgr::{Allocation, Device, Disturbed, Event, Plan, Refusal, Released, VfId};
use std::time::SystemTime;

fn text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

/// `02:00:00:00:00:01`.
pub fn mac(mac: &[u8; 6]) -> String {
    flow::MacAddr(*mac).to_string()
}

/// A PF.
pub fn nic(view: &PfView) -> v1::ManagedNic {
    let PfState {
        device,
        vendor,
        device_id,
        driver,
        interface,
        mtu,
        up,
        total_vfs,
        num_vfs,
        autoprobe: _,
        eswitch,
        numa_node,
        root_port,
    } = &view.state;
    v1::ManagedNic {
        device: device.to_string(),
        interface: text(interface),
        driver: text(driver),
        vendor: (*vendor).into(),
        device_id: (*device_id).into(),
        total_vfs: *total_vfs,
        num_vfs: *num_vfs,
        eswitch: eswitch.map(eswitch_name).unwrap_or_default().to_owned(),
        mtu: mtu.unwrap_or(0),
        up: *up,
        numa_node: *numa_node,
        root_port: text(root_port),
        ownership: match view.ownership {
            Ownership::Ours => "ours",
            Ownership::Adopted => "adopted",
            Ownership::External => "external",
            Ownership::Foreign => "foreign",
            Ownership::None => "none",
        }
        .to_owned(),
        policies: view.policies.clone(),
        pools: view.pools.clone(),
        allocated: view.allocated,
        wedged: text(&view.wedged),
        problems: view.problems.clone(),
    }
}

/// A VF.
pub fn vf(view: &VfView) -> v1::ManagedVf {
    let state = &view.state;
    v1::ManagedVf {
        id: view.id.to_string(),
        pf: view.id.pf.to_string(),
        index: view.id.index,
        address: text(&state.address),
        driver: text(&state.driver),
        driver_override: text(&state.driver_override),
        interface: text(&state.interface),
        iommu_group: state.iommu_group,
        representor: text(&state.representor),
        settings: Some(settings(&state.settings)),
        pool: text(&view.pool),
        owner: text(&view.owner),
        phase: text(&view.phase),
        holders: view.holders.clone(),
    }
}

fn settings(settings: &VfSettings) -> v1::VfSettings {
    v1::VfSettings {
        mac: settings.mac.as_ref().map(mac).unwrap_or_default(),
        vlan: settings.vlan.id.into(),
        qos: settings.vlan.qos.into(),
        protocol: protocol_name(settings.vlan.protocol).to_owned(),
        min_rate: settings.rate.min,
        max_rate: settings.rate.max,
        spoofchk: settings.spoofchk,
        trust: settings.trust,
        link_state: settings
            .link_state
            .map(link_name)
            .unwrap_or_default()
            .to_owned(),
        query_rss: settings.query_rss,
    }
}

fn eswitch_name(mode: EswitchMode) -> &'static str {
    match mode {
        EswitchMode::Legacy => "legacy",
        EswitchMode::Switchdev => "switchdev",
    }
}

fn protocol_name(protocol: VlanProtocol) -> &'static str {
    match protocol {
        VlanProtocol::Dot1q => "802.1q",
        VlanProtocol::Dot1ad => "802.1ad",
    }
}

fn link_name(state: VfLinkState) -> &'static str {
    match state {
        VfLinkState::Auto => "auto",
        VfLinkState::Enable => "enable",
        VfLinkState::Disable => "disable",
    }
}

fn driver_name(driver: VfDriver) -> &'static str {
    match driver {
        VfDriver::Kernel => "kernel",
        VfDriver::Vfio => "vfio",
    }
}

/// A policy.
pub fn policy(policy: &Policy, from_file: bool) -> v1::NicPolicy {
    v1::NicPolicy {
        name: policy.name.clone(),
        priority: policy.priority.into(),
        select: Some(selector(&policy.select)),
        num_vfs: policy.num_vfs,
        mtu: policy.mtu,
        eswitch: policy
            .eswitch
            .map(eswitch_name)
            .unwrap_or_default()
            .to_owned(),
        defaults: Some(defaults(&policy.defaults)),
        pool: text(&policy.pool),
        driver: policy
            .driver
            .map(driver_name)
            .unwrap_or_default()
            .to_owned(),
        external: policy.external,
        from_file,
    }
}

fn selector(select: &Selector) -> v1::NicSelector {
    v1::NicSelector {
        vendor: select.vendor.map(Into::into),
        device: select.device.map(Into::into),
        driver: text(&select.driver),
        pf: texts(&select.pf),
        address: texts(&select.address),
        root_port: text(&select.root_port),
        numa_node: select.numa_node,
    }
}

fn defaults(defaults: &VfDefaults) -> v1::VfDefaults {
    v1::VfDefaults {
        vlan: defaults.vlan.map(Into::into),
        qos: defaults.qos.map(Into::into),
        protocol: defaults
            .protocol
            .map(protocol_name)
            .unwrap_or_default()
            .to_owned(),
        min_rate: defaults.rate.map(|rate| rate.min),
        max_rate: defaults.rate.map(|rate| rate.max),
        spoofchk: defaults.spoofchk,
        trust: defaults.trust,
        link_state: defaults
            .link_state
            .map(link_name)
            .unwrap_or_default()
            .to_owned(),
    }
}

/// A plan.
pub fn plan(plan: &Plan) -> v1::NicPlan {
    let step = |step: &sriov_mgr::PlannedStep| v1::PlannedNicStep {
        device: step.device.to_string(),
        what: step.what.clone(),
        disturbs: disturbed(&step.disturbs),
    };
    let foreign = |other: &sriov_mgr::SecondOwner| v1::SecondNicOwner {
        device: other.device.to_string(),
        program: other.program.clone(),
        why: other.why.clone(),
    };
    v1::NicPlan {
        steps: plan.steps.iter().map(step).collect(),
        refused: notes(&plan.refused),
        notes: notes(&plan.notes),
        foreign: plan.foreign.iter().map(foreign).collect(),
        warnings: notes(&plan.warnings),
    }
}

fn disturbed(list: &[Disturbed]) -> Vec<v1::DisturbedVf> {
    let one = |disturbed: &Disturbed| v1::DisturbedVf {
        vf: disturbed.vf.to_string(),
        holder: disturbed.holder.clone(),
    };
    list.iter().map(one).collect()
}

/// Sentences about PFs.
pub fn notes(list: &[Refusal]) -> Vec<v1::NicNote> {
    let one = |refusal: &Refusal| v1::NicNote {
        device: text(&refusal.device),
        why: refusal.why.clone(),
    };
    list.iter().map(one).collect()
}

/// A step that is begun.
pub fn progress(progress: &Progress) -> v1::ApplyNicsProgress {
    v1::ApplyNicsProgress {
        device: progress.device.to_string(),
        step: progress.step.try_into().unwrap_or(u32::MAX),
        of: progress.of.try_into().unwrap_or(u32::MAX),
        what: progress.what.clone(),
    }
}

/// What became of an application.
pub fn applied(applied: &Applied) -> v1::ApplyNicsResult {
    v1::ApplyNicsResult {
        done: applied.done.iter().map(done).collect(),
        refused: notes(&applied.refused),
        failed: notes(&applied.failed),
        warnings: notes(&applied.warnings),
    }
}

/// A PF that was changed.
pub fn done(done: &PfDone) -> v1::NicDone {
    v1::NicDone {
        device: done.device.to_string(),
        steps: done.steps.clone(),
        num_vfs: done.num_vfs,
        disturbed: disturbed(&done.disturbed),
        lost: disturbed(&done.lost),
    }
}

/// A VF that is handed out.
pub fn allocation(allocation: &Allocation) -> v1::VfAllocation {
    v1::VfAllocation {
        owner: allocation.owner.clone(),
        vf: allocation.vf.to_string(),
        address: text(&allocation.address),
        pool: text(&allocation.pool),
        mac: mac(&allocation.settings.mac),
        vlan: allocation.settings.vlan.unwrap_or_default().id.into(),
        driver: allocation
            .driver
            .map(driver_name)
            .unwrap_or_default()
            .to_owned(),
        phase: allocation.phase.to_string(),
        notes: allocation.notes.clone(),
    }
}

/// A VF that was given back.
pub fn released(released: &Released) -> v1::ReleaseVfResponse {
    v1::ReleaseVfResponse {
        owner: released.owner.clone(),
        vf: text(&released.vf),
        notes: released.notes.clone(),
    }
}

/// An event, with a sentence.
pub fn event(event: &Event) -> v1::NicEvent {
    let at_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    let of_pf = |kind: &str, pf: &Device, text: String| v1::NicEvent {
        kind: kind.to_owned(),
        device: pf.to_string(),
        owner: String::new(),
        text,
        at_ms,
    };
    let of_vf = |kind: &str, vf: &VfId, owner: &str, text: String| v1::NicEvent {
        kind: kind.to_owned(),
        device: vf.to_string(),
        owner: owner.to_owned(),
        text,
        at_ms,
    };
    match event {
        Event::PfGone { pf } => of_pf("pf-gone", pf, format!("{pf} is gone")),
        Event::PfBack { pf } => of_pf("pf-back", pf, format!("{pf} is there again")),
        Event::DriverGone { pf } => of_pf("driver-gone", pf, format!("{pf} has no driver")),
        Event::PfWedged { pf, why } => of_pf(
            "pf-wedged",
            pf,
            format!("{pf} is wedged and not touched any more: {why}"),
        ),
        Event::PfAnswers { pf } => of_pf("pf-answers", pf, format!("{pf} answers again")),
        Event::Health { pf, what } => of_pf("health", pf, format!("{pf}: {what}")),
        Event::VfsGone { pf, count } => {
            of_pf("vfs-gone", pf, format!("The {count} VFs of {pf} are gone"))
        }
        Event::VfsMade { pf, count } => of_pf("vfs-made", pf, format!("{pf} has {count} VFs now")),
        Event::Drift { pf, why } => of_pf("drift", pf, format!("{pf}: {why}")),
        Event::Restored { vf, owner, what } => of_vf(
            "restored",
            vf,
            owner,
            format!("{vf} of {owner} has again: {what}"),
        ),
        Event::Allocated { vf, owner } => of_vf(
            "allocated",
            vf,
            owner,
            format!("{vf} is handed out to {owner}"),
        ),
        Event::Freed { vf, owner } => of_vf(
            "freed",
            vf,
            owner,
            format!("{vf} of {owner} is given back and clean"),
        ),
        Event::Lost { vf, owner } => {
            of_vf("lost", vf, owner, format!("{vf} of {owner} is no more"))
        }
        Event::Failed { pf, why } => of_pf("failed", pf, format!("{pf}: {why}; tried again")),
    }
}
