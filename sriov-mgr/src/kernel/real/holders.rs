//! Who has a VF in use: processes that have its VFIO group or device open (QEMU, DPDK), its interface in this
//! or another network namespace. Looks, and changes nothing.

use super::links::{self, LinkInfo};
use super::look;
use super::namespaces;
use super::tree::{Tree, refused};
use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::KernelError;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which processes have which device files open.
pub(crate) struct Openers(HashMap<PathBuf, BTreeSet<u32>>);

impl Openers {
    /// Looks at every process. Those that end meanwhile, or that we may not look at, are passed over.
    pub(crate) fn scan(proc: &Path) -> Openers {
        let mut open: HashMap<PathBuf, BTreeSet<u32>> = HashMap::new();
        for pid in pids(proc) {
            let Ok(files) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
                continue;
            };
            for file in files.flatten() {
                if let Ok(target) = fs::read_link(file.path())
                    && is_device_file(&target)
                {
                    open.entry(target).or_default().insert(pid);
                }
            }
        }
        Openers(open)
    }

    fn of(&self, file: &Path) -> impl Iterator<Item = u32> {
        self.0.get(file).into_iter().flatten().copied()
    }
}

/// Files through which a process drives a PCI function by itself.
fn is_device_file(path: &Path) -> bool {
    path.starts_with("/dev/vfio")
        || path.to_str().is_some_and(|path| {
            path.starts_with("/dev/uio") || path.starts_with("/sys/") && path.contains("/resource")
        })
}

