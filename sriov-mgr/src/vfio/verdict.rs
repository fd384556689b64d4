//! May this function be used through VFIO? Every obstacle, each with the way out of it.

use super::facts::{Facts, Group, GroupType, Member, is_vfio_driver};
use super::obstacle::{Force, Obstacle};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is to be done with the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It is to be bound to vfio-pci: its own driver is of no importance, it will be unbound.
    Bind,
    /// It is to be opened now.
    Open,
}

/// What speaks against using a function through VFIO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which function, as the operator knows it ("VF 0000:3b:00.2").
    pub function: String,
    /// What must go away first. Empty: it may be used.
    pub obstacles: Vec<Obstacle>,
    /// What was accepted by name.
    pub accepted: Vec<Obstacle>,
    /// What is worth knowing and no obstacle.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Judges `facts`. Dangers in `force` are no obstacles.
    pub fn of(facts: &Facts, purpose: Purpose, force: &[Force]) -> Verdict {
        let function = facts.label();
        let mut found = Vec::new();
        if let Some(own) = &facts.own {
            host(facts, &function, &mut found);
            own_state(facts, own, purpose, &function, &mut found);
            if let Some(group) = &facts.group {
                group_state(group, &function, &mut found);
            }
        } else {
            found.push(Obstacle::NoFunction {
                address: facts.function,
            });
        }
        let (accepted, obstacles) = found
            .into_iter()
            .partition(|obstacle| obstacle.accepted_by().is_some_and(|f| force.contains(&f)));
        Verdict {
            notes: notes(facts),
            function,
            obstacles,
            accepted,
        }
    }

    /// Whether it may be used.
    pub fn viable(&self) -> bool {
        self.obstacles.is_empty()
    }
}

/// One line, or one for each obstacle.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.viable() {
            return write!(f, "{} can be used through VFIO", self.function);
        }
        let lines: Vec<String> = self.obstacles.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Facts {
    /// The function as the operator knows it.
    pub fn label(&self) -> String {
        let kind = match &self.own {
            _ if self.pf.is_some() => "VF",
            Some(own) if own.total_vfs > 0 => "PF",
            _ => "Function",
        };
        format!("{kind} {}", self.function)
    }
}

fn host(facts: &Facts, function: &str, found: &mut Vec<Obstacle>) {
    let host = &facts.host;
    let behind_iommu = facts.group.as_ref().is_some_and(|group| !group.no_iommu);
    if !host.vfio_pci {
        // Loading it brings the rest.
        found.push(Obstacle::NoVfioPci);
    } else if !host.container {
        found.push(Obstacle::NoContainer {
            missing: "/dev/vfio/vfio".to_owned(),
            module: "vfio".to_owned(),
        });
    } else if !host.type1 && behind_iommu {
        found.push(Obstacle::NoContainer {
            missing: "The IOMMU back end of VFIO".to_owned(),
            module: "vfio_iommu_type1".to_owned(),
        });
    }
    match &facts.group {
        Some(group) if group.no_iommu => found.push(Obstacle::NoIommu {
            function: function.to_owned(),
        }),
        Some(_) => interrupts(facts, function, found),
        // vfio-pci makes such a group at the moment it is bound.
        None if host.no_iommu => found.push(Obstacle::NoIommu {
            function: function.to_owned(),
        }),
        None => found.push(Obstacle::NoGroup {
            function: function.to_owned(),
        }),
    }
}

/// With remapping known to work, the kernel's permission to do without changes nothing. Where it is not
/// known, the permission is refused by us, and without it the kernel itself decides.
fn interrupts(facts: &Facts, function: &str, found: &mut Vec<Obstacle>) {
    let allowed = facts.host.unsafe_interrupts;
    let dangerous = match facts.host.interrupt_remapping {
        Some(remapped) => !remapped,
        None => allowed,
    };
    if dangerous {
        found.push(Obstacle::UnsafeInterrupts {
            function: function.to_owned(),
            kernel_allows: allowed,
        });
    }
}

