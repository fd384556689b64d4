//! `[nic]` and `[[nic.policy]]`: how this host's NICs are partitioned.

use super::{Collector, Table};
use crate::desired::valid_name;
use checked_toml::At;
use sriov_mgr::kernel::{EswitchMode, Rate, VfLinkState, VlanProtocol};
use sriov_mgr::policy::{self, Policy, Selector, VfDefaults, VfDriver};
use sriov_mgr::vfio::Force;
use sriov_mgr::{Device, PciAddress};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// How long one change of a NIC may take where the file does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// `[nic]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The pool of ports with a VF that name none; `None`: any pool.
    pub sriov_pool: Option<String>,
    /// How long one change of a NIC may take before it counts as wedged.
    pub deadline: Duration,
    /// Dangers of VFIO that are accepted on this host: VFs are given to vfio-pci in spite of them.
    pub vfio_force: Vec<Force>,
    /// `[[nic.policy]]`.
    pub policies: Vec<Policy>,
}

impl Default for Nic {
    fn default() -> Self {
        Nic {
            sriov_pool: None,
            deadline: DEFAULT_DEADLINE,
            vfio_force: Vec::new(),
            policies: Vec::new(),
        }
    }
}

pub(super) fn read(table: Option<Table<'_, '_>>, out: &mut Collector<'_>) -> Nic {
    let mut nic = Nic::default();
    let Some(mut table) = table else {
        return nic;
    };
    let pool = table.string("sriov_pool", out);
    let pool_span = pool.as_ref().map(|at| at.span.clone());
    nic.sriov_pool = pool.and_then(|at| named(at, "A pool's name", out));
    if let Some(at) = table.number("deadline_s", 5..=3600, out) {
        nic.deadline = Duration::from_secs(at.value);
    }
    let forces = table.parsed_list(
        "vfio_force",
        "a danger that can be forced; write \"unsafe-interrupts\" or \"no-iommu\"",
        out,
    );
    nic.vfio_force = forces.into_iter().map(|at| at.value).collect();
    let mut places: HashMap<String, Range<usize>> = HashMap::new();
    for mut table in table.tables("policy", out) {
        table.title = "[[nic.policy]]".to_owned();
        let span = table.span.clone();
        if let Some(policy) = read_policy(table, out) {
            places.entry(policy.name.clone()).or_insert(span);
            nic.policies.push(policy);
        }
    }
    table.finish(out);
    // What the policies are to each other; what they are to the NICs is seen when the agent runs.
    for problem in policy::check(&nic.policies, &[]) {
        let place = places.get(&problem.policy).cloned().unwrap_or(0..0);
        out.add(place, problem.to_string());
    }
    let unknown = |pool: &&String| {
        let filled = nic.policies.iter().any(|p| p.pool.as_ref() == Some(*pool));
        !filled && !nic.policies.is_empty()
    };
    if let (Some(pool), Some(span)) = (nic.sriov_pool.as_ref().filter(unknown), pool_span) {
        out.add(
            span,
            format!(
                "No policy fills the pool \"{pool}\"; add pool = \"{pool}\" to a [[nic.policy]]"
            ),
        );
    }
    nic
}

fn named(at: At<String>, what: &str, out: &mut Collector<'_>) -> Option<String> {
    if valid_name(&at.value) {
        return Some(at.value);
    }
    out.add(
        at.span,
        format!("{what} is 1 to 63 of a-z, 0-9 and -, and starts with a letter"),
    );
    None
}

