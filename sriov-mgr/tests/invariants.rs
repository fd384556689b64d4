//! What holds whatever is asked in whatever order: no VF has two owners, what is free is clean, and the journal
//! says what the kernel says.

mod support;

use proptest::prelude::*;
use sriov_mgr::kernel::Kernel;
use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use sriov_mgr::manager::Error;
use sriov_mgr::{Allocation, Manager, Phase, Request, VfId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use support::*;

fn tagged(owner: &str) -> Request {
    Request {
        vlan: Some(vlan(42)),
        ..request(owner)
    }
}

/// Journal and kernel say the same. `settled`: no fault has struck since the last reconciliation.
fn check(host: &Host, manager: &Manager, settled: bool) {
    let allocations = manager.allocations();
    let vfs: BTreeSet<&VfId> = allocations.iter().map(|a| &a.vf).collect();
    assert_eq!(
        vfs.len(),
        allocations.len(),
        "one VF for two: {allocations:#?}"
    );
    let macs: BTreeSet<[u8; 6]> = allocations.iter().map(|a| a.settings.mac).collect();
    assert_eq!(
        macs.len(),
        allocations.len(),
        "one MAC for two: {allocations:#?}"
    );
    if !settled {
        return;
    }
    for allocation in &allocations {
        assert_eq!(allocation.phase, Phase::InUse);
        let vf = host.vf(&allocation.vf);
        assert_eq!(
            vf.settings.mac,
            Some(allocation.settings.mac),
            "{allocation:?}"
        );
        assert_eq!(vf.settings.vlan.id, 42, "{allocation:?}");
        assert_eq!(vf.driver.as_deref(), Some("vfio-pci"), "{allocation:?}");
    }
    for pf in host.kernel.pfs().unwrap() {
        for index in 0..host.pf(&pf).num_vfs {
            let id = VfId {
                pf: pf.clone(),
                index,
            };
            if !vfs.contains(&id) {
                let vf = host.vf(&id);
                assert_eq!(vf.settings, host.clean(&id), "{id} is free and not clean");
                // After a change that failed and was undone it may have the kernel's driver.
                assert_ne!(vf.driver.as_deref(), Some("vfio-pci"), "{id}");
                assert_eq!(vf.driver_override, None, "{id}");
            }
        }
    }
}

#[test]
fn eight_threads_never_have_the_same_vf() {
    let host = Host::two_igbs();
    let manager = host.partitioned(5);
    // What the threads believe to have, kept beside the journal.
    let held: Mutex<BTreeMap<VfId, String>> = Mutex::default();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (manager, held) = (manager.clone(), &held);
            scope.spawn(move || {
                for round in 0..40 {
                    let owner = format!("thread/{thread}");
                    let allocation = match manager.allocate(&tagged(&owner)) {
                        Ok(allocation) => allocation,
                        Err(Error::Exhausted(_)) => continue,
                        Err(error) => panic!("{}", chain(&error)),
                    };
                    let other = held
                        .lock()
                        .unwrap()
                        .insert(allocation.vf.clone(), owner.clone());
                    assert_eq!(other, None, "{} in round {round}", allocation.vf);
                    let again = manager.allocate(&tagged(&owner)).unwrap();
                    assert_eq!(again.vf, allocation.vf);
                    // Said before it is given back: whoever has it next is first to say so.
                    held.lock().unwrap().remove(&allocation.vf);
                    manager.release(&owner, false).unwrap();
                }
            });
        }
    });
    assert_eq!(manager.allocations(), []);
    check(&host, &manager, true);
    let before = host.journal();
    drop(manager);
    let (manager, recovered) = host.reopen();
    assert_eq!(recovered.done, [""; 0], "{before}");
    assert_eq!(manager.allocations(), []);
}

/// Something that is asked, or happens.
#[derive(Clone, Debug)]
enum Event {
    Allocate(u8),
    Release(u8),
    Apply(u32, bool),
    Reconcile,
    Reopen,
    Reboot,
    RemovePf(bool),
    VfsGone,
    Fault(Op, u32, Fault),
}

