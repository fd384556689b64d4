//! What is wrong with a set of policies: by itself (names, ranges of values, overlaps), and on this host
//! (limits of the NICs it matches).

use super::{Policy, VfRange};
use crate::kernel::PfState;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Something that a policy cannot have, in a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("Policy \"{policy}\": {why}")]
pub struct PolicyProblem {
    /// The policy.
    pub policy: String,
    /// What is wrong, and what to do.
    pub why: String,
}

pub(super) fn problem(policy: &Policy, why: String) -> PolicyProblem {
    PolicyProblem {
        policy: policy.name.clone(),
        why,
    }
}

/// Every problem of `policies` on a host with these PFs. What a PF that is not there now
/// cannot have is found when it has come.
pub fn check(policies: &[Policy], pfs: &[PfState]) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    let mut names = HashSet::new();
    for policy in policies {
        if policy.name.trim().is_empty() {
            problems.push(problem(policy, "it has no name; give it one".into()));
        } else if !names.insert(policy.name.as_str()) {
            let why = "another policy has the same name; rename one of them".into();
            problems.push(problem(policy, why));
        }
        values(policy, &mut problems);
        for pf in pfs {
            limits(policy, pf, &mut problems);
        }
    }
    for (n, one) in policies.iter().enumerate() {
        for other in &policies[n + 1..] {
            if let Some(why) = overlap(one, other, pfs) {
                problems.push(problem(one, why));
            }
        }
    }
    problems
}

/// What `policy` asks of `pf` that it cannot give.
pub(super) fn check_limits(policy: &Policy, pf: &PfState) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    limits(policy, pf, &mut problems);
    problems
}

fn values(policy: &Policy, problems: &mut Vec<PolicyProblem>) {
    let mut say = |why: String| problems.push(problem(policy, why));
    if policy.priority > super::WEAKEST {
        say(format!(
            "priority {} is above 99; 0 is the strongest, 99 the weakest",
            policy.priority
        ));
    }
    if policy.pool.as_deref().is_some_and(|p| p.trim().is_empty()) {
        say("its pool has an empty name; name it, or leave it out".into());
    }
    if let Some(mtu) = policy.mtu.filter(|mtu| !(68..=65_535).contains(mtu)) {
        say(format!("MTU {mtu} is not between 68 and 65535"));
    }
    let owned = [
        ("num_vfs", policy.num_vfs.is_some()),
        ("mtu", policy.mtu.is_some()),
        ("eswitch", policy.eswitch.is_some()),
    ];
    for (attribute, _) in owned.iter().filter(|(_, set)| policy.external && *set) {
        say(format!(
            "it sets {attribute} on PFs that it calls external, which are never changed; remove one of the two"
        ));
    }
    let defaults = &policy.defaults;
    if let Some(vlan) = defaults.vlan.filter(|vlan| *vlan > 4094) {
        say(format!(
            "VLAN {vlan} does not exist; take 1 to 4094, or 0 for none"
        ));
    }
    if let Some(qos) = defaults.qos.filter(|qos| *qos > 7) {
        say(format!(
            "priority {qos} does not fit a VLAN tag; take 0 to 7"
        ));
    }
    let tagged = defaults.vlan.is_some_and(|vlan| vlan > 0);
    if (defaults.qos.is_some() || defaults.protocol.is_some()) && !tagged {
        say("qos and protocol are of a VLAN tag, and it sets no VLAN; add vlan".into());
    }
    if let Some(rate) = defaults.rate.filter(|r| r.max > 0 && r.min > r.max) {
        say(format!(
            "the smallest rate, {} Mbit/s, is above the largest, {} Mbit/s",
            rate.min, rate.max
        ));
    }
}

