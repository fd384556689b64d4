//! What goes wrong with SR-IOV in the field, case by case, on the fake kernel with the fault put in.

mod support;

use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use sriov_mgr::kernel::{EswitchMode, Kernel, Rate, VfChange, Vlan};
use sriov_mgr::manager::Error;
use sriov_mgr::policy::{Policy, VfDriver};
use sriov_mgr::{Event, Request, VfId};
use support::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x42];

fn with_mac(owner: &str) -> Request {
    Request {
        mac: Some(MAC),
        vlan: Some(vlan(42)),
        ..request(owner)
    }
}

fn mac_change() -> VfChange {
    VfChange {
        mac: Some(MAC),
        ..VfChange::default()
    }
}

#[test]
fn r01_removing_vfs_that_are_held_open_is_refused_or_wedges_only_its_pf() {
    let host = Host::two_igbs();
    let manager = host.partitioned(4);
    host.kernel.hold(&device(PF), 1, "QEMU (pid 4711)", true);
    let none = Policy {
        select: select("eth0"),
        ..pool("none", "net", 0)
    };
    let other = Policy {
        select: select("eth1"),
        ..pool("other", "net", 4)
    };
    set(&manager, [none, other]);
    host.kernel.forget_calls();
    let refused = apply(&manager, false);
    let why = &refused.refused[0].why;
    assert!(
        why.contains("QEMU (pid 4711)") && why.contains("force"),
        "{why}"
    );
    assert_eq!(host.kernel.writes(), [""; 0]);

    let failed = apply(&manager, true);
    assert!(failed.failed[0].why.contains("wedged"), "{failed:?}");
    let views = manager.pfs().unwrap();
    assert!(views[0].wedged.is_some() && views[1].wedged.is_none());
    // The wedged PF is refused without being touched; the other one works.
    host.kernel.forget_calls();
    assert!(apply(&manager, true).refused[0].why.contains("wedged"));
    assert_eq!(host.kernel.writes(), [""; 0]);
    assert_eq!(allocate(&manager, &request("a")).vf.pf, device(OTHER));
    // The holder ends, the kernel's call returns, and the change is finished.
    assert!(matches!(
        manager.reconcile().unwrap()[..],
        [Event::PfWedged { .. }]
    ));
    host.kernel.let_go(&device(PF), 1);
    let events = manager.reconcile().unwrap();
    assert!(
        events.contains(&Event::PfAnswers { pf: device(PF) }),
        "{events:?}"
    );
    assert_eq!(host.pf(&device(PF)).num_vfs, 0);
    assert!(manager.plan().unwrap().is_empty());
}

#[test]
fn r02_a_count_changes_through_zero_and_concurrent_writers_leave_one_state() {
    let host = Host::igb();
    let manager = host.partitioned(4);
    host.kernel.forget_calls();
    set(&manager, [pool("more", "net", 6)]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| applied(&manager, false));
        }
    });
    let counts: Vec<String> = host.kernel.writes();
    let counts: Vec<&String> = counts.iter().filter(|w| w.contains("num_vfs")).collect();
    assert_eq!(
        counts,
        ["set_num_vfs 0000:01:00.0 0", "set_num_vfs 0000:01:00.0 6"]
    );
    // Another program makes VFs between our two writes: they are not ours to remove.
    let other = Host::igb();
    let manager = other.open();
    set(&manager, [pool("p", "net", 3)]);
    let kernel = other.kernel.clone();
    let outcome = manager.apply(false, &|progress| {
        if progress.what == "Make 3 VFs" {
            kernel.set_num_vfs_outside(&device(PF), 5);
        }
    });
    let why = &outcome.unwrap().failed[0].why;
    assert!(why.contains("somebody else made 5 VFs"), "{why}");
    assert_eq!(other.pf(&device(PF)).num_vfs, 5);
    assert!(
        other.pf(&device(PF)).autoprobe,
        "what we had turned off for our VFs is as it was"
    );
    assert!(manager.plan().unwrap().refused[0].why.contains("adopt"));
}

#[test]
fn r03_vfs_whose_links_come_late_are_waited_for() {
    let host = Host::igb();
    host.kernel.change_pf(&device(PF), |nic| nic.late_links = 5);
    let manager = host.partitioned(2);
    let allocation = allocate(&manager, &request("a"));
    assert!(allocation.address.is_some());
    // Links that never come are an error, and what was made is taken away again.
    let never = Host::igb();
    never
        .kernel
        .change_pf(&device(PF), |nic| nic.late_links = u32::MAX);
    let manager = never.open();
    set(&manager, [pool("p", "net", 2)]);
    let why = &apply(&manager, false).failed[0].why;
    assert!(why.contains("sysfs does not show them"), "{why}");
    assert_eq!(never.pf(&device(PF)).num_vfs, 0);
}

