//! What goes wrong between two owners of a VF.

use super::*;

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