fn pids(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What is looked at once for many VFs.
pub(crate) struct Everyone {
    openers: Openers,
    links: Vec<LinkInfo>,
    with_addresses: HashSet<u32>,
    /// Interfaces of other network namespaces, looked up when first asked for.
    elsewhere: Option<Vec<namespaces::Elsewhere>>,
}

impl Everyone {
    pub(crate) fn look(tree: &Tree) -> Result<Everyone, super::wire::Refusal> {
        Ok(Everyone {
            openers: Openers::scan(&tree.0.join("proc")),
            links: links::list()?,
            with_addresses: links::with_addresses()?,
            elsewhere: None,
        })
    }

    /// Who uses a PCI function, in words.
    pub(crate) fn of_function(&mut self, tree: &Tree, function: PciAddress) -> Vec<String> {
        let dir = tree.function(function);
        let mut found: Vec<String> = device_files(tree, function)
            .iter()
            .flat_map(|file| self.openers.of(file))
            .collect::<BTreeSet<u32>>()
            .into_iter()
            .map(|pid| process(&tree.0.join("proc"), pid))
            .collect();
        let device = Device::Pci(function);
        let names = dir.entries("net");
        let here = self.links.iter().find(|link| {
            link.is_of(&device) || link.parent.is_none() && names.contains(&link.name)
        });
        if let Some(link) = here {
            found.extend(self.used_interface(link));
        } else if dir
            .link_name("driver")
            .is_some_and(|driver| !drives_from_userspace(&driver))
        {
            let elsewhere = self
                .elsewhere
                .get_or_insert_with(|| namespaces::interfaces(&tree.0));
            let of_it = elsewhere.iter().filter(|other| other.link.is_of(&device));
            found.extend(of_it.map(|other| {
                format!(
                    "interface {} in network namespace {}",
                    other.link.name, other.namespace
                )
            }));
        }
        found
    }

    /// An interface that is up, has addresses or is part of another is in use.
    fn used_interface(&self, link: &LinkInfo) -> Option<String> {
        let mut signs = Vec::new();
        if link.up {
            signs.push("up".to_owned());
        }
        if self.with_addresses.contains(&link.index) {
            signs.push("with addresses".to_owned());
        }
        if let Some(master) = link.master {
            let name = self.links.iter().find(|other| other.index == master);
            signs.push(format!(
                "part of {}",
                name.map_or("another", |m| m.name.as_str())
            ));
        }
        (!signs.is_empty()).then(|| format!("interface {} ({})", link.name, signs.join(", ")))
    }
}

/// Drivers that hand a function to a process and make no interface.
fn drives_from_userspace(driver: &str) -> bool {
    matches!(
        driver,
        "vfio-pci" | "uio_pci_generic" | "igb_uio" | "pci-stub"
    ) || driver.ends_with("-vfio-pci")
        || driver.ends_with("_vfio_pci")
}

/// The files that give access to `function`: its VFIO group (a whole group is one holder's), its VFIO device,
/// its UIO device, its memory.
fn device_files(tree: &Tree, function: PciAddress) -> Vec<PathBuf> {
    let dir = tree.function(function);
    let mut files = Vec::new();
    if let Some(group) = dir.link_name("iommu_group") {
        files.push(PathBuf::from("/dev/vfio").join(&group));
        files.push(PathBuf::from("/dev/vfio").join(format!("noiommu-{group}")));
    }
    files.extend(
        dir.entries("vfio-dev")
            .iter()
            .map(|name| Path::new("/dev/vfio/devices").join(name)),
    );
    files.extend(
        dir.entries("uio")
            .iter()
            .map(|name| Path::new("/dev").join(name)),
    );
    if let Ok(real) = fs::canonicalize(&dir.0) {
        files.extend((0..6).map(|bar| real.join(format!("resource{bar}"))));
    }
    files
}

/// A process as the operator knows it, such as "QEMU (pid 4711, guest=web-1)".
pub(crate) fn process(proc: &Path, pid: u32) -> String {
    let dir = proc.join(pid.to_string());
    let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let comm = comm.trim();
    let line = fs::read(dir.join("cmdline")).unwrap_or_default();
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    if comm.starts_with("qemu") || comm.starts_with("kvm") {
        return match guest(&words) {
            Some(name) => format!("QEMU (pid {pid}, guest={name})"),
            None => format!("QEMU (pid {pid})"),
        };
    }
    let name = if comm.is_empty() { "a process" } else { comm };
    format!("{name} (pid {pid})")
}

/// The guest's name: `-name guest=web-1,debug-threads=on` or `-name web-1`.
fn guest(words: &[String]) -> Option<String> {
    let at = words
        .iter()
        .position(|word| word == "-name" || word == "--name")?;
    let first = words.get(at + 1)?.split(',').next()?;
    let name = first.strip_prefix("guest=").unwrap_or(first);
    // A name with odd characters would only confuse the sentence that it becomes part of.
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    (!name.is_empty()).then_some(name)
}

/// Who has VF `index` of `device` in use.
pub(crate) fn of_vf(tree: &Tree, device: &Device, index: u32) -> Result<Vec<String>, KernelError> {
    look::present(tree, device)?;
    if device.pci().is_none() {
        // VFs of the simulated NIC are no functions: nobody can hold one.
        return Ok(Vec::new());
    }
    let Some(function) = look::function_of(tree, device, index) else {
        return Err(KernelError::Gone {
            device: device.to_string(),
            what: format!("VF {index}"),
        });
    };
    let everyone = Everyone::look(tree);
    let mut everyone = everyone.map_err(|r| refused(device, "Listing the interfaces", &r))?;
    Ok(everyone.of_function(tree, function))
}

/// Who has which VFs of `device` in use.
pub(crate) fn of_all_vfs(
    tree: &Tree,
    device: &Device,
) -> Result<BTreeMap<u32, Vec<String>>, KernelError> {
    look::present(tree, device)?;
    let functions = tree.vf_functions(device);
    if functions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let everyone = Everyone::look(tree);
    let mut everyone = everyone.map_err(|r| refused(device, "Listing the interfaces", &r))?;
    let all = functions.into_iter().map(|(index, function)| {
        let holders = everyone.of_function(tree, function);
        (index, holders)
    });
    Ok(all.filter(|(_, holders)| !holders.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::real::testtree;
    use std::os::unix::fs::symlink;

    fn add_process(root: &Path, pid: u32, comm: &str, words: &[&str], opens: &[&str]) {
        let dir = root.join("proc").join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(dir.join("cmdline"), words.join("\0")).unwrap();
        for (number, file) in opens.iter().enumerate() {
            symlink(file, dir.join("fd").join(number.to_string())).unwrap();
        }
    }

    fn everyone(root: &Path, links: Vec<LinkInfo>) -> Everyone {
        Everyone {
            openers: Openers::scan(&root.join("proc")),
            links,
            with_addresses: [8].into(),
            elsewhere: None,
        }
    }

    #[test]
    fn virtual_machines_and_dpdk_are_named() {
        let root = testtree::igb(3);
        let tree = Tree(root.path().to_owned());
        add_process(
            root.path(),
            10,
            "qemu-system-x86",
            &["qemu", "-name", "guest=web-1,debug-threads=on"],
            &["/dev/null", "/dev/vfio/20"],
        );
        add_process(
            root.path(),
            11,
            "dpdk-testpmd",
            &["dpdk-testpmd"],
            &["/dev/vfio/vfio", "/dev/vfio/21"],
        );
        let mut everyone = everyone(root.path(), Vec::new());
        let mut of = |address: &str| everyone.of_function(&tree, address.parse().unwrap());
        assert_eq!(of("0000:01:10.0"), ["QEMU (pid 10, guest=web-1)"]);
        assert_eq!(of("0000:01:10.2"), ["dpdk-testpmd (pid 11)"]);
        assert_eq!(of("0000:01:10.4"), Vec::<String>::new());
    }

    #[test]
    fn all_vfs_are_looked_at_together_and_free_ones_left_out() {
        let root = testtree::igb(3);
        let tree = Tree(root.path().to_owned());
        add_process(root.path(), 12, "dpdk", &["dpdk"], &["/dev/vfio/21"]);
        let all = of_all_vfs(&tree, &"0000:01:00.0".parse().unwrap()).unwrap();
        assert_eq!(all, BTreeMap::from([(1, vec!["dpdk (pid 12)".to_owned()])]));
        let one = of_vf(&tree, &"0000:01:00.0".parse().unwrap(), 1).unwrap();
        assert_eq!(one, all[&1]);
    }

    #[test]
    fn an_interface_that_is_down_and_bare_is_nobodys() {
        let root = testtree::igb(1);
        let tree = Tree(root.path().to_owned());
        let link = |index, up, master| LinkInfo {
            index,
            name: "fvvf0".into(),
            up,
            master,
            parent: Some(("pci".into(), "0000:01:10.0".into())),
            ..LinkInfo::default()
        };
        for (link, expected) in [
            (link(7, false, None), vec![]),
            (link(7, true, None), vec!["interface fvvf0 (up)".to_owned()]),
            (
                link(8, false, None),
                vec!["interface fvvf0 (with addresses)".to_owned()],
            ),
            (
                link(7, false, Some(7)),
                vec!["interface fvvf0 (part of fvvf0)".to_owned()],
            ),
        ] {
            let mut everyone = everyone(root.path(), vec![link]);
            assert_eq!(
                everyone.of_function(&tree, "0000:01:10.0".parse().unwrap()),
                expected
            );
        }
    }

    #[test]
    fn a_guest_is_named_as_libvirt_and_people_name_it() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            guest(&words("qemu -name guest=a,b=c -m 1")).as_deref(),
            Some("a")
        );
        assert_eq!(guest(&words("qemu -name a")).as_deref(), Some("a"));
        assert_eq!(guest(&words("qemu -name")), None);
        assert_eq!(guest(&words("qemu -m 1")), None);
    }
}