fn own_state(
    facts: &Facts,
    own: &Member,
    purpose: Purpose,
    function: &str,
    found: &mut Vec<Obstacle>,
) {
    let bound = own.driver.as_deref().is_some_and(is_vfio_driver);
    if purpose == Purpose::Open && !bound {
        found.push(Obstacle::NotBound {
            function: function.to_owned(),
            driver: own.driver.clone(),
        });
    }
    if own.total_vfs > 0 {
        found.push(Obstacle::IsPf {
            function: function.to_owned(),
        });
    }
    if let Some(pf) = &facts.pf
        && let Some(driver) = pf.driver.as_deref().filter(|driver| is_vfio_driver(driver))
    {
        found.push(Obstacle::PfOnVfio {
            function: function.to_owned(),
            pf: pf.address,
            driver: driver.to_owned(),
        });
    }
    if own.reset_methods.is_empty() {
        found.push(Obstacle::NoReset {
            function: function.to_owned(),
            address: own.address,
        });
    }
}

fn group_state(group: &Group, function: &str, found: &mut Vec<Obstacle>) {
    for peer in group.peers.iter().filter(|peer| !peer.allows_vfio()) {
        found.push(Obstacle::PeerBound {
            function: function.to_owned(),
            group: group.number,
            peer: peer.address,
            driver: peer.driver.clone().unwrap_or_default(),
            bridge: peer.is_bridge(),
        });
    }
    for region in group.reserved.iter().filter(|r| r.is_firmware_mapping()) {
        found.push(Obstacle::FirmwareMapping {
            function: function.to_owned(),
            group: group.number,
            first: region.first,
            last: region.last,
        });
    }
    if !group.holders.is_empty() {
        found.push(Obstacle::Held {
            function: function.to_owned(),
            group: group.number,
            holders: group.holders.clone(),
        });
    }
}

