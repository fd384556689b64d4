//! The emulated NIC machine: what it has, how commands run in it, and what becomes of a machine that does not
//! come up. Each test boots its own; see docs/lab.md.
//!
//! Needs root, the programs of the workspace (`cargo build --workspace`) and the cached kernel.

use anyhow::{Context, Result, ensure};
use hw_tests::cluster::program;
use hw_tests::command;
use hw_tests::machine::{Done, Flavour, Machine, MachineConfig, pf_mac};
use hw_tests::run::Run;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For commands that are quick, in a machine that may be slow.
const LIMIT: Duration = Duration::from_secs(30);

/// An emulated machine takes two processors by itself.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn boot(run: &Run, config: &MachineConfig) -> Result<Machine> {
    let machine = Machine::boot(&run.dir().join("machine"), config)?;
    run.note_process(machine.pid());
    println!(
        "{} with {} by {}, up after {:.1} s; stages: {:?}",
        machine.facts().release,
        machine.facts().flavour,
        machine.facts().accel,
        machine.facts().boot.as_secs_f32(),
        machine.stages()
    );
    Ok(machine)
}

/// What a script prints that must succeed.
fn said(machine: &Machine, script: &str) -> Result<String> {
    let done = machine.shell(script, LIMIT)?;
    ensure!(done.ok(), "\"{script}\" ended with {done}");
    Ok(done.stdout.trim().to_owned())
}

#[test]
fn an_igb_machine_has_vfs_and_runs_commands() -> Result<()> {
    let _turn = one_at_a_time();
    let run = Run::start()?;
    let machine = boot(
        &run,
        &MachineConfig {
            flavour: Flavour::Igb { pfs: 2 },
            ..MachineConfig::default()
        },
    )?;
    each_pf_has_its_place_and_address(&machine).context("PFs")?;
    every_vf_has_an_iommu_group_of_its_own(&machine).context("VFs")?;
    a_vf_goes_to_vfio_pci(&machine).context("vfio-pci")?;
    exit_codes_and_both_outputs_come_through(&machine).context("outputs")?;
    a_hung_command_is_killed_with_its_children(&machine).context("hung command")?;
    a_command_ends_though_its_child_lives_on(&machine).context("background")?;
    commands_of_many_threads_do_not_mix(&machine).context("threads")?;
    the_host_is_seen_and_not_touched(&machine, &run).context("root")?;
    files_come_out(&machine, &run).context("files")?;
    let (pid, dir) = (machine.pid(), run.dir().join("machine"));
    drop(machine);
    nothing_is_left(pid, &dir)
}

fn each_pf_has_its_place_and_address(machine: &Machine) -> Result<()> {
    for (number, address) in [(0, "0000:01:00.0"), (1, "0000:02:00.0")] {
        let found = said(
            machine,
            &format!("cat /sys/bus/pci/devices/{address}/net/*/address"),
        )?;
        ensure!(found == pf_mac(number), "{address} has {found}");
    }
    Ok(())
}

fn every_vf_has_an_iommu_group_of_its_own(machine: &Machine) -> Result<()> {
    said(
        machine,
        "echo 7 > /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs",
    )?;
    let list = said(
        machine,
        "for vf in /sys/bus/pci/devices/0000:01:00.0/virtfn*; do
            echo $(cat $vf/vendor) $(cat $vf/device) $(basename $(readlink $vf/iommu_group))
        done",
    )?;
    let lines: Vec<&str> = list.lines().collect();
    ensure!(lines.len() == 7, "{list}");
    ensure!(
        lines.iter().all(|l| l.starts_with("0x8086 0x10ca ")),
        "{list}"
    );
    let groups: BTreeSet<&str> = lines.iter().copied().collect();
    ensure!(groups.len() == 7, "VFs share groups:\n{list}");
    Ok(())
}

fn a_vf_goes_to_vfio_pci(machine: &Machine) -> Result<()> {
    let group = said(
        machine,
        "set -e
        vf=$(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn3))
        cd /sys/bus/pci/devices/$vf
        echo vfio-pci > driver_override
        [ ! -e driver ] || echo $vf > driver/unbind
        echo $vf > /sys/bus/pci/drivers_probe
        [ $(basename $(readlink driver)) = vfio-pci ]
        basename $(readlink iommu_group)",
    )?;
    said(machine, &format!("test -c /dev/vfio/{group}")).map(drop)
}

