//! What goes wrong when the number of VFs, an MTU or the eswitch mode changes.

use super::*;

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
