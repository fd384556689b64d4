//! What the manager refuses, and in which words; what it leaves alone; whom a request gets.

mod support;

use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use sriov_mgr::kernel::{Kernel, PfHealth, Rate, VfLinkState, Vlan};
use sriov_mgr::manager::Error;
use sriov_mgr::policy::{Policy, VfDriver};
use sriov_mgr::{AerCounts, Device, Event, Reporter, Request};
use support::*;

/// What the NIC does not have is skipped where nobody asked for it, and a sentence where somebody did.
#[test]
fn an_attribute_that_the_nic_lacks() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let ask = |change: &dyn Fn(&mut Request)| {
        let mut asked = request("a");
        change(&mut asked);
        let error = manager.allocate(&asked).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        assert_eq!(manager.allocations(), []);
        assert_eq!(host.vf(&vf(0)).settings, host.clean(&vf(0)));
        error.to_string()
    };
    let rate = ask(&|r| r.rate = Some(Rate { min: 10, max: 20 }));
    assert!(
        rate.contains("0000:01:00.0#0") && rate.contains("no smallest rate"),
        "{rate}"
    );
    let tag = |id| Vlan {
        protocol: sriov_mgr::kernel::VlanProtocol::Dot1ad,
        ..vlan(id)
    };
    assert!(ask(&|r| r.vlan = Some(tag(7))).contains("ask for 802.1q"));
    host.kernel
        .change_pf(&device(PF), |nic| nic.link_state = false);
    let asked = Request {
        link_state: Some(VfLinkState::Enable),
        ..request("a")
    };
    // igb does not report a link state at all: nothing to compare, and the kernel refuses to set it.
    let outcome = manager.allocate(&asked);
    assert!(matches!(outcome, Err(Error::Unsupported(_))), "{outcome:?}");
}

/// And who else is set up to change the PF is named.
#[test]
fn foreign_vfs_are_untouched_until_adopted() {
    let host = Host::igb();
    let pf: Device = device(PF);
    host.kernel.set_num_vfs_outside(&pf, 4);
    host.file(
        "etc/NetworkManager/system-connections/up.nmconnection",
        "[connection]\ninterface-name=eth0\n[sriov]\ntotal-vfs=4\n",
    );
    host.file(
        "etc/systemd/network/10-up.link",
        "[Match]\nOriginalName=en* eth?\n[Link]\nSR-IOVVirtualFunctions=4\n",
    );
    host.file("etc/sriov-operator/pci/0000:01:00.0", "{}");
    let manager = host.open();
    set(&manager, [pool("p", "net", 2)]);
    let plan = manager.plan().unwrap();
    assert!(
        plan.is_empty() && plan.refused[0].why.contains("did not make"),
        "{plan}"
    );
    let programs: Vec<&str> = plan.foreign.iter().map(|o| o.program.as_str()).collect();
    assert_eq!(
        programs,
        [
            "NetworkManager",
            "systemd-networkd",
            "sriov-network-operator"
        ]
    );
    assert!(!apply(&manager, true).complete());
    let named = Request {
        device: Some(sriov_mgr::VfChoice::Vf(vf(0))),
        ..Request::default()
    };
    let named = Request {
        owner: "a".into(),
        ..named
    };
    assert!(matches!(
        manager.allocate(&named),
        Err(Error::NotOurs { .. })
    ));
    assert!(matches!(
        manager.reset(&pf, true),
        Err(Error::NotOurs { .. })
    ));
    manager.reconcile().unwrap();
    assert_eq!(host.kernel.writes(), [""; 0]);
    manager.adopt(&pf).unwrap();
    applied(&manager, false);
    assert_eq!(host.pf(&pf).num_vfs, 2);
    manager.reset(&pf, false).unwrap();
    assert_eq!(host.pf(&pf).num_vfs, 4);
}

#[test]
fn a_request_gets_the_vf_that_suits_it_best() {
    let host = Host::new([
        FakePf::igb(PF, "eth0").on_node(0),
        FakePf::igb("0000:02:00.0", "eth1").on_node(1),
    ]);
    let manager = host.partitioned(2);
    let near = |owner: &str, node| Request {
        numa_node: Some(node),
        ..request(owner)
    };
    let first = allocate(&manager, &near("a", 1));
    assert_eq!(
        (first.vf.pf.clone(), &first.notes[..]),
        (device("0000:02:00.0"), &[][..])
    );
    let apart = Request {
        avoid_pfs: vec![first.vf.pf.clone()],
        ..near("b", 1)
    };
    let second = allocate(&manager, &apart);
    assert_eq!(second.vf.pf, device(PF));
    assert!(second.notes[0].contains("NUMA node 0, not 1"), "{second:?}");
    // The same again is the same; with other wishes it is refused.
    assert_eq!(allocate(&manager, &apart), second);
    let other = manager.allocate(&near("b", 0)).unwrap_err().to_string();
    assert!(other.contains("release it first"), "{other}");
    allocate(&manager, &request("c"));
    allocate(&manager, &request("d"));
    let none = manager.allocate(&request("e")).unwrap_err().to_string();
    assert!(
        none.contains("none of its 4") && none.contains("a has 0000:02:00.0#0"),
        "{none}"
    );
    let nowhere = Request {
        pool: Some("nowhere".into()),
        ..request("e")
    };
    let none = manager.allocate(&nowhere).unwrap_err().to_string();
    assert!(none.contains("pool \"nowhere\""), "{none}");
}

