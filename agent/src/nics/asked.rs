//! What callers of the API ask for, checked, as the manager takes it.

use crate::desired::valid_name;
use api::v1;
use sriov_mgr::kernel::{EswitchMode, Rate, VfLinkState, Vlan, VlanProtocol};
use sriov_mgr::manager::{PfView, VfView};
use sriov_mgr::policy::{Policy, Selector, VfDefaults, VfDriver};
use sriov_mgr::{Device, PciAddress, Request, VfChoice};
use std::collections::BTreeSet;

/// What a caller's text looks like in a message.
fn shown(text: &str) -> String {
    text.chars()
        .take(64)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The PF of this name: device or interface.
pub fn pf<'v>(pfs: &'v [PfView], name: &str) -> Option<&'v PfView> {
    let device: Option<Device> = name.parse().ok();
    pfs.iter().find(|pf| {
        Some(&pf.state.device) == device.as_ref() || pf.state.interface.as_deref() == Some(name)
    })
}

/// The VF of this name: `PF#number`, or its own PCI address.
pub fn vf<'v>(pfs: &[PfView], vfs: &'v [VfView], name: &str) -> Option<&'v VfView> {
    if let Some((of, number)) = name.rsplit_once('#') {
        let device = &pf(pfs, of)?.state.device;
        let index: u32 = number.parse().ok()?;
        return vfs
            .iter()
            .find(|vf| vf.id.pf == *device && vf.id.index == index);
    }
    let address: PciAddress = name.parse().ok()?;
    vfs.iter().find(|vf| vf.state.address == Some(address))
}

/// A sentence for a name that is nobody's.
pub fn no_nic(name: &str) -> String {
    format!(
        "There is no SR-IOV NIC \"{}\" on this host; `ferrovia nic list` shows those there are",
        shown(name)
    )
}

/// A sentence for a VF's name that is nobody's.
pub fn no_vf(name: &str) -> String {
    format!(
        "There is no VF \"{}\" on this host; `ferrovia vf list` shows those there are",
        shown(name)
    )
}

/// Checks policies; the first mistake ends it.
pub fn policies(list: &[v1::NicPolicy]) -> Result<Vec<Policy>, String> {
    const MOST: usize = 1024;
    if list.len() > MOST {
        return Err(format!(
            "{} policies are more than {MOST}; send fewer",
            list.len()
        ));
    }
    // Each is compared with each: the whole is bounded, not each list.
    const NAMES: usize = 4096;
    let selects = list.iter().filter_map(|policy| policy.select.as_ref());
    let names: usize = selects
        .map(|select| select.pf.len() + select.address.len())
        .sum();
    if names > NAMES {
        return Err(format!(
            "The policies name {names} PFs, more than {NAMES}; select by vendor or driver, or send fewer"
        ));
    }
    list.iter().map(policy).collect()
}

fn policy(asked: &v1::NicPolicy) -> Result<Policy, String> {
    let of = format!("of policy \"{}\"", shown(&asked.name));
    if !valid_name(&asked.name) {
        return Err(format!(
            "\"{}\" cannot be a policy's name; use 1 to 63 of a-z, 0-9 and -, starting with a letter",
            shown(&asked.name)
        ));
    }
    if !asked.pool.is_empty() && !valid_name(&asked.pool) {
        return Err(format!(
            "The pool \"{}\" {of} cannot be a name; use 1 to 63 of a-z, 0-9 and -, starting with a letter",
            shown(&asked.pool)
        ));
    }
    let eswitch = word(
        &asked.eswitch,
        "eswitch",
        &of,
        &[
            ("legacy", EswitchMode::Legacy),
            ("switchdev", EswitchMode::Switchdev),
        ],
    )?;
    Ok(Policy {
        name: asked.name.clone(),
        priority: u8::try_from(asked.priority)
            .ok()
            .filter(|priority| *priority <= 99)
            .ok_or_else(|| format!("The priority {} {of} is not within 0 to 99", asked.priority))?,
        select: selector(asked.select.as_ref(), &of)?,
        num_vfs: asked.num_vfs,
        mtu: asked.mtu,
        eswitch,
        defaults: defaults(asked.defaults.as_ref(), &of)?,
        pool: (!asked.pool.is_empty()).then(|| asked.pool.clone()),
        driver: driver(&asked.driver, &of)?,
        external: asked.external,
    })
}

fn selector(asked: Option<&v1::NicSelector>, of: &str) -> Result<Selector, String> {
    let Some(asked) = asked else {
        return Ok(Selector::default());
    };
    let id = |number: Option<u32>, what: &str| {
        number
            .map(|n| {
                u16::try_from(n).map_err(|_| format!("The PCI {what} {n:#x} {of} has not 16 bits"))
            })
            .transpose()
    };
    let parsed = |list: &[String]| -> Result<Vec<Device>, String> {
        list.iter()
            .map(|text| text.parse().map_err(because(of)))
            .collect()
    };
    Ok(Selector {
        vendor: id(asked.vendor, "vendor")?,
        device: id(asked.device, "device")?,
        driver: match asked.driver.as_str() {
            "" => None,
            text => Some(short(text, "driver", of)?.to_owned()),
        },
        pf: asked
            .pf
            .iter()
            .map(|text| short(text, "PF", of)?.parse().map_err(because(of)))
            .collect::<Result<_, String>>()?,
        address: parsed(&asked.address)?,
        root_port: match asked.root_port.as_str() {
            "" => None,
            text => Some(text.parse::<PciAddress>().map_err(because(of))?),
        },
        numa_node: asked.numa_node,
    })
}

