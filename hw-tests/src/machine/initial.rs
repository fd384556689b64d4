//! The machine's first file system: busybox, a few modules, and the script that makes the host's root its own.

use super::config::{Flavour, MachineConfig};
use crate::cpio::Archive;
use crate::image;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a machine says that was booted with `fv.probe`.
pub(super) const PROBE_WORD: &str = "fv-stage probe";
/// What each stage's line on the console begins with.
pub(super) const STAGE: &str = "fv-stage ";

/// For the root file system.
const ROOT_MODULES: [&str; 3] = ["9p", "9pnet_virtio", "overlay"];
const IGB_MODULES: [&str; 4] = ["igb", "igbvf", "vfio_iommu_type1", "vfio_pci"];
const NETDEVSIM_MODULES: [&str; 1] = ["netdevsim"];

/// Applets of busybox that the script uses.
const APPLETS: [&str; 11] = [
    "cat",
    "hostname",
    "insmod",
    "ip",
    "mkdir",
    "ln",
    "mount",
    "poweroff",
    "sh",
    "switch_root",
    "umount",
];

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
stage() { read -r up _ < /proc/uptime; echo "fv-stage $1 $up" > /dev/console; }
fail() { echo "fv-fail $1" > /dev/console; poweroff -f; }
mount -t proc proc /proc
mount -t devtmpfs dev /dev
case "$(cat /proc/cmdline)" in *fv.probe*) stage probe; poweroff -f ;; esac

stage root
while read -r module; do insmod "/modules/$module" || fail "the module $module does not load"; done < /modules/root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose host /host ||
    fail "the host's root cannot be mounted over 9p"
mount -t tmpfs -o size=50%,mode=755 upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/data,workdir=/upper/work root /new ||
    fail "the overlay on the host's root cannot be mounted"

# What is bound here is still there when its place is hidden by a fresh file system below.
release=$(cat /modules/release)
mkdir -p "/new/lib/modules/$release"
mount --bind "/new$(cat /modules/home)" "/new/lib/modules/$release" || fail "the kernel's modules are not there"
count=0
while read -r folder; do
    count=$((count + 1))
    mkdir -p "/keep/$count"
    mount --bind "/new$folder" "/keep/$count" || fail "the folder $folder is not there"
done < /keep/list

mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
ln -s /proc/self/fd /new/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "/new/dev/${number#*:}"; done
mkdir -p /new/dev/pts /new/dev/shm /new/dev/hugepages
mount -t devpts -o mode=620,gid=5,ptmxmode=666 pts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t hugetlbfs huge /new/dev/hugepages
mount -t tmpfs -o mode=755 run /new/run
mount -t tmpfs -o mode=1777 tmp /new/tmp
mount -t tmpfs -o mode=1777 tmp /new/var/tmp
mount -t debugfs debug /new/sys/kernel/debug
mount -t bpf bpf /new/sys/fs/bpf
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mkdir -p /new/run/lock /new/run/netns
# An agent that is installed on the host has its state and its secrets here.
for folder in /etc/ferrovia /var/lib/ferrovia; do
    [ ! -d "/new$folder" ] || mount -t tmpfs -o mode=755 own "/new$folder"
done
count=0
while read -r folder; do
    count=$((count + 1))
    mkdir -p "/new$folder"
    mount --move "/keep/$count" "/new$folder"
done < /keep/list

stage devices
while read -r module; do insmod "/modules/$module" || echo "fv-note the module $module does not load" > /dev/console
done < /modules/devices
# Not before (`maxcpus=1`): with a second processor awake, QEMU's software emulation ends itself now and then while
# a device's registers are mapped ("iotlb_to_section: Assertion failed").
for cpu in /new/sys/devices/system/cpu/cpu*/online; do echo 1 > "$cpu"; done
ip link set lo up
hostname ferrovia-lab
echo ferrovia-lab > /new/etc/hostname
inside=$(cat /keep/inside)
[ -x "/new$inside" ] || fail "there is no $inside in the host's root"
stage agent
exec switch_root /new "$inside"
fail "the root cannot be switched"
"#;

