//! The fake kernel refuses, forgets and blocks as the real one.

use super::{FakeKernel, FakePf, Fault, Killed, Op};
use crate::device::Device;
use crate::kernel::{EswitchMode, Kernel, KernelError, Rate, VfChange, Vlan, VlanProtocol};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const ADDRESS: &str = "0000:01:00.0";

fn igb() -> (Arc<FakeKernel>, Device) {
    let kernel = FakeKernel::builder()
        .pf(FakePf::igb(ADDRESS, "eth0"))
        .build();
    (kernel, ADDRESS.parse().unwrap())
}

fn errno<T: std::fmt::Debug>(result: Result<T, KernelError>) -> Option<i32> {
    result.unwrap_err().errno()
}

#[test]
fn counts_are_refused_as_the_kernel_refuses_them() {
    let (kernel, pf) = igb();
    assert_eq!(errno(kernel.set_num_vfs(&pf, 8)), Some(libc::ERANGE));
    kernel.set_num_vfs(&pf, 4).unwrap();
    assert_eq!(errno(kernel.set_num_vfs(&pf, 2)), Some(libc::EBUSY));
    kernel.set_num_vfs(&pf, 4).unwrap();
    kernel.set_num_vfs(&pf, 0).unwrap();
    kernel.bind_pf(&pf, false);
    assert_eq!(errno(kernel.set_num_vfs(&pf, 2)), Some(libc::ENOENT));
    assert_eq!(kernel.writes().len(), 6);
}

#[test]
fn addresses_follow_the_capability_and_links_may_come_late() {
    let (kernel, pf) = igb();
    kernel.change_pf(&pf, |nic| nic.late_links = 2);
    kernel.set_num_vfs(&pf, 3).unwrap();
    assert!(
        kernel
            .vfs(&pf)
            .unwrap()
            .iter()
            .all(|vf| vf.address.is_none())
    );
    kernel.vfs(&pf).unwrap();
    let vfs = kernel.vfs(&pf).unwrap();
    let addresses: Vec<String> = vfs
        .iter()
        .map(|vf| vf.address.unwrap().to_string())
        .collect();
    assert_eq!(addresses, ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"]);
    assert_eq!(vfs[1].interface.as_deref(), Some("eth0v1"));
}

#[test]
fn a_vf_goes_from_its_driver_to_vfio_and_back() {
    let (kernel, pf) = igb();
    kernel.set_num_vfs(&pf, 1).unwrap();
    let vf = kernel.vf(&pf, 0).unwrap().address.unwrap();
    let driver = || kernel.vf(&pf, 0).unwrap().driver;
    assert_eq!(driver().as_deref(), Some("igbvf"));
    kernel.unbind(vf).unwrap();
    kernel.set_driver_override(vf, Some("vfio-pci")).unwrap();
    assert_eq!(driver(), None);
    kernel.probe(vf).unwrap();
    assert_eq!(driver().as_deref(), Some("vfio-pci"));
    kernel.unbind(vf).unwrap();
    kernel
        .set_driver_override(vf, Some("no-such-driver"))
        .unwrap();
    kernel.probe(vf).unwrap();
    assert_eq!(driver(), None);
    kernel.set_driver_override(vf, None).unwrap();
    kernel.probe(vf).unwrap();
    assert_eq!(driver().as_deref(), Some("igbvf"));
}

#[test]
fn a_cycle_wipes_what_was_set() {
    let (kernel, pf) = igb();
    kernel.set_num_vfs(&pf, 2).unwrap();
    let before = kernel.vf(&pf, 1).unwrap();
    let change = VfChange {
        mac: Some([2, 0, 0, 0, 0, 1]),
        vlan: Some(Vlan {
            id: 42,
            ..Vlan::default()
        }),
        trust: Some(true),
        ..VfChange::default()
    };
    kernel.set_vf(&pf, 1, &change).unwrap();
    assert_eq!(kernel.vf(&pf, 1).unwrap().settings.vlan.id, 42);
    kernel.set_num_vfs(&pf, 0).unwrap();
    kernel.set_num_vfs(&pf, 2).unwrap();
    assert_eq!(kernel.vf(&pf, 1).unwrap().settings, before.settings);
    assert!(
        kernel
            .writes()
            .contains(&"set_vf 0000:01:00.0#1 mac=02:00:00:00:00:01 vlan=42 trust=true".to_owned())
    );
}

#[test]
fn what_the_hardware_cannot_is_refused_and_what_came_before_it_stays() {
    let (kernel, pf) = igb();
    kernel.set_num_vfs(&pf, 1).unwrap();
    let rate = VfChange {
        mac: Some([2, 0, 0, 0, 0, 1]),
        rate: Some(Rate { min: 10, max: 100 }),
        ..VfChange::default()
    };
    assert_eq!(errno(kernel.set_vf(&pf, 0, &rate)), Some(libc::EINVAL));
    let settings = kernel.vf(&pf, 0).unwrap().settings;
    assert_eq!(
        (settings.mac, settings.rate),
        (Some([2, 0, 0, 0, 0, 1]), Rate::default())
    );
    let vlan = Vlan {
        id: 5,
        qos: 0,
        protocol: VlanProtocol::Dot1ad,
    };
    let vlan = VfChange {
        vlan: Some(vlan),
        ..VfChange::default()
    };
    assert_eq!(
        errno(kernel.set_vf(&pf, 0, &vlan)),
        Some(libc::EPROTONOSUPPORT)
    );
    assert_eq!(errno(kernel.set_vf(&pf, 1, &vlan)), Some(libc::EINVAL));
    assert_eq!(
        errno(kernel.set_eswitch(&pf, EswitchMode::Switchdev)),
        Some(libc::EOPNOTSUPP)
    );
}

#[test]
fn eswitch_rules_differ_by_driver() {
    let mlx5: Device = "0000:3b:00.0".parse().unwrap();
    let ice: Device = "0000:af:00.0".parse().unwrap();
    let kernel = FakeKernel::builder()
        .pf(FakePf::mlx5("0000:3b:00.0", "p0"))
        .pf(FakePf::ice("0000:af:00.0", "p1"))
        .build();
    for pf in [&mlx5, &ice] {
        kernel.set_num_vfs(pf, 1).unwrap();
    }
    let switchdev = |pf| kernel.set_eswitch(pf, EswitchMode::Switchdev);
    assert_eq!(errno(switchdev(&mlx5)), Some(libc::EBUSY));
    assert_eq!(errno(switchdev(&ice)), Some(libc::EOPNOTSUPP));
    kernel
        .unbind(kernel.vf(&mlx5, 0).unwrap().address.unwrap())
        .unwrap();
    switchdev(&mlx5).unwrap();
    kernel.set_num_vfs(&ice, 0).unwrap();
    switchdev(&ice).unwrap();
    assert_eq!(
        kernel.vf(&mlx5, 0).unwrap().representor.as_deref(),
        Some("p0_0")
    );
}

#[test]
fn a_held_vf_wedges_its_pf_until_it_is_let_go() {
    let (kernel, pf) = igb();
    kernel.set_num_vfs(&pf, 2).unwrap();
    kernel.hold(&pf, 1, "QEMU (pid 4711, guest=web-1)", true);
    assert_eq!(
        kernel.holders(&pf, 1).unwrap(),
        ["QEMU (pid 4711, guest=web-1)"]
    );
    let wedged = kernel.set_num_vfs(&pf, 0).unwrap_err();
    assert!(matches!(wedged, KernelError::Wedged { .. }), "{wedged}");
    assert!(matches!(
        kernel.set_mtu(&pf, 2000),
        Err(KernelError::Wedged { .. })
    ));
    assert!(
        kernel
            .wedged(&pf)
            .unwrap()
            .contains("set_num_vfs 0000:01:00.0 0")
    );
    assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 2);
    kernel.let_go(&pf, 1);
    assert_eq!(kernel.wedged(&pf), None);
    assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 0);
}

