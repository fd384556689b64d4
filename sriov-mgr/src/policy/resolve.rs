//! A set of policies made into what each PF is to be.

use super::check::check_limits;
use super::{Policy, PolicyProblem, VfDefaults, VfDriver, VfRange};
use crate::device::Device;
use crate::kernel::{EswitchMode, PfState, VfChange, Vlan};
use std::sync::Arc;

/// What the policies want of one PF.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which.
    pub device: Device,
    /// Number of VFs, and the policy that says so.
    pub num_vfs: Option<(u32, String)>,
    /// Smallest MTU, bytes, and the policy.
    pub mtu: Option<(u32, String)>,
    /// Mode of the eswitch, and the policy.
    pub eswitch: Option<(EswitchMode, String)>,
    /// Somebody else makes the VFs; the PF is never changed.
    pub external: bool,
    /// The policies that match, strongest first, with the VFs they mean.
    claims: Vec<(Vec<VfRange>, Arc<Policy>)>,
}

/// What the policies want of one VF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedVf {
    /// The pool it is in.
    pub pool: Option<String>,
    /// The driver it is handed out with.
    pub driver: Option<VfDriver>,
    /// Its settings.
    pub defaults: VfDefaults,
}

/// What `policies` want of `pf`; absent where none matches.
pub fn resolve(policies: &[Arc<Policy>], pf: &PfState) -> Option<Wanted> {
    let mut claims: Vec<(Vec<VfRange>, Arc<Policy>)> = policies
        .iter()
        .map(|policy| (policy.select.vfs_of(pf), policy.clone()))
        .filter(|(ranges, _)| !ranges.is_empty())
        .collect();
    if claims.is_empty() {
        return None;
    }
    claims.sort_by_key(|(_, policy)| policy.priority);
    let first = |value: fn(&Policy) -> Option<u32>| {
        claims
            .iter()
            .find_map(|(_, policy)| Some((value(policy)?, policy.name.clone())))
    };
    Some(Wanted {
        device: pf.device.clone(),
        num_vfs: first(|policy| policy.num_vfs),
        mtu: first(|policy| policy.mtu),
        eswitch: claims
            .iter()
            .find_map(|(_, policy)| Some((policy.eswitch?, policy.name.clone()))),
        external: claims.iter().any(|(_, policy)| policy.external),
        claims,
    })
}

impl Wanted {
    /// Names of the policies that match, strongest first.
    pub fn policies(&self) -> Vec<String> {
        self.claims.iter().map(|(_, p)| p.name.clone()).collect()
    }

    /// Pools that VFs of this PF are in.
    pub fn pools(&self) -> Vec<String> {
        let mut pools: Vec<String> = self
            .claims
            .iter()
            .filter_map(|(_, policy)| policy.pool.clone())
            .collect();
        pools.sort();
        pools.dedup();
        pools
    }

    /// What the policies ask of `state` that it cannot give.
    pub(crate) fn problems(&self, state: &PfState) -> Vec<PolicyProblem> {
        let each = self.claims.iter();
        each.flat_map(|(_, policy)| check_limits(policy, state))
            .collect()
    }

    /// What is wanted of VF `index`: of each attribute, what the strongest policy that sets it says.
    pub fn vf(&self, index: u32) -> WantedVf {
        let mut wanted = WantedVf::default();
        let claims = self
            .claims
            .iter()
            .filter(|(ranges, _)| ranges.iter().any(|range| range.contains(index)));
        for (_, policy) in claims {
            wanted.pool = wanted.pool.or_else(|| policy.pool.clone());
            wanted.driver = wanted.driver.or(policy.driver);
            wanted.defaults = wanted.defaults.or(&policy.defaults);
        }
        wanted
    }
}

impl VfDefaults {
    /// These, and what they leave open from `weaker`.
    fn or(&self, weaker: &VfDefaults) -> VfDefaults {
        VfDefaults {
            vlan: self.vlan.or(weaker.vlan),
            qos: self.qos.or(weaker.qos),
            protocol: self.protocol.or(weaker.protocol),
            rate: self.rate.or(weaker.rate),
            spoofchk: self.spoofchk.or(weaker.spoofchk),
            trust: self.trust.or(weaker.trust),
            link_state: self.link_state.or(weaker.link_state),
        }
    }