#[test]
fn a_vf_that_is_not_viable_is_not_bound_to_vfio_and_every_reason_is_said() {
    let host = Host::two_igbs();
    let manager = host.partitioned(1);
    let against = [
        "VF 0000:01:10.0 is in IOMMU group 12 with 0000:01:10.2, which is still bound to igbvf; unbind it or enable ACS",
        "VF 0000:01:10.0 cannot be reset",
    ];
    let obstacles = |pf: &str, said: &[&str]| {
        let said = said.iter().map(|text| (*text).to_owned()).collect();
        host.kernel
            .change_pf(&device(pf), |nic| nic.vfio_obstacles = said);
    };
    // There is another VF without them.
    obstacles(PF, &against);
    host.kernel.forget_calls();
    assert_eq!(allocate(&manager, &request("a")).vf.pf, device(OTHER));
    let error = manager.allocate(&request("b")).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    for said in against.iter().chain(&["0000:01:00.0#0"]) {
        assert!(error.to_string().contains(said), "{said} in {error}");
    }
    let touched: Vec<String> = host.kernel.writes();
    assert!(
        !touched.iter().any(|write| write.contains("0000:01:")),
        "{touched:?}"
    );
    // Without vfio-pci the group is of no importance.
    let bare = Request {
        driver: Some(VfDriver::Kernel),
        ..request("b")
    };
    assert_eq!(allocate(&manager, &bare).vf.pf, device(PF));

    // A VF that was made anew is asked about anew.
    obstacles(OTHER, &against[..1]);
    host.kernel.bind_pf(&device(OTHER), false);
    host.kernel.bind_pf(&device(OTHER), true);
    let events = manager.reconcile().unwrap();
    let said = |event: &Event| match event {
        Event::Failed { why, .. } => why.contains("cannot be given to vfio-pci: VF 0000:01:10.0"),
        _ => false,
    };
    assert!(events.iter().any(said), "{events:?}");
    let driver = || host.kernel.vf(&device(OTHER), 0).unwrap().driver;
    assert_eq!(driver(), None);
    obstacles(OTHER, &[]);
    manager.reconcile().unwrap();
    assert_eq!(driver().as_deref(), Some("vfio-pci"));
}

#[test]
fn a_nic_that_counts_errors_raises_an_event() {
    let host = Host::two_igbs();
    let manager = host.partitioned(1);
    let heard = manager.subscribe();
    assert_eq!(manager.reconcile().unwrap(), []);
    // Also one that nobody has partitioned.
    set(&manager, []);
    let ill = PfHealth {
        aer: Some(AerCounts::default()),
        reporters: vec![Reporter {
            name: "fw".into(),
            healthy: false,
            errors: 1,
            recoveries: 0,
        }],
    };
    let state = |health: PfHealth| {
        host.kernel
            .change_pf(&device(OTHER), |nic| nic.health = health);
        manager.reconcile().unwrap()
    };
    let events = state(ill.clone());
    assert!(
        matches!(&events[..], [Event::Health { pf, what }] if *pf == device(OTHER) && what.contains("fw is not well")),
        "{events:?}"
    );
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), events);
    assert_eq!(state(ill.clone()), [], "each thing is said once");
    let aer = Some(AerCounts {
        fatal: 1,
        ..AerCounts::default()
    });
    let events = state(PfHealth { aer, ..ill.clone() });
    assert!(
        matches!(&events[..], [Event::Health { what, .. }] if what.contains("1 fatal")),
        "{events:?}"
    );
    // One that cannot be asked keeps nobody from the rest.
    host.kernel.fail(Op::Health, PF, 0, Fault::Errno(5));
    assert!(matches!(state(PfHealth::default())[..], []));
    let events = state(ill);
    assert!(matches!(events[..], [Event::Health { .. }]), "{events:?}");
}

#[test]
fn nonsense_is_refused_before_anything_is_done() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    host.kernel.forget_calls();
    let bad = |change: &dyn Fn(&mut Request)| {
        let mut bad = request("a");
        change(&mut bad);
        let error = manager.allocate(&bad).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    };
    bad(&|r| r.owner = String::new());
    bad(&|r| r.owner = "a\nb".into());
    bad(&|r| r.owner = "a".repeat(257));
    bad(&|r| r.mac = Some([1, 0, 0, 0, 0, 0]));
    bad(&|r| r.mac = Some([0; 6]));
    bad(&|r| r.vlan = Some(vlan(4095)));
    bad(&|r| r.rate = Some(Rate { min: 2, max: 1 }));
    assert_eq!(host.kernel.writes(), [""; 0]);
}