#[test]
fn r04_a_driver_that_is_absent_for_a_moment_is_no_drift() {
    let host = Host::igb();
    let manager = host.partitioned(2);
    let allocation = allocate(&manager, &request("a"));
    drop(manager);
    let manager = host.patient();
    set(&manager, [pool("net", "net", 2)]);
    host.kernel
        .bind_vf_outside(&device(PF), allocation.vf.index, None);
    host.kernel.forget_calls();
    let kernel = host.kernel.clone();
    std::thread::scope(|scope| {
        let reconciling = scope.spawn(|| manager.reconcile().unwrap());
        // It has looked, and waits: now the driver comes back.
        while kernel
            .calls()
            .iter()
            .filter(|call| call.op == Op::Vf)
            .count()
            < 2
        {
            std::thread::yield_now();
        }
        kernel.bind_vf_outside(&device(PF), allocation.vf.index, Some("vfio-pci"));
        assert_eq!(reconciling.join().unwrap(), []);
    });
    assert_eq!(host.kernel.writes(), [""; 0]);
}

#[test]
fn r05_a_late_release_does_not_touch_the_next_owner() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let first = allocate(&manager, &request("first"));
    release(&manager, "first");
    let second = allocate(&manager, &with_mac("second"));
    assert_eq!(first.vf, second.vf);
    host.kernel.forget_calls();
    let late = release(&manager, "first");
    assert_eq!(late.vf, None);
    assert_eq!(host.kernel.writes(), [""; 0]);
    assert_eq!(host.vf(&second.vf).settings.mac, Some(MAC));
}

#[test]
fn r06_no_vlan_is_left_after_release() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let had = allocate(&manager, &with_mac("a"));
    assert_eq!(host.vf(&had.vf).settings.vlan, vlan(42));
    release(&manager, "a");
    assert_eq!(host.vf(&had.vf).settings, host.clean(&had.vf));
    // The kernel says yes and leaves the VLAN: the VF is kept back until it is clean.
    allocate(&manager, &with_mac("b"));
    host.kernel
        .fail_times(Op::SetVf, "0000:01:00.0#0", 0, 99, Fault::Partial(0));
    let error = manager.release("b", false).unwrap_err();
    assert!(matches!(error, Error::Unclean { .. }), "{error}");
    assert!(error.to_string().contains("VLAN 42 is there"), "{error}");
    assert!(matches!(
        manager.allocate(&request("c")),
        Err(Error::Exhausted(_))
    ));
    host.kernel.clear_faults();
    let events = manager.reconcile().unwrap();
    assert!(matches!(events[..], [Event::Freed { .. }]), "{events:?}");
    allocate(&manager, &request("c"));
    assert_eq!(host.vf(&had.vf).settings.vlan, Vlan::default());
}

#[test]
fn r07_a_mac_is_on_one_vf_of_the_host() {
    let host = Host::two_igbs();
    let manager = host.partitioned(2);
    allocate(&manager, &with_mac("a"));
    let error = manager.allocate(&with_mac("b")).unwrap_err().to_string();
    assert!(
        error.contains("02:00:00:00:00:42") && error.contains("(a)"),
        "{error}"
    );
    release(&manager, "a");
    // A teardown that was missed left it on a free VF of ours: it goes from there.
    let stale = VfId {
        pf: device(OTHER),
        index: 1,
    };
    let change = mac_change();
    host.kernel.set_vf_outside(&stale.pf, 1, &change);
    let given = allocate(&manager, &with_mac("b"));
    assert_ne!(given.vf, stale);
    assert_eq!(host.vf(&stale).settings.mac, Some([0; 6]));
    // On a VF that is not ours it stays, and the request is refused.
    release(&manager, "b");
    manager.disown(&stale.pf).unwrap();
    host.kernel.set_vf_outside(&stale.pf, 1, &change);
    let error = manager.allocate(&with_mac("c")).unwrap_err().to_string();
    assert!(error.contains("0000:02:00.0#1"), "{error}");
    assert_eq!(host.vf(&stale).settings.mac, Some(MAC));
}

