//! The machine as QEMU is told of it.

use super::config::{Flavour, MOST_PFS, MachineConfig};
use super::initial::{Kernel, PROBE_WORD};
use crate::accel::Accel;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a try of KVM may take; where KVM works the kernel is up in a second.
const PROBE_LIMIT: Duration = Duration::from_secs(15);
/// The root complex of each NUMA node, and the number of its first bus.
const ROOTS: [(&str, u8); 2] = [("near", 64), ("far", 128)];

/// What QEMU boots.
#[derive(Clone, Debug)]
pub(super) struct Boot {
    pub(super) kernel: Kernel,
    pub(super) initrd: PathBuf,
}

/// The MAC address of a PF, by its number: locally administered, and none that other tools choose.
pub fn pf_mac(number: u8) -> String {
    format!("02:fe:00:00:{number:02x}:00")
}

/// Refuses what no machine can be made of.
pub(super) fn check(config: &MachineConfig) -> Result<()> {
    if let Flavour::Igb { pfs } = config.flavour
        && !(1..=MOST_PFS).contains(&pfs)
    {
        bail!("A machine has 1 to {MOST_PFS} igb PFs, not {pfs}");
    }
    if config.cpus == 0 || (config.numa && config.cpus < 2) {
        bail!("A machine has at least one processor, and one for each of its NUMA nodes");
    }
    // The kernel, its page tables and the programs take this much beside the huge pages.
    const REST_MB: u32 = 384;
    if config.memory_mb < config.hugepages_mb.saturating_add(REST_MB) {
        bail!(
            "{} MiB of memory are too little for {} MiB of huge pages and {REST_MB} MiB for the rest",
            config.memory_mb,
            config.hugepages_mb
        );
    }
    Ok(())
}

/// Whether KVM runs this machine, tried once in this process.
pub(super) fn accel(boot: &Boot) -> Accel {
    static TRIED: OnceLock<Accel> = OnceLock::new();
    TRIED
        .get_or_init(|| {
            let config = MachineConfig {
                kernel_args: vec!["fv.probe".into()],
                ..MachineConfig::default()
            };
            let mut qemu = command(boot, &config, &Accel::Kvm);
            qemu.args(["-serial", "stdio"]).stdin(Stdio::null());
            Accel::by_trying(&mut qemu, PROBE_WORD, PROBE_LIMIT)
        })
        .clone()
}

/// QEMU with the machine, without its console and its channel.
pub(super) fn command(boot: &Boot, config: &MachineConfig, accel: &Accel) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-display", "none", "-name", "ferrovia-lab"]);
    match accel {
        Accel::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        Accel::Software(_) => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]),
    };
    qemu.args(["-machine", "q35,kernel-irqchip=split"]);
    qemu.args([
        "-device",
        "intel-iommu,intremap=on,caching-mode=on,aw-bits=48",
    ]);
    qemu.arg("-smp").arg(config.cpus.to_string());
    qemu.arg("-m").arg(format!("{}M", config.memory_mb));
    if config.numa {
        numa(&mut qemu, config);
    }
    // Each device names its bus: QEMU would otherwise choose the second root complex where there is one.
    qemu.args([
        "-fsdev",
        "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device",
        "virtio-9p-pci,bus=pcie.0,fsdev=host,mount_tag=host",
        "-device",
        "virtio-serial-pci,bus=pcie.0,id=serial0",
    ]);
    if let Flavour::Igb { pfs } = config.flavour {
        (0..pfs).for_each(|number| pf(&mut qemu, config, number));
    }
    qemu.arg("-kernel").arg(&boot.kernel.file);
    qemu.arg("-initrd").arg(&boot.initrd);
    qemu.arg("-append").arg(append(config));
    qemu
}

fn append(config: &MachineConfig) -> String {
    // `no_timer_check`: on a busy host the kernel's test of its timer fails now and then, and it panics. The next
    // three save seconds of emulation: self-tests of ciphers, the move to a random address, and the waits for
    // readers when a network interface goes. `maxcpus`: the other processors are woken when the devices are there.
    let mut words = String::from(
        "console=ttyS0 quiet panic=-1 intel_iommu=on iommu=pt net.ifnames=0 mitigations=off no_timer_check \
         cryptomgr.notests nokaslr rcupdate.rcu_expedited=1 maxcpus=1",
    );
    if config.hugepages_mb > 0 {
        words.push_str(&format!(
            " hugepagesz=2M hugepages={}",
            config.hugepages_mb.div_ceil(2)
        ));
    }
    for word in &config.kernel_args {
        words.push(' ');
        words.push_str(word);
    }
    words
}

/// A PF behind a root port of its own; all PFs are wired to one hub.
fn pf(qemu: &mut Command, config: &MachineConfig, number: u8) {
    let bus = match config.numa {
        true => ROOTS[usize::from(number % 2)].0,
        false => "pcie.0",
    };
    let chassis = number + 1;
    qemu.args([
        "-device",
        &format!("pcie-root-port,id=rp{number},bus={bus},chassis={chassis}"),
        "-netdev",
        &format!("hubport,id=wire{number},hubid=0"),
        "-device",
        &format!(
            "igb,id=pf{number},bus=rp{number},netdev=wire{number},mac={},romfile=",
            pf_mac(number)
        ),
    ]);
}

/// Two nodes; a device belongs to the node of its root complex, and the first one of a PC has none.
fn numa(qemu: &mut Command, config: &MachineConfig) {
    let first_mb = config.memory_mb / 2;
    let first_cpus = config.cpus / 2;
    for (node, megabytes, cpus) in [
        (0, first_mb, 0..first_cpus),
        (1, config.memory_mb - first_mb, first_cpus..config.cpus),
    ] {
        qemu.args([
            "-object",
            &format!("memory-backend-ram,id=memory{node},size={megabytes}M"),
            "-numa",
            &format!(
                "node,nodeid={node},memdev=memory{node},cpus={}-{}",
                cpus.start,
                cpus.end - 1
            ),
        ]);
    }
    for (node, (name, bus)) in ROOTS.iter().enumerate() {
        qemu.args([
            "-device",
            &format!("pxb-pcie,id={name},bus=pcie.0,bus_nr={bus},numa_node={node}"),
        ]);
    }
}

/// Puts the console into a file, and the channel on QEMU's standard input, which is the stream's other end.
pub(super) fn attach(qemu: &mut Command, console: &Path) {
    let mut file = std::ffi::OsString::from("file:");
    file.push(console);
    qemu.arg("-serial").arg(file);
    qemu.args(["-chardev", "socket,id=channel,fd=0"]);
    let port = format!(
        "virtserialport,bus=serial0.0,chardev=channel,name={}",
        super::wire::PORT
    );
    qemu.arg("-device").arg(port);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_machines_are_refused() {
        let good = MachineConfig::default();
        assert!(check(&good).is_ok());
        for (bad, word) in [
            (
                MachineConfig {
                    flavour: Flavour::Igb { pfs: 0 },
                    ..good.clone()
                },
                "not 0",
            ),
            (
                MachineConfig {
                    flavour: Flavour::Igb { pfs: 17 },
                    ..good.clone()
                },
                "not 17",
            ),
            (
                MachineConfig {
                    numa: true,
                    cpus: 1,
                    ..good.clone()
                },
                "NUMA",
            ),
            (
                MachineConfig {
                    hugepages_mb: 1000,
                    ..good.clone()
                },
                "too little",
            ),
        ] {
            let error = check(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