fn exit_codes_and_both_outputs_come_through(machine: &Machine) -> Result<()> {
    let done = machine.shell("echo to out; echo to err >&2; exit 42", LIMIT)?;
    let expected = Done {
        code: 42,
        stdout: "to out\n".into(),
        stderr: "to err\n".into(),
    };
    ensure!(done == expected, "{done:?}");
    let done = machine.shell("kill -TERM $$", LIMIT)?;
    ensure!(done.code == 128 + 15, "{done:?}");
    // More than one frame, and more than a pipe holds.
    let done = machine.exec(&["seq", "1", "200000"], LIMIT)?;
    ensure!(done.stdout.lines().count() == 200_000 && done.stdout.ends_with("\n200000\n"));
    let error = machine.exec(&["no-such-program"], LIMIT).unwrap_err();
    ensure!(
        format!("{error:#}").contains("could not be started inside"),
        "{error:#}"
    );
    Ok(())
}

fn a_hung_command_is_killed_with_its_children(machine: &Machine) -> Result<()> {
    let error = machine
        .shell("sleep 98765 & wait", Duration::from_millis(700))
        .unwrap_err();
    let text = format!("{error:#}");
    ensure!(text.contains("after 0.7 s and was killed"), "{text}");
    let left = machine.exec(&["pidof", "sleep"], LIMIT)?;
    ensure!(left.code == 1, "still there: {left:?}");
    Ok(())
}

fn a_command_ends_though_its_child_lives_on(machine: &Machine) -> Result<()> {
    let out = said(machine, "sleep 98765 & echo started")?;
    ensure!(out == "started", "{out}");
    said(machine, "kill $(pidof sleep)").map(drop)
}

fn commands_of_many_threads_do_not_mix(machine: &Machine) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    for round in 0..3 {
                        let script = format!("seq {number} {round} 400; exit {number}");
                        let done = machine.shell(&script, LIMIT)?;
                        let step = round.max(1);
                        let expected: Vec<String> = match round {
                            // A step of nothing is refused by seq.
                            0 => Vec::new(),
                            _ => (number..=400)
                                .step_by(step)
                                .map(|n| n.to_string())
                                .collect(),
                        };
                        let lines: Vec<&str> = done.stdout.lines().collect();
                        ensure!(done.code == number && lines == expected, "{done:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a panic")))
    })
}

fn the_host_is_seen_and_not_touched(machine: &Machine, run: &Run) -> Result<()> {
    let mark = run.named("mark");
    said(machine, &format!("echo inside > /usr/{mark}"))?;
    ensure!(
        !Path::new("/usr").join(&mark).exists(),
        "the host's /usr was written"
    );
    // The host's processes, mounts and run-time files are not the machine's.
    let secret = run.dir().join("secret");
    std::fs::write(&secret, "host")?;
    said(machine, &format!("test ! -e {}", secret.display()))?;
    let host = program("ferrovia-machine")?;
    said(machine, &format!("test -x '{}'", host.display()))?;
    said(machine, "modprobe cls_flower && modprobe -r cls_flower")?;
    let mounts = said(machine, "cut -d' ' -f2 /proc/mounts")?;
    ensure!(
        mounts.lines().filter(|m| *m == "/tmp").count() == 1,
        "{mounts}"
    );
    Ok(())
}

fn files_come_out(machine: &Machine, run: &Run) -> Result<()> {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    machine.write_file(Path::new("/tmp/in"), &bytes)?;
    ensure!(machine.read_file(Path::new("/tmp/in"))? == bytes);
    said(
        machine,
        "mkdir -p /tmp/folder/below && cp /tmp/in /tmp/folder/below/copy",
    )?;
    let to = run.dir().join("copied");
    machine.copy_out(Path::new("/tmp/folder"), &to)?;
    ensure!(std::fs::read(to.join("below/copy"))? == bytes);
    let error = machine
        .copy_out(Path::new("/tmp/nothing"), &to.join("x"))
        .unwrap_err();
    ensure!(error.to_string().contains("/tmp/nothing"), "{error:#}");
    Ok(())
}