    /// The VLAN they make together; absent where no id is said.
    pub fn tag(&self) -> Option<Vlan> {
        Some(Vlan {
            id: self.vlan?,
            qos: self.qos.unwrap_or(0),
            protocol: self.protocol.unwrap_or_default(),
        })
    }

    /// The change that sets them.
    pub fn change(&self) -> VfChange {
        VfChange {
            mac: None,
            vlan: self.tag(),
            rate: self.rate,
            spoofchk: self.spoofchk,
            trust: self.trust,
            link_state: self.link_state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Selector;

    fn pf() -> PfState {
        PfState {
            device: "0000:3b:00.0".parse().unwrap(),
            vendor: 0x8086,
            device_id: 0x1592,
            driver: Some("ice".into()),
            interface: Some("eth0".into()),
            mtu: Some(1500),
            up: true,
            total_vfs: 64,
            num_vfs: 0,
            autoprobe: true,
            eswitch: Some(EswitchMode::Legacy),
            numa_node: Some(1),
            root_port: None,
        }
    }

    fn policy(name: &str, priority: u8, pf: &str) -> Policy {
        Policy {
            name: name.into(),
            priority,
            select: Selector {
                pf: vec![pf.parse().unwrap()],
                ..Selector::default()
            },
            ..Policy::default()
        }
    }

    #[test]
    fn the_strongest_wins_attribute_by_attribute() {
        let strong = Policy {
            num_vfs: Some(4),
            ..policy("strong", 10, "eth0")
        };
        let weak = Policy {
            num_vfs: Some(8),
            mtu: Some(9000),
            ..policy("weak", 20, "eth0")
        };
        let wanted = resolve(&[weak.into(), strong.into()], &pf()).unwrap();
        assert_eq!(wanted.num_vfs, Some((4, "strong".into())));
        assert_eq!(wanted.mtu, Some((9000, "weak".into())));
        assert_eq!(wanted.policies(), ["strong", "weak"]);
    }

    #[test]
    fn ranges_make_pools() {
        let low = Policy {
            pool: Some("low".into()),
            driver: Some(VfDriver::Vfio),
            ..policy("low", 10, "eth0#0-1")
        };
        let rest = Policy {
            pool: Some("rest".into()),
            defaults: VfDefaults {
                vlan: Some(42),
                qos: Some(3),
                ..VfDefaults::default()
            },
            ..policy("rest", 20, "eth0")
        };
        let wanted = resolve(&[low.into(), rest.into()], &pf()).unwrap();
        assert_eq!(wanted.vf(1).pool.as_deref(), Some("low"));
        assert_eq!(wanted.vf(1).driver, Some(VfDriver::Vfio));
        assert_eq!(wanted.vf(1).defaults.tag().unwrap().id, 42);
        assert_eq!(wanted.vf(2).pool.as_deref(), Some("rest"));
        assert_eq!(wanted.vf(2).defaults.tag().unwrap().qos, 3);
        assert_eq!(wanted.pools(), ["low", "rest"]);
        assert_eq!(wanted.vf(2).driver, None);
    }

    #[test]
    fn every_criterion_must_fit() {
        let fits = |select: Selector| {
            let policy = Policy {
                name: "p".into(),
                select,
                ..Policy::default()
            };
            resolve(&[policy.into()], &pf()).is_some()
        };
        assert!(fits(Selector::default()));
        let ice = |numa_node| Selector {
            vendor: Some(0x8086),
            device: Some(0x1592),
            driver: Some("ice".into()),
            address: vec!["0000:3b:00.0".parse().unwrap()],
            numa_node: Some(numa_node),
            ..Selector::default()
        };
        assert!(fits(ice(1)));
        assert!(!fits(ice(0)));
        assert!(!fits(Selector {
            root_port: Some("0000:00:01.0".parse().unwrap()),
            ..Selector::default()
        }));
    }
}