#[test]
fn r08_a_vf_is_reset_before_somebody_else_has_it() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let first = allocate(&manager, &request("first"));
    assert_eq!(first.driver, Some(VfDriver::Vfio));
    host.kernel.forget_calls();
    release(&manager, "first");
    let writes = host.kernel.writes();
    let address = first.address.unwrap();
    assert!(at(&writes, "unbind") < at(&writes, &format!("reset {address}")));
    // A reset that fails keeps the VF back.
    allocate(&manager, &request("second"));
    host.kernel.fail_any(Op::Reset, 0, Fault::Errno(libc::EIO));
    assert!(matches!(
        manager.release("second", false),
        Err(Error::Unclean { .. })
    ));
    assert!(matches!(
        manager.allocate(&request("third")),
        Err(Error::Exhausted(_))
    ));
    manager.reconcile().unwrap();
    allocate(&manager, &request("third"));
    // VFs that others had before us are reset when they are first handed out.
    let adopted = Host::igb();
    adopted.kernel.set_num_vfs_outside(&device(PF), 1);
    let manager = adopted.open();
    manager.adopt(&device(PF)).unwrap();
    set(&manager, [pool("net", "net", 1)]);
    allocate(&manager, &request("a"));
    let writes = adopted.kernel.writes();
    assert!(at(&writes, "reset") < at(&writes, "set_vf"));
}

#[test]
fn r09_a_reset_never_meets_a_bound_driver() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let kernel_driver = Request {
        driver: Some(VfDriver::Kernel),
        ..request("a")
    };
    let allocation = allocate(&manager, &kernel_driver);
    assert_eq!(host.vf(&allocation.vf).driver.as_deref(), Some("igbvf"));
    // The fake hangs a reset of a bound VF whose PF is down, as the real one does.
    host.kernel.set_up(&device(PF), false).unwrap();
    release(&manager, "a");
    assert_eq!(host.kernel.wedged(&device(PF)), None);
}