fn event() -> impl Strategy<Value = Event> {
    let op = prop::sample::select(vec![
        Op::SetAutoprobe,
        Op::SetNumVfs,
        Op::SetVf,
        Op::Unbind,
        Op::SetDriverOverride,
        Op::Probe,
        Op::Reset,
        Op::Vf,
        Op::Pf,
    ]);
    let fault = prop_oneof![
        prop::sample::select(vec![libc::EIO, libc::EBUSY, libc::EINVAL, libc::ENODEV])
            .prop_map(Fault::Errno),
        (0u32..3).prop_map(Fault::Partial),
        Just(Fault::KillBefore),
        Just(Fault::KillAfter),
    ];
    prop_oneof![
        6 => (0u8..5).prop_map(Event::Allocate),
        4 => (0u8..5).prop_map(Event::Release),
        2 => (0u32..5, any::<bool>()).prop_map(|(count, force)| Event::Apply(count, force)),
        2 => Just(Event::Reconcile),
        1 => Just(Event::Reopen),
        1 => Just(Event::Reboot),
        1 => any::<bool>().prop_map(Event::RemovePf),
        1 => Just(Event::VfsGone),
        4 => (op, 0u32..4, fault).prop_map(|(op, skip, fault)| Event::Fault(op, skip, fault)),
    ]
}

/// The manager, started again after each death.
struct Run {
    host: Host,
    manager: Option<Manager>,
    count: u32,
}

impl Run {
    fn start(&mut self) {
        self.manager = None;
        // A start that is killed is started again; faults are over then.
        let (host, count) = (&self.host, self.count);
        let mut opened = None;
        while killed(|| opened = Some(host.try_open())) || matches!(opened, Some(Err(_))) {
            host.kernel.clear_faults();
        }
        let manager = opened.unwrap().unwrap();
        host.kernel.clear_faults();
        set(&manager, [pool("p", "net", count)]);
        self.manager = Some(manager);
    }

    fn with_manager(&mut self, act: impl FnOnce(&Manager)) {
        let manager = self.manager.clone().unwrap();
        let died = killed(|| act(&manager));
        drop(manager);
        if died {
            self.start();
        }
    }

    fn happen(&mut self, event: &Event) {
        let pf = device(PF);
        match *event {
            Event::Allocate(n) => self.with_manager(|manager| {
                let _ = manager.allocate(&tagged(&format!("port/{n}")));
            }),
            Event::Release(n) => self.with_manager(|manager| {
                let _ = manager.release(&format!("port/{n}"), false);
            }),
            Event::Apply(count, force) => {
                self.count = count;
                self.with_manager(|manager| {
                    if manager.set_policies(vec![pool("p", "net", count)]).is_ok() {
                        let _ = manager.apply(force, &|_| {});
                    }
                });
            }
            Event::Reconcile => self.with_manager(|manager| {
                let _ = manager.reconcile();
            }),
            Event::Reopen => self.start(),
            Event::Reboot => {
                self.manager = None;
                self.host.kernel.reboot();
                self.start();
            }
            Event::RemovePf(present) => self.host.kernel.set_present(&pf, present),
            Event::VfsGone => self.host.kernel.set_num_vfs_outside(&pf, 0),
            Event::Fault(op, skip, fault) => self.host.kernel.fail_any(op, skip, fault),
        }
        let manager = self.manager.as_ref().unwrap();
        check(&self.host, manager, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_order_of_calls_and_faults(events in prop::collection::vec(event(), 1..25)) {
        let host = Host::new([FakePf::igb(PF, "eth0")]);
        let mut run = Run { host, manager: None, count: 3 };
        run.start();
        run.with_manager(|manager| {
            applied(manager, false);
        });
        for event in &events {
            run.happen(event);
        }
        // Whatever went wrong is over: two rounds later all is as it should be.
        run.host.kernel.clear_faults();
        let pf = device(PF);
        if run.host.kernel.pf(&pf).is_err() {
            run.host.kernel.set_present(&pf, true);
        }
        run.start();
        let manager = run.manager.clone().unwrap();
        for _ in 0..2 {
            manager.reconcile().unwrap();
        }
        applied(&manager, true);
        let left: Vec<Allocation> = manager.allocations();
        check(&run.host, &manager, true);
        let state = run.host.pf(&pf);
        prop_assert_eq!(state.num_vfs, run.count);
        prop_assert!(left.len() as u32 <= run.count);
        for n in left.len() as u32..run.count {
            allocate(&manager, &tagged(&format!("rest/{n}")));
        }
        for allocation in manager.allocations() {
            release(&manager, &allocation.owner);
        }
        check(&run.host, &manager, true);
    }
}
