//! Whether what a policy selects is there and can have VFs. A name that no NIC has would otherwise be seen
//! by nobody: nothing is to be done, and all is said to be as wanted.

use super::check::{label, problem};
use super::{Policy, PolicyProblem};
use crate::device::Device;
use crate::kernel::PfState;

/// Names that one sentence holds.
const NAMES: usize = 8;

/// NICs that `policy` names and that cannot have VFs, out of those without SR-IOV. A selector without names
/// means PFs only: other NICs of that vendor or driver are none of its business.
pub(crate) fn without_sriov(policy: &Policy, plain: &[PfState]) -> Vec<(Device, PolicyProblem)> {
    if policy.select.pf.is_empty() && policy.select.address.is_empty() {
        return Vec::new();
    }
    let meant = plain.iter().filter(|nic| policy.select.selects(nic));
    let told = meant.map(|nic| {
        let why = format!(
            "{} has no SR-IOV (sriov_totalvfs is missing or 0) and so cannot have VFs; take it out of select, or \
             turn SR-IOV on in its firmware's settings",
            label(nic)
        );
        (nic.device.clone(), problem(policy, why))
    });
    told.collect()
}

/// What `policy` selects and this host does not have now. It may come, so that this is no mistake by itself.
pub(crate) fn absent(policy: &Policy, pfs: &[PfState], plain: &[PfState]) -> Option<PolicyProblem> {
    let select = &policy.select;
    let there = |fits: &dyn Fn(&PfState) -> bool| pfs.iter().chain(plain).any(fits);
    let names = select.pf.iter().filter(|pf| !there(&|nic| pf.names(nic)));
    let devices = select.address.iter();
    let devices = devices.filter(|device| !there(&|nic| nic.device == **device));
    let mut missing: Vec<String> = names
        .map(|pf| pf.name.clone())
        .chain(devices.map(Device::to_string))
        .collect();
    missing.sort();
    missing.dedup();
    let what = if missing.is_empty() {
        let told = !without_sriov(policy, plain).is_empty();
        if told || pfs.iter().any(|pf| select.selects(pf)) {
            return None;
        }
        "it selects no NIC with SR-IOV of this host".to_owned()
    } else {
        let more = missing.len().saturating_sub(NAMES);
        missing.truncate(NAMES);
        let mut names = missing.join(", ");
        if more > 0 {
            names.push_str(&format!(" and {more} more"));
        }
        format!("it selects {names}, and this host has no NIC with SR-IOV of that name")
    };
    let why = format!(
        "{what}; it has an effect when such a NIC comes. Correct select if none is to come (`ferrovia nic list` shows \
         what there is)"
    );
    Some(problem(policy, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::kernel::fake::{FakeKernel, FakePf};
    use crate::policy::Selector;

    fn nics() -> (Vec<PfState>, Vec<PfState>) {
        let kernel = FakeKernel::builder()
            .pf(FakePf::igb("0000:01:00.0", "eth0"))
            .pf(FakePf::plain("0000:02:00.0", "eth2"))
            .build();
        let pfs = kernel.pfs().unwrap();
        let states = pfs.iter().map(|pf| kernel.pf(pf).unwrap()).collect();
        (states, kernel.without_sriov().unwrap())
    }

    fn policy(select: Selector) -> Policy {
        Policy {
            name: "tenants".into(),
            select,
            num_vfs: Some(2),
            ..Policy::default()
        }
    }

    fn named(names: &[&str]) -> Policy {
        policy(Selector {
            pf: names.iter().map(|name| name.parse().unwrap()).collect(),
            ..Selector::default()
        })
    }

    fn said(policy: &Policy) -> (Vec<String>, String) {
        let (pfs, plain) = nics();
        let errors = without_sriov(policy, &plain);
        let errors = errors.iter().map(|(_, problem)| problem.to_string());
        let absent = absent(policy, &pfs, &plain);
        let absent = absent.map(|problem| problem.to_string());
        (errors.collect(), absent.unwrap_or_default())
    }

    #[test]
    fn a_nic_that_is_there_and_can_have_vfs_is_no_word_worth() {
        for fine in [
            named(&["eth0"]),
            named(&["0000:01:00.0#0-1"]),
            policy(Selector::default()),
        ] {
            assert_eq!(said(&fine), (Vec::new(), String::new()), "{fine:?}");
        }
    }

    #[test]
    fn a_name_that_no_nic_has_is_said_with_a_way_out() {
        let (errors, absent) = said(&named(&["eth0", "eth9#0-3", "eth9#4"]));
        assert_eq!(errors, [""; 0]);
        assert_eq!(
            absent,
            "Policy \"tenants\": it selects eth9, and this host has no NIC with SR-IOV of that name; it has an \
             effect when such a NIC comes. Correct select if none is to come (`ferrovia nic list` shows what there is)"
        );
        let address = policy(Selector {
            address: vec!["0000:77:00.0".parse().unwrap()],
            ..Selector::default()
        });
        assert!(said(&address).1.contains("selects 0000:77:00.0,"));
        let many: Vec<String> = (0..20).map(|n| format!("en{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(said(&named(&many)).1.contains("en07 and 12 more,"));
    }

    #[test]
    fn a_nic_without_sriov_is_an_error_where_it_is_named() {
        let (errors, absent) = said(&named(&["eth2"]));
        assert_eq!(
            errors,
            [
                "Policy \"tenants\": 0000:02:00.0 (eth2) has no SR-IOV (sriov_totalvfs is missing or 0) and so cannot have \
              VFs; take it out of select, or turn SR-IOV on in its firmware's settings"
            ]
        );
        assert_eq!(absent, "");
        // Among all those of a maker it is passed over, and one that fits nothing else is said.
        let intel = Selector {
            vendor: Some(0x8086),
            ..Selector::default()
        };
        assert_eq!(said(&policy(intel.clone())), (Vec::new(), String::new()));
        let plain_only = policy(Selector {
            device: Some(0x10d3),
            ..intel
        });
        let (errors, absent) = said(&plain_only);
        assert!(
            errors.is_empty() && absent.contains("selects no NIC with SR-IOV"),
            "{absent}"
        );
    }
}
