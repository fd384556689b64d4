//! `sriov`: partitioning NICs, and the life of VFs. Each subject is a file here; its tests are lines below.

mod agent_there;
mod kernel;
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
        .needs(VFIO_EMULATED)
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
        .needs(VFIO_TESTPMD)
        .limit(400),
        Test::new(
            "traffic_clean_after_release",
            "after its user was killed and it was released, a VF has neutral settings and dead queues",
            traffic::clean_after_release,
        )
        .needs(VFIO_IGB)
        .limit(400),
    ],
};

/// What a test needs that drives VFs on vfio-pci with an agent.
const VFIO: &[Need] = &[
    Need::Root,
    Need::Vfs(2),
    Need::Iommu,
    Need::Vfio,
    Need::Program("ferrovia-agent"),
];
/// The same on a machine that may be spoilt.
const VFIO_EMULATED: &[Need] = &[
    Need::Root,
    Need::Vfs(2),
    Need::Iommu,
    Need::Vfio,
    Need::Program("ferrovia-agent"),
    Need::Emulated,
];
/// The same, with DPDK's own test program.
const VFIO_TESTPMD: &[Need] = &[
    Need::Root,
    Need::Vfs(2),
    Need::Iommu,
    Need::Vfio,
    Need::Program("ferrovia-agent"),
    Need::Program("dpdk-testpmd"),
];
/// The same, where the registers are known.
const VFIO_IGB: &[Need] = &[
    Need::Root,
    Need::Vfs(2),
    Need::Iommu,
    Need::Vfio,
    Need::Program("ferrovia-agent"),
    Need::Driver("igb"),
];