fn limits(policy: &Policy, pf: &PfState, problems: &mut Vec<PolicyProblem>) {
    let label = label(pf);
    let ranges = policy.select.vfs_of(pf);
    if ranges.is_empty() {
        return;
    }
    if let Some(count) = policy.num_vfs.filter(|count| *count > pf.total_vfs) {
        let why = format!(
            "{count} VFs are more than {label} can have: its limit is {} (sriov_totalvfs); ask for {} or fewer",
            pf.total_vfs, pf.total_vfs
        );
        problems.push(problem(policy, why));
    }
    for range in ranges.iter().filter(|range| **range != VfRange::ALL) {
        if range.last >= pf.total_vfs {
            let why = format!(
                "{range} of {label} go beyond its limit of {} VFs; the last is {}",
                pf.total_vfs,
                pf.total_vfs.saturating_sub(1)
            );
            problems.push(problem(policy, why));
        }
        if let Some(count) = policy.num_vfs.filter(|count| range.last >= *count) {
            let why = format!(
                "{range} of {label} go beyond the {count} VFs that it asks for; raise num_vfs, or lower the range"
            );
            problems.push(problem(policy, why));
        }
    }
    if policy.eswitch.is_some() && pf.eswitch.is_none() && pf.driver.is_some() {
        let why = format!(
            "{label} has no eswitch mode to choose (driver {}); remove eswitch, or do not select it",
            pf.driver.as_deref().unwrap_or("none")
        );
        problems.push(problem(policy, why));
    }
}

/// Why two policies of equal priority cannot both be.
fn overlap(one: &Policy, other: &Policy, pfs: &[PfState]) -> Option<String> {
    if one.priority != other.priority {
        return None;
    }
    let what = pfs
        .iter()
        .find_map(|pf| on_pf(one, other, pf))
        .or_else(|| by_name(one, other))?;
    Some(format!(
        "it and policy \"{}\" have the same priority, {}, and both {what}; give one of them another priority, or \
         other PFs or VFs",
        other.name, one.priority
    ))
}

fn on_pf(one: &Policy, other: &Policy, pf: &PfState) -> Option<String> {
    let (a, b) = (one.select.vfs_of(pf), other.select.vfs_of(pf));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let label = label(pf);
    let common = a
        .iter()
        .find_map(|x| b.iter().find_map(|y| x.common(y)))
        .map(|range| format!("select {range} of {label}"));
    common.or_else(|| contradiction(one, other).map(|what| format!("set {what} of {label}")))
}

/// Two policies that name the same PF overlap also while it is not there.
fn by_name(one: &Policy, other: &Policy) -> Option<String> {
    let pairs = one.select.pf.iter().flat_map(|a| {
        let same = other.select.pf.iter().filter(move |b| a.name == b.name);
        same.map(move |b| (a, b))
    });
    for (a, b) in pairs {
        let (x, y) = (a.vfs.unwrap_or(VfRange::ALL), b.vfs.unwrap_or(VfRange::ALL));
        if let Some(range) = x.common(&y) {
            return Some(format!("select {range} of {}", a.name));
        }
        if let Some(what) = contradiction(one, other) {
            return Some(format!("set {what} of {}", a.name));
        }
    }
    None
}

/// An attribute of the whole PF that the two set differently.
fn contradiction(one: &Policy, other: &Policy) -> Option<&'static str> {
    fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        matches!((a, b), (Some(a), Some(b)) if a != b)
    }
    if differ(&one.num_vfs, &other.num_vfs) {
        return Some("a different number of VFs");
    }
    if differ(&one.eswitch, &other.eswitch) {
        return Some("a different eswitch mode");
    }
    if differ(&one.mtu, &other.mtu) {
        return Some("a different MTU");
    }
    (one.external != other.external).then_some("who makes the VFs")
}

