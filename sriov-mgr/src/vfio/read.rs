//! Reading the facts from sysfs (kernel: `Documentation/ABI/testing/sysfs-kernel-iommu_groups`,
//! `sysfs-bus-pci`) and procfs.
//!
//! Files vanish while they are read, since devices do: what cannot be read is absent, and the verdict on
//! what is left is as strict as ever.

use super::facts::{Facts, Group, GroupType, Host, Member, ReservedRegion};
use crate::address::PciAddress;
use crate::sysfs::{self, Dir};
use std::fs;
use std::path::{Path, PathBuf};

impl Facts {
    /// Reads what there is to know of `function`. `root` is `/`, or a made-up tree.
    pub fn read(root: &Path, function: PciAddress) -> Facts {
        let devices = root.join("sys/bus/pci/devices");
        let own = member(&devices, function);
        let dir = Dir(devices.join(function.to_string()));
        let pf = dir
            .link_name("physfn")
            .and_then(|name| name.parse().ok())
            .and_then(|address| member(&devices, address));
        Facts {
            function,
            host: host(root),
            group: group(root, &devices, &dir, function),
            own,
            pf,
        }
    }
}

fn member(devices: &Path, address: PciAddress) -> Option<Member> {
    let dir = Dir(devices.join(address.to_string()));
    let number = |attribute| dir.number(attribute).and_then(|n| u16::try_from(n).ok());
    let methods = match dir.text("reset_method") {
        Some(methods) => methods,
        // Kernels before 5.15 do not name the methods, but have `reset` only where there is one.
        None if !sysfs::exists(&dir.0.join("reset_method"))
            && sysfs::exists(&dir.0.join("reset")) =>
        {
            "reset".to_owned()
        }
        None => String::new(),
    };
    Some(Member {
        address,
        class: u8::try_from(dir.number("class")? >> 16).ok()?,
        vendor: number("vendor")?,
        device: number("device")?,
        driver: dir.link_name("driver"),
        total_vfs: dir
            .number("sriov_totalvfs")
            .and_then(|total| u32::try_from(total).ok())
            .unwrap_or(0),
        reset_methods: methods.split_whitespace().map(str::to_owned).collect(),
    })
}

fn host(root: &Path) -> Host {
    let modules = Dir(root.join("sys/module"));
    let on = |parameter| modules.text(parameter).as_deref() == Some("Y");
    Host {
        vfio_pci: sysfs::exists(&root.join("sys/bus/pci/drivers/vfio-pci")),
        container: sysfs::exists(&root.join("dev/vfio/vfio")),
        type1: sysfs::exists(&root.join("sys/module/vfio_iommu_type1")),
        unsafe_interrupts: on("vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
        no_iommu: on("vfio/parameters/enable_unsafe_noiommu_mode"),
        interrupt_remapping: interrupt_remapping(root),
    }
}

/// The kernel does not say outright whether interrupts are remapped. On x86 the interrupt chips' names do
/// (kernel: `drivers/iommu/{intel,amd}`): they begin with "IR-" when they stand behind remapping hardware.
fn interrupt_remapping(root: &Path) -> Option<bool> {
    let dir = Dir(root.join("sys/kernel/irq"));
    let chips: Vec<String> = dir
        .entries("")
        .iter()
        .filter_map(|irq| dir.text(&format!("{irq}/chip_name")))
        .collect();
    if chips.iter().any(|chip| chip.starts_with("IR-")) {
        return Some(true);
    }
    let x86 = ["IO-APIC", "PCI-MSI", "PCI-MSIX"];
    chips
        .iter()
        .any(|chip| x86.iter().any(|name| chip.starts_with(name)))
        .then_some(false)
}

fn group(root: &Path, devices: &Path, dir: &Dir, function: PciAddress) -> Option<Group> {
    let number: u32 = dir.link_name("iommu_group")?.parse().ok()?;
    let group = Dir(root.join(format!("sys/kernel/iommu_groups/{number}")));
    let no_iommu = group.text("name").as_deref() == Some("vfio-noiommu");
    let node = if no_iommu {
        format!("/dev/vfio/noiommu-{number}")
    } else {
        format!("/dev/vfio/{number}")
    };
    let mut peers: Vec<Member> = group
        .entries("devices")
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|address| *address != function)
        .filter_map(|address| member(devices, address))
        .collect();
    peers.sort_by_key(|peer| peer.address);
    Some(Group {
        number,
        no_iommu,
        kind: GroupType::from_text(&group.text("type").unwrap_or_default()),
        reserved: reserved(&group.text("reserved_regions").unwrap_or_default()),
        peers,
        holders: holders(&root.join("proc"), &node),
    })
}

/// Lines of "first last kind", the addresses in hexadecimal.
fn reserved(text: &str) -> Vec<ReservedRegion> {
    let address = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let region = |line: &str| {
        let mut words = line.split_whitespace();
        Some(ReservedRegion {
            first: address(words.next()?)?,
            last: address(words.next()?)?,
            kind: words.next()?.to_owned(),
        })
    };
    text.lines().filter_map(region).collect()
}

/// Processes other than this one that have `node` open.
fn holders(proc: &Path, node: &str) -> Vec<String> {
    let mut found: Vec<(u32, String)> = Dir(proc.to_owned())
        .entries("")
        .iter()
        .filter_map(|name| name.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| has_open(&proc.join(pid.to_string()), Path::new(node)))
        .map(|pid| {
            let name = Dir(proc.join(pid.to_string())).text("comm");
            let name = name.unwrap_or_else(|| "a process".to_owned());
            (pid, format!("{name} (pid {pid})"))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, label)| label).collect()
}

