//! NICs that fail, go, or are others at the moment at which the manager looks: the others go on, and nothing is
//! left behind for good.

mod support;

use sriov_mgr::Event;
use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use support::*;

const EIO: i32 = 5;

#[test]
fn a_nic_that_fails_while_the_manager_starts_does_not_keep_it_closed() {
    let host = Host::two_igbs();
    let manager = host.partitioned(2);
    let had = allocate(&manager, &request("a"));
    drop(manager);
    for op in [Op::Vfs, Op::Pf] {
        host.kernel.fail(op, PF, 0, Fault::Errno(EIO));
        let manager = host.open();
        assert_eq!(manager.allocations(), std::slice::from_ref(&had));
        host.kernel.clear_faults();
    }
    host.kernel.fail(Op::Vfs, PF, 0, Fault::Errno(EIO));
    let (_manager, recovered) = host.reopen();
    assert!(recovered.open[0].contains(PF), "{recovered:?}");
}

#[test]
fn a_nic_that_fails_is_named_and_the_others_go_on() {
    let host = Host::two_igbs();
    let manager = host.partitioned(2);
    set(&manager, [pool("more", "net", 3)]);
    host.kernel.fail(Op::Vfs, PF, 0, Fault::Errno(EIO));
    let plan = manager.plan().unwrap();
    assert_eq!(plan.refused[0].device, Some(device(PF)), "{plan}");
    assert!(plan.steps.iter().all(|step| step.device == device(OTHER)));
    assert!(!plan.steps.is_empty(), "{plan}");

    host.kernel.clear_faults();
    host.kernel
        .fail_times(Op::Pf, PF, 0, u32::MAX, Fault::Errno(EIO));
    assert_eq!(allocate(&manager, &request("a")).vf.pf, device(OTHER));
    assert_eq!(manager.pfs().unwrap().len(), 1);
    assert!(
        manager
            .vfs()
            .unwrap()
            .iter()
            .all(|vf| vf.id.pf == device(OTHER))
    );
    let events = manager.reconcile().unwrap();
    assert!(
        matches!(&events[..], [Event::Failed { pf, .. }] if *pf == device(PF)),
        "{events:?}"
    );
    // Where none answers there is no list to give.
    host.kernel
        .fail_times(Op::Pf, OTHER, 0, u32::MAX, Fault::Errno(EIO));
    assert!(manager.pfs().is_err());
}

/// Killed while a VF was made ready, and the VF cannot be read at the next start.
#[test]
fn what_a_start_could_not_undo_is_undone_later() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    host.kernel
        .fail(Op::SetVf, "0000:01:00.0#0", 0, Fault::KillAfter);
    assert!(killed(|| {
        let _ = manager.allocate(&request("a"));
    }));
    drop(manager);
    host.kernel
        .fail(Op::Vf, "0000:01:00.0#0", 0, Fault::Errno(EIO));
    let (manager, recovered) = host.reopen();
    assert!(recovered.open[0].contains("kept back"), "{recovered:?}");
    assert_eq!(manager.allocations().len(), 1);
    host.kernel.clear_faults();
    let events = manager.reconcile().unwrap();
    assert!(matches!(events[..], [Event::Freed { .. }]), "{events:?}");
    assert_eq!(manager.allocations(), []);
    assert_eq!(host.vf(&vf(0)).settings, host.clean(&vf(0)));
}

/// Killed there, and somebody has taken the VF before the next start.
#[test]
fn what_somebody_has_at_a_start_is_taken_back_when_they_let_go() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    host.kernel
        .fail(Op::SetVf, "0000:01:00.0#0", 0, Fault::KillAfter);
    assert!(killed(|| {
        let _ = manager.allocate(&request("a"));
    }));
    drop(manager);
    host.kernel.hold(&device(PF), 0, "testpmd (pid 9)", true);
    let (manager, recovered) = host.reopen();
    assert!(
        recovered.open[0].contains("testpmd (pid 9)"),
        "{recovered:?}"
    );
    host.kernel.let_go(&device(PF), 0);
    manager.reconcile().unwrap();
    assert_eq!(manager.allocations(), []);
}

#[test]
fn a_vf_that_cannot_be_looked_at_when_it_is_given_back_is_cleaned_later() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    allocate(&manager, &request("a"));
    host.kernel
        .fail(Op::Vf, "0000:01:00.0#0", 0, Fault::Errno(EIO));
    assert!(manager.release("a", false).is_err());
    host.kernel.clear_faults();
    let events = manager.reconcile().unwrap();
    assert!(matches!(events[..], [Event::Freed { .. }]), "{events:?}");
}

#[test]
fn who_is_disturbed_on_a_full_nic_is_a_sentence_of_some_length() {
    let host = Host::new([FakePf::ice(PF, "p0")]);
    let manager = host.partitioned(64);
    for n in 0..64 {
        allocate(&manager, &request(&format!("port/{n:036}")));
    }
    let full = manager.allocate(&request("one more")).unwrap_err();
    let reset = manager.reset(&device(PF), false).unwrap_err();
    for (error, more) in [(full, 56), (reset, 56)] {
        let said = error.to_string();
        assert!(said.contains(&format!("and {more} more")), "{said}");
        assert!(said.len() < 1000, "{said}");
    }
    set(&manager, [pool("fewer", "net", 63)]);
    assert_eq!(manager.plan().unwrap().disturbs().len(), 64);
}

/// A card was added, and at the next start another NIC has the address of one that had VFs.
#[test]
fn another_nic_at_an_address_is_not_partitioned_for_the_sake_of_the_one_that_was_there() {
    let host = Host::igb();
    drop(host.partitioned(2));
    host.kernel.reboot();
    host.kernel.change_pf(&device(PF), |nic| {
        (nic.vendor, nic.device_id) = (0x15b3, 0x101d)
    });
    let manager = host.open();
    host.kernel.forget_calls();
    let events = manager.reconcile().unwrap();
    assert_eq!(host.kernel.writes(), [""; 0]);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Failed { why, .. } if why.contains("another NIC"))),
        "{events:?}"
    );
    // What is said to do helps.
    set(&manager, [pool("p", "net", 2)]);
    applied(&manager, false);
    assert_eq!(host.pf(&device(PF)).num_vfs, 2);
}
