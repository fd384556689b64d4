//! Emulated machines: one that works, on which tests leave what only a NIC can have left, and one that does
//! not boot in its time.

use crate::{expect, row, run};
use hw_tests::lab::context::Context;
use hw_tests::lab::restore::restore;
use hw_tests::lab::results::Status;
use hw_tests::lab::snapshot::Snapshot;
use hw_tests::lab::suite::{Outcome, Suite, Test, check, same};
use hw_tests::lab::{Need, Unit};

const NIC: Suite = Suite {
    name: "nic",
    about: "What tests do to a NIC is undone",
    tests: &[
        Test::new(
            "leaves_vfs",
            "VFs with attributes and another driver are left",
            leaves_vfs,
        )
        .needs(&[Need::Root, Need::Vfs(3), Need::Vfio])
        .limit(120),
        Test::new(
            "comes_back",
            "VFs that a host had before come back with all that they had",
            comes_back,
        )
        .needs(&[Need::Root, Need::Vfs(5), Need::Vfio])
        .limit(240),
        Test::new(
            "leaves_a_switch",
            "a netdevsim device in switchdev mode is left",
            leaves_a_switch,
        )
        .needs(&[Need::Netdevsim])
        .limit(120),
        Test::new("hangs", "a command without an end is ended inside", |lab| {
            lab.exec(&["sleep", "1000"])?;
            Ok(())
        })
        .limit(3),
        Test::new("is_as_before", "the NIC is as it was", is_as_before).needs(&[Need::PciPfs(1)]),
        Test::new(
            "kills_the_machine",
            "the machine is gone in the middle of a test",
            |lab| {
                lab.shell("echo o > /proc/sysrq-trigger; sleep 100")?;
                Ok(())
            },
        )
        .limit(60),
        Test::new(
            "on_a_new_one",
            "the tests after that run on a machine that was booted anew",
            is_as_before,
        )
        .needs(&[Need::PciPfs(1)]),
    ],
};

fn leaves_vfs(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let (sysfs, link) = (pf.sysfs(), &pf.interface);
    lab.shell_ok(&format!("echo 3 > {sysfs}/sriov_numvfs"))?;
    lab.ok(&[
        "ip", "link", "set", link, "mtu", "1400", "vf", "1", "vlan", "7",
    ])?;
    lab.shell_ok(&format!(
        "modprobe vfio-pci; v=$(basename $(readlink {sysfs}/virtfn2)); echo vfio-pci > /sys/bus/pci/devices/$v/driver_override
        [ -e /sys/bus/pci/devices/$v/driver ] && echo $v > /sys/bus/pci/devices/$v/driver/unbind; echo $v > /sys/bus/pci/drivers_probe"
    ))?;
    lab.measure("vfs", 3.0, Unit::Count);
    Ok(())
}

/// The state of a host whose owner has VFs in use; then a test that does with them what it likes.
fn comes_back(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let (sysfs, link) = (pf.sysfs(), &pf.interface);
    lab.shell_ok(&format!(
        "set -e
        echo 3 > {sysfs}/sriov_numvfs
        ip link set {link} up mtu 1400
        ip link set {link} vf 0 mac 02:fe:00:00:00:0a vlan 7 qos 3
        ip link set {link} vf 1 spoofchk off
        ip link set {link} vf 1 trust on
        modprobe vfio-pci
        v=$(basename $(readlink {sysfs}/virtfn2)); cd /sys/bus/pci/devices/$v
        echo vfio-pci > driver_override; [ ! -e driver ] || echo $v > driver/unbind
        echo $v > /sys/bus/pci/drivers_probe"
    ))?;
    let before = Snapshot::take(lab.target())?;
    for (object, property, value) in [
        (pf.address.clone(), "sriov_numvfs", "3"),
        (format!("VF 1 of {}", pf.address), "trust", "true"),
        (format!("VF 2 of {}", pf.address), "driver", "vfio-pci"),
    ] {
        same(property, before.get(&object, property), Some(value))?;
    }
    let vf = format!("ip link set {link} vf");
    for spoiled in [
        format!("echo 0 > {sysfs}/sriov_numvfs; ip link set {link} down mtu 1500"),
        format!("echo 0 > {sysfs}/sriov_numvfs; echo 5 > {sysfs}/sriov_numvfs; {vf} 4 vlan 9"),
        format!("{vf} 0 vlan 0 && {vf} 0 mac 02:fe:00:00:00:0b && {vf} 1 trust off spoofchk on"),
    ] {
        lab.shell_ok(&spoiled)?;
        let after = Snapshot::take(lab.target())?;
        check(before != after, format!("Nothing changed by {spoiled}"))?;
        let left = restore(lab.target(), &before)?;
        check(left.is_empty(), format!("After {spoiled}: {left:?}"))?;
    }
    lab.shell_ok(&format!(
        "echo 0 > {sysfs}/sriov_numvfs; ip link set {link} mtu 1500 down"
    ))?;
    Ok(())
}

