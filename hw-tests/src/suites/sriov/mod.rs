//! `sriov`: partitioning NICs, and the life of VFs. Each subject is a file here; its tests are lines below.

mod agent_there;
mod concurrency;
mod crash;
mod field_count;
mod field_lost;
mod field_owner;
mod kernel;
mod raw;
mod relay;
mod traffic;
mod vfio;

use crate::lab::Need;
use crate::lab::suite::{Suite, Test};

/// The suite.
pub const SUITE: Suite = Suite {
    name: "sriov",
    about: "NICs are partitioned, VFs handed out, taken back, and found again",
    tests: &[
        Test::new(
            "count_above_the_most_is_refused",
            "more VFs than the NIC has are refused with ERANGE, and none is made",
            kernel::above_total,
        )
        .needs(&[Need::Root, Need::PciPfs(1)]),
        Test::new(
            "count_cannot_be_changed_in_place",
            "another VF count than 0 is refused with EBUSY while there are VFs, which stay",
            kernel::in_place,
        )
        .needs(&[Need::Root, Need::Vfs(3)])
        .limit(120),
        Test::new(
            "crash_partition",
            "killed after each journal record of partitioning, of another VF count and of a reset, the next start has it right",
            crash::partition,
        )
        .needs(CRASH)
        .limit(900),
        Test::new(
            "crash_allocate_release",
            "killed after each journal record of an allocation and of a release, no VF is lost, leaked or handed out twice",
            crash::allocate_and_release,
        )
        .needs(CRASH)
        .limit(900),
        Test::new(
            "crash_eswitch",
            "killed after each journal record of a change of the eswitch mode, the next start has it right",
            crash::eswitch,
        )
        .needs(&[Need::Root, Need::Netdevsim, Need::Emulated])
        .limit(900),
        Test::new(
            "crash_agent",
            "the agent itself is killed while it partitions, hands out and takes back, and the next one has it right",
            crash::agent,
        )
        .needs(VFIO)
        .also(&[Need::Emulated])
        .limit(600),
        Test::new(
            "concurrent_clients",
            "eight clients allocate and release at once: no VF twice, none leaked, the kernel is as the journal says",
            concurrency::clients,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(5), Need::Emulated])
        .limit(600),
        Test::new(
            "vfio_check_passes",
            "`ferrovia vf check` opens, maps, resets and interrupts a VF on vfio-pci",
            vfio::check_passes,
        )
        .needs(VFIO)
        .limit(300),
        Test::new(
            "vfio_check_names_the_wrong_driver",
            "the check of a VF on its kernel driver says so, and what to do",
            vfio::wrong_driver_is_named,
        )
        .needs(VFIO)
        .limit(300),
        Test::new(
            "vfio_check_names_the_holder",
            "the check of a VF whose group is open elsewhere names the process",
            vfio::holder_is_named,
        )
        .needs(VFIO)
        .limit(300),
        Test::new(
            "vfio_check_tells_needless_permissions",
            "the check tells that unsafe interrupts and no-IOMMU mode are allowed without need",
            vfio::needless_permissions_are_told,
        )
        .needs(VFIO)
        .also(&[Need::Emulated])
        .limit(300),
        Test::new(
            "traffic_between_two_vfs",
            "every packet of one VF arrives at another through the NIC's switch, driven by our DPDK binding",
            traffic::between_two_vfs,
        )
        .needs(VFIO)
        .limit(400),
        Test::new(
            "traffic_vlans_keep_apart",
            "VFs of one VLAN reach each other, VFs of different VLANs do not",
            traffic::vlans_keep_apart,
        )
        .needs(VFIO)
        .limit(500),
        Test::new(
            "traffic_testpmd",
            "dpdk-testpmd sends from one VF to another",
            traffic::testpmd,
        )
        .needs(VFIO)
        .also(&[Need::Program("dpdk-testpmd")])
        .limit(400),
        Test::new(
            "traffic_clean_after_release",
            "after its user was killed and it was released, a VF has neutral settings and dead queues",
            traffic::clean_after_release,
        )
        .needs(VFIO)
        .also(&[IGB])
        .limit(400),
        Test::new(
            "relay_over_two_vfs",
            "guests on virtio rings reach each other over a VF each, over the router while their VFs are away, and over VFs again",
            relay::over_two_vfs,
        )
        .needs(VFIO)
        .also(&[Need::Program("dpdk-testpmd"), Need::Emulated])
        .limit(600),
        Test::new(
            "r01_vfs_that_are_held_open",
            "removing VFs that are held open is refused with the holder's name; forced, it wedges only its PF until the holder is gone",
            field_count::r01,
        )
        .needs(VFIO)
        .also(&[IGB, Need::PciPfs(2)])
        .limit(300),
        Test::new(
            "r02_concurrent_writers",
            "the count changes by way of none, and concurrent writers leave one state",
            field_count::r02,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(240),
        Test::new(
            "r03_links_are_there",
            "when the VFs are said to be made, all of them are there",
            field_count::r03,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(7)])
        .limit(240),
        Test::new(
            "r04_driver_away_for_a_moment",
            "a VF whose driver is away for a moment is left alone, one whose driver stays away gets it again",
            field_owner::r04,
        )
        .needs(VFIO)
        .limit(240),
        Test::new(
            "r05_late_release",
            "a release that comes late does not touch the VF's next owner",
            field_owner::r05,
        )
        .needs(VFIO)
        .limit(240),
        Test::new(
            "r06_nothing_left_after_release",
            "VLAN, rate, trust, spoof checking and MAC are gone after a release",
            field_owner::r06,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4), IGB])
        .limit(240),
        Test::new(
            "r07_one_vf_for_a_mac",
            "a MAC is on one VF of the host, also after a teardown that was missed",
            field_owner::r07,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(7)])
        .limit(240),
        Test::new(
            "r08_reset_before_reuse",
            "queues that the last owner left on are off for the next",
            field_owner::r08,
        )
        .needs(VFIO)
        .also(&[IGB])
        .limit(240),
        Test::new(
            "r09_reset_without_a_driver",
            "a VF with its kernel driver is released while the PF is down, and nothing hangs",
            field_owner::r09,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(240),
        Test::new(
            "r10_vf_in_a_namespace",
            "a VF in a network namespace is not taken away unasked, and comes back",
            field_count::r10,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(7)])
        .limit(240),
        Test::new(
            "r11_no_iommu_group_is_kept",
            "a VF's IOMMU group may have another number each time it is made",
            field_lost::r11,
        )
        .needs(VFIO)
        .also(&[Need::PciPfs(2)])
        .limit(240),
        Test::new(
            "r12_driver_switch_cut_off",
            "a driver_override that a killed agent left is cleared at the next start",
            field_owner::r12,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(300),
        Test::new(
            "r13_vfs_that_vanish",
            "VFs that vanish are made again; others in their place are left alone",
            field_lost::r13,
        )
        .needs(VFIO)
        .also(&[Need::Vfs(7)])
        .limit(300),
        Test::new(
            "r14_what_a_cycle_wipes",
            "MAC, VLAN, trust and driver are set again after somebody cycled the VFs",
            field_lost::r14,
        )
        .needs(VFIO)
        .limit(240),
        Test::new(
            "r15_pf_down",
            "the PF is up for its VFs, they have the MAC that was set, and a PF that is down is told",
            field_owner::r15,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(240),
        Test::new(
            "r16_pf_gone_and_back",
            "a PF that was unbound, or removed and found again, gets its VFs back",
            field_lost::r16,
        )
        .needs(VFIO)
        .also(&[Need::Emulated])
        .limit(300),
        Test::new(
            "r17_no_bounce_under_a_vlan",
            "no link is bounced under a VLAN: the kernel does not fail to remove VLAN 0",
            field_owner::r17,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(240),
        Test::new(
            "r18_list_longer_than_a_message",
            "256 VFs, whose attributes are more than a netlink message, are all listed",
            field_count::r18,
        )
        .needs(AGENT)
        .also(&[Need::Netdevsim])
        .limit(300),
        Test::new(
            "r19_mtu_below_the_pfs",
            "a policy with an MTU below the PF's does not loop",
            field_count::r19,
        )
        .needs(AGENT)
        .also(&[Need::Vfs(4)])
        .limit(240),
        Test::new(
            "r20_busy_is_tried_again",
            "EBUSY on a MAC or a link is tried again, and not for ever",
            field_owner::r20,
        )
        .needs(&[])
        .limit(60),
        Test::new(
            "r21_leaving_switchdev",
            "leaving switchdev names the representors with their rules, and needs force",
            field_count::r21,
        )
        .needs(AGENT)
        .also(&[Need::Netdevsim])
        .limit(300),
    ],
};

/// What a test needs that runs an agent.
const AGENT: &[Need] = &[Need::Root, Need::Program("ferrovia-agent")];
/// What a test needs that gives VFs to vfio-pci with an agent.
const VFIO: &[Need] = &[
    Need::Root,
    Need::Program("ferrovia-agent"),
    Need::Iommu,
    Need::Vfio,
    Need::Vfs(2),
];
/// The driver whose settings and registers are known.
const IGB: Need = Need::Driver("igb");
/// What a test needs that kills the manager while it changes a NIC.
const CRASH: &[Need] = &[
    Need::Root,
    Need::Vfs(3),
    Need::Iommu,
    Need::Vfio,
    Need::Emulated,
];
