//! The process dies at every step of every operation: after each journal record, and before and after each
//! write to the kernel; and again during the recovery. After the next start no VF is lost, leaked or handed out
//! twice.

mod support;

use sriov_mgr::kernel::EswitchMode;
use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use sriov_mgr::policy::{Policy, VfDriver};
use sriov_mgr::{CrashPoints, Manager, Options, Phase, Request};
use std::collections::BTreeSet;
use support::*;

const WRITES: [Op; 9] = [
    Op::SetAutoprobe,
    Op::SetNumVfs,
    Op::SetEswitch,
    Op::SetMtu,
    Op::SetUp,
    Op::SetVf,
    Op::Unbind,
    Op::SetDriverOverride,
    Op::Probe,
];

/// Where the process dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    AfterRecord(u64),
    At(Op, u32, Fault),
}

/// An operation, with what there is before it.
struct Case {
    name: &'static str,
    nic: fn() -> FakePf,
    /// The policy in force before; absent: nothing is partitioned.
    before: Option<Policy>,
    /// Owners that have a VF before.
    owners: &'static [&'static str],
    /// The policy in force after.
    policy: Policy,
    run: fn(&Manager),
}

fn igb() -> FakePf {
    FakePf::igb(PF, "eth0")
}

fn mlx5() -> FakePf {
    FakePf::mlx5(PF, "p0")
}

fn ice() -> FakePf {
    FakePf::ice(PF, "p0")
}

fn tagged(owner: &str) -> Request {
    Request {
        vlan: Some(vlan(42)),
        trust: Some(true),
        ..request(owner)
    }
}

fn in_mode(mode: EswitchMode, count: u32) -> Policy {
    Policy {
        eswitch: Some(mode),
        ..pool("p", "net", count)
    }
}

fn run_apply(manager: &Manager) {
    let _ = manager.apply(true, &|_| {});
}

fn cases() -> Vec<Case> {
    let larger = Policy {
        mtu: Some(9000),
        ..pool("p", "net", 3)
    };
    let case = |name, nic, before, owners, policy, run| Case {
        name,
        nic,
        before,
        owners,
        policy,
        run,
    };
    let (legacy, switchdev) = (EswitchMode::Legacy, EswitchMode::Switchdev);
    let two = || pool("p", "net", 2);
    vec![
        case("partition", igb, None, &[], larger.clone(), run_apply),
        case(
            "another count",
            igb,
            Some(two()),
            &["a", "b"],
            larger,
            run_apply,
        ),
        case(
            "fewer",
            igb,
            Some(pool("p", "net", 3)),
            &["a", "b", "c"],
            two(),
            run_apply,
        ),
        case(
            "none",
            igb,
            Some(two()),
            &[],
            pool("p", "net", 0),
            run_apply,
        ),
        case("reset", igb, Some(two()), &["a"], two(), |manager| {
            let _ = manager.reset(&device(PF), true);
        }),
        case("allocate", igb, Some(two()), &["a"], two(), |manager| {
            let _ = manager.allocate(&tagged("new"));
        }),
        case(
            "allocate for the kernel's driver",
            igb,
            Some(two()),
            &[],
            two(),
            |manager| {
                let driver = Some(VfDriver::Kernel);
                let _ = manager.allocate(&Request {
                    driver,
                    ..tagged("new")
                });
            },
        ),
        case("release", igb, Some(two()), &["a", "b"], two(), |manager| {
            let _ = manager.release("b", false);
        }),
        case(
            "mlx5 to switchdev",
            mlx5,
            Some(in_mode(legacy, 2)),
            &["a"],
            in_mode(switchdev, 2),
            run_apply,
        ),
        case(
            "mlx5 to legacy",
            mlx5,
            Some(in_mode(switchdev, 2)),
            &["a"],
            in_mode(legacy, 3),
            run_apply,
        ),
        case(
            "ice to switchdev",
            ice,
            Some(in_mode(legacy, 2)),
            &["a"],
            in_mode(switchdev, 2),
            run_apply,
        ),
    ]
}

/// The case up to its operation.
fn prepare(case: &Case) -> Host {
    let host = Host::new([(case.nic)()]);
    let manager = host.open();
    if let Some(policy) = &case.before {
        set(&manager, [policy.clone()]);
        applied(&manager, false);
    }
    for owner in case.owners {
        allocate(&manager, &tagged(owner));
    }
    host
}

