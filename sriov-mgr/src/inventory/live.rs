//! What only the running kernel can say of NICs: settings of VFs, eswitch modes, representors, who uses which
//! VF, health.

use super::{Function, Inventory, Nic};
use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::real::act::is_being_changed;
use crate::kernel::real::devlink::{Devlink, Reporter};
use crate::kernel::real::holders::Everyone;
use crate::kernel::real::look;
use crate::kernel::real::tree::Tree;
use crate::kernel::{EswitchMode, VfSettings};
use crate::sysfs::Dir;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Errors that a PCI function has reported since it was found (kernel:
/// `Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AerCounts {
    /// Corrected by the hardware.
    pub correctable: u64,
    /// Not corrected; the link goes on.
    pub nonfatal: u64,
    /// Not corrected; the link was reset.
    pub fatal: u64,
}

/// The AER counters; `None` where the function or the platform has none.
pub(crate) fn aer(dir: &Dir) -> Option<AerCounts> {
    let total = |file: &str| {
        let text = dir.text(file)?;
        let line = text.lines().find(|line| line.starts_with("TOTAL_ERR"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(AerCounts {
        correctable: total("aer_dev_correctable")?,
        nonfatal: total("aer_dev_nonfatal")?,
        fatal: total("aer_dev_fatal")?,
    })
}

/// MSI-X vectors that the function offers, from its configuration space (PCI Local Bus 3.0, section 6.8.2).
/// `None` without MSI-X, and for readers without privilege, who see 64 bytes only.
pub(super) fn msix_vectors(config: &[u8]) -> Option<u16> {
    const STATUS: usize = 0x06;
    const HAS_LIST: u8 = 1 << 4;
    const FIRST: usize = 0x34;
    const MSIX: u8 = 0x11;
    if config.get(STATUS)? & HAS_LIST == 0 {
        return None;
    }
    let mut at = usize::from(config.get(FIRST)? & 0xfc);
    // A list that the device tied into a loop ends all the same.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        if *config.get(at)? == MSIX {
            let control = u16::from_le_bytes([*config.get(at + 2)?, *config.get(at + 3)?]);
            return Some((control & 0x7ff) + 1);
        }
        at = usize::from(config.get(at + 1)? & 0xfc);
    }
    None
}

/// Adds what the running kernel says. What cannot be read is left absent.
pub(super) fn complete(root: &Path, inventory: &mut Inventory) {
    let tree = Tree(root.to_owned());
    let pfs = inventory.nics.iter().filter_map(|nic| match &nic.function {
        Function::Pf { vfs, .. } => Some((nic.address, vfs.len())),
        _ => None,
    });
    let pfs: Vec<(PciAddress, usize)> = pfs.collect();
    let mut known = HashMap::new();
    for (pf, vfs) in pfs {
        if let Some(found) = of_pf(&tree, pf, vfs) {
            known.insert(pf, found);
        }
    }
    let mut everyone = Everyone::look(&tree).ok();
    for nic in &mut inventory.nics {
        fill(&tree, nic, &mut known, everyone.as_mut());
    }
}

/// What is asked once a PF.
struct OfPf {
    eswitch: Option<EswitchMode>,
    reporters: Vec<Reporter>,
    settings: HashMap<u32, VfSettings>,
    representors: HashMap<u32, String>,
}

fn of_pf(tree: &Tree, pf: PciAddress, vfs: usize) -> Option<OfPf> {
    let device = Device::Pci(pf);
    // A change under way holds locks that these questions would wait for, perhaps for ever.
    if is_being_changed(tree, &device) {
        return None;
    }
    let view = look::View::whole(&device).ok()?;
    let reporters = Devlink::open()
        .and_then(|mut devlink| devlink.health(&device))
        .unwrap_or_default();
    let settings = if vfs > 0 {
        view.settings(tree, &device)
    } else {
        HashMap::new()
    };
    Some(OfPf {
        eswitch: view.eswitch(),
        reporters,
        settings,
        representors: view.representors(),
    })
}

fn fill(
    tree: &Tree,
    nic: &mut Nic,
    known: &mut HashMap<PciAddress, OfPf>,
    everyone: Option<&mut Everyone>,
) {
    match nic.function {
        Function::Vf { pf, index } => {
            if let (Some(found), Some(index)) = (known.get_mut(&pf), index) {
                nic.settings = found.settings.remove(&index);
                nic.representor = found.representors.remove(&index);
            }
            if let Some(everyone) = everyone {
                nic.holders = everyone.of_function(tree, nic.address);
            }
        }
        Function::Pf { .. } => {
            if let Some(found) = known.get_mut(&nic.address) {
                nic.eswitch = found.eswitch;
                nic.reporters = std::mem::take(&mut found.reporters);
            }
        }
        Function::Plain => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn msix_is_found_in_the_capability_list() {
        let mut config = vec![0u8; 256];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        // Power management, then MSI-X with a table of ten.
        config[0x40..0x42].copy_from_slice(&[0x01, 0x70]);
        config[0x70..0x74].copy_from_slice(&[0x11, 0x00, 9, 0x80]);
        assert_eq!(msix_vectors(&config), Some(10));
        assert_eq!(msix_vectors(&config[..64]), None, "an unprivileged reader");
        config[0x70..0x72].copy_from_slice(&[0x05, 0x40]);
        assert_eq!(msix_vectors(&config), None, "a loop");
        assert_eq!(msix_vectors(&[]), None);
    }

    #[test]
    fn aer_totals_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let here = Dir(dir.path().to_owned());
        assert_eq!(aer(&here), None);
        for (file, text) in [
            (
                "aer_dev_correctable",
                "RxErr 0\nBadTLP 2\nTOTAL_ERR_COR 2\n",
            ),
            ("aer_dev_nonfatal", "Undefined 0\nTOTAL_ERR_NONFATAL 1\n"),
            ("aer_dev_fatal", "Undefined 0\nTOTAL_ERR_FATAL 0\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let expected = AerCounts {
            correctable: 2,
            nonfatal: 1,
            fatal: 0,
        };
        assert_eq!(aer(&here), Some(expected));
    }
}
