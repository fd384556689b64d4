//! What goes wrong between two owners of a VF, seen in the field: R4 to R9, R12, R15, R17, R20. The same cases
//! with faults that no machine of the lab has are `sriov-mgr/tests/field_cases`.

use super::agent_there::AgentThere;
use super::raw::{self, MENDS, Registers};
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, check, same};
use std::time::Duration;

const MAC: &str = "02:00:00:00:00:42";

fn put(lab: &Context, path: &str, text: &str) -> Outcome {
    let done = lab.write(path, text)?;
    check(
        done.ok(),
        format!("{path} does not take \"{text}\": {}", done.said()),
    )
}

/// A VF whose driver is away for a moment is left alone; one whose driver stays away gets it again.
pub(super) fn r04(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/a", &["--driver", "vfio"])?;
    let driver = "/sys/bus/pci/drivers/vfio-pci";
    let restored = |log: &str| log.matches("has again").count();
    // What the agent would see if it looked at this moment, and it is made to look.
    lab.shell_ok(&format!(
        "echo {0} > {driver}/unbind; echo add > /sys/bus/pci/devices/{0}/uevent; sleep 2; echo {0} > {driver}/bind",
        vf.address
    ))?;
    std::thread::sleep(Duration::from_secs(8).min(lab.left()));
    same("how often the VF was mended", restored(&agent.log()?), 0)?;
    same(
        "the driver",
        raw::driver(lab, &vf.address)?.as_str(),
        "vfio-pci",
    )?;
    put(lab, &format!("{driver}/unbind"), &vf.address)?;
    lab.wait_for("That the driver is bound again", MENDS, || {
        Ok((raw::driver(lab, &vf.address)? == "vfio-pci").then_some(()))
    })?;
    lab.wait_for("That this was told", MENDS, || {
        Ok((restored(&agent.log()?) == 1).then_some(()))
    })?;
    agent.release("cli/a")?;
    agent.end()
}

/// A release that comes too late finds nobody, and leaves the VF's next owner alone.
pub(super) fn r05(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 1)?;
    let first = agent.allocate("cli/first", &["--driver", "vfio"])?;
    agent.release("cli/first")?;
    let asked = ["--driver", "vfio", "--mac", MAC, "--vlan", "42"];
    let second = agent.allocate("cli/second", &asked)?;
    same("the VF of the second", second.vf.as_str(), &first.vf)?;
    let late = agent.refused(&["vf", "release", "cli/first"])?;
    check(
        late.contains("cli/first"),
        format!("It is not said who has no VF: {late}"),
    )?;
    let now = raw::vf(lab, pf, second.index())?;
    same("the MAC of the second", now.mac(), MAC)?;
    same("the VLAN of the second", now.vlan(), 42)?;
    same(
        "the driver of the second",
        raw::driver(lab, &second.address)?.as_str(),
        "vfio-pci",
    )?;
    agent.release("cli/second")?;
    agent.end()
}

/// After a release nothing that was set is left: VLAN, rate, trust, spoof checking, MAC.
pub(super) fn r06(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 1)?;
    agent.want_unsafe(&pf.address)?;
    let vf = agent.allocate("cli/a", &["--mac", MAC, "--vlan", "42"])?;
    let had = raw::vf(lab, pf, vf.index())?;
    same("the VLAN", had.vlan(), 42)?;
    same("the rate", had.max_rate(), 500)?;
    same("the MAC", had.mac(), MAC)?;
    check(had.trust(), "The VF is not trusted")?;
    agent.release("cli/a")?;
    raw::vf(lab, pf, vf.index())?.is_neutral()?;
    agent.end()
}

