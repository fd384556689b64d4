//! The order of writes that each driver gets, as the kernel records it.

mod support;

use sriov_mgr::kernel::EswitchMode;
use sriov_mgr::kernel::fake::FakePf;
use sriov_mgr::policy::{Policy, VfDefaults};
use support::*;

/// What is written to the kernel to get from one policy to the next. Addresses of VFs are their numbers.
fn written(nic: FakePf, policies: &[Policy]) -> Vec<Vec<String>> {
    let host = Host::new([nic]);
    let manager = host.open();
    let pf = sriov_mgr::kernel::Kernel::pfs(&*host.kernel)
        .unwrap()
        .remove(0);
    let mut all = Vec::new();
    for policy in policies {
        host.kernel.forget_calls();
        set(&manager, [policy.clone()]);
        applied(&manager, true);
        let vfs = sriov_mgr::kernel::Kernel::vfs(&*host.kernel, &pf).unwrap();
        let short = |mut write: String| {
            for vf in &vfs {
                if let Some(address) = vf.address {
                    write = write.replace(&address.to_string(), &format!("vf{}", vf.index));
                }
            }
            write.replace(&format!(" {pf}"), "")
        };
        all.push(host.kernel.writes().into_iter().map(short).collect());
    }
    all
}

fn to(count: u32, eswitch: Option<EswitchMode>) -> Policy {
    Policy {
        eswitch,
        pool: None,
        driver: None,
        ..pool("p", "", count)
    }
}

const LEGACY: Option<EswitchMode> = Some(EswitchMode::Legacy);
const SWITCHDEV: Option<EswitchMode> = Some(EswitchMode::Switchdev);

#[test]
fn igb_gets_its_vfs_in_one_write_and_another_count_through_zero() {
    let writes = written(
        FakePf::igb(PF, "eth0"),
        &[to(2, None), to(3, None), to(0, None)],
    );
    assert_eq!(writes[0], ["set_num_vfs 2"]);
    assert_eq!(writes[1], ["set_num_vfs 0", "set_num_vfs 3"]);
    assert_eq!(writes[2], ["set_num_vfs 0"]);
}

#[test]
fn vfs_of_pools_stay_without_a_driver_and_the_others_get_theirs() {
    let part = Policy {
        select: select("eth0#1-2"),
        ..pool("part", "net", 4)
    };
    let host = Host::igb();
    let manager = host.open();
    let rest = Policy {
        select: select("eth0#0"),
        priority: 60,
        defaults: VfDefaults {
            vlan: Some(7),
            ..VfDefaults::default()
        },
        ..Policy::default()
    };
    let rest = Policy {
        name: "rest".into(),
        ..rest
    };
    set(&manager, [part, rest]);
    applied(&manager, false);
    let expected = [
        "set_autoprobe 0000:01:00.0 false",
        "set_num_vfs 0000:01:00.0 4",
        "set_autoprobe 0000:01:00.0 true",
        "probe 0000:01:10.0",
        "probe 0000:01:10.6",
        "set_vf 0000:01:00.0#0 vlan=7",
    ];
    assert_eq!(host.kernel.writes(), expected);
    assert!(
        manager.plan().unwrap().is_empty(),
        "{}",
        manager.plan().unwrap()
    );
}

#[test]
fn mlx5_goes_to_switchdev_from_legacy_with_its_vfs_unbound() {
    let policies = [
        to(2, SWITCHDEV),
        to(3, SWITCHDEV),
        to(3, LEGACY),
        to(3, SWITCHDEV),
    ];
    let writes = written(FakePf::mlx5(PF, "p0"), &policies);
    let into = [
        "unbind vf0",
        "unbind vf1",
        "set_eswitch switchdev",
        "probe vf0",
        "probe vf1",
    ];
    assert_eq!(writes[0], [&["set_num_vfs 2"][..], &into].concat());
    let three = |mode| {
        let unbind = ["unbind vf0", "unbind vf1", "unbind vf2"];
        let probe = ["probe vf0", "probe vf1", "probe vf2"];
        [&unbind[..], &[mode], &probe].concat()
    };
    let count = ["set_num_vfs 0", "set_eswitch legacy", "set_num_vfs 3"];
    assert_eq!(
        writes[1],
        [&count[..], &three("set_eswitch switchdev")].concat()
    );
    assert_eq!(writes[2], three("set_eswitch legacy"));
    assert_eq!(writes[3], three("set_eswitch switchdev"));
}

#[test]
fn ice_changes_the_mode_without_vfs() {
    let policies = [
        to(2, LEGACY),
        to(2, SWITCHDEV),
        to(4, SWITCHDEV),
        to(4, LEGACY),
    ];
    let writes = written(FakePf::ice(PF, "p0"), &policies);
    assert_eq!(writes[0], ["set_num_vfs 2"]);
    assert_eq!(
        writes[1],
        ["set_num_vfs 0", "set_eswitch switchdev", "set_num_vfs 2"]
    );
    assert_eq!(writes[2], ["set_num_vfs 0", "set_num_vfs 4"]);
    assert_eq!(
        writes[3],
        ["set_num_vfs 0", "set_eswitch legacy", "set_num_vfs 4"]
    );
}

#[test]
fn netdevsim_has_no_functions_to_bind() {
    let policies = [to(8, SWITCHDEV), to(2, LEGACY)];
    let writes = written(FakePf::netdevsim(1, "eni1", 16), &policies);
    assert_eq!(writes[0], ["set_eswitch switchdev", "set_num_vfs 8"]);
    assert_eq!(
        writes[1],
        ["set_num_vfs 0", "set_eswitch legacy", "set_num_vfs 2"]
    );
}

/// A step that is refused is undone: the PF is as it was.
#[test]
fn what_does_not_work_is_undone() {
    use sriov_mgr::kernel::fake::{Fault, Op};
    let host = Host::igb();
    let manager = host.partitioned(2);
    host.kernel
        .fail(Op::SetNumVfs, PF, 1, Fault::Errno(libc::ENOMEM));
    set(&manager, [pool("more", "net", 4)]);
    let failed = apply(&manager, false);
    let why = &failed.failed[0].why;
    assert!(why.contains("it is as it was before"), "{why}");
    let state = host.pf(&device(PF));
    assert_eq!((state.num_vfs, state.autoprobe), (2, true));
    assert_eq!(allocate(&manager, &request("a")).vf, vf(0));
}
