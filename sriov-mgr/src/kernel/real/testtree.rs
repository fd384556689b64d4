//! Made-up sysfs trees for the tests of this module, laid out as kernels do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// An 82576 at 0000:01:00.0 (interface `fvpf0`) with `vfs` VFs bound to igbvf, each in an IOMMU group of its
/// own (20, 21, …), a disk, and a netdevsim device 3 with room for 64 VFs.
pub(crate) fn igb(vfs: u32) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let devices = root.path().join("sys/bus/pci/devices");
    let drivers = root.path().join("sys/bus/pci/drivers");
    for driver in ["igb", "igbvf", "vfio-pci"] {
        fs::create_dir_all(drivers.join(driver)).unwrap();
    }
    let pf = device(&devices, "0000:01:00.0", "0x020000", "0x10c9");
    for (file, text) in [
        ("sriov_totalvfs", "7".to_owned()),
        ("sriov_numvfs", vfs.to_string()),
        ("sriov_drivers_autoprobe", "1".to_owned()),
    ] {
        fs::write(pf.join(file), text).unwrap();
    }
    fs::create_dir_all(pf.join("net/fvpf0")).unwrap();
    symlink(drivers.join("igb"), pf.join("driver")).unwrap();
    for index in 0..vfs {
        let name = format!("0000:01:10.{}", index * 2);
        let vf = device(&devices, &name, "0x020000", "0x10ca");
        fs::create_dir_all(vf.join(format!("net/fvvf{index}"))).unwrap();
        fs::write(vf.join("driver_override"), "(null)\n").unwrap();
        symlink(drivers.join("igbvf"), vf.join("driver")).unwrap();
        symlink(&pf, vf.join("physfn")).unwrap();
        symlink(format!("../{name}"), pf.join(format!("virtfn{index}"))).unwrap();
        let group = root
            .path()
            .join(format!("sys/kernel/iommu_groups/{}", 20 + index));
        fs::create_dir_all(group.join("devices").join(&name)).unwrap();
        symlink(group, vf.join("iommu_group")).unwrap();
    }
    device(&devices, "0000:00:02.0", "0x010000", "0x1042");
    let simulated = root.path().join("sys/bus/netdevsim/devices/netdevsim3");
    fs::create_dir_all(&simulated).unwrap();
    fs::write(simulated.join("sriov_numvfs"), "0\n").unwrap();
    let debug = root.path().join("sys/kernel/debug/netdevsim/netdevsim3");
    fs::create_dir_all(&debug).unwrap();
    fs::write(debug.join("max_vfs"), "64\n").unwrap();
    root
}

fn device(devices: &Path, name: &str, class: &str, id: &str) -> std::path::PathBuf {
    let dir = devices.join(name);
    fs::create_dir_all(&dir).unwrap();
    for (file, text) in [
        ("class", class),
        ("vendor", "0x8086"),
        ("device", id),
        ("numa_node", "-1"),
    ] {
        fs::write(dir.join(file), format!("{text}\n")).unwrap();
    }
    dir
}