/// The process is gone or a zombie of somebody else's, and so is the folder.
fn nothing_is_left(pid: u32, dir: &Path) -> Result<()> {
    command::wait_for("the end of QEMU", LIMIT, || {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ensure!(!line.contains("qemu"), "process {pid} is still there");
        Ok(())
    })?;
    ensure!(!dir.exists(), "\"{}\" is still there", dir.display());
    Ok(())
}

#[test]
fn a_netdevsim_machine_has_many_vfs_and_representors() -> Result<()> {
    let _turn = one_at_a_time();
    let run = Run::start()?;
    let machine = boot(
        &run,
        &MachineConfig {
            flavour: Flavour::Netdevsim,
            ..MachineConfig::default()
        },
    )?;
    said(&machine, "echo '1 4 1' > /sys/bus/netdevsim/new_device")?;
    let device = "/sys/bus/netdevsim/devices/netdevsim1";
    said(
        &machine,
        "echo 1024 > /sys/kernel/debug/netdevsim/netdevsim1/max_vfs",
    )?;
    for count in [1024, 0, 256] {
        said(&machine, &format!("echo {count} > {device}/sriov_numvfs"))?;
        let now = said(&machine, &format!("cat {device}/sriov_numvfs"))?;
        ensure!(now == count.to_string(), "{now} instead of {count}");
    }
    // Each of the 256 representors takes the kernel a few milliseconds, more in a busy emulated machine.
    let switchdev = "devlink dev eswitch set netdevsim/netdevsim1 mode switchdev";
    let done = machine.shell(switchdev, Duration::from_secs(120))?;
    ensure!(done.ok(), "{done}");
    let mode = said(&machine, "devlink dev eswitch show netdevsim/netdevsim1")?;
    ensure!(mode.contains("switchdev"), "{mode}");
    let representors = said(&machine, "devlink port | grep -c 'flavour pcivf'")?;
    ensure!(representors == "256", "{representors}");
    // A machine that goes away under a command is an error, and none that takes until the limit.
    let error = machine
        .shell(
            "echo o > /proc/sysrq-trigger; sleep 98765",
            Duration::from_secs(3600),
        )
        .unwrap_err();
    ensure!(
        format!("{error:#}").contains("ended meanwhile"),
        "{error:#}"
    );
    Ok(())
}

#[test]
fn a_boot_that_fails_says_at_which_stage_and_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let run = Run::start()?;
    let args = |args: &[&str]| MachineConfig {
        kernel_args: args.iter().map(|&arg| arg.to_owned()).collect(),
        ..MachineConfig::default()
    };
    let slow = MachineConfig {
        boot_limit: Duration::from_millis(500),
        ..MachineConfig::default()
    };
    for (config, word) in [
        (
            args(&["rdinit=/nothing", "root=/dev/nothing"]),
            "its kernel panicked - not syncing",
        ),
        (args(&["module_blacklist=overlay"]), "stage \"root\""),
        (args(&["module_blacklist=igb"]), "has 0 of 1 NICs"),
        (slow, "within its time limit"),
    ] {
        let dir = run.dir().join("failing");
        let error = Machine::boot(&dir, &config).unwrap_err();
        let text = format!("{error:#}");
        println!("{text}\n");
        ensure!(text.contains(word), "expected \"{word}\" in: {text}");
        ensure!(!dir.exists(), "\"{}\" is still there", dir.display());
    }
    let left = command::words(&["pgrep", "-f", &format!("qemu.*{}", run.dir().display())]);
    ensure!(left.is_err(), "QEMU is still there: {left:?}");
    Ok(())
}

#[test]
fn a_machine_ends_with_the_process_that_booted_it() -> Result<()> {
    let _turn = one_at_a_time();
    let mut parent = Command::new(program("ferrovia-machine")?)
        .args([
            "run",
            "--pfs",
            "1",
            "--",
            "sh",
            "-c",
            "echo up; sleep 98765",
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = parent.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let pid = parent.id().to_string();
    let children = command::words(&["pgrep", "-P", &pid, "qemu"]);
    parent.kill()?;
    parent.wait()?;
    ensure!(line == "up\n", "it said \"{line}\"");
    let qemu: u32 = children?.trim().parse().context("one QEMU")?;
    command::wait_for("the end of QEMU", LIMIT, || {
        ensure!(
            !Path::new(&format!("/proc/{qemu}")).exists(),
            "process {qemu} is still there"
        );
        Ok(())
    })
}