fn read_policy(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Option<Policy> {
    let name = table.required("name", "\"tenants\"", out);
    let name = name.and_then(|at| named(at, "A policy's name", out));
    let priority = table.number("priority", 0..=policy::WEAKEST.into(), out);
    let select = table.table("select", out);
    let select = select.map(|mut table| {
        table.title = "select of [[nic.policy]]".to_owned();
        selector(table, out)
    });
    let num_vfs = table.number("num_vfs", 0..=65_535, out);
    let mtu = table.number("mtu", 68..=65_535, out);
    let eswitch = word(
        &mut table,
        "eswitch",
        &[
            ("legacy", EswitchMode::Legacy),
            ("switchdev", EswitchMode::Switchdev),
        ],
        out,
    );
    let defaults = table.table("defaults", out);
    let defaults = defaults.map(|mut table| {
        table.title = "defaults of [[nic.policy]]".to_owned();
        vf_defaults(table, out)
    });
    let pool = table.string("pool", out);
    let pool = pool.and_then(|at| named(at, "A pool's name", out));
    let driver = word(
        &mut table,
        "driver",
        &[("kernel", VfDriver::Kernel), ("vfio", VfDriver::Vfio)],
        out,
    );
    let external = table.boolean("external", out);
    table.finish(out);
    Some(Policy {
        name: name?,
        priority: priority.map_or(policy::WEAKEST, |at| at.value as u8),
        select: select.unwrap_or_default(),
        num_vfs: num_vfs.map(|at| at.value as u32),
        mtu: mtu.map(|at| at.value as u32),
        eswitch,
        defaults: defaults.unwrap_or_default(),
        pool,
        driver,
        external: external.is_some_and(|at| at.value),
    })
}

fn selector(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> Selector {
    const PF: &str = "a PF or some of its VFs; write an interface or PCI address, such as \"eth0\" or \"eth0#0-3\"";
    const ADDRESS: &str = "a PCI address such as 0000:3b:00.0";
    let vendor = table.number("vendor", 0..=0xffff, out);
    let device = table.number("device", 0..=0xffff, out);
    let driver = table.string("driver", out);
    let pf = table.parsed_list("pf", PF, out);
    let address = table.parsed_list::<Device>("address", ADDRESS, out);
    let root_port = table.parsed::<PciAddress>("root_port", ADDRESS, out);
    let numa_node = table.number("numa_node", 0..=1023, out);
    table.finish(out);
    Selector {
        vendor: vendor.map(|at| at.value as u16),
        device: device.map(|at| at.value as u16),
        driver: driver.map(|at| at.value),
        pf: pf.into_iter().map(|at| at.value).collect(),
        address: address.into_iter().map(|at| at.value).collect(),
        root_port: root_port.map(|at| at.value),
        numa_node: numa_node.map(|at| at.value as u32),
    }
}

fn vf_defaults(mut table: Table<'_, '_>, out: &mut Collector<'_>) -> VfDefaults {
    let vlan = table.number("vlan", 0..=4094, out);
    let qos = table.number("qos", 0..=7, out);
    let protocols = [
        ("802.1q", VlanProtocol::Dot1q),
        ("802.1ad", VlanProtocol::Dot1ad),
    ];
    let protocol = word(&mut table, "protocol", &protocols, out);
    let min_rate = table.number("min_rate", 0..=u32::MAX.into(), out);
    let max_rate = table.number("max_rate", 0..=u32::MAX.into(), out);
    let spoofchk = table.boolean("spoofchk", out);
    let trust = table.boolean("trust", out);
    let states = [
        ("auto", VfLinkState::Auto),
        ("enable", VfLinkState::Enable),
        ("disable", VfLinkState::Disable),
    ];
    let link_state = word(&mut table, "link_state", &states, out);
    table.finish(out);
    let rate = (min_rate.is_some() || max_rate.is_some()).then(|| Rate {
        min: min_rate.map_or(0, |at| at.value as u32),
        max: max_rate.map_or(0, |at| at.value as u32),
    });
    VfDefaults {
        vlan: vlan.map(|at| at.value as u16),
        qos: qos.map(|at| at.value as u8),
        protocol,
        rate,
        spoofchk: spoofchk.map(|at| at.value),
        trust: trust.map(|at| at.value),
        link_state,
    }
}

/// One of some words.
fn word<T: Copy>(
    table: &mut Table<'_, '_>,
    key: &'static str,
    words: &[(&str, T)],
    out: &mut Collector<'_>,
) -> Option<T> {
    let at = table.string(key, out)?;
    let found = words.iter().find(|(word, _)| *word == at.value);
    if found.is_none() {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let shown: String = at.value.chars().take(32).collect();
        out.add(
            at.span,
            format!(
                "\"{shown}\" is not known for {key}; write {}",
                known.join(" or ")
            ),
        );
    }
    found.map(|(_, value)| *value)
}