/// A name that can stand in a message and in a list.
fn short<'t>(text: &'t str, what: &str, of: &str) -> Result<&'t str, String> {
    if text.len() <= 64 && !text.contains(char::is_control) {
        return Ok(text);
    }
    Err(format!(
        "The {what} \"{}\" {of} is no name; write at most 64 printable characters",
        shown(text)
    ))
}

fn because<E: std::fmt::Display>(of: &str) -> impl Fn(E) -> String {
    move |error| format!("{error} ({of})")
}

fn defaults(asked: Option<&v1::VfDefaults>, of: &str) -> Result<VfDefaults, String> {
    let Some(asked) = asked else {
        return Ok(VfDefaults::default());
    };
    let vlan = within(asked.vlan, 4094, "VLAN", of)?;
    let qos = within(asked.qos, 7, "VLAN priority", of)?;
    let protocols = [
        ("802.1q", VlanProtocol::Dot1q),
        ("802.1ad", VlanProtocol::Dot1ad),
    ];
    let states = [
        ("auto", VfLinkState::Auto),
        ("enable", VfLinkState::Enable),
        ("disable", VfLinkState::Disable),
    ];
    let rate = (asked.min_rate.is_some() || asked.max_rate.is_some()).then(|| Rate {
        min: asked.min_rate.unwrap_or(0),
        max: asked.max_rate.unwrap_or(0),
    });
    Ok(VfDefaults {
        vlan,
        qos: qos.map(|qos| qos as u8),
        protocol: word(&asked.protocol, "VLAN protocol", of, &protocols)?,
        rate,
        spoofchk: asked.spoofchk,
        trust: asked.trust,
        link_state: word(&asked.link_state, "link state", of, &states)?,
    })
}

fn within(asked: Option<u32>, most: u16, what: &str, of: &str) -> Result<Option<u16>, String> {
    asked
        .map(|n| {
            u16::try_from(n)
                .ok()
                .filter(|n| *n <= most)
                .ok_or_else(|| format!("The {what} {n} {of} is not within 0 to {most}"))
        })
        .transpose()
}

fn driver(asked: &str, of: &str) -> Result<Option<VfDriver>, String> {
    let drivers = [("kernel", VfDriver::Kernel), ("vfio", VfDriver::Vfio)];
    word(asked, "driver", of, &drivers)
}

/// One of some words; empty: none.
fn word<T: Copy>(
    asked: &str,
    what: &str,
    of: &str,
    words: &[(&str, T)],
) -> Result<Option<T>, String> {
    if asked.is_empty() {
        return Ok(None);
    }
    let found = words.iter().find(|(word, _)| *word == asked);
    found.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!(
            "The {what} \"{}\" {of} is not known; use {}",
            shown(asked),
            known.join(" or ")
        )
    })
}

/// Checks a request for a VF.
pub fn request(
    asked: &v1::AllocateVfRequest,
    pfs: &[PfView],
    vfs: &[VfView],
) -> Result<Request, String> {
    owner(&asked.owner)?;
    let of = format!("for {}", asked.owner);
    if !asked.pool.is_empty() && !valid_name(&asked.pool) {
        return Err(format!(
            "\"{}\" {of} cannot be a pool's name; use 1 to 63 of a-z, 0-9 and -, starting with a letter",
            shown(&asked.pool)
        ));
    }
    let device = match asked.vf.as_str() {
        "" => None,
        name => Some(VfChoice::Vf(
            vf(pfs, vfs, name).ok_or_else(|| no_vf(name))?.id.clone(),
        )),
    };
    let mac = match asked.mac.as_str() {
        "" => None,
        text => {
            let mac: Option<flow::MacAddr> = text.parse().ok();
            let mac = mac.filter(|mac| mac.is_station()).ok_or_else(|| {
                format!(
                    "\"{}\" {of} is not the MAC address of a station",
                    shown(text)
                )
            })?;
            Some(mac.0)
        }
    };
    let avoid = asked.avoid_pfs.iter().map(|name| {
        pf(pfs, name)
            .map(|pf| pf.state.device.clone())
            .ok_or_else(|| no_nic(name))
    });
    // It is kept in the journal: each PF once, however often it is named.
    let avoid: BTreeSet<Device> = avoid.collect::<Result<_, _>>()?;
    let settings = defaults(asked.settings.as_ref(), &of)?;
    let vlan = settings.vlan.map(|id| Vlan {
        id,
        qos: settings.qos.unwrap_or(0),
        protocol: settings.protocol.unwrap_or_default(),
    });
    Ok(Request {
        owner: asked.owner.clone(),
        pool: (!asked.pool.is_empty()).then(|| asked.pool.clone()),
        device,
        numa_node: asked.numa_node,
        avoid_pfs: avoid.into_iter().collect(),
        mac,
        vlan,
        rate: settings.rate,
        spoofchk: settings.spoofchk,
        trust: settings.trust,
        link_state: settings.link_state,
        driver: driver(&asked.driver, &of)?,
    })
}