/// A MAC is on one VF of the host: a second owner is refused, and one left on a free VF goes from there.
pub(super) fn r07(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 3)?;
    agent.allocate("cli/a", &["--mac", MAC])?;
    let refused = agent.refused(&["vf", "allocate", "cli/b", "--mac", MAC])?;
    check(
        refused.contains(MAC) && refused.contains("cli/a"),
        format!("Who has the MAC is not named: {refused}"),
    )?;
    agent.release("cli/a")?;
    // A teardown that was missed.
    let interface = raw::interface(lab, pf)?;
    lab.ok(&["ip", "link", "set", &interface, "vf", "2", "mac", MAC])?;
    let given = agent.allocate("cli/b", &["--mac", MAC])?;
    let mut with_it = 0;
    for index in ["0", "1", "2"] {
        with_it += usize::from(raw::vf(lab, pf, index)?.mac() == MAC);
    }
    same("the number of VFs with the MAC", with_it, 1)?;
    same("the MAC", raw::vf(lab, pf, given.index())?.mac(), MAC)?;
    agent.release("cli/b")?;
    agent.end()
}

/// A queue that the last owner left on is off when the next one gets the VF: it is reset in between.
pub(super) fn r08(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 1)?;
    let last = agent.allocate("cli/last", &["--driver", "vfio"])?;
    // As a driver that died leaves it, with nobody to take it down: vfio-pci resets only what was open.
    let registers = Registers::of(lab, &last.address)?;
    for register in raw::QUEUE_REGISTERS {
        registers.write(register, raw::QUEUE_ON)?;
    }
    same(
        "the number of queues that are on",
        registers.queues_on()?,
        2,
    )?;
    agent.release("cli/last")?;
    let registers = Registers::of(lab, &last.address)?;
    same(
        "the number of queues that are on",
        registers.queues_on()?,
        0,
    )?;
    agent.end()
}

/// A VF is reset without its driver: with the link of the PF down that would hang otherwise.
pub(super) fn r09(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 1)?;
    let vf = agent.allocate("cli/a", &["--driver", "kernel"])?;
    let bound = raw::driver(lab, &vf.address)?;
    check(
        !bound.is_empty() && bound != "vfio-pci",
        format!("The VF's driver is \"{bound}\""),
    )?;
    let interface = raw::interface(lab, pf)?;
    lab.ok(&["ip", "link", "set", &interface, "down"])?;
    agent.release("cli/a")?;
    raw::vf(lab, pf, vf.index())?.is_neutral()?;
    let said = agent.ferrovia(&["nic", "show", &pf.address])?;
    check(
        !said.contains("wedged"),
        format!("The PF is wedged: {said}"),
    )?;
    agent.end()
}

/// An agent that died in the middle of a change of drivers left a `driver_override`; the next one clears it.
pub(super) fn r12(lab: &Context) -> Outcome {
    let mut agent = AgentThere::with_vfs(lab, 2)?;
    let vf = agent.allocate("cli/a", &["--driver", "kernel"])?;
    agent.release("cli/a")?;
    agent.kill()?;
    let bound = raw::driver(lab, &vf.address)?;
    if !bound.is_empty() {
        put(
            lab,
            &format!("/sys/bus/pci/drivers/{bound}/unbind"),
            &vf.address,
        )?;
    }
    let forced = format!("/sys/bus/pci/devices/{}/driver_override", vf.address);
    put(lab, &forced, "vfio-pci")?;
    agent.start_again()?;
    lab.wait_for("That the override is gone", MENDS, || {
        Ok(raw::driver_override(lab, &vf.address)?
            .is_empty()
            .then_some(()))
    })?;
    agent.end()
}

