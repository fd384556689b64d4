//! What goes wrong when VFs or PFs are gone and come back.

use super::*;

#[test]
fn r11_no_iommu_group_number_is_kept() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    allocate(&manager, &request("a"));
    let group = |manager: &sriov_mgr::Manager| manager.vfs().unwrap()[0].state.iommu_group;
    let before = group(&manager).unwrap();
    assert!(!host.journal().contains("group"), "{}", host.journal());
    drop(manager);
    host.kernel.reboot();
    let manager = host.open();
    set(&manager, [pool("net", "net", 1)]);
    manager.reconcile().unwrap();
    assert_ne!(group(&manager).unwrap(), before);
}

#[test]
fn r13_vfs_that_vanish_are_made_again_and_known_to_be_others() {
    let host = Host::igb();
    let manager = host.partitioned(3);
    let before = allocate(&manager, &with_mac("a"));
    host.kernel.set_num_vfs_outside(&device(PF), 0);
    let events = manager.reconcile().unwrap();
    let gone = Event::VfsGone {
        pf: device(PF),
        count: 3,
    };
    assert!(events.contains(&gone), "{events:?}");
    let after = manager.allocations().remove(0);
    assert_eq!(after.vf, before.vf);
    assert!(
        after.identity.creation > before.identity.creation,
        "{after:?}"
    );
    assert_eq!(host.vf(&after.vf).settings.mac, Some(MAC));
    assert_eq!(manager.reconcile().unwrap(), []);
    // Others in their place are another owner's, and are left alone.
    host.kernel.set_num_vfs_outside(&device(PF), 0);
    host.kernel.set_num_vfs_outside(&device(PF), 5);
    let events = manager.reconcile().unwrap();
    assert!(matches!(events[0], Event::Drift { .. }), "{events:?}");
    assert_eq!(host.pf(&device(PF)).num_vfs, 5);
}

#[test]
fn r14_what_a_cycle_wipes_is_set_again() {
    let host = Host::igb();
    let manager = host.partitioned(2);
    let all = Request {
        trust: Some(true),
        spoofchk: Some(false),
        rate: Some(Rate { min: 0, max: 500 }),
        ..with_mac("a")
    };
    let allocation = allocate(&manager, &all);
    let before = host.vf(&allocation.vf);
    host.kernel.set_num_vfs_outside(&device(PF), 0);
    host.kernel.set_num_vfs_outside(&device(PF), 2);
    let events = manager.reconcile().unwrap();
    assert_eq!(
        host.vf(&allocation.vf).settings,
        before.settings,
        "{events:?}"
    );
    // Whoever made them anew had the kernel's driver bound to them.
    let virtual_machine = Request {
        driver: Some(VfDriver::Vfio),
        ..request("vm")
    };
    let given = allocate(&manager, &virtual_machine);
    assert_eq!(host.vf(&given.vf).driver.as_deref(), Some("vfio-pci"));
    host.kernel.set_autoprobe(&device(PF), true).unwrap();
    host.kernel.set_num_vfs_outside(&device(PF), 0);
    host.kernel.set_num_vfs_outside(&device(PF), 2);
    assert_eq!(host.vf(&given.vf).driver.as_deref(), Some("igbvf"));
    manager.reconcile().unwrap();
    assert_eq!(host.vf(&given.vf).driver.as_deref(), Some("vfio-pci"));
    set(&manager, [pool("more", "net", 4)]);
    applied(&manager, true);
    let after = host.vf(&allocation.vf);
    assert_eq!(after.settings, before.settings);
    assert_eq!(after.driver_override, before.driver_override);
}

#[test]
fn r16_a_pf_that_comes_back_gets_its_vfs_back() {
    for unbind in [true, false] {
        let host = Host::igb();
        let manager = host.partitioned(2);
        let allocation = allocate(&manager, &with_mac("a"));
        let pf = device(PF);
        if unbind {
            host.kernel.bind_pf(&pf, false);
            assert_eq!(
                manager.reconcile().unwrap(),
                [Event::DriverGone { pf: pf.clone() }]
            );
            host.kernel.bind_pf(&pf, true);
        } else {
            host.kernel.set_present(&pf, false);
            assert_eq!(
                manager.reconcile().unwrap(),
                [Event::PfGone { pf: pf.clone() }]
            );
            assert_eq!(manager.reconcile().unwrap(), []);
            host.kernel.set_present(&pf, true);
        }
        let events = manager.reconcile().unwrap();
        let made = Event::VfsMade { pf, count: 2 };
        assert!(events.contains(&made), "{events:?}");
        let vf = host.vf(&allocation.vf);
        assert_eq!(vf.settings.mac, Some(MAC));
        assert_eq!(vf.driver.as_deref(), Some("vfio-pci"));
    }
}
