//! The guest: Debian's cloud kernel and a file system of busybox and a few modules, made in a second.
//!
//! The kernel is not installed: `cargo xtask deps` unpacks its package into a cache folder. The guest gives
//! two serial lines: the first is the kernel's console, the second a shell that [`Console`](crate::console)
//! talks to. With `fv.probe` on its command line it only says that it is up and powers off.

use crate::cpio::Archive;
use crate::run::{Run, set_mode};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What the guest says on its console when it was booted with `fv.probe`.
pub const PROBE_WORD: &str = "fv-guest-is-up";

const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
while read -r module; do insmod "/modules/$module"; done < /modules/order
ip link set lo up
case "$(cat /proc/cmdline)" in
*fv.probe*) echo fv-guest-is-up > /dev/console; poweroff -f ;;
esac
for word in $(cat /proc/cmdline); do
    case "$word" in fv.name=*) hostname "${word#fv.name=}" ;; esac
done
case "$(cat /proc/cmdline)" in
*fv.shell*)
    while :; do setsid cttyhack sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1; poweroff -f; done ;;
esac
# Kept open from here on: a serial line loses what comes while nobody has it open.
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo "@@fv ready@@" >&3
# Through a pipe, so that the shell is not interactive: no prompt, no echo.
while :; do sh <&3 2>&1 | cat >&3; done
"#;

/// Called by udhcpc: configures the interface, and writes the lease down for who wants to look.
const LEASE: &str = r#"#!/bin/sh
case "$1" in
deconfig)
    ip -4 addr flush dev "$interface"
    ip link set "$interface" up ;;
bound|renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip addr add "$ip/$mask" dev "$interface"
    if [ -n "$staticroutes" ]; then
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            if [ "$2" = 0.0.0.0 ]; then ip route add "$1" dev "$interface"
            else ip route add "$1" via "$2" dev "$interface"; fi
            shift 2
        done
    else
        for r in $router; do ip route add default via "$r" dev "$interface"; done
    fi
    { for d in $dns; do echo "nameserver $d"; done; } > /etc/resolv.conf
    { echo "ip=$ip"; echo "mask=$mask"; echo "router=$router"; echo "mtu=$mtu"; echo "dns=$dns"
      echo "staticroutes=$staticroutes"; echo "serverid=$serverid"; echo "lease=$lease"
      echo "hostname=$hostname"; } > "/tmp/lease.$interface" ;;
esac
exit 0
"#;

/// A kernel and an initial file system that boot into a shell.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's release, such as `6.1.0-40-cloud-amd64`.
    pub release: String,
}

impl Image {
    /// Makes the image in the run's folder.
    pub fn make(run: &Run) -> Result<Image> {
        Self::make_in(&run.subdir("image")?)
    }

    /// Makes the image in `dir`.
    pub fn make_in(dir: &Path) -> Result<Image> {
        let unpacked = cached_kernel()?;
        let release = release_of(&unpacked)?;
        let kernel = dir.join("vmlinuz");
        // A copy, because QEMU's account may not be able to enter the folder that the cache is in.
        fs::copy(
            unpacked.join("boot").join(format!("vmlinuz-{release}")),
            &kernel,
        )?;
        set_mode(&kernel, 0o644)?;
        let initrd = dir.join("initrd");
        fs::write(
            &initrd,
            file_system(&unpacked.join("lib/modules").join(&release))?,
        )?;
        set_mode(&initrd, 0o644)?;
        Ok(Image {
            kernel,
            initrd,
            release,
        })
    }
}

/// Where `cargo xtask deps` keeps what it downloads.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("FERROVIA_LAB_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab-cache"),
        PathBuf::from,
    )
}

/// The statically linked busybox of this machine.
pub(crate) fn busybox() -> Result<Vec<u8>> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .context("There is no busybox; `cargo xtask deps` installs busybox-static")
}

/// The folder that `cargo xtask deps` unpacked the kernel's package into.
fn cached_kernel() -> Result<PathBuf> {
    let cache = cache();
    let kernel = cache.join("kernel");
    if !kernel.join("boot").is_dir() {
        bail!(
            "There is no guest kernel in \"{}\"; `cargo xtask deps` fetches it",
            cache.display()
        );
    }
    Ok(kernel)
}

fn release_of(unpacked: &Path) -> Result<String> {
    let modules = unpacked.join("lib/modules");
    fs::read_dir(&modules)
        .with_context(|| {
            format!(
                "The kernel package in \"{}\" has no modules",
                unpacked.display()
            )
        })?
        .flatten()
        .find_map(|entry| entry.file_name().into_string().ok())
        .with_context(|| {
            format!(
                "\"{}\" is empty; remove it and run `cargo xtask deps` again",
                modules.display()
            )
        })
}

fn file_system(modules: &Path) -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "etc", "modules", "proc", "root", "sys", "tmp", "var", "var/run",
    ] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/lease", 0o755, LEASE.as_bytes());
    let mut order = String::new();
    for path in load_order(modules)? {
        let full = modules.join(&path);
        let bytes = fs::read(&full)
            .with_context(|| format!("The module \"{}\" cannot be read", full.display()))?;
        let name = path.rsplit('/').next().unwrap_or(&path);
        archive.file(&format!("modules/{name}"), 0o644, &bytes);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// Paths of the modules to load, each after what it needs, from depmod's `modules.dep`. Modules that the
/// kernel has built in are not in that file and need no loading.
fn load_order(modules: &Path) -> Result<Vec<String>> {
    let dep = modules.join("modules.dep");
    let text = fs::read_to_string(&dep).with_context(|| {
        format!(
            "\"{}\" is missing; `cargo xtask deps` makes it",
            dep.display()
        )
    })?;
    Ok(resolve(&text, &MODULES))
}

/// The paths, relative to the folder of `modules.dep` (whose text is `dep`), of the wanted modules and of all that
/// they need, each after what it needs.
pub(crate) fn resolve(dep: &str, wanted: &[&str]) -> Vec<String> {
    fn stem(path: &str) -> &str {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file)
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let Some((path, needs)) = dep
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(path, _)| stem(path).replace('-', "_") == *name)
        else {
            continue;
        };
        // The file lists all that a module needs, the first needed one last.
        for module in needs.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|m| m == module) {
                order.push(module.to_owned());
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dep = "a/virtio_net.ko: a/net_failover.ko b/failover.ko c/virtio.ko\nc/virtio.ko:\nb/failover.ko:\n";
        let order = resolve(dep, &["virtio_net", "not_there"]);
        assert_eq!(
            order,
            [
                "c/virtio.ko",
                "b/failover.ko",
                "a/net_failover.ko",
                "a/virtio_net.ko"
            ]
        );
    }
}