/// VFs need their PF up: it is taken up, each VF has the MAC that was set for it and not one by chance, and
/// when somebody takes the PF down that is said.
pub(super) fn r15(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let interface = raw::interface(lab, pf)?;
    let up = |lab: &Context| {
        let flags = lab.read(&format!("/sys/class/net/{interface}/flags"))?;
        Ok::<bool, Stop>(
            u32::from_str_radix(flags.trim_start_matches("0x"), 16).is_ok_and(|f| f & 1 == 1),
        )
    };
    check(!up(lab)?, "The PF is up before the test")?;
    let agent = AgentThere::start(lab, &super::agent_there::policy("tests", &pf.address, 1))?;
    agent.ferrovia(&["nic", "apply"])?;
    check(up(lab)?, "The PF was not taken up")?;
    let vf = agent.allocate("cli/a", &["--driver", "kernel"])?;
    same(
        "the MAC that the PF has set",
        raw::vf(lab, pf, vf.index())?.mac(),
        &vf.mac,
    )?;
    let own = lab.shell_ok(&format!(
        "cat /sys/bus/pci/devices/{}/net/*/address",
        vf.address
    ))?;
    same("the MAC of the VF's own interface", own.trim(), &vf.mac)?;
    lab.ok(&["ip", "link", "set", &interface, "down"])?;
    let said = agent.ferrovia(&["nic", "show", &pf.address])?;
    check(
        said.contains("no carrier"),
        format!("It is not said that the VFs have no carrier: {said}"),
    )?;
    agent.release("cli/a")?;
    agent.end()
}

/// A link that goes down under a VLAN of its PF makes the kernel fail to remove VLAN 0: nothing that the agent
/// does to a VF takes the link down that its owner has up, and a release does it only when it is told to.
pub(super) fn r17(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 1)?;
    let silent = |when: &str| {
        let said = lab.shell_ok("dmesg | grep -i 'vlan' || true")?;
        check(
            !said.to_lowercase().contains("fail"),
            format!("{when}, the kernel says: {said}"),
        )
    };
    // With this module each interface that is taken up takes VLAN 0.
    lab.shell_ok("modprobe 8021q; dmesg --clear")?;
    let asked = ["--driver", "kernel", "--vlan", "42"];
    let vf = agent.allocate("cli/a", &asked)?;
    let net = format!("/sys/bus/pci/devices/{}/net", vf.address);
    let interface = lab.ok(&["ls", &net])?.trim().to_owned();
    lab.ok(&["ip", "link", "set", "dev", &interface, "up"])?;
    let changes = format!("/sys/class/net/{interface}/carrier_changes");
    lab.wait_for("A carrier", MENDS, || {
        let carrier = lab.exec(&["cat", &format!("/sys/class/net/{interface}/carrier")])?;
        Ok((carrier.stdout.trim() == "1").then_some(()))
    })?;
    let before = lab.read(&changes)?;
    // What the PF lost is set again under the link: the agent sees it, or is told to look.
    let pf_interface = raw::interface(lab, pf)?;
    let other = format!("ip link set {pf_interface} vf {} vlan 43", vf.index());
    lab.shell_ok(&other)?;
    agent.ferrovia(&["nic", "apply"])?;
    lab.wait_for("That its VLAN is there again", MENDS, || {
        Ok((raw::vf(lab, pf, vf.index())?.vlan() == 42).then_some(()))
    })?;
    let in_use = agent.refused(&["vf", "release", "cli/a"])?;
    check(
        in_use.contains(&interface) && in_use.contains("force"),
        format!("The interface that is up is not named: {in_use}"),
    )?;
    same("the changes of the carrier", lab.read(&changes)?, before)?;
    silent("While the owner had the link up")?;
    // The owner's own end of it.
    lab.ok(&["ip", "link", "set", "dev", &interface, "down"])?;
    lab.ok(&["dmesg", "--clear"])?;
    agent.release("cli/a")?;
    silent("At the release")?;
    agent.end()
}

/// EBUSY on a MAC or on taking a link up.
pub(super) fn r20(_lab: &Context) -> Outcome {
    Err(Stop::skip(
        "Neither igb nor netdevsim answers EBUSY to a MAC or to a link that is taken up; the fault is put into the \
         fake kernel: r20_ebusy_is_tried_again_and_not_for_ever in sriov-mgr/tests/field_cases",
    ))
}