/// Owners that callers may use: what the agent does for ports is its own.
fn owner(owner: &str) -> Result<(), String> {
    let (kind, name) = owner.split_once('/').unwrap_or(("", owner));
    let fits =
        !name.is_empty() && owner.len() <= 128 && owner.bytes().all(|b| b.is_ascii_graphic());
    match kind {
        "cli" | "vm" if fits => Ok(()),
        "port" => Err(format!(
            "{} is the agent's own to ask for; create or delete the port",
            shown(owner)
        )),
        "xvio" => Err(format!(
            "{} is the agent's own to ask for; add or remove the relay (`ferrovia xvio`)",
            shown(owner)
        )),
        _ => Err(format!(
            "\"{}\" cannot be an owner; write cli/NAME or vm/DOMAIN, at most 128 printable characters",
            shown(owner)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown as back;
    use super::*;

    fn asked() -> v1::NicPolicy {
        v1::NicPolicy {
            name: "tenants".into(),
            priority: 10,
            select: Some(v1::NicSelector {
                vendor: Some(0x8086),
                pf: vec!["eth0#0-3".into()],
                address: vec!["0000:3b:00.0".into()],
                root_port: "0000:3a:00.0".into(),
                ..Default::default()
            }),
            num_vfs: Some(8),
            eswitch: "legacy".into(),
            defaults: Some(v1::VfDefaults {
                vlan: Some(42),
                protocol: "802.1ad".into(),
                min_rate: Some(0),
                max_rate: Some(100),
                trust: Some(false),
                link_state: "enable".into(),
                ..Default::default()
            }),
            pool: "tenants".into(),
            driver: "vfio".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_policy_comes_back_as_it_was_asked() {
        let checked = policies(&[asked()]).unwrap();
        assert_eq!(back::policy(&checked[0], false), asked());
    }

    #[test]
    fn what_makes_no_sense_is_a_sentence_with_the_policy() {
        let wrong = |change: &dyn Fn(&mut v1::NicPolicy)| {
            let mut policy = asked();
            change(&mut policy);
            policies(&[policy]).unwrap_err()
        };
        let vlan = |vlan| v1::VfDefaults {
            vlan: Some(vlan),
            ..Default::default()
        };
        for (said, part) in [
            (wrong(&|p| p.priority = 100), "priority 100"),
            (wrong(&|p| p.eswitch = "both".into()), "\"both\""),
            (wrong(&|p| p.defaults = Some(vlan(4095))), "VLAN 4095"),
            (
                wrong(&|p| p.select.as_mut().unwrap().vendor = Some(1 << 16)),
                "0x10000",
            ),
            (
                wrong(&|p| p.select.as_mut().unwrap().pf = vec!["eth0#3-1".into()]),
                "eth0#3-1",
            ),
        ] {
            assert!(
                said.contains(part) && said.contains("\"tenants\""),
                "{said}"
            );
        }
        assert!(wrong(&|p| p.name = "No Name".into()).contains("\"No Name\""));
        assert!(wrong(&|p| p.pool = "No Pool".into()).contains("\"No Pool\""));
    }

    #[test]
    fn lists_and_names_without_end_are_refused_in_a_short_sentence() {
        let long = "x".repeat(1 << 20);
        let mut policy = asked();
        let select = policy.select.as_mut().unwrap();
        select.pf = vec!["eth0".into(); 5000];
        let said = policies(&[policy.clone()]).unwrap_err();
        assert!(said.contains("4096"), "{said}");
        for pf in [&long, "eth\u{1b}[31m"] {
            policy.select.as_mut().unwrap().pf = vec![pf.into()];
            let said = policies(&[policy.clone()]).unwrap_err();
            assert!(said.len() < 300 && !said.contains('\u{1b}'), "{said}");
        }
        policy.select.as_mut().unwrap().pf.clear();
        policy.select.as_mut().unwrap().driver = long.clone();
        assert!(policies(&[policy]).unwrap_err().len() < 300);
        let request = v1::AllocateVfRequest {
            owner: "cli/a".into(),
            pool: long,
            ..Default::default()
        };
        assert!(super::request(&request, &[], &[]).unwrap_err().len() < 300);
    }

    #[test]
    fn owners_of_ports_are_the_agents_own() {
        assert!(owner("cli/me").is_ok() && owner("vm/web-1").is_ok());
        assert!(owner("port/1").unwrap_err().contains("agent's own"));
        for bad in [
            "",
            "me",
            "cli/",
            "cli/a b",
            &format!("cli/{}", "x".repeat(200)),
        ] {
            assert!(owner(bad).unwrap_err().contains("cli/NAME"), "{bad}");
        }
    }
}