#[test]
fn a_policy_for_a_nic_without_sriov_is_refused_and_one_for_no_nic_is_warned_of() {
    let host = Host::new([FakePf::igb(PF, "eth0"), FakePf::plain(OTHER, "eth2")]);
    let manager = host.open();
    let of = |name: &str| Policy {
        select: select(name),
        ..pool("p", "net", 2)
    };
    let refused = manager.set_policies(vec![of("eth2")]).unwrap_err();
    let refused = refused[0].to_string();
    for word in ["\"p\"", "0000:02:00.0 (eth2)", "no SR-IOV", "take it out"] {
        assert!(refused.contains(word), "{word} in {refused}");
    }
    set(&manager, [of("eth9")]);
    let plan = manager.plan().unwrap();
    assert!(plan.is_empty() && plan.refused.is_empty(), "{plan}");
    let said = &plan.warnings[0].why;
    assert!(said.contains("\"p\"") && said.contains("eth9"), "{said}");
    let outcome = applied(&manager, false);
    assert_eq!(outcome.warnings, plan.warnings);
    assert_eq!(manager.warnings().unwrap(), plan.warnings);

    // It comes, and cannot have VFs.
    host.kernel
        .change_pf(&device(OTHER), |nic| nic.interface = "eth9".into());
    let plan = manager.plan().unwrap();
    assert_eq!(plan.warnings, []);
    assert_eq!(plan.refused[0].device, Some(device(OTHER)));
    assert!(!apply(&manager, false).complete());
    assert_eq!(host.kernel.writes(), [""; 0]);
}

#[test]
fn partial_success_is_said() {
    let host = Host::igb();
    host.kernel
        .change_pf(&device(PF), |nic| nic.gives_at_most = 3);
    let manager = host.open();
    set(&manager, [pool("p", "net", 5)]);
    let why = &apply(&manager, false).failed[0].why;
    assert!(
        why.contains("5 VFs were asked for, and the kernel made 3"),
        "{why}"
    );
    // What there is can be used.
    allocate(&manager, &request("a"));
    let too_many = manager.set_policies(vec![pool("p", "net", 8)]).unwrap_err();
    assert!(too_many[0].why.contains("its limit is 7"), "{too_many:?}");
}

#[test]
fn a_vf_in_use_is_released_only_by_force() {
    let host = Host::igb();
    let manager = host.partitioned(1);
    let allocation = allocate(&manager, &request("vm/web"));
    host.kernel.hold(&device(PF), 0, "QEMU (pid 9)", false);
    let error = manager.release("vm/web", false).unwrap_err();
    assert!(
        error.to_string().contains("QEMU (pid 9) (0000:01:00.0#0)"),
        "{error}"
    );
    assert_eq!(manager.allocations(), [allocation]);
    let released = manager.release("vm/web", true).unwrap();
    assert!(
        released.notes[0].contains("QEMU (pid 9) still used it"),
        "{released:?}"
    );
    // A free VF that somebody holds is not handed out.
    let error = manager.allocate(&request("b")).unwrap_err().to_string();
    assert!(error.contains("in use by QEMU (pid 9)"), "{error}");
}

#[test]
fn vfs_of_an_external_pf_are_used_and_its_count_is_not() {
    let host = Host::igb();
    host.kernel.set_num_vfs_outside(&device(PF), 2);
    let manager = host.open();
    let external = Policy {
        num_vfs: None,
        external: true,
        ..pool("theirs", "net", 0)
    };
    set(&manager, [external]);
    assert!(manager.plan().unwrap().is_empty());
    let allocation = allocate(&manager, &request("a"));
    assert!(allocation.was_bound);
    release(&manager, "a");
    // It has the kernel's driver again, as it had.
    assert_eq!(host.vf(&allocation.vf).driver.as_deref(), Some("igbvf"));
    assert!(
        !host
            .kernel
            .writes()
            .iter()
            .any(|w| w.starts_with("set_num_vfs"))
    );
    assert!(matches!(
        manager.reset(&device(PF), true),
        Err(Error::NotOurs { .. })
    ));
}

#[test]
fn fewer_vfs_end_the_use_of_those_beyond_and_no_other() {
    let host = Host::igb();
    let manager = host.partitioned(3);
    for owner in ["a", "b", "c"] {
        allocate(&manager, &request(owner));
    }
    set(&manager, [pool("fewer", "net", 2)]);
    let done = applied(&manager, true);
    assert_eq!(done.done[0].lost[0].holder, "c");
    let owners: Vec<String> = manager.allocations().into_iter().map(|a| a.owner).collect();
    assert_eq!(owners, ["a", "b"]);
    assert!(manager.disown(&device(PF)).is_err());
}

#[test]
fn one_process_has_the_journal() {
    let host = Host::igb();
    let _manager = host.open();
    let error = sriov_mgr::Manager::open(host.options()).err().unwrap();
    assert!(
        chain(&error).contains("in use by another process"),
        "{}",
        chain(&error)
    );
}