fn leaves_a_switch(lab: &Context) -> Outcome {
    lab.shell_ok(
        "set -e
        modprobe netdevsim
        echo '5 2 1' > /sys/bus/netdevsim/new_device
        echo 4 > /sys/bus/netdevsim/devices/netdevsim5/sriov_numvfs
        devlink dev eswitch set netdevsim/netdevsim5 mode switchdev",
    )?;
    Ok(())
}

fn is_as_before(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    same(
        "the VF count",
        lab.read(&format!("{}/sriov_numvfs", pf.sysfs()))?.as_str(),
        "0",
    )?;
    let left = lab.shell("ls /sys/bus/netdevsim/devices 2>/dev/null")?;
    same("what netdevsim has", left.stdout.as_str(), "")?;
    same(
        "the MTU",
        lab.read(&format!("/sys/class/net/{}/mtu", pf.interface))?
            .as_str(),
        "1500",
    )
}

#[test]
fn what_tests_leave_on_an_emulated_nic_is_undone_and_a_lost_machine_is_booted_anew() {
    let inventory =
        "[[target]]\nname = 'igb'\nkind = 'emulated'\nflavour = 'igb'\nmemory_mb = 1024\n";
    let report = run(inventory, &NIC);
    expect(&report, "ready", Status::Passed, "");
    expect(
        &report,
        "leaves_vfs",
        Status::Failed,
        "It left the target changed",
    );
    let changes = row(&report, "leaves_vfs").changes.join("\n");
    for what in [
        "sriov_numvfs was 0, is 3",
        "mtu was 1500, is 1400",
        "VF 2 of",
        "vfio-pci",
    ] {
        assert!(changes.contains(what), "{what} is not in {changes}");
    }
    expect(&report, "comes_back", Status::Passed, "");
    let switch = "netdevsim: netdevsim5 is there";
    expect(&report, "leaves_a_switch", Status::Failed, switch);
    expect(&report, "hangs", Status::Error, "did not end within 3 s");
    expect(&report, "is_as_before", Status::Passed, "");
    expect(&report, "kills_the_machine", Status::Error, "");
    expect(&report, "on_a_new_one", Status::Passed, "");
    let facts = report.targets[0].facts.as_ref().unwrap();
    assert_eq!(facts.platform.word(), "emulated");
    let pf = facts.pfs().next().unwrap();
    assert_eq!((pf.driver.as_str(), pf.total_vfs), ("igb", 7));
}

#[test]
fn a_machine_that_does_not_boot_in_its_time_is_an_error_row() {
    let inventory =
        "[[target]]\nname = 'igb'\nkind = 'emulated'\nflavour = 'igb'\nlimits = { ready_s = 1 }\n";
    let report = run(inventory, &NIC);
    expect(
        &report,
        "ready",
        Status::Error,
        "The emulated machine did not boot",
    );
    expect(&report, "is_as_before", Status::Error, "Not run");
}