/// The PF as the operator knows it: "0000:3b:00.0 (eth0)".
pub(crate) fn label(pf: &PfState) -> String {
    match &pf.interface {
        Some(interface) => format!("{} ({interface})", pf.device),
        None => pf.device.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{EswitchMode, Rate};
    use crate::policy::{Selector, VfDefaults};

    fn pf() -> PfState {
        PfState {
            device: "0000:01:00.0".parse().unwrap(),
            vendor: 0x8086,
            device_id: 0x10c9,
            driver: Some("igb".into()),
            interface: Some("eth0".into()),
            mtu: Some(1500),
            up: true,
            total_vfs: 7,
            num_vfs: 0,
            autoprobe: true,
            eswitch: None,
            numa_node: None,
            root_port: None,
        }
    }

    fn policy(name: &str, pf: &str) -> Policy {
        Policy {
            name: name.into(),
            priority: 10,
            select: Selector {
                pf: vec![pf.parse().unwrap()],
                ..Selector::default()
            },
            ..Policy::default()
        }
    }

    fn one(policies: &[Policy], pfs: &[PfState]) -> String {
        let problems = check(policies, pfs);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].to_string()
    }

    #[test]
    fn a_count_above_the_limit_names_device_and_limit() {
        let many = Policy {
            num_vfs: Some(8),
            ..policy("many", "eth0")
        };
        assert_eq!(
            one(&[many], &[pf()]),
            "Policy \"many\": 8 VFs are more than 0000:01:00.0 (eth0) can have: its limit is 7 (sriov_totalvfs); \
             ask for 7 or fewer"
        );
    }

    #[test]
    fn an_overlap_names_both_also_while_the_pf_is_absent() {
        for pfs in [vec![pf()], Vec::new()] {
            let text = one(&[policy("a", "eth0#0-3"), policy("b", "eth0#3-5")], &pfs);
            assert!(text.contains("\"a\"") && text.contains("\"b\""), "{text}");
            assert!(text.contains("VF 3 of"), "{text}");
            let apart = [policy("a", "eth0#0-2"), policy("b", "eth0#3-5")];
            assert_eq!(check(&apart, &pfs), []);
            let mut stronger = policy("b", "eth0#3-5");
            stronger.priority = 5;
            assert_eq!(check(&[policy("a", "eth0#0-3"), stronger], &pfs), []);
        }
        // The same PF by two names.
        let text = one(
            &[policy("a", "eth0"), policy("b", "0000:01:00.0#6")],
            &[pf()],
        );
        assert!(text.contains("VF 6 of 0000:01:00.0 (eth0)"), "{text}");
    }

    #[test]
    fn pools_of_one_pf_agree_on_the_pf_itself() {
        let four = Policy {
            num_vfs: Some(4),
            ..policy("a", "eth0#0-1")
        };
        let six = Policy {
            num_vfs: Some(6),
            ..policy("b", "eth0#2-3")
        };
        assert!(one(&[four, six], &[pf()]).contains("a different number of VFs"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let bad = |change: &dyn Fn(&mut Policy)| {
            let mut policy = policy("p", "eth0");
            change(&mut policy);
            one(&[policy], &[pf()])
        };
        assert!(bad(&|p| p.priority = 100).contains("above 99"));
        assert!(bad(&|p| p.defaults.vlan = Some(4095)).contains("4095"));
        assert!(bad(&|p| p.defaults.qos = Some(1)).contains("add vlan"));
        assert!(bad(&|p| p.mtu = Some(20)).contains("between 68"));
        assert!(bad(&|p| p.name = " ".into()).contains("no name"));
        assert!(bad(&|p| p.pool = Some(String::new())).contains("empty name"));
        assert!(bad(&|p| p.eswitch = Some(EswitchMode::Switchdev)).contains("no eswitch mode"));
        assert!(bad(&|p| p.select.pf = vec!["eth0#5-7".parse().unwrap()]).contains("limit of 7"));
        assert!(
            bad(&|p| {
                p.external = true;
                p.mtu = Some(9000);
            })
            .contains("never changed")
        );
        let rate = Rate { min: 10, max: 5 };
        assert!(bad(&|p| p.defaults.rate = Some(rate)).contains("above the largest"));
        let twice = [policy("p", "eth0#0"), policy("p", "eth0#1")];
        assert!(one(&twice, &[]).contains("same name"));
        let fine = Policy {
            defaults: VfDefaults {
                vlan: Some(42),
                qos: Some(7),
                ..VfDefaults::default()
            },
            num_vfs: Some(7),
            ..policy("p", "eth0#0-6")
        };
        assert_eq!(check(&[fine], &[pf()]), []);
    }
}
