//! `sriov`: partitioning NICs, and the life of VFs. Each subject is a file here; its tests are lines below.

mod kernel;

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
    ],
};