fn arm(host: &Host, death: Death) -> Options {
    let mut options = host.options();
    match death {
        Death::AfterRecord(records) => options.crash = CrashPoints::panic_after(records),
        Death::At(op, skip, fault) => host.kernel.fail_any(op, skip, fault),
    }
    options
}

/// Runs the case to its death; whether it died.
fn run(case: &Case, host: &Host, death: Death) -> bool {
    let options = arm(host, death);
    let died = killed(|| {
        let (manager, _) = Manager::open(options).unwrap();
        set(&manager, [case.policy.clone()]);
        (case.run)(&manager);
    });
    host.kernel.clear_faults();
    died
}

/// What must be right after the next start.
fn check(case: &Case, host: &Host, death: &str) {
    let context = format!("{}, died {death}", case.name);
    let (manager, recovered) = host.reopen();
    assert_eq!(recovered.open, [""; 0], "{context}");
    let allocations = manager.allocations();
    let used: BTreeSet<u32> = allocations.iter().map(|a| a.vf.index).collect();
    assert_eq!(
        used.len(),
        allocations.len(),
        "{context}: one VF for two: {allocations:#?}"
    );
    for allocation in &allocations {
        assert_eq!(allocation.phase, Phase::InUse, "{context}");
        let vf = host.vf(&allocation.vf);
        let has = (
            vf.settings.mac.unwrap(),
            vf.settings.vlan.id,
            vf.driver.as_deref(),
        );
        let (mac, driver) = (allocation.settings.mac, allocation.driver.unwrap());
        let driver = match driver {
            VfDriver::Vfio => Some("vfio-pci"),
            VfDriver::Kernel => Some("igbvf"),
        };
        assert_eq!(has, (mac, 42, driver), "{context}: {allocation:?}");
    }
    let state = host.pf(&device(PF));
    assert!(state.autoprobe, "{context}: autoprobe is left off");
    for index in (0..state.num_vfs).filter(|index| !used.contains(index)) {
        let vf = host.vf(&vf(index));
        assert_eq!(
            vf.settings,
            host.clean(&support::vf(index)),
            "{context}: VF {index} is not clean"
        );
        assert_eq!(
            (vf.driver, vf.driver_override),
            (None, None),
            "{context}: VF {index}"
        );
    }
    // The operation can be done now, changes nothing the second time, and every VF can be handed out.
    set(&manager, [case.policy.clone()]);
    (case.run)(&manager);
    if case.name != "reset" {
        applied(&manager, true);
    }
    host.kernel.forget_calls();
    (case.run)(&manager);
    assert_eq!(host.kernel.writes(), [""; 0], "{context}: done twice");
    let state = host.pf(&device(PF));
    let free = state.num_vfs - manager.allocations().len() as u32;
    for n in 0..free {
        allocate(&manager, &request(&format!("rest/{n}")));
    }
    let pf = manager.pfs().unwrap().remove(0);
    assert_eq!(pf.allocated, state.num_vfs, "{context}");
}

/// Dies in every place, until it gets through.
fn sweep(case: &Case, deaths: &mut usize, places: impl Fn(u32) -> Death) {
    for n in 0.. {
        let death = places(n);
        let host = prepare(case);
        if !run(case, &host, death) {
            break;
        }
        check(case, &host, &format!("{death:?}"));
        *deaths += 1;
        // And in each place of the recovery too.
        for again in 1.. {
            let host = prepare(case);
            assert!(run(case, &host, death));
            let mut options = host.options();
            options.crash = CrashPoints::panic_after(again);
            if !killed(|| drop(Manager::open(options).unwrap())) {
                break;
            }
            check(
                case,
                &host,
                &format!("{death:?} and {again} records into the recovery"),
            );
            *deaths += 1;
        }
    }
}

#[test]
fn after_each_journal_record() {
    for case in cases() {
        let mut deaths = 0;
        sweep(&case, &mut deaths, |n| Death::AfterRecord(u64::from(n) + 1));
        println!("{}: {deaths} deaths", case.name);
        assert!(deaths >= 2, "{}: {deaths} deaths", case.name);
    }
}

#[test]
fn before_and_after_each_write_to_the_kernel() {
    for case in cases() {
        let mut deaths = 0;
        for op in WRITES.into_iter().chain([Op::Reset]) {
            for fault in [Fault::KillBefore, Fault::KillAfter] {
                sweep(&case, &mut deaths, |n| Death::At(op, n, fault));
            }
        }
        println!("{}: {deaths} deaths", case.name);
        assert!(deaths >= 2, "{}: {deaths} deaths", case.name);
    }
}