#[test]
fn a_death_happens_before_or_after_the_effect() {
    let (kernel, pf) = igb();
    for (fault, left) in [(Fault::KillBefore, 0), (Fault::KillAfter, 3)] {
        kernel.fail(Op::SetNumVfs, ADDRESS, 0, fault);
        let death = catch_unwind(AssertUnwindSafe(|| kernel.set_num_vfs(&pf, 3))).unwrap_err();
        assert!(death.is::<Killed>());
        assert_eq!(kernel.pf(&pf).unwrap().num_vfs, left);
    }
}

#[test]
fn partial_success_is_silent() {
    let (kernel, pf) = igb();
    kernel.fail(Op::SetNumVfs, ADDRESS, 0, Fault::Partial(2));
    kernel.set_num_vfs(&pf, 5).unwrap();
    assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 2);
    kernel.fail(Op::SetVf, "0000:01:00.0#0", 0, Fault::Partial(1));
    let change = VfChange {
        mac: Some([2, 0, 0, 0, 0, 9]),
        trust: Some(true),
        ..VfChange::default()
    };
    kernel.set_vf(&pf, 0, &change).unwrap();
    let settings = kernel.vf(&pf, 0).unwrap().settings;
    assert_eq!((settings.mac, settings.trust), (change.mac, Some(false)));
}

#[test]
fn a_reset_with_the_driver_bound_and_the_link_down_hangs() {
    let (kernel, pf) = igb();
    kernel.set_num_vfs(&pf, 1).unwrap();
    let vf = kernel.vf(&pf, 0).unwrap().address.unwrap();
    kernel.reset(vf).unwrap();
    kernel.set_up(&pf, false).unwrap();
    assert!(matches!(kernel.reset(vf), Err(KernelError::Wedged { .. })));
    kernel.unblock(&pf);
    kernel.unbind(vf).unwrap();
    kernel.reset(vf).unwrap();
}

#[test]
fn a_reboot_forgets_vfs_and_group_numbers() {
    let (kernel, pf) = igb();
    let before = kernel.boot_id().unwrap();
    kernel.set_num_vfs(&pf, 1).unwrap();
    let group = kernel.vf(&pf, 0).unwrap().iommu_group;
    kernel.reboot();
    assert_ne!(kernel.boot_id().unwrap(), before);
    assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 0);
    kernel.set_num_vfs(&pf, 1).unwrap();
    assert_ne!(kernel.vf(&pf, 0).unwrap().iommu_group, group);
    kernel.set_present(&pf, false);
    assert!(matches!(kernel.pf(&pf), Err(KernelError::Gone { .. })));
    kernel.set_present(&pf, true);
    assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 0);
}