#[test]
fn r10_vfs_in_a_namespace_are_not_cycled_unasked_and_come_back() {
    let host = Host::igb();
    let manager = host.partitioned(2);
    let allocation = allocate(&manager, &with_mac("vm/a"));
    let holder = "interface eth0v0 in network namespace blue";
    host.kernel.hold(&device(PF), 0, holder, false);
    set(&manager, [pool("more", "net", 3)]);
    let plan = manager.plan().unwrap();
    let disturbed: Vec<String> = plan.disturbs().iter().map(|d| d.holder.clone()).collect();
    assert_eq!(disturbed, [holder, "vm/a"]);
    assert!(
        plan.to_string().contains("disturbs vm/a (0000:01:00.0#0)"),
        "{plan}"
    );
    assert!(
        apply(&manager, false).refused[0]
            .why
            .contains("namespace blue")
    );
    assert_eq!(host.pf(&device(PF)).num_vfs, 2);
    let done = applied(&manager, true);
    assert_eq!(done.done[0].disturbed.len(), 2);
    let again = host.vf(&allocation.vf);
    assert_eq!(
        (again.settings.mac, again.settings.vlan),
        (Some(MAC), vlan(42))
    );
    assert_eq!(again.driver.as_deref(), Some("vfio-pci"));
}

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
fn r12_a_driver_switch_that_was_cut_off_leaves_no_trace() {
    let host = Host::igb();
    host.partitioned(2);
    let vf1 = host.vf(&vf(1)).address.unwrap();
    host.kernel
        .set_driver_override(vf1, Some("vfio-pci"))
        .unwrap();
    let (_manager, recovered) = host.reopen();
    assert!(
        recovered.done[0].contains("not only vfio-pci"),
        "{recovered:?}"
    );
    assert_eq!(host.vf(&vf(1)).driver_override, None);
    // On a PF that is not ours it stays.
    let other = Host::igb();
    other.kernel.set_num_vfs_outside(&device(PF), 1);
    let address = other.vf(&vf(0)).address.unwrap();
    other.kernel.bind_vf_outside(&device(PF), 0, None);
    other
        .kernel
        .set_driver_override(address, Some("vfio-pci"))
        .unwrap();
    other.open();
    assert_eq!(
        other.vf(&vf(0)).driver_override.as_deref(),
        Some("vfio-pci")
    );
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
fn r15_a_vf_has_its_mac_and_its_pf_is_up() {
    let host = Host::igb();
    host.kernel.set_up(&device(PF), false).unwrap();
    let manager = host.partitioned(1);
    assert!(host.pf(&device(PF)).up);
    let allocation = allocate(&manager, &request("a"));
    let mac = host.vf(&allocation.vf).settings.mac.unwrap();
    assert_eq!(mac, allocation.settings.mac);
    assert_eq!(mac[0] & 3, 2, "local and unicast: {mac:?}");
    release(&manager, "a");
    // Taken down by somebody later: said, and the MAC is still ours.
    host.kernel.set_up(&device(PF), false).unwrap();
    let allocation = allocate(&manager, &request("b"));
    assert!(
        allocation.notes[0].contains("eth0 of 0000:01:00.0 is down"),
        "{allocation:?}"
    );
    assert!(manager.pfs().unwrap()[0].problems[0].contains("no carrier"));
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

#[test]
fn r17_vlans_are_set_without_a_driver_and_no_link_is_bounced() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    host.kernel.forget_calls();
    let kernel_driver = Request {
        driver: Some(VfDriver::Kernel),
        ..with_mac("a")
    };
    allocate(&manager, &kernel_driver);
    release(&manager, "a");
    let writes = host.kernel.writes();
    assert!(
        !writes.iter().any(|write| write.starts_with("set_up")),
        "{writes:#?}"
    );
    let probe = at(&writes, "probe");
    let unbind = at(&writes, "unbind");
    for (position, _) in writes
        .iter()
        .enumerate()
        .filter(|(_, w)| w.contains("vlan="))
    {
        assert!(position < probe || position > unbind, "{writes:#?}");
    }
}

#[test]
fn r18_a_list_of_vfs_that_fits_no_message_is_read_one_by_one() {
    let host = Host::new([FakePf {
        total_vfs: 256,
        gives_at_most: 256,
        ..FakePf::igb(PF, "eth0")
    }]);
    let manager = host.partitioned(256);
    allocate(&manager, &with_mac("a"));
    host.kernel
        .fail_times(Op::Vfs, PF, 0, 9, Fault::Errno(libc::EMSGSIZE));
    let vfs = manager.vfs().unwrap();
    assert_eq!(vfs.len(), 256);
    assert_eq!(vfs[0].owner.as_deref(), Some("a"));
}

#[test]
fn r19_an_mtu_below_the_pfs_does_not_loop() {
    let host = Host::igb();
    host.kernel.set_mtu(&device(PF), 9000).unwrap();
    let manager = host.open();
    let small = Policy {
        mtu: Some(1500),
        ..pool("small", "net", 1)
    };
    set(&manager, [small]);
    for _ in 0..3 {
        let plan = manager.plan().unwrap();
        assert!(plan.notes[0].why.contains("keeps MTU 9000"), "{plan}");
        applied(&manager, false);
    }
    assert!(
        !host
            .kernel
            .writes()
            .iter()
            .skip(1)
            .any(|w| w.starts_with("set_mtu"))
    );
    assert_eq!(host.pf(&device(PF)).mtu, Some(9000));
    let large = Policy {
        mtu: Some(9216),
        ..pool("large", "net", 1)
    };
    set(&manager, [large]);
    applied(&manager, false);
    assert_eq!(host.pf(&device(PF)).mtu, Some(9216));
}

#[test]
fn r20_ebusy_is_tried_again_and_not_for_ever() {
    let host = Host::igb();
    host.kernel.set_up(&device(PF), false).unwrap();
    host.kernel
        .fail_times(Op::SetUp, PF, 0, 2, Fault::Errno(libc::EBUSY));
    let manager = host.partitioned(1);
    host.kernel
        .fail_times(Op::SetVf, "0000:01:00.0#0", 0, 2, Fault::Errno(libc::EBUSY));
    let allocation = allocate(&manager, &with_mac("a"));
    assert_eq!(host.vf(&allocation.vf).settings.mac, Some(MAC));
    release(&manager, "a");
    host.kernel.fail_times(
        Op::SetVf,
        "0000:01:00.0#0",
        0,
        100_000,
        Fault::Errno(libc::EBUSY),
    );
    let error = manager.allocate(&with_mac("b")).unwrap_err();
    assert!(
        matches!(&error, Error::Kernel(e) if e.errno() == Some(libc::EBUSY)),
        "{error}"
    );
    host.kernel.clear_faults();
    manager.reconcile().unwrap();
    allocate(&manager, &with_mac("b"));
}

#[test]
fn r21_leaving_switchdev_names_the_representors_and_needs_force() {
    for nic in [FakePf::mlx5(PF, "p0"), FakePf::ice(PF, "p0")] {
        let driver = nic.driver.clone();
        let host = Host::new([nic]);
        let manager = host.open();
        let mode = |mode| Policy {
            eswitch: Some(mode),
            ..pool("p", "net", 2)
        };
        set(&manager, [mode(EswitchMode::Switchdev)]);
        applied(&manager, false);
        set(&manager, [mode(EswitchMode::Legacy)]);
        let refused = apply(&manager, false);
        let why = &refused.refused[0].why;
        assert!(
            why.contains("representor p0_0 with its offload rules"),
            "{driver}: {why}"
        );
        assert_eq!(host.pf(&device(PF)).eswitch, Some(EswitchMode::Switchdev));
        applied(&manager, true);
        assert_eq!(host.pf(&device(PF)).eswitch, Some(EswitchMode::Legacy));
        assert_eq!(host.pf(&device(PF)).num_vfs, 2);
        let writes = host.kernel.writes();
        assert!(
            at(&writes, "set_eswitch 0000:01:00.0 switchdev")
                < at(&writes, "set_eswitch 0000:01:00.0 legacy")
        );
    }
}