fn notes(facts: &Facts) -> Vec<String> {
    let mut notes = Vec::new();
    let host = &facts.host;
    if host.unsafe_interrupts && host.interrupt_remapping == Some(true) {
        notes.push(
            "allow_unsafe_interrupts of vfio_iommu_type1 is on, though interrupts are remapped: turn it off"
                .to_owned(),
        );
    }
    let Some(group) = &facts.group else {
        return notes;
    };
    if host.no_iommu && !group.no_iommu {
        notes.push(
            "enable_unsafe_noiommu_mode of vfio is on, though there is an IOMMU: turn it off"
                .to_owned(),
        );
    }
    if group.kind == GroupType::Unmanaged && group.holders.is_empty() {
        notes.push(format!(
            "IOMMU group {} is in the hands of a VFIO user that is not visible from here",
            group.number
        ));
    }
    let others = group.peers.iter().filter(|peer| !peer.is_bridge());
    let others: Vec<String> = others.map(|peer| peer.address.to_string()).collect();
    if !others.is_empty() {
        notes.push(format!(
            "Whoever gets it gets the DMA of {} too: they share IOMMU group {}",
            others.join(", "),
            group.number
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Host, ReservedRegion};
    use super::*;

    fn member(address: &str, driver: Option<&str>) -> Member {
        Member {
            address: address.parse().unwrap(),
            class: 2,
            vendor: 0x8086,
            device: 0x10ca,
            driver: driver.map(str::to_owned),
            total_vfs: 0,
            reset_methods: vec!["flr".to_owned()],
        }
    }

    /// A VF on vfio-pci with nothing against it.
    fn fine() -> Facts {
        Facts {
            function: "0000:3b:00.2".parse().unwrap(),
            host: Host {
                vfio_pci: true,
                container: true,
                type1: true,
                unsafe_interrupts: false,
                no_iommu: false,
                interrupt_remapping: Some(true),
            },
            own: Some(member("0000:3b:00.2", Some("vfio-pci"))),
            pf: Some(Member {
                total_vfs: 7,
                ..member("0000:3b:00.0", Some("igb"))
            }),
            group: Some(Group {
                number: 12,
                no_iommu: false,
                kind: GroupType::Identity,
                reserved: vec![ReservedRegion {
                    first: 0xfee0_0000,
                    last: 0xfeef_ffff,
                    kind: "msi".to_owned(),
                }],
                peers: Vec::new(),
                holders: Vec::new(),
            }),
        }
    }

    /// The obstacles of `facts` after `change`, as the operator reads them.
    fn judged(change: impl FnOnce(&mut Facts), purpose: Purpose, force: &[Force]) -> Vec<String> {
        let mut facts = fine();
        change(&mut facts);
        let verdict = Verdict::of(&facts, purpose, force);
        assert_eq!(verdict.viable(), verdict.obstacles.is_empty());
        verdict.obstacles.iter().map(ToString::to_string).collect()
    }

    fn group(facts: &mut Facts) -> &mut Group {
        facts.group.as_mut().unwrap()
    }

    #[test]
    fn nothing_against_it_is_said_in_one_line() {
        let verdict = Verdict::of(&fine(), Purpose::Open, &[]);
        assert_eq!(
            verdict.to_string(),
            "VF 0000:3b:00.2 can be used through VFIO"
        );
        assert!(verdict.notes.is_empty() && verdict.accepted.is_empty());
    }

    #[test]
    fn a_bound_peer_of_the_group_is_named_with_its_driver() {
        let said = judged(
            |facts| group(facts).peers = vec![member("0000:3b:00.3", Some("iavf"))],
            Purpose::Open,
            &[],
        );
        assert_eq!(
            said,
            [
                "VF 0000:3b:00.2 is in IOMMU group 12 with 0000:3b:00.3, which is still bound to iavf; unbind it or enable ACS"
            ]
        );
    }

    #[test]
    fn every_bound_peer_is_named() {
        let said = judged(
            |facts| {
                group(facts).peers = vec![
                    member("0000:3b:00.3", Some("iavf")),
                    member("0000:3b:00.4", Some("vfio-pci")),
                    member("0000:3b:00.5", None),
                    member("0000:3b:00.6", Some("i40e")),
                ];
            },
            Purpose::Open,
            &[],
        );
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("0000:3b:00.3") && said[1].contains("0000:3b:00.6"));
    }

    #[test]
    fn bridges_of_the_group_are_fine_with_their_own_driver_only() {
        let bridge = |driver| Member {
            class: 6,
            ..member("0000:3a:00.0", Some(driver))
        };
        let with = |driver| {
            judged(
                |facts| group(facts).peers = vec![bridge(driver)],
                Purpose::Open,
                &[],
            )
        };
        assert!(with("pcieport").is_empty());
        assert!(with("shpchp")[0].ends_with("leave the bridge to pcieport or to no driver"));
    }

    #[test]
    fn its_own_driver_matters_only_when_it_is_to_be_opened() {
        let kernel = |facts: &mut Facts| {
            facts.own = Some(member("0000:3b:00.2", Some("igbvf")));
        };
        assert!(judged(kernel, Purpose::Bind, &[]).is_empty());
        assert_eq!(
            judged(kernel, Purpose::Open, &[]),
            ["VF 0000:3b:00.2 is bound to igbvf, not to vfio-pci; bind it first"]
        );
    }

    #[test]
    fn unsafe_interrupts_are_refused_until_forced_by_name() {
        let unsafe_host = |allowed| {
            move |facts: &mut Facts| {
                facts.host.interrupt_remapping = Some(false);
                facts.host.unsafe_interrupts = allowed;
            }
        };
        let said = judged(unsafe_host(true), Purpose::Bind, &[Force::NoIommu]);
        assert!(said[0].contains("--force unsafe-interrupts"), "{said:?}");
        assert!(judged(unsafe_host(true), Purpose::Bind, &[Force::UnsafeInterrupts]).is_empty());
        // The kernel refuses it anyhow: accepting it changes nothing.
        let said = judged(
            unsafe_host(false),
            Purpose::Bind,
            &[Force::UnsafeInterrupts],
        );
        assert!(said[0].contains("after setting allow_unsafe_interrupts"));
    }

    #[test]
    fn permission_for_unsafe_interrupts_counts_where_remapping_is_not_known() {
        let permitted = |facts: &mut Facts| {
            facts.host.interrupt_remapping = None;
            facts.host.unsafe_interrupts = true;
        };
        assert_eq!(judged(permitted, Purpose::Open, &[]).len(), 1);
        let unknown = |facts: &mut Facts| facts.host.interrupt_remapping = None;
        assert!(judged(unknown, Purpose::Open, &[]).is_empty());
    }

    #[test]
    fn what_was_forced_is_still_said() {
        let mut facts = fine();
        facts.host.interrupt_remapping = Some(false);
        facts.host.unsafe_interrupts = true;
        let verdict = Verdict::of(&facts, Purpose::Open, &[Force::UnsafeInterrupts]);
        assert!(verdict.viable());
        assert_eq!(verdict.accepted.len(), 1);
    }

    #[test]
    fn no_iommu_is_refused_until_forced_by_name() {
        let no_iommu = |facts: &mut Facts| {
            facts.host.no_iommu = true;
            group(facts).no_iommu = true;
        };
        let said = judged(no_iommu, Purpose::Open, &[Force::UnsafeInterrupts]);
        assert!(said[0].contains("--force no-iommu"), "{said:?}");
        assert!(judged(no_iommu, Purpose::Open, &[Force::NoIommu]).is_empty());
        // Before it is bound there is no group yet.
        let before = |facts: &mut Facts| {
            facts.host.no_iommu = true;
            facts.group = None;
        };
        assert!(judged(before, Purpose::Bind, &[])[0].contains("--force no-iommu"));
    }

    #[test]
    fn no_iommu_mode_beside_an_iommu_is_a_note() {
        let mut facts = fine();
        facts.host.no_iommu = true;
        let verdict = Verdict::of(&facts, Purpose::Open, &[]);
        assert!(verdict.viable() && verdict.notes[0].contains("enable_unsafe_noiommu_mode"));
    }

    #[test]
    fn without_a_group_the_iommu_is_off_and_no_force_helps() {
        let said = judged(
            |facts| facts.group = None,
            Purpose::Bind,
            &[Force::NoIommu, Force::UnsafeInterrupts],
        );
        assert!(said[0].contains("is in no IOMMU group") && said[0].contains("intel_iommu=on"));
    }

    #[test]
    fn missing_modules_are_answered_with_the_command() {
        for (change, command) in [
            (
                (|host: &mut Host| host.vfio_pci = false) as fn(&mut Host),
                "modprobe vfio-pci",
            ),
            (|host| host.container = false, "modprobe vfio\""),
            (|host| host.type1 = false, "modprobe vfio_iommu_type1"),
        ] {
            let said = judged(|facts| change(&mut facts.host), Purpose::Bind, &[]);
            assert!(said.len() == 1 && said[0].contains(command), "{said:?}");
        }
        let none = |facts: &mut Facts| {
            facts.host.vfio_pci = false;
            facts.host.container = false;
            facts.host.type1 = false;
        };
        assert_eq!(judged(none, Purpose::Bind, &[]).len(), 1);
    }

    #[test]
    fn a_pf_on_vfio_needs_a_token_from_either_side() {
        let own = judged(
            |facts| {
                facts.pf = None;
                facts.own = Some(Member {
                    total_vfs: 7,
                    ..member("0000:3b:00.2", Some("vfio-pci"))
                });
            },
            Purpose::Open,
            &[],
        );
        assert!(own[0].starts_with("PF 0000:3b:00.2 is a PF") && own[0].contains("VF token"));
        let behind = judged(
            |facts| facts.pf = Some(member("0000:3b:00.0", Some("vfio-pci"))),
            Purpose::Open,
            &[],
        );
        assert!(behind[0].contains("PF 0000:3b:00.0 of VF 0000:3b:00.2 is bound to vfio-pci"));
        assert!(behind[0].contains("VF token"));
    }

    #[test]
    fn firmware_mappings_are_refused_and_relaxable_ones_are_not() {
        let region = |kind: &str| {
            let kind = kind.to_owned();
            judged(
                |facts| {
                    group(facts).reserved = vec![ReservedRegion {
                        first: 0x7b80_0000,
                        last: 0x7fff_ffff,
                        kind,
                    }];
                },
                Purpose::Bind,
                &[],
            )
        };
        assert!(region("direct")[0].contains("0x7b800000 to 0x7fffffff"));
        assert!(region("direct-relaxable").is_empty());
        assert!(region("msi").is_empty());
    }

    #[test]
    fn holders_and_missing_resets_are_obstacles() {
        let held = judged(
            |facts| group(facts).holders = vec!["qemu (pid 4711)".to_owned()],
            Purpose::Open,
            &[],
        );
        assert!(held[0].contains("in use by qemu (pid 4711)"));
        let rigid = judged(
            |facts| facts.own.as_mut().unwrap().reset_methods.clear(),
            Purpose::Bind,
            &[],
        );
        assert!(rigid[0].contains("cannot be reset"));
    }

    #[test]
    fn all_obstacles_are_told_at_once() {
        let said = judged(
            |facts| {
                facts.own = Some(member("0000:3b:00.2", Some("iavf")));
                facts.pf = Some(member("0000:3b:00.0", Some("vfio-pci")));
                group(facts).peers = vec![member("0000:3b:00.3", Some("iavf"))];
                facts.host.type1 = false;
            },
            Purpose::Open,
            &[],
        );
        assert_eq!(said.len(), 4, "{said:#?}");
    }
}