fn has_open(process: &Path, node: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    let targets = descriptors.flatten().map(|entry| entry.path());
    targets
        .filter_map(|link: PathBuf| fs::read_link(link).ok())
        .any(|target| target == node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A host with one group of a VF on vfio-pci and a bridge; the VF's node is open in process 4711.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            let tree = Tree(tempfile::tempdir().unwrap());
            for (address, class) in [
                ("0000:3a:00.0", "0x060400"),
                ("0000:3b:00.0", "0x020000"),
                ("0000:3b:10.0", "0x020000"),
            ] {
                let device = format!("sys/bus/pci/devices/{address}");
                tree.file(&format!("{device}/class"), class);
                tree.file(&format!("{device}/vendor"), "0x8086");
                tree.file(&format!("{device}/device"), "0x10ca");
            }
            let vf = "sys/bus/pci/devices/0000:3b:10.0";
            tree.file("sys/bus/pci/devices/0000:3b:00.0/sriov_totalvfs", "7");
            tree.file(&format!("{vf}/reset_method"), "flr bus");
            tree.link("../0000:3b:00.0", &format!("{vf}/physfn"));
            tree.link("../../../drivers/vfio-pci", &format!("{vf}/driver"));
            tree.link("../iommu_groups/12", &format!("{vf}/iommu_group"));
            let group = "sys/kernel/iommu_groups/12";
            tree.file(&format!("{group}/type"), "identity");
            tree.file(
                &format!("{group}/reserved_regions"),
                "0x00000000fee00000 0x00000000feefffff msi\n0x7b800000 0x7fffffff direct\nnonsense",
            );
            tree.file(&format!("{group}/devices/0000:3b:10.0"), "");
            tree.file(&format!("{group}/devices/0000:3a:00.0"), "");
            tree.file("sys/bus/pci/drivers/vfio-pci/bind", "");
            tree.file("dev/vfio/vfio", "");
            let parameters = "sys/module/vfio_iommu_type1/parameters";
            tree.file(&format!("{parameters}/allow_unsafe_interrupts"), "Y");
            tree.file("sys/kernel/irq/24/chip_name", "IR-PCI-MSI-0000:3b:00.0");
            tree.file("proc/4711/comm", "qemu");
            tree.link("/dev/vfio/12", "proc/4711/fd/9");
            tree
        }

        fn path(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn file(&self, path: &str, text: &str) {
            fs::write(self.path(path), format!("{text}\n")).unwrap();
        }

        fn link(&self, target: &str, path: &str) {
            symlink(target, self.path(path)).unwrap();
        }

        fn facts(&self) -> Facts {
            Facts::read(self.0.path(), "0000:3b:10.0".parse().unwrap())
        }
    }

    #[test]
    fn facts_are_read_as_the_kernel_writes_them() {
        let facts = Tree::new().facts();
        assert_eq!(
            facts.host,
            Host {
                vfio_pci: true,
                container: true,
                type1: true,
                unsafe_interrupts: true,
                no_iommu: false,
                interrupt_remapping: Some(true),
            }
        );
        let own = facts.own.unwrap();
        assert_eq!(own.driver.as_deref(), Some("vfio-pci"));
        assert_eq!(own.reset_methods, ["flr", "bus"]);
        assert_eq!(facts.pf.unwrap().total_vfs, 7);
        let group = facts.group.unwrap();
        assert_eq!((group.number, group.no_iommu), (12, false));
        assert_eq!(group.kind, GroupType::Identity);
        assert_eq!(group.reserved.len(), 2);
        assert!(group.reserved[1].is_firmware_mapping());
        assert_eq!(group.peers.len(), 1);
        assert!(group.peers[0].is_bridge());
        assert_eq!(group.holders, ["qemu (pid 4711)"]);
    }

    #[test]
    fn remapping_is_told_by_the_chips() {
        let tree = Tree::new();
        tree.file("sys/kernel/irq/24/chip_name", "PCI-MSI-0000:3b:00.0");
        assert_eq!(tree.facts().host.interrupt_remapping, Some(false));
        tree.file("sys/kernel/irq/24/chip_name", "ITS-PCI-MSI");
        assert_eq!(tree.facts().host.interrupt_remapping, None);
    }

    #[test]
    fn a_group_of_no_iommu_mode_is_known_by_its_name() {
        let tree = Tree::new();
        tree.file("sys/kernel/iommu_groups/12/name", "vfio-noiommu");
        tree.link("/dev/vfio/noiommu-12", "proc/9/fd/3");
        let group = tree.facts().group.unwrap();
        assert!(group.no_iommu);
        assert_eq!(group.holders, ["a process (pid 9)"]);
    }

    #[test]
    fn kernels_that_name_no_reset_method_say_by_the_file_that_there_is_one() {
        let tree = Tree::new();
        let vf = "sys/bus/pci/devices/0000:3b:10.0";
        let methods = || tree.facts().own.unwrap().reset_methods;
        fs::write(tree.path(&format!("{vf}/reset_method")), "").unwrap();
        tree.file(&format!("{vf}/reset"), "");
        assert_eq!(methods(), [""; 0], "all methods were forbidden");
        fs::remove_file(tree.path(&format!("{vf}/reset_method"))).unwrap();
        assert_eq!(methods(), ["reset"]);
    }

    #[test]
    fn a_function_that_is_not_there_is_absent() {
        let facts = Facts::read(Tree::new().0.path(), "0000:99:00.0".parse().unwrap());
        assert!(facts.own.is_none() && facts.group.is_none() && facts.pf.is_none());
    }
}