/// A kernel and its modules, unpacked by `cargo xtask deps`.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Its release.
    pub release: String,
    /// The bootable file.
    pub file: PathBuf,
    /// The folder with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Finds it in the cache.
    pub(super) fn find() -> Result<Kernel> {
        let home = image::cache().join("lab-kernel");
        let release = fs::read_to_string(home.join("complete")).with_context(|| {
            format!(
                "There is no kernel of the emulated machine in \"{}\"; `cargo xtask deps` fetches it",
                home.display()
            )
        })?;
        let home = home.canonicalize()?;
        let boot = home.join("boot");
        // Uncompressed where `cargo xtask deps` could do that: it need not unpack itself at each boot.
        let plain = boot.join(format!("vmlinux-{release}"));
        let file = match plain.exists() {
            true => plain,
            false => boot.join(format!("vmlinuz-{release}")),
        };
        Ok(Kernel {
            file,
            modules: home.join("lib/modules").join(&release),
            release,
        })
    }
}

/// Makes the archive. `inside` is the agent's program, as a path of the host.
pub(super) fn archive(kernel: &Kernel, config: &MachineConfig, inside: &Path) -> Result<Vec<u8>> {
    let busybox = image::busybox()?;
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "host", "keep", "modules", "new", "proc", "upper",
    ] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, INIT.as_bytes());
    let dep = fs::read_to_string(kernel.modules.join("modules.dep")).with_context(|| {
        format!(
            "\"{}\" has no modules.dep; remove its cache folder and run `cargo xtask deps` again",
            kernel.modules.display()
        )
    })?;
    let devices: &[&str] = match config.flavour {
        Flavour::Igb { .. } => &IGB_MODULES,
        Flavour::Netdevsim => &NETDEVSIM_MODULES,
    };
    let mut added = Vec::new();
    for (list, wanted) in [("root", &ROOT_MODULES[..]), ("devices", devices)] {
        let mut order = String::new();
        for path in image::resolve(&dep, wanted) {
            let file = path.rsplit('/').next().unwrap_or(&path);
            let name = file.split_once(".ko").map_or(file, |(stem, _)| stem);
            if !added.contains(&path) {
                archive.file(
                    &format!("modules/{name}"),
                    0o644,
                    &module(&kernel.modules.join(&path))?,
                );
                order.push_str(name);
                order.push('\n');
                added.push(path);
            }
        }
        archive.file(&format!("modules/{list}"), 0o644, order.as_bytes());
    }
    archive.file("modules/release", 0o644, kernel.release.as_bytes());
    archive.file("modules/home", 0o644, word(&kernel.modules)?.as_bytes());
    archive.file("keep/inside", 0o644, word(inside)?.as_bytes());
    let kept = kept(&config.keep, inside)?;
    archive.file("keep/list", 0o644, kept.as_bytes());
    Ok(archive.finish())
}

/// The folders to keep that a fresh file system would hide, one a line.
fn kept(wanted: &[PathBuf], inside: &Path) -> Result<String> {
    let mut all: Vec<&Path> = wanted.iter().map(PathBuf::as_path).collect();
    all.extend(inside.parent());
    let mut text = String::new();
    for folder in all {
        let hidden = ["/tmp", "/var/tmp", "/run", "/dev/shm"];
        let below = |root: &&str| folder.starts_with(root) && folder != Path::new(root);
        if hidden.iter().any(below) {
            text.push_str(&word(folder)?);
            text.push('\n');
        }
    }
    Ok(text)
}

fn word(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains('\n') => Ok(text.to_owned()),
        _ => bail!(
            "\"{}\" cannot be named inside the machine; it must be absolute, and text of one line",
            path.display()
        ),
    }
}

/// A module's bytes, unpacked: busybox loads no compressed modules.
fn module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return fs::read(path)
                .with_context(|| format!("The module \"{}\" cannot be read", path.display()));
        }
    };
    let done = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("{tool} could not be started; `cargo xtask deps` installs it"))?;
    if !done.status.success() {
        bail!(
            "The module \"{}\" could not be unpacked: {}",
            path.display(),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(done.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hidden_folders_are_kept() {
        let wanted = ["/home/a/project", "/tmp/project", "/tmp", "/run/user/1"];
        let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
        let text = kept(&wanted, Path::new("/var/tmp/target/debug/agent")).unwrap();
        assert_eq!(text, "/tmp/project\n/run/user/1\n/var/tmp/target/debug\n");
        assert!(kept(&[PathBuf::from("/tmp/a\nb")], Path::new("/x/y")).is_err());
    }
}
